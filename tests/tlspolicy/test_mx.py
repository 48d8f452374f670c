import pytest

from gateway.dns.zone import ZoneResolver
from gateway.tlspolicy.model import MxHost, NoRoute, Route, TlsProblem
from gateway.tlspolicy.mx import MAX_HOSTS, find_route

ZONE = ZoneResolver.from_text(
    r"""
$TTL 300
$SECURE on
signed.example. 120 MX 20 b.signed.example.
signed.example. 120 MX 10 a.signed.example.
signed.example. 120 MX 20 c.signed.example.
implicit.example. A 192.0.2.1
to-signed.example. CNAME signed.example.
out.example. CNAME plain.example.
$SECURE off
plain.example. MX 10 mx.plain.example.
v6.example. AAAA 2001:db8::1
into.example. CNAME signed.example.
into-host.example. CNAME v6.example.
null.example. MX 0 .
null-at-10.example. MX 10 .
null-and-more.example. MX 0 .
null-and-more.example. MX 10 mx.plain.example.
twice.example. MX 10 mx.plain.example.
twice.example. MX 5 MX.plain.example.
text.example. TXT nothing
half-bad.example. MX 10 a\032b.example.
half-bad.example. MX 20 mx.plain.example.
bad.example. MX 10 192.0.2.1.
bad.example. MX 20 a\013\010b.example.
dangling.example. CNAME nowhere.example.
$TROUBLE slow.example. MX timeout
$TROUBLE broken.example. MX servfail
$TROUBLE refused.example. MX refused
$TROUBLE garbled.example. MX malformed
half-a.example. TXT x
$TROUBLE half-a.example. A servfail
half-aaaa.example. TXT x
$TROUBLE half-aaaa.example. AAAA timeout
"""
)


@pytest.mark.parametrize(
    ("domain", "expected"),
    [
        # by preference, equal ones as they came; signed
        (
            "signed.example",
            Route(
                domain="signed.example",
                hosts=(
                    MxHost(10, "a.signed.example"),
                    MxHost(20, "b.signed.example"),
                    MxHost(20, "c.signed.example"),
                ),
                secure=True,
                ttl=120,
            ),
        ),
        (
            "plain.example",
            Route(domain="plain.example", hosts=(MxHost(10, "mx.plain.example"),), ttl=300),
        ),
        # without MX: the domain itself, in both families
        (
            "implicit.example",
            Route(
                domain="implicit.example",
                hosts=(MxHost(0, "implicit.example"),),
                implicit=True,
                secure=True,
                ttl=300,
            ),
        ),
        (
            "v6.example",
            Route(domain="v6.example", hosts=(MxHost(0, "v6.example"),), implicit=True, ttl=300),
        ),
        # a null MX beside others means nothing
        (
            "null-and-more.example",
            Route(domain="null-and-more.example", hosts=(MxHost(10, "mx.plain.example"),), ttl=300),
        ),
        ("twice.example", Route(domain="twice.example", hosts=(MxHost(5, "mx.plain.example"),), ttl=300)),
        # what is no host name is left out
        (
            "half-bad.example",
            Route(domain="half-bad.example", hosts=(MxHost(20, "mx.plain.example"),), ttl=300),
        ),
        # an address literal is a host
        ("[192.0.2.1]", Route(domain="[192.0.2.1]", hosts=(MxHost(0, "[192.0.2.1]"),), ttl=3_600)),
    ],
)
async def test_where_mail_goes(domain: str, expected: Route) -> None:
    assert await find_route(domain, ZONE) == expected


@pytest.mark.parametrize(
    ("domain", "host", "secure", "alias_of"),
    [
        ("to-signed.example", "a.signed.example", True, "signed.example"),
        ("out.example", "mx.plain.example", False, "plain.example"),  # a signed alias out of the signed world
        ("into.example", "a.signed.example", False, "signed.example"),  # an unsigned alias into it
        ("into-host.example", "into-host.example", False, "v6.example"),
    ],
)
async def test_an_answer_is_as_secure_as_its_weakest_alias(
    domain: str, host: str, *, secure: bool, alias_of: str
) -> None:
    route = await find_route(domain, ZONE)
    assert isinstance(route, Route)
    assert (route.hosts[0].name, route.secure, route.alias_of) == (host, secure, alias_of)


@pytest.mark.parametrize(
    ("domain", "problem", "temporary"),
    [
        ("null.example", TlsProblem.NULL_MX, False),
        ("null-at-10.example", TlsProblem.NULL_MX, False),
        ("absent.example", TlsProblem.NO_DOMAIN, False),
        ("dangling.example", TlsProblem.NO_DOMAIN, False),
        ("text.example", TlsProblem.NO_HOST, False),
        ("bad.example", TlsProblem.ROUTE_MALFORMED, True),  # an address as a name, and an injection
        ("slow.example", TlsProblem.ROUTE_TIMEOUT, True),
        ("broken.example", TlsProblem.ROUTE_SERVFAIL, True),
        ("refused.example", TlsProblem.ROUTE_REFUSED, True),
        ("garbled.example", TlsProblem.ROUTE_MALFORMED, True),
        ("half-a.example", TlsProblem.ROUTE_SERVFAIL, True),  # no AAAA is not "no address"
        ("half-aaaa.example", TlsProblem.ROUTE_TIMEOUT, True),
    ],
)
async def test_why_there_is_no_route(domain: str, problem: TlsProblem, *, temporary: bool) -> None:
    assert await find_route(domain, ZONE) == NoRoute(domain=domain, problem=problem, temporary=temporary)


async def test_a_thousand_hosts_are_not_all_taken() -> None:
    lines = [f"many.example. MX {n} mx{n}.example." for n in range(1_000, 0, -1)]
    route = await find_route("many.example", ZoneResolver.from_text("\n".join(lines)))
    assert isinstance(route, Route)
    assert [host.preference for host in route.hosts] == list(range(1, MAX_HOSTS + 1))
