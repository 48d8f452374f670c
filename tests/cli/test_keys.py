"""`gateway keys` and `gateway dns` as an operator runs them, and a running gateway that takes up what they did."""

import json
import re
import signal
import socket
import ssl
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from typer.testing import CliRunner, Result

from gateway.cli.app import app
from gateway.cli.keys import RotateKeys, run_keys_rotate
from gateway.keys.directory import KeyDirectory
from gateway.keys.model import KeyState
from tests.cli.test_serve import Served, free_port, write_pair

CONFIG = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "zone.txt"
[http]
listen = "127.0.0.1:{http}"
[inbound]
listen = ["127.0.0.1:{smtp}"]
downstream = "127.0.0.1:10025"
tls_certificate = "cert.pem"
tls_key = "key.pem"
[mta_sts]
mode = "enforce"
mx = ["mx.example.net"]
"""


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = folder / "gateway.toml"
        self.zone = folder / "zone.txt"
        self.directory = KeyDirectory(folder / "keys")
        self.smtp_port, self.http_port = free_port(), free_port()
        self.config.write_text(
            CONFIG.format(smtp=self.smtp_port, http=self.http_port) + '[keys]\ndirectory = "keys"\n'
        )
        self.zone.write_text("mx.example.net. A 192.0.2.1\nmta-sts.example.net. A 192.0.2.1\n")
        write_pair(folder)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, [*arguments, "--config", str(self.config)])

    def publish_by_hand(self) -> None:
        """Append what `gateway dns` prints to the zone, as an operator would."""
        printed = self.run("dns", "example.net").stdout
        head = "mx.example.net. A 192.0.2.1\nmta-sts.example.net. A 192.0.2.1\n"
        self.zone.write_text(head + printed)

    def rotate(self, now: datetime) -> int:
        return run_keys_rotate(RotateKeys(config=self.config), now=now)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def served(site: Site) -> Iterator[Served]:
    site.run("keys", "new", "example.net", "--algorithm", "ed25519", "--selector", "first")
    site.publish_by_hand()
    assert site.run("keys", "rotate").exit_code == 0
    gateway = Served(site.config, site.smtp_port, site.http_port)
    try:
        gateway.wait_for("listener.ready", 2)
        yield gateway
    finally:
        if gateway.process.poll() is None:
            gateway.process.kill()
            gateway.process.wait()


def test_a_running_gateway_takes_up_a_rotation_and_keeps_its_keys_when_one_goes_bad(
    site: Site, served: Served
) -> None:
    assert served.wait_for("gateway.started")["keys"] == ["example.net/first"]
    later = datetime.now(UTC) + timedelta(days=180)
    site.rotate(later)
    site.publish_by_hand()
    site.rotate(later)
    site.rotate(later + timedelta(days=1))
    (active,) = [key for key in site.directory.read() if key.state is KeyState.ACTIVE]
    served.process.send_signal(signal.SIGHUP)
    assert served.wait_for("config.reloaded")["keys"] == [f"example.net/{active.selector}"]

    path = site.directory.path_of(active)
    pem = path.read_bytes()
    path.write_text("garbage")
    served.process.send_signal(signal.SIGHUP)
    refused = served.wait_for("config.refused")
    assert refused["fault"].startswith(f"{path}: is no readable private key in PEM form; ")
    assert "`gateway keys new` makes a good one" in refused["fault"]
    assert refused["note"] == "what was in force before stays in force"
    assert json.loads(served.get("/readyz"))["status"] == "ready"

    path.write_bytes(pem)
    served.process.send_signal(signal.SIGHUP)
    assert served.wait_for("config.reloaded", 2)["keys"] == [f"example.net/{active.selector}"]
    assert served.stop() == 0


def test_the_policy_is_served_to_a_web_server_in_front(site: Site, served: Served) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{site.http_port}/.well-known/mta-sts.txt",
        headers={"Host": "mta-sts.example.net"},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.read().startswith(b"version: STSv1\r\nmode: enforce\r\n")
    assert served.stop() == 0


def policy_over_https(port: int, authority: trustme.CA, name: str) -> bytes:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    request = f"GET /.well-known/mta-sts.txt HTTP/1.1\r\nHost: {name}\r\nConnection: close\r\n\r\n".encode()
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        context.wrap_socket(plain, server_hostname=name) as secured,
    ):
        secured.sendall(request)
        return secured.makefile("rb").read()


def test_the_policy_is_served_over_https_with_a_certificate_that_can_be_renewed(tmp_path: Path) -> None:
    authority, port = trustme.CA(), free_port()
    name = "mta-sts.example.net"

    def renew(*names: str) -> None:
        pair = authority.issue_cert(*names)
        (tmp_path / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
        (tmp_path / "key.pem").write_bytes(pair.private_key_pem.bytes())
        (tmp_path / "key.pem").chmod(0o600)

    renew("old.example.net")
    config = tmp_path / "gateway.toml"
    smtp_port, http_port = free_port(), free_port()
    config.write_text(
        CONFIG.format(smtp=smtp_port, http=http_port).replace("zone.txt", "/dev/null")
        + f'listen = ["127.0.0.1:{port}"]\ntls_certificate = "cert.pem"\ntls_key = "key.pem"\n'
    )
    served = Served(config, smtp_port, http_port)
    try:
        served.wait_for("listener.ready", 3)
        warned = [event["fault"] for event in served.events() if event["event"] == "config.warning"]
        assert any(f"is not good for {name}" in fault for fault in warned)
        with pytest.raises(ssl.SSLCertVerificationError):
            policy_over_https(port, authority, name)
        renew(name)
        served.process.send_signal(signal.SIGHUP)
        served.wait_for("config.reloaded")
        policy = b"version: STSv1\r\nmode: enforce\r\nmx: mx.example.net\r\nmax_age: 604800\r\n"
        assert policy_over_https(port, authority, name).partition(b"\r\n\r\n")[2] == policy
        (tmp_path / "cert.pem").write_text("garbage")
        served.process.send_signal(signal.SIGHUP)
        refused = served.wait_for("config.refused")
        assert "tls_certificate" in refused["fault"]
        assert policy_over_https(port, authority, name).partition(b"\r\n\r\n")[2] == policy
        assert served.stop() == 0
    finally:
        if served.process.poll() is None:
            served.process.kill()
            served.process.wait()


def test_from_nothing_to_a_clean_bill_of_health(site: Site) -> None:
    made = site.run("keys", "new", "example.net")
    assert made.exit_code == 0
    assert made.stdout.count("IN TXT") == 2
    asked = site.run("keys", "rotate")
    assert asked.exit_code == 10
    assert "publish its record" in asked.stdout
    assert site.run("dns", "example.net", "--check").exit_code == 11
    site.publish_by_hand()
    assert site.run("keys", "rotate").exit_code == 0
    checked = site.run("dns", "example.net", "--check")
    assert checked.exit_code == 0, checked.stdout
    assert re.findall(r"(?m)^\w+", checked.stdout) == ["ok"] * 9


def test_programs_get_json(site: Site) -> None:
    made = json.loads(site.run("keys", "new", "example.net", "--algorithm", "ed25519", "--json").stdout)
    (key,) = made["keys"]
    assert key["record"].startswith("v=DKIM1; k=ed25519; p=")
    (listed,) = [json.loads(line) for line in site.run("keys", "list", "--json").stdout.splitlines()]
    assert listed == key
    (note,) = [json.loads(line) for line in site.run("keys", "rotate", "--json").stdout.splitlines()]
    assert (note["step"], note["selector"]) == ("to-publish", key["selector"])
    answer = json.loads(site.run("dns", "example.net", "--check", "--json").stdout)
    assert {one["purpose"] for one in answer["records"]} == {one["purpose"] for one in answer["checks"]}
    assert {one["status"] for one in answer["checks"]} == {"ok", "missing"}


def test_the_list_shows_states_and_strays(site: Site) -> None:
    site.run("keys", "new", "example.net", "--algorithm", "ed25519")
    (site.directory.path / "stray.pem").write_text("")
    shown = site.run("keys", "list")
    assert shown.stdout.startswith("made ")
    assert "stray.pem: is not in the state file" in shown.stderr


FAULTS = [
    (("keys", "new", "not a domain"), "is no domain"),
    (("keys", "new", "example.net", "--selector", "../x"), "is no selector"),
    (("keys", "new", "example.net", "--bits", "1024"), "2048"),
    (("keys", "rotate", "example.org"), "there is no key for example.org: `gateway keys new example.org`"),
    (("keys", "rotate", "--publish"), "--publish needs a section [dns_update]"),
    (("dns", "example.org"), "example.org is none of ours"),
    (("dns", "example.net", "--publish"), "--publish needs a section [dns_update]"),
    (("dns", "example.net", "--reports-to", "a;b@example.net"), "is no address for reports"),
    (("dns", "example.net", "--next-key", "/nowhere.pem"), "/nowhere.pem: cannot be read"),
    (("dns", "example.net", "--next-key", "/dev/null"), "holds neither a certificate nor a key"),
]


@pytest.mark.parametrize(("arguments", "said"), FAULTS)
def test_what_cannot_be_used_is_said_without_a_traceback(
    site: Site, arguments: tuple[str, ...], said: str
) -> None:
    result = site.run(*arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_without_a_section_the_way_on_is_told(site: Site) -> None:
    site.config.write_text(site.config.read_text().replace("[keys]", "[log]").replace("directory", "# "))
    assert "there is no [keys] section" in site.run("keys", "list").stderr


def test_a_broken_state_file_is_named_by_every_command(site: Site) -> None:
    site.run("keys", "new", "example.net", "--algorithm", "ed25519")
    site.directory.state_path.write_text("garbage")
    for arguments in (
        ("keys", "list"),
        ("keys", "rotate"),
        ("keys", "new", "a.example"),
        ("dns", "example.net"),
    ):
        result = site.run(*arguments)
        assert result.exit_code == 2
        assert "keys.toml: is not TOML" in result.stderr
    checked = CliRunner().invoke(app, ["config", "check", str(site.config)])
    assert checked.exit_code == 2
    assert "keys.toml: is not TOML" in checked.stderr
    assert "restore it from a backup" in checked.stderr


def test_a_key_to_come_is_printed_beside_the_present_one(site: Site) -> None:
    printed = site.run("dns", "example.net", "--next-key", str(site.folder / "key.pem")).stdout
    assert printed.count(" TLSA 3 1 1 ") == 1  # it is the same key
    (site.folder / "other").mkdir()
    write_pair(site.folder / "other")
    for name in ("cert.pem", "key.pem"):
        printed = site.run("dns", "example.net", "--next-key", str(site.folder / "other" / name)).stdout
        assert printed.count(" TLSA 3 1 1 ") == 2
