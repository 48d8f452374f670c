"""A real process, real signals: what an operator sees of `gateway serve`."""

import json
import os
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.auth.dkim.signing import ed25519_pem, rsa_pem
from tests.corpus import FOLDER

PATIENCE_S = 15.0
MAIL = "From: ann@elsewhere.example\r\nTo: bob@example.net\r\n\r\nhello\r\n"
OWN_MAIL = "From: ann@example.net\r\nTo: bob@elsewhere.example\r\n\r\nhello\r\n"


class Downstream:
    """A mail server that takes everything."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802 - aiosmtpd's
        self.messages.append(envelope.content or b"")  # type: ignore[arg-type] # bytes, unless decode_data is set
        return "250 2.0.0 taken"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Served:
    """One `gateway serve`."""

    def __init__(self, config: Path, smtp_port: int, http_port: int) -> None:
        self.config = config
        self.smtp_port = smtp_port
        self.http_port = http_port
        self._log = config.with_name("log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", config], stderr=log
            )

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._log.read_text().splitlines() if line.startswith("{")]

    def wait_for(self, event: str, count: int = 1) -> dict[str, Any]:
        """The `count`th event of this name; a process of its own can only be watched."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            found = [one for one in self.events() if one["event"] == event]
            if len(found) >= count:
                return found[count - 1]
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        raise AssertionError(f"no {event} in:\n{self._log.read_text()}")

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def downstream() -> Iterator[tuple[Downstream, int]]:
    handler = Downstream()
    controller = Controller(handler, hostname="127.0.0.1", port=free_port())
    controller.start()
    yield handler, int(controller.port)
    controller.stop()


def config_text(downstream_port: int, smtp_port: int, http_port: int) -> str:
    return f"""
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "{FOLDER}/world.zone"
[http]
listen = "127.0.0.1:{http_port}"
[inbound]
listen = ["127.0.0.1:{smtp_port}"]
downstream = "127.0.0.1:{downstream_port}"
tls_certificate = "cert.pem"
tls_key = "key.pem"
"""


def write_pair(folder: Path) -> None:
    pair = trustme.CA().issue_cert("mx.example.net")
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
    (folder / "key.pem").write_bytes(pair.private_key_pem.bytes())
    (folder / "key.pem").chmod(0o600)


@pytest.fixture
def served(tmp_path: Path, downstream: tuple[Downstream, int]) -> Iterator[Served]:
    smtp_port, http_port = free_port(), free_port()
    write_pair(tmp_path)
    config = tmp_path / "gateway.toml"
    config.write_text(config_text(downstream[1], smtp_port, http_port))
    gateway = Served(config, smtp_port, http_port)
    try:
        gateway.wait_for("listener.ready", 2)
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait()


def test_a_message_is_handed_on_logged_and_counted(
    served: Served, downstream: tuple[Downstream, int]
) -> None:
    with smtplib.SMTP("127.0.0.1", served.smtp_port, "mail.elsewhere.example", timeout=PATIENCE_S) as client:
        client.sendmail("ann@elsewhere.example", ["bob@example.net"], MAIL)
    assert downstream[0].messages[-1].startswith(b"Authentication-Results: mx.example.net;")
    event = served.wait_for("message.judged")
    assert (event["mail_from"], event["disposition"], event["listener"]) == (
        "ann@elsewhere.example",
        "accept",
        "inbound",
    )
    assert json.loads(served.get("/readyz"))["status"] == "ready"
    assert 'gateway_messages_total{disposition="accept",listener="inbound",rule="' in served.get("/metrics")
    assert served.stop() == 0
    served.wait_for("gateway.stopped")


def test_a_scrape_leads_to_the_message(served: Served) -> None:
    with smtplib.SMTP("127.0.0.1", served.smtp_port, "mail.elsewhere.example", timeout=PATIENCE_S) as client:
        client.starttls(context=ssl._create_unverified_context())
        client.sendmail("ann@elsewhere.example", ["bob@example.net"], MAIL)
    identifier = served.wait_for("message.judged")["id"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{served.http_port}/metrics", headers={"Accept": "application/openmetrics-text"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        metrics = answer.read().decode()
    assert re.search(
        rf'(?m)^gateway_message_duration_seconds_bucket{{.*}} 1.0 # {{trace_id="{identifier}"}}', metrics
    )
    assert re.search(r'gateway_tls_sessions_total{.*direction="in".*version="TLSv1.3"} 1.0', metrics)
    assert identifier not in served.get("/metrics")  # the plain format has no place for it
    assert 'gateway_log_events_total{level="info"}' in metrics


def test_a_certificate_tells_its_end_from_the_reload_on(served: Served, tmp_path: Path) -> None:
    def end() -> float:
        found = re.search(
            r'gateway_certificate_not_after_timestamp_seconds{listener="inbound"} (\S+)',
            served.get("/metrics"),
        )
        assert found
        return float(found[1])

    before = end()
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(days=3)
    pair = trustme.CA().issue_cert("mx.example.net", not_after=soon)
    (tmp_path / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
    (tmp_path / "key.pem").write_bytes(pair.private_key_pem.bytes())
    assert end() == before  # the one in use
    served.process.send_signal(signal.SIGHUP)
    served.wait_for("config.reloaded")
    assert end() == soon.timestamp() < before


def test_sigterm_finishes_the_message_under_way(served: Served) -> None:
    with socket.create_connection(("127.0.0.1", served.smtp_port), PATIENCE_S) as connection:
        stream = connection.makefile("rwb")

        def say(line: bytes) -> bytes:
            stream.write(line + b"\r\n")
            stream.flush()
            while True:
                reply: bytes = stream.readline()
                if reply[3:4] != b"-":
                    return reply

        stream.readline()
        for line in (b"EHLO a.example", b"MAIL FROM:<>", b"RCPT TO:<bob@example.net>", b"DATA"):
            assert say(line)[:1] in b"23"
        stream.write(b"From: ann@elsewhere.example\r\n\r\n")
        stream.flush()
        served.process.send_signal(signal.SIGTERM)
        served.wait_for("gateway.draining")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", served.smtp_port), PATIENCE_S)
        assert say(b"hello\r\n.").startswith(b"250 ")
    assert served.process.wait(PATIENCE_S) == 0


def test_sighup_takes_good_files_and_refuses_bad_ones(served: Served) -> None:
    good = served.config.read_text()
    served.config.write_text(good + "max_recipents = 5\n")
    served.process.send_signal(signal.SIGHUP)
    refused = served.wait_for("config.refused")
    assert "did you mean max_recipients?" in refused["fault"]
    write_pair(served.config.parent)
    served.config.write_text(f'{good}max_recipients = 200\n[policy]\nrules = "monitor"\nshadow = "strict"\n')
    served.process.send_signal(signal.SIGHUP)
    reloaded = served.wait_for("config.reloaded")
    assert (reloaded["rules"], reloaded["shadow"]) == ("monitor", "strict")
    assert served.wait_for("config.restart-needed")["keys"] == ["inbound.max_recipients"]
    metrics = served.get("/metrics")
    assert 'gateway_config_reload_total{outcome="refused"} 1.0' in metrics
    assert 'gateway_config_reload_total{outcome="ok"} 1.0' in metrics
    assert served.stop() == 0


def signing_section(selector: str) -> str:
    return f'[[signing]]\ndomain = "example.net"\nselector = "{selector}"\nkey = "{selector}.pem"\n'


def test_sighup_takes_a_new_key_and_a_bad_one_leaves_the_old_in_force(
    tmp_path: Path, downstream: tuple[Downstream, int]
) -> None:
    smtp_port, http_port = free_port(), free_port()
    write_pair(tmp_path)
    config = tmp_path / "gateway.toml"
    common = config_text(downstream[1], smtp_port, http_port) + 'trusted_networks = ["127.0.0.1"]\n'
    for selector in ("2026a", "2026b"):
        (tmp_path / f"{selector}.pem").write_bytes(rsa_pem())
        (tmp_path / f"{selector}.pem").chmod(0o600)
    config.write_text(common + signing_section("2026a"))
    gateway = Served(config, smtp_port, http_port)

    def signed_by() -> list[str]:
        with smtplib.SMTP("127.0.0.1", smtp_port, "host.example.net", timeout=PATIENCE_S) as client:
            client.sendmail("ann@example.net", ["bob@elsewhere.example"], OWN_MAIL)
        return re.findall(r"; d=example\.net; s=([^;]+);", downstream[0].messages[-1].decode())

    try:
        assert gateway.wait_for("gateway.started")["keys"] == ["example.net/2026a"]
        gateway.wait_for("listener.ready", 2)
        assert signed_by() == ["2026a"]

        (tmp_path / "2026b.pem").write_bytes(b"junk")
        config.write_text(common + signing_section("2026b"))
        gateway.process.send_signal(signal.SIGHUP)
        fault = gateway.wait_for("config.refused")["fault"]
        assert (
            'signing[0].key = "2026b.pem": is no readable private key in PEM form; `gateway keys new`'
            in fault
        )
        assert signed_by() == ["2026a"]

        (tmp_path / "2026b.pem").write_bytes(rsa_pem())
        (tmp_path / "2026b.pem").chmod(0o604)
        gateway.process.send_signal(signal.SIGHUP)
        assert gateway.wait_for("config.reloaded")["keys"] == ["example.net/2026b"]
        assert "can be read by every user of this host" in gateway.wait_for("config.warning")["fault"]
        assert signed_by() == ["2026b"]
        assert gateway.wait_for("message.judged", 3)["signed"] == ["example.net/2026b"]
        assert not [event for event in gateway.events() if event["event"] == "config.restart-needed"]
        assert 'gateway_signatures_total{algorithm="rsa-sha256",domain="example.net"} 3.0' in gateway.get(
            "/metrics"
        )
    finally:
        assert gateway.stop() == 0


def test_sighup_takes_a_seal_key_and_a_bad_one_leaves_the_old_in_force(
    tmp_path: Path, downstream: tuple[Downstream, int]
) -> None:
    smtp_port, http_port = free_port(), free_port()
    write_pair(tmp_path)
    config = tmp_path / "gateway.toml"
    common = config_text(downstream[1], smtp_port, http_port) + '[policy]\nrules = "monitor"\n'
    for name, key in (("rsa", rsa_pem()), ("ed", ed25519_pem())):
        (tmp_path / f"{name}.pem").write_bytes(key)
        (tmp_path / f"{name}.pem").chmod(0o600)
    config.write_text(common)
    gateway = Served(config, smtp_port, http_port)

    def sealed_by() -> list[str]:
        with smtplib.SMTP("127.0.0.1", smtp_port, "mail.elsewhere.example", timeout=PATIENCE_S) as client:
            client.sendmail("ann@elsewhere.example", ["bob@example.net"], MAIL)
        content = downstream[0].messages[-1].decode()
        return re.findall(r"ARC-Seal: i=1; cv=none; a=rsa-sha256; d=example.net; s=([^;]+);", content)

    def seal_with(selector: str) -> None:
        seal = f'seal_domain = "example.net"\nseal_selector = "{selector}"\nseal_key = "{selector}.pem"\n'
        config.write_text(f"{common}[arc]\n{seal}")
        gateway.process.send_signal(signal.SIGHUP)

    try:
        gateway.wait_for("listener.ready", 2)
        assert sealed_by() == []
        seal_with("rsa")
        gateway.wait_for("config.reloaded")
        assert sealed_by() == ["rsa"]
        seal_with("ed")
        assert 'arc.seal_key = "ed.pem": is an Ed25519 key' in gateway.wait_for("config.refused")["fault"]
        assert sealed_by() == ["rsa"]
        assert gateway.wait_for("message.judged", 3)["sealed"] == "none"
        assert not [event for event in gateway.events() if event["event"] == "config.restart-needed"]
    finally:
        assert gateway.stop() == 0


def test_a_taken_port_is_said_with_a_remedy(served: Served) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", served.config],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert second.returncode == 2
    assert "already in use; another program listens there; `ss -ltnp` names it" in second.stderr
    assert "Traceback" not in second.stderr
    assert served.stop() == 0


def test_a_bad_config_ends_it_before_anything_is_opened(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text("workers = 0\n")
    environ = {**os.environ, "GATEWAY_AUTHSERV_ID": "mx"}
    finished = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", config],
        capture_output=True,
        text=True,
        env=environ,
        check=False,
    )
    assert finished.returncode == 2
    assert "environment variable GATEWAY_AUTHSERV_ID: authserv_id" in finished.stderr
    assert "workers = 0: is too small" in finished.stderr


def with_store(served: Served, url: str) -> Path:
    """The same gateway's config with a store, on other ports."""
    config = served.config.with_name("stored.toml")
    text = served.config.read_text()
    for port in (served.smtp_port, served.http_port):
        text = text.replace(str(port), str(free_port()))
    config.write_text(f'{text}[store]\nurl = "{url}"\n')
    return config


def test_a_store_is_opened_and_told_of(served: Served, tmp_path: Path) -> None:
    config = with_store(served, f"sqlite:///{tmp_path}/gateway.db")
    assert served.stop() == 0
    stored = Served(config, 0, int(re.findall(r"127.0.0.1:(\d+)", config.read_text())[0]))
    try:
        assert stored.wait_for("store.ready")["store"] == f"sqlite:///{tmp_path}/gateway.db"
        stored.wait_for("listener.ready", 2)
        assert json.loads(stored.get("/readyz"))["checks"]["store"]["ok"]
        assert "gateway_store_rows_waiting 0.0" in stored.get("/metrics")
        assert stored.stop() == 0
    finally:
        stored.process.kill()
        stored.process.wait()


def test_a_store_that_cannot_be_opened_ends_the_start_with_the_remedy(served: Served, tmp_path: Path) -> None:
    config = with_store(served, f"sqlite:///{tmp_path}/none/gateway.db")
    finished = subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", config],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert finished.returncode == 2
    assert f"there is no directory {tmp_path}/none; create it: install -d" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert served.stop() == 0
