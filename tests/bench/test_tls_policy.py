"""What an answer to Postfix costs that is kept already: processor time of `gateway serve`, beside a server that says one thing.

The figures go to the terminal and are told in docs/performance.md; asserted is the goal of 50 µs.
"""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from tests.bench.processes import free_port, running, wait_for

pytestmark = pytest.mark.bench

ROUNDS = 3
QUESTIONS = 20_000
PIPELINED = 50
GOAL_US = 50

ZONE = """\
$TTL 3600
may.example. MX 10 mx.may.example.
mx.may.example. A 192.0.2.1
secure.example. MX 10 mx1.secure.example.
secure.example. MX 20 mx2.secure.example.
mx1.secure.example. A 192.0.2.2
mx2.secure.example. A 192.0.2.3
"""

CONFIG = """\
authserv_id = "mx.example.net"
[dns]
zone_file = "bench.zone"
[tls_policy]
listen = "127.0.0.1:{port}"
[outbound_tls]
mta_sts = false
[outbound_tls.overrides]
"secure.example" = "secure"
[log]
level = "info"
"""


class Server(NamedTuple):
    name: str
    port: int
    pid: int


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Server]]:
    folder = tmp_path_factory.mktemp("bench")
    port, floor_port = free_port(), free_port()
    (folder / "bench.zone").write_text(ZONE)
    config = folder / "gateway.toml"
    config.write_text(CONFIG.format(port=port))
    gateway = [sys.executable, "-m", "gateway", "serve", "--config", str(config)]
    floor = [sys.executable, "-m", "tests.bench.netstring_floor", str(floor_port)]
    with running(gateway, log=folder / "log") as ours, running(floor) as theirs:
        try:
            wait_for(ours, ("127.0.0.1", port))
        except ChildProcessError as error:
            pytest.fail(f"{error}:\n{(folder / 'log').read_text()}")
        wait_for(theirs, ("127.0.0.1", floor_port))
        yield Server("floor", floor_port, theirs.pid), Server("gateway", port, ours.pid)


def nanoseconds_used(pid: int) -> int:
    """Processor time of all threads, finer than the 10 ms of /proc/PID/stat."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads)


def netstring(content: str) -> bytes:
    return f"{len(content)}:{content},".encode()


def ask(server: Server, domain: str, at_once: int) -> tuple[float, bytes]:
    """Microseconds of the server's processor time for one question, and the last answer."""
    question = netstring(f"postfix {domain}")
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(question)
        answer = connection.recv(65_536)
        before = nanoseconds_used(server.pid)
        for _ in range(QUESTIONS // at_once):
            connection.sendall(question * at_once)
            missing = len(answer) * at_once
            while missing:
                got = connection.recv(65_536)
                assert got, "the server closed the connection"
                missing -= len(got)
        spent = nanoseconds_used(server.pid) - before
    return spent / 1_000 / QUESTIONS, answer


@pytest.mark.parametrize("at_once", [1, PIPELINED], ids=["one-by-one", "pipelined"])
@pytest.mark.parametrize(
    ("domain", "word"), [("may.example", b"NOTFOUND"), ("secure.example", b"secure match=")]
)
def test_a_kept_answer(servers: tuple[Server, Server], domain: str, word: bytes, at_once: int) -> None:
    spent: dict[str, list[float]] = {server.name: [] for server in servers}
    for _ in range(ROUNDS):
        for server in servers:
            cost, answer = ask(server, domain, at_once)
            spent[server.name].append(cost)
            assert server.name == "floor" or word in answer
    floor, gateway = median(spent["floor"]), median(spent["gateway"])
    sys.stdout.write(
        f"\n{domain:15} {at_once:3} at once: {gateway:6.1f} µs a question, {gateway - floor:5.1f} over the floor of"
        f" {floor:5.1f} ({gateway / floor:.1f} times)\n"
    )
    assert gateway < GOAL_US
