"""Text of strangers made fit for a log line, a terminal and an error message.

A peer chooses its HELO, its addresses and its DNS records. Written as they come, they could start a forged log line, move
the cursor of whoever reads the log, or turn the reading order round.
"""

import json
import re
import unicodedata
from collections.abc import Callable
from typing import Final

MAX_CHARACTERS: Final = 512
MAX_MARKS: Final = 2
"""So many combining marks in a row occur in languages; a hundred paint over the lines above."""

_MARKS: Final = frozenset({"Mn", "Me"})
_PLAIN: Final = re.compile(r"[\x20-\x7e\xa1-\xac\xae-\u02ff]*")
"""Prints and does not combine: most text of the world's mail, and no walk through it character by character."""


def printable(text: str, limit: int = MAX_CHARACTERS) -> str:
    r"""The text with everything that does not print escaped (`\x1b`, `\u202e`), cut to `limit` characters.

    Controls, line ends, bidirectional and other format characters, surrogates and unassigned code points do not print; nor do
    combining marks on top of two others.
    """
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if text.isascii() and text.isprintable():
        return text
    escaped = _escaped(text, _escape)
    return escaped if len(escaped) <= limit else escaped[: limit - 1] + "…"


def printable_json(document: str) -> str:
    r"""The same JSON with everything that does not print as `\u202e`; it means what it meant."""
    return _escaped(document, lambda one: json.dumps(one)[1:-1])


def _escaped(text: str, escape: Callable[[str], str]) -> str:
    if text.isprintable() and _PLAIN.fullmatch(text):
        return text
    marks = 0
    kept = []
    for one in text:
        marks = marks + 1 if unicodedata.category(one) in _MARKS else 0
        kept.append(one if one.isprintable() and marks <= MAX_MARKS else escape(one))
    return "".join(kept)


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")
