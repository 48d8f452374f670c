"""The ring of traces: the last so many messages, written in batches, found by whatever an operator was told of one of them.

Keys are given in the order of writing, whoever writes, so that "newest first", "the next page" and "what has come since" are
all a matter of keys. Searching reads the narrow table from its newest row on; that costs a fraction of a second for a million
messages, and an index on each column would cost every one of them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import chain
from typing import Any, Final, NamedTuple, cast

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    Table,
    and_,
    delete,
    extract,
    func,
    or_,
    select,
    update,
)
from sqlalchemy import cast as cast_to
from sqlalchemy.exc import SQLAlchemyError

from gateway.mail.envelope import Listener
from gateway.store.engine import explain
from gateway.store.tables import (
    MAX_ID_CHARACTERS,
    TRACE_DOCUMENTS,
    TRACE_RING,
    TRACES,
)
from gateway.trace.addresses import AddressHider
from gateway.trace.document import address_words, read_document, write_document
from gateway.trace.model import Trace
from gateway.verdict import Disposition

KEEP: Final = 100_000
KEEP_FOR: Final = timedelta(days=14)
MAX_PAGE: Final = 1_000
MAX_COUNTED: Final = 200_000
"""As many rows are gone through for a tally, which SQLite does in some tenths of a second; a quarter of an hour at 222 a second."""

MAX_COLUMN_CHARACTERS: Final = 500
MAX_RECIPIENTS_CHARACTERS: Final = 16_000

_RING: Final = "traces"
_TRIM_EXTRA: Final = 200
"""So many more rows go than have come, where the ring holds too many: after `keep` was made smaller."""

_WRITTEN_WITHIN: Final = timedelta(seconds=30)
"""Of two messages the later answered may be written first, by another process: hardly by so much."""

_ROWS_AT_ONCE: Final = 50
"""SQLite before 3.32 takes 999 values in a statement."""
_MOMENT_CHARACTERS: Final = len("2026-03-14 12:00:00.123456")

_columns: Final = TRACES.c


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFilter:
    """Which traces are wanted; all that is given must hold. Text compares without regard to case.

    Attributes:
        words: each must be the trace's id, queue-id, Message-ID, client, author, sender or recipient.
        sender, recipient, author: an address, or a domain, or `.example.com` for all below one; sender `<>` is the null path.
        client: the client's address.
        since, until: answered at or after, and before.
    """

    words: tuple[str, ...] = ()
    id: str | None = None
    queue_id: str | None = None
    message_id: str | None = None
    sender: str | None = None
    recipient: str | None = None
    author: str | None = None
    author_domain: str | None = None
    client: str | None = None
    disposition: Disposition | None = None
    rule: str | None = None
    listener: Listener | None = None
    since: datetime | None = None
    until: datetime | None = None


EVERYTHING: Final = TraceFilter()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLine:
    """One message in a list.

    Attributes:
        key: its place in the ring: the later, the greater.
        at: when it was answered.
        recipients: in lower case, as far as they fit. `sender` likewise; empty for the null path.
        code: what the client heard; None where the mail server answered by itself.
    """

    key: int
    at: datetime
    id: str
    queue_id: str | None
    message_id: str | None
    listener: Listener
    client: str
    sender: str
    recipients: tuple[str, ...]
    author: str | None
    author_domain: str | None
    disposition: Disposition | None
    rule: str | None
    code: int | None
    size: int | None


class Group(NamedTuple):
    """Messages that are alike.

    Attributes:
        age_min: how many whole minutes ago they were answered.
        code: what the client heard, in hundreds: 200, 400, 500.
        last: when the newest of them was answered.
    """

    age_min: int
    listener: Listener
    disposition: Disposition | None
    code: int | None
    rule: str | None
    messages: int
    last: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The messages of a time, counted.

    Attributes:
        since: so far back they were counted: as was asked, or less where there are more than `MAX_COUNTED`.
        is_cut: the latter.
    """

    groups: tuple[Group, ...]
    since: datetime
    is_cut: bool


class Kept(NamedTuple):
    """A trace as the two tables have it, all but the key; `columns` are those from `id` on."""

    at: datetime
    columns: tuple[object, ...]
    document: str

    @classmethod
    def of(cls, trace: Trace) -> "Kept":
        """Make it."""
        return cls(trace.answered, _row(trace), write_document(trace).decode())


@dataclass(frozen=True, slots=True, kw_only=True)
class Ring:
    """How much is kept: so many messages, and none for longer than that."""

    keep: int = KEEP
    keep_for: timedelta = KEEP_FOR


DEFAULT_RING: Final = Ring()


class TraceRing:
    """What the writer calls: rows in, old rows out (`gateway.store.writer.Sink`, `Cleaned`)."""

    name: Final = TRACES.name

    def __init__(self, ring: Ring) -> None:
        self._ring = ring

    def write(self, connection: Connection, items: Sequence[object]) -> None:
        """Put these in at the end, and let as many go at the beginning."""
        last = _take_keys(connection, len(items))
        kept = list(enumerate(cast("Sequence[Kept]", items), last - len(items) + 1))
        moment = _moment_for(connection)
        _insert(connection, TRACES, [(key, moment(one.at), *one.columns) for key, one in kept])
        _insert(connection, TRACE_DOCUMENTS, [(key, one.document) for key, one in kept])
        self._trim(connection, last - self._ring.keep, len(items) + _TRIM_EXTRA)

    def clean(self, connection: Connection, rows: int) -> int:
        """Delete what is too old, so many rows at most; say how many there were."""
        too_old = _columns.at < datetime.now(UTC) - self._ring.keep_for
        query = select(_columns.key).order_by(_columns.key).limit(rows).subquery()
        oldest = select(func.max(_columns.key)).where(_columns.key.in_(select(query.c.key)), too_old)
        until: int | None = connection.scalar(oldest)
        return 0 if until is None else self._delete(connection, until)

    def _trim(self, connection: Connection, until: int, rows: int) -> None:
        if until <= 0:
            return
        first: int | None = connection.scalar(select(func.min(_columns.key)))
        if first is not None and first <= until:
            self._delete(connection, min(until, first + rows))

    def _delete(self, connection: Connection, until: int) -> int:
        connection.execute(delete(TRACE_DOCUMENTS).where(TRACE_DOCUMENTS.c.key <= until))
        return connection.execute(delete(TRACES).where(_columns.key <= until)).rowcount


def _insert(connection: Connection, table: Table, rows: Sequence[tuple[object, ...]]) -> None:
    """Many rows in one statement: each statement is one more time that the thread gives up Python and waits to have it back."""
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        some = rows[start : start + _ROWS_AT_ONCE]
        values = tuple(chain.from_iterable(some))
        connection.exec_driver_sql(
            _insert_text(table.name, len(some), len(some[0]), _mark(connection)), values
        )


@lru_cache(maxsize=2 * _ROWS_AT_ONCE)
def _insert_text(table: str, rows: int, columns: int, mark: str) -> str:
    row = f"({', '.join([mark] * columns)})"
    return f"INSERT INTO {table} VALUES {', '.join([row] * rows)}"  # noqa: S608 - our own table


def _mark(connection: Connection) -> str:
    return "?" if connection.dialect.name == "sqlite" else "%s"


def _moment_for(connection: Connection) -> Callable[[datetime], object]:
    """A UTC time as the database's own program takes it; `Moment` does the same for statements of SQLAlchemy's."""
    if connection.dialect.name != "sqlite":
        return lambda moment: moment
    return lambda moment: moment.isoformat(" ", "microseconds")[:_MOMENT_CHARACTERS]


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
        query = self._query(wanted).order_by(_columns.key.desc())
        return self._lines(query if before is None else query.where(_columns.key < before), limit)

    def after(self, key: int, wanted: TraceFilter = EVERYTHING, *, limit: int = 50) -> list[TraceLine]:
        """What has come since the trace with this key, oldest first."""
        return self._lines(self._query(wanted).where(_columns.key > key).order_by(_columns.key), limit)

    def last_key(self) -> int:
        """The newest key that was ever given; 0 where there was none."""
        with self._connected() as connection:
            return connection.scalar(select(TRACE_RING.c.last).where(TRACE_RING.c.name == _RING)) or 0

    def tally(self, now: datetime, span: timedelta) -> Tally:
        """Count what was answered within `span` before `now`, by minute, listener, what became of it, and rule."""
        since = now - span
        with self._connected() as connection:
            newest: int = connection.scalar(select(func.max(_columns.key))) or 0
            floor = newest - MAX_COUNTED
            at_floor: datetime | None = connection.scalar(select(_columns.at).where(_columns.key == floor))
            is_cut = at_floor is not None and at_floor >= since
            if is_cut:
                since, first = cast("datetime", at_floor), floor
            else:  # keys are in the order of writing: this walks back over what is counted, and no further
                too_old = _columns.at < since - _WRITTEN_WITHIN
                before = select(_columns.key).where(too_old, _columns.key > floor)
                first = connection.scalar(before.order_by(_columns.key.desc()).limit(1)) or floor
            counted = _by_group(now).where(_columns.key > first, _columns.at >= since)
            groups = tuple(map(_group, connection.execute(counted)))
        return Tally(groups=groups, since=since, is_cut=is_cut)

    def count(self) -> int:
        """How many there are."""
        with self._connected() as connection:
            return connection.scalar(select(func.count()).select_from(TRACES)) or 0

    def get(self, key: int) -> Trace | None:
        """The whole trace with this key; None where it is gone.

        Raises:
            ParseError: it is there, but of a release with other words.
        """
        document = self.document(key)
        return None if document is None else read_document(document)

    def document(self, key: int) -> str | None:
        """The same as it is kept, in JSON; of whatever release."""
        query = select(TRACE_DOCUMENTS.c.document).where(TRACE_DOCUMENTS.c.key == key)
        with self._connected() as connection:
            document: str | None = connection.scalar(query)
        return document

    def get_by_id(self, identifier: str) -> Trace | None:
        """The newest trace with this id. See `get`."""
        found = self.find(TraceFilter(id=identifier), limit=1)
        return self.get(found[0].key) if found else None

    @contextmanager
    def _connected(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            raise explain(error) from error

    def _lines(self, query: "Select[tuple[object, ...]]", limit: int) -> list[TraceLine]:
        with self._connected() as connection:
            return [_line(row) for row in connection.execute(query.limit(min(limit, MAX_PAGE)))]

    def _query(self, wanted: TraceFilter) -> "Select[tuple[object, ...]]":
        return select(*TRACES.c).where(*self._conditions(wanted))

    def _conditions(self, wanted: TraceFilter) -> list[ColumnElement[bool]]:
        wanted = _storable(wanted)
        conditions = [self._word(word) for word in wanted.words]
        exact = (
            (_columns.id, wanted.id),
            (_columns.queue_id, wanted.queue_id),
            (_columns.message_id, wanted.message_id and _bare(wanted.message_id)),
            (_columns.author_domain, wanted.author_domain and wanted.author_domain.lower()),
            (_columns.client, wanted.client and wanted.client.lower()),
            (_columns.disposition, wanted.disposition and wanted.disposition.value),
            (_columns.rule, wanted.rule),
            (_columns.listener, wanted.listener and wanted.listener.value),
        )
        conditions += [column == value for column, value in exact if value is not None]
        if wanted.sender is not None:
            conditions.append(self._is_address(_columns.sender, wanted.sender))
        if wanted.author is not None:
            conditions.append(self._is_address(_columns.author, wanted.author))
        if wanted.recipient is not None:
            conditions.append(self._is_recipient(wanted.recipient))
        if wanted.since is not None:
            conditions.append(_columns.at >= wanted.since)
        if wanted.until is not None:
            conditions.append(_columns.at < wanted.until)
        return conditions

    def _word(self, word: str) -> ColumnElement[bool]:
        """Whatever an operator was told: a part of a reply, of a log line, of a header, or an address."""
        bare = _bare(word)
        may_be = [
            _columns.id == bare,
            _columns.queue_id == bare,
            _columns.message_id == bare,
            _columns.client == bare.lower(),
        ]
        if "@" in bare or "." in bare:
            may_be += [
                self._is_address(_columns.sender, bare),
                self._is_address(_columns.author, bare),
                self._is_recipient(bare),
            ]
        return or_(*may_be)

    def _is_address(self, column: ColumnElement[str], text: str) -> ColumnElement[bool]:
        bare = _bare(text)
        if not bare:
            return column == ""
        if "@" in bare:
            return column == self._kept(bare)
        return column.endswith(_domain_end(bare), autoescape=True)

    def _is_recipient(self, text: str) -> ColumnElement[bool]:
        bare = _bare(text)
        if "@" in bare:
            return _columns.recipients.contains(f"\n{self._kept(bare)}\n", autoescape=True)
        if not bare.startswith(".") and "." not in bare:  # Postmaster
            return _columns.recipients.contains(f"\n{bare.lower()}\n", autoescape=True)
        return and_(_columns.recipients.contains(f"{_domain_end(bare)}\n", autoescape=True))

    def _kept(self, address: str) -> str:
        return (self._hider.address(address) if self._hider else address).lower()


def _by_group(now: datetime) -> "Select[tuple[object, ...]]":
    seconds = cast_to(extract("epoch", _columns.at), BigInteger)
    age_min = (int(now.timestamp()) - seconds) // 60
    alike = (age_min, _columns.listener, _columns.disposition, _columns.code // 100, _columns.rule)
    named = [column.label(f"by_{name}") for column, name in zip(alike, Group._fields, strict=False)]
    return select(*named, func.count(), func.max(_columns.at)).group_by(*named)


def _group(row: Row[tuple[object, ...]]) -> Group:
    age_min, listener, disposition, hundreds, rule, messages, last = cast("tuple[Any, ...]", row)
    return Group(
        age_min=max(0, age_min),
        listener=Listener(listener),
        disposition=Disposition(disposition) if disposition else None,
        code=None if hundreds is None else hundreds * 100,
        rule=rule,
        messages=messages,
        last=last,
    )


def _row(trace: Trace) -> tuple[object, ...]:
    """The columns of `TRACES` in their order, from `id` on."""
    session = trace.session
    return (
        trace.id[:MAX_ID_CHARACTERS],
        _fit(trace.queue_id),
        _fit(_bare(trace.message_id)) if trace.message_id else None,
        session.listener.value,
        address_words(session.client_ip),
        _fit(trace.mail_from.lower()),
        _recipients(trace),
        _fit(trace.author.lower()) if trace.author else None,
        _fit(trace.author_domain),
        trace.disposition.value if trace.disposition else None,
        _fit(trace.rule),
        trace.reply.code if trace.reply else None,
        trace.size,
    )


def _recipients(trace: Trace) -> str:
    """Each between two line ends, which no address has: found whole, found by its end."""
    names = "\n".join([each.address for each in trace.recipients])
    text = f"\n{names}\n".lower()
    if len(text) > MAX_RECIPIENTS_CHARACTERS:
        text = text[: text.rfind("\n", 0, MAX_RECIPIENTS_CHARACTERS) + 1]
    return _fit(text, MAX_RECIPIENTS_CHARACTERS) or ""


def _fit(text: str | None, limit: int = MAX_COLUMN_CHARACTERS) -> str | None:
    """What both databases can keep: no NUL, no lone surrogate, not too long."""
    if text is None:
        return None
    if text.isascii() and "\0" not in text:
        return text[:limit]
    return text.encode("utf-8", "replace").decode().replace("\0", "?")[:limit]


def _storable(wanted: TraceFilter) -> TraceFilter:
    """What is looked for, as it would be kept: PostgreSQL takes no NUL for an answer, and SQLite no lone surrogate."""
    texts: dict[str, Any] = {
        each.name: _fit(text)
        for each in fields(wanted)
        if type(text := getattr(wanted, each.name)) is str  # not one of our own words
    }
    return replace(wanted, **texts, words=tuple(_fit(word) or "" for word in wanted.words))


def _bare(text: str) -> str:
    """A Message-ID or address without its brackets."""
    text = text.strip()
    return text[1:-1] if text[:1] == "<" and text[-1:] == ">" else text


def _domain_end(domain: str) -> str:
    """How an address of this domain ends; `.example.com` is all below it."""
    lower = domain.lower()
    return lower if lower.startswith(".") else f"@{lower}"


def _line(row: Row[tuple[object, ...]]) -> TraceLine:
    found = row._mapping  # noqa: SLF001 - SQLAlchemy's own way to name columns
    return TraceLine(
        key=found["key"],
        at=found["at"],
        id=found["id"],
        queue_id=found["queue_id"],
        message_id=found["message_id"],
        listener=Listener(found["listener"]),
        client=found["client"],
        sender=found["sender"],
        recipients=tuple(found["recipients"].strip("\n").split("\n")) if found["recipients"].strip() else (),
        author=found["author"],
        author_domain=found["author_domain"],
        disposition=Disposition(found["disposition"]) if found["disposition"] else None,
        rule=found["rule"],
        code=found["code"],
        size=found["size"],
    )
