"""The writer off the mail path: it never makes anybody wait, and it says what it loses."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from gateway.store.engine import open_engine
from gateway.store.results import session_row
from gateway.store.tables import TLS_RESULTS
from gateway.store.writer import Retention, Writer, WriterLimits
from tests.live.postgresql import PostgresBed
from tests.store.databases import TIMEOUT_S, database, postgresql, session, sqlite_url, until

__all__ = ["database", "postgresql"]

QUICK = WriterLimits(gather_s=0.0, retry_s=0.01, max_retry_s=0.05)
ROW = session_row(session())


@pytest.fixture
def engine(database: str) -> Iterator[Engine]:
    engine = open_engine(database)
    yield engine
    engine.dispose()


def rows(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT count(*) FROM tls_results").scalar_one())


def test_what_is_added_is_written(engine: Engine) -> None:
    writer = Writer(engine, limits=QUICK)
    for _ in range(1_234):
        writer.add(TLS_RESULTS, ROW)
    assert writer.close(TIMEOUT_S)
    assert rows(engine) == 1_234
    assert writer.counts == (0, 1_234, 0, 0)


def test_rows_of_several_threads_all_arrive(engine: Engine) -> None:
    writer = Writer(engine, limits=QUICK)

    def add_many() -> None:
        for _ in range(500):
            writer.add(TLS_RESULTS, ROW)

    threads = [threading.Thread(target=add_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert writer.close(TIMEOUT_S)
    assert rows(engine) == 2_000


def test_rows_wait_for_company_but_not_for_long(engine: Engine) -> None:
    writer = Writer(engine, limits=WriterLimits(gather_s=0.05))
    writer.add(TLS_RESULTS, ROW)
    until(lambda: rows(engine) == 1)
    writer.close(TIMEOUT_S)


def test_a_row_that_cannot_be_stored_spoils_no_other(engine: Engine) -> None:
    writer = Writer(engine, limits=WriterLimits(gather_s=0.1))
    for domain in ("a.example", "\udc80", None, "b.example"):
        writer.add(TLS_RESULTS, {**ROW, "policy_domain": domain})
    assert writer.close(TIMEOUT_S)
    assert rows(engine) == 2
    assert writer.counts == (0, 2, 2, 0)
    assert writer.ended == {("tls_results", "written"): 2, ("tls_results", "dropped"): 2}


def test_after_close_a_row_is_dropped_and_counted(engine: Engine) -> None:
    writer = Writer(engine, limits=QUICK)
    assert writer.close(TIMEOUT_S)
    writer.add(TLS_RESULTS, ROW)
    assert writer.counts.dropped == 1
    assert writer.ended == {("tls_results", "dropped"): 1}


def test_old_rows_go_in_small_steps(engine: Engine) -> None:
    now = datetime.now(UTC)
    with engine.begin() as connection:
        old = [{**ROW, "at": now - timedelta(days=9)}] * 250
        connection.execute(TLS_RESULTS.insert(), [*old, {**ROW, "at": now - timedelta(days=7)}])
    keep = Retention(TLS_RESULTS, "at", timedelta(days=8))
    writer = Writer(engine, retention=[keep], limits=WriterLimits(clean_rows=100))
    writer.start()
    until(lambda: rows(engine) == 1)
    writer.add(TLS_RESULTS, {**ROW, "at": now})
    assert writer.close(TIMEOUT_S)
    assert rows(engine) == 2


# A database that is down


def test_while_another_program_holds_the_file_rows_wait_and_nobody_else_does(tmp_path: Path) -> None:
    engine = open_engine(sqlite_url(tmp_path / "gateway.db"))
    writer = Writer(engine, limits=WriterLimits(gather_s=0.0, max_rows=10, batch_rows=4))
    with engine.connect().execution_options(takes_write_lock=True) as holder, holder.begin():
        started = time.monotonic()
        for _ in range(100):
            writer.add(TLS_RESULTS, ROW)
        assert time.monotonic() - started < 1.0  # and the writer waits for the lock meanwhile
        assert writer.counts.waiting <= 14
    assert writer.close(TIMEOUT_S)
    counts = writer.counts
    assert rows(engine) == counts.written
    assert counts.written + counts.dropped == 100
    assert counts.dropped >= 86
    engine.dispose()


def test_without_its_disk_it_drops_the_oldest_and_tries_again(tmp_path: Path) -> None:
    engine = open_engine(sqlite_url(tmp_path / "gateway.db"))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tls_results RENAME TO away"))
    writer = Writer(engine, limits=WriterLimits(gather_s=0.0, retry_s=0.01, max_retry_s=0.02, max_rows=5))
    for number in range(50):
        writer.add(TLS_RESULTS, {**ROW, "reason": str(number)})
    until(lambda: writer.counts.failures >= 3)
    assert writer.trouble is not None
    assert "no such table" in writer.trouble
    assert writer.counts.dropped == 45
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE away RENAME TO tls_results"))
    until(lambda: writer.counts.waiting == 0 and writer.trouble is None)
    with engine.connect() as connection:
        found = connection.execute(text("SELECT reason FROM tls_results ORDER BY id")).scalars().all()
    assert found == ["45", "46", "47", "48", "49"]
    assert writer.close(TIMEOUT_S)
    engine.dispose()


def test_the_end_comes_at_the_deadline_even_if_the_database_does_not(tmp_path: Path) -> None:
    engine = open_engine(sqlite_url(tmp_path / "gateway.db"))
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE tls_results"))
    writer = Writer(engine, limits=QUICK)
    for _ in range(7):
        writer.add(TLS_RESULTS, ROW)
    started = time.monotonic()
    assert not writer.close(0.3)
    assert time.monotonic() - started < 3.0
    assert (writer.counts.waiting, writer.counts.written, writer.counts.dropped) == (0, 0, 7)
    engine.dispose()


@pytest.mark.live
def test_a_restart_of_postgresql_costs_no_row(postgresql: PostgresBed) -> None:
    url = postgresql.new_database()
    engine = open_engine(url)
    writer = Writer(engine, limits=QUICK)
    writer.add(TLS_RESULTS, ROW)
    until(lambda: writer.counts.written == 1)
    postgresql.stop()
    for _ in range(10):
        writer.add(TLS_RESULTS, ROW)
    until(lambda: writer.counts.failures >= 2)
    assert writer.trouble is not None
    postgresql.launch()
    assert writer.close(TIMEOUT_S)
    assert rows(engine) == 11
    assert writer.counts.dropped == 0
    engine.dispose()


# A process that is killed

WRITE_FOR_EVER = """
import sys
from gateway.store.engine import open_engine
from gateway.store.writer import Writer, WriterLimits
from tests.store.test_writer import ROW
from gateway.store.tables import TLS_RESULTS
writer = Writer(open_engine(sys.argv[1]), limits=WriterLimits(gather_s=0.0, batch_rows=50))
while True:
    if writer.counts.waiting < 500:
        for _ in range(100):
            writer.add(TLS_RESULTS, ROW)
    print(writer.counts.written, flush=True)
"""


def test_killed_amid_its_batches_it_leaves_a_readable_database(database: str) -> None:
    written: list[int] = []
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITE_FOR_EVER, database], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        last = 0
        for line in process.stdout:
            last = int(line)
            if last >= 300:
                break
        process.send_signal(signal.SIGKILL)
        process.stdout.close()
        process.wait()
        written.append(last)
    engine = open_engine(database)
    assert rows(engine) >= sum(written)
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
    writer = Writer(engine, limits=QUICK)
    writer.add(TLS_RESULTS, ROW)
    assert writer.close(TIMEOUT_S)
    assert writer.counts.written == 1
    engine.dispose()


def test_two_processes_write_at_the_same_time(database: str) -> None:
    script = WRITE_FOR_EVER.split("while True:", maxsplit=1)[0] + (
        "for _ in range(2_000):\n    writer.add(TLS_RESULTS, ROW)\n"
        "assert writer.close(30) and writer.counts.written == 2_000, writer.counts\n"
    )
    open_engine(database).dispose()
    processes = [subprocess.Popen([sys.executable, "-c", script, database]) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    engine = open_engine(database)
    assert rows(engine) == 4_000
    engine.dispose()
