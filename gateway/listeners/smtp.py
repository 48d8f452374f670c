"""An SMTP door's listener: its ports, its limits, its sessions, and how it stops.

`smtp_session` drives one client's connection, `downstream` those to the mail server; the protocol is in `gateway.smtp`.
"""

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, NamedTuple, Protocol

import structlog

from gateway.listeners.downstream import Borrower, DownstreamConnection, DownstreamPool, set_no_delay
from gateway.listeners.observer import SmtpObserver
from gateway.listeners.smtp_session import SmtpSession
from gateway.listeners.spool import Budget
from gateway.listeners.tls import make_server_context
from gateway.mail.envelope import IpAddress, Listener, Session
from gateway.smtp.client import SmtpClient
from gateway.smtp.dialog import Host
from gateway.smtp.effects import SessionEnd
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.proxy import ProxySession
from gateway.smtp.relay import LocalDomains
from gateway.smtp.settings import Networks, ProxySettings
from gateway.verdict import Judge, Stage

if TYPE_CHECKING:
    import ssl
    from typing import Literal

    from gateway.trace.tell import Tracer

TICK_S: Final = 1.0
BACKLOG: Final = 512

_log: Final = structlog.get_logger(__name__)


class Address(NamedTuple):
    """Where a listener is bound."""

    host: str
    port: int


class SmtpConfig(Protocol):
    """What every SMTP door's section has; `gateway.ops.config` says what each value means."""

    @property
    def listen(self) -> Sequence[tuple[str, int]]: ...  # noqa: D102 - the config documents it; likewise below
    @property
    def tls_certificate(self) -> Path | None: ...  # noqa: D102
    @property
    def tls_key(self) -> Path | None: ...  # noqa: D102
    @property
    def max_message_bytes(self) -> int: ...  # noqa: D102
    @property
    def max_recipients(self) -> int: ...  # noqa: D102
    @property
    def max_errors(self) -> int: ...  # noqa: D102
    @property
    def max_sessions(self) -> int: ...  # noqa: D102
    @property
    def max_sessions_per_client(self) -> int: ...  # noqa: D102
    @property
    def max_bytes_in_flight(self) -> int: ...  # noqa: D102
    @property
    def spool_threshold_bytes(self) -> int: ...  # noqa: D102
    @property
    def command_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def data_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def downstream_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def downstream_data_timeout_s(self) -> float: ...  # noqa: D102
    @property
    def bare_line_end(self) -> "Literal['reject', 'normalize']": ...  # noqa: D102


class InboundConfig(SmtpConfig, Protocol):
    """The `[inbound]` section, as far as it is used here."""

    @property
    def downstream(self) -> tuple[str, int]: ...  # noqa: D102
    @property
    def xclient(self) -> bool: ...  # noqa: D102
    @property
    def downstream_idle_connections(self) -> int: ...  # noqa: D102
    @property
    def proxy_protocol_from(self) -> Networks: ...  # noqa: D102
    @property
    def xclient_from(self) -> Networks: ...  # noqa: D102
    @property
    def trusted_networks(self) -> Networks: ...  # noqa: D102


class Pool(Protocol):
    """Where a door's sessions get their connections to the next mail server."""

    @property
    def capabilities(self) -> Capabilities | None:
        """What the next server offered last."""
        ...

    def lease(self, borrower: Borrower, session: Session, *, fresh: bool) -> DownstreamConnection | None:
        """An idle connection; None: one is being made."""
        ...

    def release(self, borrower: Borrower, connection: DownstreamConnection | None, *, reusable: bool) -> None:
        """Take it back, or stop making it."""
        ...

    def close_idle(self, now: float) -> None:
        """End those that nobody has wanted for a while; `now` is `time.monotonic()`."""
        ...

    def close(self) -> None:
        """End all that are idle; those in use end when they are given back."""
        ...


class SmtpServer:
    """An SMTP door: all its ports and all their sessions.

    Args:
        settings: the door's section of the config.
        proxy: the same, as the protocol needs it.
        pool: connections to the next mail server.
        judge: who decides.
        observer: who counts.
        asks: whether `judge` could refuse at this stage before the message (MAIL, RCPT); if not, no time is spent on it.

    Attributes:
        tracer: who keeps what becomes of each transaction; None: nobody.
        log: bound once; the module's own is put together anew for each line.
    """

    role: ClassVar[Listener] = Listener.INBOUND
    """Which door this is."""

    def __init__(
        self,
        settings: SmtpConfig,
        *,
        proxy: ProxySettings,
        pool: Pool,
        judge: Judge,
        observer: SmtpObserver,
        asks: Callable[[Stage], bool] = lambda _stage: True,
    ) -> None:
        self.settings: Final = settings
        self.proxy: Final = proxy
        self.pool: Final = pool
        self.judge: Final = judge
        self.observer: Final = observer
        self.asks: Final = asks
        self.budget: Final = Budget(settings.max_bytes_in_flight)
        self.tracer: Tracer | None = None
        self.log: Final = structlog.get_logger(__name__).bind()
        self.tls: ssl.SSLContext | None = None
        self._servers: list[asyncio.Server] = []
        self._sessions: set[SmtpSession] = set()
        self._per_client: dict[IpAddress, int] = {}
        self._clock: asyncio.TimerHandle | None = None
        self._empty = asyncio.Event()

    def make_core(self, host: Host, *, peer: IpAddress, identifier: str) -> ProxySession:
        """The protocol of one session."""
        return ProxySession(self.proxy, host, peer=peer, identifier=identifier)

    def make_driver(self) -> SmtpSession:
        """The sockets of one session."""
        return SmtpSession(self)

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, *, reuse_port: bool = False) -> None:
        """Bind the ports and serve.

        Args:
            reuse_port: other processes listen there, too; the kernel shares connections out between them.

        Raises:
            OSError: a port cannot be bound, or the certificate cannot be read.
        """
        self.reload_tls()
        loop = asyncio.get_running_loop()
        for host, port in self.settings.listen:
            server = await loop.create_server(
                self.make_driver, host, port, backlog=BACKLOG, reuse_port=reuse_port
            )
            for sock in server.sockets:
                set_no_delay(sock)  # what it accepts inherits it
            self._servers.append(server)
        self._clock = loop.call_later(TICK_S, self._tick)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """Where it is bound."""
        return tuple(Address(*sock.getsockname()[:2]) for server in self._servers for sock in server.sockets)

    def reload_tls(self) -> None:
        """Read certificate and key again; sessions that are open keep theirs.

        Raises:
            OSError: they cannot be read or do not fit; what was there before stays in force.
        """
        self.prepare_tls()()

    def prepare_tls(self) -> Callable[[], None]:
        """Read them; what comes back puts them in force.

        Raises:
            OSError: as above.
        """
        certificate, key = self.settings.tls_certificate, self.settings.tls_key
        context = make_server_context(certificate, key) if certificate and key else None

        def put_in_force() -> None:
            self.tls = context

        return put_in_force

    async def retire(self, deadline_s: float) -> None:
        """Take no new sessions; let those that are there go on until they leave, or the deadline. `drain` ends the rest."""
        self._stop_listening()
        if self._sessions:
            self._empty.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._empty.wait(), deadline_s)

    async def drain(self, deadline_s: float) -> None:
        """Take nothing new, finish the messages that are under way, end by the deadline (promise 9)."""
        self._stop_listening()
        for session in tuple(self._sessions):
            session.drain()
        if self._sessions:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), deadline_s)
            except TimeoutError:
                _log.warning("listener.drain-incomplete", sessions=len(self._sessions))
                for session in tuple(self._sessions):
                    session.abort()
        self.pool.close()
        self._stop_clock()

    def close(self) -> None:
        """End everything at once."""
        self._stop_listening()
        for session in tuple(self._sessions):
            session.abort()
            session.cut()
        self.pool.close()
        self._stop_clock()

    def _stop_listening(self) -> None:
        for server in self._servers:
            server.close()

    def _stop_clock(self) -> None:
        if self._clock:
            self._clock.cancel()
            self._clock = None

    def _tick(self) -> None:
        """One timer for all sessions: a command costs none of its own."""
        now = time.monotonic()
        for session in tuple(self._sessions):
            session.tick(now)
        self.pool.close_idle(now)
        self._clock = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    # ── its sessions ────────────────────────────────────────────────────────────────────────────────────────────────

    def next_identifier(self) -> str:
        """A session's id: unique, printable, of no meaning."""
        return os.urandom(6).hex()

    def has_place(self) -> bool:
        """Whether the session that has just been opened may stay."""
        return len(self._sessions) <= self.settings.max_sessions

    def opened(self, session: SmtpSession) -> None:
        """A client connected."""
        self._sessions.add(session)
        self.observer.session_opened(self.role)

    def closed(self, session: SmtpSession, end: SessionEnd) -> None:
        """A session is over."""
        if session in self._sessions:
            self._sessions.remove(session)
            self.observer.session_closed(self.role, end)
            if not self._sessions:
                self._empty.set()

    def enter(self, address: IpAddress) -> bool:
        """Count a session for its client; False where it has enough."""
        count = self._per_client.get(address, 0)
        if count >= self.settings.max_sessions_per_client:
            return False
        self._per_client[address] = count + 1
        return True

    def leave(self, address: IpAddress) -> None:
        """It is over."""
        count = self._per_client.get(address, 0) - 1
        if count > 0:
            self._per_client[address] = count
        else:
            self._per_client.pop(address, None)


class SmtpListener(SmtpServer):
    """The proxy in front of one mail server.

    Args:
        settings: the config's `[inbound]`.
        hostname: our name in the greeting and in Received.
        local_domains: whom strangers may write to; `.example.net` is all below it.
        judge, observer, asks: see `SmtpServer`.
    """

    def __init__(
        self,
        settings: InboundConfig,
        *,
        hostname: str,
        local_domains: Sequence[str],
        judge: Judge,
        observer: SmtpObserver,
        asks: Callable[[Stage], bool] = lambda _stage: True,
    ) -> None:
        super().__init__(
            settings,
            proxy=ProxySettings(
                role=self.role,
                hostname=hostname,
                local_domains=LocalDomains(local_domains),
                max_message_bytes=settings.max_message_bytes,
                max_recipients=settings.max_recipients,
                max_errors=settings.max_errors,
                normalize=settings.bare_line_end == "normalize",
                trusted_networks=settings.trusted_networks,
                proxy_protocol_from=settings.proxy_protocol_from,
                xclient_from=settings.xclient_from,
            ),
            pool=DownstreamPool(
                *settings.downstream,
                make_client=lambda: SmtpClient(hostname, xclient=settings.xclient),
                max_idle=settings.downstream_idle_connections,
            ),
            judge=judge,
            observer=observer,
            asks=asks,
        )
