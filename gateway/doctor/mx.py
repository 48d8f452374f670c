"""Where mail for the domain goes: MX, null MX, the implicit MX, and each server's addresses and their names (RFC 5321 §5.1)."""

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import Final

from gateway.auth.iprev import check_iprev
from gateway.auth.results import IprevResult, IprevStatus
from gateway.dns.resolver import Answer, Mx, Outcome, RecordType, Temporary
from gateway.doctor.case import MAX_HOSTS, Case, unknown
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.mail.envelope import IpAddress
from gateway.publish.records import Purpose
from gateway.tlspolicy import mx
from gateway.tlspolicy.model import MxHost, NoRoute, TlsProblem

MAX_ADDRESSES: Final = 6
"""Of one host."""

_SHOWN: Final = 5
_NOT_PUBLIC: Final = tuple(
    map(
        ip_network,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "224.0.0.0/3",
            "::/127",
            "::ffff:0:0/96",
            "fc00::/7",
            "fe80::/10",
            "ff00::/8",
        ),
    )
)
"""RFC 6890; the networks for examples are left out: who writes them down means it as an example."""


async def examine_mx(case: Case) -> tuple[Finding, ...]:
    """The route, then its servers side by side."""
    outcome = await case.resolver.query(case.domain, RecordType.MX)
    found = [*_records(case, outcome), *_route(case)]
    if not isinstance(case.route, NoRoute):
        hosts = case.route.hosts
        looked_at = await asyncio.gather(*[_host(case, host) for host in hosts[:MAX_HOSTS]])
        found += [one for findings in looked_at for one in findings]
        if len(hosts) > MAX_HOSTS:
            found.append(
                finding(Code.MX_MANY, f"{len(hosts)} mail servers; the first {MAX_HOSTS} are looked at")
            )
    return tuple(found)


def _records(case: Case, outcome: Outcome) -> Iterator[Finding]:
    """What is wrong with the records themselves; the route leaves it out."""
    if not isinstance(outcome, Answer):
        return
    exchanges = [record.exchange for record in outcome.records if isinstance(record, Mx)]
    if "" in exchanges and len(exchanges) > 1:
        yield finding(Code.MX_NULL_BESIDE, f"a null MX beside {len(exchanges) - 1} others")
    hosts = set(case.hosts)
    wrong = [name for name in exchanges if name and name not in hosts]
    if wrong and len(hosts) < mx.MAX_HOSTS:
        yield finding(Code.MX_NOT_A_HOST, f"no host name: {', '.join(wrong[:_SHOWN])}")


def _route(case: Case) -> Iterator[Finding]:
    route = case.route
    if not isinstance(route, NoRoute):
        if route.implicit:
            line = f"{case.domain}. IN MX 10 {case.domain}."
            yield finding(Code.MX_IMPLICIT, f"no MX: mail goes to {case.domain} itself", publish=(line,))
        return
    match route.problem:
        case TlsProblem.NULL_MX:
            yield finding(Code.MX_NULL, "a null MX: the domain takes no mail")
        case TlsProblem.NO_HOST:
            wanted = case.to_publish(Purpose.MX) if case.tools.facts else ()
            yield finding(Code.MX_NOWHERE, "neither MX nor address", publish=wanted)
        case TlsProblem.ROUTE_MALFORMED:
            yield finding(Code.MX_NOWHERE, "no MX that names a host")
        case _:
            yield finding(Code.DNS_UNKNOWN, f"the mail servers could not be looked up ({route.problem})")


async def _host(case: Case, host: MxHost) -> list[Finding]:
    outcomes = await asyncio.gather(
        case.resolver.query(host.name, RecordType.A), case.resolver.query(host.name, RecordType.AAAA)
    )
    found = [
        unknown(f"{record_type} of {host.name}", outcome)
        for record_type, outcome in zip((RecordType.A, RecordType.AAAA), outcomes, strict=True)
        if isinstance(outcome, Temporary)
    ]
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    addresses = [
        one for answer in answers for one in answer.records if isinstance(one, IPv4Address | IPv6Address)
    ]
    if not addresses:
        return found or [finding(Code.MX_NO_ADDRESS, "no address", about=host.name)]
    shown = [*map(str, addresses[:_SHOWN]), *(["…"] if len(addresses) > _SHOWN else [])]
    found.insert(0, finding(Code.MX_OK, f"preference {host.preference}, {', '.join(shown)}", about=host.name))
    implicit = host.name == case.domain
    if aliases := [answer.name for answer in answers if answer.name != host.name and not implicit]:
        found.append(finding(Code.MX_ALIAS, f"is an alias of {aliases[0]}", about=host.name))
    if private := [address for address in addresses if _is_not_public(address)]:
        found.append(finding(Code.MX_PRIVATE_ADDRESS, ", ".join(map(str, private[:_SHOWN])), about=host.name))
    public = [address for address in addresses if address not in private][:MAX_ADDRESSES]
    results = await asyncio.gather(*[check_iprev(address, case.resolver) for address in public])
    return [*found, *_reverse(host, results)]


def _is_not_public(address: IpAddress) -> bool:
    return any(address in network for network in _NOT_PUBLIC)


def _reverse(host: MxHost, results: list[IprevResult]) -> Iterator[Finding]:
    """Each address's name; those that are in order in one line."""
    good = [f"{one.client_ip} is {one.name}" for one in results if one.status is IprevStatus.PASS]
    if good:
        yield finding(Code.PTR_OK, ", ".join(good), about=host.name)
    for one in results:
        match one.status:
            case IprevStatus.PASS:
                pass
            case IprevStatus.PERMERROR:
                yield finding(Code.PTR_MISSING, f"{one.client_ip} has no name (PTR)", about=host.name)
            case IprevStatus.FAIL:
                yield finding(
                    Code.PTR_MISMATCH,
                    f"no name of {one.client_ip} leads back to it ({one.problem})",
                    about=host.name,
                )
            case IprevStatus.TEMPERROR:
                yield finding(
                    Code.DNS_UNKNOWN,
                    f"the name of {one.client_ip} could not be looked up ({one.problem})",
                    about=host.name,
                )
