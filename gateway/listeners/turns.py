"""Whose turn it is to take the next connection, where several processes wait at one socket.

The first to wake would take a whole burst, and its siblings none: ten sessions that came together all went to one of two
workers. TCP ports have a queue for each worker (SO_REUSEPORT); a UNIX socket has one for all. So each worker writes down how many
connections it has, in memory that all of them share, and one that has more than another leaves it a moment's start.
"""

import mmap
from typing import Final

MAX_WORKERS: Final = 64
"""Those beyond take what comes."""

_NOT_SERVING: Final = -1


class Turns:
    """To be made before the fork. Each worker writes its own word alone, an aligned one at a time.

    What a killed worker wrote stands until its heir begins: the others wait in vain for a moment, and then go on.
    """

    def __init__(self) -> None:
        self._words: Final = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")[:MAX_WORKERS]
        for worker in range(MAX_WORKERS):
            self._words[worker] = _NOT_SERVING

    def note(self, worker: int, connections: int) -> None:
        """This worker has so many."""
        if worker < MAX_WORKERS:
            self._words[worker] = connections

    def leave(self, worker: int) -> None:
        """This worker takes no more."""
        self.note(worker, _NOT_SERVING)

    def has_turn(self, connections: int) -> bool:
        """Whether nobody who serves has fewer than so many."""
        return not any(0 <= others < connections for others in self._words.tolist())
