"""What the gateway changes in a message: fields put on top, fields taken out. Nothing else is ever touched."""

from collections.abc import Collection, Iterator
from typing import Final

from gateway.mail.message import Message
from gateway.mail.value import Value


class NewField(Value, frozen=True):
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


class Edits(Value, frozen=True, kw_only=True):
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


class EditedHeader:
    """The header section of a message as it will be handed on; nothing is copied before it is asked for."""

    def __init__(self, message: Message, edits: Edits) -> None:
        self._message = message
        self._removed = edits.remove
        self._new: dict[bytes, list[NewField]] = {}
        for new in edits.prepend:
            self._new.setdefault(new.name.lower().encode(), []).append(new)

    def named(self, key: bytes) -> list[bytes]:
        """Every field of this name, whole, top first. `key` is in lower case."""
        message, removed = self._message, self._removed
        kept = [
            message.field_bytes(position) for position in message.positions(key) if position not in removed
        ]
        new = self._new.get(key)
        return [*(one.to_bytes() for one in new), *kept] if new else kept

    def touches(self, keys: Collection[bytes]) -> bool:
        """Whether a field of one of these names is put in or taken out."""
        fields = self._message.fields
        return any(key in self._new for key in keys) or any(
            fields[position].key in keys for position in self._removed
        )


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
