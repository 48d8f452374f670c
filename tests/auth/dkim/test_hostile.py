"""Whatever 1 MB of message an enemy thinks of, the answer comes in under a second, and is no exception."""

import contextlib
import time

import pytest

from gateway.auth.dkim import check_dkim
from gateway.auth.dkim.canonical import Canonicalization, canonical_field, without_signature
from gateway.auth.dkim.signature import parse_signature
from gateway.auth.dkim.tags import DkimError
from gateway.mail.message import Message
from tests.auth.dkim.signing import HEADER, MESSAGE, NOW, Signer, zone

MB = 1_000_000
HASH = b"A" * 43 + b"="
HEAD = b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=rsa; h=from; bh=" + HASH

BODIES = {
    "spaces": b" " * MB,
    "tabs": b"\t" * MB,
    "line ends": b"\r\n" * (MB // 2),
    "bare CRs": b"\r" * MB,
    "bare LFs": b"\n" * MB,
    "CR CR LF": b"\r\r\n" * (MB // 3),
    "blank lines": b" \r\n" * (MB // 3),
    "pairs of spaces": b"  x" * (MB // 3),
    "spaces and tabs": b" \t" * (MB // 2),
    "one line": b"x" * MB,
    "spaces before a bare CR": (b" " * 1000 + b"\r") * 1000,
}
SIGNATURES = {
    "a long value": HEAD + b"; b=" + b"A" * MB,
    "folding only": HEAD + b"; b=" + b"\r\n " * (MB // 3),
    "spaces in a tag": HEAD + b"; b" + b" " * MB + b"=AAAA",
    "spaces in a value": HEAD + b"; b=A" + b" " * MB + b"AAA",
    "semicolons": HEAD + b";" * MB,
    "semicolons and spaces": HEAD + b"; " * (MB // 2),
    "tags": HEAD + b"".join(b"; t%d=" % number for number in range(MB // 10)),
    "b after b": HEAD + b"; b=" + b"b" * MB,
    "equals signs": HEAD + b"; b" + b"=" * MB,
    "names in h=": HEAD.replace(b"h=from", b"h=from" + b":a" * 100_000) + b"; b=AAAA",
    "From in h=": HEAD.replace(b"h=from", b"h=from" + b":from" * 100_000) + b"; b=AAAA",
    "itself in h=": HEAD.replace(b"h=from", b"h=from" + b":dkim-signature" * 60_000) + b"; b=AAAA",
    "colons in h=": HEAD.replace(b"h=from", b"h=" + b":" * MB) + b"; b=AAAA",
    "digits": HEAD + b"; b=AAAA; l=" + b"9" * MB,
    "a long domain": HEAD.replace(b"example.org", b"a." * (MB // 2)) + b"; b=AAAA",
    "labels beyond ASCII": HEAD.replace(b"example.org", "ü.".encode() * (MB // 3)) + b"; b=AAAA",
    "an encoded i=": HEAD + b"; b=AAAA; i=" + b"=40" * (MB // 3),
    "query methods": HEAD + b"; b=AAAA; q=" + b"x:" * (MB // 2),
}
RAW = {
    **{f"body of {name}": Signer().sign(MESSAGE) + text for name, text in BODIES.items()},
    **{
        f"simple body of {name}": Signer(body=Canonicalization.SIMPLE).sign(MESSAGE) + text
        for name, text in BODIES.items()
    },
    **{f"signature with {name}": field + b"\r\n" + MESSAGE for name, field in SIGNATURES.items()},
    "half a megabyte of signature that is read": HEAD + b"; b=" + b"A" * 500_000 + b"\r\n" + MESSAGE,
    "2,000 signatures": (HEAD + b"; b=AAAA\r\n") * 1_990 + MESSAGE,
    "eight times 30,000 names": (HEAD.replace(b"h=from", b"h=from" + b":a" * 30_000) + b"; b=AAAA\r\n") * 8
    + MESSAGE,
    "eight lengths of one body": b"".join(
        HEAD + b"; l=%d; b=AAAA\r\n" % length for length in range(MB // 2, MB // 2 + 8)
    )
    + HEADER
    + b"\r\n"
    + b"  x" * (MB // 3),
    "a header field of spaces": Signer(signed="from:subject")
    .sign(MESSAGE)
    .replace(b"dinner", b" \t" * 200_000),
    "no end to the header": Signer().sign(HEADER) + b"X: " + b" \r\n " * (MB // 4),
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
async def test_the_answer_comes_in_time(raw: bytes) -> None:
    message = Message(raw)
    resolver = zone()

    started = time.process_time()
    results = await check_dkim(message, resolver, now=NOW)
    took_s = time.process_time() - started

    assert took_s < 1
    assert len(results) <= 16


@pytest.mark.parametrize("value", SIGNATURES.values(), ids=SIGNATURES)
def test_each_function_takes_it_whole(value: bytes) -> None:
    """`Message` cuts a header at half a megabyte; the functions below it must not depend on that."""
    started = time.process_time()
    with contextlib.suppress(DkimError):
        parse_signature(value.partition(b":")[2])
    for how in Canonicalization:
        canonical_field(without_signature(value), how)

    assert time.process_time() - started < 1
