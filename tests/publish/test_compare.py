"""The live DNS against what should be there: by meaning. Each case is a zone and one verdict."""

import hashlib
from ipaddress import IPv4Address

import pytest

from gateway.auth.dkim.key import KeyType
from gateway.dns.zone import ZoneResolver
from gateway.keys.model import key_record
from gateway.ops.config import HostPort, InboundSettings, MtaStsSettings, OutboundSettings, Settings
from gateway.publish.compare import Comparison, Status, compare
from gateway.publish.master_file import format_master_file
from gateway.publish.records import Purpose
from gateway.publish.wanted import Facts, PublicKey, ServerKey, wanted_records
from tests.keys.test_state_file import ED25519, RSA

DIGEST = hashlib.sha256(b"key").digest()
NEXT = hashlib.sha256(b"next key").digest()
KEY = PublicKey(selector="s1", record=key_record(KeyType.ED25519, ED25519), about="signs")
SETTINGS = Settings(
    authserv_id="mx.example.net",
    hostname="mx.example.net",
    local_domains=("example.net",),
    inbound=InboundSettings(listen=(HostPort("127.0.0.1", 25),), downstream=HostPort("127.0.0.1", 10025)),
    mta_sts=MtaStsSettings(mode="enforce", mx=("mx.example.net",)),
)
SERVER = ServerKey(names=("mx.example.net",), digest=DIGEST, source="cert.pem")
FACTS = Facts(
    domain="example.net",
    settings=SETTINGS,
    keys=[KEY],
    server_key=SERVER,
    next_keys=[ServerKey(names=(), digest=NEXT, source="next.pem")],
    report_to="postmaster@example.net",
)
OURS, COMING = f"3 1 1 {DIGEST.hex()}", f"3 1 1 {NEXT.hex()}"
BASE = "mx.example.net. A 192.0.2.1\n"


async def compared(facts: Facts, zone: str, *, secure: bool = True) -> dict[Purpose, Comparison]:
    resolver = ZoneResolver.from_text(zone, secure=secure)
    found = await compare(facts, wanted_records(facts), resolver)
    return {one.wanted.purpose: one for one in found}


async def test_what_we_print_is_what_we_want_to_see() -> None:
    text = format_master_file("example.net", wanted_records(FACTS), ttl_s=300)
    found = await compared(FACTS, f"{text}{BASE}mta-sts.example.net. CNAME mx.example.net.\n")
    assert {purpose: one.status for purpose, one in found.items()} == dict.fromkeys(Purpose, Status.OK)


async def test_an_empty_zone_lacks_everything() -> None:
    found = await compared(FACTS, "example.net. NS ns.example.net.\n")
    assert {one.status for one in found.values()} == {Status.MISSING}


async def test_a_resolver_that_does_not_answer_makes_nothing_wrong() -> None:
    names = ("example.net", "_dmarc.example.net", "s1._domainkey.example.net", "_mta-sts.example.net")
    more = ("mta-sts.example.net", "_smtp._tls.example.net", "_25._tcp.mx.example.net", "mx.example.net")
    found = await compared(FACTS, "".join(f"$TROUBLE {name}. ANY timeout\n" for name in (*names, *more)))
    assert {one.status for one in found.values()} == {Status.UNKNOWN}


CASES = [
    # MX
    (Purpose.MX, "example.net. MX 5 mx.example.net.", Status.OK, ""),
    (Purpose.MX, "example.net. MX 5 other.example.net.", Status.DIFFERS, "will not deliver there"),
    (
        Purpose.MX,
        "example.net. MX 5 mx.example.net.\nexample.net. MX 9 backup.example.org.",
        Status.DIFFERS,
        "[mta_sts] mx does not name backup.example.org",
    ),
    # SPF: what is there may allow more, in other words
    (
        Purpose.SPF,
        'example.net. TXT "v=spf1 ip4:192.0.2.0/24 include:x.example -all"',
        Status.OK,
        "allows 192.0.2.1",
    ),
    (Purpose.SPF, 'example.net. TXT "v=spf1 a:mx.example.net ?all"', Status.OK, "allows 192.0.2.1"),
    (
        Purpose.SPF,
        'example.net. TXT "v=spf1 ip4:198.51.100.1 -all"',
        Status.DIFFERS,
        "does not allow 192.0.2.1",
    ),
    (Purpose.SPF, 'example.net. TXT "v=spf1 ip4:198.51.100.1"', Status.DIFFERS, "(neutral)"),
    (Purpose.SPF, 'example.net. TXT "v=spf1 mxx -all"', Status.DIFFERS, "cannot be used: spf."),
    (
        Purpose.SPF,
        'example.net. TXT "v=spf1 a"\nexample.net. TXT "v=spf1 mx"',
        Status.DIFFERS,
        "cannot be used",
    ),
    (Purpose.SPF, 'example.net. TXT "just text"', Status.MISSING, ""),
    (
        Purpose.SPF,
        'example.net. TXT "v=spf1 include:slow.example -all"\n$TROUBLE slow.example. TXT timeout',
        Status.UNKNOWN,
        "cannot be known now",
    ),
    # DKIM: the key counts, not the text around it
    (Purpose.DKIM, f's1._domainkey.example.net. TXT "k=ed25519; n=x; p={ED25519}"', Status.OK, ""),
    (Purpose.DKIM, 's1._domainkey.example.net. TXT "v=DKIM1; p="', Status.DIFFERS, "a revoked key"),
    (
        Purpose.DKIM,
        f's1._domainkey.example.net. TXT "p={RSA[:200]}" "{RSA[200:]}"',
        Status.DIFFERS,
        "another public key",
    ),
    (Purpose.DKIM, 's1._domainkey.example.net. TXT "v=spf1 -all"', Status.MISSING, "only other text"),
    # DMARC: any policy is the owner's own choice
    (
        Purpose.DMARC,
        '_dmarc.example.net. TXT "v=DMARC1; p=reject; rua=mailto:a@example.net"',
        Status.OK,
        "p=reject",
    ),
    (Purpose.DMARC, '_dmarc.example.net. TXT "v=DMARC1; p=reject"', Status.OK, "nobody is told of failures"),
    (Purpose.DMARC, '_dmarc.example.net. TXT "v=DMARC1; p=rejct"', Status.DIFFERS, "cannot be understood"),
    (
        Purpose.DMARC,
        '_dmarc.example.net. TXT "v=DMARC1; p=none"\n_dmarc.example.net. TXT "v=DMARC1; p=reject"',
        Status.DIFFERS,
        "several",
    ),
    # MTA-STS
    (
        Purpose.MTA_STS,
        '_mta-sts.example.net. TXT "v=STSv1; id=20200101"',
        Status.DIFFERS,
        "of another policy",
    ),
    (
        Purpose.MTA_STS,
        '_mta-sts.example.net. TXT "v=STSv1; id=1;"\n_mta-sts.example.net. TXT "v=STSv1; id=2;"',
        Status.DIFFERS,
        "several",
    ),
    (Purpose.MTA_STS, '_mta-sts.example.net. TXT "v=spf1 -all"', Status.MISSING, ""),
    (Purpose.MTA_STS_HOST, "mta-sts.example.net. AAAA 2001:db8::1", Status.OK, ""),
    # TLSRPT: whoever reads the reports
    (
        Purpose.TLSRPT,
        '_smtp._tls.example.net. TXT "v=TLSRPTv1; rua=https://reports.example/x"',
        Status.OK,
        "its owner",
    ),
    (Purpose.TLSRPT, '_smtp._tls.example.net. TXT "v=TLSRPTv1;"', Status.DIFFERS, "has no rua="),
    # TLSA
    (Purpose.TLSA, f"_25._tcp.mx.example.net. TLSA {OURS}", Status.MISSING, "keys to come"),
    (Purpose.TLSA, f"_25._tcp.mx.example.net. TLSA {COMING}", Status.DIFFERS, "will not deliver"),
    (
        Purpose.TLSA,
        "".join(f"_25._tcp.mx.example.net. TLSA {data}\n" for data in (OURS, COMING, f"2 1 1 {NEXT.hex()}")),
        Status.OK,
        "1 others, too",
    ),
]


@pytest.mark.parametrize(("purpose", "zone", "status", "note"), CASES)
async def test_by_meaning(purpose: Purpose, zone: str, status: Status, note: str) -> None:
    found = (await compared(FACTS, f"{BASE}{zone}\n"))[purpose]
    assert (found.status, note in found.note) == (status, True), found


async def test_in_an_unsigned_zone_no_tlsa_record_is_missed() -> None:
    found = await compared(FACTS, BASE, secure=False)
    assert found[Purpose.TLSA].status is Status.OK
    assert "not signed" in found[Purpose.TLSA].note


async def test_the_organizations_policy_is_enough_for_a_subdomain() -> None:
    settings = SETTINGS.model_copy(update={"local_domains": ("example.net", ".example.net")})
    facts = Facts(domain="www.example.net", settings=settings, report_to="postmaster@example.net")
    found = await compared(facts, f'{BASE}_dmarc.example.net. TXT "v=DMARC1; p=reject; sp=reject"\n')
    assert found[Purpose.DMARC].status is Status.OK
    assert "from example.net" in found[Purpose.DMARC].note


async def test_the_relays_own_addresses_are_what_spf_must_allow() -> None:
    outbound = OutboundSettings(
        listen=(HostPort("127.0.0.1", 10026),), clients=(), source_ipv4=IPv4Address("203.0.113.9")
    )
    facts = Facts(
        domain="example.net",
        settings=SETTINGS.model_copy(update={"outbound": outbound}),
        report_to="postmaster@example.net",
    )
    spf = next(one for one in wanted_records(facts) if one.purpose is Purpose.SPF)
    assert spf.records == (b"v=spf1 mx ip4:203.0.113.9 ~all",)
    found = await compared(facts, f'{BASE}example.net. TXT "v=spf1 ip4:192.0.2.1 -all"\n')
    assert "does not allow 203.0.113.9" in found[Purpose.SPF].note


async def test_a_domain_that_only_sends_gets_no_records_for_receiving() -> None:
    facts = Facts(domain="news.example.org", settings=SETTINGS, keys=[KEY], report_to="x@example.net")
    purposes = [one.purpose for one in wanted_records(facts)]
    assert purposes == [Purpose.SPF, Purpose.DKIM, Purpose.DMARC]


async def test_tlsa_is_for_the_servers_that_the_certificate_names() -> None:
    mta_sts = MtaStsSettings(mode="enforce", mx=("mx.example.net", "mx2.example.net", "*.example.org"))
    facts = Facts(
        domain="example.net",
        settings=SETTINGS.model_copy(update={"mta_sts": mta_sts}),
        server_key=SERVER,
        report_to="x@example.net",
    )
    names = [one.name for one in wanted_records(facts) if one.purpose is Purpose.TLSA]
    assert names == ["_25._tcp.mx.example.net"]


@pytest.mark.parametrize(
    ("report_to", "said"),
    [
        ("a@example.net", "must be able to read them"),
        ("a@reports.example.net", "must be able to read them"),
        ("a@example.org", 'example.net._report._dmarc.example.org TXT "v=DMARC1;"'),
        ("a@otherexample.net", "example.net._report._dmarc.otherexample.net"),
    ],
)
def test_who_reads_reports_elsewhere_must_agree(report_to: str, said: str) -> None:
    facts = Facts(domain="example.net", settings=SETTINGS, report_to=report_to)
    (dmarc,) = [one for one in wanted_records(facts) if one.purpose is Purpose.DMARC]
    assert said in dmarc.why
