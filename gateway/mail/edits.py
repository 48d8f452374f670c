"""What the gateway changes in a message: fields put on top, fields taken out. Nothing else is ever touched."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from gateway.mail.message import Message


@dataclass(frozen=True, slots=True)
class NewField:
    """A header field to put in, made by `gateway.mail.headers` and by nothing else.

    Attributes:
        name: as it is to stand there: `Authentication-Results`.
        value: folded with CRLF and white space, ASCII or UTF-8, no leading blank, no final CRLF.
    """

    name: str
    value: str

    def to_bytes(self) -> bytes:
        """The field as it stands in a message."""
        return f"{self.name}: {self.value}\r\n".encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Edits:
    """The difference between the message received and the message handed on.

    Attributes:
        prepend: fields to stand above all others, in this order.
        remove: places in `Message.fields` of fields to leave out.
    """

    prepend: tuple[NewField, ...] = ()
    remove: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        """Whether anything changes at all."""
        return bool(self.prepend or self.remove)


NO_EDITS: Final = Edits()


def apply_edits(message: Message, edits: Edits) -> Iterator[memoryview | bytes]:
    """The edited message in pieces, without copying what stays.

    A first line that begins with a blank is left out where fields are put above it: it is no field, and there it would
    continue the last of ours, with any result its sender liked.
    """
    for field in edits.prepend:
        yield field.to_bytes()
    raw = memoryview(message.raw)
    start = 0
    remove = edits.remove
    if edits.prepend and message.raw[:1] in {b" ", b"\t"}:
        remove |= {0}
    for position in sorted(remove):
        field_removed = message.fields[position]
        if field_removed.start > start:
            yield raw[start : field_removed.start]
        start = field_removed.end
    yield raw[start:]
