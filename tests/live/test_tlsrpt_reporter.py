"""sys4's own collector reads the same datagrams as we do, and counts the same sessions."""

import asyncio
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from gateway.listeners.tlsrpt import ReportSocket, TlsReportListener
from gateway.ops.metrics import Metrics
from gateway.store import Store
from tests.live.postfix import open_directory
from tests.postfix.datagrams import mixed

pytestmark = pytest.mark.live

PATIENCE_S: Final = 20.0
_TYPES: Final = {1: "tlsa", 2: "sts", 9: "no-policy-found"}

Counted = dict[tuple[str, str, tuple[str, ...], tuple[str, ...]], tuple[int, int]]


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory


def foreign(directory: Path) -> Counted:
    """What tlsrpt-collectd makes of the datagrams: successes and failures by domain and policy."""
    program = shutil.which("tlsrpt-collectd", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("tlsrpt-collectd (pip: tlsrpt-reporter) is not installed")
    path, database = directory / "theirs.sock", directory / "theirs.sqlite"
    options = ["--storage", f"sqlite:///{database}", "--socketname", str(path), "--socketmode", "0600"]
    log = (directory / "log").open("wb")
    collector = subprocess.Popen([program, *options, "--max_uncommited_datagrams", "1"], stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while rows(database) is None or not path.is_socket():
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.02)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
            for data in mixed():
                writer.sendto(data, str(path))
        while sum(total for *_, total, _ in rows(database) or ()) < len(mixed()) + 1:
            assert time.monotonic() < deadline, (directory / "log").read_text()
            time.sleep(0.02)
    finally:
        collector.terminate()
        collector.wait(PATIENCE_S)
        log.close()
    counted: Counted = {}
    for domain, policy_text, total, failed in rows(database) or ():
        policy = json.loads(policy_text)
        key = (
            domain,
            _TYPES[policy["policy-type"]],
            tuple(policy.get("policy-string", ())),
            tuple(policy.get("mx-host", ())),
        )
        counted[key] = total - failed, failed
    return counted


def rows(database: Path) -> list[tuple[Any, ...]] | None:
    """Its table; None while it is not there."""
    query = "SELECT domain, policy, sum(cntrtotal), sum(cntrfailure) FROM finalresults GROUP BY 1, 2"
    try:
        with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=1)) as connection:
            return connection.execute(query).fetchall()
    except sqlite3.OperationalError:
        return None


async def ours(directory: Path) -> Counted:
    store = Store.open(f"sqlite:///{directory}/ours.sqlite")
    path = directory / "ours.sock"
    listener = TlsReportListener(ReportSocket(path=path), record=store.record, observer=Metrics())
    await listener.start()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
        writer.setblocking(False)  # noqa: FBT003 - socket's own
        for data in mixed():
            writer.sendto(data, str(path))
            await asyncio.sleep(0)
    listener.close()
    await asyncio.to_thread(store.writer.close, PATIENCE_S)
    now = datetime.now(UTC)
    found = await store.sessions(now - timedelta(days=1), now + timedelta(days=1))
    await store.close(PATIENCE_S)
    return {
        (one.policy_domain, one.policy_type.value, one.policy_string, one.mx_host): (
            one.succeeded,
            one.failed,
        )
        for one in found
    }


async def test_both_count_the_same(directory: Path) -> None:
    theirs = await asyncio.to_thread(foreign, directory)
    assert await ours(directory) == theirs
    assert len(theirs) == 5
