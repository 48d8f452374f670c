"""What this process takes of the machine, and whether its event loop keeps up."""

import asyncio
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

LOOK_EVERY_S: Final = 0.5
"""How often the loop is asked whether it is late: 2 timers a second, a few microseconds."""

_PAGE_BYTES: Final = resource.getpagesize()
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")


class ProcessFigures(NamedTuple):
    """As Prometheus' client libraries have them: CPU and memory as the kernel counts them, descriptors, time of the start."""

    cpu_s: float
    resident_bytes: int
    virtual_bytes: int
    open_fds: int
    max_fds: int
    started: float


def read_process() -> ProcessFigures | None:
    """The figures of this process, in some 50 µs; None where there is no /proc."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    try:
        virtual_pages, resident_pages, *_ = Path("/proc/self/statm").read_bytes().split()
        open_fds = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208 - less the one that lists; no Path for each is needed
        started = _started()
    except (OSError, ValueError, IndexError):
        return None
    return ProcessFigures(
        cpu_s=usage.ru_utime + usage.ru_stime,
        resident_bytes=int(resident_pages) * _PAGE_BYTES,
        virtual_bytes=int(virtual_pages) * _PAGE_BYTES,
        open_fds=open_fds,
        max_fds=resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        started=started,
    )


_known_start: dict[int, float] = {}


def _started() -> float:
    """Seconds since the epoch; looked up once a process."""
    pid = os.getpid()
    if pid not in _known_start:
        after_name = Path("/proc/self/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2]
        ticks = int(after_name.split()[19])  # proc(5): starttime, the 22nd field
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / _TICKS_PER_S
        _known_start[pid] = time.time() - age_s
    return _known_start[pid]


class LoopWatch:
    """Asks the running loop twice a second for a moment, and tells by how much it was late.

    Args:
        tell: takes the lateness in seconds; must not raise.
    """

    def __init__(self, tell: Callable[[float], None]) -> None:
        self._tell = tell
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, on the running loop."""
        self._due = time.monotonic() + LOOK_EVERY_S  # uvloop's own clock has milliseconds only
        self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY_S, self._look)

    def stop(self) -> None:
        """End."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._tell(max(0.0, time.monotonic() - self._due))
        self.start()
