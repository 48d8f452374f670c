"""The socket that Postfix reports to: who may write, what is counted, what a bad datagram does (nothing)."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from structlog.testing import capture_logs

import gateway.listeners.tlsrpt as module
from gateway.listeners.tlsrpt import ReportSocket, TlsReportListener
from tests.listeners.socketmap import until
from tests.live.postfix import open_directory
from tests.postfix.datagrams import datagram, mixed, sts_policy, tlsa_policy

if TYPE_CHECKING:
    from gateway.tlspolicy.model import TlsSession


class Taken:
    """What came."""

    def __init__(self) -> None:
        self.sessions: list[TlsSession] = []
        self.outcomes: list[str] = []

    def tls_report(self, outcome: str) -> None:
        self.outcomes.append(outcome)


class Bed:
    def __init__(self, path: Path) -> None:
        self.path = path
        self.taken = Taken()
        self.listener = TlsReportListener(
            ReportSocket(path=path, mode=0o620), record=self.taken.sessions.append, observer=self.taken
        )
        self._writer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._writer.setblocking(False)  # noqa: FBT003 - socket's own

    def send(self, data: bytes) -> None:
        self._writer.sendto(data, os.fspath(self.path))

    async def send_patiently(self, data: bytes) -> None:
        """libtlsrpt gives up where the kernel's queue is full; a test waits."""
        while True:
            with contextlib.suppress(BlockingIOError):
                return self.send(data)
            await asyncio.sleep(0)

    def end(self) -> None:
        self._writer.close()
        self.listener.close()


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory


@pytest.fixture
async def bed(directory: Path) -> AsyncIterator[Bed]:
    bed = Bed(directory / "tlsrpt.sock")
    await bed.listener.start()
    yield bed
    bed.end()


async def test_each_session_is_recorded(bed: Bed) -> None:
    assert stat.S_IMODE(bed.path.stat().st_mode) == 0o620
    for data in mixed():
        await bed.send_patiently(data)
    await until(lambda: len(bed.taken.outcomes) == len(mixed()))
    assert len(bed.taken.sessions) == len(mixed()) + 1  # one of them has two policies
    assert {one.delivery for one in bed.taken.sessions} == {"postfix"}


async def test_a_bad_datagram_is_counted_and_told_of_now_and_then(bed: Bed) -> None:
    with capture_logs() as logs:
        for data in (b"", b"{}", b"[" * 100_000, datagram(sts_policy(), version="9")):
            await bed.send_patiently(data)
        await bed.send_patiently(datagram(tlsa_policy()))
        await until(lambda: len(bed.taken.outcomes) == 5)
    assert bed.taken.outcomes == ["refused"] * 4 + ["taken"]
    assert [one["event"] for one in logs if one["log_level"] == "warning"] == ["tlsrpt.refused"]


async def test_a_flood_leaves_the_loop_to_others(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever waits in the socket, one turn of the loop takes a bounded number."""
    monkeypatch.setattr(module, "AT_ONCE", 3)
    for _ in range(10):  # Linux queues as many even where nobody has raised net.unix.max_dgram_qlen
        bed.send(datagram(sts_policy()))
    taken = 0
    while taken < 10:
        before = len(bed.taken.outcomes)
        await asyncio.sleep(0)
        taken = len(bed.taken.outcomes)
        assert taken - before <= 3


async def test_what_has_come_is_taken_at_the_end(bed: Bed) -> None:
    bed.send(datagram(sts_policy()))
    bed.listener.close()
    assert len(bed.taken.sessions) == 1
    assert not bed.path.exists()
    bed.listener.close()


async def test_who_never_stops_sending_cannot_keep_it_from_ending(
    bed: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "AT_ONCE", 3)
    monkeypatch.setattr(module, "MAX_QUEUED", 12)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as flood:
        flood.connect(os.fspath(bed.path))

        def record_and_send_again(session: "TlsSession") -> None:
            bed.taken.sessions.append(session)
            flood.send(datagram(sts_policy()))

        monkeypatch.setattr(bed.listener, "_record", record_and_send_again)
        flood.send(datagram(sts_policy()))
        bed.listener.close()
    assert len(bed.taken.sessions) == 12


async def test_a_dead_process_socket_is_taken_over_and_a_living_ones_is_not(directory: Path) -> None:
    path = directory / "tlsrpt.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(os.fspath(path))
        bed = Bed(path)
        with pytest.raises(OSError, match="another process is listening there"):
            await bed.listener.start()
    await bed.listener.start()
    bed.send(datagram(sts_policy()))
    await until(lambda: len(bed.taken.sessions) == 1)
    bed.end()


async def test_a_successor_takes_the_path_over_and_nothing_is_lost(bed: Bed) -> None:
    bed.send(datagram(sts_policy()))
    successor = Bed(bed.path)
    await successor.listener.start(shared=True)
    bed.send(datagram(tlsa_policy()))
    bed.listener.close()
    await until(lambda: len(successor.taken.sessions) == 1)
    assert [one.policy_type for one in bed.taken.sessions] == ["sts"]
    assert [one.policy_type for one in successor.taken.sessions] == ["tlsa"]
    assert successor.path.is_socket()
    successor.end()


def test_on_the_loop_of_gateway_serve(directory: Path) -> None:
    """uvloop takes a socket like this by `add_reader` alone."""

    async def report() -> None:
        bed = Bed(directory / "tlsrpt.sock")
        await bed.listener.start()
        for data in mixed():
            await bed.send_patiently(data)
        await until(lambda: len(bed.taken.outcomes) == len(mixed()))
        bed.end()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(report())
