"""The door that Postfix asks: many questions on each connection, answered in their order (socketmap_table(5)).

The protocol is in `gateway.postfix`. A question whose decision is kept costs no task and no timer; for any other there is one
look-up for all who ask, which goes on when the first of them has stopped waiting: their next question finds it done.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple, Protocol, cast

import structlog

from gateway.listeners.socket_path import SocketPath, bind_socket
from gateway.mail.errors import ParseError
from gateway.postfix.answer import (
    FAILED,
    Answer,
    Outcome,
    answer,
    answer_at_once,
    answer_for_host,
    problems,
    temporary,
    unreported_sessions,
    view,
)
from gateway.postfix.netstring import Decoder, encode
from gateway.postfix.question import MAX_QUESTION_BYTES, Kind, Question, parse_question
from gateway.tlspolicy.decide import override_for
from gateway.tlspolicy.model import Decision, TlsSession

IDLE_S: Final = 100.0
"""Postfix ends a connection that it has not used for 10 s, and after 100 s in any case."""

TICK_S: Final = 1.0
BACKLOG: Final = 512
MAX_PENDING: Final = 16
"""Questions of one connection that wait for an answer; Postfix has one. More are read when these are answered."""

MAX_SAID: Final = 10_000
"""Domains of which the last decision is remembered, to log a change."""

MAX_KEPT_BYTES: Final = 1_024
"""Longer answers are written anew each time: honest policies have a few hosts, and strangers choose how many there are."""

_log: Final = structlog.get_logger(__name__)


class Decides(Protocol):
    """Who knows what holds for a domain."""

    def kept(self, domain: str) -> Decision | None:
        """What is known without a look-up."""
        ...

    async def decide(self, domain: str) -> Decision:
        """What holds."""
        ...


class SocketmapObserver(Protocol):
    """Who counts. None of these may block or raise."""

    def tls_policy_answered(self, level: str, outcome: str) -> None:
        """A question was answered; `level` is a `TlsLevel`, or empty where there was no decision."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketmapOptions:
    """How to serve.

    Attributes:
        listen: host and port, or the path of a UNIX socket.
        socket_mode, socket_group: who may connect to the UNIX socket.
        tlsrpt: whether answers carry TLSRPT attributes.
        max_connections: of Postfix's processes.
        answer_timeout_s: then Postfix hears TEMP.
        overrides: the operator's words, for hosts in brackets; the decisions have those for domains.
    """

    listen: tuple[str, int] | Path
    socket_mode: int = 0o660
    socket_group: str | None = None
    tlsrpt: bool = False
    max_connections: int = 1_000
    answer_timeout_s: float = 20.0
    overrides: Mapping[str, str]


class _Said(NamedTuple):
    """A decision and its answers, by all of the question that they depend on."""

    decision: Decision
    answers: dict[tuple[bool, bool], Answer]


class SocketmapListener:
    """The listener: its socket and all its connections.

    Args:
        options: see there.
        decider: who decides.
        observer: who counts.
        record: takes what Postfix cannot report. May neither block nor raise.
    """

    def __init__(
        self,
        options: SocketmapOptions,
        *,
        decider: Decides,
        observer: SocketmapObserver,
        record: Callable[[TlsSession], None] = lambda _session: None,
    ) -> None:
        self._options: Final = options
        self._decider = decider
        self._observer = observer
        self._record = record
        self._server: asyncio.Server | None = None
        self._path: SocketPath | None = None
        self._connections: set[_Connection] = set()
        self._deciding: dict[str, asyncio.Task[Decision]] = {}
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._clock: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()
        self._is_full = False

    # Life

    async def start(self, *, shared: bool = False) -> None:
        """Listen.

        Args:
            shared: other processes listen at the same place: they share its port, or the last to come has its path.

        Raises:
            OSError: the place cannot be had.
        """
        loop = asyncio.get_running_loop()
        make = partial(_Connection, self)
        where = self._options.listen
        if isinstance(where, Path):
            mode, group = self._options.socket_mode, self._options.socket_group
            path = SocketPath(where, mode, group=group, take_over=shared)
            self._server = await loop.create_unix_server(make, sock=bind_socket(path), backlog=BACKLOG)
            try:
                path.publish()
            except OSError:
                self._server.close()
                path.abandon()
                raise
            self._path = path
        else:
            self._server = await loop.create_server(make, *where, backlog=BACKLOG, reuse_port=shared)
        self._clock = loop.call_later(TICK_S, self._tick)

    @property
    def addresses(self) -> list[tuple[str, int] | Path]:
        """Where it listens; nowhere before `start` and after its end."""
        if self._server is None or not self._server.is_serving():
            return []
        if self._path is not None:
            return [self._path.path]
        return [tuple(sock.getsockname()[:2]) for sock in self._server.sockets]

    async def retire(self, deadline_s: float) -> None:
        """Take no new connections; serve those that are there until they end, or the deadline."""
        self._stop_listening()
        await self._until_empty(deadline_s)

    async def drain(self, deadline_s: float) -> None:
        """Take no new questions, answer those that have come, end by the deadline."""
        self._stop_listening()
        for connection in tuple(self._connections):
            connection.drain()
        await self._until_empty(deadline_s)
        self.close()

    def close(self) -> None:
        """End everything at once; Postfix defers what it was about to ask."""
        self._stop_listening()
        for connection in tuple(self._connections):
            connection.abort()
        for task in self._deciding.values():
            task.cancel()
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
        if self._path is not None:
            self._path.remove()

    async def _until_empty(self, deadline_s: float) -> None:
        if self._connections:
            self._empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), deadline_s)

    def _tick(self) -> None:
        now = time.monotonic()
        for connection in tuple(self._connections):
            connection.tick(now)
        self._clock = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    # Its connections

    def opened(self, connection: "_Connection") -> bool:
        """A connection came; False where there are enough."""
        if len(self._connections) >= self._options.max_connections:
            if not self._is_full:
                self._is_full = True
                _log.warning(
                    "tls-policy.full",
                    connections=len(self._connections),
                    note="mail is deferred; raise [tls_policy] max_connections",
                )
            return False
        self._connections.add(connection)
        return True

    def closed(self, connection: "_Connection") -> None:
        """It is over."""
        if connection not in self._connections:
            return
        self._connections.remove(connection)
        self._is_full = False
        if not self._connections:
            self._empty.set()

    # Answers

    def answer_now(self, question: Question) -> Answer | None:
        """The answer, where it needs no look-up. Never raises."""
        try:
            return self._known(question)
        except Exception:  # noqa: BLE001 - here and in `answer_later` end this listener's bugs
            _log.exception("tls-policy.failed", domain=question.name)
            return self._count(FAILED)

    def _known(self, question: Question) -> Answer | None:
        match question.kind:
            case Kind.PARENT | Kind.OTHER:
                return self._count(answer_at_once(question) or FAILED)
            case Kind.HOST:
                override = override_for(question.name, self._options.overrides)
                return self._count(answer_for_host(question, override), override or "")
            case Kind.DOMAIN:
                decision = self._decider.kept(question.name)
                return None if decision is None else self._answer(question, decision, 0.0)

    async def answer_later(self, question: Question) -> Answer:
        """The answer, after a look-up. Never raises."""
        started = time.perf_counter()
        limit_s = self._options.answer_timeout_s
        task = self._deciding.get(question.name)
        if task is None:
            task = asyncio.create_task(self._decider.decide(question.name))
            self._deciding[question.name] = task
            task.add_done_callback(partial(self._decided, question.name))
        try:
            async with asyncio.timeout(limit_s):
                decision = await asyncio.shield(task)
            return self._answer(question, decision, time.perf_counter() - started)
        except TimeoutError:
            _log.warning("tls-policy.timeout", domain=question.name, after_s=limit_s)
            return self._count(temporary(f"{question.name}: no answer in {limit_s:g} s", Outcome.TIMEOUT))
        except Exception:  # noqa: BLE001 - as above
            _log.exception("tls-policy.failed", domain=question.name)
            return self._count(FAILED)

    def _decided(self, domain: str, task: asyncio.Task[Decision]) -> None:
        self._deciding.pop(domain, None)
        if not task.cancelled():
            task.exception()  # its askers have told of it

    def _answer(self, question: Question, decision: Decision, seconds: float) -> Answer:
        said = self._said.get(question.name)
        if said is None or said.decision is not decision:
            said = self._remember(question.name, decision, said)
        key = question.with_tlsrpt, question.smtp_port
        found = said.answers.get(key)
        if found is None:
            found = answer(question, decision, tlsrpt=self._options.tlsrpt)
            if len(found.text) <= MAX_KEPT_BYTES:
                said.answers[key] = found
        _log.debug(
            "tls-policy.answered",
            domain=question.name,
            tls=decision.level,
            sts=decision.sts.mode,
            override=decision.override,
            outcome=found.outcome,
            ms=round(seconds * 1_000, 1),
        )
        return self._count(found, decision.level)

    def _remember(self, domain: str, decision: Decision, before: _Said | None) -> _Said:
        """A new decision: once a minute for a domain at most, for so long it is kept."""
        self._tell(before and before.decision, decision)
        for session in unreported_sessions(decision, datetime.now(UTC)):
            self._record(session)
        said = self._said[domain] = _Said(decision, {})
        self._said.move_to_end(domain)
        if len(self._said) > MAX_SAID:
            self._said.popitem(last=False)
        return said

    def _tell(self, before: Decision | None, decision: Decision) -> None:
        """Log what is decided, when it is decided for the first time and when it changes."""
        now = view(decision)
        if before is None:
            _log.info("tls-policy.decided", **now)
        elif view(before) != now:
            _log.info("tls-policy.changed", before=before.level, problems_before=problems(before), **now)

    def _count(self, found: Answer, level: str = "") -> Answer:
        self._observer.tls_policy_answered(level, found.outcome)
        return found


class _Connection(asyncio.Protocol):
    """One connection of Postfix's."""

    def __init__(self, listener: SocketmapListener) -> None:
        self._listener = listener
        self._decoder = Decoder(MAX_QUESTION_BYTES)
        self._transport: asyncio.Transport | None = None
        self._pending: deque[asyncio.Task[Answer]] = deque()
        self._used = time.monotonic()
        self._is_draining = False
        self._is_reading = True
        self._is_writable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        if not self._listener.opened(self):
            self._transport.abort()

    def connection_lost(self, _error: Exception | None) -> None:
        self._transport = None
        for task in self._pending:
            task.cancel()
        self._pending.clear()
        self._listener.closed(self)

    def data_received(self, data: bytes) -> None:
        self._decoder.feed(data)
        self._work()

    def pause_writing(self) -> None:
        self._is_writable = False

    def resume_writing(self) -> None:
        self._is_writable = True
        self._work()

    def tick(self, now: float) -> None:
        """Once a second: end a connection that has asked nothing for long. A byte now and then is no question."""
        if not self._pending and now - self._used > IDLE_S:
            self.abort()

    def drain(self) -> None:
        """Answer what has come, then end."""
        self._is_draining = True
        self._work()

    def abort(self) -> None:
        """End it."""
        if self._transport is not None:
            self._transport.abort()

    def _work(self) -> None:
        """Answer as many questions as there are, and as their answers are taken."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        replies: list[bytes] = []
        try:
            while len(self._pending) < MAX_PENDING and self._is_writable:
                request = self._decoder.next()
                if request is None:
                    break
                self._used = time.monotonic()
                self._ask(parse_question(request), replies)
        except ParseError as error:
            _log.warning("tls-policy.protocol", reason=str(error))
            transport.writelines(replies)
            transport.abort() if not replies else transport.close()
            return
        if replies:
            transport.write(b"".join(replies))
        self._read(wanted=len(self._pending) < MAX_PENDING and self._is_writable)
        if self._is_draining and not self._pending:
            transport.close()

    def _ask(self, question: Question, replies: list[bytes]) -> None:
        found = self._listener.answer_now(question)
        if found is not None and not self._pending:
            replies.append(encode(found.text))
            return
        task = asyncio.ensure_future(_given(found) if found else self._listener.answer_later(question))
        self._pending.append(task)
        task.add_done_callback(self._answered)

    def _answered(self, _task: asyncio.Task[Answer]) -> None:
        """Send the answers that are there, in the order of the questions."""
        transport = self._transport
        if transport is None:
            return
        replies: list[bytes] = []
        while self._pending and self._pending[0].done():
            if self._pending[0].cancelled():  # the listener is being closed
                transport.abort()
                return
            replies.append(encode(self._pending.popleft().result().text))
        if replies:
            transport.write(b"".join(replies))
            self._used = time.monotonic()
            self._work()

    def _read(self, *, wanted: bool) -> None:
        if self._transport is not None and wanted != self._is_reading:
            self._is_reading = wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()


async def _given(found: Answer) -> Answer:
    return found
