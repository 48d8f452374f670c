"""What a trace is found by, and what a list shows of it: one line of JSON beside the document.

Lines of many messages stand in one text, below each other, so that a million of them can be looked through in a second or two: which
cannot be meant is seen without reading it.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final

import msgspec

from gateway.mail.envelope import Listener, ip_text
from gateway.mail.errors import ParseError
from gateway.trace.document import mend
from gateway.trace.model import Trace
from gateway.verdict import Disposition

MAX_CHARACTERS: Final = 300
"""Of each text. An address has no more (RFC 5321 §4.5.3.1.3), nor has what is kept of a Message-ID."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What became of one message: the beginning of its line.

    Attributes:
        at: when it was answered.
        code: what the client heard; None where the mail server answered by itself.
    """

    at: datetime
    listener: Listener
    disposition: Disposition | None
    code: int | None
    rule: str | None


class Line(Outcome, frozen=True, kw_only=True):
    """One message, by what it is found by.

    What is new is added at the end, with a default: lines of an earlier release do not have it.

    Attributes:
        message_id: without its brackets.
        sender, recipients, author: in lower case; the null path is empty.
    """

    id: str
    queue_id: str | None
    message_id: str | None
    client: str
    sender: str
    recipients: tuple[str, ...]
    author: str | None
    author_domain: str | None
    size: int | None


class TraceLine(Line, frozen=True, kw_only=True):
    """One message in a list.

    Attributes:
        key: its place in the ring: the later, the greater.
    """

    key: int

    @classmethod
    def of(cls, line: Line, key: int) -> "TraceLine":
        """A line that was found there."""
        return cls(key=key, **msgspec.structs.asdict(line))


_encoder: Final = msgspec.json.Encoder()
encode: Final = _encoder.encode
_encode_lines: Final = _encoder.encode_lines
_decode: Final = msgspec.json.Decoder(Line).decode
_decode_outcomes: Final = msgspec.json.Decoder(Outcome).decode_lines


def write_lines(traces: Sequence[Trace]) -> str:
    """The line of each, below each other; without a line end or NUL in any."""
    lines = [_line(trace) for trace in traces]
    try:
        return _encode_lines(lines)[:-1].decode()
    except UnicodeEncodeError:  # a lone surrogate, from a text that was no UTF-8
        return b"\n".join(map(_write_line, lines)).decode()


def _write_line(line: Line) -> bytes:
    try:
        return encode(line)
    except UnicodeEncodeError:
        return encode(mend(line))


def _line(trace: Trace) -> Line:
    return Line(
        at=trace.answered,
        listener=trace.session.listener,
        disposition=trace.disposition,
        code=trace.reply.code if trace.reply else None,
        rule=trace.rule and trace.rule[:MAX_CHARACTERS],
        id=trace.id[:MAX_CHARACTERS],
        queue_id=trace.queue_id and trace.queue_id[:MAX_CHARACTERS],
        message_id=trace.message_id and bare(trace.message_id)[:MAX_CHARACTERS],
        client=ip_text(trace.session.client_ip),
        sender=fold(trace.mail_from),
        recipients=tuple([fold(each.address) for each in trace.recipients]),
        author=trace.author and fold(trace.author),
        author_domain=trace.author_domain and trace.author_domain[:MAX_CHARACTERS],
        size=trace.size,
    )


def read_line(text: str) -> Line:
    """Read it.

    Raises:
        ParseError: it is none, or has words of another release.
    """
    try:
        return _decode(text)
    except msgspec.DecodeError as error:
        raise ParseError(f"not a line of this release: {error}") from error


def read_outcomes(text: str) -> list[Outcome]:
    """Read the beginnings of many, below each other.

    Raises:
        ParseError: one of them is none, or has words of another release.
    """
    try:
        return _decode_outcomes(text)
    except msgspec.DecodeError as error:
        raise ParseError(f"not a line of this release: {error}") from error


def fold(address: str) -> str:
    """An address as it is compared."""
    return address[:MAX_CHARACTERS].lower()


def bare(text: str) -> str:
    """A Message-ID or address without its brackets."""
    text = text.strip()
    return text[1:-1] if text[:1] == "<" and text[-1:] == ">" else text
