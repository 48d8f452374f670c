"""The doors of a running gateway: each listener that the config has, built, opened, reloaded and closed in the same way."""

import asyncio
import errno
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.cli.errors import UsageFault
from gateway.cli.pages import Pages
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneResolver
from gateway.engine import Engine
from gateway.listeners.http import HttpListener, Readiness
from gateway.listeners.libmilter import LibmilterListener, LibmilterSocket, MilterUnavailableError
from gateway.listeners.milter import MilterListener, MilterSocket
from gateway.listeners.policy_host import PolicyHostListener, PolicyPage
from gateway.listeners.relay import RelayListener, WayOut
from gateway.listeners.remote.tls import make_client_contexts
from gateway.listeners.smtp import SmtpListener, SmtpServer
from gateway.listeners.socketmap import SocketmapListener, SocketmapOptions
from gateway.listeners.submission import SubmissionListener
from gateway.listeners.tlsrpt import ReportSocket, TlsReportListener
from gateway.ops.config import (
    HostPort,
    HttpSettings,
    InboundSettings,
    MilterSettings,
    MtaStsSettings,
    OutboundSettings,
    Settings,
    SubmissionSettings,
    TlsPolicySettings,
)
from gateway.ops.health import Health
from gateway.pages.site import Process
from gateway.tlspolicy.decide import Decider
from gateway.tlspolicy.model import TlsSession
from gateway.trace.tell import Tracer
from gateway.verdict import Stage

if TYPE_CHECKING:
    from gateway.store import Store

_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; `ss -ltnp` names it",
    errno.EACCES: "the gateway's user may not: ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this host has no such address",
    errno.ENOENT: "the directory does not exist; create it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Which of several processes this is.

    Attributes:
        index: from 0; what only one of them may do, the first does.
        shares_ports: others listen at the same ports.
        milter_socket: opened before the fork; None: this process opens its own.
    """

    index: int = 0
    shares_ports: bool = False
    milter_socket: MilterSocket | LibmilterSocket | None = None


ONLY_WORKER: Final = Worker()


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the doors are built from; one of each in a process.

    Attributes:
        decider: where mail leaves by us or by our word.
        tracer: where traces are kept.
    """

    settings: Settings
    engine: Engine
    resolver: StubResolver | ZoneResolver
    health: Health
    store: "Store | None"
    readiness: tuple[Callable[[], Readiness], ...]
    decider: Decider | None = None
    tracer: Tracer | None = None
    worker: Worker = ONLY_WORKER


def _nobody_counts(_session: TlsSession) -> None:
    return


async def _nothing(_deadline_s: float) -> None:
    return


def _nothing_to_read() -> Callable[[], None]:
    return lambda: None


def open_milter_socket(milter: MilterSettings) -> MilterSocket | LibmilterSocket:
    """The milter's socket.

    Raises:
        UsageFault: it cannot be opened, and what to do.
    """
    try:
        return MilterSocket(milter) if milter.implementation == "own" else LibmilterSocket(milter)
    except MilterUnavailableError as error:
        raise UsageFault(f"[milter]: {error}") from error
    except OSError as error:
        raise cannot_open("[milter] listen", milter.listen, error) from error
    except Exception as error:  # libmilter's own error class has no base but this
        raise UsageFault(f"[milter] listen = {milter.listen}: libmilter cannot open it: {error}") from error


def cannot_open(key: str, where: str, error: OSError) -> UsageFault:
    """The fault for a place that cannot be listened at."""
    remedy = _REMEDIES.get(error.errno or 0)
    said = f"{key} = {where}: {error.strerror or error}"
    return UsageFault(f"{said}; {remedy}" if remedy else said)


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One listener.

    Attributes:
        name: its word in logs.
        key: the config key that says where it listens.
        where: that key's value.
        start: opens it; OSError or UsageFault where it cannot be had.
        addresses: where it is open, as `host:port` or `unix:/path`.
        close: ends everything that is still open.
        drain: takes nothing new and lets what is in flight end by the deadline, in seconds.
        retire: takes no new clients and lets those who are there go on until they leave, or the deadline.
        prepare: reads its certificates again, OSError where they cannot be used; what comes back puts them in force.
    """

    name: str
    key: str
    where: str
    start: Callable[[], Awaitable[None]]
    addresses: Callable[[], Iterable[str]]
    close: Callable[[], Awaitable[None]]
    drain: Callable[[float], Awaitable[None]] = _nothing
    retire: Callable[[float], Awaitable[None]] = _nothing
    prepare: Callable[[], Callable[[], None]] = _nothing_to_read

    async def open(self) -> None:
        """Open it.

        Raises:
            UsageFault: it cannot be opened, and what to do.
        """
        try:
            await self.start()
        except OSError as error:
            raise cannot_open(self.key, self.where, error) from error


def build_doors(parts: Parts) -> Iterator[Door]:
    """A door for each listener's section; in the order in which they are to be opened, `http` last."""
    settings = parts.settings
    if settings.inbound is not None:
        yield inbound_door(parts, settings.inbound)
    if settings.submission is not None and parts.worker.index == 0:  # guesses are counted in one place
        yield submission_door(parts, settings.submission)
    if settings.outbound is not None:
        yield outbound_door(parts, settings.outbound)
    if settings.milter is not None:
        yield milter_door(parts, settings.milter)
    if settings.mta_sts is not None and settings.mta_sts.listen:
        yield policy_host_door(parts, settings.mta_sts)
    if settings.tls_policy is not None and parts.decider is not None:
        yield from tls_policy_doors(parts, settings.tls_policy, parts.decider)
    if settings.http is not None and not parts.worker.shares_ports:  # else one process serves it for all
        yield http_door(parts, settings.http)


def inbound_door(parts: Parts, inbound: InboundSettings) -> Door:
    """The SMTP proxy in front of the mail server."""
    engine = parts.engine
    listener = SmtpListener(
        inbound,
        hostname=parts.settings.hostname,
        local_domains=parts.settings.local_domains,
        judge=engine,
        observer=parts.health,
        asks=lambda stage: engine.rules.asks(stage),  # noqa: PLW0108 - a reload replaces `rules`
    )
    return _smtp_door(parts, listener, "inbound", inbound.listen)


def submission_door(parts: Parts, submission: SubmissionSettings) -> Door:
    """Our own users' mail programs."""
    engine = parts.engine
    listener = SubmissionListener(
        submission,
        hostname=parts.settings.hostname,
        judge=engine,
        observer=parts.health,
        asks=lambda stage: stage is Stage.MAIL or engine.rules.asks(stage),
    )
    return _smtp_door(parts, listener, "submission", (*submission.listen, *submission.listen_tls))


def outbound_door(parts: Parts, outbound: OutboundSettings) -> Door:
    """The relay: our mail server hands in what is to leave."""
    engine, decider = parts.engine, parts.decider
    if decider is None:
        raise AssertionError("a relay, and nobody who decides")
    listener = RelayListener(
        outbound,
        hostname=parts.settings.hostname,
        way_out=WayOut(
            decider=decider,
            resolver=parts.resolver,
            contexts=make_client_contexts(parts.settings.outbound_tls.ca_file),
            report=_nobody_counts if parts.store is None else parts.store.record,
        ),
        judge=engine,
        observer=parts.health,
        asks=lambda stage: engine.rules.asks(stage),  # noqa: PLW0108 - a reload replaces `rules`
    )

    def prepare() -> Callable[[], None]:
        put_in_force = listener.prepare_tls()
        contexts = make_client_contexts(parts.settings.outbound_tls.ca_file)

        def both() -> None:
            put_in_force()
            listener.trust(contexts)

        return both

    return replace(_smtp_door(parts, listener, "outbound", outbound.listen), prepare=prepare)


def _smtp_door(parts: Parts, listener: SmtpServer, name: str, listen: Iterable[HostPort]) -> Door:
    listener.tracer = parts.tracer
    parts.health.bytes_in_flight_from(lambda: listener.budget.used)

    async def close() -> None:
        listener.close()

    return Door(
        name=name,
        key=f"[{name}] listen",
        where=", ".join(map(str, listen)),
        start=lambda: listener.start(reuse_port=parts.worker.shares_ports),
        addresses=lambda: (str(HostPort(*where)) for where in listener.addresses),
        close=close,
        drain=listener.drain,
        retire=listener.retire,
        prepare=listener.prepare_tls,
    )


async def _serve_milter(
    parts: Parts, milter: MilterSettings, sock: MilterSocket | LibmilterSocket
) -> MilterListener | LibmilterListener:
    engine = parts.engine

    def asks(stage: Stage) -> bool:
        return engine.rules.asks(stage)  # a reload replaces `rules`

    if isinstance(sock, MilterSocket):
        listener = MilterListener(milter, sock=sock, judge=engine, observer=parts.health, asks=asks)
        listener.trace_to(parts.tracer)
        await listener.start(worker=parts.worker.index)
        return listener
    loop = asyncio.get_running_loop()
    by_library = LibmilterListener(
        milter, sock=sock, judge=engine, observer=parts.health, loop=loop, asks=asks
    )
    by_library.trace_to(parts.tracer)
    await by_library.start(worker=parts.worker.index)
    return by_library


def milter_door(parts: Parts, milter: MilterSettings) -> Door:
    """The milter."""
    worker = parts.worker
    opened: list[MilterListener | LibmilterListener] = []
    own: list[MilterSocket | LibmilterSocket] = []

    async def start() -> None:
        sock = worker.milter_socket
        if sock is None:
            sock = open_milter_socket(milter)
            own.append(sock)
        opened.append(await _serve_milter(parts, milter, sock))

    async def retire(deadline_s: float) -> None:
        for listener in opened:
            if isinstance(listener, MilterListener):
                await listener.retire(deadline_s)

    async def drain(deadline_s: float) -> None:
        for listener in opened:
            await listener.drain(deadline_s)

    async def close() -> None:
        for sock in own:
            sock.remove()

    return Door(
        name="milter",
        key="[milter] listen",
        where=milter.listen,
        start=start,
        addresses=lambda: (milter.listen for _ in opened),
        close=close,
        retire=retire,
        drain=drain,
    )


def policy_host_door(parts: Parts, mta_sts: MtaStsSettings) -> Door:
    """The HTTPS server of our own MTA-STS policy."""
    (page,) = policy_pages(parts.settings)
    listener = PolicyHostListener(mta_sts, page)

    async def finish(_deadline_s: float) -> None:
        await listener.close()

    return Door(
        name="policy-host",
        key="[mta_sts] listen",
        where=", ".join(map(str, mta_sts.listen or ())),
        start=lambda: listener.start(reuse_port=parts.worker.shares_ports),
        addresses=lambda: (str(HostPort(*where)) for where in listener.addresses),
        close=listener.close,
        drain=finish,
        retire=finish,
        prepare=listener.prepare_tls,
    )


def policy_pages(settings: Settings) -> tuple[PolicyPage, ...]:
    """The page of our MTA-STS policy, where there is one."""
    mta_sts = settings.mta_sts
    return () if mta_sts is None else (PolicyPage(mta_sts.policy, settings.local_domains),)


def tls_policy_doors(parts: Parts, section: TlsPolicySettings, decider: Decider) -> Iterator[Door]:
    """What Postfix asks about outbound TLS, and where it tells what became of it."""
    worker = parts.worker
    where = section.listen
    options = SocketmapOptions(
        listen=socket_path(where) if isinstance(where, str) else where,
        socket_mode=section.socket_mode,
        socket_group=section.socket_group,
        tlsrpt=section.tlsrpt,
        max_connections=section.max_connections,
        answer_timeout_s=section.answer_timeout_s,
        overrides=decider.overrides,
    )
    # A path belongs to one process; a port to all.
    if worker.index == 0 or not isinstance(options.listen, Path):
        yield _socketmap_door(parts, options, decider)
    if worker.index == 0 and section.tlsrpt_socket is not None and parts.store is not None:
        yield _tlsrpt_door(parts, section, parts.store)


def _socketmap_door(parts: Parts, options: SocketmapOptions, decider: Decider) -> Door:
    listener = SocketmapListener(
        options,
        decider=decider,
        observer=parts.health,
        record=(lambda _session: None) if parts.store is None else parts.store.record,
    )

    async def close() -> None:
        listener.close()

    return Door(
        name="tls-policy",
        key="[tls_policy] listen",
        where=shown_place(options.listen),
        start=lambda: listener.start(shared=parts.worker.shares_ports),
        addresses=lambda: map(shown_place, listener.addresses),
        close=close,
        drain=listener.drain,
        retire=listener.retire,
    )


def _tlsrpt_door(parts: Parts, section: TlsPolicySettings, store: "Store") -> Door:
    where = ReportSocket(
        path=socket_path(section.tlsrpt_socket or ""),
        mode=section.socket_mode,
        group=section.socket_group,
    )
    listener = TlsReportListener(where, record=store.record, observer=parts.health)

    async def close() -> None:
        listener.close()

    return Door(
        name="tlsrpt",
        key="[tls_policy] tlsrpt_socket",
        where=shown_place(where.path),
        start=lambda: listener.start(shared=parts.worker.shares_ports),
        addresses=lambda: map(shown_place, listener.addresses),
        close=close,
    )


def socket_path(where: str) -> Path:
    """The path in `unix:/path`."""
    return Path(where.removeprefix("unix:"))


def shown_place(where: tuple[str, int] | Path) -> str:
    """`host:port` or `unix:/path`."""
    return f"unix:{where}" if isinstance(where, Path) else str(HostPort(*where))


def http_door(parts: Parts, http: HttpSettings) -> Door:
    """Metrics, health and the pages."""

    def here() -> tuple[Process, ...]:
        return (Process(name="gateway", pid=os.getpid(), checks=tuple(ask() for ask in parts.readiness)),)

    shown = Pages(parts.settings, http, parts.resolver, processes=here) if http.pages else None
    listener = HttpListener(
        http,
        metrics=parts.health,
        readiness=parts.readiness,
        pages=(*policy_pages(parts.settings), *([shown.site] if shown else ())),
    )

    async def close() -> None:
        await listener.close()
        if shown is not None:
            await shown.close()

    return Door(
        name="http",
        key="[http] listen",
        where=str(http.listen),
        start=listener.start,
        addresses=lambda: (str(HostPort(*where)) for where in listener.addresses),
        close=close,
    )
