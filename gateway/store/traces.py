"""The ring of traces: the last so many messages, written in batches, found by whatever an operator was told of one of them.

A row holds the traces of some messages that were told together, in two tables: in one their lines, which are looked through, and in
the other their documents. A database has as much trouble with a row of one message as with one of sixty.

Keys are given in the order of writing, whoever writes, so that "newest first", "the next page" and "what has come since" are
all a matter of keys.
"""

import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import accumulate, chain, islice
from typing import Final, TypeVarTuple, cast

from sqlalchemy import Connection, Engine, Result, Select, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from gateway.mail.errors import ParseError
from gateway.store.engine import explain
from gateway.store.errors import StoreError
from gateway.store.tables import TRACE_DOCUMENTS, TRACE_RING, TRACES
from gateway.trace.addresses import AddressHider
from gateway.trace.batch import TOGETHER, Batch, Block
from gateway.trace.document import read_document
from gateway.trace.line import TraceLine, read_outcomes
from gateway.trace.model import Trace
from gateway.trace.search import EVERYTHING, Search, TraceFilter
from gateway.trace.tally import Tally, count_outcomes

KEEP: Final = 100_000
KEEP_FOR: Final = timedelta(days=14)
MAX_PAGE: Final = 1_000
MAX_COUNTED: Final = 100_000
"""As many traces are gone through for a tally, in some tenths of a second; a quarter of an hour at 111 a second."""

_RING: Final = "traces"
_QUICKLY: Final = 1
_TRIM_EXTRA: Final = 200
"""So many more go than have come, where the ring holds too many: after `keep` was made smaller."""

_ROWS_AT_ONCE: Final = 50
"""Of the lines of a million messages, in memory."""

_WRITTEN_WITHIN: Final = timedelta(seconds=30)
"""Of two messages the later answered may be written first, by another process: hardly by so much."""

_Columns = TypeVarTuple("_Columns")

_MAX_KEY: Final = 2**63
_ALL_KEYS: Final = range(_MAX_KEY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """How much is kept: so many messages, and none for longer than that."""

    keep: int = KEEP
    keep_for: timedelta = KEEP_FOR


DEFAULT_RING: Final = Ring()


class TraceRing:
    """What the writer calls: traces in, old ones out (`gateway.store.writer.Sink`, `Cleaned`)."""

    name: Final = TRACES.name

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def write(self, connection: Connection, items: Sequence[object]) -> None:
        """Put these batches in at the end, and let as many traces go at the beginning."""
        blocks = [block for batch in cast("Sequence[Batch]", items) if (block := batch.block()) is not None]
        if not blocks:
            return
        packed = [zlib.compress(block.documents, _QUICKLY) for block in blocks]
        count = sum(block.count for block in blocks)
        last = _take_keys(connection, count)  # from here on other writers wait
        keys = list(accumulate((block.count for block in blocks), initial=last - count))[1:]
        connection.execute(insert(TRACES), list(map(_row, keys, blocks)))
        rows = [{"key": key, "documents": each} for key, each in zip(keys, packed, strict=True)]
        connection.execute(insert(TRACE_DOCUMENTS), rows)
        self._trim(connection, last - self._ring.keep, count + _TRIM_EXTRA)

    def clean(self, connection: Connection, rows: int) -> bool:
        """Delete what is too old, so many traces or a few more at most; say whether there may be others."""
        first = _first_key(connection)
        if first is None:
            return False
        key = TRACES.c.key
        too_old = TRACES.c.newest < datetime.now(UTC) - self._ring.keep_for
        until: int | None = connection.scalar(select(func.max(key)).where(key <= first + rows, too_old))
        if until is None:
            return False
        _delete(connection, until)
        return True

    def _trim(self, connection: Connection, until: int, traces: int) -> None:
        first = _first_key(connection) if until > 0 else None
        if first is not None and first <= until:
            _delete(connection, min(until, first + traces))


def _row(key: int, block: Block) -> dict[str, object]:
    return {"key": key, "newest": block.newest, "count": block.count, "lines": block.lines}


def _unpack(packed: bytes) -> list[str]:
    try:
        return zlib.decompress(packed).decode().split("\n")
    except (zlib.error, UnicodeDecodeError) as error:
        raise StoreError(f"a row of {TRACE_DOCUMENTS.name} is damaged: {error}") from error


def _delete(connection: Connection, until: int) -> None:
    connection.execute(delete(TRACE_DOCUMENTS).where(TRACE_DOCUMENTS.c.key <= until))
    connection.execute(delete(TRACES).where(TRACES.c.key <= until))


def _first_key(connection: Connection) -> int | None:
    """That of the oldest row."""
    first: int | None = connection.scalar(select(func.min(TRACES.c.key)))
    return first


def _take_keys(connection: Connection, count: int) -> int:
    """The last of so many new keys; nobody else gets any before this transaction is over."""
    ring = TRACE_RING.c
    connection.execute(update(TRACE_RING).where(ring.name == _RING).values(last=ring.last + count))
    last: int = connection.execute(select(ring.last).where(ring.name == _RING)).scalar_one()
    return last


class Traces:
    """The traces of one store, to be found. Every method blocks while it reads the database, and raises StoreError where it cannot.

    Args:
        engine: the database.
        hider: where addresses are kept hashed; those that are searched for are hashed, too.
    """

    def __init__(self, engine: Engine, hider: AddressHider | None = None) -> None:
        self._engine = engine
        self._hider = hider

    def find(
        self, wanted: TraceFilter = EVERYTHING, *, before: int | None = None, limit: int = 50
    ) -> list[TraceLine]:
        """Newest first, older than the key `before`."""
        rows = _rows(wanted).order_by(TRACES.c.key.desc())
        if before is None:
            return self._look(rows, wanted, limit, newest_first=True)
        rows = rows.where(TRACES.c.key < before + TOGETHER)
        return self._look(rows, wanted, limit, newest_first=True, among=range(before))

    def after(self, key: int, wanted: TraceFilter = EVERYTHING, *, limit: int = 50) -> list[TraceLine]:
        """What has come since the trace with this key, oldest first."""
        rows = _rows(wanted).where(TRACES.c.key > key).order_by(TRACES.c.key)
        return self._look(rows, wanted, limit, newest_first=False, among=range(key + 1, _MAX_KEY))

    def last_key(self) -> int:
        """The newest key that was ever given; 0 where there was none."""
        with self._connected() as connection:
            return connection.scalar(select(TRACE_RING.c.last).where(TRACE_RING.c.name == _RING)) or 0

    def tally(self, now: datetime, span: timedelta) -> Tally:
        """Count what was answered within `span` before `now`, by minute, listener, what became of it, and rule."""
        its, since = TRACES.c, now - span
        rows = select(its.lines).where(its.newest >= since - _WRITTEN_WITHIN).order_by(its.key.desc())
        with self._reading(rows) as found:
            outcomes = chain.from_iterable(reversed(read_outcomes(text)) for (text,) in found)
            return count_outcomes(outcomes, now, since, at_most=MAX_COUNTED)

    def count(self) -> int:
        """How many there are."""
        with self._connected() as connection:
            return connection.scalar(select(func.sum(TRACES.c.count))) or 0

    def get(self, key: int) -> Trace | None:
        """The whole trace with this key; None where it is gone.

        Raises:
            ParseError: it is there, but of a release with other words.
        """
        document = self.document(key)
        return None if document is None else read_document(document)

    def document(self, key: int) -> str | None:
        """The same as it is kept, in JSON; of whatever release."""
        its = TRACE_DOCUMENTS.c
        row = self._first(select(its.key, its.documents).where(its.key >= key).order_by(its.key))
        if row is None:
            return None
        last, packed = row
        documents = _unpack(packed)
        place = key - last + len(documents) - 1
        return documents[place] if place >= 0 else None

    def documents(self) -> Iterator[str]:
        """All of them, newest first; those that go meanwhile are left out.

        The database is read row by row: a long reading at one go would keep it from tidying up.
        """
        its = TRACE_DOCUMENTS.c
        rows = select(its.key, its.documents).order_by(its.key.desc())
        row = self._first(rows)
        while row is not None:
            last, packed = row
            yield from reversed(_unpack(packed))
            row = self._first(rows.where(its.key < last))

    def get_by_id(self, identifier: str) -> Trace | None:
        """The newest trace with this id. See `get`."""
        found = self.find(TraceFilter(id=identifier), limit=1)
        return self.get(found[0].key) if found else None

    def _look(
        self,
        rows: "Select[int, str]",
        wanted: TraceFilter,
        limit: int,
        *,
        newest_first: bool,
        among: range = _ALL_KEYS,
    ) -> list[TraceLine]:
        """The first so many lines of these rows that are wanted and have one of these keys."""
        search = Search(wanted, self._hider)
        with self._reading(rows) as found:
            lines = chain.from_iterable(
                search.among(text, last_key=key, newest_first=newest_first) for key, text in found
            )
            return list(islice((line for line in lines if line.key in among), min(limit, MAX_PAGE)))

    def _first(self, rows: "Select[int, bytes]") -> tuple[int, bytes] | None:
        with self._reading(rows.limit(1)) as found:
            row = found.first()
        return None if row is None else (row[0], row[1])

    @contextmanager
    def _reading(self, rows: "Select[*_Columns]") -> "Iterator[Result[*_Columns]]":
        """Some rows at a time, however many there are."""
        with self._connected() as connection:
            options = connection.execution_options(yield_per=_ROWS_AT_ONCE)
            try:
                with options.execute(rows) as found:
                    yield found
            except ParseError as error:
                remedy = "run the release that wrote it, or give this one a store of its own"
                raise StoreError(str(error), remedy) from error

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise explain(error) from error


def _rows(wanted: TraceFilter) -> "Select[int, str]":
    """Those that may have a line that is wanted: the rest of the filter is for `Search`."""
    rows = select(TRACES.c.key, TRACES.c.lines)
    return rows if wanted.since is None else rows.where(TRACES.c.newest >= wanted.since)
