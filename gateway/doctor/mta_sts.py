"""MTA-STS as a sender sees it today: the record, the policy behind it, and whether it lists every mail server (RFC 8461)."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from gateway.dns.resolver import Answer, RecordType, Temporary
from gateway.doctor.case import Case, unknown
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding
from gateway.publish.records import Purpose
from gateway.tlspolicy.model import StsView, TlsProblem
from gateway.tlspolicy.mta_sts.fetch import FetchFailure
from gateway.tlspolicy.mta_sts.own import POLICY_HOST_LABEL, WELL_KNOWN_PATH
from gateway.tlspolicy.mta_sts.policy import Mode, Policy, matches
from gateway.tlspolicy.mta_sts.record import RecordError, is_sts_record, parse_record

SHORT_S: Final = 86_400
_SHOWN: Final = 5


async def find_mta_sts(case: Case) -> tuple[StsView, tuple[Finding, ...]]:
    """The policy as it is now, not as somebody may still remember it, and what is to be said of it."""
    outcome = await case.resolver.query(f"_mta-sts.{case.domain}", RecordType.TXT)
    if isinstance(outcome, Temporary):
        return StsView(problem=TlsProblem.STS_DNS), (unknown("the _mta-sts record", outcome),)
    records = outcome.records if isinstance(outcome, Answer) else ()
    texts = [text for text in records if isinstance(text, bytes) and is_sts_record(text)]
    if not texts:
        return StsView(), tuple(_missing(case))
    if len(texts) > 1:
        several = finding(Code.STS_SEVERAL, f"{len(texts)} records at _mta-sts.{case.domain}")
        return StsView(problem=TlsProblem.STS_SEVERAL_RECORDS), (several,)
    try:
        identifier = parse_record(texts[0])
    except RecordError as error:
        wrong = finding(
            Code.STS_RECORD,
            f'"{texts[0].decode("latin-1")}": {error}',
            publish=case.to_publish(Purpose.MTA_STS),
        )
        return StsView(problem=TlsProblem.STS_RECORD_INVALID), (wrong,)
    return await _fetch(case, identifier)


def _missing(case: Case) -> Iterator[Finding]:
    if not case.hosts:  # where no mail goes there is nothing to protect
        return
    lines = case.to_publish(Purpose.MTA_STS)
    settings = case.facts.settings.mta_sts
    if settings is not None:
        where = f"https://{POLICY_HOST_LABEL}.{case.domain}{WELL_KNOWN_PATH}"
        lines = (*lines, f"; and {where} says:", *(f";   {line}" for line in settings.policy.lines()))
    yield finding(Code.STS_MISSING, "no MTA-STS policy", publish=lines)


async def _fetch(case: Case, identifier: str) -> tuple[StsView, tuple[Finding, ...]]:
    if case.tools.fetcher is None:
        return StsView(identifier=identifier), ()
    fetched = await case.tools.fetcher.fetch(case.domain)
    if isinstance(fetched, FetchFailure):
        code = Code.STS_POLICY if fetched.problem is TlsProblem.STS_POLICY_INVALID else Code.STS_FETCH
        return StsView(identifier=identifier, problem=fetched.problem), (
            finding(code, f"{fetched.problem}: {fetched.detail}", about=f"mta-sts.{case.domain}"),
        )
    policy = fetched.policy
    view = StsView(
        mode=policy.mode,
        identifier=identifier,
        mx=policy.mx,
        lines=policy.lines(),
        expires=case.tools.now() + timedelta(seconds=policy.max_age_s),
    )
    return view, tuple(_policy(case, policy))


def _policy(case: Case, policy: Policy) -> Iterator[Finding]:
    shown = f"mode {policy.mode}, mx {', '.join(policy.mx[:_SHOWN]) or 'none'}, max_age {policy.max_age_s}"
    match policy.mode:
        case Mode.ENFORCE:
            yield finding(Code.STS_OK, shown)
        case Mode.TESTING:
            yield finding(Code.STS_TESTING, shown)
        case Mode.NONE:
            yield finding(Code.STS_NONE, shown)
            return
    for host in case.hosts:
        if not policy.lists(host):
            yield finding(
                Code.STS_MX_NOT_LISTED, f"not covered by {', '.join(policy.mx[:_SHOWN])}", about=host
            )
    unused = [pattern for pattern in policy.mx if not any(matches(pattern, host) for host in case.hosts)]
    if unused and case.hosts:
        yield finding(Code.STS_UNUSED_PATTERN, ", ".join(unused[:_SHOWN]))
    if policy.max_age_s < SHORT_S:
        yield finding(Code.STS_SHORT, f"max_age {policy.max_age_s} s")
