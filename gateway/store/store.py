"""One store of one process: opened at the start, closed at the end, and never on the mail path between them."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Final, Self, TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from gateway.store.engine import explain, open_engine
from gateway.store.policies import StoredPolicies
from gateway.store.results import PolicyResults, read_domains, read_results, session_row
from gateway.store.tables import MTA_STS_POLICIES, TLS_RESULTS
from gateway.store.traces import DEFAULT_RING, Ring, TraceRing, Traces
from gateway.store.writer import DEFAULT_LIMITS, Retention, Writer, WriterLimits
from gateway.tlspolicy.model import TlsSession
from gateway.trace.addresses import AddressHider
from gateway.trace.batch import Batch

KEEP_RESULTS: Final = timedelta(days=8)  # RFC 8460 §4.1: a report is of yesterday; a week to look back
KEEP_EXPIRED_POLICIES: Final = timedelta(days=30)
READERS: Final = 2

_T = TypeVar("_T")


class Store:
    """Policies, results, traces, and a writer for rows of any table.

    Attributes:
        policies: the `PolicyShelf`.
        traces: where they are found.
        writer: takes rows; they are written soon, by a thread.
        name: the URL without its password.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        keep_results: timedelta = KEEP_RESULTS,
        ring: Ring = DEFAULT_RING,
        hider: AddressHider | None = None,
        limits: WriterLimits = DEFAULT_LIMITS,
    ) -> None:
        self._engine = engine
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="store-reader")
        self.name: Final = engine.url.render_as_string(hide_password=True)
        self.policies: Final = StoredPolicies(engine, self._readers)
        self.traces: Final = Traces(engine, hider)
        self._ring: Final = TraceRing(ring)
        self.writer: Final = Writer(
            engine,
            retention=(
                Retention(TLS_RESULTS, "at", keep_results),
                Retention(MTA_STS_POLICIES, "expires", KEEP_EXPIRED_POLICIES),
                self._ring,
            ),
            limits=limits,
        )

    @classmethod
    def open(
        cls,
        url: str,
        *,
        keep_results: timedelta = KEEP_RESULTS,
        ring: Ring = DEFAULT_RING,
        hider: AddressHider | None = None,
        limits: WriterLimits = DEFAULT_LIMITS,
    ) -> Self:
        """Connect and bring the tables up to date; blocks for some seconds at most.

        Args:
            url: of the database.
            keep_results: how long results of TLS sessions are kept.
            ring: how many traces are kept, and how long.
            hider: where their addresses are kept hashed.
            limits: of the writer.

        Raises:
            StoreError: it cannot be used; what happened, and the remedy.
        """
        return cls(open_engine(url), keep_results=keep_results, ring=ring, hider=hider, limits=limits)

    def record(self, session: TlsSession) -> None:
        """Take the result of a TLS session; never waits, never raises."""
        self.writer.add(TLS_RESULTS, session_row(session))

    def keep(self, batch: Batch) -> None:
        """Take traces, and those that will be added until they are written; never waits, never raises."""
        self.writer.put(self._ring, batch)

    async def read(self, work: Callable[[], _T]) -> _T:
        """Have `traces` looked through in a thread: `await store.read(lambda: store.traces.find(…))`.

        Raises:
            StoreError: it cannot be read now.
        """
        return await self._read(work)

    async def sessions(
        self, since: datetime, until: datetime, domain: str | None = None
    ) -> list[PolicyResults]:
        """Results at or after `since` and before `until`, of one domain or of all, by policy.

        Raises:
            StoreError: they cannot be read now.
        """
        return await self._read(lambda: read_results(self._engine, since, until, domain))

    async def domains(self, since: datetime, until: datetime) -> list[str]:
        """The policy domains that have results in that time.

        Raises:
            StoreError: they cannot be read now.
        """
        return await self._read(lambda: read_domains(self._engine, since, until))

    async def close(self, deadline_s: float) -> bool:
        """Write what waits, for at most so many seconds; False where rows were lost."""
        complete = await asyncio.to_thread(self.writer.close, deadline_s)
        self._readers.shutdown(wait=False, cancel_futures=True)
        self._engine.dispose()
        return complete

    async def _read(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._readers, work)
        except SQLAlchemyError as error:
            raise explain(error) from error
