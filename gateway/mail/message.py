"""A message as it came over the wire: its bytes, and where each header field stands in them (RFC 5322 §2).

The bytes are never re-serialised: what is signed, judged and handed on is what was received, with edits beside it
(`gateway.mail.edits`). Everything that reads a header field goes through `Message.fields`, so that no two checks can
disagree about what the header section is.
"""

import mmap
import re
from enum import StrEnum
from functools import cached_property
from typing import Final, NamedTuple

Buffer = bytes | mmap.mmap
"""A whole message in memory, or one in an unlinked temporary file, mapped."""

MAX_HEADER_BYTES: Final = 512 * 1024
"""Past this the header section is not read further, and the message is marked `header-too-large`."""

MAX_FIELDS: Final = 2_000
"""Past this many header fields the rest is not read, and the message is marked `too-many-fields`."""

MAX_LINE_BYTES: Final = 998
"""RFC 5322 §2.1.1, without the CRLF."""

_END_OF_FIELD: Final = re.compile(rb"\r\n(?![ \t])")
_FIELD_NAME: Final = re.compile(
    rb"([!-9;-~]+)[ \t]*:"
)  # RFC 5322 §2.2; space before the colon: §4.5, obsolete but read
# A CR is one of the bytes that are no LF. Anchored at a line's start, because a search from every byte is quadratic.
_LONG_FIRST_LINE: Final = re.compile(rb"[^\n]{%d}" % (MAX_LINE_BYTES + 2))
_LONG_LINE: Final = re.compile(rb"\n[^\n]{%d}" % (MAX_LINE_BYTES + 2))
_ANY_LINE_END: Final = re.compile(rb"\r\n?|\n")
_SCAN_BYTES: Final = 1024 * 1024


class Defect(StrEnum):
    """What is wrong with the form of a message. Any of the first five means that its author is not beyond doubt."""

    MALFORMED_FIELD = (
        "malformed-field"  # a line in the header section that is no field: some readers end the header there
    )
    TOO_MANY_FIELDS = "too-many-fields"
    HEADER_TOO_LARGE = "header-too-large"
    NUL = "nul"  # cut off here by every reader written in C
    BARE_LINE_END = "bare-line-end"  # CR or LF alone: a line end to some readers only
    LONG_LINE = "long-line"  # over 998 bytes: relays may cut or fold it, which breaks signatures


AMBIGUOUS: Final = frozenset(
    {
        Defect.MALFORMED_FIELD,
        Defect.TOO_MANY_FIELDS,
        Defect.HEADER_TOO_LARGE,
        Defect.NUL,
        Defect.BARE_LINE_END,
    },
)
"""Defects with which two readers may see two different messages; such a message never passes DMARC."""


class Field(NamedTuple):
    """Where one header field stands in `Message.raw`; a named tuple because a message makes dozens of them."""

    key: bytes
    """The field's name in lower case; empty where the line is no field at all."""
    start: int
    value_start: int
    """The first byte after the colon."""
    end: int
    """One past the field's last byte, its final CRLF included."""


class Message:
    """A received message over its raw bytes (RFC 5322).

    Args:
        raw: the content as it was between DATA and the final dot, dots unstuffed, lines ended by CRLF.

    Attributes:
        fields: the header fields in order, top first.
        body_start: the offset of the first byte of the body; `len(raw)` where there is none.
    """

    def __init__(self, raw: Buffer) -> None:
        self.raw: Final = raw
        header_end, self.body_start = _find_body(raw)
        self._too_large = header_end > MAX_HEADER_BYTES
        header = raw[: min(header_end, MAX_HEADER_BYTES)]
        self.fields: Final[tuple[Field, ...]] = tuple(_parse_fields(header))

    @classmethod
    def from_file(cls, content: bytes) -> "Message":
        """Read a message as saved in a file: line ends of any kind become CRLF; an mbox `From ` line is dropped."""
        if content.startswith((b"From ", b">From ")):
            content = content.partition(b"\n")[2]
        if b"\r\n" not in content:
            content = (
                content.replace(b"\r", b"\r\n") if b"\n" not in content else content.replace(b"\n", b"\r\n")
            )
        return cls(content)

    def __len__(self) -> int:
        """The size in bytes, as SIZE counts it (RFC 1870)."""
        return len(self.raw)

    @cached_property
    def _index(self) -> dict[bytes, tuple[int, ...]]:
        index: dict[bytes, list[int]] = {}
        for position, field in enumerate(self.fields):
            index.setdefault(field.key, []).append(position)
        return {key: tuple(positions) for key, positions in index.items()}

    def positions(self, key: bytes) -> tuple[int, ...]:
        """The places in `fields` of every field of this name, top first. `key` is in lower case."""
        return self._index.get(key, ())

    def named(self, key: bytes) -> list[Field]:
        """Every field of this name, top first. `key` is in lower case."""
        return [self.fields[position] for position in self.positions(key)]

    def field_bytes(self, field: Field) -> bytes:
        """The whole field as it was received, its final CRLF included."""
        return self.raw[field.start : field.end]

    def value(self, field: Field) -> bytes:
        """All that follows the colon, folding kept, without the field's final CRLF."""
        value = self.raw[field.value_start : field.end]
        return value.removesuffix(b"\r\n")

    def unfolded(self, field: Field) -> bytes:
        """The value with its folding undone (RFC 5322 §2.2.3) and without white space at either end."""
        return self.value(field).replace(b"\r\n", b"").strip(b" \t")

    @cached_property
    def defects(self) -> frozenset[Defect]:
        """Everything that is wrong with the message's form."""
        found: set[Defect] = set()
        if b"" in self._index:
            found.add(Defect.MALFORMED_FIELD)
        if len(self.fields) > MAX_FIELDS:
            found.add(Defect.TOO_MANY_FIELDS)
        if self._too_large:
            found.add(Defect.HEADER_TOO_LARGE)
        raw = self.raw
        if raw.find(b"\0") >= 0:
            found.add(Defect.NUL)
        if has_bare_line_end(raw):
            found.add(Defect.BARE_LINE_END)
        if _LONG_FIRST_LINE.match(raw) or _LONG_LINE.search(raw):
            found.add(Defect.LONG_LINE)
        return frozenset(found)


def has_bare_line_end(raw: Buffer) -> bool:
    """Whether a CR or an LF stands alone anywhere (RFC 5321 §2.3.8 forbids both)."""
    if isinstance(raw, bytes):
        return _counts_differ(raw)
    start, size = 0, len(raw)
    while start < size:  # a map cannot count: in large pieces, none of which ends within a CRLF
        end = min(start + _SCAN_BYTES, size)
        if raw[end - 1 : end + 1] == b"\r\n":
            end += 1
        if _counts_differ(raw[start:end]):
            return True
        start = end
    return False


def _counts_differ(raw: bytes) -> bool:
    pairs = raw.count(b"\r\n")
    return raw.count(b"\r") != pairs or raw.count(b"\n") != pairs


def _find_body(raw: Buffer) -> tuple[int, int]:
    """Where the header section ends and where the body begins."""
    if raw[:2] == b"\r\n":
        return 0, 2
    blank = raw.find(b"\r\n\r\n")
    if blank < 0:
        return len(raw), len(raw)
    return blank + 2, blank + 4


def _parse_fields(header: bytes) -> list[Field]:
    fields: list[Field] = []
    start = 0
    size = len(header)
    match_name = _FIELD_NAME.match
    while start < size:
        ended = _END_OF_FIELD.search(header, start)
        end = ended.end() if ended else size
        name = match_name(header, start, end)
        if name:
            fields.append(Field(name[1].lower(), start, name.end(), end))
        else:
            fields.append(Field(b"", start, start, end))
        if len(fields) > MAX_FIELDS:
            break
        start = end
    return fields
