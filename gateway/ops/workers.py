"""Several processes that do the same work, and one that watches over them: started, started again, replaced, ended.

The supervisor does nothing but wait for signals, so it has no thread and no event loop and may fork at any time. What it
has read and opened before a fork, its children have too. It is told that a worker is ready by a queued real-time signal, and
a worker learns that the supervisor is gone from the end of a pipe.
"""

import mmap
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple, NoReturn

import structlog

READY: Final = signal.SIGRTMIN
"""From a worker to the supervisor; real-time signals are queued, so that two at once are two."""

STOP: Final = signal.SIGUSR2
RELOAD: Final = signal.SIGRTMIN + 1
RETIRE: Final = signal.SIGUSR1
"""From the supervisor to a worker: take nothing new, serve who is there until they leave, then end.

Workers ignore SIGTERM, SIGINT and SIGHUP, which a terminal and systemd send to every process: the supervisor alone decides. Where
pymilter speaks the milter protocol, libmilter has a thread in wait for these three, and would end alone.
"""

_WATCHED: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, READY})
_FIRST_DELAY_S: Final = 0.5
_MAX_DELAY_S: Final = 30.0
_STABLE_S: Final = 60.0
"""A worker that lived so long is begun again at once; one that did not waits, longer each time."""

_TURN_S: Final = 1.0

_log: Final = structlog.get_logger()


class LedgerFigures(NamedTuple):
    """Since the supervisor's start: children lost, reloads refused, and whether the last one was."""

    losses: int
    refusals: int
    is_refused: bool


class Ledger:
    """What only the supervisor knows, for the metrics: it has neither loop nor socket, but memory that its children share.

    It alone writes, one aligned word at a time.
    """

    def __init__(self) -> None:
        self._words: Final = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("q")

    def note_loss(self) -> None:
        """A child is gone that should be there."""
        self._words[0] += 1

    def note_reload(self, *, ok: bool) -> None:
        """The files were read again, and taken or refused."""
        self._words[1] += not ok
        self._words[2] = not ok

    def read(self) -> LedgerFigures:
        """What stands there."""
        return LedgerFigures(self._words[0], self._words[1], bool(self._words[2]))


class WorkerState(StrEnum):
    """Where a child stands."""

    STARTING = "starting"
    READY = "ready"
    RETIRING = "retiring"  # replaced after a reload: its clients may finish
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What one child does.

    Attributes:
        name: for the log: `worker-0`, `http`.
        run: runs in the child until its end; its value is the exit status. It is given a descriptor that becomes readable
            (at its end) when the supervisor is gone.
    """

    name: str
    run: Callable[[int], int]


@dataclass(slots=True)
class _Child:
    job: Job
    pid: int
    started: float
    state: WorkerState = WorkerState.STARTING
    is_behind: bool = False
    """Files were read again while it was starting: whether it has the new ones nobody knows."""


@dataclass(slots=True)
class _Slot:
    """A place that is to be filled as long as the supervisor runs."""

    job: Job
    child: _Child | None = None
    failures: int = 0
    due: float = 0.0


@dataclass(slots=True, kw_only=True)
class Supervisor:
    """Keeps one child for each job.

    Attributes:
        jobs: what is to be done, one child each.
        replace: asked at SIGHUP: new jobs in place of the old ones, `()` where all can go on and are to read their files
            again, None where the new files are faulty (it has said so) and everything stays. A job that is the very same
            object as before is not replaced.
        drain_s: how long children have to end, after SIGTERM.
        ledger: where losses and refused reloads are counted.
        start_s: how long a child may take to be ready; one that takes longer (a lock, a disk that does not answer) is begun again.
        usage_status: a child that ends so before it was ever ready cannot work at all; at the first start that is the end.
    """

    jobs: tuple[Job, ...]
    replace: Callable[[], tuple[Job, ...] | None]
    drain_s: float
    start_s: float = 120.0
    ledger: Ledger = field(default_factory=Ledger)
    usage_status: int = 2
    _slots: dict[str, _Slot] = field(default_factory=dict)
    _leaving: dict[int, _Child] = field(default_factory=dict)
    _lifeline: tuple[int, int] = (-1, -1)
    _was_ready: bool = False
    _status: int | None = None
    _stop_by: float | None = None
    _is_impatient: bool = False

    def run(self) -> int:
        """Until SIGTERM or SIGINT; 0 where every child came to its end in time."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        self._lifeline = os.pipe()
        self._slots = {job.name: _Slot(job) for job in self.jobs}
        try:
            while self._status is None:
                self._start_due()
                self._end_overdue()
                self._turn(signal.sigtimedwait(_WATCHED, self._patience_s()))
            return self._status
        finally:
            self._kill_all()
            for descriptor in self._lifeline:
                os.close(descriptor)
            # What children said before their end must not end us now.
            while signal.sigtimedwait(_WATCHED, 0) is not None:
                pass
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────

    def _turn(self, got: "signal.struct_siginfo | None") -> None:
        match got.si_signo if got else None:
            case None:
                pass
            case signal.SIGCHLD:
                self._reap()
            case signal.SIGHUP:
                self._reload()
            case number if number == READY and got:
                self._ready(got.si_pid)
            case _:
                self._stop()
        if self._stop_by is not None and (time.monotonic() > self._stop_by or self._is_impatient):
            _log.warning("workers.cut", count=len(self._children()))
            self._status = 1

    def _patience_s(self) -> float:
        now = time.monotonic()
        due = [slot.due - now for slot in self._slots.values() if slot.child is None]
        return max(0.0, min([_TURN_S, *due]))

    def _children(self) -> list[_Child]:
        return [slot.child for slot in self._slots.values() if slot.child] + list(self._leaving.values())

    def _start_due(self) -> None:
        if self._stop_by is not None:
            return
        now = time.monotonic()
        for slot in self._slots.values():
            if slot.child is None and slot.due <= now:
                slot.child = self._fork(slot.job)

    def _end_overdue(self) -> None:
        latest = time.monotonic() - self.start_s
        for slot in self._slots.values():
            child = slot.child
            if child and child.state is WorkerState.STARTING and child.started < latest:
                _log.error("worker.never-ready", worker=child.job.name, pid=child.pid, after_s=self.start_s)
                child.state = WorkerState.STOPPING
                _send(child.pid, signal.SIGKILL)

    def _ready(self, pid: int) -> None:
        for slot in self._slots.values():
            child = slot.child
            if child and child.pid == pid:
                child.state = WorkerState.READY
                self._was_ready = True
                if child.is_behind:
                    child.is_behind = False
                    _send(pid, RELOAD)
                _log.info("worker.ready", worker=child.job.name, pid=pid)
                self._retire_replaced(child.job.name)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._ended(pid, os.waitstatus_to_exitcode(status))
        if self._stop_by is not None and not self._children():
            self._status = 0

    def _ended(self, pid: int, code: int) -> None:
        leaving = self._leaving.pop(pid, None)
        if leaving is not None:
            _log.info("worker.ended", worker=leaving.job.name, pid=pid, status=code)
            return
        for slot in self._slots.values():
            child = slot.child
            if child and child.pid == pid:
                slot.child = None
                self._missed(slot, child, code)

    def _missed(self, slot: _Slot, child: _Child, code: int) -> None:
        """A child is gone that should be there."""
        if self._stop_by is not None:
            _log.info("worker.ended", worker=child.job.name, pid=child.pid, status=code)
            return
        if code == self.usage_status and not self._was_ready and child.state is WorkerState.STARTING:
            self._status = code  # a port that is taken, a file that cannot be read: it has said so
            return
        self.ledger.note_loss()
        now = time.monotonic()
        slot.failures = 0 if now - child.started > _STABLE_S else slot.failures + 1
        delay_s = min(_FIRST_DELAY_S * 2 ** (slot.failures - 1), _MAX_DELAY_S) if slot.failures > 1 else 0.0
        slot.due = now + delay_s * random.uniform(0.8, 1.2)  # noqa: S311 - not to begin all again in one moment
        _log.error(
            "worker.lost", worker=child.job.name, pid=child.pid, status=code, again_in_s=round(delay_s, 1)
        )

    # ── what is done ────────────────────────────────────────────────────────────────────────────────────────────────

    def _reload(self) -> None:
        if self._stop_by is not None:
            return
        try:
            jobs = self.replace()
        except Exception:  # noqa: BLE001 - a bug: all workers would end with us; they go on with what they have
            _log.exception("config.reload-failed", note="what was in force before stays in force")
            jobs = None
        self.ledger.note_reload(ok=jobs is not None)
        if jobs is not None:
            self._replace(jobs)

    def _replace(self, jobs: tuple[Job, ...]) -> None:
        names = {job.name for job in jobs}
        kept = {slot.job.name for slot in self._slots.values() if not jobs or slot.job in jobs}
        for name, slot in list(self._slots.items()):
            if name in kept:
                _reload_child(slot.child)
                continue
            del self._slots[name]
            if slot.child:
                self._leaving[slot.child.pid] = slot.child  # it serves on until the new one does
        for child in self._leaving.values():
            if jobs and child.job.name not in names:  # there will be no new one
                self._leave(child)
        self._slots |= {job.name: _Slot(job) for job in jobs if job.name not in kept}

    def _retire_replaced(self, name: str) -> None:
        for child in self._leaving.values():
            if child.job.name == name:
                self._leave(child)

    def _leave(self, child: _Child) -> None:
        if child.state in {WorkerState.STARTING, WorkerState.READY}:
            child.state = WorkerState.RETIRING
            _send(child.pid, RETIRE)

    def _stop(self) -> None:
        if self._stop_by is not None:
            self._is_impatient = True
            return
        _log.info("gateway.draining", deadline_s=self.drain_s)
        self._stop_by = time.monotonic() + self.drain_s
        for child in self._children():
            child.state = WorkerState.STOPPING
            _send(child.pid, STOP)
        if not self._children():
            self._status = 0

    def _kill_all(self) -> None:
        for child in self._children():
            _send(child.pid, signal.SIGKILL)
            try:
                os.waitpid(child.pid, 0)
            except ChildProcessError:
                continue

    def _fork(self, job: Job) -> _Child:
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            self._be(job)
        return _Child(job, pid, time.monotonic())

    def _be(self, job: Job) -> NoReturn:
        """The child: do the job, and end without a word of the supervisor's."""
        status = 1
        try:
            reader, writer = self._lifeline
            os.close(writer)
            random.seed()
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, READY, RELOAD):
                signal.signal(number, signal.SIG_IGN)
            for number in (
                STOP,
                RETIRE,
            ):  # until the job has its own handlers there is nothing that could be lost
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)
            status = job.run(reader)
        except BaseException:  # noqa: BLE001 - the child must never come back into the supervisor's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def say_ready() -> None:
    """A child tells the supervisor that it works."""
    os.kill(os.getppid(), READY)


def _reload_child(child: _Child | None) -> None:
    """Now, or as soon as it can hear it."""
    if child and child.state is WorkerState.STARTING:
        child.is_behind = True
    elif child:
        _send(child.pid, RELOAD)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
