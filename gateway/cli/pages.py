"""The pages of a running gateway: from its settings to a `Site`, in the one process or in the one that serves http for all."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from gateway.cli.errors import UsageFault
from gateway.cli.posture import build_posture, tools_for
from gateway.cli.wiring import build_hider, policy_fetcher
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneResolver
from gateway.doctor.examine import examine
from gateway.doctor.report import Report
from gateway.ops.config import HttpSettings, Settings
from gateway.ops.config.files import load_token
from gateway.pages import Access, Site, Sources
from gateway.pages.examinations import Examinations
from gateway.pages.site import Finder, Process
from gateway.store.engine import open_to_read
from gateway.store.traces import Traces
from gateway.trace.addresses import AddressHider
from gateway.trace.line import TraceLine
from gateway.trace.model import Trace
from gateway.trace.search import EVERYTHING, TraceFilter
from gateway.trace.tally import Tally

_NO_STORE: Final = 'There is no [store] in the config. Add one: [store] url = "sqlite:////var/lib/gateway/gateway.db", and restart.'
_NOTHING_KEPT: Final = (
    "[trace] keep is 0 in the config. Give it a number of messages, such as 100_000, and restart."
)


class Pages:
    """A site and what it holds open.

    Args:
        settings: of the gateway; `http`: their section that the site is for.
        resolver: the doctor's; the caller closes it.
        processes: see `Sources`; likewise `refresh`.
    """

    def __init__(
        self,
        settings: Settings,
        http: HttpSettings,
        resolver: StubResolver | ZoneResolver,
        *,
        processes: Callable[[], Sequence[Process]],
        refresh: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._fetcher = policy_fetcher(settings.outbound_tls, resolver)
        self._traces = _open_traces(settings)
        tools = tools_for(settings, resolver, self._fetcher)

        async def look_at(domain: str) -> Report:
            return await examine(domain, tools(domain))

        self._doctor = Examinations(look_at, build_posture(settings, resolver, self._fetcher).look)
        sources = Sources(
            traces=self._traces,
            why_none=_NO_STORE if settings.store is None else _NOTHING_KEPT,
            processes=processes,
            refresh=refresh,
            doctor=self._doctor,
        )
        self.site: Final = Site(access_of(http), sources, name=settings.authserv_id)

    async def close(self) -> None:
        """Close it all."""
        await self._doctor.close()
        await self._fetcher.aclose()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)


def access_of(http: HttpSettings) -> Access:
    """Who may see them.

    Raises:
        UsageFault: the token's file cannot be read; `gateway.ops.config.load` has looked at it before.
    """
    token = http.token
    if http.token_file is not None:
        try:
            token = load_token(http.token_file)
        except (OSError, ValueError) as error:
            raise UsageFault(f"[http] token_file = {http.token_file}: {error}") from error
    return Access(http.listen.host, token)


def _open_traces(settings: Settings) -> "LateTraces | None":
    if settings.store is None or not settings.trace.keep:
        return None
    return LateTraces(settings.store.url, build_hider(settings.trace))


class LateTraces(Finder):
    """The traces of a store that is opened, for reading only, when it is first looked at: it may be made after us."""

    def __init__(self, url: str, hider: AddressHider | None) -> None:
        self._url = url
        self._hider = hider
        self._lock = threading.Lock()
        self._opened: Traces | None = None
        self._dispose: Callable[[], Any] = lambda: None

    def find(
        self, wanted: TraceFilter = EVERYTHING, *, before: int | None = None, limit: int = 50
    ) -> list[TraceLine]:
        """See `Traces.find`; likewise the others."""
        return self._traces().find(wanted, before=before, limit=limit)

    def after(self, key: int, wanted: TraceFilter = EVERYTHING, *, limit: int = 50) -> list[TraceLine]:
        """See `Traces.after`."""
        return self._traces().after(key, wanted, limit=limit)

    def last_key(self) -> int:
        """See `Traces.last_key`."""
        return self._traces().last_key()

    def tally(self, now: datetime, span: timedelta) -> Tally:
        """See `Traces.tally`."""
        return self._traces().tally(now, span)

    def get_by_id(self, identifier: str) -> Trace | None:
        """See `Traces.get_by_id`."""
        return self._traces().get_by_id(identifier)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._dispose()

    def _traces(self) -> Traces:
        with self._lock:
            if self._opened is None:
                engine = open_to_read(self._url)
                self._opened, self._dispose = Traces(engine, self._hider), engine.dispose
            return self._opened
