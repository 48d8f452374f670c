"""Traces on their way to the store, some together: what is told of a message is written down later, and of many at once.

Between two messages the processor has forgotten how traces are written; to write sixty one after the other costs half of what it
costs to write each by itself.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

from gateway.trace.document import write_document
from gateway.trace.line import write_line
from gateway.trace.model import Trace

TOGETHER: Final = 64
"""Writing them takes about a millisecond, and for so long the loop does nothing else."""


class Written(NamedTuple):
    """One trace as it is stored."""

    at: datetime
    line: bytes
    document: bytes

    @classmethod
    def of(cls, trace: Trace) -> "Written":
        """Write it."""
        return cls(trace.answered, write_line(trace), write_document(trace))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Traces as they are stored, one in each line of both texts.

    Attributes:
        count: how many there are.
        newest: when the last of these messages was answered.
    """

    count: int
    newest: datetime
    lines: str
    documents: bytes

    @classmethod
    def of(cls, written: Sequence[Written]) -> "Block":
        """Put them below each other; there is one at least."""
        return cls(
            count=len(written),
            newest=max([each.at for each in written]),
            lines=b"\n".join([each.line for each in written]).decode(),
            documents=b"\n".join([each.document for each in written]),
        )


Write = Callable[[], Written | None]
"""Writes one trace; None: it cannot be written."""


class Batch:
    """Traces that will be stored together.

    Any thread adds to it, until there are `TOGETHER` or the block is asked for; whoever adds the last writes them all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Write] | None = []
        self._block: Block | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, write: Write) -> bool:
        """Take one that is yet to be written, later and in any thread. False: too late, begin a new batch."""
        with self._lock:
            if self._open is None:
                return False
            self._open.append(write)
            self._count += 1
            if self._count == TOGETHER:
                self._block = _block(self._take())
        return True

    def block(self) -> Block | None:
        """What there is, written; nothing more is added. None where nothing could be. One thread asks, and may ask again."""
        with self._lock:
            left = self._take()
        if left:
            self._block = _block(left)  # without the lock: nobody who adds waits for it
        return self._block

    def _take(self) -> list[Write]:
        taken, self._open = self._open, None
        return taken or []


def _block(writes: Sequence[Write]) -> Block | None:
    written = [each for write in writes if (each := write()) is not None]
    return Block.of(written) if written else None
