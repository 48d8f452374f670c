import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.dkim.canonical import (
    Canonicalization,
    canonical_body,
    canonical_field,
    canonical_text,
    relaxed_header,
    without_signature,
)
from gateway.auth.dkim.content import hash_body

SIMPLE, RELAXED = Canonicalization.SIMPLE, Canonicalization.RELAXED


def body(text: bytes, how: Canonicalization, *, size: int = 1 << 20) -> bytes:
    return b"".join(canonical_body((text[at : at + size] for at in range(0, len(text), size)), how))


FIELDS = [
    (b"A: X\r\n", b"a:X\r\n", "the example of RFC 6376 §3.4.5"),
    (b"B : Y\t\r\n\tZ  \r\n", b"b:Y Z\r\n", "likewise"),
    (b"Subject:\r\n", b"subject:\r\n", "an empty value"),
    (b"Subject: \t \r\n", b"subject:\r\n", "a blank one"),
    (
        b"Subject:\r\n a\r\n \r\n b\r\n",
        b"subject:a b\r\n",
        "folding on the first line, and a blank line within",
    ),
    (b"SUBJECT\t :a:b", b"subject:a:b\r\n", "colons in the value; the message breaks off"),
    (
        "Subject: Grüße\u00a0 X\r\n".encode(),
        "subject:Grüße\u00a0 X\r\n".encode(),
        "only blank and tab are white space",
    ),
    (b"X: a\x0b \x0c\r\n", b"x:a\x0b \x0c\r\n", "nor are vertical tab and form feed"),
]


@pytest.mark.parametrize(("field", "relaxed", "why"), FIELDS)
def test_fields(field: bytes, relaxed: bytes, why: str) -> None:
    assert canonical_field(field, RELAXED) == relaxed, why
    assert canonical_field(field, SIMPLE) == field.removesuffix(b"\r\n") + b"\r\n", why


BODIES = [
    (b" C \r\nD \t E\r\n\r\n\r\n", b" C \r\nD \t E\r\n", b" C\r\nD E\r\n", "the example of RFC 6376 §3.4.5"),
    (b"", b"\r\n", b"", "an empty body is one line end in simple, and nothing in relaxed (§3.4.3, §3.4.4)"),
    (b"\r\n\r\n", b"\r\n", b"", "so are empty lines"),
    (b" \t\r\n \r\n", b" \t\r\n \r\n", b"", "blank lines are empty only in relaxed"),
    (b"a", b"a\r\n", b"a\r\n", "no line end at the end"),
    (b"a ", b"a \r\n", b"a\r\n", "nor with a blank before it"),
    (b"a\r", b"a\r\r\n", b"a\r\r\n", "a bare CR is content"),
    (b"a\n\r\n\r\n", b"a\n\r\n", b"a\n\r\n", "a bare LF is content"),
    (b"a\r\r\n", b"a\r\r\n", b"a\r\r\n", "a bare CR before a line end"),
    (b"a \n", b"a \n\r\n", b"a \n\r\n", "a bare LF ends no line"),
    (b"\r\na", b"\r\na\r\n", b"\r\na\r\n", "empty lines at the start count"),
]


@pytest.mark.parametrize(("text", "simple", "relaxed", "why"), BODIES)
def test_bodies(text: bytes, simple: bytes, relaxed: bytes, why: str) -> None:
    for size in (1, 2, 3, 100):
        assert body(text, SIMPLE, size=size) == simple, why
        assert body(text, RELAXED, size=size) == relaxed, why


def by_the_book(text: bytes, how: Canonicalization) -> bytes:
    """RFC 6376 §3.4.3 and §3.4.4 line by line."""
    lines = text.split(b"\r\n")
    if how is RELAXED:
        lines = [re.sub(rb"[ \t]+", b" ", line).removesuffix(b" ") for line in lines]
    while lines and not lines[-1]:
        lines.pop()
    return b"\r\n".join(lines) + b"\r\n" if lines or how is SIMPLE else b""


PIECES = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"\t", b"a", b".", b"  \t", b"\r\n\r\n", b"\xff\x00"])
)


@given(PIECES.map(b"".join), st.sampled_from(list(Canonicalization)), st.integers(1, 7))
def test_in_chunks_is_all_at_once_is_line_by_line(text: bytes, how: Canonicalization, size: int) -> None:
    assert body(text, how, size=size) == body(text, how) == by_the_book(text, how)
    assert canonical_text(text, how) == body(text, how)


VALUES = st.lists(
    st.sampled_from([b"\r\n ", b"\r\n\t", b"\r:", b"\na", b" ", b"\t", b"a", b":", b"  \t", b"\xff\x00"])
)


@given(st.lists(st.tuples(st.sampled_from([b"From", b"to", b"x-Y"]), VALUES.map(b"".join))))
def test_a_header_is_its_fields_one_by_one(fields: list[tuple[bytes, bytes]]) -> None:
    """RFC 6376 §3.4.2 step by step for each field."""
    by_the_book = [
        name.lower() + b":" + re.sub(rb"[ \t]+", b" ", value.replace(b"\r\n", b"")).strip(b" ") + b"\r\n"
        for name, value in fields
    ]
    assert relaxed_header([(name.lower(), value) for name, value in fields]) == b"".join(by_the_book)
    assert [canonical_field(name + b" :" + value + b"\r\n", RELAXED) for name, value in fields] == by_the_book


@given(PIECES.map(b"".join), st.sampled_from(list(Canonicalization)))
def test_a_canonical_body_is_its_own_canonical_form(text: bytes, how: Canonicalization) -> None:
    once = body(text, how)

    assert body(once, how) == once


@given(st.lists(st.binary(max_size=9)), st.sets(st.integers(0, 60)))
def test_each_length_is_hashed_as_if_it_were_alone(pieces: list[bytes], lengths: set[int]) -> None:
    whole = b"".join(pieces)

    hashes = hash_body(pieces, lengths)

    assert hashes.length == len(whole)
    assert hashes.whole == hash_body([whole], ()).whole
    assert hashes.prefixes == {
        length: hash_body([whole[:length]], ()).whole for length in lengths if length <= len(whole)
    }


def test_memory_stays_flat_on_a_body_of_line_ends() -> None:
    pieces = list(canonical_body((b"\r\n" * 32768 for _ in range(100)), RELAXED))

    assert pieces == []
    longest = max(map(len, canonical_body([*[b"\r\n" * 32768] * 100, b"x"], SIMPLE)))
    assert longest <= 64 * 1024


EMPTIED = [
    (b"S: v=1; b=QUJD; d=x\r\n", b"S: v=1; b=; d=x\r\n", "in the middle"),
    (b"S: v=1; b=QUJD\r\n", b"S: v=1; b=", "at the end, with the line end"),
    (
        b"S: v=1; b = \r\n\tQU\r\n JD \r\n\t; d=x\r\n",
        b"S: v=1; b =; d=x\r\n",
        "folded, with blanks around the sign",
    ),
    (b"S:b=QUJD;bh=x\r\n", b"S:b=;bh=x\r\n", "first of all"),
    (b"S: bh=b=x; z=b=y; b=Q\r\n", b"S: bh=b=x; z=b=y; b=", "b= within other values"),
    (b"S: h=from:b; \r\n b=Q;\r\n", b"S: h=from:b; \r\n b=;\r\n", "a field named b"),
    (b"S: v=1;\r\n\tb\t=Q", b"S: v=1;\r\n\tb\t=", "a tab before the sign"),
]


@pytest.mark.parametrize(("field", "emptied", "why"), EMPTIED)
def test_the_signature_is_taken_out_of_its_own_field(field: bytes, emptied: bytes, why: str) -> None:
    name, _, value = field.partition(b":")
    assert name + b":" + without_signature(value) == emptied, why
