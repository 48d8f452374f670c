"""The one writer of header fields (RFC 5322 §2.2.3, RFC 2045 §5.1): what the gateway puts into a message goes through here.

Text of a peer's making (a HELO name, a reverse path, a record found in the DNS) must never end a field, begin another,
or end the value that it stands in: everything unprintable is replaced, everything else is quoted.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Final

from gateway.mail.edits import NewField

MAX_TEXT_BYTES: Final = 400
"""Peer text is cut here: fully escaped and with its name before it, it still fits into one line of 998."""

FOLD_AT: Final = 78  # RFC 5322 §2.1.1, without the CRLF
MAX_LINE_BYTES: Final = 998
INDENT: Final = "    "
_LINE_START: Final = "\r\n" + INDENT

_FIELD_NAME: Final = re.compile(r"[!-9;-~]{1,76}")
_TOKEN: Final = re.compile(r"[!#-'*+\-.0-9A-Z^-~]+")  # RFC 2045 §5.1, in ASCII
_LOCAL_PART: Final = r"[!#-'*+\-/0-9=?A-Z^-~]+(?:\.[!#-'*+\-/0-9=?A-Z^-~]+)*"
_DOMAIN: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_ADDRESS: Final = re.compile(rf"(?:{_LOCAL_PART})?@{_DOMAIN}(?:\.{_DOMAIN})*")
_NEEDS_ESCAPE: Final = re.compile(r'(["\\])')
_COMMENT_DELIMITERS: Final = str.maketrans({"(": "[", ")": "]", "\\": "/"})


def clean(text: str) -> str:
    """One line of printable text, at most `MAX_TEXT_BYTES` long in UTF-8, with `?` for each character that is not printable.

    Not printable is also what turns the direction of writing or shows as nothing: a reader of the field must see it.
    """
    if len(text) > MAX_TEXT_BYTES:
        text = text[:MAX_TEXT_BYTES]
    if text.isprintable():
        if text.isascii():
            return text
    else:
        text = "".join([character if character.isprintable() else "?" for character in text])
    return text.encode()[:MAX_TEXT_BYTES].decode("utf-8", "ignore")


def quote(text: str) -> str:
    """A quoted-string (RFC 5322 §3.2.4) that means this text, cleaned."""
    return '"' + _NEEDS_ESCAPE.sub(r"\\\1", clean(text)) + '"'


def quote_value(text: str) -> str:
    """A `value` (RFC 2045 §5.1, RFC 8601 §2.2): the text itself where it is a token, else quoted."""
    return text if len(text) <= MAX_TEXT_BYTES and _TOKEN.fullmatch(text) else quote(text)


def quote_pvalue(text: str) -> str:
    """A `pvalue` (RFC 8601 §2.2): as `quote_value`, but an address of plain form stands unquoted, as readers expect it."""
    if len(text) <= MAX_TEXT_BYTES and (_TOKEN.fullmatch(text) or _ADDRESS.fullmatch(text)):
        return text
    return quote(text)


def comment(text: str) -> str:
    """A comment of one level: round brackets become square ones, because many readers cannot nest or escape them."""
    return f"({clean(text).translate(_COMMENT_DELIMITERS)})"


def break_text(text: str, *, after: str = "") -> list[str]:
    """Cut one long word into pieces that each fill a line of their own: behind `after`, or, without it, anywhere.

    Only for text in which the white space of folding means nothing: base64, a colon-separated list. What has nowhere to
    be cut stays whole.
    """
    width = FOLD_AT - len(INDENT)
    if not after:
        return [text[start : start + width] for start in range(0, len(text), width)]
    pieces: list[str] = []
    start = 0
    while len(text) - start > width:
        end = text.rfind(after, start, start + width) + len(after)
        if end < start + len(after):  # one word fills more than the line
            end = text.find(after, start + width) + len(after)
            if end < start + len(after):
                break
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return pieces


def fold_line(pieces: Sequence[str], line: str = "", *, column: int = len(INDENT)) -> tuple[str, int]:
    """Write pieces that must not be broken behind one another, folded before the piece that would pass column 78.

    Args:
        pieces: made by this module or of our own words.
        line: what stands before them already, as this function wrote it.
        column: where the first piece, or what follows `line`, begins.

    Returns:
        The line, and the column at which it ends.

    Raises:
        ValueError: a piece over the limit of a line, or an empty one: a mistake of ours.
    """
    whole = " ".join(pieces)
    if not line and column + len(whole) <= FOLD_AT and whole.isascii() and whole.isprintable():
        words = whole.split(" ")
        if "" not in words:  # no piece is blank, and nothing has to be folded or replaced: nearly always
            return whole, column + len(whole)
    for raw in pieces:
        # The last line of defence: no piece can end the field, whoever made it.
        piece = raw if raw.isprintable() else "".join([c if c.isprintable() else "?" for c in raw])
        size = len(piece) if piece.isascii() else len(piece.encode())
        if not piece.strip() or size > MAX_LINE_BYTES - (len(INDENT) if line else column):
            raise ValueError(f"a piece of {size} bytes cannot stand on a line: {piece[:FOLD_AT]!r}")
        if not line:
            line = piece
            column += size
        elif column + 1 + size > FOLD_AT:
            line = f"{line}\r\n{INDENT}{piece}"
            column = len(INDENT) + size
        else:
            line = f"{line} {piece}"
            column += 1 + size
    return line, column


def join_lines(name: str, lines: Iterable[str]) -> NewField:
    """A field of lines that `fold_line` wrote: each begins on a line of its own, the first behind the name."""
    return NewField(name, _LINE_START.join(lines))


def fold_field(name: str, *lines: Sequence[str]) -> NewField:
    """Write a field from pieces that must not be broken, folded before the piece that would pass column 78.

    Args:
        name: the field's name; not peer text.
        lines: pieces made by this module or of our own words; each line of pieces starts on a line of its own.

    Raises:
        ValueError: a name that is none, a piece over the limit of a line, or no piece at all: a mistake of ours.
    """
    if not _FIELD_NAME.fullmatch(name):
        raise ValueError(f"not a field name: {name!r}")
    written: list[str] = []
    column = len(name) + len(": ")
    for pieces in lines:
        if pieces:
            written.append(fold_line(pieces, column=column)[0])
            column = len(INDENT)
    if not written:
        raise ValueError(f"nothing to write in {name}")
    return join_lines(name, written)
