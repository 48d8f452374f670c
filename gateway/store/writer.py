"""Rows on their way to the database, by a thread of their own: who adds one never waits for a disk or a network.

What waits is bounded. While the database is down or behind, the oldest is dropped and counted: reports lose a few
sessions, mail loses nothing. After a connection that broke in the middle of a commit, rows may come to stand twice.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Final, NamedTuple, Protocol, cast

import structlog
from sqlalchemy import Connection, Engine, Table, delete, insert, select
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, NotSupportedError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from gateway.store.engine import explain

_log: Final = structlog.get_logger(__name__)

Row = Mapping[str, object]
_ROW_FAULTS: Final = (DataError, IntegrityError, NotSupportedError, ProgrammingError)
_CLEANING_PAUSE_S: Final = 0.05
_WRITTEN: Final = "written"
_DROPPED: Final = "dropped"


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterLimits:
    """How much waits, and for how long.

    Attributes:
        max_rows: rows that may wait; then the oldest is dropped for each new one.
        max_items: likewise the items of sinks, apart from them: traces must not push out what reports are made from.
        batch_rows, batch_items: so many of both in one transaction.
        gather_s: how long a row or item may wait for company.
        retry_s, max_retry_s: the first and the longest pause after a failure.
        clean_every_s: how often old rows are deleted, `clean_rows` in one transaction.
    """

    max_rows: int = 20_000
    max_items: int = 160
    batch_rows: int = 500
    batch_items: int = 32
    gather_s: float = 1.0
    retry_s: float = 0.5
    max_retry_s: float = 30.0
    clean_every_s: float = 600.0
    clean_rows: int = 1_000


class Sink(Protocol):
    """Who knows better than `INSERT` how its items are written, each of which stands for several rows."""

    @property
    def name(self) -> str:
        """For the log."""
        ...

    def write(self, connection: Connection, items: Sequence[object]) -> None:
        """Write them, within a transaction."""
        ...


class Cleaned(Protocol):
    """What old rows are deleted from."""

    def clean(self, connection: Connection, rows: int) -> bool:
        """Delete some so many, and say whether there may be more."""
        ...


@dataclass(frozen=True, slots=True)
class Retention:
    """Rows of `table` whose `moment` is longer ago than `keep` go."""

    table: Table
    moment: str
    keep: timedelta

    def clean(self, connection: Connection, rows: int) -> bool:
        """See `Cleaned`."""
        (key,) = self.table.primary_key.columns
        too_old = self.table.c[self.moment] < datetime.now(UTC) - self.keep
        some = select(key).where(too_old).limit(rows)
        return connection.execute(delete(self.table).where(key.in_(some))).rowcount == rows


_Entry = tuple[Table | Sink, object]


def _rows_in(entry: _Entry) -> int:
    sink, item = entry
    return 1 if isinstance(sink, Table) else len(cast("Sized", item))


DEFAULT_LIMITS: Final = WriterLimits()


class WriterCounts(NamedTuple):
    """How the writer does: rows waiting now, and since the start rows written, rows dropped, failed attempts."""

    waiting: int
    written: int
    dropped: int
    failures: int


class Writer:
    """One thread that writes; it begins with the first row. Any thread may call.

    Args:
        engine: the database.
        retention: what is deleted by age.
        limits: see there.
    """

    def __init__(
        self, engine: Engine, *, retention: Sequence[Cleaned] = (), limits: WriterLimits = DEFAULT_LIMITS
    ) -> None:
        self._engine = engine
        self._retention = tuple(retention)
        self._limits = limits
        self._rows: deque[_Entry] = deque()
        self._items: deque[_Entry] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._ends: float | None = None
        self._in_work: Sequence[_Entry] = ()
        self._failures = 0
        self._ended: Counter[tuple[str, str]] = Counter()
        self._down: str | None = None
        self._clean_at = 0.0

    # From outside

    def add(self, table: Table, row: Row) -> None:
        """Take a row; never blocks, never raises. It is written soon, or dropped and counted.

        Rows of one table have the same keys.
        """
        with self._changed:
            self._append(self._rows, self._limits.max_rows, (table, row))

    def put(self, sink: Sink, item: Sized) -> None:
        """Take an item as `add` takes a row; its length is the number of rows that it is counted as."""
        with self._changed:
            self._append(self._items, self._limits.max_items, (sink, item))

    def _append(self, queue: deque[_Entry], limit: int, entry: _Entry) -> None:
        if self._ends is not None:
            self._drop(entry)
            return
        if len(queue) >= limit:
            self._drop(queue.popleft())
        queue.append(entry)
        if len(queue) == 1 or self._is_full():
            self._changed.notify()
        if self._thread is None:
            self.start()

    def _is_full(self) -> bool:
        """Whether there is enough for a transaction."""
        return len(self._rows) >= self._limits.batch_rows or len(self._items) >= self._limits.batch_items

    def start(self) -> None:
        """Begin without waiting for a first row, so that old ones are deleted."""
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="store-writer", daemon=True)
                self._thread.start()

    @property
    def counts(self) -> WriterCounts:
        """How it does."""
        with self._changed:
            return WriterCounts(
                waiting=self._waiting(),
                written=self._total(_WRITTEN),
                dropped=self._total(_DROPPED),
                failures=self._failures,
            )

    def _waiting(self) -> int:
        return sum(map(_rows_in, (*self._rows, *self._items, *self._in_work)))

    def _total(self, outcome: str) -> int:
        return sum(count for (_, what), count in self._ended.items() if what == outcome)

    @property
    def ended(self) -> dict[tuple[str, str], int]:
        """Rows by their table or sink and what became of them: `written` or `dropped`."""
        with self._changed:
            return dict(self._ended)

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written now; None where all is well."""
        return self._down

    def close(self, deadline_s: float) -> bool:
        """Write what waits, for at most so many seconds; False where rows were left, which are then counted as dropped."""
        with self._changed:
            self._ends = time.monotonic() + deadline_s
            self._changed.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(deadline_s + 0.1)
        with self._changed:
            left = [*self._in_work, *self._rows, *self._items]
            self._rows.clear()
            self._items.clear()
            self._in_work = ()
            for entry in left:
                self._drop(entry)
        if left:
            _log.warning(
                "store.rows-lost", rows=sum(map(_rows_in, left)), reason=self._down or "not written in time"
            )
        return not left

    # The thread

    def _run(self) -> None:
        retry_s = self._limits.retry_s
        while True:
            batch = self._next_batch()
            if not batch and self._ends is not None:
                return
            try:
                if batch:
                    self._write(batch)
                elif time.monotonic() >= self._clean_at:
                    self._clean()
                else:
                    continue
            except (DBAPIError, PoolTimeoutError) as error:
                if not self._wait_out(error, retry_s):
                    return
                retry_s = min(retry_s * 2, self._limits.max_retry_s)
                continue
            retry_s = self._limits.retry_s
            self._is_up()

    def _next_batch(self) -> list[_Entry]:
        """The next rows; none where it is time to clean, or where all is written and we are closing."""
        limits = self._limits
        with self._changed:
            until_clean_s = max(0.0, self._clean_at - time.monotonic())
            self._changed.wait_for(lambda: self._rows or self._items or self._ends is not None, until_clean_s)
            if self._rows or self._items:
                self._changed.wait_for(lambda: self._is_full() or self._ends is not None, limits.gather_s)
            batch = [
                queue.popleft()
                for queue, size in ((self._rows, limits.batch_rows), (self._items, limits.batch_items))
                for _ in range(min(len(queue), size))
            ]
            self._in_work = batch
            return batch

    def _write(self, batch: Sequence[_Entry]) -> None:
        """One transaction; where a row spoils it, one for each row.

        Raises:
            DBAPIError, PoolTimeoutError: the database cannot be used now; what is left `_in_work` is not written.
        """
        try:
            self._insert(batch)
        except Exception as error:
            if _is_the_databases(error):
                raise
            self._write_singly(batch)
        else:
            self._count(batch, _WRITTEN)

    def _write_singly(self, batch: Sequence[_Entry]) -> None:
        refused: list[tuple[str, Exception]] = []
        try:
            for one in batch:
                try:
                    self._insert([one])
                except Exception as error:
                    if _is_the_databases(error):
                        raise
                    refused.append((one[0].name, error))
                    self._count([one], _DROPPED)
                else:
                    self._count([one], _WRITTEN)
        finally:
            if refused:
                table, first = refused[0]
                _log.error("store.rows-refused", table=table, rows=len(refused), exc_info=first)

    def _insert(self, batch: Sequence[_Entry]) -> None:
        with self._engine.begin() as connection:
            for sink, items in _by_sink(batch):
                if isinstance(sink, Table):
                    connection.execute(insert(sink), [dict(cast("Row", row)) for row in items])
                else:
                    sink.write(connection, items)

    def _count(self, batch: Sequence[_Entry], outcome: str) -> None:
        with self._changed:
            for entry in batch:
                self._ended[entry[0].name, outcome] += _rows_in(entry)
            self._in_work = self._in_work[len(batch) :]

    def _drop(self, entry: _Entry) -> None:
        self._ended[entry[0].name, _DROPPED] += _rows_in(entry)

    def _wait_out(self, error: Exception, pause_s: float) -> bool:
        """Put the rows back and wait; False where there is no time left to try again."""
        reason = str(explain(error))
        with self._changed:
            self._failures += 1
            self._put_back()
            waiting = self._waiting()
            is_news, self._down = self._down is None, reason
            self._clean_at = max(self._clean_at, time.monotonic() + pause_s)
        if is_news:
            _log.warning(
                "store.down", reason=reason, waiting=waiting, note="mail goes on; rows wait in memory"
            )
        with self._changed:
            if self._ends is None:
                self._changed.wait_for(lambda: self._ends is not None, pause_s)
            if self._ends is None:
                return True
            left_s = self._ends - time.monotonic()
            if left_s <= 0:
                return False
            self._changed.wait(min(left_s, self._limits.retry_s))
            return True

    def _put_back(self) -> None:
        """What was in work, as the oldest that there is."""
        left, self._in_work = self._in_work, ()
        for entry in reversed(left):
            (self._rows if isinstance(entry[0], Table) else self._items).appendleft(entry)
        for queue, limit in ((self._rows, self._limits.max_rows), (self._items, self._limits.max_items)):
            while len(queue) > limit:
                self._drop(queue.popleft())

    def _is_up(self) -> None:
        if self._down is not None:
            self._down = None
            _log.info("store.up", waiting=self.counts.waiting, dropped=self.counts.dropped)

    def _clean(self) -> None:
        """Delete what is too old, a little at a time: what has come meanwhile is written first."""
        for rule in self._retention:
            if self._delete_some(rule):
                self._clean_at = time.monotonic() + _CLEANING_PAUSE_S
                return
        self._clean_at = time.monotonic() + self._limits.clean_every_s

    def _delete_some(self, rule: Cleaned) -> bool:
        # Reading first and writing then: SQLite wants the lock before.
        locking = self._engine.connect().execution_options(takes_write_lock=True)
        with locking as connection, connection.begin():
            return rule.clean(connection, self._limits.clean_rows)


def _is_the_databases(error: Exception) -> bool:
    """Whether trying again later may help; otherwise it is the row that cannot be stored."""
    if isinstance(error, PoolTimeoutError):
        return True
    return isinstance(error, DBAPIError) and not isinstance(error, _ROW_FAULTS)


def _by_sink(batch: Sequence[_Entry]) -> Iterator[tuple[Table | Sink, list[object]]]:
    for sink, entries in groupby(batch, key=itemgetter(0)):
        yield sink, [item for _, item in entries]
