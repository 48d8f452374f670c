"""A domain as a whole: what ends the examination at once, and what does not."""

from gateway.doctor.codes import Code, Severity
from gateway.doctor.report import Section
from tests.doctor.zones import HOST, examined

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
