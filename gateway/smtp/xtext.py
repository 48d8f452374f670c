"""xtext (RFC 3461 §4): how DSN parameters and XCLIENT write bytes that could end a command."""

import re
from typing import Final

from gateway.mail.errors import ParseError

_XTEXT: Final = re.compile(r"[!-*,-<>-~]*+(?:\+[0-9A-F]{2}[!-*,-<>-~]*+)*")
_HEXCHAR: Final = re.compile(r"\+([0-9A-F]{2})")
_ENCODED: Final = re.compile(rb"[^!-*,-<>-~]")


def decode_xtext(text: str) -> bytes:
    """What an xtext stands for.

    Raises:
        ParseError: a character that must be encoded, or a `+` without two upper case hexadecimal digits.
    """
    if not _XTEXT.fullmatch(text):
        raise ParseError(f"not an xtext: {text[:80]!r}")
    return _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text).encode("latin-1")


def encode_xtext(content: bytes) -> str:
    """Any bytes as xtext."""
    return _ENCODED.sub(lambda match: b"+%02X" % match[0][0], content).decode("ascii")
