"""The doors of a running gateway: each listener that the config has, built, opened, reloaded and closed in the same way."""

import asyncio
import errno
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from gateway.cli.errors import UsageFault
from gateway.engine import Engine
from gateway.listeners.http import HttpListener, Readiness
from gateway.listeners.milter import MilterListener, MilterUnavailableError
from gateway.listeners.smtp import SmtpListener
from gateway.ops.config import HostPort, HttpSettings, InboundSettings, MilterSettings, Settings
from gateway.ops.health import Health
from gateway.tlspolicy.decide import Decider

if TYPE_CHECKING:
    from gateway.store import Store

_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; `ss -ltnp` names it",
    errno.EACCES: "the gateway's user may not: ports below 1024 need CAP_NET_BIND_SERVICE",
    errno.EADDRNOTAVAIL: "this host has no such address",
    errno.ENOENT: "the directory does not exist; create it",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What the doors are built from; one of each in a process. `decider`: where mail leaves by us or by our word."""

    settings: Settings
    engine: Engine
    health: Health
    store: "Store | None"
    readiness: tuple[Callable[[], Readiness], ...]
    decider: Decider | None = None


async def _nothing(_deadline_s: float) -> None:
    return


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
        reload: reads its certificates again; OSError where they cannot be used, and the old ones stand.
    """

    name: str
    key: str
    where: str
    start: Callable[[], Awaitable[None]]
    addresses: Callable[[], Iterable[str]]
    close: Callable[[], Awaitable[None]]
    drain: Callable[[float], Awaitable[None]] = _nothing
    reload: Callable[[], None] = lambda: None

    async def open(self) -> None:
        """Open it.

        Raises:
            UsageFault: it cannot be opened, and what to do.
        """
        try:
            await self.start()
        except OSError as error:
            remedy = _REMEDIES.get(error.errno or 0)
            reason = error.strerror or str(error)
            said = f"{self.key} = {self.where}: {reason}"
            raise UsageFault(f"{said}; {remedy}" if remedy else said) from error


def build_doors(parts: Parts) -> Iterator[Door]:
    """A door for each listener's section; in the order in which they are to be opened, `http` last."""
    settings = parts.settings
    if settings.inbound is not None:
        yield inbound_door(parts, settings.inbound)
    if settings.milter is not None:
        yield milter_door(parts, settings.milter)
    if settings.http is not None:
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
    parts.health.bytes_in_flight_from(lambda: listener.budget.used)

    async def close() -> None:
        listener.close()

    return Door(
        name="inbound",
        key="[inbound] listen",
        where=", ".join(map(str, inbound.listen)),
        start=listener.start,
        addresses=lambda: (str(HostPort(*where)) for where in listener.addresses),
        close=close,
        drain=listener.drain,
        reload=listener.reload_tls,
    )


def milter_door(parts: Parts, milter: MilterSettings) -> Door:
    """The milter."""
    engine = parts.engine
    opened: list[MilterListener] = []

    async def start() -> None:
        try:
            listener = MilterListener(
                milter,
                judge=engine,
                observer=parts.health,
                loop=asyncio.get_running_loop(),
                asks=lambda stage: engine.rules.asks(stage),  # noqa: PLW0108 - a reload replaces `rules`
            )
            listener.bind()
        except MilterUnavailableError as error:
            raise UsageFault(f"[milter]: {error}") from error
        except OSError:
            raise
        except Exception as error:  # libmilter's own error class has no base but this
            raise UsageFault(
                f"[milter] listen = {milter.listen}: libmilter cannot open it: {error}"
            ) from error
        await listener.start()
        opened.append(listener)

    async def drain(deadline_s: float) -> None:
        for listener in opened:
            await listener.drain(deadline_s)

    async def close() -> None:
        for listener in opened:
            listener.close()

    return Door(
        name="milter",
        key="[milter] listen",
        where=milter.listen,
        start=start,
        addresses=lambda: (milter.listen for _ in opened),
        close=close,
        drain=drain,
    )


def http_door(parts: Parts, http: HttpSettings) -> Door:
    """Metrics and health."""
    listener = HttpListener(http, metrics=parts.health, readiness=parts.readiness)
    return Door(
        name="http",
        key="[http] listen",
        where=str(http.listen),
        start=listener.start,
        addresses=lambda: (str(HostPort(*where)) for where in listener.addresses),
        close=listener.close,
    )
