from ipaddress import ip_address

import pytest

from gateway.auth.iprev import MAX_NAMES, check_iprev
from gateway.auth.results import IprevStatus, Problem
from gateway.dns.resolver import Record, RecordType, Trouble
from gateway.dns.zone import ZoneResolver

PASS, FAIL, TEMPERROR, PERMERROR = (
    IprevStatus.PASS,
    IprevStatus.FAIL,
    IprevStatus.TEMPERROR,
    IprevStatus.PERMERROR,
)

CLIENT = ip_address("192.0.2.1")
REVERSE = CLIENT.reverse_pointer
CLIENT6 = ip_address("2001:db8::1")


def resolver(
    names: list[str], addresses: dict[str, str], *, client: str = "192.0.2.1", failing: tuple[str, ...] = ()
) -> ZoneResolver:
    reverse: list[Record] = list(names)
    records: dict[tuple[str, RecordType], list[Record]] = {}
    if reverse:
        records[ip_address(client).reverse_pointer, RecordType.PTR] = reverse
    for name, address in addresses.items():
        parsed = ip_address(address)
        records[name, RecordType.A if parsed.version == 4 else RecordType.AAAA] = [parsed]
    trouble = {(name, kind): Trouble.TIMEOUT for name in failing for kind in RecordType}
    return ZoneResolver.from_records(records, trouble=trouble)


@pytest.mark.parametrize(
    ("names", "addresses", "failing", "status", "name", "problem"),
    [
        (["mx.example.com"], {"mx.example.com": "192.0.2.1"}, (), PASS, "mx.example.com", None),
        # the second name leads back, the first is a boast
        (
            ["bank.example", "mx.example.com"],
            {"mx.example.com": "192.0.2.1"},
            (),
            PASS,
            "mx.example.com",
            None,
        ),
        ([], {}, (), PERMERROR, None, Problem.IPREV_NO_NAME),
        (["bank.example"], {"bank.example": "198.51.100.1"}, (), FAIL, None, Problem.IPREV_MISMATCH),
        (["bank.example"], {}, (), FAIL, None, Problem.IPREV_MISMATCH),
        # a name of the other family only
        (["mx.example.com"], {"mx.example.com": "2001:db8::1"}, (), FAIL, None, Problem.IPREV_MISMATCH),
        ([], {}, (REVERSE,), TEMPERROR, None, Problem.DNS_TIMEOUT),
        (["mx.example.com"], {}, ("mx.example.com",), TEMPERROR, None, Problem.DNS_TIMEOUT),
        # trouble with one name does not matter where another is confirmed
        (["a.example", "b.example"], {"b.example": "192.0.2.1"}, ("a.example",), PASS, "b.example", None),
        # never a name that is not a host name, though it leads back
        (["a b.example"], {"a b.example": "192.0.2.1"}, (), FAIL, None, Problem.IPREV_MISMATCH),
        (["x\\013\\010dkim=pass.example"], {}, (), FAIL, None, Problem.IPREV_MISMATCH),
        ([""], {}, (), FAIL, None, Problem.IPREV_MISMATCH),
    ],
)
async def test_status(
    names: list[str],
    addresses: dict[str, str],
    failing: tuple[str, ...],
    status: IprevStatus,
    name: str | None,
    problem: Problem | None,
) -> None:
    result = await check_iprev(CLIENT, resolver(names, addresses, failing=failing))
    assert (result.status, result.name, result.problem) == (status, name, problem)


async def test_only_ten_names_are_tried() -> None:
    names = [f"n{i}.example" for i in range(MAX_NAMES + 1)]
    last = {names[-1]: "192.0.2.1"}
    assert (await check_iprev(CLIENT, resolver(names[1:], last))).status is PASS
    beyond = await check_iprev(CLIENT, resolver(names, last))
    assert (beyond.status, beyond.problem) == (FAIL, Problem.IPREV_TOO_MANY_NAMES)


@pytest.mark.parametrize(
    ("client", "written"),
    [
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),  # IPv4 by way of an IPv6 socket
        ("fe80::1%eth0", "fe80::1"),
    ],
)
async def test_ipv6_clients(client: str, written: str) -> None:
    zone = resolver(["mx.example.com"], {"mx.example.com": written}, client=written)
    result = await check_iprev(ip_address(client), zone)
    assert (result.status, result.name) == (PASS, "mx.example.com")
    assert result.client_ip == ip_address(client)
