"""Each finding: a zone that has it and, beside it, the same zone without.  `+ code` expected, `- code` not."""

import pytest

from gateway.doctor.codes import Code, Severity
from gateway.doctor.report import Report
from tests.doctor.zones import HOST, examined

CASES = [
    # Domain
    (Code.DNSSEC_UNSIGNED, HOST, True),
    # Mail servers
    (Code.MX_OK, HOST, True),
    (Code.MX_NULL, "@ MX 0 .", True),
    (Code.MX_NULL, HOST, False),
    (Code.MX_NULL_BESIDE, f"{HOST}@ MX 0 .", True),
    (Code.MX_NULL_BESIDE, "@ MX 0 .", False),
    (Code.MX_IMPLICIT, "@ A 192.0.2.1", True),
    (Code.MX_IMPLICIT, HOST, False),
    (Code.MX_NOWHERE, '@ TXT "x"', True),
    (Code.MX_NOWHERE, "@ MX 5 192.0.2.3.", True),
    (Code.MX_NOT_A_HOST, f"{HOST}@ MX 5 192.0.2.3.", True),
    (Code.MX_NOT_A_HOST, HOST, False),
    (Code.MX_ALIAS, "@ MX 5 m\nm CNAME h\nh A 192.0.2.1", True),
    (Code.MX_ALIAS, "@ CNAME other.example.\nother.example. A 192.0.2.1", False),  # the domain, not its MX
    (Code.MX_NO_ADDRESS, "@ MX 5 m", True),
    (Code.MX_NO_ADDRESS, "@ MX 5 m\nm AAAA 2001:db8::1", False),
    (Code.MX_PRIVATE_ADDRESS, "@ MX 5 m\nm A 10.1.2.3", True),
    (Code.MX_PRIVATE_ADDRESS, "@ MX 5 m\nm A 127.0.0.1", True),
    (Code.MX_PRIVATE_ADDRESS, "@ MX 5 m\nm AAAA fd00::1", True),
    (Code.MX_PRIVATE_ADDRESS, HOST, False),
    (Code.MX_MANY, "".join(f"@ MX {n} m{n}\nm{n} A 192.0.2.{n}\n" for n in range(11)), True),
    (Code.MX_MANY, "".join(f"@ MX {n} m{n}\nm{n} A 192.0.2.{n}\n" for n in range(10)), False),
    (Code.PTR_OK, HOST, True),
    (Code.PTR_MISSING, "@ MX 5 m\nm A 192.0.2.1", True),
    (Code.PTR_MISSING, HOST, False),
    (Code.PTR_MISMATCH, "@ MX 5 m\nm A 192.0.2.1\n1.2.0.192.in-addr.arpa. PTR bank.example.", True),
    (Code.PTR_MISMATCH, HOST, False),
    # SPF
    (Code.SPF_OK, '@ TXT "v=spf1 -all"', True),
    (Code.SPF_OK, '@ TXT "v=spf1 +all"', False),
    (Code.SPF_MISSING, '@ TXT "v=spf2 -all"', True),
    (Code.SPF_MISSING, '@ TXT "v=spf1 -all"', False),
    (Code.SPF_SEVERAL, '@ TXT "v=spf1 -all"\n@ TXT "v=spf1 mx -all"', True),
    (Code.SPF_SEVERAL, '@ TXT "v=spf1 -all"\n@ TXT "other"', False),
    (Code.SPF_SYNTAX, '@ TXT "v=spf1 ip4:300.1.1.1 -all"', True),
    (Code.SPF_SYNTAX, '@ TXT "v=spf1 \\255 -all"', True),
    (Code.SPF_SYNTAX, '@ TXT "v=spf1 unknown=1 -all"', False),  # unknown modifiers are allowed
    (Code.SPF_INCLUDE, '@ TXT "v=spf1 include:x.example -all"', True),
    (Code.SPF_INCLUDE, '@ TXT "v=spf1 redirect=x.example"', True),
    (Code.SPF_INCLUDE, '@ TXT "v=spf1 include:x.example -all"\nx.example. TXT "v=spf1"', False),
    (Code.SPF_TOO_LARGE, '@ TXT "v=spf1" ' + '" ip4:192.0.2.1"' * 300, True),
    (Code.SPF_TOO_MANY_LOOKUPS, '@ TXT "v=spf1' + " a" * 11 + ' -all"\n@ A 192.0.2.1', True),
    (Code.SPF_TOO_MANY_LOOKUPS, '@ TXT "v=spf1' + " a" * 10 + ' -all"\n@ A 192.0.2.1', False),
    (Code.SPF_NEAR_LIMIT, '@ TXT "v=spf1' + " a" * 9 + ' -all"\n@ A 192.0.2.1', True),
    (Code.SPF_NEAR_LIMIT, '@ TXT "v=spf1' + " a" * 8 + ' -all"\n@ A 192.0.2.1', False),
    (Code.SPF_TOO_MANY_VOID, '@ TXT "v=spf1 a:a.x a:b.x a:c.x -all"', True),
    (Code.SPF_TOO_MANY_VOID, '@ TXT "v=spf1 a:a.x a:b.x -all"', False),
    (Code.SPF_VOID, '@ TXT "v=spf1 a:a.x -all"', True),
    (Code.SPF_VOID, '@ TXT "v=spf1 a:a.x -all"\na.x. A 192.0.2.1', False),  # IPv4 alone is no fault
    (Code.SPF_TOO_MANY_MX, '@ TXT "v=spf1 mx -all"\n' + "".join(f"@ MX {n} m{n}\n" for n in range(11)), True),
    (Code.SPF_ALLOWS_ALL, '@ TXT "v=spf1 mx all"', True),
    (Code.SPF_ALLOWS_ALL, '@ TXT "v=spf1 include:x.example -all"\nx.example. TXT "v=spf1 +all"', True),
    (Code.SPF_ALLOWS_ALL, '@ TXT "v=spf1 mx ~all"', False),
    (Code.SPF_NO_END, '@ TXT "v=spf1 mx ?all"', True),
    (Code.SPF_NO_END, '@ TXT "v=spf1 mx"', True),
    (Code.SPF_NO_END, '@ TXT "v=spf1 redirect=x.example"\nx.example. TXT "v=spf1 -all"', False),
    (Code.SPF_HUGE_RANGE, '@ TXT "v=spf1 ip4:0.0.0.0/1 ip4:128.0.0.0/1 -all"', True),
    (Code.SPF_HUGE_RANGE, '@ TXT "v=spf1 ip6:2000::/3 -all"', True),
    (Code.SPF_HUGE_RANGE, '@ TXT "v=spf1 ip4:192.0.0.0/12 ip6:2001:db8::/32 -ip4:0.0.0.0/0 -all"', False),
    (Code.SPF_PTR, '@ TXT "v=spf1 ptr -all"', True),
    (Code.SPF_PTR, '@ TXT "v=spf1 mx -all"', False),
    # DKIM; the keys themselves: see test_dkim
    (Code.DKIM_NONE_KNOWN, HOST, True),
    (Code.DKIM_REVOKED, 'google._domainkey TXT "v=DKIM1; p="', True),
    (Code.DKIM_UNUSABLE, 'mail._domainkey TXT "v=DKIM1; p=!!"', True),
    (Code.DKIM_UNUSABLE, 'mail._domainkey TXT "google-site-verification=1"', False),
    (Code.DKIM_WILDCARD, '*._domainkey TXT "v=DKIM1; p="', True),
    (Code.DKIM_REVOKED, '*._domainkey TXT "v=DKIM1; p="', False),  # said once, not thirty times
    # DMARC
    (Code.DMARC_OK, '_dmarc TXT "v=DMARC1; p=quarantine; rua=mailto:a@example.net"', True),
    (Code.DMARC_MISSING, HOST, True),
    (Code.DMARC_MISSING, '_dmarc TXT "v=DMARC1; p=reject"', False),
    (Code.DMARC_SEVERAL, '_dmarc TXT "v=DMARC1; p=reject"\n_dmarc TXT "v=DMARC1; p=none"', True),
    (Code.DMARC_UNUSABLE, '_dmarc TXT "v=DMARC1; p=rejct"', True),
    (Code.DMARC_UNUSABLE, '_dmarc TXT "v=DMARC1; p=reject"', False),
    (Code.DMARC_INHERITED, '_dmarc.net. TXT "v=DMARC1; p=reject; psd=y"', True),
    (Code.DMARC_INHERITED, '_dmarc TXT "v=DMARC1; p=reject"', False),
    (Code.DMARC_POLICY_NONE, '_dmarc TXT "v=DMARC1; p=none"', True),
    (Code.DMARC_POLICY_NONE, '_dmarc TXT "v=DMARC1; p=reject; sp=none"', False),
    (Code.DMARC_SUBDOMAINS, '_dmarc TXT "v=DMARC1; p=reject; sp=none"', True),
    (Code.DMARC_SUBDOMAINS, '_dmarc TXT "v=DMARC1; p=quarantine; np=quarantine"', False),
    (Code.DMARC_SUBDOMAINS, '_dmarc TXT "v=DMARC1; p=quarantine; np=reject"', False),
    (Code.DMARC_TESTING, '_dmarc TXT "v=DMARC1; p=reject; t=y"', True),
    (Code.DMARC_TESTING, '_dmarc TXT "v=DMARC1; p=reject; t=n"', False),
    (Code.DMARC_IGNORED_TAGS, '_dmarc TXT "v=DMARC1; p=reject; pct=50"', True),
    (Code.DMARC_IGNORED_TAGS, '_dmarc TXT "v=DMARC1; p=reject; rau=mailto:a@example.net"', True),  # misspelt
    (Code.DMARC_IGNORED_TAGS, '_dmarc TXT "v=DMARC1;P=reject;adkim=s;fo=1;ruf=mailto:a@example.net;"', False),
    (Code.DMARC_NO_REPORTS, '_dmarc TXT "v=DMARC1; p=reject"', True),
    (Code.DMARC_NO_REPORTS, '_dmarc TXT "v=DMARC1; p=reject; rua=mailto:a@example.net"', False),
    (Code.DMARC_REPORT_URI, '_dmarc TXT "v=DMARC1; p=reject; rua=a@example.net"', True),
    (Code.DMARC_REPORT_URI, '_dmarc TXT "v=DMARC1; p=reject; rua=mailto:a@example.net!10m"', False),
    (Code.DMARC_REPORTS_UNAUTHORISED, '_dmarc TXT "v=DMARC1; p=reject; rua=mailto:a@r.example"', True),
    (
        Code.DMARC_REPORTS_UNAUTHORISED,
        '_dmarc TXT "v=DMARC1; p=reject; rua=mailto:a@r.example"\n*._report._dmarc.r.example. TXT "v=DMARC1"',
        False,
    ),
    (
        Code.DMARC_REPORTS_UNAUTHORISED,
        '_dmarc TXT "v=DMARC1; p=reject; rua=mailto:a@dmarc.example.net"',
        False,
    ),  # the same organization
    # TLS reports
    (Code.TLSRPT_OK, '_smtp._tls TXT "v=TLSRPTv1; rua=mailto:a@example.net"', True),
    (Code.TLSRPT_MISSING, HOST, True),
    (Code.TLSRPT_MISSING, "@ MX 0 .", False),  # no mail, no TLS, no reports
    (
        Code.TLSRPT_SEVERAL,
        '_smtp._tls TXT "v=TLSRPTv1; rua=mailto:a@b.c"\n_smtp._tls TXT "v=TLSRPTv1;"',
        True,
    ),
    (Code.TLSRPT_INVALID, '_smtp._tls TXT "v=TLSRPTv1; rua=a@example.net"', True),
    # DANE in an unsigned zone
    (Code.DANE_MISSING, HOST, True),
    (Code.DANE_NOT_SECURE, f"{HOST}_25._tcp.mx TLSA 3 1 1 {'ab' * 32}", True),
    (Code.TRANSPORT_UNPROTECTED, HOST, True),
    (Code.TRANSPORT_UNPROTECTED, "@ MX 0 .", False),
]


@pytest.mark.parametrize(("code", "zone", "expected"), CASES)
async def test_findings(code: Code, zone: str, *, expected: bool) -> None:
    exists = "" if zone.startswith("@") else '@ TXT "there"\n'
    report = await examined(exists + zone)
    assert (code in {one.code for one in report.findings}) is expected, texts(report)


SIGNED = [
    (Code.DNSSEC_SIGNED, HOST, True),
    (Code.DANE_OK, f"{HOST}_25._tcp.mx TLSA 3 1 1 {'ab' * 32}", True),
    (Code.TRANSPORT_PROTECTED, f"{HOST}_25._tcp.mx TLSA 3 1 1 {'ab' * 32}", True),
    (Code.DANE_UNUSABLE, f"{HOST}_25._tcp.mx TLSA 1 1 1 {'ab' * 32}", True),
    (Code.DANE_MISSING, HOST, True),
    (Code.DANE_PARTIAL, f"{HOST}@ MX 20 m2\nm2 A 192.0.2.2\n_25._tcp.mx TLSA 3 1 1 {'ab' * 32}", True),
    (Code.DANE_PARTIAL, f"{HOST}_25._tcp.mx TLSA 3 1 1 {'ab' * 32}", False),
    # a server in an unsigned zone: its TLSA records do nothing
    (
        Code.DANE_NOT_SECURE,
        f"@ MX 5 m.x.example.\n$SECURE off\nm.x.example. A 192.0.2.1\n_25._tcp.m.x.example. TLSA 3 1 1 {'ab' * 32}",
        True,
    ),
    (Code.DNS_UNKNOWN, f"{HOST}$TROUBLE _25._tcp.mx TLSA servfail", True),
    (Code.TRANSPORT_BLOCKED, f"{HOST}$TROUBLE _25._tcp.mx TLSA servfail", False),  # not known is not blocked
]


@pytest.mark.parametrize(("code", "zone", "expected"), SIGNED)
async def test_findings_in_a_signed_zone(code: Code, zone: str, *, expected: bool) -> None:
    report = await examined(zone, secure=True)
    assert (code in {one.code for one in report.findings}) is expected, texts(report)


POLICY = "version: STSv1\nmode: {}\nmx: mx.example.net\nmax_age: 604800\n"
STS = '_mta-sts TXT "v=STSv1; id=1;"\n'
POLICIES = [
    (Code.STS_OK, STS, POLICY.format("enforce"), True),
    (Code.TRANSPORT_PROTECTED, STS, POLICY.format("enforce"), True),
    (Code.STS_TESTING, STS, POLICY.format("testing"), True),
    (Code.TRANSPORT_UNPROTECTED, STS, POLICY.format("testing"), True),
    (Code.STS_NONE, STS, "version: STSv1\nmode: none\nmax_age: 86400\n", True),
    (Code.STS_MISSING, "", None, True),
    (Code.STS_MISSING, STS, POLICY.format("enforce"), False),
    (Code.STS_SEVERAL, STS + '_mta-sts TXT "v=STSv1; id=2;"', POLICY.format("enforce"), True),
    (Code.STS_RECORD, '_mta-sts TXT "v=STSv1; id=a-b;"', POLICY.format("enforce"), True),
    (Code.STS_FETCH, STS, None, True),
    (Code.STS_POLICY, STS, "version: STSv1\nmode: enforced\n", True),
    (Code.STS_MX_NOT_LISTED, STS, POLICY.format("enforce").replace("mx.ex", "mail.ex"), True),
    (Code.TRANSPORT_BLOCKED, STS, POLICY.format("enforce").replace("mx.ex", "mail.ex"), True),
    (Code.STS_MX_NOT_LISTED, STS, POLICY.format("enforce").replace("mx.ex", "*.ex"), False),
    (
        Code.STS_UNUSED_PATTERN,
        STS,
        POLICY.format("enforce").replace("mode", "mx: old.example.net\nmode"),
        True,
    ),
    (Code.STS_UNUSED_PATTERN, STS, POLICY.format("enforce"), False),
    (Code.STS_SHORT, STS, POLICY.format("enforce").replace("604800", "3600"), True),
    (Code.STS_SHORT, STS, POLICY.format("enforce"), False),
]


@pytest.mark.parametrize(("code", "zone", "policy", "expected"), POLICIES)
async def test_findings_of_mta_sts(code: Code, zone: str, policy: str | None, *, expected: bool) -> None:
    report = await examined(HOST + zone, policy=policy)
    assert (code in {one.code for one in report.findings}) is expected, texts(report)


RECORDS = [
    ('@ TXT "v=spf1 mx +all"', Code.SPF_ALLOWS_ALL, 'example.net. IN TXT "v=spf1 mx ~all"'),
    ('@ TXT "v=spf1 mx"', Code.SPF_NO_END, 'example.net. IN TXT "v=spf1 mx ~all"'),
    ("@ MX 0 .", Code.SPF_MISSING, 'example.net. IN TXT "v=spf1 -all"'),
    (HOST, Code.SPF_MISSING, 'example.net. IN TXT "v=spf1 mx ~all"'),
    ("@ A 192.0.2.1", Code.MX_IMPLICIT, "example.net. IN MX 10 example.net."),
    (
        '@ A 192.0.2.1\n_dmarc TXT "v=DMARC1; p = none; rua=mailto:a@example.net"',
        Code.DMARC_POLICY_NONE,
        '_dmarc.example.net. IN TXT "v=DMARC1; p = quarantine; rua=mailto:a@example.net"',
    ),
    (
        '@ A 192.0.2.1\n_dmarc TXT "v=DMARC1; p=reject; rua=mailto:a@r.example"',
        Code.DMARC_REPORTS_UNAUTHORISED,
        'example.net._report._dmarc.r.example. IN TXT "v=DMARC1;"',
    ),
]


@pytest.mark.parametrize(("zone", "code", "line"), RECORDS)
async def test_the_record_that_mends_it(zone: str, code: Code, line: str) -> None:
    report = await examined(zone)
    (found,) = [one for one in report.findings if one.code is code]
    assert line in found.publish


async def test_what_it_proposes_passes_its_own_examination() -> None:
    before = await examined(HOST)
    mended = HOST + "\n".join(line for one in before.findings for line in one.publish)
    policy = "version: STSv1\nmode: testing\nmx: mx.example.net\nmax_age: 604800\n"
    after = await examined(mended, policy=policy)
    left = {one.code for one in after.findings if one.severity in {Severity.WARNING, Severity.ERROR}}
    assert left == {Code.DMARC_POLICY_NONE, Code.STS_TESTING, Code.TRANSPORT_UNPROTECTED}, texts(after)


async def test_a_failed_lookup_is_never_an_absence() -> None:
    names = ("_mta-sts", "_smtp._tls", "_dmarc", "mx", *(f"{name}._domainkey" for name in ("mail", "google")))
    report = await examined("@ MX 5 mx\n" + "".join(f"$TROUBLE {name} ANY timeout\n" for name in names))
    found = {one.code for one in report.findings}
    assert not found & {
        Code.STS_MISSING,
        Code.TLSRPT_MISSING,
        Code.DMARC_MISSING,
        Code.MX_NO_ADDRESS,
        Code.DKIM_NONE_KNOWN,
    }
    assert report.worst is Severity.UNKNOWN, texts(report)


def texts(report: Report) -> str:
    return "\n".join(f"{one.severity} {one.code} {one.about} {one.found}" for one in report.findings)
