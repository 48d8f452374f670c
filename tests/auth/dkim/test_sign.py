"""Our own signatures: what they cover, over which message they are made, and what is not signed."""

import mmap
import re
import tempfile
import tracemalloc
from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.dkim import check_dkim, content
from gateway.auth.dkim.canonical import canonical_text
from gateway.auth.dkim.key_table import KeyTable, SigningKey
from gateway.auth.dkim.sign import ALWAYS_SIGNED, SIGNED_IF_PRESENT, Signed, Signer
from gateway.auth.dkim.signature import parse_signature
from gateway.auth.results import DkimStatus, NotSigned
from gateway.mail.author import find_author
from gateway.mail.edits import NO_EDITS, Edits, NewField, apply_edits
from gateway.mail.headers import FOLD_AT
from gateway.mail.message import AMBIGUOUS, Buffer, Message
from tests.auth.dkim.signing import BODY, HEADER, MESSAGE, NOW, ed25519_key, rsa_key, zone

RSA = SigningKey(
    domain="example.org", selector="rsa", subdomains=True, expires_after_s=None, private_key=rsa_key(2048)
)
ED25519 = replace(RSA, selector="ed", private_key=ed25519_key())
BOTH: tuple[SigningKey, ...] = (RSA, ED25519)


def sign(
    raw: Buffer, edits: Edits = NO_EDITS, keys: tuple[SigningKey, ...] = BOTH, now: float = NOW
) -> Signed:
    message = Message(raw)
    return Signer(KeyTable(keys)).sign(message, find_author(message), edits, now=now)


def handed_on(raw: bytes, edits: Edits = NO_EDITS, keys: tuple[SigningKey, ...] = BOTH) -> bytes:
    """The message as it leaves."""
    signed = sign(raw, edits, keys)
    assert signed.signing.reason is None
    return b"".join(
        apply_edits(Message(raw), Edits(prepend=(*signed.fields, *edits.prepend), remove=edits.remove))
    )


async def verdicts(raw: bytes, now: float = NOW) -> list[DkimStatus]:
    return [result.status for result in await check_dkim(Message(raw), zone(), now=now)]


GOOD = [DkimStatus.PASS, DkimStatus.PASS]
BROKEN = [DkimStatus.FAIL, DkimStatus.FAIL]


# The field


async def test_both_keys_sign_side_by_side() -> None:
    assert await verdicts(handed_on(MESSAGE)) == GOOD
    rsa, ed25519 = (parse_signature(field.value.encode()) for field in sign(MESSAGE).fields)
    assert (rsa.terms.algorithm, rsa.terms.selector, rsa.terms.domain) == ("rsa-sha256", "rsa", "example.org")
    assert (ed25519.terms.algorithm, ed25519.terms.selector) == ("ed25519-sha256", "ed")
    assert rsa.body_hash == ed25519.body_hash
    assert rsa.terms.signed_fields == ed25519.terms.signed_fields
    assert (rsa.terms.body_length, rsa.timestamp, rsa.expiration) == (None, int(NOW), None)
    assert [str(made) for made in sign(MESSAGE).signing.made] == ["example.org/rsa", "example.org/ed"]


def test_the_body_is_read_once_for_all_keys() -> None:
    with patch.object(content, "canonical_text", wraps=canonical_text) as read:
        sign(MESSAGE)
    assert read.call_count == 1


def test_the_field_is_folded_within_78_columns() -> None:
    for field in sign(MESSAGE).fields:
        text = field.to_bytes().decode()
        lines = text.removesuffix("\r\n").split("\r\n")
        assert all(len(line) <= FOLD_AT for line in lines), text
        assert all(line.startswith("    ") for line in lines[1:])
        assert [line[:7] for line in lines if "b=" in line[:6]] == [
            f"    b={field.value.partition(' b=')[2][:1]}"
        ]


def test_a_domain_longer_than_a_line_stays_whole() -> None:
    domain = ".".join(["a" * 60] * 4)
    key = replace(RSA, domain=domain)
    raw = MESSAGE.replace(b"@example.org", b"@" + domain.encode())
    (field,) = sign(raw, keys=(key,)).fields
    assert f"d={domain};" in field.value


async def test_signatures_end_where_the_operator_says() -> None:
    raw = handed_on(MESSAGE, keys=(replace(RSA, expires_after_s=3600),))
    assert f"t={int(NOW)}; x={int(NOW) + 3600};" in raw.decode()
    assert await verdicts(raw, NOW + 3600) == [DkimStatus.PASS]
    assert await verdicts(raw, NOW + 3601) == [DkimStatus.PERMERROR]


# What is signed

FULL = (
    HEADER
    + b"Message-ID: <1@example.org>\r\nReply-To: joe@example.org\r\nCc: c@example.net\r\nIn-Reply-To: <0@x.example>\r\n"
    b"References: <0@x.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain\r\n"
    b"Content-Transfer-Encoding: 7bit\r\nList-Id: <a.example.org>\r\nList-Unsubscribe: <https://example.org/u>\r\n"
    b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\nList-Help: <a>\r\nList-Subscribe: <a>\r\nList-Post: <a>\r\n"
    b"List-Owner: <a>\r\nList-Archive: <a>\r\n\r\n"
    + BODY
)  # fmt: skip


@pytest.mark.parametrize("name", [*ALWAYS_SIGNED, *SIGNED_IF_PRESENT], ids=bytes.decode)
async def test_no_second_field_can_be_put_in_above_or_below(name: bytes) -> None:
    raw = handed_on(FULL)
    added = name + b": <x@evil.example>\r\n"
    for changed in (added + raw, raw.replace(b"\r\n\r\n", b"\r\n" + added + b"\r\n", 1)):
        assert DkimStatus.PASS not in await verdicts(changed)
    without = re.sub(rb"(?mi)^" + name + rb": .*\r\n(?:[ \t].*\r\n)*", b"", raw, count=1)
    assert without != raw
    assert DkimStatus.PASS not in await verdicts(without)


BARE = b"From: Joe <joe@example.org>\r\n\r\nHi\r\n"


@pytest.mark.parametrize("name", ALWAYS_SIGNED[1:], ids=bytes.decode)
async def test_what_is_absent_stays_absent(name: bytes) -> None:
    assert await verdicts(name + b": <x@evil.example>\r\n" + handed_on(BARE)) == BROKEN


@pytest.mark.parametrize(
    "added",
    [
        b"Date: Fri, 11 Jul 2025 21:00:37 -0700\r\nMessage-ID: <2@mx.example.org>\r\n",  # Postfix, where one is missing
        b"List-Id: <list.example>\r\nList-Unsubscribe: <mailto:u@list.example>\r\n",  # a mailing list
        b"Sender: list-bounces@list.example\r\n",  # likewise
        b"Received: from a by b; Fri, 11 Jul 2025 21:00:37 -0700\r\nReturn-Path: <joe@example.org>\r\n",
        b"Authentication-Results: mx.example.net; none\r\n",
        b"Resent-From: bob@example.net\r\nResent-To: ann@example.net\r\n",
        b"X-Spam: no\r\nARC-Seal: i=1\r\nDKIM-Signature: v=1\r\n",
    ],
)
async def test_what_honest_relays_add_breaks_nothing(added: bytes) -> None:
    statuses = await verdicts(added + handed_on(BARE))
    assert statuses[-2:] == GOOD


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ((b"Is dinner\r\n ready?", b"Is dinner ready?"), GOOD),  # folded anew
        ((b"Subject: ", b"SUBJECT:\t "), GOOD),
        ((b"lost  the", b"lost the"), GOOD),
        ((b"Is dinner", b"Is lunch"), BROKEN),
        ((b"Hi.", b"Ho."), BROKEN),
        ((b"Joe.\r\n", b"Joe.\r\nMore.\r\n"), BROKEN),  # no l=
    ],
)
async def test_what_may_change_on_the_way(change: tuple[bytes, bytes], expected: list[DkimStatus]) -> None:
    raw = handed_on(MESSAGE)
    changed = raw.replace(*change)
    assert changed != raw
    assert await verdicts(changed) == expected


# Over the message as it leaves


async def test_our_own_edits_are_in_it() -> None:
    raw = b"Bcc: secret@example.net\r\nReply-To: old@example.org\r\n" + BARE
    edits = Edits(
        prepend=(
            NewField("Date", "Fri, 11 Jul 2025 21:00:37 -0700"),
            NewField("Message-ID", "<1@example.org>"),
        ),
        remove=frozenset({0, 1}),
    )
    left = handed_on(raw, edits)
    assert b"secret" not in left
    assert await verdicts(left) == GOOD
    assert await verdicts(left.replace(b"21:00:37", b"21:00:38")) == BROKEN
    assert await verdicts(b"Reply-To: old@example.org\r\n" + left) == BROKEN
    assert await verdicts(b"Date: Fri, 11 Jul 2025 21:00:37 -0700\r\n" + left) == BROKEN


def test_a_mapped_message_is_signed_alike_and_in_flat_memory() -> None:
    raw = MESSAGE + b"Some text that fills a line up to its end, and more of it. \r\n" * 320_000
    with tempfile.TemporaryFile() as file:
        file.write(raw)
        file.flush()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            message = Message(mapped)
            author = find_author(message)
            tracemalloc.start()
            signed = Signer(KeyTable(BOTH)).sign(message, author, NO_EDITS, now=NOW)
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert signed == sign(raw)
    assert peak < 4_000_000 < len(raw) / 4


# What is not signed


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"To: a@example.org\r\n\r\nHi\r\n", NotSigned.NO_AUTHOR),  # no From
        (b"From: joe@example.org\r\nFrom: x@evil.example\r\n\r\nHi\r\n", NotSigned.NO_AUTHOR),
        (b"From: joe@example.org, ann@example.org\r\n\r\nHi\r\n", NotSigned.NO_AUTHOR),
        (b"From: root (Cron Daemon)\r\n\r\nHi\r\n", NotSigned.NO_AUTHOR),  # a bare local part
        (b'From: "joe@example.org" <joe@example.org\r\n\r\nHi\r\n', NotSigned.NO_AUTHOR),
        (b"From: <>\r\n\r\nHi\r\n", NotSigned.NO_AUTHOR),
        (b"From: x@evil.example\r\nSender: joe@example.org\r\n\r\nHi\r\n", NotSigned.NO_KEY),
        (b"From: joe@example.org.evil.example\r\n\r\nHi\r\n", NotSigned.NO_KEY),
        (b"From: joe@example.org\r\n\r\nHi\0\r\n", NotSigned.NO_AUTHOR),  # readers may see two messages
        (b"From: joe@example.org\r\nno field\r\n\r\nHi\r\n", NotSigned.NO_AUTHOR),
        (
            b"From: joe@example.org\r\n\r\nlone\nline ends\r\n",
            NotSigned.AMBIGUOUS,
        ),  # Postfix makes CRLF of it
        (b"From: joe@example.org\r\n" + b"X: y\r\n" * 2_001 + b"\r\nHi\r\n", NotSigned.NO_AUTHOR),
        (b"", NotSigned.NO_AUTHOR),
    ],
)
def test_what_is_not_ours_or_not_clear(raw: bytes, reason: NotSigned) -> None:
    signed = sign(raw)
    assert (signed.fields, signed.signing.made, signed.signing.reason) == ((), (), reason)


@pytest.mark.parametrize(
    "sender",
    [
        b"joe@example.org",
        b"Joe <JOE@Example.ORG>",
        b"root@host.example.org",
        b"MAILER-DAEMON@example.org (x)",
    ],
)
async def test_whom_we_sign_for(sender: bytes) -> None:
    assert await verdicts(handed_on(b"From: " + sender + b"\r\n\r\nHi\r\n")) == GOOD


STAMP = b"Authentication-Results: mx.example.net;\r\n    spf=fail smtp.mailfrom=x@evil.example;\r\n    dkim=none;\r\n    "


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (b"dmarc=fail header.from=example.org polrec.p=none policy.dmarc=none", NotSigned.NOT_PROVEN),
        (b"dmarc=none header.from=example.org", NotSigned.NOT_PROVEN),
        (b"dmarc=temperror reason=dns.timeout\r\n    header.from=example.org", NotSigned.NOT_PROVEN),
        (b"dmarc=temperror reason=gateway.internal", NotSigned.NOT_PROVEN),  # handed on unchecked
        (b"dmarc=pass header.from=example.org polrec.p=reject", None),  # its own signature was proof enough
        (
            b"dmarc=fail header.from=elsewhere.example polrec.p=none",
            None,
        ),  # a list put its own address into From
        (b"dmarc=fail header.from=host.example.org polrec.p=none", None),
        (b"auth=pass smtp.auth=ann", None),
        (b"none", None),
    ],
)
def test_what_came_in_unproven_does_not_leave_as_proven(results: bytes, reason: NotSigned | None) -> None:
    raw = STAMP + results + b"\r\n" + MESSAGE
    message, signer = Message(raw), Signer(KeyTable(BOTH))
    author = find_author(message)
    ours = signer.sign(message, author, NO_EDITS, now=NOW, own_results={0})
    others = signer.sign(message, author, NO_EDITS, now=NOW)
    assert ours.signing.reason is reason
    assert others.signing.reason is None


# What is signed already


async def test_nothing_is_signed_twice_by_the_same_key() -> None:
    once = handed_on(MESSAGE)
    relayed = b"Received: from submission by postfix; Fri, 11 Jul 2025 21:00:37 -0700\r\n" + once
    assert sign(relayed).signing.reason is NotSigned.ALREADY_SIGNED
    with_rsa = handed_on(MESSAGE, keys=(RSA,))
    assert [str(made) for made in sign(with_rsa).signing.made] == ["example.org/ed"]  # a new key beside it
    assert await verdicts(handed_on(with_rsa)) == GOOD


@pytest.mark.parametrize(
    "spoil",
    [
        lambda raw: raw.replace(b"Hi.", b"Ho."),  # changed since
        lambda raw: raw.replace(b"d=example.org", b"d=elsewhere.example"),
        lambda raw: re.sub(rb"b=.*\r\n(?:    [A-Za-z0-9+/=]+\r\n)*(?=From)", b"b=AAAA\r\n", raw),
        lambda raw: b"DKIM-Signature: v=1; a=rsa-sha256; d=example.org; s=rsa; h=from; bh=; b=\r\n" + MESSAGE,
        lambda raw: b"DKIM-Signature: \xff\r\n" * 100 + MESSAGE,
    ],
)
async def test_what_only_looks_like_our_signature_does_not_count(spoil: object) -> None:
    assert callable(spoil)
    raw = spoil(handed_on(MESSAGE, keys=(RSA,)))
    assert [str(made) for made in sign(raw, keys=(RSA,)).signing.made] == ["example.org/rsa"]
    assert (await verdicts(handed_on(raw, keys=(RSA,))))[0] is DkimStatus.PASS


def test_a_signature_that_our_edits_break_or_time_has_ended_is_made_anew() -> None:
    short = replace(RSA, expires_after_s=3600)
    raw = handed_on(MESSAGE, keys=(short,))
    assert sign(raw, keys=(short,), now=NOW + 3600).signing.reason is NotSigned.ALREADY_SIGNED
    assert sign(raw, keys=(short,), now=NOW + 3601).signing.made
    added = Edits(prepend=(NewField("Reply-To", "x@example.org"),))
    assert sign(raw, added, keys=(short,)).signing.made


# Any message

NAMES = st.sampled_from(
    [b"From", b"To", b"Subject", b"Date", b"List-Id", b"X", b"DKIM-Signature", b"Bcc", b"to "]
)
VALUES = st.one_of(
    st.sampled_from(
        [b" joe@example.org", b" <a@sub.example.org>", b" x@evil.example", b"", b" \r\n y", b"\t\xff"]
    ),
    st.binary(max_size=30),
)
FIELDS = st.lists(st.tuples(NAMES, VALUES).map(lambda field: b":".join(field) + b"\r\n"), max_size=8)
BODIES = st.lists(
    st.sampled_from(
        [b"a", b" ", b"\t", b"\r\n", b"\r\n\r\n", b".", b"\xc3\xbc", b"x" * 1200, b" \r\n", b"\r", b"\n"]
    )
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"From: joe@example.org\r\n", b""]), FIELDS, BODIES, st.sets(st.integers(0, 8)))
async def test_any_message_is_signed_well_or_not_at_all(
    author: bytes, fields: list[bytes], body: bytes, remove: set[int]
) -> None:
    raw = author + b"".join(fields) + b"\r\n" + body + b"\r\n"
    message = Message(raw)
    edits = Edits(
        prepend=(NewField("Message-ID", "<1@example.org>"),),
        remove=frozenset(
            at for at in remove if at < len(message.fields) and message.fields[at].key != b"from"
        ),
    )
    signed = sign(raw, edits)
    if signed.signing.reason is not None:
        assert not signed.fields
        return
    assert not message.defects & AMBIGUOUS
    left = Edits(prepend=(*signed.fields, *edits.prepend), remove=edits.remove)
    results = await check_dkim(Message(b"".join(apply_edits(message, left))), zone(), now=NOW)
    assert [result.status for result in results[: len(signed.fields)]] == [DkimStatus.PASS] * len(
        signed.fields
    )


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_signed_or_refused(raw: bytes) -> None:
    sign(raw)
    sign(b"From: joe@example.org\r\n" + raw)
