"""Postfix's sockets on a real process: a question, a report, a worker that is killed, and what the store has at the end."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from gateway.postfix.netstring import Decoder, encode
from gateway.store import Store
from tests.cli.test_serve import PATIENCE_S, Served, free_port
from tests.cli.test_serve_workers import total, workers_of
from tests.corpus import FOLDER
from tests.live.postfix import open_directory
from tests.postfix.datagrams import datagram, sts_policy

CONFIG = """
workers = {workers}
authserv_id = "mx.example.net"
[dns]
zone_file = "{zone}"
[http]
listen = "127.0.0.1:{http}"
[tls_policy]
listen = "unix:{folder}/tls-policy.sock"
tlsrpt_socket = "unix:{folder}/tlsrpt.sock"
[outbound_tls.overrides]
"encrypt.example" = "encrypt"
[store]
url = "sqlite:///{folder}/gateway.db"
"""


class Gateway(Served):
    """`gateway serve` with Postfix's two sockets."""

    def __init__(self, folder: Path, workers: int) -> None:
        http_port = free_port()
        config = folder / "gateway.toml"
        zone = FOLDER / "world.zone"
        config.write_text(CONFIG.format(workers=workers, zone=zone, http=http_port, folder=folder))
        super().__init__(config, 0, http_port)
        self.folder = folder

    def ask(self, key: str) -> str:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE_S)
            client.connect(str(self.folder / "tls-policy.sock"))
            client.sendall(encode(f"postfix {key}".encode()))
            decoder = Decoder(1_000)
            while (reply := decoder.next()) is None:
                data = client.recv(1_000)
                assert data, "closed"
                decoder.feed(data)
            return reply.decode()

    def report(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
            writer.sendto(datagram(sts_policy()), str(self.folder / "tlsrpt.sock"))

    def wait_for_total(self, name: str, value: float) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while total(self.get("/metrics"), name) != value:
            assert time.monotonic() < deadline, f"{name} is not {value}:\n{self.get('/metrics')}"
            time.sleep(0.05)


@pytest.fixture
def folder() -> Iterator[Path]:
    with open_directory() as directory:  # short: a UNIX socket's path has 107 bytes
        yield directory


def sessions(folder: Path) -> int:
    async def count() -> int:
        store = Store.open(f"sqlite:///{folder}/gateway.db")
        now = datetime.now(UTC)
        found = await store.sessions(now - timedelta(days=1), now + timedelta(days=1))
        await store.close(PATIENCE_S)
        return sum(one.succeeded for one in found)

    return asyncio.run(count())


def test_one_process(folder: Path) -> None:
    gateway = Gateway(folder, workers=1)
    try:
        gateway.wait_for("listener.ready", 3)
        assert gateway.ask("encrypt.example") == "OK encrypt"
        assert gateway.ask(".example") == "NOTFOUND "
        assert total(gateway.get("/metrics"), "gateway_tls_policy_answers_total") == 2
        gateway.report()
        gateway.wait_for_total("gateway_tlsrpt_datagrams_total", 1)
        assert gateway.stop() == 0
    finally:
        gateway.process.kill()
        gateway.process.wait()
    assert sessions(folder) == 1
    assert not (folder / "tls-policy.sock").exists()
    assert not (folder / "tlsrpt.sock").exists()


def test_the_operators_word_is_taken_over_by_sighup_alone(folder: Path) -> None:
    gateway = Gateway(folder, workers=1)
    try:
        gateway.wait_for("listener.ready", 3)
        assert gateway.ask("encrypt.example") == "OK encrypt"
        gateway.config.write_text(gateway.config.read_text().replace('= "encrypt"', '= "may"'))
        gateway.process.send_signal(signal.SIGHUP)
        gateway.wait_for("config.reloaded", 1)
        assert gateway.ask("encrypt.example") == "OK may"
        assert gateway.ask("[encrypt.example]") == "OK may"
        assert gateway.stop() == 0
    finally:
        gateway.process.kill()
        gateway.process.wait()


def test_a_worker_that_is_killed_leaves_its_sockets_to_the_next(folder: Path) -> None:
    gateway = Gateway(folder, workers=2)
    try:
        gateway.wait_for("worker.ready", 3)
        assert gateway.ask("encrypt.example") == "OK encrypt"
        gateway.report()
        gateway.wait_for_total("gateway_store_rows_total", 1)
        os.kill(workers_of(gateway)["worker-0"], signal.SIGKILL)
        gateway.wait_for("worker.ready", 4)
        assert gateway.ask("encrypt.example") == "OK encrypt"
        gateway.report()
        gateway.wait_for_total("gateway_store_rows_total", 2)
        # New settings need new workers: the sockets go from the old first one to the new one.
        config = gateway.config.read_text().replace('= "encrypt"', '= "may"')
        gateway.config.write_text(config.replace("[tls_policy]", "[tls_policy]\nmax_connections = 999"))
        gateway.process.send_signal(signal.SIGHUP)
        gateway.wait_for("worker.ready", 6)
        assert gateway.ask("encrypt.example") == "OK may"
        gateway.report()
        gateway.wait_for_total("gateway_store_rows_total", 3)
        assert gateway.stop() == 0
    finally:
        gateway.process.kill()
        gateway.process.wait()
    assert sessions(folder) == 3
