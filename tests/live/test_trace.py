"""Traces of real mail: what an operator was told of a message finds its story, whatever befell gateway or store meanwhile."""

import json
import re
import smtplib
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.corpus import CorpusCase, load_cases, zone_text
from tests.live.doors import free_port, hand_in, open_inbox
from tests.live.postfix import PostfixBed, open_directory, wait_until

pytestmark = pytest.mark.live

CASES = {case.name: case for case in load_cases()}

CONFIG = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]
workers = {workers}
[dns]
zone_file = "zone.txt"
[inbound]
listen = ["127.0.0.1:{inbound}"]
downstream = "127.0.0.1:{downstream}"
xclient_from = ["127.0.0.1"]
[store]
url = "sqlite:///{folder}/gateway.db"
"""
MILTER = '[milter]\nlisten = "unix:{folder}/milter.sock"\nsocket_mode = 0o666\n'


@dataclass(slots=True)
class Gateway:
    """A gateway that keeps traces, and `gateway trace` beside it."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"

    def hand_in(self, case: CorpusCase, port: int | None = None) -> tuple[int, str]:
        return hand_in(port or self.port, ip=case.ip, helo=case.helo, mail_from=case.mail_from, raw=case.raw)

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [
            sys.executable,
            "-m",
            "gateway",
            "trace",
            *words,
            "--config",
            str(self.folder / "gateway.toml"),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def found(self, *words: str) -> list[dict[str, Any]]:
        done = self.run(*words, "--json")
        assert done.returncode in {0, 1}, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    def wait_for(self, *words: str, count: int = 1) -> list[dict[str, Any]]:
        """The traces, once they are written: a second after the message, or little more."""
        wait_until(lambda: len(self.found(*words)) >= count, f"{count} traces of {words}", timeout_s=30)
        return self.found(*words)


@contextmanager
def running(folder: Path, downstream: int, *, workers: int = 1, milter: bool = False) -> Iterator[Gateway]:
    port = free_port()
    (folder / "zone.txt").write_text(zone_text())
    text = CONFIG.format(workers=workers, inbound=port, downstream=downstream, folder=folder)
    (folder / "gateway.toml").write_text(text + (MILTER.format(folder=folder) if milter else ""))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "gateway.toml")], stderr=log
        )
    try:
        wait_until(lambda: greets(port), "the gateway", timeout_s=20, explain=(folder / "log").read_text)
        if milter:
            wait_until((folder / "milter.sock").exists, "the milter's socket", timeout_s=20)
        yield Gateway(folder, port, process)
    finally:
        process.terminate()
        process.wait(60)


def greets(port: int) -> bool:
    try:
        with smtplib.SMTP("127.0.0.1", port, timeout=5):
            return True
    except OSError:
        return False


@dataclass(slots=True)
class World:
    gateway: Gateway
    behind: PostfixBed
    before: PostfixBed


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A Postfix behind the proxy, and one before the milter."""
    with open_directory() as folder:
        behind = PostfixBed.start(folder / "behind", xclient=True, local_domains=("example.net",))
        before = PostfixBed.start(
            folder / "before",
            xclient=True,
            local_domains=("example.net",),
            milters=(f"unix:{folder}/milter.sock",),
        )
        try:
            with running(folder, behind.port, milter=True) as gateway:
                yield World(gateway, behind, before)
        finally:
            behind.stop()
            before.stop()


def id_in(text: str) -> str:
    """What a sender can read out of a refusal."""
    found = re.search(r"\([a-z-]+, ([0-9a-f.]+)\)", text)
    assert found is not None, text
    return found[1]


@pytest.mark.parametrize("door", ["proxy", "milter"])
def test_a_refused_message_is_found_by_the_id_in_its_reply(world: World, door: str) -> None:
    port = world.gateway.port if door == "proxy" else world.before.port
    code, text = world.gateway.hand_in(CASES["spoofed-reject"], port)
    assert code == 550
    (trace,) = world.gateway.wait_for(id_in(text))
    assert (trace["stage"], trace["disposition"], trace["rule"]) == ("message", "reject", "dmarc-reject")
    assert f"{trace['reply']['enhanced']} {trace['reply']['lines'][0]}" == text
    assert trace["evidence"]["dmarc"]["status"] == "fail"
    assert trace["session"]["client_ip"] == CASES["spoofed-reject"].ip
    assert next(step[0] for step in trace["tried"]) == "own-users"
    told = world.gateway.run(text.split()[-1]).stdout  # with the bracket behind it
    for words in ('Refused by the rule "dmarc-reject".', "(RFC 9989", "bank.example", "Not own-users"):
        assert words in told, told


def test_a_delivered_message_is_found_by_postfixs_queue_id_and_says_what_postfix_said(world: World) -> None:
    code, text = world.gateway.hand_in(CASES["honest-rsa"])
    assert code == 250
    queue_id = text.split()[-1]
    world.behind.wait_for_message("bob")
    traces = world.gateway.wait_for("--sender", CASES["honest-rsa"].mail_from)
    trace = next(one for one in traces if queue_id in one["downstream"]["reply"]["lines"][0])
    assert trace["downstream"]["ms"] > 0
    assert trace["recipients"][0][1] == 250


def test_by_the_milter_the_queue_id_finds_it(world: World) -> None:
    code, text = world.gateway.hand_in(CASES["honest-rsa"], world.before.port)
    assert code == 250, text
    queue_id = text.split()[-1]
    world.before.wait_for_message("bob")
    (trace,) = world.gateway.wait_for(queue_id)
    assert (trace["session"]["listener"], trace["queue_id"], trace["reply"]) == ("milter", queue_id, None)
    assert "the milter let the message pass" in world.gateway.run(queue_id).stdout


def test_the_message_id_finds_it_by_both_ways(world: World) -> None:
    raw = CASES["spoofed-none"].raw
    message_id = re.search(rb"(?im)^message-id:\s*(<[^>]+>)", raw)
    assert message_id is not None
    for port in (world.gateway.port, world.before.port):
        assert world.gateway.hand_in(CASES["spoofed-none"], port)[0] == 250
    traces = world.gateway.wait_for(message_id[1].decode(), count=2)
    assert {trace["session"]["listener"] for trace in traces} == {"inbound", "milter"}
    for bed in (world.behind, world.before):
        bed.wait_for_message("bob")


def test_a_recipient_that_postfix_does_not_know_leaves_a_short_trace(world: World) -> None:
    case = CASES["honest-rsa"]
    code, text = hand_in(
        world.gateway.port, ip=case.ip, helo=case.helo, mail_from=case.mail_from, raw=case.raw,
        recipient="nobody@example.net",
    )  # fmt: skip
    assert code == 550, text
    (trace,) = world.gateway.wait_for("nobody@example.net")
    assert (trace["stage"], trace["disposition"], trace["size"]) == ("rcpt", None, None)
    assert "nobody@example.net" in trace["recipients"][0][2]


def test_several_workers_write_to_one_store(tmp_path: Path) -> None:
    with open_inbox() as (inbox, port), running(tmp_path, port, workers=2) as gateway:
        for _ in range(20):
            assert gateway.hand_in(CASES["honest-rsa"])[0] == 250
        traces = gateway.wait_for("--limit", "100", count=20)
        assert len({trace["id"] for trace in traces}) == len(inbox.messages) == 20


def test_stopped_in_order_nothing_is_lost_and_the_traces_are_still_there_to_be_read(tmp_path: Path) -> None:
    with open_inbox() as (_, port), running(tmp_path, port) as gateway:
        for _ in range(10):
            assert gateway.hand_in(CASES["honest-rsa"])[0] == 250
        gateway.process.terminate()
        assert gateway.process.wait(60) == 0
        assert len(gateway.found("--limit", "100")) == 10


def test_killed_the_last_batch_is_lost_and_no_mail(tmp_path: Path) -> None:
    with open_inbox() as (inbox, port), running(tmp_path, port) as gateway:
        for _ in range(10):
            assert gateway.hand_in(CASES["honest-rsa"])[0] == 250
        gateway.wait_for("--limit", "100", count=10)
        _, refused = gateway.hand_in(CASES["spoofed-reject"])
        assert gateway.hand_in(CASES["honest-rsa"])[0] == 250
        gateway.process.kill()
        gateway.process.wait()
        assert len(inbox.messages) == 11
        assert 10 <= len(gateway.found("--limit", "100")) <= 12
        assert gateway.run(id_in(refused)).returncode in {0, 1}  # the store is whole, and can be read


def test_a_store_that_cannot_be_written_holds_up_no_mail(tmp_path: Path) -> None:
    with open_inbox() as (inbox, port), running(tmp_path, port) as gateway:
        assert gateway.hand_in(CASES["honest-rsa"])[0] == 250
        gateway.wait_for("--limit", "100")
        lock = sqlite3.connect(tmp_path / "gateway.db", isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        for _ in range(10):
            assert gateway.hand_in(CASES["honest-rsa"])[0] == 250
        code, text = gateway.hand_in(CASES["spoofed-reject"])
        assert code == 550
        assert len(inbox.messages) == 11
        wait_until(lambda: "store.down" in (tmp_path / "log").read_text(), "the log to tell", timeout_s=30)
        lock.execute("ROLLBACK")
        lock.close()
        gateway.wait_for(id_in(text))
        assert len(gateway.found("--limit", "100")) == 12
