"""The ring of traces: bounded in number and in time, in order, and found by whatever an operator was told."""

import asyncio
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from gateway.mail.envelope import Listener
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.store import Store, StoreError
from gateway.store import traces as module
from gateway.store.engine import open_engine, open_to_read
from gateway.store.traces import Ring, TraceRing, Traces
from gateway.store.writer import Writer, WriterLimits
from gateway.trace.addresses import AddressHider
from gateway.trace.batch import TOGETHER
from gateway.trace.model import Addressee, Trace
from gateway.trace.search import EVERYTHING, TraceFilter
from gateway.verdict import Disposition
from tests.store.databases import TIMEOUT_S, database, postgresql, session, sqlite_url, until
from tests.trace.samples import SESSION, batches, trace

__all__ = ["database", "postgresql"]

MILTER = replace(SESSION, listener=Listener.MILTER)
QUICK = WriterLimits(gather_s=0.0, retry_s=0.01, max_retry_s=0.05)


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = open_engine(database)
    yield engine
    engine.dispose()


def now() -> datetime:
    return datetime.now(UTC)


def write(engine: Engine, *traces: Trace, ring: Ring = Ring()) -> None:  # noqa: B008 - a frozen value
    with engine.begin() as connection:
        TraceRing(ring).write(connection, batches(traces))


def ids(engine: Engine) -> list[str]:
    return [line.id for line in Traces(engine).find(limit=1_000)]


def names(numbers: Iterable[int]) -> list[str]:
    return [f"id{number}" for number in numbers]


def test_what_is_kept_is_found_newest_first_and_whole(engine: Engine) -> None:
    kept = [trace(f"id{n}") for n in range(5)]
    write(engine, *kept[:3])
    write(engine, *kept[3:])
    traces = Traces(engine)
    lines = traces.find()
    assert [line.id for line in lines] == ["id4", "id3", "id2", "id1", "id0"]
    assert [traces.get(line.key) for line in lines] == kept[::-1]
    assert traces.get_by_id("id2") == kept[2]
    assert traces.get_by_id("id9") is None
    assert traces.get(99) is None


def test_pages_follow_each_other_and_what_comes_later_does_not_move_them(engine: Engine) -> None:
    traces = Traces(engine)
    write(engine, *(trace(f"id{n}") for n in range(5)))
    first = traces.find(limit=2)
    write(engine, trace("later"))
    second = traces.find(before=first[-1].key, limit=2)
    assert [line.id for line in (*first, *second)] == ["id4", "id3", "id2", "id1"]
    assert [line.id for line in traces.after(first[0].key)] == ["later"]
    assert traces.after(traces.last_key()) == []


WANTED = trace(
    "wanted.1",
    queue_id="4VxYz12345",
    message_id="<Some.Thing@Example.ORG>",
    mail_from="Ann@Mail.Example.com",
    recipients=(
        Addressee("bob_1@example.net", 250),
        Addressee('"a b"@example.net', 550),
        Addressee("Postmaster"),
    ),
    author="Boss@bank.example",
    rule="dmarc-reject",
    session=replace(SESSION, client_ip=ip_address("2001:db8::7"), listener=Listener.MILTER),
)
OTHER = trace(
    "other.1",
    message_id="<x@y.example>",
    mail_from="",
    recipients=(Addressee("bobx1@example.netz", 250),),
    author=None,
    evidence=replace(WANTED.evidence, dmarc=None),
    rule="pass",
    disposition=Disposition.ACCEPT,
    session=replace(SESSION, client_ip=ip_address("2001:db8::70")),
)


@pytest.mark.parametrize(
    "wanted",
    [
        TraceFilter(words=("wanted.1",)),
        TraceFilter(words=("4VxYz12345",)),
        TraceFilter(words=("<Some.Thing@Example.ORG>",)),
        TraceFilter(words=("Some.Thing@Example.ORG",)),
        TraceFilter(words=("ann@mail.example.com",)),
        TraceFilter(words=("<BOB_1@example.net>",)),
        TraceFilter(words=("boss@BANK.example",)),
        TraceFilter(words=("2001:DB8::7",)),
        TraceFilter(words=("wanted.1", "ann@mail.example.com")),
        TraceFilter(id="wanted.1"),
        TraceFilter(queue_id="4VxYz12345"),
        TraceFilter(message_id="<Some.Thing@Example.ORG>"),
        TraceFilter(sender="ann@mail.example.com"),
        TraceFilter(sender="mail.example.com"),
        TraceFilter(sender=".example.com"),
        TraceFilter(recipient="bob_1@example.net"),  # `_` is any character to LIKE
        TraceFilter(recipient="example.net"),
        TraceFilter(recipient='"a b"@example.net'),
        TraceFilter(recipient="postmaster"),
        TraceFilter(author="bank.example"),
        TraceFilter(author_domain="Bank.Example"),
        TraceFilter(client="2001:db8::7"),
        TraceFilter(disposition=Disposition.REJECT),
        TraceFilter(rule="dmarc-reject"),
        TraceFilter(listener=Listener.MILTER),
        TraceFilter(rule="dmarc-reject", since=WANTED.answered, until=WANTED.answered + timedelta(seconds=1)),
    ],
    ids=str,
)
def test_one_of_two_is_found(engine: Engine, wanted: TraceFilter) -> None:
    write(engine, WANTED, OTHER)
    assert [line.id for line in Traces(engine).find(wanted)] == ["wanted.1"]


@pytest.mark.parametrize(
    "wanted",
    [
        TraceFilter(words=("wanted",)),
        TraceFilter(words=("wanted.1", "other.1")),  # all must hold
        TraceFilter(words=("%",)),
        TraceFilter(words=("' OR 1=1 --",)),
        TraceFilter(words=("a\0b@\udcff.example", "\0")),
        TraceFilter(sender="\0\udcff@mail.example.com", recipient="\0@\udcff", author=".\0\udcff"),
        TraceFilter(id="\udcff", queue_id="\0", message_id="<\udcff\0>", rule="\0", client="\udcff"),
        TraceFilter(words=("x@" + "y" * 100_000,)),
        TraceFilter(sender="example.com"),  # not the domains below it
        TraceFilter(sender="%@mail.example.com"),
        TraceFilter(recipient="b@example.net"),
        TraceFilter(recipient="_______@example.net"),
        TraceFilter(recipient="example"),
        TraceFilter(since=WANTED.answered + timedelta(seconds=1)),
        TraceFilter(until=WANTED.answered),
    ],
    ids=str,
)
def test_nothing_else_is(engine: Engine, wanted: TraceFilter) -> None:
    write(engine, WANTED, OTHER)
    assert Traces(engine).find(wanted) == []


def test_the_null_path_is_a_sender(engine: Engine) -> None:
    write(engine, WANTED, OTHER)
    assert [line.id for line in Traces(engine).find(TraceFilter(sender="<>"))] == ["other.1"]


def test_the_ring_holds_so_many_and_less_than_a_row_more(engine: Engine) -> None:
    for start in range(0, 120, 7):
        write(engine, *map(trace, names(range(start, start + 7))), ring=Ring(keep=50))
        kept = ids(engine)
        assert min(start + 7, 50) <= len(kept) < 57
        assert kept == names(reversed(range(start + 7 - len(kept), start + 7)))
    with engine.connect() as connection:
        for table in ("traces", "trace_documents"):
            assert connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 8


def test_a_ring_of_rows_of_one_makes_room_for_many_at_once_and_the_other_way_round(engine: Engine) -> None:
    ring = Ring(keep=300)
    for n in range(310):
        write(engine, trace(f"id{n}"), ring=ring)
    assert ids(engine) == names(range(309, 9, -1))
    write(engine, *map(trace, names(range(310, 610))), ring=ring)
    assert ids(engine) == names(range(609, 309, -1))
    for n in range(610, 900):
        write(engine, trace(f"id{n}"), ring=ring)
        assert 300 <= len(ids(engine)) < 300 + TOGETHER


def test_many_that_are_written_at_once_make_rows_of_a_bounded_size(engine: Engine) -> None:
    write(engine, trace("before"))
    write(engine, *map(trace, names(range(TOGETHER + 1))))
    traces = Traces(engine)
    found = traces.find(limit=1_000)
    assert [line.id for line in found] == [*names(reversed(range(TOGETHER + 1))), "before"]
    assert [line.key for line in found] == list(range(TOGETHER + 2, 0, -1))
    assert [line.id for line in traces.find(before=found[1].key, limit=1)] == [found[2].id]
    for line in (found[0], found[1], found[-2], found[-1]):
        whole = traces.get(line.key)
        assert whole is not None
        assert whole.id == line.id
    with engine.connect() as connection:
        assert connection.execute(text("SELECT key FROM traces ORDER BY key")).scalars().all() == [
            1, 1 + TOGETHER, 2 + TOGETHER,
        ]  # fmt: skip


def test_a_ring_that_was_made_smaller_shrinks_in_steps(engine: Engine) -> None:
    for start in range(0, 1_000, 50):
        write(engine, *map(trace, names(range(start, start + 50))))
    counts = []
    for n in range(6):
        write(engine, trace(f"more{n}"), ring=Ring(keep=3))
        counts.append(len(ids(engine)))
    assert counts == sorted(counts, reverse=True)
    assert 700 < counts[0] < 1_000
    assert counts[-1] == 3


def test_none_is_kept_for_too_long(engine: Engine) -> None:
    old, young = now() - timedelta(days=15), now() - timedelta(days=13)
    for start in range(0, 40, 5):
        write(engine, *(trace(f"id{n}", answered=old) for n in range(start, start + 5)))
    write(engine, trace("young", answered=young))
    writer = Writer(engine, retention=(TraceRing(Ring()),), limits=WriterLimits(clean_rows=10))
    writer.start()
    until(lambda: len(ids(engine)) == 1)
    assert ids(engine) == ["young"]
    assert writer.close(TIMEOUT_S)
    assert writer.counts.failures == 0


def test_keys_are_never_given_twice_even_where_all_are_gone(engine: Engine) -> None:
    ring = TraceRing(Ring(keep_for=timedelta(0)))
    write(engine, trace("first"))
    last = Traces(engine).last_key()
    with engine.begin() as connection:
        assert ring.clean(connection, 100)
        assert not ring.clean(connection, 100)
    write(engine, trace("second"))
    assert [line.id for line in Traces(engine).after(last)] == ["second"]


WRITE = """
import sys
from gateway.store.engine import open_engine
from gateway.store.traces import Ring, TraceRing
from tests.trace.samples import batches, trace
engine = open_engine(sys.argv[1])
sys.stdin.readline()
for n in range(20):
    with engine.begin() as connection:
        TraceRing(Ring()).write(connection, batches([trace(f"{sys.argv[2]}.{n}.{m}") for m in range(5)]))
"""


def test_several_processes_write_and_a_reader_misses_none(database: str, engine: Engine) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITE, database, str(each)], stdin=subprocess.PIPE, text=True)
        for each in range(3)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.close()
    traces = Traces(engine)
    seen: list[str] = []
    last = 0

    def look() -> bool:
        nonlocal last
        for line in traces.after(last, limit=1_000):
            seen.append(line.id)
            last = line.key
        return len(seen) == 300

    until(look)
    assert len(set(seen)) == 300
    assert [process.wait(TIMEOUT_S) for process in processes] == [0, 0, 0]


@pytest.mark.parametrize("helo", ["\0", "\udc80", "\u202eevil", "x" * 10_000])
def test_hostile_text_is_kept_in_every_column(engine: Engine, helo: str) -> None:
    hostile = trace(
        message_id=f"<{helo}@x>",
        mail_from=f"{helo}@example.com",
        recipients=(Addressee(f"{helo}@example.net", 550, helo),) * 100,
        author=helo,
        rule=helo,
        queue_id=helo,
        session=replace(SESSION, helo=helo),
    )
    write(engine, hostile)
    (line,) = Traces(engine).find()
    assert Traces(engine).get(line.key) is not None


def test_hashed_addresses_are_found_by_whoever_has_the_key(engine: Engine) -> None:
    hider = AddressHider(b"0123456789abcdef")
    write(engine, trace(mail_from=hider.address("Ann@Example.com"), author=hider.address("ceo@bank.example")))
    (line,) = Traces(engine, hider).find(TraceFilter(sender="ann@example.com"))
    assert "ann" not in line.sender
    assert Traces(engine, hider).find(TraceFilter(sender=line.sender))
    assert Traces(engine, hider).find(TraceFilter(words=("ceo@bank.example",)))
    assert Traces(engine, hider).find(TraceFilter(sender="example.com"))
    assert not Traces(engine).find(TraceFilter(sender="ann@example.com"))
    assert not Traces(engine, AddressHider(b"another key 0123")).find(TraceFilter(sender="ann@example.com"))


async def test_a_store_keeps_and_finds(database: str) -> None:
    store = Store.open(database, limits=QUICK)
    store.keep(*batches([trace("kept", answered=now())]))
    until(lambda: store.writer.counts.written == 1)
    assert [line.id for line in await store.read(store.traces.find)] == ["kept"]
    reader = open_to_read(database)
    assert [line.id for line in Traces(reader).find(EVERYTHING)] == ["kept"]  # while the gateway runs
    assert await store.close(TIMEOUT_S)
    assert [line.id for line in Traces(reader).find()] == ["kept"]  # and after it
    reader.dispose()


async def test_too_many_traces_push_out_the_oldest_of_them_and_no_row_that_matters_more(
    tmp_path: Path,
) -> None:
    limits = WriterLimits(max_rows=5, max_items=4, batch_items=10, gather_s=60.0)
    store = Store.open(sqlite_url(tmp_path / "gateway.db"), limits=limits)
    for _ in range(5):
        store.record(session())
    for batch in batches(map(trace, names(range(10 * TOGETHER)))):
        store.keep(batch)
    assert store.writer.ended == {("traces", "dropped"): 6 * TOGETHER}
    assert store.writer.counts.waiting == 5 + 4 * TOGETHER
    assert await store.close(TIMEOUT_S)
    assert store.writer.ended[("tls_results", "written")] == 5
    engine = open_to_read(sqlite_url(tmp_path / "gateway.db"))
    assert ids(engine) == names(reversed(range(6 * TOGETHER, 10 * TOGETHER)))
    engine.dispose()


async def test_what_is_told_while_a_batch_waits_is_written_with_it(tmp_path: Path) -> None:
    store = Store.open(sqlite_url(tmp_path / "gateway.db"), limits=WriterLimits(gather_s=60.0))
    (batch,) = batches([trace("first")])
    store.keep(batch)
    assert batch.add(lambda: trace("second"))
    assert store.writer.counts.waiting == 2
    assert await store.close(TIMEOUT_S)
    assert not batch.add(lambda: trace("too late"))
    assert store.writer.ended == {("traces", "written"): 2}
    engine = open_to_read(sqlite_url(tmp_path / "gateway.db"))
    assert ids(engine) == ["second", "first"]
    engine.dispose()


def test_looking_makes_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="start the gateway once"):
        open_to_read(sqlite_url(tmp_path / "gateway.db"))
    assert list(tmp_path.iterdir()) == []


def test_looking_changes_nothing(database: str) -> None:
    open_engine(database).dispose()
    engine = open_to_read(database)
    with pytest.raises(DBAPIError, match=r"(?i)read.?only"):
        write(engine, trace())
    engine.dispose()


def test_an_old_store_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="start this release of the gateway once"):
        Traces(open_to_read(sqlite_url(path))).find()


def test_reading_does_not_wait_for_the_writer(database: str, engine: Engine) -> None:
    write(engine, trace("there"))
    with engine.begin() as connection:
        TraceRing(Ring()).write(connection, batches([trace("not yet")]))
        found = asyncio.run(asyncio.wait_for(asyncio.to_thread(Traces(engine).find), TIMEOUT_S))
    assert [line.id for line in found] == ["there"]


AGO = timedelta(minutes=15)


def test_a_tally_is_what_the_lines_come_to(engine: Engine) -> None:
    """By every word that the overview shows; also of messages written out of order, and of a clock that is ahead."""
    moment = now()
    refused = Reply.of(550, "5.7.1", "no")
    kinds: tuple[dict[str, object], ...] = (
        {"disposition": Disposition.ACCEPT, "rule": "pass", "reply": Reply.of(250, "2.0.0", "ok")},
        {"disposition": Disposition.REJECT, "rule": "spf-fail", "reply": refused},
        {"disposition": Disposition.ACCEPT, "rule": "pass", "reply": refused},
        {"disposition": None, "rule": None, "reply": Reply.of(421, "4.3.2", "later")},
        {"disposition": Disposition.ACCEPT, "rule": "pass", "reply": None, "session": MILTER},
    )
    ages_s = [1_000, 905, 899, 890, 895, 600.5, 60, 59.5, 61, 30, 0.1, -5]
    write(engine, *[trace(f"id{at}.{n}", answered=moment - timedelta(seconds=age), **kind) for at, age in enumerate(ages_s) for n, kind in enumerate(kinds)])  # fmt: skip
    traces = Traces(engine)
    tally = traces.tally(moment, AGO)
    assert (tally.since, tally.is_cut) == (moment - AGO, False)
    counted: Counter[tuple[object, ...]] = Counter()
    for group in tally.groups:
        counted[group.listener, group.disposition, group.code, group.rule] += group.messages
        assert group.last <= moment - timedelta(minutes=group.age_min) + timedelta(seconds=5)
    lines = traces.find(TraceFilter(since=moment - AGO), limit=1_000)
    assert counted == Counter(
        (line.listener, line.disposition, line.code and line.code // 100 * 100, line.rule) for line in lines
    )
    assert {group.age_min for group in tally.groups} == {14, 10, 1, 0}
    assert len(lines) == 10 * len(kinds)


def test_a_tally_goes_through_so_many_rows_and_says_how_far_back_that_was(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_COUNTED", 100)
    moment = now()
    write(engine, *[trace(f"id{n}", answered=moment - timedelta(seconds=300 - n)) for n in range(300)])
    tally = Traces(engine).tally(moment, AGO)
    assert (sum(group.messages for group in tally.groups), tally.is_cut) == (100, True)
    assert moment - timedelta(seconds=102) < tally.since < moment - timedelta(seconds=98)
    assert not Traces(engine).tally(moment, timedelta(seconds=50)).is_cut


def test_a_tally_of_nothing(engine: Engine) -> None:
    tally = Traces(engine).tally(now(), AGO)
    assert (tally.groups, tally.is_cut) == ((), False)
