"""The SPF record, read to its end: what it costs, what is broken in it and where, and whom it lets in (RFC 7208)."""

import asyncio
from collections.abc import Iterator
from typing import Final

from gateway.auth.results import Problem
from gateway.auth.spf.evaluation import MAX_LOOKUPS, MAX_VOID_LOOKUPS
from gateway.auth.spf.survey import MAX_SURVEYED_LOOKUPS, SpfSurvey, SpfTerm, survey_record
from gateway.doctor.case import MAX_PROPOSED_BYTES, Case
from gateway.doctor.codes import Code, Severity
from gateway.doctor.report import Finding, finding
from gateway.publish.master_file import format_record
from gateway.publish.records import Purpose

NEAR_LIMIT: Final = MAX_LOOKUPS - 1
LARGEST_NETWORK: Final = {"ip4": 12, "ip6": 29, "a": 12, "mx": 12}
"""Prefix lengths: a /12 is a million IPv4 addresses; a /29 is what the largest providers are given of IPv6."""

_SHOWN: Final = 5
_BROKEN: Final = {
    Problem.SPF_SEVERAL_RECORDS: Code.SPF_SEVERAL,
    Problem.SPF_SYNTAX: Code.SPF_SYNTAX,
    Problem.SPF_INCLUDE_WITHOUT_RECORD: Code.SPF_INCLUDE,
    Problem.SPF_REDIRECT_WITHOUT_RECORD: Code.SPF_INCLUDE,
    Problem.SPF_RECORD_TOO_LARGE: Code.SPF_TOO_LARGE,
    Problem.SPF_TOO_MANY_MX: Code.SPF_TOO_MANY_MX,
}


async def examine_spf(case: Case) -> tuple[Finding, ...]:
    """As an IPv4 client meets it and as an IPv6 client does: some terms find nothing for the one alone."""
    four, six = await asyncio.gather(
        survey_record(case.domain, case.resolver), survey_record(case.domain, case.resolver, ipv6=True)
    )
    if four.record is None and four.problem is None:
        lines = case.to_publish(Purpose.SPF) if case.hosts else _line(case, b"v=spf1 -all")
        return (finding(Code.SPF_MISSING, "no SPF record", publish=lines),)
    broken = four if four.problem else six
    found = [
        *_broken(case, broken),
        *_lookups(four),
        *_voids(four, six),
        *_openings(case, four),
    ]
    if four.record is not None and all(one.severity is not Severity.ERROR for one in found):
        text = four.record.decode("latin-1")
        found.insert(0, finding(Code.SPF_OK, f'"{text}", {_count(four)}'))
    return tuple(found)


def _count(survey: SpfSurvey) -> str:
    return f"{survey.lookups} of {MAX_LOOKUPS} lookups"


def _line(case: Case, record: bytes) -> tuple[str, ...]:
    return tuple(format_record(f"{case.domain}. IN TXT", record))


def _broken(case: Case, survey: SpfSurvey) -> Iterator[Finding]:
    problem, fault = survey.problem, survey.fault
    if problem is None or problem is Problem.SPF_TOO_MANY_LOOKUPS:
        return
    code = _BROKEN.get(problem, Code.DNS_UNKNOWN)
    if code is Code.DNS_UNKNOWN:
        yield finding(code, f"the record cannot be followed to its end now ({problem})")
        return
    about = fault.domain if fault and fault.domain != case.domain else ""
    place = f'"{fault.place}": ' if fault and fault.place else ""
    reason = fault.reason if fault else str(problem)
    yield finding(code, f"{place}{reason}", about=about)


def _lookups(survey: SpfSurvey) -> Iterator[Finding]:
    if survey.lookups > MAX_LOOKUPS:
        more = "more than " if survey.lookups > MAX_SURVEYED_LOOKUPS or survey.problem else ""
        spent = ", ".join(_spent(survey)[:_SHOWN])
        yield finding(
            Code.SPF_TOO_MANY_LOOKUPS, f"{more}{survey.lookups} lookups, {MAX_LOOKUPS} are allowed: {spent}"
        )
    elif survey.lookups >= NEAR_LIMIT:
        yield finding(Code.SPF_NEAR_LIMIT, _count(survey))


def _spent(survey: SpfSurvey) -> list[str]:
    """Which records cost most, the dearest first."""
    costs: dict[str, int] = {}
    for term in survey.terms:
        if term.kind in {"include", "a", "mx", "ptr", "exists"}:
            costs[term.domain] = costs.get(term.domain, 0) + 1
    return [
        f"{cost} in {domain}"
        for domain, cost in sorted(costs.items(), key=lambda item: item[1], reverse=True)
    ]


def _voids(four: SpfSurvey, six: SpfSurvey) -> Iterator[Finding]:
    for family, survey in (("", four), (" for IPv6 clients", six)):
        names = survey.void_names
        if len(names) > MAX_VOID_LOOKUPS:
            shown = ", ".join(list(dict.fromkeys(names))[:_SHOWN])
            yield finding(Code.SPF_TOO_MANY_VOID, f"{len(names)} lookups find nothing{family}: {shown}")
            return
    if both := [name for name in dict.fromkeys(four.void_names) if name in six.void_names]:
        yield finding(Code.SPF_VOID, f"nothing stands at {', '.join(both)}")


def _openings(case: Case, survey: SpfSurvey) -> Iterator[Finding]:
    """Whom the record lets in."""
    ends = [term for term in survey.terms if term.kind == "all" and term.depth == 0]
    for term in survey.terms:
        about = "" if term.domain == case.domain else term.domain
        if term.kind == "all" and term.result == "pass":
            yield finding(Code.SPF_ALLOWS_ALL, term.text, about=about, publish=_mended(case, survey, term))
        elif term.prefix_length < LARGEST_NETWORK.get(term.kind, 0) and term.result == "pass":
            yield finding(Code.SPF_HUGE_RANGE, term.text, about=about)
        elif term.kind == "ptr":
            yield finding(Code.SPF_PTR, term.text, about=about)
    if survey.problem is not None:
        return
    if not ends and not survey.redirect:
        yield finding(Code.SPF_NO_END, "the record has no `all`", publish=_mended(case, survey, None))
    elif ends and ends[0].result == "neutral":
        yield finding(Code.SPF_NO_END, ends[0].text, publish=_mended(case, survey, ends[0]))


def _mended(case: Case, survey: SpfSurvey, term: SpfTerm | None) -> tuple[str, ...]:
    """The domain's own record with `~all` in place of the term, or at its end."""
    record = survey.record
    if (
        record is None
        or len(record) > MAX_PROPOSED_BYTES
        or (term is not None and term.domain != case.domain)
    ):
        return ()
    words = record.decode("latin-1").split(" ")
    if term is not None:
        words = [word for word in words if word != term.text]
    return _line(case, " ".join([*filter(None, words), "~all"]).encode("latin-1"))
