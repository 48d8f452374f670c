"""A domain as a whole: what ends the examination at once, and what does not."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest

from gateway.dns.resolver import Outcome, RecordType
from gateway.dns.stub import Validation
from gateway.dns.zone import ZoneResolver
from gateway.doctor.case import Session, Tools
from gateway.doctor.codes import Code, Severity
from gateway.doctor.examine import examine
from gateway.doctor.posture import KEEP_S, Posture
from gateway.doctor.report import Section
from gateway.tlspolicy.model import Decision, TlsProblem
from tests.doctor.zones import DOMAIN, HOST, examined, tools

GOOD = f"""{HOST}
@ TXT "v=spf1 mx -all"
_dmarc TXT "v=DMARC1; p=reject; rua=mailto:reports@example.net"
_smtp._tls TXT "v=TLSRPTv1; rua=mailto:reports@example.net"
_mta-sts TXT "v=STSv1; id=1;"
_25._tcp.mx TLSA 3 1 1 {"ab" * 32}
"""
POLICY = "version: STSv1\nmode: enforce\nmx: mx.example.net\nmax_age: 2592000\n"


async def test_a_domain_in_order() -> None:
    report = await examined(GOOD, secure=True, policy=POLICY)
    assert {one.code for one in report.findings if one.severity is not Severity.OK} == {Code.DKIM_NONE_KNOWN}
    assert report.worst is Severity.NOTE
    assert [section for section, _ in report.sections] == [
        section for section in Section if section not in {Section.CONNECT, Section.OURS}
    ]


async def test_a_domain_that_does_not_exist_is_said_once() -> None:
    report = await examined("other.example. A 192.0.2.1\n")
    assert [one.code for one in report.findings] == [Code.DOMAIN_MISSING]
    assert report.worst is Severity.ERROR


async def test_a_resolver_that_is_not_there_is_said_once() -> None:
    async def unknown() -> Validation:
        return Validation.UNKNOWN

    zone = "$TROUBLE @ ANY timeout\n$TROUBLE _dmarc ANY timeout\n"
    report = await examine(DOMAIN, replace(tools(zone), validation=unknown))
    assert [one.code for one in report.findings] == [Code.DNS_UNREACHABLE]


async def test_a_domain_whose_servers_are_down_is_said_once() -> None:
    report = await examined("$TROUBLE @ ANY servfail\n$TROUBLE _dmarc ANY servfail\n")
    (one,) = report.findings
    assert one.code is Code.DNS_UNKNOWN
    assert "every question about example.net fails (servfail)" in one.found


async def test_without_validation_nothing_is_said_of_what_dnssec_would_prove() -> None:
    async def no() -> Validation:
        return Validation.NO

    report = await examine(DOMAIN, replace(tools(GOOD, policy=None), validation=no))
    found = {one.code for one in report.findings}
    assert Code.DNSSEC_NOT_CHECKED in found
    assert not found & {Code.DANE_MISSING, Code.DANE_NOT_SECURE, Code.TRANSPORT_UNPROTECTED}


async def test_a_silent_resolver_is_not_waited_for_longer_than_said() -> None:
    class Silent:
        def __init__(self) -> None:
            self.inner = ZoneResolver.from_text(GOOD, origin="example.net.")

        async def query(self, name: str, record_type: RecordType) -> Outcome:
            if name != DOMAIN:
                await asyncio.Event().wait()
            return await self.inner.query(name, record_type)

    async with asyncio.timeout(10):
        report = await examine(DOMAIN, replace(tools(GOOD), resolver=Silent(), timeout_s=0.2))
    assert report.worst is Severity.UNKNOWN
    assert {section for section, _ in report.sections} >= {Section.MX, Section.DMARC, Section.TLSRPT}


HOSTILE = [
    "<script>alert(1)</script>",
    "\\027[2J\\027]0;owned\\007",
    "\\226\\128\\174gnp.exe",  # U+202E turns the line round
    "\\000\\010\\013",
    "A" * 255 + '" "' + "B" * 255,
]
PLACES = [
    '@ TXT "v=spf1 {}"',
    '@ TXT "v=spf1 ip4:{} -all"',
    '@ TXT "v=spf1 include:{}"',
    '_dmarc TXT "v=DMARC1; p={}"',
    '_dmarc TXT "v=DMARC1; p=none; {}=x; rua=mailto:{}@example.org"',
    '_mta-sts TXT "v=STSv1; id={};"',
    '_smtp._tls TXT "v=TLSRPTv1; rua={}"',
    'google._domainkey TXT "v=DKIM1; p={}"',
    '*._domainkey TXT "p={}"',
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("place", PLACES)
async def test_hostile_text_is_shown_harmless(place: str, text: str) -> None:
    report = await examined(HOST + place.replace("{}", text))
    for one in report.findings:
        for shown in (one.found, one.about, *one.publish):
            assert shown.isprintable()
        assert len(one.found) <= 400
        assert sum(map(len, one.publish)) < 4_000


async def test_hostile_names_of_mail_servers_and_addresses() -> None:
    zone = """\
@ MX 1 \\027[2J.example.
@ MX 2 <b>.example.
@ MX 3 _srv_.example.
_srv_.example. A 192.0.2.1
@ MX 4 m
m A 192.0.2.2
2.2.0.192.in-addr.arpa. PTR <script>.example.
"""
    report = await examined(zone)
    assert all((one.found + one.about).isprintable() for one in report.findings)
    assert Code.MX_NOT_A_HOST in {one.code for one in report.findings}


async def test_a_domain_made_to_cost_much_costs_little() -> None:
    zone = "".join(f"@ MX {n} m{n}\n" for n in range(200))
    zone += "".join(f"m{n} A 192.0.{n}.{host}\n" for n in range(20) for host in range(1, 40))
    zone += '@ TXT "v=spf1 ' + " ".join(f"include:i{n}.example.net" for n in range(100)) + '"\n'
    zone += "".join(f'i{n} TXT "v=spf1 include:i{(n + 1) % 100}.example.net mx ptr"\n' for n in range(100))
    zone += (
        '_dmarc TXT "v=DMARC1; p=none; rua=' + ",".join(f"mailto:a@r{n}.example" for n in range(100)) + '"\n'
    )
    report = await examined(zone)
    assert report.questions <= 601
    assert report.seconds < 5


async def test_progress_is_told_section_by_section() -> None:
    told: list[Section] = []
    await examine(DOMAIN, replace(tools(GOOD), tell=told.append))
    assert sorted(told) == sorted(Section)


NOW = datetime(2026, 5, 1, tzinfo=UTC)
SESSION = Session(
    host="mx.example.net",
    address=ip_address("192.0.2.1"),
    tls_version="TLSv1.3",
    cipher="TLS_AES_256_GCM_SHA384",
    expires=NOW + timedelta(days=60),
    certificate="certificate for mx.example.net",
    would_do=True,
)
SESSIONS = [
    (SESSION, {Code.CONNECT_OK}),
    (replace(SESSION, failure="connection refused"), {Code.CONNECT_FAILED}),
    (replace(SESSION, tls_version=None, pkix=TlsProblem.TLS_NOT_OFFERED), {Code.CONNECT_NO_TLS}),
    (replace(SESSION, tls_version="TLSv1.1"), {Code.CONNECT_OK, Code.CONNECT_OLD_TLS}),
    (replace(SESSION, pkix=TlsProblem.CERTIFICATE_NAME), {Code.CONNECT_OK, Code.CONNECT_CERTIFICATE}),
    (
        replace(SESSION, pkix=TlsProblem.CERTIFICATE_NAME, would_do=False),
        {Code.CONNECT_REFUSED, Code.CONNECT_CERTIFICATE},
    ),
    (
        replace(SESSION, has_tlsa=True, tlsa=TlsProblem.CERTIFICATE_TLSA, would_do=False),
        {Code.CONNECT_REFUSED, Code.CONNECT_TLSA},
    ),
    (replace(SESSION, expires=NOW + timedelta(days=13)), {Code.CONNECT_OK, Code.CONNECT_EXPIRES_SOON}),
    (replace(SESSION, certificate="\x1b[2J"), {Code.CONNECT_OK}),
]


@pytest.mark.parametrize(("session", "expected"), SESSIONS)
async def test_what_servers_show(session: Session, expected: set[Code]) -> None:
    async def probe(decision: Decision) -> list[Session]:
        assert [each.host.name for each in decision.hosts] == ["mx.example.net"]
        return [session]

    report = await examine(DOMAIN, replace(tools(GOOD), probe=probe, now=lambda: NOW))
    found = dict(report.sections)[Section.CONNECT]
    assert {one.code for one in found} == expected
    assert all(one.found.isprintable() for one in found)


async def test_posture_looks_once_for_all_who_ask_and_again_when_it_is_old() -> None:
    clock, asked = [0.0], list[str]()

    def tools_for(domain: str) -> Tools:
        asked.append(domain)
        return tools(GOOD)

    posture = Posture(["example.net", ".example.net", "gone.example"], tools_for, now=lambda: clock[0])
    first, second = await asyncio.gather(posture.look(), posture.look())
    assert first is second
    assert [report.domain for report in first] == ["example.net", "gone.example"]
    assert asked == ["example.net", "gone.example"]
    clock[0] = KEEP_S
    await posture.look()
    assert len(asked) == 4
