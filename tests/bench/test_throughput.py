"""How much mail a second, and how much of a processor for it: the sink alone, our proxy before it, and our milter.

The figures go to the terminal and are told in docs/performance.md; asserted is only that every message was accepted.
"""

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import NamedTuple

import pytest

from tests.bench.load import Load, run_sender
from tests.bench.mail import Signed, signed_message
from tests.bench.processes import cpu_used, free_port, running, wait_for

pytestmark = pytest.mark.bench

ROUNDS = 3  # odd: the middle one counts
SIZES = {5_000: "5 KB", 100_000: "100 KB"}
SESSIONS = {50: "many", 1: "one"}
MESSAGES = {5_000: 3_000, 100_000: 1_000}
WARM_UP = 200
SINK_CONNECTIONS = 256

CONFIG = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "bench.zone"
[http]
listen = "127.0.0.1:{http_port}"
[inbound]
listen = ["127.0.0.1:{smtp_port}"]
downstream = "127.0.0.1:{sink_port}"
[milter]
listen = "unix:{milter_socket}"
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One way in: who sends to it, where, whose processor time counts, and where each verdict is logged."""

    name: str
    sender: str
    address: str
    pid: int
    log: Path | None = None


class Figures(NamedTuple):
    """Of one load: messages a second, and processor seconds for 1,000 messages."""

    rate: float
    cpu: float
    kernel: float  # the part of `cpu` that the kernel used: socket calls above all
    sender: float  # the sender's own, to show that it is not what limits the rate


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Door]]:
    """The sink, and one gateway with all checks, rules, stamps, logs and metrics on, as `gateway serve` runs it."""
    sink = shutil.which("smtp-sink", path="/usr/sbin:/usr/bin:/usr/local/sbin")
    if sink is None:
        pytest.skip("smtp-sink is not installed (Debian: postfix)")
    folder = tmp_path_factory.mktemp("bench")
    sink_port, smtp_port, http_port = free_port(), free_port(), free_port()
    milter_socket = folder / "milter.sock"
    (folder / "bench.zone").write_text(signed_message(5_000).zone)
    config = folder / "gateway.toml"
    config.write_text(
        CONFIG.format(
            http_port=http_port, smtp_port=smtp_port, sink_port=sink_port, milter_socket=milter_socket
        )
    )
    with ExitStack() as stack:
        unprivileged = ["-u", "nobody"] if os.geteuid() == 0 else []  # as root it insists on a user
        sink_command = [sink, *unprivileged, f"127.0.0.1:{sink_port}", str(SINK_CONNECTIONS)]
        downstream = stack.enter_context(running(sink_command))
        wait_for(downstream, ("127.0.0.1", sink_port))
        log = folder / "gateway.log"
        gateway = stack.enter_context(
            running([sys.executable, "-m", "gateway", "serve", "--config", config], log=log)
        )
        try:
            wait_for(gateway, ("127.0.0.1", smtp_port))
            wait_for(gateway, str(milter_socket))
        except ChildProcessError as error:
            pytest.fail(f"{error}:\n{log.read_text()}")
        smtp_sender, milter_sender = "tests.bench.sender", "tests.bench.milter_sender"
        yield [
            Door(
                name="smtp-sink alone",
                sender=smtp_sender,
                address=f"127.0.0.1:{sink_port}",
                pid=downstream.pid,
            ),
            Door(
                name="SMTP proxy before it",
                sender=smtp_sender,
                address=f"127.0.0.1:{smtp_port}",
                pid=gateway.pid,
                log=log,
            ),
            Door(
                name="milter",
                sender=milter_sender,
                address=str(milter_socket),
                pid=gateway.pid,
                log=log,
            ),
        ]


def measure(door: Door, load: Load) -> Figures:
    logged = door.log.stat().st_size if door.log else 0
    before = cpu_used(door.pid)
    sent = run_sender(door.sender, load)
    assert sent.accepted == load.messages
    after = cpu_used(door.pid)
    if door.log:
        judged = verdicts(door.log, logged)
        assert judged == {("accept", "pass", "pass", "pass"): load.messages}
    share = 1_000 / load.messages
    kernel = after.kernel - before.kernel
    return Figures(
        rate=load.messages / sent.seconds,
        cpu=(after.user - before.user + kernel) * share,
        kernel=kernel * share,
        sender=sent.cpu_seconds * share,
    )


def verdicts(log: Path, start: int) -> Counter[tuple[str, str, str, str]]:
    """Disposition, SPF, DMARC and iprev of every message that was logged from this place on."""
    with log.open("rb") as lines:
        lines.seek(start)
        events = [json.loads(line) for line in lines]
    return Counter(
        (one["disposition"], one["spf"], one["dmarc"], one["iprev"])
        for one in events
        if one["event"] == "message.judged"
    )


def middle(rounds: list[Figures]) -> Figures:
    return Figures(*(median(column) for column in zip(*rounds, strict=True)))


@pytest.mark.parametrize("size", SIZES, ids=SIZES.values())
def test_throughput(doors: list[Door], size: int, tmp_path: Path) -> None:
    signed: Signed = signed_message(size)
    message_file = tmp_path / "message"
    message_file.write_bytes(signed.raw)

    def load(door: Door, messages: int, per_session: int) -> Load:
        return Load(
            address=door.address, message_file=str(message_file), messages=messages, per_session=per_session
        )

    for door in doors:
        measure(door, load(door, WARM_UP, 10))
    # Each round goes through all doors, so that a slow minute of the machine falls on all alike.
    found: dict[tuple[str, int], list[Figures]] = {}
    for _ in range(ROUNDS):
        for per_session in SESSIONS:
            for door in doors:
                figures = measure(door, load(door, MESSAGES[size], per_session))
                found.setdefault((door.name, per_session), []).append(figures)
    medians = {key: middle(rounds) for key, rounds in found.items()}
    sys.stdout.write(f"\n\n{table(size, len(signed.raw), medians, doors[0].name)}\n")


def table(size: int, exact_size: int, figures: dict[tuple[str, int], Figures], bare: str) -> str:
    lines = [
        f"{SIZES[size]} messages ({exact_size} bytes), medians of {ROUNDS}; CPU in seconds per 1,000 messages",
        f"{'':22}{'session':>8}{'CPU':>8}{'(kernel)':>10}{'msgs/s':>9}{'of sink':>9}{'sender CPU':>12}",
    ]
    for (name, per_session), one in figures.items():
        share = one.rate / figures[bare, per_session].rate
        lines.append(
            f"{name:22}{SESSIONS[per_session]:>8}{one.cpu:8.2f}{one.kernel:10.2f}"
            f"{one.rate:9,.0f}{share:9.1%}{one.sender:12.2f}"
        )
    return "\n".join(lines)
