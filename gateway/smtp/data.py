"""Message content on the wire: between DATA and the final dot, or in BDAT chunks (RFC 5321 §4.5.2, RFC 3030).

SMTP smuggling works where two servers see the end of the data in different places. Here only CRLF.CRLF ends it, and
no bare CR, bare LF or NUL gets through, so that there is nothing left for the next server to see differently.
"""

import re
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import chain
from typing import Final, Protocol

CRLF: Final = b"\r\n"
END_OF_DATA: Final = b"\r\n.\r\n"
BLOCK_BYTES: Final = 256 * 1024
"""Content is handed on in blocks of about this size."""

_BARE_LINE_END: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class Fault(StrEnum):
    """What content may not have in it."""

    NUL = "nul"
    BARE_LINE_END = "bare-line-end"


class ContentFilter:
    """Looks at content, wherever it is cut, for what must not get through.

    Args:
        normalize: make CRLF of a bare CR or LF instead of finding fault with it. That breaks signatures.

    Attributes:
        fault: NUL where there is one, else the other; from the first on the content is swallowed.
    """

    __slots__ = ("_held", "_normalize", "fault")

    def __init__(self, *, normalize: bool) -> None:
        self.fault: Fault | None = None
        self._normalize = normalize
        self._held = False  # a CR was the last byte: whether it is bare depends on the next

    def push(self, block: bytes) -> bytes:
        """The block as it may be handed on; empty after a fault."""
        if b"\0" in block:
            self.fault = Fault.NUL
        if self.fault:
            return b""
        if self._held:
            block = b"\r" + block
        self._held = block.endswith(b"\r")
        if self._held:
            block = block[:-1]
        rest = b"".join(block.split(b"\r\n"))  # counting CR, LF and CRLF takes twice as long
        if b"\r" not in rest and b"\n" not in rest:
            return block
        if self._normalize:
            return _BARE_LINE_END.sub(b"\r\n", block)
        self.fault = Fault.BARE_LINE_END
        return b""

    def finish(self) -> bytes:
        """What was held back; to be called once, at the end of the content."""
        if not self._held or self.fault:
            return b""
        if self._normalize:
            return b"\r\n"
        self.fault = Fault.BARE_LINE_END
        return b""


class Sink(Protocol):
    """Where decoded content goes."""

    def push(self, block: bytes) -> object:
        """The next of it, never empty."""
        ...

    def finish(self) -> object:
        """That was all."""
        ...


class DataDecoder:
    """The stream after DATA's 354, up to the final dot, in pieces of any size.

    Args:
        sink: gets the content, dots unstuffed.

    Attributes:
        rest: None until the end was seen, then what came behind it.
        has_dots: a line of the content begins with a dot; known at its end.
    """

    __slots__ = ("_held", "_sink", "_skip", "has_dots", "rest")

    def __init__(self, sink: Sink) -> None:
        self.rest: bytes | None = None
        self.has_dots = False
        self._sink = sink
        self._held = b"\r\n"  # the command line's own: a dot may stand on the very first line
        self._skip = len(self._held)

    def feed(self, data: bytes) -> None:
        """The next bytes from the wire. Takes time in the length of `data` alone."""
        data = self._held + data
        end = data.find(END_OF_DATA)
        if end >= 0:
            self.rest = data[end + len(END_OF_DATA) :]
            self._release(data[: end + 2])
            self._sink.finish()
            return
        keep = _unfinished(data)
        self._held = data[len(data) - keep :]
        self._release(data[: len(data) - keep])

    def _release(self, block: bytes) -> None:
        """RFC 5321 §4.5.2: a dot that begins a line is not content."""
        lines = block.split(b"\r\n.")  # one search; `in` and `replace` are three
        if len(lines) > 1:
            self.has_dots = True
            block = b"\r\n".join(lines)
        if self._skip and block:
            block, self._skip = block[self._skip :], 0
        if block:
            self._sink.push(block)


def _unfinished(data: bytes) -> int:
    """How many of the last bytes may be the beginning of CRLF.CRLF; or of CRLF and a stuffed dot."""
    for length in range(len(END_OF_DATA) - 1, 0, -1):
        if data.endswith(END_OF_DATA[:length]):
            return length
    return 0


def encode_data(pieces: Iterable[bytes | memoryview], *, is_dotted: bool = True) -> Iterator[bytes]:
    """Message content as it follows DATA, dots stuffed and the final dot added, in blocks of bounded size.

    Args:
        pieces: the content; its lines are ended by CRLF, and a piece may be as large as the message.
        is_dotted: False where it is known that none of its lines begins with a dot.
    """
    pieces = list(pieces)
    if not is_dotted and pieces and pieces[-1][-2:] == CRLF and sum(map(len, pieces)) <= BLOCK_BYTES:
        return iter((b"".join((*pieces, b".\r\n")),))
    return _encode_blocks(pieces, is_dotted=is_dotted)


def _encode_blocks(pieces: Iterable[bytes | memoryview], *, is_dotted: bool) -> Iterator[bytes]:
    tail = b"\r\n"
    waiting: list[bytes] = []
    size = 0
    for block in _cut(pieces):
        stuffed = _stuff(block, tail) if is_dotted else block
        tail = (tail + block)[-2:] if len(block) == 1 else block[-2:]
        waiting.append(stuffed)
        size += len(stuffed)
        if size >= BLOCK_BYTES:
            yield b"".join(waiting)
            waiting, size = [], 0
    waiting.append(b".\r\n" if tail == b"\r\n" else END_OF_DATA)
    yield b"".join(waiting)


def encode_chunk(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Message content as one chunk behind its command (RFC 3030 §2), in blocks of bounded size; see `encode_data`."""
    pieces = list(filter(None, pieces))
    size = sum(map(len, pieces))
    last = bytes(pieces[-1][-2:]) if pieces else CRLF
    if last != CRLF:  # with DATA it would have one, too
        pieces.append(CRLF)
        size += len(CRLF)
    command = f"BDAT {size} LAST\r\n".encode()
    if size <= BLOCK_BYTES:
        return iter((b"".join((command, *pieces)),))
    return chain((command,), _cut(pieces))


def _cut(pieces: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes) and 0 < len(piece) <= BLOCK_BYTES:
            yield piece
        else:
            for start in range(0, len(piece), BLOCK_BYTES):
                yield bytes(piece[start : start + BLOCK_BYTES])


def _stuff(block: bytes, tail: bytes) -> bytes:
    """Double each dot that begins a line; `tail` is the last two bytes before the block."""
    stuffed = block.replace(b"\r\n.", b"\r\n..") if b"\r\n." in block else block
    if tail == b"\r\n" and block.startswith(b"."):
        return b"." + stuffed
    if tail.endswith(b"\r") and block.startswith(b"\n."):
        return b"\n." + stuffed[1:]
    return stuffed
