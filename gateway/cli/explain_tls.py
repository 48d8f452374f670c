"""A TLS decision in plain words: where mail for a domain goes, what each mail server must prove, and which section says so.

Pure: from a decision to lines of text; `gateway.cli.tls` makes the one and shows the other.
"""

from collections.abc import Iterator
from typing import Final, assert_never

from gateway.explain import Explanation, Finding, Tone
from gateway.explain.problems import TLS_WORDS
from gateway.ops.config import OutboundTlsSettings
from gateway.tlspolicy.model import (
    Decision,
    Demand,
    HostPolicy,
    NoRoute,
    PolicyType,
    Route,
    StsView,
    TlsLevel,
    TlsProblem,
)
from gateway.tlspolicy.mta_sts.policy import Mode

_NAMES_SHOWN: Final = 3

STATUS_PROTECTED: Final = 0
STATUS_FLAWED: Final = 10
STATUS_WAITS: Final = 11
STATUS_NEVER: Final = 12


def exit_status(decision: Decision) -> int:
    """0 mail can go, 10 it can go and something is wrong, 11 it waits, 12 it never goes."""
    route = decision.route
    if isinstance(route, NoRoute):
        return STATUS_WAITS if route.temporary else STATUS_NEVER
    if decision.level is TlsLevel.REFUSE:
        return STATUS_NEVER if decision.override == TlsLevel.REFUSE else STATUS_WAITS
    if decision.hosts and all(host.problem is TlsProblem.NO_ADDRESS for host in decision.hosts):
        return STATUS_NEVER
    flaws = [decision.dane_problem, decision.sts.problem]
    flaws += [flaw for host in decision.hosts for flaw in (host.problem, host.note)]
    return STATUS_FLAWED if any(flaws) else STATUS_PROTECTED


def explain_decision(decision: Decision, settings: OutboundTlsSettings) -> Explanation:
    """Put a decision into words; `settings` say what was not even looked for."""
    return Explanation(findings=tuple(_findings(decision, settings)), conclusion=_conclusion(decision))


def _findings(decision: Decision, settings: OutboundTlsSettings) -> Iterator[Finding]:
    override = decision.override
    if override is not None:
        says = f"Your config says {override} for this domain, whatever its DNS says."
        yield Finding(
            check="Override",
            status=override,
            tone=Tone.NEUTRAL,
            says=says,
            section="[outbound_tls] overrides",
        )
    route = decision.route
    yield _route(route)
    if isinstance(route, NoRoute) and not route.temporary:
        return
    is_name = not decision.domain.startswith("[")
    if is_name and override in {None, TlsLevel.DANE_ONLY} and isinstance(route, Route):
        yield _dane(decision, route, settings)
    if is_name and override is None:
        yield _mta_sts(decision.sts, settings)
    for host in decision.hosts:
        yield _host(host)


def _route(route: Route | NoRoute) -> Finding:
    if isinstance(route, NoRoute):
        words = TLS_WORDS[route.problem]
        return Finding(
            check="Route",
            status="unknown" if route.temporary else "none",
            tone=Tone.DOUBT if route.temporary else Tone.BAD,
            says=f"{words.says[0].upper()}{words.says[1:]}.",
            section=words.section,
            problem=route.problem,
        )
    if route.domain.startswith("["):
        says = "An address: the one server is there, and nothing is looked up."
        return Finding(
            check="Route", status="literal", tone=Tone.NEUTRAL, says=says, section="RFC 5321 §4.1.3"
        )
    number = len(route.hosts)
    servers = (
        "The domain itself, for it has no MX"
        if route.implicit
        else f"{number} mail server{'s' if number > 1 else ''}"
    )
    if route.alias_of:
        servers += f" (by way of {route.alias_of})"
    signed = "DNSSEC vouches for the answer" if route.secure else "DNSSEC does not vouch for the answer"
    return Finding(
        check="Route",
        status="implicit" if route.implicit else "mx",
        tone=Tone.GOOD if route.secure else Tone.NEUTRAL,
        says=f"{servers}; {signed}.",
        section="RFC 5321 §5.1",
    )


def _dane(decision: Decision, route: Route, settings: OutboundTlsSettings) -> Finding:
    status, tone, section = "none", Tone.NEUTRAL, "RFC 7672 §2.2.1"
    problem = decision.dane_problem
    with_records = sum(host.policy_type is PolicyType.TLSA for host in decision.hosts)
    if not settings.dane:
        status, says, section = "off", "Your config turns it off.", "[outbound_tls] dane"
    elif problem is not None:
        status, tone, section = "off", Tone.DOUBT, TLS_WORDS[problem].section
        says = "Your resolver does not validate DNSSEC, so TLSA records prove nothing here."
    elif not route.secure:
        says = "Without DNSSEC for the route, TLSA records would prove nothing; none were asked for."
    elif not with_records:
        says, section = "No host has TLSA records that DNSSEC vouches for.", "RFC 7672 §2.2.3"
    else:
        status, tone, section = f"{with_records} of {len(route.hosts)}", Tone.GOOD, "RFC 7672 §2.2.3"
        says = "That many hosts are bound to TLSA records that DNSSEC vouches for."
    return Finding(check="DANE", status=status, tone=tone, says=says, section=section, problem=problem)


def _mta_sts(sts: StsView, settings: OutboundTlsSettings) -> Finding:
    if not settings.mta_sts:
        says, section = "Your config turns it off.", "[outbound_tls] mta_sts"
        return Finding(check="MTA-STS", status="off", tone=Tone.NEUTRAL, says=says, section=section)
    trouble = f" But {TLS_WORDS[sts.problem].says}." if sts.problem else ""
    section = TLS_WORDS[sts.problem].section if sts.problem else "RFC 8461 §5"
    if sts.is_unknown and sts.problem:
        says = f"Not known yet: {TLS_WORDS[sts.problem].says}. Mail waits for a quarter of an hour, then it goes without."
        return Finding(
            check="MTA-STS",
            status="unknown",
            tone=Tone.DOUBT,
            says=says,
            section=section,
            problem=sts.problem,
        )
    if sts.mode is None:
        says = f"No policy: {TLS_WORDS[sts.problem].says}." if sts.problem else "The domain has no policy."
        tone = Tone.DOUBT if sts.problem else Tone.NEUTRAL
        return Finding(
            check="MTA-STS", status="none", tone=tone, says=says, section=section, problem=sts.problem
        )
    until = f"{sts.expires:%Y-%m-%d %H:%M} UTC" if sts.expires else "unknown"
    match Mode(sts.mode):
        case Mode.ENFORCE:
            says, tone = f"Only to {_listed(sts.mx)}, with a valid certificate for the host's name", Tone.GOOD
        case Mode.TESTING:
            says = f"Failures of {_listed(sts.mx)} are reported; mail goes all the same"
            tone = Tone.NEUTRAL
        case Mode.NONE:
            says, tone = "The domain takes its policy back", Tone.NEUTRAL
    return Finding(
        check="MTA-STS",
        status=sts.mode,
        tone=Tone.DOUBT if sts.problem else tone,
        says=f"{says}. Version {sts.identifier}, until {until}.{trouble}",
        section=section,
        problem=sts.problem,
    )


def _listed(names: tuple[str, ...]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown


def _host(policy: HostPolicy) -> Finding:
    section = {
        PolicyType.STS: "RFC 8461 §4",
        PolicyType.TLSA: "RFC 7672 §2.2",
        PolicyType.NONE: "RFC 7435 §1.2",
    }[policy.policy_type]
    says, tone = _demand(policy), Tone.NEUTRAL if policy.demand is Demand.NONE else Tone.GOOD
    cause = policy.problem or policy.note
    if cause is not None:
        words = TLS_WORDS[cause]
        section = words.section
        if policy.problem is None:
            says, tone = f"{says} ({words.says})", Tone.DOUBT
        elif policy.is_enforced:
            says, tone = f"No mail goes there now: {words.says}", Tone.BAD
        else:
            says, tone = f"{words.says[0].upper()}{words.says[1:]}; mail goes all the same", Tone.DOUBT
    return Finding(
        check=f"{policy.host.preference} {policy.host.name}",
        status=policy.demand if policy.is_enforced else f"({policy.demand})",
        tone=tone,
        says=f"{says}.",
        section=section,
        problem=cause,
    )


def _demand(policy: HostPolicy) -> str:
    match policy.demand:
        case Demand.NONE:
            return "TLS if it is offered, else clear text; whoever listens in between can prevent it"
        case Demand.ENCRYPT:
            return "TLS, whatever the certificate"
        case Demand.PKIX:
            says = f"A certificate of a trusted authority for {_listed(policy.names)}, valid now"
            return says if policy.is_enforced else f"{says}; a failure is only reported"
        case Demand.DANE:
            kinds = sorted({f"{one.usage} {one.selector} {one.matching_type}" for one in policy.tlsa})
            records = "1 TLSA record" if len(policy.tlsa) == 1 else f"{len(policy.tlsa)} TLSA records"
            return f"A certificate for which {records} ({', '.join(kinds)}) can vouch"
        case _:
            assert_never(policy.demand)


def _conclusion(decision: Decision) -> str:
    route = decision.route
    if isinstance(route, NoRoute) and not route.temporary:
        return "Mail to this domain cannot be delivered, now or later."
    if decision.hosts and all(host.problem is TlsProblem.NO_ADDRESS for host in decision.hosts):
        return "Mail to this domain cannot be delivered: none of its mail servers has an address."
    match decision.level:
        case TlsLevel.MAY:
            return "Nothing protects mail to this domain from who can change what is on the way: TLS is used where it is offered."
        case TlsLevel.ENCRYPT:
            return "Mail goes only over TLS, but to whom is not proven."
        case TlsLevel.SECURE:
            return "Mail goes only over TLS, to servers that prove their names."
        case TlsLevel.DANE:
            return "Mail goes to hosts with TLSA records only where these vouch for them; to the others by TLS if it is offered."
        case TlsLevel.DANE_ONLY:
            return "Mail goes only over TLS, to servers that a TLSA record vouches for, or that MTA-STS makes prove their names."
        case TlsLevel.REFUSE:
            if decision.override == TlsLevel.REFUSE:
                return "Mail to this domain is refused, because your config says so."
            return "Mail to this domain waits: nothing that may be done is left."
        case _:
            assert_never(decision.level)
