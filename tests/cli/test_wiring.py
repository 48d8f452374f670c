from pathlib import Path

import pytest

from gateway.cli.runtime import changed_keys
from gateway.cli.wiring import build_resolver, resolver_addresses, system_servers
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneResolver
from gateway.ops.config import DnsSettings, HostPort, HttpSettings, MilterSettings, Settings
from gateway.ops.config.models import LogSettings

MILTER = MilterSettings(listen="unix:/run/gateway/milter.sock")


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("nameserver 192.0.2.53\nnameserver 2001:db8::53\n", ["192.0.2.53", "2001:db8::53"]),
        (
            "# none\nsearch example.net\nnameserver\n",
            ["127.0.0.1"],
        ),  # resolv.conf(5): then the one on this host
        ("nameserver fe80::1%eth0\nnameserver not-an-address\nnameserver 192.0.2.53 # x\n", ["192.0.2.53"]),
    ],
)
def test_the_systems_resolvers(tmp_path: Path, text: str, servers: list[str]) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text(text)
    assert system_servers(path) == servers


def test_without_resolv_conf_the_resolver_on_this_host(tmp_path: Path) -> None:
    assert system_servers(tmp_path / "none") == ["127.0.0.1"]


def test_the_operators_servers_come_first_and_alone() -> None:
    dns = DnsSettings(servers=(HostPort("::1", 5353), HostPort("192.0.2.53", 53)))
    assert resolver_addresses(dns) == ["[::1]:5353", "192.0.2.53:53"]
    assert isinstance(build_resolver(dns), StubResolver)


def test_a_zone_file_takes_the_place_of_the_network(tmp_path: Path) -> None:
    zone = tmp_path / "zone.txt"
    zone.write_text("example.net. 60 IN A 192.0.2.1\n")
    assert isinstance(build_resolver(DnsSettings(zone_file=zone)), ZoneResolver)


def test_what_a_reload_cannot_change_is_named() -> None:
    before = Settings(authserv_id="mx.example.net", milter=MILTER)
    after = Settings(
        authserv_id="mx.example.org",
        hostname="mx.example.net",
        milter=MILTER,
        http=HttpSettings(),
        log=LogSettings(level="debug"),
    )
    assert changed_keys(before, before) == set()
    assert changed_keys(before, after) == {"authserv_id", "http", "log.level"}
