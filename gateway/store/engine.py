"""The way to the database: SQLite in one file, or PostgreSQL that several nodes share.

Every wait has an end (connecting, a lock, a statement), so that no thread of ours can hang on a database that does not answer.
"""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, QueuePool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from gateway.store.errors import StoreError
from gateway.store.migrations import migrate

LOCK_WAIT_S: Final = 5
_LOCK_RETRY_S: Final = 0.02
CONNECT_S: Final = 5
STATEMENT_S: Final = 10
MAX_CONNECTIONS: Final = 4
MAX_REASON_CHARACTERS: Final = 300

_FILE_MODE: Final = 0o640  # who wrote to whom is nobody else's business
_PASSWORD_REMEDY: Final = "correct the password in the URL, or put it into the gateway's ~/.pgpass"
_REMEDIES: Final = (
    # libpq reports no code for a refused connection, only PostgreSQL's words
    ("password authentication failed", _PASSWORD_REMEDY),
    ("no password supplied", _PASSWORD_REMEDY),
    ("no pg_hba.conf entry", "let this host and user in (pg_hba.conf on the database server)"),
    ("peer authentication failed", "run the gateway as that user, or give a password and a host"),
    ("does not exist", "create it (createuser, createdb -O user name), or correct the URL"),
    ("permission denied", "give the gateway's database user its own database or schema"),
    ("could not translate host name", "correct the host name in the URL"),
    ("failed to resolve host", "correct the host name in the URL"),
    ("connection refused", "start PostgreSQL there, or correct host and port"),
    ("connection timeout expired", "look at the network and firewall between here and the database"),
    ("no such file or directory", "start PostgreSQL, or correct the socket's directory in the URL"),
    ("file is not a database", "something else is in this file: give another path"),
    ("readonly database", "give the gateway's user the right to write the file and its directory"),
    ("no such table", "start this release of the gateway once: it brings the store up to date"),
    ("unable to open database file", "give the gateway's user the right to write in the file's directory"),
    ("database is locked", "end the program that holds it open for writing"),
    ("disk image is malformed", "restore the file from a backup, or move it away: a new one is made"),
    ("disk is full", "make room on the disk"),
)


def open_engine(url_text: str) -> Engine:
    """Connect, and bring the tables up to date. Blocks for some seconds at most.

    Raises:
        StoreError: it cannot be used; with the remedy.
    """
    try:
        url = make_url(url_text)
        engine = _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise StoreError(
            "is no URL of a store", 'write "sqlite:////path/file.db" or "postgresql+psycopg://user@host/name"'
        ) from None
    except ModuleNotFoundError:
        raise StoreError(
            "the PostgreSQL driver is not installed", 'pip install "mailflow-gateway[postgresql]"'
        ) from None
    try:
        migrate(engine)
    except SQLAlchemyError as error:
        engine.dispose()
        raise explain(error) from error
    except StoreError:
        engine.dispose()
        raise
    return engine


def open_to_read(url_text: str) -> Engine:
    """Connect to what is there already, and change nothing: while the gateway runs, or after it.

    Raises:
        StoreError: it cannot be used, or is not there; with the remedy.
    """
    try:
        url = make_url(url_text)
        if url.get_backend_name() == "sqlite":
            return _sqlite_to_read(Path(url.database or ""))
        return _postgresql(url).execution_options(postgresql_readonly=True)
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise StoreError("is no URL of a store") from None
    except ModuleNotFoundError:
        raise StoreError(
            "the PostgreSQL driver is not installed", 'pip install "mailflow-gateway[postgresql]"'
        ) from None


def explain(error: Exception) -> StoreError:
    """A database's error in one line, with a remedy where one is known."""
    said = str(error.orig) if isinstance(error, DBAPIError) and error.orig is not None else str(error)
    reason = " ".join(said.split())[:MAX_REASON_CHARACTERS]
    lower = reason.lower()
    return StoreError(reason, next((remedy for words, remedy in _REMEDIES if words in lower), ""))


def _sqlite(url: URL) -> Engine:
    path = Path(url.database or "")
    if not path.name:
        raise ValueError("no file")
    _make_file(path)
    engine = create_engine(
        url,
        connect_args={"timeout": LOCK_WAIT_S},
        pool_size=MAX_CONNECTIONS,
        max_overflow=0,
        hide_parameters=True,  # what is in a row is not for the log
    )
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _sqlite_to_read(path: Path) -> Engine:
    try:
        there = path.is_file()
    except PermissionError:
        there = True
    if not there:
        raise StoreError(f"there is no file {path}", "start the gateway once: it makes the store")
    if not os.access(path, os.R_OK):
        raise StoreError(f"{path} may not be read", "run this as the gateway's user, or as root")
    where = f"file:{quote(os.fspath(path.absolute()))}?mode=ro"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(where, uri=True, timeout=LOCK_WAIT_S, check_same_thread=False)

    return create_engine("sqlite://", creator=connect, poolclass=QueuePool, pool_size=MAX_CONNECTIONS)


def _make_file(path: Path) -> None:
    """Make the file with a mode of ours, and tell plainly where that cannot be: SQLite has one message for all of it."""
    folder = path.parent
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE))
    except FileNotFoundError:
        raise StoreError(
            f"there is no directory {folder}", f"create it: install -d -m 750 {folder}"
        ) from None
    except IsADirectoryError:
        raise StoreError(f"{path} is a directory", "give the file in it") from None
    except PermissionError:
        raise StoreError(
            f"{path} may not be written by the gateway's user (uid {os.geteuid()})",
            "give that user the file and its directory: SQLite keeps -wal and -shm files beside it",
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from error
    if not os.access(folder, os.W_OK):
        raise StoreError(
            f"{folder} may not be written by the gateway's user (uid {os.geteuid()})",
            "SQLite keeps -wal and -shm files beside the database: give that user the directory",
        )


def _set_up_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # `_begin_sqlite` begins; sqlite3's own way would leave DDL outside
    _use_wal(connection)
    for pragma in ("synchronous = NORMAL", "foreign_keys = ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _use_wal(connection: sqlite3.Connection) -> None:
    """A new file changes its mode once. Where another process writes at that moment, SQLite refuses without waiting."""
    deadline = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.OperationalError as error:
            is_busy = getattr(error, "sqlite_errorname", "").startswith("SQLITE_BUSY")
            if not is_busy or time.monotonic() >= deadline:
                raise
        else:
            return
        time.sleep(_LOCK_RETRY_S)


def _begin_sqlite(connection: Connection) -> None:
    # A transaction that reads and then writes must have the lock first, or SQLite refuses it without waiting.
    takes_lock = connection.get_execution_options().get("takes_write_lock")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if takes_lock else "BEGIN")


def _postgresql(url: URL) -> Engine:
    settings = {"statement_timeout": f"{STATEMENT_S}s", "lock_timeout": f"{LOCK_WAIT_S}s", "timezone": "UTC"}
    arguments: dict[str, Any] = {"connect_timeout": CONNECT_S, "application_name": "gateway"}
    if "options" not in url.query:
        arguments["options"] = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return create_engine(
        url,
        connect_args=arguments,
        pool_size=MAX_CONNECTIONS,
        max_overflow=0,
        pool_timeout=CONNECT_S,
        pool_pre_ping=True,  # a restart of the database costs nobody an error
        hide_parameters=True,
    )
