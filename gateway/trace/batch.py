"""Traces on their way to the store, some together: what is told of a message is written down later, and of many at once.

Between two messages the processor has forgotten how traces are written; to write sixty one after the other costs half of what it
costs to write each by itself.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import structlog

from gateway.trace.document import write_documents
from gateway.trace.line import write_lines
from gateway.trace.model import Trace

TOGETHER: Final = 64
"""Writing them takes about half a millisecond, of hostile mail some twenty, and for so long the loop does nothing else."""

_log: Final = structlog.get_logger(__name__)


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
    def of(cls, traces: Sequence[Trace]) -> "Block":
        """Write them; there is one at least."""
        return cls(
            count=len(traces),
            newest=max([each.answered for each in traces]),
            lines=write_lines(traces),
            documents=write_documents(traces),
        )


Make = Callable[[], Trace | None]
"""Makes one trace; None: it cannot be made."""


class Batch:
    """Traces that will be stored together.

    Any thread adds to it, until there are `TOGETHER` or the block is asked for; whoever adds the last writes them all.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[Make] | None = []
        self._block: Block | None = None
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, make: Make) -> bool:
        """Take one that is yet to be made and written, later and in any thread. False: too late, begin a new batch."""
        with self._lock:
            if self._open is None:
                return False
            self._open.append(make)
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

    def _take(self) -> list[Make]:
        taken, self._open = self._open, None
        return taken or []


def _block(makes: Sequence[Make]) -> Block | None:
    traces = [trace for make in makes if (trace := make()) is not None]
    try:
        return Block.of(traces) if traces else None
    except Exception:  # noqa: BLE001 - a bug in writing one costs that one, and no other
        fit = [trace for trace in traces if _can_be_written(trace)]
        return Block.of(fit) if fit else None


def _can_be_written(trace: Trace) -> bool:
    try:
        Block.of([trace])
    except Exception:  # noqa: BLE001 - it is what was looked for
        _log.exception("trace.failed", id=trace.id)
        return False
    return True
