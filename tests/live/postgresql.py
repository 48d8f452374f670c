"""A real PostgreSQL for tests: a cluster of its own in a private directory, reached by a UNIX socket in it and nowhere else.

    with PostgresBed.running() as bed:
        engine = open_engine(bed.new_database())

PostgreSQL refuses to run as root, so that as root it is run as Debian's user `postgres`.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Final, Self

import pytest

USER: Final = "gateway"
PASSWORD: Final = "correct horse"

_ROOT: Final = "postgres"
_STOP_S: Final = 20.0
_START_S: Final = 30
_numbers: Final = count(1)


@dataclass(slots=True)
class PostgresBed:
    """One running cluster; its superuser is `postgres`, its other user `USER` with `PASSWORD`."""

    directory: Path
    _programs: Path
    _server: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @classmethod
    @contextlib.contextmanager
    def running(cls) -> Iterator[Self]:
        """A cluster that answers. Skips the test, with the reason, where PostgreSQL is missing."""
        programs = _programs()
        if programs is None:
            pytest.skip("no PostgreSQL server (Debian: postgresql)")
        # Not pytest's tmp_path: its name can be too long for a socket, and its parents are closed to other users.
        directory = Path(tempfile.mkdtemp(prefix="pg-bed-"))
        if os.geteuid() == 0:
            os.chown(directory, pwd.getpwnam(_ROOT).pw_uid, -1)
        bed = cls(directory, programs)
        try:
            bed._make()
            bed.launch()
            try:
                yield bed
            finally:
                bed.stop()
        finally:
            shutil.rmtree(directory)

    def launch(self) -> None:
        """Run the server (again, after `stop` or `kill`) and wait until it takes connections."""
        log = (self.directory / "log").open("ab")
        data, sockets = str(self.directory / "data"), str(self.directory)
        arguments = ["-D", data, "-k", sockets, "-c", "listen_addresses=", "-c", "fsync=off"]
        self._server = subprocess.Popen(
            [*_privilege(), self._program("postgres"), *arguments],
            stdout=log,
            stderr=log,
            cwd=self.directory,
        )
        log.close()
        self._wait()

    def stop(self) -> None:
        """End it, cutting off whoever is connected (PostgreSQL's fast shutdown)."""
        server, self._server = self._server, None
        if server is not None:
            server.send_signal(signal.SIGINT)
            server.wait(_STOP_S)

    def new_database(self) -> str:
        """An empty database of `USER`'s; its URL."""
        name = f"store{next(_numbers)}"
        self.sql(f"CREATE DATABASE {name} OWNER {USER}")
        return self.url(name)

    def url(self, database: str, *, user: str = USER, password: str = PASSWORD) -> str:
        """The URL of a database here."""
        secret = password.replace(" ", "%20")
        return f"postgresql+psycopg://{user}:{secret}@/{database}?host={self.directory}"

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Do this as superuser."""
        who = ["-h", str(self.directory), "-U", _ROOT, "-d", database]
        command = [self._program("psql"), *who, "-AtXqc", statement]
        return self._run(command).strip()

    def _make(self) -> None:
        data = self.directory / "data"
        self._run([self._program("initdb"), "-D", str(data), "-U", _ROOT, "-A", "trust", "-E", "UTF8", "-N"])
        hba = f"local all {_ROOT} trust\nlocal all all scram-sha-256\n"
        (data / "pg_hba.conf").write_text(hba)
        self.launch()
        self.sql(f"CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'")
        self.stop()

    def _wait(self) -> None:
        ready = [self._program("pg_isready"), "-q", "-h", str(self.directory), "-t", "1"]
        for _ in range(_START_S * 20):
            if subprocess.run([*_privilege(), *ready], check=False).returncode == 0:
                return
            if self._server is None or self._server.poll() is not None:
                break
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(0.05)
        raise AssertionError(f"PostgreSQL did not start:\n{(self.directory / 'log').read_text()}")

    def _program(self, name: str) -> str:
        return str(self._programs / name)

    def _run(self, command: list[str]) -> str:
        done = subprocess.run(
            [*_privilege(), *command], capture_output=True, check=False, text=True, cwd=self.directory
        )
        assert done.returncode == 0, f"{command}: {done.stderr or done.stdout}"
        return done.stdout


def _programs() -> Path | None:
    """Debian keeps the server's programs out of PATH, by version."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    named = shutil.which("postgres")
    server = found[-1] if found else Path(named).resolve() if named else None
    return server.parent if server else None


def _privilege() -> list[str]:
    if os.geteuid() != 0:
        return []
    return ["setpriv", f"--reuid={_ROOT}", f"--regid={_ROOT}", "--clear-groups"]
