"""A verdict in plain words: check by check, what was asked, what was found, and which section says so.

From what a verdict rests on to lines of text; `gateway.cli.show` puts them on a terminal, `gateway.pages` on a page.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import assert_never

from gateway.auth.results import (
    ArcResult,
    ArcStatus,
    DkimResult,
    DkimStatus,
    DmarcPolicy,
    DmarcResult,
    DmarcStatus,
    Evidence,
    IprevResult,
    IprevStatus,
    Problem,
    SenderDomain,
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.explain.problems import WORDS
from gateway.mail.envelope import Envelope, Session
from gateway.tlspolicy.model import TlsProblem
from gateway.verdict import Disposition, Verdict


class Tone(StrEnum):
    """How a finding bears on the message."""

    GOOD = "good"
    BAD = "bad"
    DOUBT = "doubt"  # could not be known, or somebody's record is broken
    NEUTRAL = "neutral"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found.

    Attributes:
        check: its name for people: `SPF of MAIL FROM`.
        status: its result word.
        says: one or two sentences; text of strangers in it is not yet escaped.
        section: the RFC that defines the result.
        problem: the cause, where there is one.
    """

    check: str
    status: str
    tone: Tone
    says: str
    section: str
    problem: Problem | TlsProblem | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """The whole answer: the findings in the order in which one rests on the other, then what follows from them."""

    findings: tuple[Finding, ...]
    conclusion: str


def explain(envelope: Envelope, verdict: Verdict, *, client_known: bool = True) -> Explanation:
    """Put a verdict into words. `client_known`: False where the caller had no client address to judge."""
    sender_domain = envelope.mail_from.domain if envelope.mail_from else ""
    findings = explain_evidence(verdict.evidence, envelope.session, sender_domain, client_known=client_known)
    return Explanation(findings=tuple(findings), conclusion=_conclusion(verdict))


def explain_evidence(
    evidence: Evidence, session: Session, sender_domain: str, *, client_known: bool = True
) -> Iterator[Finding]:
    """Put the findings into words, in the order in which one rests on the other. `sender_domain`: of MAIL FROM; empty for none."""
    if session.is_ours:
        yield _finding(
            "Session",
            "ours",
            Tone.GOOD,
            "One of your own users or hosts: not judged by SPF and DMARC.",
            "RFC 6409 §3.3",
        )
        return
    if not client_known:
        says = "Not judged: without the client's address (--ip) nobody can say who delivered the message."
        yield _finding("SPF, iprev", "not checked", Tone.NEUTRAL, says, "RFC 7208 §2.3")
    if evidence.iprev is not None:
        yield _iprev(evidence.iprev)
    for spf in (evidence.spf_helo, evidence.spf):
        if spf is not None:
            yield _spf(spf, session)
    yield from _sender_domain(evidence.sender_domain, sender_domain)
    if evidence.dkim:
        yield from map(_dkim, evidence.dkim)
    elif evidence.dmarc is not None:
        yield _finding("DKIM", "none", Tone.NEUTRAL, "The message carries no signature.", "RFC 8601 §2.7.1")
    if evidence.dmarc is not None:
        yield _dmarc(evidence.dmarc)
    if evidence.arc is not None and evidence.arc.status is not ArcStatus.NONE:
        yield _arc(evidence.arc)


def _finding(check: str, status: str, tone: Tone, says: str, section: str) -> Finding:
    return Finding(check=check, status=status, tone=tone, says=says, section=section)


def _because(says: str, problem: Problem | None) -> str:
    return says if problem is None else f"{says.removesuffix('.')}: {WORDS[problem].says}."


def _spf(result: SpfResult, session: Session) -> Finding:
    says, tone = _spf_says(result, str(session.client_ip))
    if result.mechanism:
        says += f" The term {result.mechanism} matched."
    if result.explanation:
        says += f' The domain says: "{result.explanation}"'
    return Finding(
        check="SPF of HELO" if result.identity is SpfIdentity.HELO else "SPF of MAIL FROM",
        status=result.status,
        tone=tone,
        says=says,
        section=WORDS[result.problem].section if result.problem else "RFC 7208 §2.6",
        problem=result.problem,
    )


def _spf_says(result: SpfResult, client: str) -> tuple[str, Tone]:
    domain = result.domain or "the identity"
    match result.status:
        case SpfStatus.PASS:
            return f"{client} may send for {domain}.", Tone.GOOD
        case SpfStatus.FAIL:
            return f"{client} may not send for {domain}.", Tone.BAD
        case SpfStatus.SOFTFAIL:
            return f"{client} probably may not send for {domain}.", Tone.DOUBT
        case SpfStatus.NEUTRAL:
            return f"{domain} says neither yes nor no to {client}.", Tone.NEUTRAL
        case SpfStatus.NONE if result.domain is None:
            return _because("There is no domain to ask about.", result.problem), Tone.NEUTRAL
        case SpfStatus.NONE:
            return _because(f"{domain} publishes no SPF record.", result.problem), Tone.NEUTRAL
        case SpfStatus.POLICY:
            return _because(f"The pass for {domain} is not counted.", result.problem), Tone.DOUBT
        case SpfStatus.TEMPERROR:
            return _because(
                f"It could not be found out now whether {client} may send for {domain}.", result.problem
            ), Tone.DOUBT
        case SpfStatus.PERMERROR:
            return _because(f"The SPF record of {domain} is broken.", result.problem), Tone.DOUBT
        case _:
            assert_never(result.status)


def _dkim(result: DkimResult) -> Finding:
    who = f"{result.domain or '?'} (selector {result.selector or '?'})"
    tone = Tone.DOUBT
    match result.status:
        case DkimStatus.PASS:
            says, tone = (
                f"The signature of {who} is good: signed fields and body are as they were signed.",
                Tone.GOOD,
            )
        case DkimStatus.FAIL:
            says, tone = f"The signature of {who} does not match.", Tone.BAD
        case DkimStatus.POLICY:
            says = f"The signature of {who} is not worth trust."
        case DkimStatus.NEUTRAL:
            says = f"The signature of {who} cannot be understood."
        case DkimStatus.TEMPERROR:
            says = f"The signature of {who} could not be checked now."
        case DkimStatus.PERMERROR:
            says, tone = f"The signature of {who} can never be verified.", Tone.BAD
        case DkimStatus.NONE:
            says, tone = "The message carries no signature.", Tone.NEUTRAL
        case _:
            assert_never(result.status)
    details = ", ".join(_dkim_details(result))
    return Finding(
        check="DKIM",
        status=result.status,
        tone=tone,
        says=_because(says, result.problem) + (f" ({details})" if details else ""),
        section=WORDS[result.problem].section if result.problem else "RFC 6376 §6.1",
        problem=result.problem,
    )


def _dkim_details(result: DkimResult) -> Iterator[str]:
    if result.algorithm:
        yield result.algorithm
    if result.key_bits:
        yield f"{result.key_bits} bits"
    if result.testing:
        yield "the key's owner is only testing"
    if not result.covers_whole_body:
        yield "the end of the body is not signed"


def _dmarc(result: DmarcResult) -> Finding:
    author = result.author_domain or "the author's domain"
    match result.status:
        case DmarcStatus.PASS:
            says, tone = f"{author} stands behind the message, {_proofs(result)}.", Tone.GOOD
        case DmarcStatus.FAIL:
            says, tone = (
                f"Nothing shows that {author} sent the message: no SPF or DKIM pass is for its domain.",
                Tone.BAD,
            )
        case DmarcStatus.NONE:
            says, tone = f"{author} publishes no DMARC record.", Tone.NEUTRAL
        case DmarcStatus.TEMPERROR:
            says, tone = f"It could not be found out now whether {author} sent the message.", Tone.DOUBT
        case DmarcStatus.PERMERROR:
            says, tone = "DMARC cannot be judged.", Tone.DOUBT
        case _:
            assert_never(result.status)
    return Finding(
        check="DMARC",
        status=result.status,
        tone=tone,
        says=" ".join((_because(says, result.problem), *_dmarc_asks(result))),
        section=WORDS[result.problem].section if result.problem else "RFC 9989 §5.3",
        problem=result.problem,
    )


def _proofs(result: DmarcResult) -> str:
    proofs = ["by SPF"] if result.spf_aligned else []
    if result.dkim_aligned:
        proofs.append(f"by the DKIM signature of {result.dkim_aligned}")
    return " and ".join(proofs)


def _dmarc_asks(result: DmarcResult) -> Iterator[str]:
    if result.record is None:
        return
    asked = {
        DmarcPolicy.NONE: "to do nothing special",
        DmarcPolicy.QUARANTINE: "to treat failing mail as suspicious",
        DmarcPolicy.REJECT: "to refuse failing mail",
    }
    yield f"The record at {result.record.domain} asks {asked[result.requested]}."
    if result.record.testing:
        yield "Its owner is testing (t=y): one level less is applied."


def _arc(result: ArcResult) -> Finding:
    sealers = ", ".join(one.sealer for one in reversed(result.sets))
    match result.status:
        case ArcStatus.PASS:
            says, tone = (
                f"The message is as {result.sets[0].sealer} let it go; sealed by, in this order: {sealers}.",
                Tone.NEUTRAL,  # anybody can seal: only a rule can make something of it
            )
        case ArcStatus.FAIL:
            says, tone = "The chain of those who handled the message does not hold.", Tone.DOUBT
        case ArcStatus.TEMPERROR:
            says, tone = f"The chain could not be checked now; it claims {sealers}.", Tone.DOUBT
        case ArcStatus.NONE:
            says, tone = "Nobody has sealed the message.", Tone.NEUTRAL
        case _:
            assert_never(result.status)
    return Finding(
        check="ARC",
        status=result.status,
        tone=tone,
        says=" ".join((_because(says, result.problem), *_arc_details(result))),
        section=WORDS[result.problem].section if result.problem else "RFC 8617 §5.2",
        problem=result.problem,
    )


def _arc_details(result: ArcResult) -> Iterator[str]:
    if result.failed_instance is not None:
        named = next((one.sealer for one in result.sets if one.instance == result.failed_instance), None)
        of = f", {named}" if named else ""
        cause = f": {WORDS[result.cause].says}" if result.cause else ""
        yield f"It is about instance {result.failed_instance}{of}{cause}."
    elif result.cause:
        yield f"The cause: {WORDS[result.cause].says}."
    if result.status is ArcStatus.PASS:
        for one in result.sets:
            for said in one.results or ():
                if said.method == "dmarc":
                    yield f"{one.sealer} says that DMARC was {said.result} before it."


def _iprev(result: IprevResult) -> Finding:
    match result.status:
        case IprevStatus.PASS:
            says, tone = (
                f"{result.client_ip} is {result.name}, and {result.name} has that address.",
                Tone.GOOD,
            )
        case IprevStatus.FAIL:
            says, tone = f"No name of {result.client_ip} is confirmed.", Tone.DOUBT
        case IprevStatus.TEMPERROR:
            says, tone = f"The name of {result.client_ip} could not be looked up now.", Tone.DOUBT
        case IprevStatus.PERMERROR:
            says, tone = f"{result.client_ip} has no name.", Tone.DOUBT
        case _:
            assert_never(result.status)
    return Finding(
        check="iprev",
        status=result.status,
        tone=tone,
        says=says if result.problem in {None, Problem.IPREV_NO_NAME} else _because(says, result.problem),
        section=WORDS[result.problem].section if result.problem else "RFC 8601 §3",
        problem=result.problem,
    )


def _sender_domain(found: SenderDomain, domain: str) -> Iterator[Finding]:
    check = "Sender domain"
    match found:
        case SenderDomain.MX | SenderDomain.ADDRESS:
            yield _finding(check, found, Tone.GOOD, f"{domain} can receive mail.", "RFC 5321 §5.1")
        case SenderDomain.NULL_MX:
            yield _finding(
                check, found, Tone.BAD, f"{domain} says that it never receives mail.", "RFC 7505 §4"
            )
        case SenderDomain.NONE:
            yield _finding(
                check, found, Tone.BAD, f"{domain} has no server that receives mail.", "RFC 5321 §5.1"
            )
        case SenderDomain.NXDOMAIN:
            yield _finding(check, found, Tone.BAD, f"{domain} does not exist.", "RFC 5321 §2.3.5")
        case SenderDomain.TEMPERROR:
            says = f"It could not be found out now whether {domain} receives mail."
            yield _finding(check, found, Tone.DOUBT, says, "RFC 5321 §5.1")
        case SenderDomain.NOT_CHECKED:
            return
        case _:
            assert_never(found)


def _conclusion(verdict: Verdict) -> str:
    match verdict.disposition:
        case Disposition.ACCEPT:
            done = "The message is handed on"
        case Disposition.QUARANTINE:
            done = "The message is handed on marked, or held"
        case Disposition.DEFER:
            done = f'The sender is asked to try again later, with "{verdict.reply}"'
        case Disposition.REJECT:
            done = f'The message is refused with "{verdict.reply}"'
        case _:
            assert_never(verdict.disposition)
    monitored = ""
    if verdict.intended is not None and verdict.intended is not verdict.disposition:
        monitored = f" The rule says {verdict.intended}, but these rules only watch."
    return f'{done}, by the rule "{verdict.rule}".{monitored}'
