"""TLSA records of the mail servers, and whether DNSSEC makes them count (RFC 7672)."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import Final

from gateway.dns.resolver import Answer, RecordType, Tlsa
from gateway.dns.stub import Validation
from gateway.doctor.case import MAX_HOSTS, Case
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.publish.records import presentation
from gateway.tlspolicy.dane import HostTlsa, find_tlsa
from gateway.tlspolicy.model import NoRoute, TlsProblem

_SHOWN: Final = 3


async def find_dane(case: Case) -> tuple[tuple[HostTlsa, ...], tuple[Finding, ...]]:
    """What binds each host of the route, in its order, and what is to be said of it; nothing where there is no route."""
    route = case.route
    if isinstance(route, NoRoute):
        return (), ()
    if case.validating is not Validation.YES:
        return (), ()  # the domain's section says so
    if not route.secure:
        stray = await asyncio.gather(*[_stray(case, host) for host in case.hosts[:MAX_HOSTS]])
        return (), tuple(one for findings in stray for one in findings) or (
            _none("the MX is not signed, so none would count"),
        )
    hosts = case.hosts[:MAX_HOSTS]
    tlsa = await asyncio.gather(*[find_tlsa(host, case.resolver, port=case.tools.port) for host in hosts])
    tlsa += [HostTlsa()] * (len(case.hosts) - len(hosts))
    return tuple(tlsa), tuple(await _findings(case, hosts, tlsa))


def _none(why: str) -> Finding:
    return finding(Code.DANE_MISSING, f"no TLSA records; {why}")


async def _findings(case: Case, hosts: Sequence[str], tlsa: Sequence[HostTlsa]) -> list[Finding]:
    found = [one for host, records in zip(hosts, tlsa, strict=False) for one in _bound(host, records)]
    without = [
        host
        for host, records in zip(hosts, tlsa, strict=False)
        if not records.base_domain and records.problem is None
    ]
    stray = await asyncio.gather(*[_stray(case, host) for host in without])
    found += [one for findings in stray for one in findings]
    if not found:
        return [_none("the MX is signed, so they would count")]
    if without and any(one.code is Code.DANE_OK for one in found):
        found.append(finding(Code.DANE_PARTIAL, f"none that count for {', '.join(without[:_SHOWN])}"))
    return found


def _bound(host: str, tlsa: HostTlsa) -> Iterator[Finding]:
    if tlsa.problem is not None and tlsa.problem is not TlsProblem.NO_ADDRESS:
        yield finding(
            Code.DNS_UNKNOWN, f"TLSA records or addresses could not be looked up ({tlsa.problem})", about=host
        )
    elif tlsa.records:
        shown = [presentation(record) for record in tlsa.records[:_SHOWN]]
        yield finding(Code.DANE_OK, "; ".join(shown), about=host)
    elif tlsa.base_domain:
        yield finding(Code.DANE_UNUSABLE, f"none that can be used at {tlsa.base_domain}", about=host)


async def _stray(case: Case, host: str) -> tuple[Finding, ...]:
    """Records that stand where they do not count."""
    outcome = await case.resolver.query(f"_{case.tools.port}._tcp.{host}", RecordType.TLSA)
    records = [one for one in outcome.records if isinstance(one, Tlsa)] if isinstance(outcome, Answer) else []
    if not records:
        return ()
    return (finding(Code.DANE_NOT_SECURE, "; ".join(map(presentation, records[:_SHOWN])), about=host),)
