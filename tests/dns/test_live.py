"""The stub resolver against a real validating resolver."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from gateway.dns.resolver import Answer, Missing, Mx, NotFound, Outcome, RecordType, Temporary, Tlsa, Trouble
from gateway.dns.stub import StubResolver, Validation
from tests.live.dns_bed import BOGUS, DEAD, NEGATIVE_TTL, DnsBed

pytestmark = pytest.mark.live

DATA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
MAIL_DOMAIN = f"""\
@ MX 10 mx
@ TXT "v=spf1 mx -all"
mx A 127.0.0.1
_25._tcp.mx TLSA 3 1 1 {DATA}
alias 40 CNAME mx
other 50 CNAME mx.unsigned.test.
large TXT {" ".join(f'"{number:0250}"' for number in range(20))}
"""
ZONES = {
    "signed.test": MAIL_DOMAIN,
    "unsigned.test": MAIL_DOMAIN,
    "2.0.192.in-addr.arpa": "1 PTR mx.signed.test.",
    "127.in-addr.arpa": "1.0.0 PTR mx.unsigned.test.",
}
LOCALHOST = (IPv4Address("127.0.0.1"),)


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DnsBed]:
    with DnsBed.running(
        tmp_path_factory.mktemp("dns"), ZONES, signed=["signed.test", "2.0.192.in-addr.arpa"]
    ) as bed:
        yield bed


@pytest.fixture
async def resolver(bed: DnsBed) -> AsyncIterator[StubResolver]:
    resolver = StubResolver([bed.resolver_address])
    yield resolver
    await resolver.aclose()


@pytest.mark.parametrize(
    ("name", "record_type", "expected"),
    [
        ("mx.signed.test", RecordType.A, Answer(LOCALHOST, 300, secure=True, name="mx.signed.test")),
        ("mx.unsigned.test", RecordType.A, Answer(LOCALHOST, 300, secure=False, name="mx.unsigned.test")),
        ("signed.test", RecordType.MX, Answer((Mx(10, "mx.signed.test"),), 300, secure=True, name="signed.test")),
        ("signed.test", RecordType.TXT, Answer((b"v=spf1 mx -all",), 300, secure=True, name="signed.test")),
        ("_25._tcp.mx.signed.test", RecordType.TLSA, Answer((Tlsa(3, 1, 1, bytes.fromhex(DATA)),), 300, secure=True, name="_25._tcp.mx.signed.test")),
        ("alias.signed.test", RecordType.A, Answer(LOCALHOST, 40, secure=True, name="mx.signed.test")),
        ("1.2.0.192.in-addr.arpa", RecordType.PTR, Answer(("mx.signed.test",), 300, secure=True, name="1.2.0.192.in-addr.arpa")),
        ("1.0.0.127.in-addr.arpa", RecordType.PTR, Answer(("mx.unsigned.test",), 300, secure=False, name="1.0.0.127.in-addr.arpa")),
        # a chain is as secure as its weakest link
        ("other.signed.test", RecordType.A, Answer(LOCALHOST, 50, secure=False, name="mx.unsigned.test")),
        ("no.signed.test", RecordType.A, NotFound(Missing.NXDOMAIN, NEGATIVE_TTL, secure=True)),
        ("no.unsigned.test", RecordType.A, NotFound(Missing.NXDOMAIN, NEGATIVE_TTL, secure=False)),
        ("mx.signed.test", RecordType.AAAA, NotFound(Missing.NODATA, NEGATIVE_TTL, secure=True)),
        ("mx.unsigned.test", RecordType.AAAA, NotFound(Missing.NODATA, NEGATIVE_TTL, secure=False)),
        ("_tcp.mx.unsigned.test", RecordType.A, NotFound(Missing.NODATA, NEGATIVE_TTL, secure=False)),
        ("nowhere.example", RecordType.MX, NotFound(Missing.NXDOMAIN, NEGATIVE_TTL, secure=True)),
        (BOGUS, RecordType.TXT, Temporary(Trouble.SERVFAIL)),
        (f"mail.{DEAD}", RecordType.A, Temporary(Trouble.SERVFAIL)),
    ],
)  # fmt: skip
async def test_answers(resolver: StubResolver, name: str, record_type: RecordType, expected: Outcome) -> None:
    outcome = await resolver.query(name, record_type)
    if isinstance(outcome, Answer | NotFound):  # unbound counts down, and another case may have asked before
        assert isinstance(expected, Answer | NotFound)
        assert expected.ttl - 4 <= outcome.ttl <= expected.ttl
        outcome = replace(outcome, ttl=expected.ttl)
    assert outcome == expected


@pytest.mark.parametrize("domain", ["signed.test", "unsigned.test"])
async def test_what_is_too_large_for_udp_comes_by_tcp(resolver: StubResolver, domain: str) -> None:
    outcome = await resolver.query(f"large.{domain}", RecordType.TXT)
    assert isinstance(outcome, Answer)
    assert outcome.records == (b"".join(b"%0250d" % number for number in range(20)),)


async def test_unbound_with_a_trust_anchor_validates(resolver: StubResolver) -> None:
    assert await resolver.check_validating() is Validation.YES


async def test_knot_alone_does_not(bed: DnsBed) -> None:
    assert await StubResolver([f"127.0.0.1:{bed.authority_port}"]).check_validating() is Validation.NO
