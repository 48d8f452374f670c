"""A decision in Postfix's own words (postconf(5) smtp_tls_policy_maps, socketmap_table(5), TLSRPT_README).

`NOTFOUND` leaves the level to Postfix's own smtp_tls_security_level; any error word makes it defer. Names and policies come
from strangers: each is looked at once more before it enters an answer. What cannot be said is `TEMP`, never something weaker.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final, assert_never

from gateway.postfix.question import Kind, Question
from gateway.tlspolicy.decide import STS_FAILURES
from gateway.tlspolicy.model import (
    Decision,
    FailureType,
    HostPolicy,
    NoRoute,
    PolicyType,
    Route,
    TlsLevel,
    TlsProblem,
    TlsSession,
)
from gateway.tlspolicy.mta_sts.policy import matches

MAX_ANSWER_BYTES: Final = 90_000  # Postfix reads 100,000
MAX_NAMES: Final = 100

# Two labels at least: Postfix takes the single words `nexthop`, `dot-nexthop` and `hostname` for strategies, and the last
# of them believes any certificate that fits the name which an unsigned MX record gave.
_LABEL: Final = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_HOST_NAME: Final = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})+")
_PATTERN: Final = re.compile(rf"(?=.{{1,253}}\Z)(?:\*\.)?{_LABEL}(?:\.{_LABEL})+")
_POLICY_LINE: Final = re.compile(
    r"[a-z_]{1,32}: [!-z|~]{1,300}"
)  # no blank, no brace: nothing to end the value early
_REASON: Final = re.compile(r"[^a-z0-9 .:;,_\[\]-]")


class Outcome(StrEnum):
    """What became of a question; the metric's label."""

    OK = "ok"  # a level
    NOT_FOUND = "not-found"  # Postfix's own level holds
    TEMP = "temp"  # Postfix defers: delivery is refused now, or nothing can be said
    TIMEOUT = "timeout"  # Postfix defers: the facts could not be had in time
    FAILED = "failed"  # Postfix defers: a fault of ours
    PARENT = "parent"  # no domain's own question: Postfix went up the tree


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer.

    Attributes:
        text: a reply of socketmap_table(5), not yet a netstring.
    """

    outcome: Outcome
    text: bytes


NOT_FOUND: Final = Answer(Outcome.NOT_FOUND, b"NOTFOUND ")
PARENT: Final = Answer(Outcome.PARENT, b"NOTFOUND ")
FAILED: Final = Answer(Outcome.FAILED, b"TEMP internal error; see the log of the gateway")


def temporary(reason: str, outcome: Outcome = Outcome.TEMP) -> Answer:
    """Postfix defers, and logs the reason."""
    return Answer(outcome, b"TEMP " + _REASON.sub("?", reason.lower())[:300].encode("ascii", "replace"))


def answer(question: Question, decision: Decision, *, tlsrpt: bool = False) -> Answer:
    """The answer to a question about a domain.

    Args:
        question: of kind DOMAIN.
        decision: what holds for its domain.
        tlsrpt: whether Postfix is told what to report; only 3.10 and newer can read that.
    """
    level = decision.level
    if level in {TlsLevel.DANE, TlsLevel.DANE_ONLY} and decision.override is None and not question.smtp_port:
        # The TLSA records of port 25 say nothing of another port. Postfix looks there itself; MTA-STS holds for any port.
        level = TlsLevel.SECURE if decision.sts.mode == "enforce" else TlsLevel.DANE
    match level:
        case TlsLevel.MAY:
            # The operator's own word is said aloud: Postfix's default may be more than `may`.
            return Answer(Outcome.OK, b"OK may") if decision.override else NOT_FOUND
        case TlsLevel.ENCRYPT | TlsLevel.DANE | TlsLevel.DANE_ONLY:
            return Answer(Outcome.OK, f"OK {level}".encode())
        case TlsLevel.SECURE:
            return _secure(decision, tlsrpt=tlsrpt or question.with_tlsrpt)
        case TlsLevel.REFUSE:
            return temporary(f"{decision.domain}: {', '.join(problems(decision)) or 'delivery is refused'}")
        case _:
            assert_never(level)


def answer_for_host(question: Question, override: TlsLevel | None) -> Answer:
    """The answer about a host in brackets, which only the operator's own word can be about."""
    match override:
        case None:
            return NOT_FOUND
        case TlsLevel.MAY | TlsLevel.ENCRYPT | TlsLevel.DANE | TlsLevel.DANE_ONLY:
            return Answer(Outcome.OK, f"OK {override}".encode())
        case TlsLevel.SECURE:
            if not _HOST_NAME.fullmatch(question.name):
                return temporary(f"{question.name}: a certificate cannot be asked for without a name")
            return Answer(Outcome.OK, f"OK secure match={question.name} servername=hostname".encode())
        case TlsLevel.REFUSE:
            return temporary(f"{question.name}: {TlsProblem.OVERRIDE_REFUSE}")
        case _:
            assert_never(override)


def answer_at_once(question: Question) -> Answer | None:
    """The answer that needs no look-up; None where one is needed."""
    match question.kind:
        case Kind.PARENT:
            return PARENT
        case Kind.OTHER:
            return NOT_FOUND
        case Kind.DOMAIN | Kind.HOST:
            return None
        case _:
            assert_never(question.kind)


def problems(decision: Decision) -> list[str]:
    """What is wrong, in the tokens of docs/problems.md, each once."""
    found: list[TlsProblem | None] = [host.problem for host in decision.hosts]
    if isinstance(decision.route, NoRoute):
        found.append(decision.route.problem)
    if decision.override == TlsLevel.REFUSE:
        found.append(TlsProblem.OVERRIDE_REFUSE)
    found += [decision.sts.problem, decision.dane_problem]
    return list(dict.fromkeys(problem.value for problem in found if problem is not None))


def _secure(decision: Decision, *, tlsrpt: bool) -> Answer:
    names = list(dict.fromkeys(name for name in _names(decision) if _HOST_NAME.fullmatch(name)))[:MAX_NAMES]
    if not names:
        # A wildcard pattern is no help: Postfix would take a certificate for any name below it, of any host.
        return temporary(f"{decision.domain}: {', '.join(problems(decision)) or 'no usable name of a host'}")
    text = f"OK secure match={':'.join(names)} servername=hostname"
    if tlsrpt and decision.sts.mode == "enforce" and decision.override is None:
        attributes = " ".join((text, *_tlsrpt(decision)))
        if len(attributes) <= MAX_ANSWER_BYTES:
            text = attributes
    return Answer(Outcome.OK, text.encode("ascii"))


def _names(decision: Decision) -> Iterator[str]:
    """The names of which a certificate must bear one: hosts that may be used, then those that the policy lists in full.

    Deviation: RFC 8461 §4.1 binds a certificate to the host that shows it. Postfix knows one list for all hosts of a domain,
    so that one listed host may show the certificate of another; both are the domain's own.
    """
    patterns = decision.sts.mx
    for host in decision.hosts:
        name = host.host.name
        # A host that DANE binds was not held against the policy yet; it matters where TLSA records do not count.
        is_listed = decision.override is not None or any(matches(pattern, name) for pattern in patterns)
        if host.problem is None and is_listed:
            yield name
    if decision.override is None:
        yield from (pattern for pattern in patterns if not pattern.startswith("*."))


def _tlsrpt(decision: Decision) -> Iterator[str]:
    """TLSRPT_README, "MTA-STS Support". Postfix 3.10 needs patterns and lines, or it would follow a null pointer."""
    patterns = [pattern for pattern in decision.sts.mx if _PATTERN.fullmatch(pattern)]
    lines = [line for line in decision.sts.lines if _POLICY_LINE.fullmatch(line)]
    if not patterns or not lines or not _HOST_NAME.fullmatch(decision.domain):
        return
    yield f"policy_type={PolicyType.STS}"
    yield f"policy_domain={decision.domain}"
    yield f"policy_ttl={max(0, decision.ttl)}"
    yield from _each("mx_host_pattern={}", patterns)
    yield from _each("{{ policy_string = {} }}", lines)


def _each(form: str, values: Iterable[str]) -> Iterator[str]:
    return (form.format(value) for value in values)


def unreported_sessions(decision: Decision, at: datetime) -> Iterator[TlsSession]:
    """What a TLS report should say and Postfix cannot: it sees neither a forbidden host nor a policy that was not to be had."""
    if decision.level is TlsLevel.REFUSE:
        for host in decision.hosts:
            if host.failure is not None and host.is_enforced:
                yield _forbidden(decision, host, host.failure, at)
    unfetched = STS_FAILURES.get(decision.sts.problem) if decision.sts.problem else None
    if unfetched is not None and decision.sts.mode is None and decision.level is TlsLevel.MAY:
        yield TlsSession(
            at=at,
            policy_domain=decision.domain,
            policy_type=PolicyType.STS,
            failure=unfetched,
            reason=decision.sts.problem,
            delivery="postfix",
        )


def _forbidden(decision: Decision, host: HostPolicy, failure: FailureType, at: datetime) -> TlsSession:
    is_sts = host.policy_type is PolicyType.STS
    return TlsSession(
        at=at,
        policy_domain=decision.domain,
        policy_type=host.policy_type,
        tlsa_domain=None if is_sts else host.server_name or host.host.name,
        policy_string=decision.sts.lines if is_sts else (),
        mx_host=decision.sts.mx if is_sts else (),
        failure=failure,
        receiving_mx_hostname=host.host.name,
        reason=host.problem,
        delivery="postfix",
    )


def view(decision: Decision) -> dict[str, object]:
    """The decision as fields of a log event."""
    route = decision.route
    return {
        "domain": decision.domain,
        "tls": decision.level,
        "hosts": len(route.hosts) if isinstance(route, Route) else 0,
        "sts": decision.sts.mode,
        "dane": sum(bool(host.tlsa) for host in decision.hosts),
        "override": decision.override,
        "problems": problems(decision),
    }
