"""SMTP replies (RFC 5321 §4.2) with enhanced status codes (RFC 3463): the short, stable word to the peer."""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Self

from gateway.mail.errors import ParseError

MAX_REPLY_LINE_BYTES: Final = 512  # RFC 5321 §4.5.3.1.5, the CRLF included
_ENHANCED: Final = re.compile(r"([245]\.[0-9]{1,3}\.[0-9]{1,3})(?:[ \t]+|\Z)")
_ENHANCED_CODE: Final = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_UNPRINTABLE: Final = re.compile(r"[^\t\x20-\x7e]")
_COMMON_CHARACTERS: Final = 300
_LINE: Final = re.compile(rb"([2-5][0-9]{2})([ -]|\Z)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply, of one or more lines.

    Attributes:
        code: three digits, 200 to 599.
        enhanced: `class.subject.detail` (RFC 3463), or None where the reply has none (greeting, EHLO, 354).
        lines: the text line by line, without codes; printable ASCII only, whatever was passed in.

    Raises:
        ValueError: the enhanced code's class is not the code's, or the code is out of range: a mistake of ours.
    """

    code: int
    enhanced: str | None
    lines: tuple[str, ...]

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:  # noqa: PLR2004 - RFC 5321 §4.2.1: the first digit is 2 to 5
            raise ValueError(f"reply code {self.code} is not within 200 to 599")
        if self.enhanced is not None and (
            not _ENHANCED_CODE.fullmatch(self.enhanced) or self.enhanced[0] != str(self.code)[0]
        ):
            raise ValueError(f"reply {self.code} cannot carry the enhanced code {self.enhanced}")
        object.__setattr__(self, "lines", tuple(_printable(line) for line in self.lines) or ("",))

    @classmethod
    def of(cls, code: int, enhanced: str | None, text: str) -> Self:
        """A reply of one line."""
        return cls(code, enhanced, (text,))

    @property
    def text(self) -> str:
        """The lines joined by a blank, for logs and for places that hold one line."""
        return " ".join(self.lines)

    @property
    def is_positive(self) -> bool:
        """2xx or 3xx: the peer may go on."""
        return self.code < 400  # noqa: PLR2004

    @property
    def is_transient(self) -> bool:
        """4xx: the peer should try again later."""
        return 400 <= self.code <= 499  # noqa: PLR2004

    @property
    def is_permanent(self) -> bool:
        """5xx: the peer should not try again."""
        return self.code >= 500  # noqa: PLR2004

    def to_bytes(self) -> bytes:
        """The reply as sent, the enhanced code on every line (RFC 2034 §4), no line over 512 bytes."""
        lines = self.lines
        write = _write_common if sum(map(len, lines)) <= _COMMON_CHARACTERS else _write
        return write(self.code, self.enhanced, lines)

    def __str__(self) -> str:
        """`550 5.7.1 text`, in one line."""
        return " ".join(part for part in (str(self.code), self.enhanced, self.text) if part)


def _write(code: int, enhanced: str | None, lines: tuple[str, ...]) -> bytes:
    prefix = f"{enhanced} " if enhanced else ""
    room = MAX_REPLY_LINE_BYTES - len("250-") - len(prefix) - len("\r\n")
    last = len(lines) - 1
    return b"".join(
        [
            f"{code}{' ' if at == last else '-'}{prefix}{line[:room]}\r\n".encode("ascii")
            for at, line in enumerate(lines)
        ]
    )


_write_common = lru_cache(maxsize=256)(_write)  # most replies are the same few dozen


def parse_reply(lines: list[bytes]) -> Reply:
    """Read a peer's complete reply, one item per line, without line ends.

    Raises:
        ParseError: no line, no code, or lines with different codes (RFC 5321 §4.2.1).
    """
    if not lines:
        raise ParseError("a reply has at least one line")
    code = 0
    texts: list[str] = []
    for at, line in enumerate(lines):
        match = _LINE.fullmatch(line)
        if not match:
            raise ParseError(f"not an SMTP reply: {line[:80]!r}")
        if code and int(match[1]) != code:
            raise ParseError(f"one reply with two codes, {code} and {match[1].decode()}")
        if (match[2] == b"-") != (at < len(lines) - 1):
            raise ParseError(f"a reply's last line, and only that, has a blank after the code: {line[:80]!r}")
        code = int(match[1])
        texts.append(match[3].decode("utf-8", "replace"))
    enhanced = _common_enhanced(code, texts)
    if enhanced:
        texts = [text[len(enhanced) :].lstrip() for text in texts]
    return Reply(code, enhanced, tuple(texts))


def _common_enhanced(code: int, texts: list[str]) -> str | None:
    """The enhanced code where every line carries the same one and it fits the code; else None, and the text stays."""
    found = {match[1] if (match := _ENHANCED.match(text)) else None for text in texts}
    enhanced = found.pop()
    return enhanced if not found and enhanced and enhanced[0] == str(code)[0] else None


def _printable(line: str) -> str:
    """Peer text must never start a new line or move a terminal's cursor."""
    return line if line.isascii() and line.isprintable() else _UNPRINTABLE.sub("?", line)
