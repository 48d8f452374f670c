"""One trace as a story: the way from the client to the mailbox, station by station, and where it ended.

Pure: from a `Trace` to sentences and rows; a template or the command line only sets them out. Text of strangers in it is not
yet escaped.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, assert_never

from gateway.auth.arc.sets import ChainValidation
from gateway.auth.results import NotSigned
from gateway.explain.checks import Finding, Tone, explain_evidence
from gateway.explain.problems import TLS_WORDS
from gateway.mail.envelope import Listener
from gateway.tlspolicy.model import TlsProblem
from gateway.trace.model import Attempt, Trace
from gateway.verdict import Disposition, RuleTried, Shadow, Stage

_REFUSALS: Final = frozenset({Disposition.REJECT, Disposition.DEFER})

DOORS: Final = {
    Listener.INBOUND: "the inbound SMTP proxy",
    Listener.SUBMISSION: "submission",
    Listener.OUTBOUND: "the outbound relay",
    Listener.MILTER: "the milter",
    Listener.CHECK: "gateway check",
}

_NOT_SIGNED: Final = {
    NotSigned.NO_AUTHOR: "From does not name exactly one author.",
    NotSigned.NO_KEY: "There is no key for the author's domain.",
    NotSigned.AMBIGUOUS: "The message has a form that the next server may mend, which would break a signature.",
    NotSigned.NOT_PROVEN: "It came from outside in this author's name, without proof.",
    NotSigned.ALREADY_SIGNED: "It already bears a good signature of each key.",
}

_SEALED: Final = {
    ChainValidation.NONE: "Sealed, as the first: nobody had sealed it before.",
    ChainValidation.PASS: "Sealed; the chain before was good.",
    ChainValidation.FAIL: "Sealed; the chain before was broken, and the seal says so.",
}

_TREE_WALK: Final = "_dmarc."


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A line of a station: `HELO`, `mail.example.com`. `is_foreign`: a stranger chose the words."""

    name: str
    value: str
    is_foreign: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Station:
    """A part of the way.

    Attributes:
        anchor: its id in the page.
        title: what it is.
        tone: the worst that was found there.
        word: the same in a word, for who sees no colours.
        is_reached: False: the message had ended before.
    """

    anchor: str
    title: str
    tone: Tone
    word: str
    facts: tuple[Fact, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    is_reached: bool = True
    is_end: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All of it.

    Attributes:
        headline: what became of the message, in one sentence.
        reasons: why; the findings that speak against it.
        total_ms: from MAIL to the last answer. `dns_ms`: of all questions together, though many are asked side by side.
    """

    trace: Trace
    tone: Tone
    outcome: str
    headline: str
    reasons: tuple[Finding, ...]
    stations: tuple[Station, ...]
    total_ms: float
    dns_ms: float


def tell(trace: Trace) -> Story:
    """Tell it."""
    domain = trace.mail_from.rpartition("@")[2] if trace.mail_from else ""
    findings = tuple(explain_evidence(trace.evidence, trace.session, domain))
    return Story(
        trace=trace,
        tone=outcome_tone(trace.disposition, trace.reply.code if trace.reply else None),
        outcome=outcome_word(trace.disposition, trace.reply.code if trace.reply else None),
        headline=_headline(trace),
        reasons=tuple(_reasons(trace, findings)),
        stations=tuple(_stations(trace, findings)),
        total_ms=max(0.0, (trace.answered - trace.received).total_seconds() * 1000),
        dns_ms=sum(question.ms for question in trace.questions),
    )


def outcome_word(disposition: Disposition | None, code: int | None) -> str:
    """What became of a message, in a word: the client's reply counts for more than our own verdict."""
    if code is not None and code >= 500:  # noqa: PLR2004 - RFC 5321 §4.2.1
        return "refused"
    if code is not None and code >= 400:  # noqa: PLR2004
        return "deferred"
    match disposition:
        case Disposition.ACCEPT:
            return "accepted"
        case Disposition.QUARANTINE:
            return "quarantined"
        case Disposition.DEFER:
            return "deferred"
        case Disposition.REJECT:
            return "refused"
        case None:
            return "not judged"
        case _:
            assert_never(disposition)


def outcome_tone(disposition: Disposition | None, code: int | None) -> Tone:
    """The same as a tone."""
    tones = {
        "accepted": Tone.GOOD,
        "quarantined": Tone.DOUBT,
        "deferred": Tone.DOUBT,
        "refused": Tone.BAD,
        "not judged": Tone.NEUTRAL,
    }
    return tones[outcome_word(disposition, code)]


def _is_ours(trace: Trace) -> bool:
    """Whether we refused it, and not the mail server behind us."""
    return trace.disposition in _REFUSALS


def _headline(trace: Trace) -> str:
    by = f'the rule "{trace.rule}"' if trace.rule else "no rule"
    word = outcome_word(trace.disposition, trace.reply.code if trace.reply else None)
    match word:
        case "refused" | "deferred" if _is_ours(trace):
            said = f"Refused by {by}." if word == "refused" else f"Put off by {by}: the sender tries again."
        case "refused" | "deferred" if trace.attempts:
            said = "The receiving mail server did not take it."
        case "refused" | "deferred" if trace.downstream or trace.downstream_failure:
            said = "Nothing spoke against it here, but the mail server behind the gateway did not take it."
        case "refused" | "deferred" if trace.stage is not Stage.MESSAGE:
            said = f"It ended at {trace.stage.upper()}, before there was a message."
        case "refused" | "deferred":
            said = "It was not taken."
        case "quarantined":
            said = f"Handed on marked, or held, by {by}."
        case "accepted":
            said = f"Handed on by {by}."
        case _:
            said = "It ended before it was judged."
    if trace.intended is not None and trace.intended is not trace.disposition:
        said += f" The rule says {trace.intended}, but these rules only watch."
    return said + _of_shadow(trace.shadow)


def _of_shadow(shadow: Shadow | None) -> str:
    """What would have become of it under the rules of `[policy] shadow`."""
    if shadow is None:
        return ""
    match shadow.rule:
        case "gateway.undecided":
            return " No rule of the shadow file refuses it so early."
        case "gateway.internal":
            return " Judging it by the shadow file failed; the log says why."
        case _:
            said = f' The shadow file would {shadow.disposition} it, by the rule "{shadow.rule}".'
    if shadow.refused_recipients:
        said += (
            f' It would refuse {shadow.refused_recipients} of its recipients, by "{shadow.recipients_rule}".'
        )
    return said


def _reasons(trace: Trace, findings: tuple[Finding, ...]) -> Iterator[Finding]:
    """What speaks against the message; for one that was put off, what could not be known."""
    if not _is_ours(trace) and trace.disposition is not Disposition.QUARANTINE:
        return
    deferred = trace.disposition is Disposition.DEFER
    against = [finding for finding in findings if finding.tone is Tone.BAD]
    doubtful = [finding for finding in findings if finding.status in {"temperror", "permerror"}]
    yield from sorted(doubtful if deferred and doubtful else against, key=lambda one: one.check != "DMARC")


def _stations(trace: Trace, findings: tuple[Finding, ...]) -> Iterator[Station]:
    has_message = trace.stage is Stage.MESSAGE and trace.size is not None
    yield _client(trace, findings)
    yield _envelope(trace, findings)
    yield _message(trace, findings, has_message=has_message)
    yield _author(trace, findings, has_message=has_message)
    yield _rules(trace)
    yield _changes(trace)
    yield _handover(trace)


def _client(trace: Trace, findings: tuple[Finding, ...]) -> Station:
    session = trace.session
    tls = f"{session.tls.version}, {session.tls.cipher}" if session.tls else "none: in clear text"
    facts = [
        Fact(name="Address", value=str(session.client_ip)),
        *_given("Name", session.client_name),
        *_given("EHLO" if session.esmtp else "HELO", session.helo),
        Fact(name="TLS", value=tls, is_foreign=False),
        Fact(name="Came in by", value=DOORS[session.listener], is_foreign=False),
        *_given("Logged in as", session.login),
    ]
    own = [one for one in findings if one.check in {"iprev", "SPF of HELO", "Session"}]
    notes = ("It connects from one of your own networks.",) if session.trusted else ()
    return _station("client", "Client", facts, own, notes)


def _envelope(trace: Trace, findings: tuple[Finding, ...]) -> Station:
    facts = [Fact(name="MAIL FROM", value=f"<{trace.mail_from}>")]
    for recipient in trace.recipients:
        heard = f" — {recipient.code} {recipient.text}".rstrip() if recipient.code else ""
        facts.append(Fact(name="RCPT TO", value=f"<{recipient.address}>{heard}"))
    if trace.more_recipients:
        facts.append(Fact(name="", value=f"and {trace.more_recipients} more", is_foreign=False))
    own = [one for one in findings if one.check in {"SPF of MAIL FROM", "Sender domain"}]
    station = _station("envelope", "Envelope", facts, own)
    if trace.stage is Stage.MESSAGE or trace.reply is None or trace.reply.code < 400:  # noqa: PLR2004
        return station
    return _ended(station, outcome_word(trace.disposition, trace.reply.code))


def _message(trace: Trace, findings: tuple[Finding, ...], *, has_message: bool) -> Station:
    if not has_message:
        return _not_reached("message", "Message")
    facts = [
        *_given("From", trace.author),
        *_given("From is unclear", trace.author_fault),
        *_given("Message-ID", trace.message_id),
        Fact(name="Size", value=f"{trace.size:,} bytes", is_foreign=False),
        *_given("Queue ID", trace.queue_id),
    ]
    own = [one for one in findings if one.check in {"DKIM", "ARC"}]
    return _station("message", "Message", facts, own)


def _author(trace: Trace, findings: tuple[Finding, ...], *, has_message: bool) -> Station:
    if not has_message:
        return _not_reached("author", "Author")
    dmarc = trace.evidence.dmarc
    facts: list[Fact] = []
    if dmarc is not None:
        facts += [
            *_given("Domain in From", dmarc.author_domain),
            *_given("Organizational domain", dmarc.organizational_domain),
            *_given("Record at", dmarc.record.domain if dmarc.record else None),
            Fact(name="SPF aligned", value="yes" if dmarc.spf_aligned else "no", is_foreign=False),
            Fact(name="DKIM aligned", value=dmarc.dkim_aligned or "no"),
            Fact(name="Asked for", value=dmarc.requested, is_foreign=False),
            Fact(name="Applies", value=dmarc.applied, is_foreign=False),
        ]
    walked = [one for one in trace.questions if one.name.lower().startswith(_TREE_WALK)]
    for step, one in enumerate(walked, 1):
        facts.append(Fact(name=f"Tree walk, step {step}", value=f"{one.name} — {one.outcome}"))
    own = [one for one in findings if one.check == "DMARC"]
    return _station("author", "Author", facts, own)


def _rules(trace: Trace) -> Station:
    if trace.disposition is None:
        return _not_reached("rules", "Rules")
    word = outcome_word(trace.disposition, None)
    facts = [Fact(name=f"Not {step.rule}", value=rule_missed(step, trace.facts)) for step in trace.tried]
    facts += [
        *_given("Taken", trace.rule),
        Fact(name="Verdict", value=trace.disposition, is_foreign=False),
    ]
    if trace.judging_ms is not None:
        facts.append(Fact(name="Checks and rules took", value=f"{trace.judging_ms:.1f} ms", is_foreign=False))
    station = Station(
        anchor="rules",
        title="Rules",
        tone=outcome_tone(trace.disposition, None),
        word=word,
        facts=tuple(facts),
    )
    return _ended(station, word) if _is_ours(trace) and trace.stage is Stage.MESSAGE else station


def rule_missed(step: RuleTried, facts: Mapping[str, str]) -> str:
    """Why a rule did not take the message."""
    if step.is_exception:
        return f"its exception holds: {step.wanted}"
    return f"{step.key} is {facts.get(step.key, 'not known')}; it asks for {step.wanted}"


def _changes(trace: Trace) -> Station:
    if _is_ours(trace) or trace.disposition is None:
        return _not_reached("changes", "Changes")
    facts = [Fact(name="Taken out", value=name) for name in trace.removed]
    facts += [Fact(name="Put in", value=name) for name in trace.added]
    notes: list[str] = []
    if trace.signing is not None:
        facts += [Fact(name="Signed with", value=f"{one} ({one.algorithm})") for one in trace.signing.made]
        if trace.signing.reason is not None:
            notes.append(f"Not signed: {_NOT_SIGNED[trace.signing.reason]}")
    if trace.sealed is not None:
        notes.append(_SEALED[trace.sealed])
    if not facts and not notes:
        notes.append("Nothing was changed.")
    count = len(trace.removed) + len(trace.added)
    return Station(
        anchor="changes",
        title="Changes",
        tone=Tone.NEUTRAL,
        word=f"{count} header field{'' if count == 1 else 's'}",
        facts=tuple(facts),
        notes=tuple(notes),
    )


def _handover(trace: Trace) -> Station:
    title = "Receiving server" if trace.attempts else "Mail server"
    if (_is_ours(trace) or trace.stage is not Stage.MESSAGE) and not trace.attempts:
        return _not_reached("handover", title)
    facts = [_attempt(attempt) for attempt in trace.attempts]
    notes: list[str] = []
    if trace.downstream is not None:
        facts.append(Fact(name="It said", value=str(trace.downstream.reply)))
        facts.append(Fact(name="After", value=f"{trace.downstream.ms:.1f} ms", is_foreign=False))
    if trace.downstream_failure is not None:
        facts.append(Fact(name="It failed", value=trace.downstream_failure))
    if not facts:
        notes.append("Its answer is its own: the milter let the message pass, and is not told more.")
    code = trace.downstream.reply.code if trace.downstream else None
    if trace.downstream_failure is not None or (code is not None and code >= 400):  # noqa: PLR2004
        tone = Tone.BAD if code is not None and code >= 500 else Tone.DOUBT  # noqa: PLR2004
        word = "refused" if tone is Tone.BAD else "not now"
    else:
        tone, word = (Tone.GOOD, "took it") if code is not None else (Tone.NEUTRAL, "not known here")
    return Station(
        anchor="handover",
        title=title,
        tone=tone,
        word=word,
        facts=tuple(facts),
        notes=tuple(notes),
        is_end=True,
    )


def _attempt(attempt: Attempt) -> Fact:
    where = f"{attempt.host} [{attempt.address}]" if attempt.address else attempt.host
    tls = f"{attempt.tls.version}" if attempt.tls else "no TLS"
    said = [tls, f"demanded: {attempt.demand} ({attempt.policy})"]
    if attempt.problem is not None:
        said.append(_tls_words(attempt.problem))
    if attempt.failure is not None:
        said.append(f"failed: {attempt.failure} {attempt.detail}".strip())
    if attempt.ms is not None:
        said.append(f"{attempt.ms:.0f} ms")
    return Fact(name="Tried", value=f"{where} — {', '.join(said)}")


def _tls_words(problem: str) -> str:
    try:
        return TLS_WORDS[TlsProblem(problem)].says
    except ValueError:
        return problem


def _given(name: str, value: str | None) -> tuple[Fact, ...]:
    return () if not value else (Fact(name=name, value=value),)


_WORST: Final = (Tone.BAD, Tone.DOUBT, Tone.GOOD)


def _station(
    anchor: str, title: str, facts: list[Fact], findings: list[Finding], notes: tuple[str, ...] = ()
) -> Station:
    tone = next((one for one in _WORST if any(each.tone is one for each in findings)), Tone.NEUTRAL)
    told = next((each for each in findings if each.tone is tone), None)
    word = "not checked" if told is None else f"{told.check}: {told.status}"
    return Station(
        anchor=anchor,
        title=title,
        tone=tone,
        word=word,
        facts=tuple(facts),
        findings=tuple(findings),
        notes=notes,
    )


def _ended(station: Station, word: str) -> Station:
    return Station(
        anchor=station.anchor,
        title=station.title,
        tone=Tone.BAD if word == "refused" else Tone.DOUBT,
        word=word,
        facts=station.facts,
        findings=station.findings,
        notes=station.notes,
        is_end=True,
    )


def _not_reached(anchor: str, title: str) -> Station:
    return Station(anchor=anchor, title=title, tone=Tone.NEUTRAL, word="not reached", is_reached=False)
