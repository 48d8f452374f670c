"""Several workers as one gateway: what an operator and a sender see of them, in real processes."""

import json
import os
import re
import signal
import smtplib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.cli.test_serve import (
    MAIL,
    PATIENCE_S,
    Downstream,
    Served,
    config_text,
    downstream,
    free_port,
    write_pair,
)
from tests.live.postfix import wait_until
from tests.milter.raw_client import Mail, RawClient

__all__ = ["downstream"]

WORKERS = 3


@pytest.fixture
def served(tmp_path: Path, downstream: tuple[Downstream, int]) -> Iterator[Served]:
    smtp_port, http_port = free_port(), free_port()
    write_pair(tmp_path)
    config = tmp_path / "gateway.toml"
    config.write_text(f"workers = {WORKERS}\n{config_text(downstream[1], smtp_port, http_port)}")
    gateway = Served(config, smtp_port, http_port)
    try:
        gateway.wait_for("worker.ready", WORKERS + 1)
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.stop()


def send(port: int, subject: str) -> None:
    with smtplib.SMTP("127.0.0.1", port, "mail.elsewhere.example", timeout=PATIENCE_S) as client:
        client.sendmail("ann@elsewhere.example", ["bob@example.net"], f"Subject: {subject}\r\n{MAIL}")


def total(metrics: str, name: str) -> float:
    return sum(float(value) for value in re.findall(rf"(?m)^{name}(?:\{{.*\}})? (\S+)$", metrics))


def workers_of(served: Served) -> dict[str, int]:
    ready = [one for one in served.events() if one["event"] == "worker.ready"]
    return {one["worker"]: one["pid"] for one in ready if one["worker"] != "http"}


def test_their_counts_are_one_sum_that_never_goes_back(served: Served) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: send(served.smtp_port, f"m{n}"), range(24)))
    metrics = served.get("/metrics")
    assert total(metrics, "gateway_messages_total") == 24
    assert total(metrics, "gateway_message_duration_seconds_count") == 24
    assert total(metrics, "gateway_workers") == WORKERS
    os.kill(workers_of(served)["worker-1"], signal.SIGKILL)
    served.wait_for("worker.ready", WORKERS + 2)
    metrics = served.get("/metrics")
    assert total(metrics, "gateway_messages_total") == 24
    assert total(metrics, "gateway_workers") == WORKERS
    assert total(metrics, "gateway_sessions_open") == 0
    assert json.loads(served.get("/readyz"))["checks"]["workers"]["detail"].startswith("3 ready: worker-0")
    assert served.stop() == 0


def test_kill_9_under_load_loses_no_message_that_was_answered_250(
    served: Served, downstream: tuple[Downstream, int]
) -> None:
    said_250: list[str] = []
    refused: list[Exception] = []
    stop = threading.Event()

    def load(worker: int) -> None:
        count = 0
        while not stop.is_set():
            count += 1
            subject = f"kill-{worker}-{count}"
            try:
                send(served.smtp_port, subject)
            except (OSError, smtplib.SMTPException) as error:
                refused.append(error)
            else:
                said_250.append(subject)

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(load, n) for n in range(6)]
        for n in range(3):
            os.kill(workers_of(served)[f"worker-{n}"], signal.SIGKILL)
            served.wait_for("worker.lost", n + 1)
            served.wait_for("worker.ready", WORKERS + 2 + n)
        stop.set()
        for one in running:
            one.result(PATIENCE_S)
    arrived = b"\n".join(downstream[0].messages)
    assert said_250
    assert [subject for subject in said_250 if f"Subject: {subject}\r\n".encode() not in arrived] == []
    # Nobody hears a permanent refusal because a process of ours was killed.
    assert not [
        one for one in refused if isinstance(one, smtplib.SMTPResponseException) and one.smtp_code >= 500
    ]
    assert served.stop() == 0


def until(served: Served, name: str, wanted: float) -> str:
    """The scrape in which the metric has this sum; other processes can only be asked again and again."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        metrics = served.get("/metrics")
        if total(metrics, name) == wanted:
            return metrics
        time.sleep(0.1)
    raise AssertionError(f"no {name} of {wanted}: {total(metrics, name)}")


def test_what_the_supervisor_alone_knows_is_told_too(served: Served) -> None:
    assert total(served.get("/metrics"), "gateway_worker_losses_total") == 0
    os.kill(workers_of(served)["worker-2"], signal.SIGKILL)
    served.wait_for("worker.ready", WORKERS + 2)
    until(served, "gateway_worker_losses_total", 1)
    good = served.config.read_text()
    served.config.write_text(f"{good}nonsense = 1\n")
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("config.refused")
    metrics = until(served, "gateway_config_last_reload_successful", 0)
    assert 'gateway_config_reload_total{outcome="refused"} 1.0' in metrics
    served.config.write_text(good)
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("config.reloaded", WORKERS)
    metrics = until(served, "gateway_config_last_reload_successful", 1)
    assert f'gateway_config_reload_total{{outcome="ok"}} {WORKERS}.0' in metrics
    assert served.stop() == 0


def test_workers_report_to_a_new_process_when_the_one_that_serves_metrics_is_gone(served: Served) -> None:
    send(served.smtp_port, "before")
    until(served, "gateway_messages_total", 1)
    (http,) = [
        one["pid"] for one in served.events() if one["event"] == "worker.ready" and one["worker"] == "http"
    ]
    os.kill(http, signal.SIGKILL)
    served.wait_for("listener.ready", WORKERS + 2)
    until(served, "gateway_workers", WORKERS)
    send(served.smtp_port, "after")
    until(served, "gateway_messages_total", 2)
    assert served.stop() == 0


def test_what_the_processes_take_is_told_for_all_of_them(served: Served) -> None:
    metrics = until(served, "gateway_workers_configured", WORKERS)
    workers = set(re.findall(r'gateway_event_loop_lag_seconds_count{worker="(\d)"}', metrics))
    assert workers <= {"0", "1", "2"}
    assert total(metrics, "process_resident_memory_bytes") > (WORKERS + 1) * 10_000_000
    assert total(metrics, "process_cpu_seconds_total") > 0
    assert total(metrics, "gateway_certificate_not_after_timestamp_seconds") > time.time()
    assert served.stop() == 0


def test_a_changed_config_replaces_workers_and_keeps_sessions(
    served: Served, downstream: tuple[Downstream, int]
) -> None:
    old = smtplib.SMTP("127.0.0.1", served.smtp_port, "mail.elsewhere.example", timeout=PATIENCE_S)
    old.ehlo()
    good = served.config.read_text()
    served.config.write_text(good.replace("[inbound]", "[inbound]\nmax_message_bytes = 1000000"))
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("worker.retiring", WORKERS)
    with smtplib.SMTP("127.0.0.1", served.smtp_port, timeout=PATIENCE_S) as new:
        new.ehlo()
        assert new.esmtp_features["size"] == "1000000"
    assert old.esmtp_features["size"] != "1000000"
    old.sendmail("ann@elsewhere.example", ["bob@example.net"], f"Subject: after the reload\r\n{MAIL}")
    assert b"Subject: after the reload" in downstream[0].messages[-1]
    old.quit()
    served.wait_for("worker.ended", WORKERS)
    served.config.write_text(f"{good}nonsense = 1\n")
    served.process.send_signal(signal.SIGHUP)
    assert "nonsense" in served.wait_for("config.refused")["fault"]
    send(served.smtp_port, "still there")
    assert served.stop() == 0


def test_sigterm_finishes_what_is_under_way_in_every_worker(served: Served) -> None:
    clients = [smtplib.SMTP("127.0.0.1", served.smtp_port, "a.example", timeout=PATIENCE_S) for _ in range(6)]
    for client in clients:
        client.ehlo()
        client.mail("ann@elsewhere.example")
        client.rcpt("bob@example.net")
        assert client.docmd("DATA")[0] == 354
    served.process.send_signal(signal.SIGTERM)
    served.wait_for("gateway.draining")
    for client in clients:
        client.send(MAIL.encode() + b".\r\n")
        assert client.getreply()[0] == 250
        client.close()
    assert served.process.wait(PATIENCE_S) == 0


def test_a_taken_port_ends_the_start_with_a_remedy(served: Served, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        config = tmp_path / "second.toml"
        port = taken.getsockname()[1]
        config.write_text(served.config.read_text().replace(str(served.smtp_port), str(port)))
        second = Served(config, port, served.http_port)
        assert second.process.wait(PATIENCE_S) == 2
        said = config.with_name("log").read_text()
    assert "another program listens there" in said
    assert "Traceback" not in said


def sockets_of(pid: int) -> int:
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(entry.readlink()).startswith("socket:")
    return found


def share_a_burst(path: Path, workers: list[int]) -> None:
    before = [sockets_of(pid) for pid in workers]

    def taken() -> list[int]:
        return [sockets_of(pid) - count for pid, count in zip(workers, before, strict=True)]

    with ExitStack() as at_once:
        for _ in range(12):
            at_once.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        wait_until(lambda: sum(taken()) == 12, "all to be taken")
        assert min(taken()) >= 3, f"of a burst each takes its share: {taken()}"


def serve_milter(tmp_path: Path, implementation: str = "own") -> Served:
    http_port = free_port()
    config = tmp_path / "gateway.toml"
    config.write_text(
        f"""
authserv_id = "mx.example.net"
workers = 2
[dns]
zone_file = "/dev/null"
[http]
listen = "127.0.0.1:{http_port}"
[milter]
listen = "unix:{tmp_path}/milter.sock"
implementation = "{implementation}"
"""
    )
    return Served(config, 0, http_port)


@pytest.mark.parametrize("implementation", ["own", "pymilter"])
def test_the_milter_is_shared(tmp_path: Path, implementation: str) -> None:
    if implementation == "pymilter":
        pytest.importorskip("milter", reason="pymilter is not installed")
    gateway = serve_milter(tmp_path, implementation)
    try:
        gateway.wait_for("worker.ready", 3)
        for _ in range(8):
            with RawClient(tmp_path / "milter.sock") as client:
                client.connect()
                client.helo()
                answer = client.send(Mail())
                assert answer.last.command == "a", answer.text
        assert total(gateway.get("/metrics"), "gateway_messages_total") == 8
        if implementation == "own":
            share_a_burst(tmp_path / "milter.sock", list(workers_of(gateway).values()))
        os.kill(workers_of(gateway)["worker-0"], signal.SIGKILL)
        gateway.wait_for("worker.ready", 4)
        for _ in range(8):
            with RawClient(tmp_path / "milter.sock") as client:
                client.connect()
                client.helo()
                answer = client.send(Mail())
                assert answer.last.command == "a", answer.text
        assert total(gateway.get("/metrics"), "gateway_messages_total") == 16
        assert gateway.stop() == 0
        assert not (tmp_path / "milter.sock").exists()
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()


def test_a_milters_connection_outlives_a_changed_config(tmp_path: Path) -> None:
    gateway = serve_milter(tmp_path)
    try:
        gateway.wait_for("worker.ready", 3)
        with RawClient(tmp_path / "milter.sock") as old:
            old.connect()
            old.helo()
            config = gateway.config.read_text()
            gateway.config.write_text(f'hostname = "other.example.net"\n{config}')
            gateway.process.send_signal(signal.SIGHUP)
            gateway.wait_for("worker.retiring", 2)
            for _ in range(4):
                with RawClient(tmp_path / "milter.sock") as new:
                    new.connect()
                    assert new.send(Mail()).last.command == "a"
            gateway.wait_for("worker.ended")
            assert old.send(Mail()).last.command == "a"
            assert [one["event"] for one in gateway.events()].count("worker.ended") == 1
            old.quit()
        gateway.wait_for("worker.ended", 2)
        assert gateway.stop() == 0
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
