"""Tag lists, `name=value; name=value`: the grammar of DKIM signatures, their key records and ARC fields (RFC 6376 §3.2).

Read strictly: a list that two verifiers could read in two ways is no list.
"""

import binascii
import re
from typing import Final

from gateway.auth.results import Problem
from gateway.mail.errors import ParseError

WSP: Final = " \t"

MAX_TAGS: Final = 100
"""Deviation: the standard sets no bound. It defines fourteen tags; nobody who signs mail needs a hundred."""

_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# Controls other than white space. UTF-8 may stand in a value since RFC 8616 §4; `;` cannot: it has been split at.
_FORBIDDEN: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

_BASE64: Final = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_QUANTUM: Final = 4  # characters


class DkimError(ParseError):
    """A signature field or a key record that cannot be used, and the token that says why."""

    def __init__(self, problem: Problem, message: str) -> None:
        super().__init__(message)
        self.problem: Final = problem


def parse_tags(text: bytes) -> dict[str, str]:
    """Read a tag list; values come without the white space around them and unfolded, in the order written.

    Raises:
        DkimError: `dkim.syntax`, or `dkim.duplicate-tag`.
    """
    # A CRLF is folding only where white space follows it; any other stays, and is refused below.
    unfolded = text.replace(b"\r\n ", b" ").replace(b"\r\n\t", b"\t")
    try:
        decoded = unfolded.decode()
    except UnicodeDecodeError as error:
        raise DkimError(Problem.DKIM_SYNTAX, "a tag list that is not UTF-8") from error
    if _FORBIDDEN.search(decoded):
        raise DkimError(Problem.DKIM_SYNTAX, "a control character in a tag list")
    specs = decoded.split(";", MAX_TAGS)
    if not specs[-1].strip(WSP):
        specs.pop()  # the list may end with a semicolon
    if not 0 < len(specs) <= MAX_TAGS:
        raise DkimError(Problem.DKIM_SYNTAX, "no tag at all, or too many")
    tags: dict[str, str] = {}
    for spec in specs:
        name, equals, value = spec.partition("=")
        name = name.strip(WSP)
        if not equals or not _NAME.fullmatch(name):
            raise DkimError(Problem.DKIM_SYNTAX, "a tag without a name or without an equals sign")
        if name in tags:
            raise DkimError(Problem.DKIM_DUPLICATE_TAG, "a tag that is given twice")
        tags[name] = value.strip(WSP)
    return tags


def split_words(value: str) -> list[str]:
    """Take a colon-separated list apart; white space may stand around each colon."""
    return [word.strip(WSP) for word in value.split(":")]


def decode_base64(text: str) -> bytes:
    """Decode what `without_white_space` has left of a base64 value: the standard alphabet, padded, not empty.

    The library's own strict mode lets superfluous padding through.

    Raises:
        DkimError: `dkim.syntax`.
    """
    if len(text) % _QUANTUM or not _BASE64.fullmatch(text):
        raise DkimError(Problem.DKIM_SYNTAX, "a value that is not base64, or is empty")
    return binascii.a2b_base64(text)


def without_white_space(value: str) -> str:
    """Base64 and `i=` may be folded anywhere (RFC 6376 §2.10, §2.11)."""
    return value.replace(" ", "").replace("\t", "")
