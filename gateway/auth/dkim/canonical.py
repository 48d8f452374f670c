"""Canonicalisation: what a signature forgives (RFC 6376 §3.4).

`simple` forgives empty lines at the end of the body; `relaxed` also forgives what relays do to white space, folding and
the case of field names. Every function here takes time in proportion to its input, whatever that is.
"""

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Final

CRLF: Final = b"\r\n"

_SPACES: Final = re.compile(rb"  +")
_CRLFS_REVERSED: Final = re.compile(rb"(?:\n\r)*")
_BLANKS_AT_ONCE: Final = 16 * 1024
_VALUE_MARK: Final = b"\r\n:"
_SIGNATURE_TAG: Final = re.compile(rb"(;[ \t\r\n]*+b[ \t\r\n]*+=)[^;]*+")


class Canonicalization(StrEnum):
    """One half of `c=`; the literals of the standard's ABNF have no case."""

    SIMPLE = "simple"
    RELAXED = "relaxed"


def canonical_field(field: bytes, how: Canonicalization) -> bytes:
    """Bring one whole header field into canonical form, final CRLF included (§3.4.1, §3.4.2).

    Args:
        field: the field as received: name, colon, value, CRLF (which may be absent where the message breaks off).
        how: the first half of `c=`.
    """
    if how is Canonicalization.SIMPLE:
        return field if field.endswith(CRLF) else field + CRLF
    name, _, value = field.partition(b":")
    return relaxed_header([(name.rstrip(b" \t").lower(), value.removesuffix(CRLF))])


def relaxed_header(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Bring header fields into relaxed form (§3.4.2), one behind the other; all at once, as that is far cheaper.

    Args:
        fields: of each its name, in lower case and without blanks, and its value as received, without its final CRLF.
    """
    # A CRLF that no blank follows stands within no value (RFC 5322 §2.2.3), so that one before a colon can mark where it begins.
    text = b"".join([name + _VALUE_MARK + value + CRLF for name, value in fields])
    text = _reduce(text.replace(b"\t", b" ").replace(b"\r\n ", b" "))
    return text.replace(_VALUE_MARK + b" ", b":").replace(_VALUE_MARK, b":").replace(b" \r\n", CRLF)


def without_signature(value: bytes) -> bytes:
    """Empty the `b=` in a signature field's value, with the white space around its own: how it was when it was signed (§3.5).

    Tags are told apart by semicolons, so that neither `bh=` nor a `b=` within another value is taken for it.
    """
    found = _SIGNATURE_TAG.search(b";" + value)
    return value[: found.end(1) - 1] + value[found.end() - 1 :] if found else value


def canonical_text(text: bytes, how: Canonicalization) -> bytes:
    """Bring a body that is there in one piece into canonical form (§3.4.3, §3.4.4)."""
    relaxed = how is Canonicalization.RELAXED
    if relaxed and (b" " in text or b"\t" in text):  # base64 has none: that is seen in no time
        text = _without_blank_ends(text).removesuffix(b" ")
    end = _end_of_content(text)
    if not end:
        return b"" if relaxed else CRLF
    return text if end == len(text) - len(CRLF) else text[:end] + CRLF


def canonical_body(chunks: Iterable[bytes], how: Canonicalization) -> Iterator[bytes]:
    """Bring a body into canonical form piece by piece (§3.4.3, §3.4.4), however it was cut into chunks.

    Memory stays within a few chunks: of white space only as much is held back as the next chunk may still change, and of
    empty lines only their number.
    """
    relaxed = how is Canonicalization.RELAXED
    held = b""
    blank_lines = 0
    empty = True
    for chunk in chunks:
        text = held + chunk if held else chunk
        if relaxed and (b" " in text or b"\t" in text):
            text = _without_blank_ends(text)
        held = _unfinished(text, relaxed=relaxed)
        if held:
            text = text[: -len(held)]
        end = _end_of_content(text)
        if end:
            yield from _line_ends(blank_lines)
            yield text[:end]
            empty = False
            blank_lines = 0
        blank_lines += (len(text) - end) // 2
    if held and held != b" ":  # a CR that ends the body; a space there ends its line, so it goes
        yield from _line_ends(blank_lines)
        yield held
        empty = False
    if not (empty and relaxed):
        yield CRLF  # the one end that is left of all at the end; an empty body has one in simple only


def _reduce(text: bytes) -> bytes:
    """One space for each run of white space; a pattern that also looks for the line end is quadratic on long runs."""
    text = text.replace(b"\t", b" ")
    return _SPACES.sub(b" ", text) if b"  " in text else text


def _without_blank_ends(text: bytes) -> bytes:
    """White space reduced, and none before a line end."""
    return _reduce(text).replace(b" \r\n", CRLF)


def _unfinished(text: bytes, *, relaxed: bool) -> bytes:
    """The end of `text` whose meaning depends on what follows: half a CRLF, a space that may prove to end its line."""
    if text.endswith(b"\r"):
        return b" \r" if relaxed and text.endswith(b" \r") else b"\r"
    return b" " if relaxed and text.endswith(b" ") else b""


def _end_of_content(text: bytes) -> int:
    """Where the CRLFs at the end of `text` begin; a bare CR or LF among them is content."""
    if text.endswith(CRLF) and not text.endswith((b"\n\r\n", b"\r\r\n")):
        return len(text) - len(CRLF)  # one, as nearly every body has
    tail = text[len(text.rstrip(CRLF)) :]
    line_ends = _CRLFS_REVERSED.match(tail[::-1])
    return len(text) - (line_ends.end() if line_ends else 0)


def _line_ends(count: int) -> Iterator[bytes]:
    while count > 0:
        yield CRLF * min(count, _BLANKS_AT_ONCE)
        count -= _BLANKS_AT_ONCE
