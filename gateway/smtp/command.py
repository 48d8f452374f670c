"""Command lines as a client sends them (RFC 5321 §4.1): the verb, its argument, and nothing that is not printable.

Only CRLF ends a command. A line that two servers could cut in two ways (a bare CR or LF, a NUL) is refused whole, so
that nothing can be hidden behind an address.
"""

import re
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.smtp import replies
from gateway.smtp.errors import RemoteProtocolError

MAX_COMMAND_BYTES: Final = 2048
"""With its CRLF. RFC 5321 §4.5.3.1.4 asks for 512, and extensions add to MAIL and RCPT (RFC 3461 §4, 6531 §3.4)."""

MAX_CHUNK_DIGITS: Final = 19  # RFC 3030 sets no limit; this is the most that can be counted in 64 bits

_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
# What a browser or a proxy sends when a web page points it at us: its body may hold commands for us.
_HTTP: Final = re.compile(
    rb"(?:GET|POST|PUT|HEAD|PATCH|DELETE|OPTIONS|CONNECT|TRACE|PRI) |[!-9;-~]+:", re.IGNORECASE
)
_HELO_NAME: Final = re.compile(r"[!-~]{1,255}")
_CHUNK: Final = re.compile(rf"([0-9]{{1,{MAX_CHUNK_DIGITS}}})( LAST)?", re.IGNORECASE)


class Verb(StrEnum):
    """The commands; the word is the metric label."""

    HELO = "HELO"
    EHLO = "EHLO"
    MAIL = "MAIL"
    RCPT = "RCPT"
    DATA = "DATA"
    BDAT = "BDAT"  # RFC 3030
    RSET = "RSET"
    NOOP = "NOOP"
    HELP = "HELP"
    VRFY = "VRFY"
    EXPN = "EXPN"
    STARTTLS = "STARTTLS"  # RFC 3207
    AUTH = "AUTH"  # RFC 4954
    XCLIENT = "XCLIENT"  # Postfix's XCLIENT_README
    QUIT = "QUIT"
    OTHER = "other"  # anything else, valid or not


_OTHER: Final = Verb.OTHER
_VERBS: Final = {verb.value: verb for verb in Verb if verb is not _OTHER}
_INTERNATIONAL: Final = frozenset({Verb.MAIL, Verb.RCPT, Verb.VRFY, Verb.EXPN})  # RFC 6531 §3.3, §3.7.4.2


class Command(NamedTuple):
    """One command; a named tuple because a message takes half a dozen."""

    verb: Verb
    argument: str
    """What follows the verb, without the blanks around it."""


class Chunk(NamedTuple):
    """BDAT's argument (RFC 3030 §2)."""

    size: int
    last: bool


def parse_command(line: bytes) -> Command:
    """Read one line, given without its CRLF.

    Raises:
        RemoteProtocolError: control characters; 8-bit characters outside of addresses; HTTP, which closes.
    """
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise RemoteProtocolError(replies.BAD_CHARACTER) from None
    if not text.isprintable() and _CONTROL.search(line):
        raise RemoteProtocolError(replies.BAD_CHARACTER)
    word, _, argument = text.partition(" ")
    # A Turkish dotless i, in upper case, is an I.
    verb = _VERBS.get(word.upper(), _OTHER) if word.isascii() else _OTHER
    if verb is _OTHER and _HTTP.match(line):
        raise RemoteProtocolError(replies.NOT_SMTP, closes=True)
    if len(text) != len(line) and verb not in _INTERNATIONAL:
        raise RemoteProtocolError(replies.BAD_CHARACTER)
    return Command(verb, argument.strip(" ") if word else "")


def parse_helo_name(argument: str) -> str:
    """HELO's and EHLO's argument: anything printable, since what it says is for SPF and the rules to judge.

    Raises:
        RemoteProtocolError: none, more than one word, or too long.
    """
    if not _HELO_NAME.fullmatch(argument):
        raise RemoteProtocolError(replies.BAD_HELO)
    return argument


def parse_chunk(argument: str) -> Chunk:
    """BDAT's size and whether it is the last.

    Raises:
        RemoteProtocolError: unreadable, and closes: what follows may be content, and must not be read as commands.
    """
    match = _CHUNK.fullmatch(argument)
    if not match:
        raise RemoteProtocolError(replies.BAD_CHUNK_SIZE, closes=True)
    return Chunk(int(match[1]), match[2] is not None)
