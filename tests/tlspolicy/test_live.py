"""Route and DANE decided from a real validating resolver's answers: knot signs, unbound validates."""

from collections.abc import AsyncIterator, Iterator

import pytest

from gateway.dns.stub import StubResolver
from gateway.tlspolicy.dane import ValidationWatch
from gateway.tlspolicy.decide import Decider
from gateway.tlspolicy.model import Decision, NoRoute, TlsLevel, TlsProblem
from tests.live.dns_bed import BOGUS, DEAD, DnsBed

pytestmark = pytest.mark.live

DIGEST = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
HOSTS = f"""\
mx A 127.0.0.1
_25._tcp.mx TLSA 3 1 1 {DIGEST}
no-tlsa A 127.0.0.1
v6 AAAA ::1
_25._tcp.v6 TLSA 3 1 1 {DIGEST}
unusable A 127.0.0.1
_25._tcp.unusable TLSA 1 1 1 {DIGEST}
alias CNAME mx
out CNAME mx.unsigned.test.
own CNAME mx.unsigned.test.
_25._tcp.own TLSA 3 1 1 {DIGEST}
tlsa-out A 127.0.0.1
_25._tcp.tlsa-out CNAME _25._tcp.mx.unsigned.test.
"""
SIGNED = f"""\
@ MX 10 mx
{HOSTS}
plain MX 10 no-tlsa
six MX 10 v6
useless MX 10 unusable
aliased MX 10 alias
leads-out MX 10 out
keeps-own MX 10 own
tlsa-leads-out MX 10 tlsa-out
to-unsigned MX 10 mx.unsigned.test.
to-bogus MX 10 mx.{BOGUS}.
to-dead MX 10 mx.{DEAD}.
some MX 10 mx
some MX 20 mx.{BOGUS}.
domain-alias CNAME @
implicit A 127.0.0.1
_25._tcp.implicit TLSA 3 1 1 {DIGEST}
null MX 0 .
text TXT nothing
"""
UNSIGNED = f"""\
@ MX 10 mx
to-signed MX 10 mx.signed.test.
into CNAME signed.test.
{HOSTS}
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsBed]:
    zones = {"signed.test": SIGNED, "unsigned.test": UNSIGNED}
    with DnsBed.running(tmp_path_factory.mktemp("dns"), zones, signed=["signed.test"]) as bed:
        yield bed


@pytest.fixture
async def decider(bed: DnsBed) -> AsyncIterator[Decider]:
    resolver = StubResolver([bed.resolver_address])
    yield Decider(resolver, dane=ValidationWatch(resolver.check_validating))
    await resolver.aclose()


def short(decision: Decision) -> list[str]:
    return [f"{host.demand} {host.problem or ''}".strip() for host in decision.hosts]


@pytest.mark.parametrize(
    ("domain", "level", "hosts"),
    [
        ("signed.test", TlsLevel.DANE_ONLY, ["dane"]),
        ("six.signed.test", TlsLevel.DANE_ONLY, ["dane"]),
        ("domain-alias.signed.test", TlsLevel.DANE_ONLY, ["dane"]),
        ("implicit.signed.test", TlsLevel.DANE_ONLY, ["dane"]),
        ("aliased.signed.test", TlsLevel.DANE_ONLY, ["dane"]),
        ("keeps-own.signed.test", TlsLevel.DANE_ONLY, ["dane"]),  # a signed alias into an unsigned zone
        ("useless.signed.test", TlsLevel.DANE, ["encrypt"]),
        ("plain.signed.test", TlsLevel.MAY, ["none"]),
        ("leads-out.signed.test", TlsLevel.MAY, ["none"]),
        ("tlsa-leads-out.signed.test", TlsLevel.MAY, ["none"]),
        ("to-unsigned.signed.test", TlsLevel.MAY, ["none"]),
        # insecure from the start: TLSA records of a signed host prove nothing
        ("unsigned.test", TlsLevel.MAY, ["none"]),
        ("to-signed.unsigned.test", TlsLevel.MAY, ["none"]),
        ("into.unsigned.test", TlsLevel.MAY, ["none"]),
        # bogus or dead: never as if unsigned
        ("to-bogus.signed.test", TlsLevel.REFUSE, ["dane dane.address-dns"]),
        ("to-dead.signed.test", TlsLevel.REFUSE, ["dane dane.address-dns"]),
        ("some.signed.test", TlsLevel.DANE_ONLY, ["dane", "dane dane.address-dns"]),
    ],
)
async def test_dane_by_what_dnssec_vouches_for(
    decider: Decider, domain: str, level: TlsLevel, hosts: list[str]
) -> None:
    decision = await decider.decide(domain)
    assert (decision.level, short(decision)) == (level, hosts)


@pytest.mark.parametrize(
    ("domain", "problem", "temporary"),
    [
        (BOGUS, TlsProblem.ROUTE_SERVFAIL, True),
        (DEAD, TlsProblem.ROUTE_SERVFAIL, True),
        ("null.signed.test", TlsProblem.NULL_MX, False),
        ("text.signed.test", TlsProblem.NO_HOST, False),
        ("absent.signed.test", TlsProblem.NO_DOMAIN, False),
        ("absent.unsigned.test", TlsProblem.NO_DOMAIN, False),
    ],
)
async def test_no_route(decider: Decider, domain: str, problem: TlsProblem, *, temporary: bool) -> None:
    decision = await decider.decide(domain)
    assert decision.route == NoRoute(domain=domain, problem=problem, temporary=temporary)


async def test_a_resolver_that_does_not_validate_is_found_out(bed: DnsBed) -> None:
    """Knot itself answers for its zones, and vouches for nothing."""
    resolver = StubResolver([f"127.0.0.1:{bed.authority_port}"])
    decision = await Decider(resolver, dane=ValidationWatch(resolver.check_validating)).decide("signed.test")
    await resolver.aclose()
    assert (decision.level, decision.dane_problem) == (TlsLevel.MAY, TlsProblem.DANE_NOT_VALIDATING)
