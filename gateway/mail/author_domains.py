"""Which domains a doubtful From may name, to any reader: what an attacker must not be able to keep out of our sight.

Nothing here claims to be right. Where the author is beyond doubt this is not asked; where he is not, every way in which a
sloppy reader might find an address counts, because the domain that is missed is the one that the attacker wanted to show.
"""

import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from gateway.mail.address import parse_domain
from gateway.mail.encoded_words import decode_words
from gateway.mail.errors import ParseError
from gateway.mail.message import Message

MAX_VALUE_BYTES: Final = 16 * 1024
"""No author needs more; what stands behind it is not read."""

MAX_DOMAINS: Final = 5
"""Each costs DNS queries."""

_MAX_FIELDS: Final = 5

# After an @ and what sloppy readers skip; the invisible ones among the letters are mapped away by UTS #46.
_AFTER_AT: Final = re.compile(
    r"@[\s(\"'\\\[<]*+([\w.\-\u00ad\u200b-\u200d\u2060\u3002\ufeff\uff0e\uff61]{1,254})"
)
_ASCII_START: Final = re.compile(r"[A-Za-z0-9_.-]+")
_DOTS: Final = re.compile(r"\.{2,}")
_BRACKET: Final = re.compile(r"([()])")
_QUOTING: Final = re.compile(r"[\"\\]")
_BLANKS: Final = re.compile(r"\s+")
_AROUND_MARKS: Final = re.compile(r" ?([@.]) ?")
# Where readers differ in what a line is, and in what may stand before and behind a name.
_ANY_FROM: Final = re.compile(
    rb"(?:\A|[\r\n\0])[^!-~]{0,8}from[^!-~]{0,8}:([^\r\n]*+(?:[\r\n]++[ \t][^\r\n]*+)*)", re.IGNORECASE
)


def domains_named(message: Message, *, ambiguous: bool) -> tuple[tuple[str, ...], bool]:
    """The domains that the From fields may name, and whether there may be more of them than could be read.

    Args:
        message: one without an author beyond doubt.
        ambiguous: readers may differ in where its header fields begin and end.
    """
    seen: dict[str, None] = {}
    values = list(itertools.islice(_values(message, ambiguous=ambiguous), _MAX_FIELDS + 1))
    unread = len(values) > _MAX_FIELDS
    for value in values[:_MAX_FIELDS]:
        unread = unread or len(value) > MAX_VALUE_BYTES
        for domain in _domains(value[:MAX_VALUE_BYTES]):
            seen[domain] = None
            if len(seen) > MAX_DOMAINS:
                return tuple(seen)[:MAX_DOMAINS], True
    return tuple(seen), unread


def _values(message: Message, *, ambiguous: bool) -> Iterator[bytes]:
    if not ambiguous:
        yield from (message.values[position] for position in message.positions(b"from"))
        return
    for found in _ANY_FROM.finditer(message.raw[: message.body_start]):
        yield found[1]


def _domains(value: bytes) -> Iterator[str]:
    text = value.replace(b"\r", b"").replace(b"\n", b"").decode("utf-8", "replace")
    decoded = unicodedata.normalize("NFKC", decode_words(text, any_charset=True)).replace("=40", "@")
    bare = _BLANKS.sub(" ", _QUOTING.sub("", _without_comments(decoded)))
    joined = _AROUND_MARKS.sub(r"\1", bare)
    for reading in dict.fromkeys((text, decoded, joined)):
        for found in _AFTER_AT.finditer(reading):
            if domain := _read_domain(found[1]):
                yield domain


def _read_domain(text: str) -> str | None:
    """The domain as it is, else as far as it is ASCII."""
    start = _ASCII_START.match(text)
    for name in (text, start[0] if start else ""):
        try:
            return parse_domain(_DOTS.sub(".", name).strip(".-"))
        except ParseError:
            continue
    return None


def _without_comments(text: str) -> str:
    kept: list[str] = []
    depth = 0
    for part in _BRACKET.split(text):
        if part == "(":
            depth += 1
        elif part == ")":
            depth = max(0, depth - 1)
        elif depth == 0:
            kept.append(part)
    return "".join(kept)
