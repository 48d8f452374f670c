"""Netstrings (cr.yp.to/proto/netstrings.txt), in which socketmap_table(5) puts each question and each answer: `5:hello,`."""

import re
from typing import Final

from gateway.mail.errors import ParseError

_LENGTH: Final = re.compile(rb"(0|[1-9][0-9]{0,8}):")
_MAX_LENGTH_BYTES: Final = 9
_COMMA: Final = ord(",")


class NetstringError(ParseError):
    """The peer does not speak netstrings, or too long ones: nothing that it sends can be understood from here on."""


def encode(content: bytes) -> bytes:
    """One netstring."""
    return b"%d:%b," % (len(content), content)


class Decoder:
    """Takes bytes as they come, gives the contents one by one.

    Args:
        max_bytes: of one content; a longer one is refused by its length, before it has come.
    """

    __slots__ = ("_buffer", "_max_bytes", "_start")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._buffer = bytearray()
        self._start = 0

    def feed(self, data: bytes) -> None:
        """Take more bytes."""
        if self._start:
            del self._buffer[: self._start]
            self._start = 0
        self._buffer += data

    def next(self) -> bytes | None:
        """The next whole content; None until more bytes have come.

        Raises:
            NetstringError: now, and at each call from here on.
        """
        start = self._start
        length = _LENGTH.match(self._buffer, start)
        if length is None:
            head = self._buffer[start : start + _MAX_LENGTH_BYTES + 1]
            if head and not (head.isdigit() and len(head) <= _MAX_LENGTH_BYTES and self._may_be_length(head)):
                raise NetstringError(f"not the length of a netstring: {bytes(head)!r}")
            return None
        size = int(length[1])
        if size > self._max_bytes:
            raise NetstringError(f"a netstring of {size} bytes; {self._max_bytes} are allowed")
        begin = length.end()
        end = begin + size
        if len(self._buffer) <= end:
            return None
        if self._buffer[end] != _COMMA:
            raise NetstringError("a netstring does not end with a comma")
        self._start = end + 1
        return bytes(self._buffer[begin:end])

    @staticmethod
    def _may_be_length(head: bytes | bytearray) -> bool:
        return head == b"0" or not head.startswith(b"0")

    @property
    def is_within(self) -> bool:
        """Whether a content has begun and not ended."""
        return len(self._buffer) > self._start
