"""One /metrics for several workers: each answers roll calls with its numbers, and who asks adds them up.

A worker connects to a socket of the supervisor's making, whose name only its children know, and sends a line whenever it is
sent one. What a worker has counted stays in the sum after its end, so that no counter ever goes back; what it counted
since the last call is lost only when it is killed.
"""

import asyncio
import json
import os
import secrets
import socket
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, TypedDict

import structlog

from gateway.listeners.http import Readiness

CALL_EVERY_S: Final = 2.0
ANSWER_S: Final = 1.0
"""A worker that is busy for longer than this is shown as it was at the last call."""

MAX_ANSWER_BYTES: Final = 16 * 1024 * 1024
_CALL: Final = b"?\n"
_GONE: Final = (
    OSError,
    RuntimeError,
)  # uvloop raises the second where something is written to a closed transport
_CREDENTIALS: Final = struct.Struct("3i")

_log: Final = structlog.get_logger()

CallSocket = socket.socket


class WorkerState(NamedTuple):
    """A worker, as it answered last."""

    worker: int
    pid: int
    checks: tuple[Readiness, ...]


Snapshot = dict[str, Any]
"""See `gateway.ops.metrics.Metrics.snapshot`."""


class Counted(Protocol):
    """What is needed of the metrics."""

    def snapshot(self) -> Snapshot:
        """Everything counted so far, in plain values."""
        ...


class Summed(Counted, Protocol):
    """Metrics that take others' in."""

    def absorb(self, snapshot: Snapshot, *, alive: bool) -> None:
        """Add what another process counted; of one that has ended only what stays true."""
        ...

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """See `gateway.listeners.http.Exposition`."""
        ...


class Answer(TypedDict):
    """What a worker says at a roll call."""

    worker: int
    pid: int
    readiness: list[tuple[str, bool, str]]
    metrics: Snapshot


def open_roll_call() -> CallSocket:
    """The socket to call over: abstract, so that no file is left behind; its name is a secret of this process' children."""
    caller = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    caller.bind(f"\0gateway-{os.getpid()}-{secrets.token_hex(16)}")
    caller.listen(64)
    return caller


class Member:
    """A worker's side.

    Args:
        name: the socket's, as `getsockname` gives it.
        worker: which one this is, from 0.
        metrics: what it has counted.
        readiness: see `HttpListener`.
    """

    def __init__(
        self, name: bytes, *, worker: int, metrics: Counted, readiness: Sequence[Callable[[], Readiness]]
    ) -> None:
        self._name = name
        self._worker = worker
        self._metrics = metrics
        self._readiness = tuple(readiness)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect, and answer from now on.

        Raises:
            OSError: there is nobody to answer to.
        """
        self._task = asyncio.create_task(self._serve_for_ever(*await self._connect()))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)  # noqa: FBT003 - the socket module's own way
            sock.connect(self._name)
        except OSError:
            sock.close()
            raise
        reader, writer = await asyncio.open_unix_connection(sock=sock)
        writer.write(self._answer())
        return reader, writer

    async def close(self) -> None:
        """Say for the last time what was counted."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _serve_for_ever(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer whoever calls; when that process is gone, the one that comes after it."""
        await self._serve(reader, writer)
        while True:
            await asyncio.sleep(CALL_EVERY_S)
            with suppress(OSError):
                await self._serve(*await self._connect())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.readline() == _CALL:
                writer.write(self._answer())
                await writer.drain()
        except _GONE:
            return
        finally:
            try:
                with suppress(*_GONE, TimeoutError):
                    writer.write(self._answer())
                    writer.close()
                    async with asyncio.timeout(ANSWER_S):  # nobody may be there to read it
                        await writer.wait_closed()
            finally:  # in a task that is being cancelled, Python 3.11.2 says CancelledError of a timeout
                writer.transport.abort()

    def _answer(self) -> bytes:
        answer: Answer = {
            "worker": self._worker,
            "pid": os.getpid(),
            "readiness": [(one.name, one.ok, one.detail) for one in (ask() for ask in self._readiness)],
            "metrics": self._metrics.snapshot(),
        }
        return json.dumps(answer, separators=(",", ":")).encode() + b"\n"


class _Link:
    """The caller's side of one worker's connection."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        self.answer: Answer | None = None
        self.fresh = asyncio.Event()


class RollCall:
    """Who calls the workers.

    Args:
        sock: from `open_roll_call`.
        make_sum: makes metrics with nothing in them, to add up in.
        own: what the calling process itself counts.
    """

    def __init__(
        self, sock: CallSocket, *, make_sum: Callable[[], Summed], own: Counted | None = None
    ) -> None:
        self._socket = sock
        self._own = own
        self._make_sum = make_sum
        self._links: set[_Link] = set()
        self._ended: Final = make_sum()
        self._server: asyncio.Server | None = None
        self._clock: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Take the workers' connections, and call them now and then."""
        self._server = await asyncio.start_unix_server(self._enter, sock=self._socket, limit=MAX_ANSWER_BYTES)
        self._clock = asyncio.create_task(self._call_for_ever())

    async def close(self) -> None:
        """Stop."""
        if self._clock is not None:
            self._clock.cancel()
            with suppress(asyncio.CancelledError):
                await self._clock
        if self._server is not None:
            self._server.close()
        for link in tuple(self._links):
            link.writer.close()

    async def refresh(self) -> None:
        """Call all workers, and wait a moment for their answers."""
        links = tuple(self._links)
        for link in links:
            link.fresh.clear()
            with suppress(*_GONE):  # its end is being seen to
                link.writer.write(_CALL)
        waiting = [asyncio.create_task(link.fresh.wait()) for link in links]
        if waiting:
            _, late = await asyncio.wait(waiting, timeout=ANSWER_S)
            for task in late:
                task.cancel()

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """All workers' metrics in one; `refresh` before it."""
        total = self._make_sum()
        total.absorb(self._ended.snapshot(), alive=False)
        if self._own is not None:
            total.absorb(self._own.snapshot(), alive=True)
        for link in self._links:
            if link.answer is not None:
                total.absorb(link.answer["metrics"], alive=True)
        return total.exposition(accept)

    def readiness(self) -> Readiness:
        """Whether mail should be sent here: one worker that is ready will do; it says what the others lack."""
        ready: list[str] = []
        missing: list[str] = []
        for answer in sorted(self._answers(), key=lambda one: (one["worker"], one["pid"])):
            faults = [f"{name}: {detail}" for name, ok, detail in answer["readiness"] if not ok]
            who = f"worker-{answer['worker']} (pid {answer['pid']})"
            if faults:
                missing.append(f"{who}: {', '.join(faults)}")
            else:
                ready.append(who)
        detail = "; ".join([f"{len(ready)} ready: {', '.join(ready)}", *missing])
        return Readiness("workers", bool(ready), detail)

    def workers(self) -> list[WorkerState]:
        """Each worker and how things stand with it; `refresh` before it."""
        return sorted(
            WorkerState(one["worker"], one["pid"], tuple(Readiness(*check) for check in one["readiness"]))
            for one in self._answers()
        )

    def _answers(self) -> list[Answer]:
        return [link.answer for link in self._links if link.answer is not None]

    async def _enter(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(writer)
        if not _is_own(writer.get_extra_info("socket")):
            writer.close()
            return
        self._links.add(link)
        try:
            while line := await reader.readline():
                link.answer = json.loads(line)
                link.fresh.set()
        except (OSError, ValueError) as error:  # killed within a line, or a line beyond all bounds
            _log.warning("worker.roll-call-broken", error=str(error)[:200])
        finally:
            self._links.discard(link)
            link.fresh.set()
            writer.close()
            if link.answer is not None:
                self._ended.absorb(link.answer["metrics"], alive=False)

    async def _call_for_ever(self) -> None:
        while True:
            await self.refresh()
            await asyncio.sleep(CALL_EVERY_S)


def _is_own(sock: socket.socket) -> bool:
    """Whether the other end is a process of our user's: the name of an abstract socket is all that keeps others out."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, user, _ = _CREDENTIALS.unpack(credentials)
    return bool(user == os.geteuid())
