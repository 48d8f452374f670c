"""Reverse DNS of the client (RFC 8601 §3): has its address a name, and has that name the address?

Who owns an address can give it any name, a bank's too: only a name that leads back to the address is ever reported.
"""

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from gateway.auth.results import IprevResult, IprevStatus, Problem
from gateway.auth.trouble import problem_of
from gateway.dns.resolver import Answer, NotFound, Record, RecordType, Resolver, Temporary
from gateway.mail.address import parse_domain
from gateway.mail.envelope import IpAddress
from gateway.mail.errors import ParseError

MAX_NAMES: Final = 10  # as many as SPF looks at (RFC 7208 §4.6.4); RFC 8601 §3 leaves it open


async def check_iprev(client_ip: IpAddress, resolver: Resolver) -> IprevResult:
    """Find the client's first name that has the client's address."""
    address = _plain(client_ip)
    reverse = await resolver.query(address.reverse_pointer, RecordType.PTR)
    match reverse:
        case Temporary():
            return _not_confirmed(client_ip, IprevStatus.TEMPERROR, problem_of(reverse.trouble))
        case NotFound():
            return _not_confirmed(client_ip, IprevStatus.PERMERROR, Problem.IPREV_NO_NAME)
        case Answer():
            return await _confirm(client_ip, address, reverse.records, resolver)


async def _confirm(
    client_ip: IpAddress, address: IpAddress, records: tuple[Record, ...], resolver: Resolver
) -> IprevResult:
    record_type = RecordType.A if isinstance(address, IPv4Address) else RecordType.AAAA
    trouble: Problem | None = None
    for name in _host_names(records[:MAX_NAMES]):
        forward = await resolver.query(name, record_type)
        if isinstance(forward, Answer) and address in forward.records:
            return IprevResult(status=IprevStatus.PASS, client_ip=client_ip, name=name)
        if isinstance(forward, Temporary):
            trouble = trouble or problem_of(forward.trouble)
    if trouble is not None:  # the name that could not be looked up may be the right one
        return _not_confirmed(client_ip, IprevStatus.TEMPERROR, trouble)
    problem = Problem.IPREV_TOO_MANY_NAMES if len(records) > MAX_NAMES else Problem.IPREV_MISMATCH
    return _not_confirmed(client_ip, IprevStatus.FAIL, problem)


def _host_names(records: Iterable[Record]) -> Iterator[str]:
    """Those that are host names: a PTR record may hold any bytes, and the name goes into header fields and rules."""
    for record in records:
        try:
            yield parse_domain(str(record))
        except ParseError:
            continue


def _plain(client_ip: IpAddress) -> IpAddress:
    """An IPv4-mapped address is IPv4; a zone index (`%eth0`) is not in the DNS."""
    if isinstance(client_ip, IPv6Address):
        return client_ip.ipv4_mapped or IPv6Address(int(client_ip))
    return client_ip


def _not_confirmed(client_ip: IpAddress, status: IprevStatus, problem: Problem) -> IprevResult:
    return IprevResult(status=status, client_ip=client_ip, problem=problem)
