import pytest

from gateway.auth.results import SenderDomain
from gateway.auth.sender_domain import check_sender_domain
from gateway.dns.resolver import RecordType, Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.address import Mailbox

ZONE = ZoneResolver.from_text("""
mx.example. MX 10 a.mx.example.
null.example. MX 0 .
mixed.example. MX 0 .
mixed.example. MX 10 a.mx.example.
v4.example. A 192.0.2.1
v6.example. AAAA 2001:db8::1
text.example. TXT nothing
""")

BROKEN = ZoneResolver.from_records(
    {("half.example", RecordType.TXT): [b""], ("rest.example", RecordType.TXT): [b""]},
    trouble={
        ("all.example", RecordType.MX): Trouble.SERVFAIL,
        ("half.example", RecordType.A): Trouble.TIMEOUT,
        ("rest.example", RecordType.AAAA): Trouble.TIMEOUT,
    },
)


def sender(domain: str) -> Mailbox:
    return Mailbox("user", domain, f"user@{domain}")


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        ("mx.example", SenderDomain.MX),
        ("null.example", SenderDomain.NULL_MX),
        ("mixed.example", SenderDomain.MX),  # RFC 7505 §3: a null MX counts only by itself
        ("v4.example", SenderDomain.ADDRESS),
        ("v6.example", SenderDomain.ADDRESS),
        ("text.example", SenderDomain.NONE),
        ("absent.example", SenderDomain.NXDOMAIN),
        ("[192.0.2.1]", SenderDomain.NOT_CHECKED),
        ("[IPv6:2001:db8::1]", SenderDomain.NOT_CHECKED),
    ],
)
async def test_what_the_domain_has(domain: str, expected: SenderDomain) -> None:
    assert await check_sender_domain(sender(domain), ZONE) is expected


async def test_the_null_path_has_no_domain() -> None:
    assert await check_sender_domain(None, ZONE) is SenderDomain.NOT_CHECKED


@pytest.mark.parametrize("domain", ["all.example", "half.example", "rest.example"])
async def test_a_dns_failure_is_never_an_absence(domain: str) -> None:
    assert await check_sender_domain(sender(domain), BROKEN) is SenderDomain.TEMPERROR
