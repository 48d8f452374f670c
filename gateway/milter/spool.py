"""Where one message grows while the mail server hands it over in pieces.

A small message is a list of its pieces; a large one goes to a temporary file without a name and comes back mapped into
memory, so that a hundred large messages at once cost disk cache and not memory.
"""

import mmap
import tempfile
from typing import IO, Final

from gateway.mail.message import Buffer


class Spool:
    """Collects one message's bytes.

    Args:
        max_bytes: past this nothing more is kept, and `overflowed` is set.
        threshold_bytes: past this the content moves to an unlinked temporary file.

    Attributes:
        size: bytes received so far, those not kept included.
    """

    def __init__(self, *, max_bytes: int, threshold_bytes: int) -> None:
        self.size = 0
        self._max_bytes: Final = max_bytes
        self._threshold_bytes: Final = threshold_bytes
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None

    @property
    def overflowed(self) -> bool:
        """Whether the message was larger than it may be; what was kept of it is gone."""
        return self.size > self._max_bytes

    def write(self, piece: bytes) -> None:
        """Take the next bytes."""
        self.size += len(piece)
        if self.size > self._max_bytes:
            self.discard()
        elif self._file is not None:
            self._file.write(piece)
        else:
            self._pieces.append(piece)
            if self.size > self._threshold_bytes:
                self._move_to_file()

    def content(self) -> Buffer:
        """All that was written; the spool gives it up."""
        file, self._file = self._file, None
        if file is None:
            pieces, self._pieces = self._pieces, []
            return b"".join(pieces)
        with file:
            file.flush()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def discard(self) -> None:
        """Let go of everything."""
        self._pieces = []
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _move_to_file(self) -> None:
        # O_TMPFILE or unlinked at once: nothing is left behind, however we end.
        self._file = tempfile.TemporaryFile(prefix="gateway-")  # noqa: SIM115 - it lives until the message ends
        self._file.writelines(self._pieces)
        self._pieces = []
