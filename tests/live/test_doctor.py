"""The doctor in a small internet: knot and unbound with DNSSEC, a real Postfix with STARTTLS, a policy host."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.live.internet import Internet, Server, World, internet_on
from tests.live.network import host_network
from tests.live.remote_servers import Page

pytestmark = pytest.mark.live

_ROUTE: Final = "@ MX 10 mx\nmx A {{{server}}}\n"
_DANE: Final = _ROUTE + "_{{port}}._tcp.mx TLSA {{{tlsa}:3 1 1}}\n"
_STS: Final = '_mta-sts TXT "v=STSv1; id=1;"\nmta-sts A {{policy_host}}\n'
ZONES: Final = {
    "dane.test": _DANE.format(server=Server.GOOD, tlsa=Server.GOOD)
    + '@ TXT "v=spf1 mx -all"\n_dmarc TXT "v=DMARC1; p=reject; rua=mailto:a@dane.test"\n',
    "wrong.test": _DANE.format(server=Server.GOOD, tlsa=Server.SELF_SIGNED),
    "sts.test": (_ROUTE + _STS).format(server=Server.GOOD),
    "expired.test": (_ROUTE + _STS).format(server=Server.EXPIRED),
    "plain.test": _ROUTE.format(server=Server.PLAIN),
    "nobody.test": _ROUTE.format(server=Server.NOBODY),
    "unsigned.test": _DANE.format(server=Server.GOOD, tlsa=Server.GOOD),
}
SIGNED: Final = ("dane.test", "wrong.test")
_CONFIG: Final = """\
authserv_id = "out.client.test"
[dns]
servers = ["127.0.0.1:{dns_port}"]
[outbound]
listen = ["127.0.0.1:{relay_port}"]
clients = ["127.0.0.1"]
remote_port = {smtp_port}
connect_timeout_s = 2
[outbound_tls]
ca_file = "{ca_file}"
fetch_timeout_s = 2
policy_port = {https_port}
[store]
url = "sqlite:///{directory}/doctor.db"
"""


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    names = [f"{host}.{zone}" for zone in ZONES for host in ("mx", "mta-sts")]
    with (
        host_network() as network,
        internet_on(network, World(zones=ZONES, signed=SIGNED, domains=list(ZONES), names=names)) as there,
    ):
        policy = "version: STSv1\r\nmode: enforce\r\nmx: mx.{}\r\nmax_age: 604800\r\n"
        for domain in ("sts.test", "expired.test"):
            there.policy_host.pages[domain] = Page(body=policy.format(domain))
        yield there


@pytest.fixture(scope="module")
def config(world: Internet) -> Path:
    network = world.network
    path = world.directory / "doctor.toml"
    path.write_text(
        _CONFIG.format(
            dns_port=network.dns_port,
            relay_port=network.free_port(),
            smtp_port=network.smtp_port,
            https_port=network.https_port,
            ca_file=world.authority.ca_file,
            directory=world.directory,
        )
    )
    return path


CASES: Final = [
    ("dane.test", {"dnssec.signed", "dane.ok", "transport.protected", "connect.ok", "spf.ok", "dmarc.ok"}),
    ("wrong.test", {"dane.ok", "connect.tlsa-mismatch", "connect.not-deliverable"}),
    ("sts.test", {"dnssec.unsigned", "mta-sts.ok", "transport.protected", "connect.ok", "dane.missing"}),
    ("expired.test", {"mta-sts.ok", "connect.certificate", "connect.not-deliverable"}),
    ("plain.test", {"connect.no-tls", "transport.unprotected"}),
    ("nobody.test", {"connect.failed"}),
    ("unsigned.test", {"dane.not-secure", "transport.unprotected", "connect.ok"}),
    ("no-such.test", {"domain.missing"}),
]


@pytest.mark.parametrize(("domain", "expected"), CASES)
def test_what_the_doctor_sees(config: Path, domain: str, expected: set[str]) -> None:
    done = run(config, domain, "--connect", "--json")
    answer: dict[str, Any] = json.loads(done.stdout)
    found = {one["code"]: one for one in answer["findings"]}
    assert expected <= set(found), done.stdout
    assert done.stderr == ""
    assert done.returncode == {"ok": 0, "note": 0, "warning": 10, "unknown": 11, "error": 12}[answer["worst"]]
    if "connect.ok" in expected:
        assert "TLSv1.3" in found["connect.ok"]["found"]
        assert "certificate for mx.dane.test, " in found["connect.ok"]["found"]  # the one that all share


def test_a_resolver_that_is_not_there(config: Path, world: Internet) -> None:
    """Said once, and in bounded time."""
    text = config.read_text()
    silent = config.with_name("silent.toml")
    silent.write_text(text.replace(f":{world.network.dns_port}", f":{world.network.free_port()}"))
    done = run(silent, "dane.test", "--json")
    assert [one["code"] for one in json.loads(done.stdout)["findings"]] == ["dns.unreachable"]
    assert done.returncode == 11


def run(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gateway", "doctor", "--config", str(config), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout, done.stderr
    return done
