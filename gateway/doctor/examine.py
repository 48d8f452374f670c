"""The examination of one domain: first whether it can be looked at at all, then everything that is independent side by side."""

import asyncio
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from gateway.dns.budget import BudgetedResolver
from gateway.dns.resolver import Answer, Missing, NotFound, Outcome, RecordType, Temporary
from gateway.dns.stub import Validation
from gateway.doctor.case import Case, Tools
from gateway.doctor.codes import Code
from gateway.doctor.dane import find_dane
from gateway.doctor.dkim import examine_dkim
from gateway.doctor.dmarc import examine_dmarc
from gateway.doctor.live import examine_live
from gateway.doctor.mta_sts import find_mta_sts
from gateway.doctor.mx import examine_mx
from gateway.doctor.ours import examine_ours
from gateway.doctor.report import Finding, Report, Section, finding
from gateway.doctor.spf import examine_spf
from gateway.doctor.tlsrpt import examine_tlsrpt
from gateway.doctor.transport import examine_transport
from gateway.tlspolicy.decide import Facts, derive
from gateway.tlspolicy.model import TlsProblem
from gateway.tlspolicy.mx import find_route

T = TypeVar("T")
Sections = tuple[tuple[Section, tuple[Finding, ...]], ...]

_FIRST: Final = 3
"""Questions whose answers tell whether there is anything to look at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arrival:
    """What the first questions said."""

    mx: Outcome
    all_failed: Temporary | None
    validating: Validation


async def examine(domain: str, tools: Tools) -> Report:
    """Look at everything.

    Args:
        domain: in A-labels, lower case, without a final dot (`gateway.mail.address.parse_domain`).
        tools: see there.

    Never raises for anything that the network does, and ends in bounded time.
    """
    started = time.monotonic()
    resolver = BudgetedResolver(
        tools.resolver, max_queries=tools.max_questions, deadline=started + tools.timeout_s
    )
    sections = await _sections(domain, tools, resolver)
    return Report(
        domain=domain,
        sections=tuple((section, findings) for section, findings in sections if findings),
        questions=len(resolver.asked),
        seconds=time.monotonic() - started,
    )


async def _sections(domain: str, tools: Tools, resolver: BudgetedResolver) -> Sections:
    arrival = await _arrive(domain, tools, resolver)
    if (finding_that_ends := _end(domain, arrival)) is not None:
        return ((Section.DOMAIN, (finding_that_ends,)),)
    case = Case(
        domain=domain,
        tools=tools,
        resolver=resolver,
        route=await find_route(domain, resolver),
        validating=arrival.validating,
    )
    tools.tell(Section.DOMAIN)
    async with asyncio.TaskGroup() as tasks:
        mx = tasks.create_task(_told(case, Section.MX, examine_mx(case)))
        spf = tasks.create_task(_told(case, Section.SPF, examine_spf(case)))
        dkim = tasks.create_task(_told(case, Section.DKIM, examine_dkim(case)))
        dmarc = tasks.create_task(_told(case, Section.DMARC, examine_dmarc(case)))
        mta_sts = tasks.create_task(_told(case, Section.MTA_STS, find_mta_sts(case)))
        tlsrpt = tasks.create_task(_told(case, Section.TLSRPT, examine_tlsrpt(case)))
        dane = tasks.create_task(_told(case, Section.DANE, find_dane(case)))
        ours = tasks.create_task(_told(case, Section.OURS, examine_ours(case)))
    sts, about_sts = mta_sts.result()
    tlsa, about_dane = dane.result()
    unproven = None if arrival.validating is Validation.YES else TlsProblem.DANE_NOT_VALIDATING
    decision = derive(Facts(domain=domain, route=case.route, tlsa=tlsa, sts=sts, dane_problem=unproven))
    tools.tell(Section.TRANSPORT)
    live = await _told(case, Section.CONNECT, examine_live(case, decision))
    return (
        (Section.DOMAIN, _dnssec(arrival)),
        (Section.MX, mx.result()),
        (Section.SPF, spf.result()),
        (Section.DKIM, dkim.result()),
        (Section.DMARC, dmarc.result()),
        (Section.MTA_STS, about_sts),
        (Section.TLSRPT, tlsrpt.result()),
        (Section.DANE, about_dane),
        (Section.TRANSPORT, examine_transport(decision)),
        (Section.CONNECT, live),
        (Section.OURS, ours.result()),
    )


async def _arrive(domain: str, tools: Tools, resolver: BudgetedResolver) -> _Arrival:
    mx, txt, dmarc, validating = await asyncio.gather(
        resolver.query(domain, RecordType.MX),
        resolver.query(domain, RecordType.TXT),
        resolver.query(f"_dmarc.{domain}", RecordType.TXT),
        tools.validation(),
    )
    failures = [outcome for outcome in (mx, txt, dmarc) if isinstance(outcome, Temporary)]
    return _Arrival(mx=mx, all_failed=failures[0] if len(failures) == _FIRST else None, validating=validating)


def _end(domain: str, arrival: _Arrival) -> Finding | None:
    """Why there is nothing more to look at, where that is so: said once, and not once for each question."""
    failure = arrival.all_failed
    if failure is not None and arrival.validating is Validation.UNKNOWN:
        return finding(
            Code.DNS_UNREACHABLE,
            f"no resolver answers ({failure.trouble}), about {domain} or anything else: look at [dns] servers and the network",
        )
    if failure is not None:
        return finding(
            Code.DNS_UNKNOWN,
            f"every question about {domain} fails ({failure.trouble}), while the resolver answers others: the domain's name servers "
            "are down, or its DNSSEC is broken",
        )
    if isinstance(arrival.mx, NotFound) and arrival.mx.missing is Missing.NXDOMAIN:
        return finding(Code.DOMAIN_MISSING, f"{domain} does not exist")
    return None


def _dnssec(arrival: _Arrival) -> tuple[Finding, ...]:
    match arrival.mx:
        case Temporary():
            return ()  # the mail servers' section says so
        case Answer(secure=True) | NotFound(secure=True):
            return (finding(Code.DNSSEC_SIGNED, "signed, and the resolver vouches for it (DNSSEC)"),)
        case _ if arrival.validating is not Validation.YES:
            return (finding(Code.DNSSEC_NOT_CHECKED, "the resolver does not validate, or did not say"),)
        case _:
            return (finding(Code.DNSSEC_UNSIGNED, "not signed (DNSSEC)"),)


async def _told(case: Case, section: Section, work: Coroutine[Any, Any, T]) -> T:
    result = await work
    case.tools.tell(section)
    return result
