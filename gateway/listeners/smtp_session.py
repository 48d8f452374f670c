"""One client's connection: carries out what its `ProxySession` asks for, and tells it what happens."""

import asyncio
import math
import socket
import time
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, ParamSpec, assert_never, cast

import structlog

from gateway.listeners.downstream import DownstreamConnection
from gateway.listeners.spool import MessageSpool
from gateway.mail.envelope import IpAddress, Tls, unmapped
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.client import DownstreamFailure, Step
from gateway.smtp.command import Verb
from gateway.smtp.dialog import Awaiting, LoginEnd
from gateway.smtp.effects import (
    Ask,
    Close,
    Deliver,
    Effect,
    Lease,
    Pause,
    Release,
    Screen,
    Seek,
    Send,
    SessionEnd,
    StartTls,
    Tell,
)
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.errors import LocalProtocolError
from gateway.smtp.proxy import ProxySession
from gateway.smtp.proxy_protocol import bytes_to_read, parse_proxy_header
from gateway.smtp.settings import is_within
from gateway.smtp.state import State
from gateway.smtp.transaction import Spool, Transaction
from gateway.trace.model import Attempt
from gateway.trace.tell import Story
from gateway.verdict import Answered, Disposition, Stage, Verdict

if TYPE_CHECKING:
    from gateway.listeners.smtp import SmtpServer

MAX_BUFFERED_BYTES: Final = 64 * 1024
"""Sent ahead by the client while a question is open; more stays in the kernel, and then at the client."""

BALANCER_TIMEOUT_S: Final = 10.0
TLS_TIMEOUT_S: Final = 30.0
CLOSE_TIMEOUT_S: Final = 10.0
"""For a client to take the last words; then the connection is cut."""

ROUTE_PATIENCE_S: Final = 180.0
"""The search for a way to a recipient has a limit of its own, below this."""

REST_AFTER_S: Final = 2.0
"""A client that is silent so long between two messages gives its connection downstream to others."""

OTHER_MECHANISM: Final = "other"
"""The metric label of mechanisms that are not relayed."""

MAX_TROUBLE_CHARACTERS: Final = 200

_P = ParamSpec("_P")

_log: Final = structlog.get_logger(__name__)


class SmtpSession(asyncio.Protocol):
    """The driver of one session: the only place where its sockets, tasks and clock are."""

    def __init__(self, listener: "SmtpServer") -> None:
        self._listener = listener
        self._transport: asyncio.Transport | None = None
        self._core: ProxySession | None = None
        self._downstream: DownstreamConnection | None = None
        self._effects: deque[Effect] = deque()
        self._is_performing = False
        self._task: asyncio.Task[None] | None = None
        self._paused: asyncio.TimerHandle | None = None
        self._early: bytes | None = None  # what TLS brought before we knew that its handshake was over
        self._is_paused = False
        self._is_choked = False
        self._end: SessionEnd | None = None
        self._admitted: IpAddress | None = None
        self._secured: IpAddress | None = None  # whose handshake came first
        self._identifier = listener.next_identifier()
        # Timing
        self._seen = -1
        self._since = time.monotonic()
        self._asked_at = 0.0
        self._answer_s = 0.0
        self._complete_at = 0.0
        # For the trace
        self._trouble: str | None = None

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected, or its handshake is done where TLS begins at once."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        if self._secured is not None:
            self._begin(self._secured, _tls_of(transport))
            return
        peer = _peer_address(transport.get_extra_info("peername"))
        self._listener.opened(self)
        if peer is None or not self._listener.has_place():
            if peer is not None:
                self._transport.write(replies.TOO_MANY_SESSIONS.to_bytes())
            self._close(SessionEnd.REFUSED)
            return
        self._begin(peer)

    def _begin(self, peer: IpAddress, tls: Tls | None = None) -> None:
        self._listener.log.debug("session.opened", session=self._identifier, client=peer)
        if tls is not None:
            self._listener.observer.tls_started(self._listener.role, tls)
        self._core = self._listener.make_core(self, peer=peer, identifier=self._identifier)
        self._feed(self._core.connected, tls)

    def data_received(self, data: bytes) -> None:
        """The client sent something."""
        if self._early is not None:
            self._early += data
        elif self._core:
            self._feed(self._core.received, data)

    def eof_received(self) -> bool | None:
        """The client will send no more: what it has not been answered yet it will not hear."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it is gone changes nothing
        """The client, or we, closed the connection."""
        self._transport = None
        if self._paused:
            self._paused.cancel()
        if self._task and self._core and self._core.awaiting is not Awaiting.DELIVERY:
            self._task.cancel()
        self._end = self._end or SessionEnd.CLIENT_CLOSED
        if self._core:
            self._feed(self._core.client_lost)
        if self._admitted is not None:
            self._listener.leave(self._admitted)
        self._listener.log.debug("session.closed", session=self._identifier, end=self._end)
        self._finish_if_done()

    def pause_writing(self) -> None:
        """The client does not read its replies: it gets no more until it does."""
        self._is_choked = True
        self._regulate()

    def resume_writing(self) -> None:
        """It reads again."""
        self._is_choked = False
        self._regulate()

    # ── TLS at once ─────────────────────────────────────────────────────────────────────────────────────────────────

    def secure(self, connection: socket.socket) -> None:
        """A client connected where TLS begins at once: the session is its owner's, and begins with the handshake."""
        self._listener.opened(self)
        self._start(self._secure(connection))

    async def _secure(self, connection: socket.socket) -> None:
        end: SessionEnd | None = SessionEnd.DRAINED  # where it is cancelled
        try:
            end = await self._handshake_at_once(connection)
        except Exception:  # noqa: BLE001 - a bug: a traceback, and this session only
            _log.exception("session.failed", session=self._identifier)
            end = SessionEnd.INTERNAL
        finally:
            if end is not None and self._core is None:
                connection.close()
                self._end = end
                if self._admitted is not None:
                    self._listener.leave(self._admitted)
                self._finish_if_done()

    async def _handshake_at_once(self, connection: socket.socket) -> SessionEnd | None:
        """Why there is no session; before the handshake nothing can be said."""
        try:
            peer = _peer_address(connection.getpeername())
            if peer is None or not self._listener.has_place():
                return SessionEnd.REFUSED
            client = await asyncio.wait_for(self._balanced(connection, peer), BALANCER_TIMEOUT_S)
        except ParseError:
            return SessionEnd.BAD_PROXY_HEADER
        except TimeoutError:
            return SessionEnd.TIMEOUT
        except OSError:
            return SessionEnd.CLIENT_CLOSED
        context = self._listener.tls
        if context is None or self.admit(client):
            return SessionEnd.REFUSED
        self._secured = client
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self, connection, ssl=context, ssl_handshake_timeout=TLS_TIMEOUT_S
            )
        except (OSError, TimeoutError) as error:
            _log.info("session.tls-failed", session=self._identifier, error=str(error)[:200])
            return SessionEnd.TLS_FAILED
        return None

    async def _balanced(self, connection: socket.socket, peer: IpAddress) -> IpAddress:
        """Who the client is, from its load balancer where it comes by one; not a byte of the handshake is read.

        Raises:
            ParseError: no PROXY header, or a bad one.
            OSError: the connection was closed.
        """
        if not is_within(peer, self._listener.proxy.proxy_protocol_from):
            return peer
        data = b""
        while True:
            more = await asyncio.get_running_loop().sock_recv(connection, bytes_to_read(data))
            if not more:
                raise ConnectionResetError("closed within the PROXY header")
            data += more
            if header := parse_proxy_header(data):
                return header.client or peer

    # ── effects ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _feed(self, happen: Callable[_P, list[Effect]], *args: _P.args, **kwargs: _P.kwargs) -> None:
        """Tell the core what happens, and do what it asks for; the one place where a bug ends."""
        try:
            effects = happen(*args, **kwargs)
            if self._is_performing:  # what is under way comes first
                self._effects += effects
                return
            self._is_performing = True
            try:
                for effect in effects:
                    self._perform(effect)
                while self._effects:
                    self._perform(self._effects.popleft())
            finally:
                self._is_performing = False
        except Exception:  # noqa: BLE001 - a bug: 451, a traceback, and this session only
            _log.exception("session.failed", session=self._identifier)
            self._give_up()
        self._regulate()

    def _give_up(self) -> None:
        self._effects.clear()
        if self._core:
            for effect in self._core.crashed():
                self._perform(effect)
        else:
            self._close(SessionEnd.INTERNAL)

    def _perform(self, effect: Effect) -> None:
        match effect:  # a message takes some of the first three
            case Send():
                if self._transport:
                    self._transport.write(effect.data)
            case Tell():
                self._asked_at = time.perf_counter()
                if self._downstream:
                    self._downstream.send(effect.data)
            case Ask():
                self._complete_at = time.perf_counter()
                self._start(self._ask(effect))
            case Screen():
                self._start(self._screen(effect))
            case StartTls():
                self._start_tls()
            case Close():
                self._close(effect.end)
            case _:
                self._perform_rest(effect)

    def _perform_rest(self, effect: Deliver | Lease | Release | Seek | Pause) -> None:
        match effect:
            case Deliver(blocks):
                self._asked_at = time.perf_counter()
                if self._downstream and self._core:
                    self._downstream.deliver(blocks, self._core.delivered)
            case Lease(fresh):
                self._lease(fresh=fresh)
            case Release(reusable):
                connection, self._downstream = self._downstream, None
                self._listener.pool.release(self, connection, reusable=reusable)
                self._finish_if_done()
            case Seek():
                self._seek(effect)
            case Pause(seconds):
                self._pause(seconds)
            case _:
                assert_never(effect)

    def _pause(self, seconds: float) -> None:
        core = self._core
        if core:
            self._paused = asyncio.get_running_loop().call_later(seconds, self._feed, core.pause_over)

    def _start(self, work: Coroutine[object, object, None]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)

    async def _screen(self, question: Screen) -> None:
        verdict: Verdict | None
        try:
            verdict = await self._listener.judge.screen(question.stage, question.envelope)
        except Exception:  # noqa: BLE001 - a bug in the judge
            _log.exception("judge.failed", id=question.envelope.id, stage=question.stage)
            verdict = _INTERNAL
        if self._core:
            self._feed(self._core.screened, verdict)

    async def _ask(self, question: Ask) -> None:
        try:
            verdict = await self._listener.judge.judge(question.envelope, question.message)
        except Exception:  # noqa: BLE001 - a bug in the judge
            _log.exception("judge.failed", id=question.envelope.id)
            verdict = _INTERNAL
        if self._core:
            self._feed(self._core.judged, verdict)

    def _lease(self, *, fresh: bool) -> None:
        core = self._core
        if core is None:
            return
        connection = self._listener.pool.lease(self, core.session, fresh=fresh)
        if connection:
            self._downstream = connection
            self._feed(lambda: core.leased(connection.client, reused=True))

    def _seek(self, effect: Seek) -> None:
        """The relay's; see there."""
        raise LocalProtocolError(f"nothing to look for: {effect}")

    def _start_tls(self) -> None:
        transport, context = self._transport, self._listener.tls
        if transport is None or context is None:
            self._close(SessionEnd.TLS_FAILED)
            return
        self._early = b""
        transport.pause_reading()
        self._start(self._handshake(transport))

    async def _handshake(self, transport: asyncio.Transport) -> None:
        context = self._listener.tls
        try:
            secured = (
                await asyncio.get_running_loop().start_tls(
                    transport,
                    self,
                    context,
                    server_side=True,
                    ssl_handshake_timeout=TLS_TIMEOUT_S,
                )
                if context
                else None
            )
        except (OSError, TimeoutError) as error:
            _log.info("session.tls-failed", session=self._identifier, error=str(error)[:200])
            secured = None
        early, self._early = self._early or b"", None
        if secured is None or self._core is None:
            self._end = SessionEnd.TLS_FAILED
            transport.abort()
            return
        self._transport = secured
        tls = _tls_of(secured)
        self._listener.observer.tls_started(self._listener.role, tls)
        self._feed(self._core.tls_started, tls)
        if early:
            self._feed(self._core.received, early)

    def _close(self, end: SessionEnd) -> None:
        self._end = self._end or end
        self._since = time.monotonic()
        self._close_transport()

    def _close_transport(self) -> None:
        # Once: asyncio's TLS transport of Python 3.11.2, closed twice, could not be cut any more.
        if self._transport and not self._transport.is_closing():
            self._transport.close()

    def _regulate(self) -> None:
        """Read from the client only as fast as its commands are answered and its replies are taken."""
        core, transport = self._core, self._transport
        if core is None:
            return
        wants_pause = self._is_choked or core.buffered >= MAX_BUFFERED_BYTES
        if (
            wants_pause == self._is_paused
            or transport is None
            or transport.is_closing()
            or self._early is not None
        ):
            return
        self._is_paused = wants_pause
        if wants_pause:
            transport.pause_reading()
        else:
            transport.resume_reading()

    def _finish_if_done(self) -> None:
        """The session ends when its client is gone and nothing is under way downstream."""
        if self._transport is None and self._downstream is None:
            self._listener.closed(self, self._end or SessionEnd.CLIENT_CLOSED)
            core, self._core = self._core, None
            if core:  # the two hold each other: its memory is wanted at once, not when the collector comes by
                core.let_go()

    # ── downstream (Borrower) ───────────────────────────────────────────────────────────────────────────────────────

    def downstream_connected(self, connection: DownstreamConnection) -> None:
        """A new connection stands."""
        self._downstream = connection
        if self._core:
            core = self._core
            self._feed(lambda: core.leased(connection.client, reused=False))

    def downstream_data(self, data: bytes) -> None:
        """Bytes from downstream."""
        if self._core:
            self._feed(self._core.downstream_received, data)

    def downstream_lost(self, failure: DownstreamFailure, detail: str) -> None:
        """It could not be had, or is lost."""
        if self._core:
            self._feed(self._core.downstream_failed, failure, detail)

    # ── the listener's clock ────────────────────────────────────────────────────────────────────────────────────────

    def tick(self, now: float) -> None:
        """Once a second: has whoever's turn it is been at it for too long?"""
        core = self._core
        if self._transport is not None and self._transport.is_closing():
            if now - self._since > CLOSE_TIMEOUT_S:
                self._transport.abort()
            return
        if core is None:
            return
        if core.progress != self._seen:
            self._seen, self._since = core.progress, now
            return
        silent_s = now - self._since
        if silent_s > self._patience_s(core):
            self._feed(core.timed_out)
        elif silent_s > REST_AFTER_S and self._downstream is not None:
            self._feed(core.rest)

    def _patience_s(self, core: ProxySession) -> float:
        settings = self._listener.settings
        match core.awaiting:
            case Awaiting.CLIENT if core.state is State.BALANCER:
                return BALANCER_TIMEOUT_S
            case Awaiting.CLIENT if core.is_receiving:
                return settings.data_timeout_s
            case Awaiting.CLIENT:
                return settings.command_timeout_s
            case Awaiting.DELIVERY:
                return settings.downstream_data_timeout_s
            case Awaiting.TURN | Awaiting.PENALTY:
                return math.inf  # the pause ends by itself
            case Awaiting.CAPABILITIES | Awaiting.AUTH | Awaiting.MAIL | Awaiting.RCPT | Awaiting.DATA:
                return settings.downstream_timeout_s
            case Awaiting.ROUTE:
                return ROUTE_PATIENCE_S
            case Awaiting.TLS:
                return TLS_TIMEOUT_S + CLOSE_TIMEOUT_S  # the handshake has its own
            case Awaiting.SCREEN_MAIL | Awaiting.SCREEN_RCPT | Awaiting.VERDICT:
                return settings.downstream_data_timeout_s  # the judge has its own, far below
            case _:
                assert_never(core.awaiting)

    def drain(self) -> None:
        """Begin nothing new."""
        if self._core:
            self._feed(self._core.drain)
        else:
            self._call_off()

    def abort(self) -> None:
        """End now."""
        if self._core:
            self._feed(self._core.abort)
        else:
            self._call_off()
        self._close_transport()

    def _call_off(self) -> None:
        """There is no session yet: no handshake is waited for."""
        if self._task:
            self._task.cancel()

    def cut(self) -> None:
        """End without another word."""
        if self._transport:
            self._transport.abort()

    # ── Host ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def now(self) -> datetime:
        """The time, with its zone."""
        return datetime.now(UTC)

    def admit(self, address: IpAddress) -> Reply | None:
        """Count the session for this client, once."""
        if self._admitted is not None:
            return None
        if not self._listener.enter(address):
            return replies.TOO_MANY_FROM_CLIENT
        self._admitted = address
        return None

    def capabilities(self) -> Capabilities | None:
        """What downstream offered last."""
        return self._listener.pool.capabilities

    def asks(self, stage: Stage) -> bool:
        """Whether the judge could refuse anything at this stage."""
        return self._listener.asks(stage)

    def has_room(self, size: int) -> bool:
        """Whether a message of this size could be kept now."""
        return self._listener.budget.has_room(size)

    def open_spool(self) -> Spool:
        """A place for one message."""
        return MessageSpool(self._listener.budget, threshold=self._listener.settings.spool_threshold_bytes)

    def starttls_ready(self) -> bool:
        """Whether there is a certificate."""
        return self._listener.tls is not None

    def command_answered(self, verb: Verb, code: int) -> None:
        """Count it."""
        self._listener.observer.command(self._listener.role, verb, code)

    def downstream_answered(self, step: Step, code: int) -> None:
        """Count it."""
        self._answer_s = time.perf_counter() - self._asked_at
        self._listener.observer.downstream_reply(step, code, self._answer_s)

    def downstream_failed(self, failure: DownstreamFailure, detail: str) -> None:
        """Count it, and tell the operator."""
        self._trouble = f"{failure}: {detail}"[:MAX_TROUBLE_CHARACTERS]
        self._listener.observer.downstream_failed(failure)
        _log.warning("downstream.failed", session=self._identifier, failure=failure, detail=detail[:200])

    def login_ended(self, login: LoginEnd) -> None:
        """Count it, and tell the operator who it was, and never how it was proven."""
        outcome, mechanism, who, reply = login
        self._listener.observer.login(self._listener.role, mechanism or OTHER_MECHANISM, outcome)
        client = self._core.session.client_ip if self._core else None
        _log.info(
            "session.auth",
            session=self._identifier,
            client=str(client),
            login=who,
            mechanism=mechanism,
            outcome=outcome,
            code=reply.code,
            text=reply.text[:200],
        )

    def recipient_refused(self, transaction: Transaction, reply: Reply) -> None:
        """The counters of commands say it."""

    def message_answered(self, transaction: Transaction, reply: Reply) -> None:
        """Count it, and tell the operator what became of it."""
        verdict = transaction.verdict
        size = transaction.content.size if transaction.content else 0
        self._listener.log.info(
            "message.answered",
            id=transaction.id,
            code=reply.code,
            enhanced=reply.enhanced,
            text=reply.text[:200],
            size=size,
            judged=verdict.disposition if verdict else None,
        )
        if verdict:
            answered = Answered(
                id=transaction.id,
                disposition=verdict.disposition,
                size=size,
                seconds=time.perf_counter() - self._complete_at,
                is_handed_on=reply.is_positive,
            )
            self._listener.observer.message(self._listener.role, answered)
        self._trace(transaction, reply, Stage.MESSAGE)

    def sender_refused(self, transaction: Transaction, reply: Reply) -> None:
        """A short trace: there will be no message."""
        self._trace(transaction, reply, Stage.MAIL)

    def transaction_dropped(self, transaction: Transaction) -> None:
        """Likewise, where it was for a recipient that was refused; who changed his mind leaves none."""
        refused = next((reply for _, reply in reversed(transaction.asked) if not reply.is_positive), None)
        if refused is not None:
            self._trace(transaction, refused, Stage.RCPT)

    def _trace(self, transaction: Transaction, reply: Reply, stage: Stage) -> None:
        trouble, self._trouble = self._trouble, None
        tracer = self._listener.tracer
        if tracer is None:
            return
        content = transaction.content
        tracer.tell(
            Story(
                envelope=transaction.envelope or transaction.envelope_for(()),
                stage=stage,
                received=transaction.began,
                reply=reply,
                verdict=transaction.verdict if stage is Stage.MESSAGE else transaction.screened,
                asked=transaction.asked,
                more_asked=transaction.more_asked,
                size=content.size if content is not None and stage is Stage.MESSAGE else None,
                heard=transaction.heard,
                heard_s=self._answer_s,
                downstream_failure=trouble,
                attempts=self._attempts(transaction),
            )
        )

    def _attempts(self, transaction: Transaction) -> Sequence[Attempt]:
        """The relay's; see there."""
        del transaction
        return ()


_INTERNAL: Final = Verdict(disposition=Disposition.DEFER, rule="gateway.internal", reply=replies.INTERNAL)


def _peer_address(name: Any) -> IpAddress | None:
    """The client's address from its socket's name; None where it is gone already."""
    try:
        return _read_address(name[0])
    except (TypeError, ValueError, IndexError):
        return None


@lru_cache(maxsize=4096)
def _read_address(text: str) -> IpAddress:
    return unmapped(ip_address(str(text).partition("%")[0]))


def _tls_of(transport: asyncio.BaseTransport) -> Tls:
    ssl_object = transport.get_extra_info("ssl_object")
    cipher = ssl_object.cipher()
    return Tls(version=ssl_object.version() or "unknown", cipher=cipher[0] if cipher else "unknown")
