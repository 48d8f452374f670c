"""Opening a store: what an operator is told, what several processes at once do, and what an older or newer one finds."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import inspect, text

from gateway.store import StoreError
from gateway.store.engine import open_engine
from gateway.store.migrations import MIGRATIONS, migrate
from gateway.store.tables import METADATA
from tests.live.postgresql import PostgresBed
from tests.store.databases import database, postgresql, sqlite_url

__all__ = ["database", "postgresql"]


def test_the_tables_are_as_the_code_has_them(database: str) -> None:
    engine = open_engine(database)
    found = inspect(engine)
    for table in METADATA.sorted_tables:
        columns = {one["name"]: one for one in found.get_columns(table.name)}
        assert list(columns) == [column.name for column in table.columns]
        for column in table.columns:
            made = columns[column.name]
            assert made["nullable"] == column.nullable, column
            assert made["type"].compile(engine.dialect) == column.type.compile(engine.dialect), column
        assert found.get_pk_constraint(table.name)["constrained_columns"] == [
            column.name for column in table.primary_key.columns
        ]
        indexes = {one["name"]: one["column_names"] for one in found.get_indexes(table.name)}
        assert indexes == {one.name: [column.name for column in one.columns] for one in table.indexes}
    engine.dispose()


def test_sqlite_is_set_up_for_one_writer_and_many_readers(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    engine = open_engine(sqlite_url(path))
    with engine.connect() as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 1, "foreign_keys": 1, "busy_timeout": 5_000}
    assert path.stat().st_mode & 0o007 == 0  # who wrote to whom is not for every user of the host
    engine.dispose()


def test_each_migration_is_done_once_and_the_next_release_goes_on_from_there(database: str) -> None:
    engine = open_engine(database)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO mta_sts_policies VALUES ('a.example', '1', 'p', '2026-01-01', '2026-01-02')"
        )
    later = (*MIGRATIONS, ("ALTER TABLE mta_sts_policies ADD COLUMN more VARCHAR(5)",))
    migrate(engine, later)
    migrate(engine, later)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT domain, more FROM mta_sts_policies").all() == [
            ("a.example", None)
        ]
        applied = connection.exec_driver_sql("SELECT number FROM gateway_schema ORDER BY 1").scalars().all()
        assert applied == list(range(1, len(later) + 1))
    engine.dispose()


def test_a_migration_that_fails_leaves_nothing_half_done(database: str) -> None:
    engine = open_engine(database)
    broken = (*MIGRATIONS, ("CREATE TABLE more (one INTEGER)", "CREATE TABLE more (one INTEGER)"))
    with pytest.raises(Exception, match="already exists"):
        migrate(engine, broken)
    assert not inspect(engine).has_table("more")
    open_engine(database).dispose()
    engine.dispose()


def test_a_newer_schema_is_refused_with_words(database: str) -> None:
    engine = open_engine(database)
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO gateway_schema VALUES (99, '2030-01-01')"))
    engine.dispose()
    with pytest.raises(StoreError, match=r"newer release of the gateway \(schema 99; this one knows \d+\)"):
        open_engine(database)


OPEN = """
import sys
from gateway.store.engine import open_engine
sys.stdin.readline()
open_engine(sys.argv[1]).dispose()
"""


def test_several_processes_open_an_empty_store_at_once(database: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, database], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    said = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    engine = open_engine(database)
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM gateway_schema").scalar() == len(MIGRATIONS)
    engine.dispose()


def test_a_new_file_that_another_process_writes_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    waits: list[float] = []

    def end_of_the_other(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            other.execute("COMMIT")

    monkeypatch.setattr("gateway.store.engine.time.sleep", end_of_the_other)
    open_engine(sqlite_url(tmp_path / "gateway.db")).dispose()
    assert len(waits) == 2
    assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    other.close()


def _directory(path: Path) -> str:
    path.mkdir()
    return sqlite_url(path)


def _garbage(path: Path) -> str:
    path.write_bytes(b"This is a letter, and no database. " * 50)
    return sqlite_url(path)


@pytest.mark.parametrize(
    ("make", "what", "remedy"),
    [
        (lambda path: sqlite_url(path / "no" / "x.db"), "there is no directory", "install -d"),
        (_directory, "is a directory", "give the file in it"),
        (_garbage, "file is not a database", "give another path"),
        (lambda _: "sqlite://", "is no URL of a store", "sqlite:////"),
        (lambda _: "sqlite:///", "is no URL of a store", "sqlite:////"),
        (lambda _: "postgresql+psycopg://host:port/x", "is no URL of a store", "postgresql+psycopg://"),
        (lambda _: "postgresql+psycopg://u:p@127.0.0.1:1/x", "onnection refused", "start PostgreSQL there"),
        (lambda path: f"postgresql+psycopg://u:p@/x?host={path}", "No such file", "start PostgreSQL"),
    ],
)
def test_what_is_wrong_is_said_with_the_remedy(
    tmp_path: Path, make: Callable[[Path], str], what: str, remedy: str
) -> None:
    with pytest.raises(StoreError) as caught:
        open_engine(make(tmp_path / "gateway.db"))
    assert what in caught.value.what
    assert remedy in caught.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_may_not_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StoreError, match="may not be written by the gateway's user"):
            open_engine(sqlite_url(tmp_path / "gateway.db"))
    finally:
        tmp_path.chmod(0o700)


def test_an_unwritable_file_is_named_to_an_unprivileged_user(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become another user")
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    script = (
        "import os, sys; os.chdir(sys.argv[1]); os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from gateway.store.engine import open_engine\n"
        "open_engine('sqlite:///gateway.db')"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import gateway.store.engine\n{script}", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "gateway.db may not be written by the gateway's user (uid 65534)" in done.stderr


@pytest.mark.live
@pytest.mark.parametrize(
    ("database_name", "user", "password", "what", "remedy"),
    [
        ("postgres", "gateway", "wrong", "password authentication failed", "correct the password"),
        ("nowhere", "gateway", "correct horse", 'database "nowhere" does not exist', "createdb"),
        ("postgres", "gateway", "correct horse", "permission denied", "its own database"),
    ],
)
def test_what_postgresql_refuses_is_said_with_the_remedy(
    postgresql: PostgresBed, database_name: str, user: str, password: str, what: str, remedy: str
) -> None:
    with pytest.raises(StoreError) as caught:
        open_engine(postgresql.url(database_name, user=user, password=password))
    assert what in caught.value.what
    assert remedy in caught.value.remedy
    assert password not in str(caught.value)


def test_a_file_of_an_older_sqlite_mode_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "gateway.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (one)")
    connection.close()
    open_engine(sqlite_url(path)).dispose()
