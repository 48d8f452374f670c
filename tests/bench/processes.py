"""Processes of a bench: started, measured and ended by their ids."""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024
START_S = 20.0


@dataclass(frozen=True, slots=True)
class Cpu:
    """Processor time in seconds: the program's own, and the kernel's on its behalf."""

    user: float
    kernel: float

    @property
    def whole(self) -> float:
        return self.user + self.kernel

    def __add__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user + other.user, self.kernel + other.kernel)

    def __sub__(self, other: "Cpu") -> "Cpu":
        return Cpu(self.user - other.user, self.kernel - other.kernel)


def _stat(pid: int) -> list[str]:
    # The command's name, in brackets, may hold blanks: what follows it is counted from its closing bracket.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def cpu_used(pid: int) -> Cpu:
    """What a process and its ended children have used up to now (proc(5), /proc/PID/stat)."""
    user, kernel, children_user, children_kernel = (
        int(field) / _TICKS_PER_SECOND for field in _stat(pid)[11:15]
    )
    return Cpu(user + children_user, kernel + children_kernel)


def tree(root: int) -> list[int]:
    """A process and all below it that live now."""
    parents: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
            except OSError:  # it has ended meanwhile
                continue
    found = [root]
    for pid in found:
        found += parents.get(pid, [])
    return found


def tree_cpu(root: int) -> Cpu:
    """What a process and all below it have used, the ended ones included."""
    used = Cpu(0.0, 0.0)
    for pid in tree(root):
        try:
            used += cpu_used(pid)
        except OSError:  # it has ended since: its parent has its time now, or will have it
            continue
    return used


def threads_cpu(pid: int) -> float:
    """Seconds that a process' living threads have been on a processor, to the nanosecond; `cpu_used` counts by hundredths."""
    spent = (
        task.joinpath("schedstat").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()
    )
    return sum(map(int, spent)) / 1e9


def resident_mb(pid: int) -> float:
    """Memory of one process that is its own: resident, without what it shares with others by mapping a file."""
    pages = Path(f"/proc/{pid}/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * _PAGE_KB / 1024


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running(
    command: Sequence[str | Path], *, log: Path | None = None, environment: Mapping[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a server for as long as the block lasts; its output goes to `log`, or nowhere."""
    with (log or Path(os.devnull)).open("wb") as output:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdout=output,
            stderr=output,
            env={**os.environ, **(environment or {})},
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(START_S)


def wait_for(process: "subprocess.Popen[bytes]", address: tuple[str, int] | str) -> None:
    """Wait until a server takes connections at a TCP or UNIX address; there is no event for that but trying."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    deadline = time.monotonic() + START_S
    while True:
        with socket.socket(family) as probe:
            try:
                probe.connect(address)
            except OSError:
                if process.poll() is not None:
                    raise ChildProcessError(f"ended with {process.returncode}: {process.args!r}") from None
                if time.monotonic() > deadline:
                    raise
            else:
                return
        time.sleep(0.02)
