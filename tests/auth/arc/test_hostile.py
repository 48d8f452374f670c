"""Whatever an enemy puts into ARC fields, the answer comes in under a second, and is no exception."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.arc import check_arc
from gateway.auth.arc.sets import highest_instance
from gateway.auth.results import ArcStatus
from gateway.mail.message import Message
from tests.auth.arc.chains import FIELDS, Custodian, chain, world
from tests.auth.dkim.signing import MESSAGE, NOW

KB = 1_000
MB = 1_000_000
TAGS = b"i=%d; a=rsa-sha256; d=lists.example; s=rsa; "
SEALED = chain(MESSAGE, *[Custodian(results="mx; " + "x=pass;" * 2_000)] * 10)


def one_set(
    results: bytes = b"i=1; mx; dmarc=pass", signature: bytes = b"", seal: bytes = b"", instance: int = 1
) -> bytes:
    tags = TAGS % instance
    own_signature = signature or tags + b"h=from; bh=" + b"A" * 43 + b"=; b=AAAA"
    return b"ARC-Seal: %s\r\nARC-Message-Signature: %s\r\nARC-Authentication-Results: %s\r\n" % (
        seal or tags + b"cv=none; b=AAAA",
        own_signature,
        results,
    )


RAW = {
    "2,000 sets": b"".join(one_set(instance=number % 60) for number in range(660)) + MESSAGE,
    "50 sets of one number": one_set() * 50 + MESSAGE,
    "ten sets with 15,000 results": SEALED,
    "a long i= in the results": one_set(b"i=" + b"1" * MB) + MESSAGE,
    "blanks before i=": one_set(b" \r\n" * (400 * KB // 3) + b" i=1; mx") + MESSAGE,
    "open comments before i=": one_set(b"(" * 400 * KB) + MESSAGE,
    "comments before i=": one_set(b"()" * 200 * KB + b"i=1; mx") + MESSAGE,
    "comments in the results": one_set(b"i=1; mx" + b"(a)" * 130 * KB) + MESSAGE,
    "semicolons in the results": one_set(b"i=1; mx" + b";" * 400 * KB) + MESSAGE,
    "properties": one_set(b"i=1; mx; spf=pass" + b" a.b=c" * 2_500) + MESSAGE,
    "open quotes": one_set(b'i=1; mx; spf=pass a.b="' + b'\\"' * 7 * KB) + MESSAGE,
    "names in h=": one_set(signature=TAGS % 1 + b"h=from" + b":a" * 150 * KB + b"; bh=AAAA; b=AAAA")
    + MESSAGE,
    "ten times 15,000 names": b"".join(
        one_set(
            b"i=%d; mx" % number,
            TAGS % number + b"h=from" + b":a" * 15_000 + b"; bh=" + b"A" * 43 + b"=; b=AAAA",
            TAGS % number + (b"cv=none; b=AAAA" if number == 1 else b"cv=pass; b=AAAA"),
        )
        for number in range(1, 11)
    )
    + MESSAGE,
    "a giant seal": one_set(seal=TAGS % 1 + b"cv=none; b=" + b"A" * MB) + MESSAGE,
    "half a megabyte of seal": one_set(seal=TAGS % 1 + b"cv=none; b=" + b"AAAA" * 100 * KB) + MESSAGE,
    "folding only": one_set(seal=TAGS % 1 + b"cv=none; b=" + b"\r\n " * 130 * KB) + MESSAGE,
    "tags": one_set(seal=b"".join(b"t%d=;" % number for number in range(50 * KB))) + MESSAGE,
    "a long domain": one_set(seal=b"i=1; a=rsa-sha256; s=rsa; cv=none; b=AAAA; d=" + b"a." * 200 * KB)
    + MESSAGE,
    "blanks in fields that are sealed": SEALED.replace(b"mx; ", b"mx; " + b" \t" * 20 * KB),
    "a body of blanks": Custodian().seal(MESSAGE) + b" \t" * (MB // 2),
    "a body of line ends": Custodian().seal(MESSAGE) + b"\r\n" * (MB // 2),
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
async def test_the_answer_comes_in_time(raw: bytes) -> None:
    message = Message(raw)

    started = time.process_time()
    result = await check_arc(message, world(), now=NOW)
    highest = highest_instance(message)
    took_s = time.process_time() - started

    assert took_s < 1
    assert result.status in ArcStatus
    assert 0 <= highest <= 50


VALUES = st.one_of(
    st.binary(max_size=200),
    st.text(st.sampled_from('i=1;2 abdshcvt\r\n\t()"\\.:/none pass'), max_size=200).map(str.encode),
)


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(FIELDS), VALUES), min_size=1, max_size=8))
async def test_any_bytes_as_arc_fields(fields: list[tuple[bytes, bytes]]) -> None:
    raw = b"".join(name + b":" + value + b"\r\n" for name, value in fields) + MESSAGE

    result = await check_arc(Message(raw), world(), now=NOW)

    assert result.status in {ArcStatus.FAIL, ArcStatus.NONE}  # none: a line end in a value ended the header


@settings(max_examples=100)
@given(st.integers(0, 2**16), st.sampled_from([b"", b"\0", b";", b"=", b"\r\n ", b"(", b"i", b"\xff"]))
async def test_one_byte_changed_in_a_chain_never_raises(where: int, byte: bytes) -> None:
    sealed = chain(MESSAGE, Custodian(), Custodian(domain="forward.example"))
    where %= len(sealed)

    result = await check_arc(Message(sealed[:where] + byte + sealed[where + 1 :]), world(), now=NOW)

    assert result.status in ArcStatus
