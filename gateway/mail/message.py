"""A message as it came over the wire: its bytes, and where each header field stands in them (RFC 5322 §2).

The bytes are never re-serialised: what is signed, judged and handed on is what was received, with edits beside it
(`gateway.mail.edits`). Everything that reads a header field asks the `Message` for it by its position, so that no two
checks can disagree about what the header section is.
"""

import mmap
import re
from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

Buffer = bytes | mmap.mmap
"""A whole message in memory, or one in an unlinked temporary file, mapped."""

MAX_HEADER_BYTES: Final = 512 * 1024
"""Past this the header section is not read further, and the message is marked `header-too-large`."""

MAX_FIELDS: Final = 2_000
"""Past this many header fields the rest is not read, and the message is marked `too-many-fields`."""

MAX_LINE_BYTES: Final = 998
"""RFC 5322 §2.1.1, without the CRLF."""

_CRLF: Final = b"\r\n"
_FIELD_END: Final = re.compile(rb"\r\n(?![ \t])")  # RFC 5322 §2.2.3: before a blank, it is folding
# A name (RFC 5322 §2.2) may have blanks behind it (§4.5, obsolete but read); where there is no name, the whole line is the
# value of no field.
_NAME: Final = re.compile(rb"([!-9;-~]++)[ \t]*+:")
_NAME_BYTES: Final = bytes(range(0x21, 0x7F))
_ANY_LINE_END: Final = re.compile(rb"\r\n?|\n")
_MBOX_LINE: Final = re.compile(
    rb">?From [ \t]*+[^: \t]"
)  # `From : x` is a field (RFC 5322 §4.5), and a disguise
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


UNREAD: Final = frozenset({Defect.TOO_MANY_FIELDS, Defect.HEADER_TOO_LARGE})
"""Defects with which part of the header section is not read at all."""


class Field(NamedTuple):
    """Where one header field stands in `Message.raw`."""

    key: bytes
    """The field's name in lower case; empty where the line is no field at all."""
    start: int
    end: int
    """One past the field's last byte, its final CRLF included."""


class Message:
    """A received message over its raw bytes (RFC 5322).

    Args:
        raw: the content as it was between DATA and the final dot, dots unstuffed, lines ended by CRLF.
        is_vetted: it was looked through on its way in: no NUL and no line end alone is in it.

    Attributes:
        keys: the header fields' names in lower case, top first; empty where a line is no field at all.
        values: all that follows each colon, folding kept, without the field's final CRLF.
        index: the positions of the fields of each name, top first.
        repeated: the names that occur more than once.
        body_start: the offset of the first byte of the body; `len(raw)` where there is none.
    """

    def __init__(self, raw: Buffer, *, is_vetted: bool = False) -> None:
        self.raw: Final = raw
        self._is_vetted = is_vetted
        self._defects: frozenset[Defect] | None = None
        header_end, self.body_start = _find_body(raw)
        self._too_large = header_end > MAX_HEADER_BYTES
        header = raw[: min(header_end, MAX_HEADER_BYTES)]
        self._lines, self._is_cut = _split_fields(header)
        self.keys, self.values = _name_fields(self._lines)
        self.index, self.repeated = _index(self.keys)
        self._fields: tuple[Field, ...] | None = None

    @classmethod
    def from_file(cls, content: bytes) -> "Message":
        """Read a message as saved in a file: line ends of one kind become CRLF; an mbox `From ` line is dropped.

        A file that has CRLF anywhere is taken as it came over the wire: a line end alone in it stays, and is a defect.
        """
        if _MBOX_LINE.match(content):
            line_end = _ANY_LINE_END.search(content)
            content = content[line_end.end() :] if line_end else b""
        if b"\r\n" not in content:
            old = b"\n" if b"\n" in content else b"\r"
            content = content.replace(old, b"\r\n")
        return cls(content)

    def __len__(self) -> int:
        """The size in bytes, as SIZE counts it (RFC 1870)."""
        return len(self.raw)

    @property
    def fields(self) -> tuple[Field, ...]:
        """Where each header field stands, top first; found out when it is first asked for, as few messages are edited."""
        if self._fields is None:
            self._fields = tuple(_place(self.keys, self._lines, is_cut=self._is_cut))
        return self._fields

    def positions(self, key: bytes) -> tuple[int, ...]:
        """The places of every field of this name, top first. `key` is in lower case."""
        return self.index.get(key, ())

    def field_bytes(self, position: int) -> bytes:
        """The whole field as it was received, its final CRLF included."""
        line = self._lines[position]
        return line if self._is_cut and position == len(self._lines) - 1 else line + _CRLF

    def unfolded(self, position: int) -> bytes:
        """The value with its folding undone (RFC 5322 §2.2.3) and without white space at either end."""
        return self.values[position].replace(b"\r\n", b"").strip(b" \t")

    @property
    def defects(self) -> frozenset[Defect]:
        """Everything that is wrong with the message's form; found when it is first asked for."""
        if self._defects is None:
            self._defects = self._find_defects()
        return self._defects

    def _find_defects(self) -> frozenset[Defect]:
        found: set[Defect] = set()
        if b"" in self.index:
            found.add(Defect.MALFORMED_FIELD)
        if len(self.keys) > MAX_FIELDS:
            found.add(Defect.TOO_MANY_FIELDS)
        if self._too_large:
            found.add(Defect.HEADER_TOO_LARGE)
        raw = self.raw
        if not self._is_vetted:
            if raw.find(b"\0") >= 0:
                found.add(Defect.NUL)
            if has_bare_line_end(raw):
                found.add(Defect.BARE_LINE_END)
        if has_long_line(raw):
            found.add(Defect.LONG_LINE)
        return frozenset(found)


def _index(keys: Sequence[bytes]) -> tuple[dict[bytes, tuple[int, ...]], tuple[bytes, ...]]:
    """The positions of each name, and which names have several."""
    index: dict[bytes, tuple[int, ...]] = {key: (position,) for position, key in enumerate(keys)}
    if len(index) == len(keys):
        return index, ()
    several: dict[bytes, list[int]] = {}
    for position, key in enumerate(keys):
        several.setdefault(key, []).append(position)
    index = {key: tuple(positions) for key, positions in several.items()}
    return index, tuple(key for key, positions in several.items() if len(positions) > 1)


def _place(keys: Sequence[bytes], lines: list[bytes], *, is_cut: bool) -> Iterator[Field]:
    start, last = 0, len(lines) - 1
    for position, (key, line) in enumerate(zip(keys, lines, strict=True)):
        end = start + len(line) + (0 if is_cut and position == last else len(_CRLF))
        yield Field(key, start, end)
        start = end


def has_bare_line_end(raw: Buffer) -> bool:
    """Whether a CR or an LF stands alone anywhere (RFC 5321 §2.3.8 forbids both)."""
    if isinstance(raw, bytes):
        return _has_half_line_end(raw)
    start, size = 0, len(raw)
    while start < size:  # a map cannot count: in large pieces, none of which ends within a CRLF
        end = min(start + _SCAN_BYTES, size)
        if raw[end - 1 : end + 1] == b"\r\n":
            end += 1
        if _has_half_line_end(raw[start:end]):
            return True
        start = end
    return False


def has_long_line(raw: Buffer) -> bool:
    """Whether a line is over 998 bytes: from the last line end of a window that must hold one to the next window."""
    window = MAX_LINE_BYTES + len("\r\n")
    start = 0
    while start + window <= len(raw):
        line_end = raw.rfind(b"\n", start, start + window)
        if line_end < 0:
            return True
        start = line_end + 1
    return False


def _has_half_line_end(raw: bytes) -> bool:
    without = b"".join(raw.split(b"\r\n"))  # `replace` takes half as long again
    return b"\r" in without or b"\n" in without


def _find_body(raw: Buffer) -> tuple[int, int]:
    """Where the header section ends and where the body begins."""
    if raw[:2] == b"\r\n":
        return 0, 2
    # Not to the last byte: Python 3.11.2 looks at the one behind what it searches, and behind a mapping there may be none.
    blank = raw.find(b"\r\n\r\n", 0, len(raw) - 1)
    if blank >= 0:
        return blank + 2, blank + 4
    if raw[-4:] == b"\r\n\r\n":
        return len(raw) - 2, len(raw)
    return len(raw), len(raw)


def _split_fields(header: bytes) -> tuple[list[bytes], bool]:
    """Every field without its final CRLF, and whether the last one has none."""
    lines = _FIELD_END.split(header, MAX_FIELDS + 1)
    is_cut = len(lines) <= MAX_FIELDS + 1 and lines[-1] != b""
    if not is_cut:
        lines.pop()  # what is not read, or what the last CRLF leaves
    return lines, is_cut


def _name_fields(lines: list[bytes]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """The names in lower case, and the values; all names at once, unless one has a form that must be looked at."""
    if not lines:
        return (), ()
    names, colons, values = zip(*[line.partition(b":") for line in lines], strict=True)
    joined = b":".join(names).lower()
    keys = joined.split(b":")
    if b"" not in keys and b"" not in colons and not joined.translate(None, _NAME_BYTES):
        return keys, values
    found = [(line, _NAME.match(line)) for line in lines]
    return (
        [name[1].lower() if name else b"" for _, name in found],
        [line[name.end() :] if name else line for line, name in found],
    )
