"""The bed itself: what Postfix's own TLS client finds in our internet is what the names of the servers say."""

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Final

import dns.message
import dns.query
import pytest

from tests.live.deliveries import deliver_by_relay
from tests.live.internet import SENDER, Internet, Server, World, gateway_in, internet_on, postfix_in
from tests.live.network import NetworkUnavailableError, host_network, private_network, resolving_by
from tests.live.outbound_scenarios import Outcome
from tests.live.postfix import PostfixBed, wait_until
from tests.live.remote_servers import Page

pytestmark = pytest.mark.live

ZONES: Final = {
    "signed.test": "".join(
        f"{label} MX 10 mx.{label}\nmx.{label} A {{{server}}}\n_{{port}}._tcp.mx.{label} TLSA {{{server}:{tlsa}}}\n"
        for label, server, tlsa in [
            ("ee", Server.GOOD, "3 1 1"),
            ("full", Server.GOOD, "3 0 0"),
            ("ta", Server.GOOD, "2 0 1"),
            ("expired", Server.EXPIRED, "3 1 2"),
            ("self", Server.SELF_SIGNED, "3 0 1"),
        ]
    )
    + "other MX 10 mx.other\nmx.other A {good}\n_{port}._tcp.mx.other TLSA {self_signed:3 1 1}\n",
    "moving.test": "now 1 TXT before",
    "unsigned.test": "".join(
        f"{label} MX 10 mx.{label}\nmx.{label} A {{{server}}}\n"
        for label, server in [
            ("good", Server.GOOD),
            ("wrong", Server.WRONG_NAME),
            ("expired", Server.EXPIRED),
            ("self", Server.SELF_SIGNED),
            ("plain", Server.PLAIN),
            ("busy", Server.BUSY),
            ("nobody", Server.NOBODY),
        ]
    ),
}
DOMAINS: Final = [
    f"{line.split()[0]}.{zone}"
    for zone, text in ZONES.items()
    for line in text.splitlines()
    if " MX " in line
]


@pytest.fixture(scope="module")
def world() -> Iterator[Internet]:
    with ExitStack() as stack:
        try:
            network = stack.enter_context(private_network())
        except NetworkUnavailableError as reason:
            pytest.skip(f"Postfix's own TLS client needs port 25 and 53: {reason}")
        yield stack.enter_context(
            internet_on(
                network,
                World(
                    zones=ZONES,
                    signed=["signed.test"],
                    domains=DOMAINS,
                    names=[f"mx.{domain}" for domain in DOMAINS],
                ),
            )
        )


@pytest.fixture(scope="module")
def postfix(world: Internet) -> Iterator[PostfixBed]:
    with postfix_in(world, world.directory / "client", {}) as sender:
        yield sender


def finger(world: Internet, level: str, domain: str) -> str:
    """What posttls-finger says of a domain, asked at this level."""
    command = [*resolving_by(world.directory), "posttls-finger", "-c", "-t", "5", "-l", level]
    command += ["-F", str(world.authority.ca_file), domain, *(["hostname"] if level == "secure" else [])]
    done = world.network.within(
        lambda: subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    )
    return done.stdout + done.stderr


@pytest.mark.parametrize(
    ("level", "domain", "said"),
    [
        ("secure", "good.unsigned.test", "Verified TLS connection"),
        ("secure", "wrong.unsigned.test", "hostname mismatch"),
        ("secure", "expired.unsigned.test", "expired"),
        ("secure", "self.unsigned.test", "self-signed"),
        ("dane-only", "ee.signed.test", "Verified TLS connection"),
        ("dane-only", "full.signed.test", "Verified TLS connection"),
        ("dane-only", "ta.signed.test", "Verified TLS connection"),
        (
            "dane-only",
            "expired.signed.test",
            "Verified TLS connection",
        ),  # RFC 7672 §3.1.1: usage 3 has no dates
        ("dane-only", "self.signed.test", "Verified TLS connection"),
        ("dane-only", "other.signed.test", "Untrusted TLS connection"),
        ("dane-only", "good.unsigned.test", "no TLSA records found"),
        ("may", "busy.unsigned.test", "421"),
        ("may", "nobody.unsigned.test", "Connection refused"),
    ],
)
def test_a_foreign_client_sees_what_each_server_is(
    world: Internet, level: str, domain: str, said: str
) -> None:
    assert said in finger(world, level, domain)


def test_zones_change_while_it_runs(world: Internet) -> None:
    def text() -> str:
        query = dns.message.make_query("now.moving.test", "TXT")
        reply = world.network.within(lambda: dns.query.udp(query, "127.0.0.1", timeout=5))
        return str(reply.answer[0][0])

    assert text() == '"before"'
    world.change_zone("moving.test", "now 1 TXT after")
    wait_until(lambda: text() == '"after"', "the resolver to forget")


def test_it_stands_on_the_hosts_loopback_as_well_and_the_relay_with_it() -> None:
    """Without a right: every port is a high one, in the TLSA records' names, too."""
    route = "@ MX 10 mx\nmx A {good}\n"
    dane = route + "_{port}._tcp.mx TLSA {%s:3 1 1}"
    zones = {
        "sts.test": route + '_mta-sts TXT "v=STSv1; id=1;"\nmta-sts A {policy_host}',
        "dane.test": dane % "good",
        "wrong.test": dane % "self_signed",
    }
    names = [f"{host}.{zone}" for zone in zones for host in ("mx", "mta-sts")]
    made_of = World(zones=zones, signed=["dane.test", "wrong.test"], domains=list(zones), names=names)
    with host_network() as network, internet_on(network, made_of) as there:
        assert not network.is_private
        body = "version: STSv1\r\nmode: enforce\r\nmx: mx.sts.test\r\nmax_age: 86400\r\n"
        there.policy_host.pages["sts.test"] = Page(body=body)
        with gateway_in(there, there.directory / "gateway") as gateway:
            seen = deliver_by_relay(there, gateway, list(zones))
        assert {domain: what.outcome for domain, what in seen.items()} == {
            "sts.test": Outcome.VERIFIED,
            "dane.test": Outcome.VERIFIED,
            "wrong.test": Outcome.DEFERRED,
        }, seen
        assert there.policy_host.requests == ["sts.test"]


def test_postfix_delivers_into_it(world: Internet, postfix: PostfixBed) -> None:
    for domain in ("good.unsigned.test", "plain.unsigned.test", "self.signed.test"):
        postfix.submit(b"Subject: hello\n\nbody\n", sender=SENDER, recipient=f"alice@{domain}")
        arrived = world.remote.wait_for_message(f"alice@{domain}").decode()
        assert ("using TLSv1.3" in arrived) == (domain != "plain.unsigned.test")
