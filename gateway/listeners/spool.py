"""Where messages wait for their verdict: small ones in memory, large ones in unlinked files; all together within a budget.

Nothing here outlives the process, and nothing needs to: until downstream has taken a message its sender keeps it.
"""

import io
import mmap
import tempfile
from typing import IO, Final

import structlog

from gateway.mail.message import Buffer

_log: Final = structlog.get_logger(__name__)


class Budget:
    """Bytes that all messages together may take."""

    __slots__ = ("_limit", "_used")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0

    @property
    def used(self) -> int:
        """Bytes taken now."""
        return self._used

    def has_room(self, size: int) -> bool:
        """Whether `size` more bytes, and at least one, could be taken now."""
        return self._used + max(size, 1) <= self._limit

    def take(self, size: int) -> bool:
        """Take so many bytes; False, and none, where they are not there."""
        if self._used + size > self._limit:
            return False
        self._used += size
        return True

    def give_back(self, size: int) -> None:
        """They are free again."""
        self._used -= size


class MessageSpool:
    """One message's content (`gateway.smtp.transaction.Spool`).

    Writing to the file blocks the loop as long as the kernel takes to copy a block into its cache: less than handing the
    block to a thread would.
    """

    __slots__ = ("_budget", "_file", "_size", "_threshold")

    def __init__(self, budget: Budget, *, threshold: int) -> None:
        self._budget = budget
        self._threshold = threshold
        self._file: IO[bytes] | None = io.BytesIO()
        self._size = 0

    def write(self, block: bytes) -> bool:
        """Keep more; False where there is no room, in the budget or on the disk."""
        if self._file is None or not self._budget.take(len(block)):
            return False
        self._size += len(block)
        try:
            if self._size > self._threshold and isinstance(self._file, io.BytesIO):
                self._file = _on_disk(self._file)
            self._file.write(block)
        except OSError as error:
            _log.error("spool.failed", error=str(error))
            return False
        return True

    def finish(self) -> Buffer:
        """All of it; the room stays taken until `discard`."""
        if self._file is None:
            return b""
        if isinstance(self._file, io.BytesIO):
            return self._file.getvalue()
        self._file.flush()
        return mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)

    def discard(self) -> None:
        """Give the room back. A file is gone once its mapping is, too."""
        file, self._file = self._file, None
        if file is not None:
            file.close()
            self._budget.give_back(self._size)
            self._size = 0


def _on_disk(memory: io.BytesIO) -> IO[bytes]:
    file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `discard`
    file.write(memory.getbuffer())
    return file
