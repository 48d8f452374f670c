"""The engine: evidence, then rules, then a verdict. Every listener asks this and nothing else.

One message's checks share one budget of DNS queries and time, so that no message can cost more than the operator allows.
A fault of ours never becomes a pass: it ends here, in one place, as 451 or, where the operator chose so, as an accepted
message that is stamped `temperror`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

import structlog

from gateway.auth.arc import check_arc
from gateway.auth.arc.sets import ChainValidation
from gateway.auth.dkim.verify import check_dkim
from gateway.auth.dmarc.remembered import DmarcChecks
from gateway.auth.results import NO_EVIDENCE, Evidence, Signing
from gateway.auth.sender_domain import check_sender_domain
from gateway.connection import ConnectionChecks, ConnectionEvidence
from gateway.dns.budget import BudgetedResolver
from gateway.dns.memory import DnsMemory
from gateway.dns.resolver import Resolver
from gateway.inquiry import Notes
from gateway.mail.authentication_results import forged_positions, hides_results
from gateway.mail.author import Author, NoAuthor, find_author
from gateway.mail.edits import Edits, NewField
from gateway.mail.envelope import Envelope, Listener
from gateway.mail.headers import fold_field
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.mail.value import Value, replace
from gateway.policy.facts import Case, dkim_summary
from gateway.policy.rules import Rule, RuleSet
from gateway.policy.shadow import judge_again, screen_again
from gateway.stamp import stamp, stamp_failure
from gateway.submission import Submission
from gateway.verdict import Disposition, Shadow, Stage, Verdict

if TYPE_CHECKING:
    from gateway.auth.arc.seal import Sealer
    from gateway.auth.dkim.lookup import KeyMemory
    from gateway.auth.dkim.sign import Signer
    from gateway.auth.dmarc.suffix import SuffixList

QUARANTINE_FIELD: Final = "X-Gateway-Quarantine"
"""Put on a quarantined message: the rule's id and ours. Taken off every message that comes in with one."""

_QUARANTINE_KEY: Final = QUARANTINE_FIELD.lower().encode()

INTERNAL_RULE: Final = "gateway.internal"
UNREADABLE_RULE: Final = "gateway.unreadable"
SENDER_RULE: Final = "gateway.sender"
"""A user of ours wrote as somebody else; see `gateway.submission`."""

_REMEMBERED_KEYS: Final = 4_096
"""A key of 2048 bits takes some 3 KB."""

_UNSTAMPED: Final = frozenset({Listener.SUBMISSION, Listener.OUTBOUND})
_HANDED_ON: Final = frozenset({Disposition.ACCEPT, Disposition.QUARANTINE})

# What every message passes has a name: looking into an enum takes ten times as long in Python 3.11.
_MESSAGE: Final = Stage.MESSAGE
_ACCEPT: Final = Disposition.ACCEPT
_QUARANTINE: Final = Disposition.QUARANTINE
_SUBMISSION: Final = Listener.SUBMISSION
_OUTBOUND: Final = Listener.OUTBOUND

_log: Final = structlog.get_logger()


class OnError(StrEnum):
    """What becomes of a message that a bug of ours keeps from being judged."""

    DEFER = "defer"  # 451: the sender tries again, and the log has the traceback
    ACCEPT = "accept"  # handed on, stamped `temperror`: mail flows, unchecked


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What an operator may set about judging.

    Attributes:
        max_queries: DNS questions that one message may ask.
        message_timeout_s: seconds that all of one message's checks may take together.
        max_signatures: DKIM signatures evaluated in one message.
        max_arc_instances: a longer ARC chain is not followed.
        trusted_sealers: domains whose word in an ARC chain rules may take, in A-labels.
        on_error: what to do with a message that a bug keeps from being judged.
        client_known: False for a saved message that came without the client's address: SPF and iprev are not asked.
    """

    max_queries: int = 60
    message_timeout_s: float = 20.0
    max_signatures: int = 8
    max_arc_instances: int = 10
    trusted_sealers: frozenset[str] = frozenset()
    on_error: OnError = OnError.DEFER
    client_known: bool = True


class Judged(Value, frozen=True, kw_only=True):
    """One message and what became of it: what logs, metrics and traces are made from."""

    envelope: Envelope
    message: Message
    author: Author | NoAuthor | None
    verdict: Verdict
    seconds: float


class Engine:
    """Judges messages, and signs our own. One per process; it holds no state of any message.

    Args:
        resolver: where every check's DNS answers come from.
        rules: the operator's rules; may be replaced at any time (`rules` is read once per message).
        authserv_id: our name in Authentication-Results (RFC 8601 §2.5).
        options: limits, and what to do on a bug.
        observe: told of every judged message; must not raise.
        clock: seconds since the epoch, for signatures' `t=` and `x=`.

    Attributes:
        signer: signs the mail of our own users and hosts; None: nothing is signed. May be replaced at any time, as `rules`.
        submission: what is asked of our users' messages, and done to them, at the submission door; None: nothing.
        shadow: rules that are tried on the same evidence and never act; None: there are none. Likewise.
        sealer: adds an ARC Set to strangers' mail that is accepted; None: nothing is sealed. Likewise.
        tells: whether verdicts say how they came about; see `Inquiry`.
        observe_refusal: told of every sender or recipient that is refused before the message; must not raise.
        suffix_list: what DMARC's tree walk is compared with, for a metric alone; None: with nothing. Likewise.
    """

    def __init__(
        self,
        resolver: Resolver,
        rules: RuleSet,
        *,
        authserv_id: str,
        options: EngineOptions | None = None,
        observe: Callable[[Judged], None] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.rules = rules
        self.shadow: RuleSet | None = None
        self.signer: Signer | None = None
        self.submission: Submission | None = None
        self.sealer: Sealer | None = None
        self.tells = False
        self.observe_refusal: Callable[[Stage, Envelope, Verdict], None] | None = None
        self.suffix_list: SuffixList | None = None
        self._resolver = resolver
        self._authserv_id = authserv_id
        self._connections = ConnectionChecks(authserv_id)
        self._dmarc = DmarcChecks()
        self._keys: KeyMemory = DnsMemory(_REMEMBERED_KEYS)
        self._options = options or EngineOptions()
        self._observe = observe
        self._clock = clock
        self._failed_shadow: RuleSet | None = None

    async def screen(self, stage: Stage, envelope: Envelope) -> Verdict | None:
        """Try the rules of an early stage; None where none refuses. An early accept only ends the early rules."""
        notes = Notes(is_told=self.tells)
        verdict = await self._screen(stage, envelope, notes)
        if verdict is None:
            return None
        if self.observe_refusal is not None:
            self.observe_refusal(stage, envelope, verdict)
        return replace(verdict, inquiry=notes.inquiry(verdict.edits)) if self.tells else verdict

    async def _screen(self, stage: Stage, envelope: Envelope, notes: Notes) -> Verdict | None:
        rules = self.rules
        try:
            if stage is Stage.MAIL and (refused := self._refuse_sender(envelope)):
                return refused
            if not rules.asks(stage):
                return None
            notes.resolver = self._budget()
            evidence = await self._connection_evidence(envelope, notes.resolver)
            case = Case(envelope=envelope, evidence=evidence)
            rule = notes.decide(rules, stage, case)
        except Exception:  # noqa: BLE001 - the one place where a bug ends; the message itself is judged later
            _log.exception("engine.failed", id=envelope.id, stage=stage)
            return None
        if rule is None or rule.reply is None or rules.is_monitor:
            return None
        return Verdict(
            disposition=rule.disposition,
            rule=rule.id,
            reply=_fill_reply(rule, case),
            evidence=evidence,
            shadow=self._overshadow(stage, case, rule.disposition),
        )

    async def judge(self, envelope: Envelope, message: Message) -> Verdict:
        """Judge a whole message. Never raises for anything that is in it."""
        author: Author | NoAuthor | None = None
        notes = Notes(is_told=self.tells, message=message)
        try:
            author = notes.author = find_author(message)
            if hides_results(message):
                verdict = self._unreadable(envelope)
            else:
                verdict = self._refuse_sender(envelope, message) or await self._judge(
                    envelope, message, author, notes
                )
        except Exception:  # noqa: BLE001 - the one place where a bug ends (design: 451, or accept and say so)
            _log.exception("engine.failed", id=envelope.id, stage=Stage.MESSAGE)
            verdict = self._failed(envelope, message)
        if self.tells and verdict.inquiry is None:
            verdict = replace(verdict, inquiry=notes.inquiry(verdict.edits))
        seconds = notes.seconds
        if self._observe is not None:
            self._observe(
                Judged(envelope=envelope, message=message, author=author, verdict=verdict, seconds=seconds)
            )
        return verdict

    def _budget(self) -> BudgetedResolver:
        options = self._options
        deadline = time.monotonic() + options.message_timeout_s
        return BudgetedResolver(self._resolver, max_queries=options.max_queries, deadline=deadline)

    async def _judge(
        self, envelope: Envelope, message: Message, author: Author | NoAuthor, notes: Notes
    ) -> Verdict:
        rules = self.rules
        evidence = await self._evidence(envelope, message, author, notes)
        case = Case(
            envelope=envelope,
            evidence=evidence,
            message=message,
            author=author,
            trusted_sealers=self._options.trusted_sealers,
        )
        rule = notes.decide(rules, _MESSAGE, case)
        if rule is None:
            raise AssertionError("a rule set's last rule takes every message")
        applied = _ACCEPT if rules.is_monitor else rule.disposition
        marks = [stamp(self._authserv_id, envelope, evidence)] if _is_stamped(envelope) else []
        if applied is _QUARANTINE:
            marks.append(_quarantine_mark(rule, envelope))
        edits = self._edits(envelope, message, marks)
        signing: Signing | None = None
        sealed: ChainValidation | None = None
        if applied in _HANDED_ON:
            edits, signing = self._sign(envelope, message, author, edits)
        if applied is _ACCEPT:
            edits, sealed = self._seal(message, evidence, edits)
        return Verdict(
            disposition=applied,
            intended=rule.disposition,
            rule=rule.id,
            reply=_fill_reply(rule, case) if applied not in _HANDED_ON else None,
            edits=edits,
            evidence=evidence,
            signing=signing,
            sealed=sealed,
            shadow=self._overshadow(_MESSAGE, case, applied),
            inquiry=notes.inquiry(edits),
        )

    def _overshadow(self, stage: Stage, case: Case, live: Disposition) -> Shadow | None:
        """What the shadow rules would have done, if that differs. A bug in it costs the mail nothing, and one line of the log."""
        rules = self.shadow
        if rules is None:
            return None
        try:
            shadow = judge_again(rules, case) if stage is _MESSAGE else screen_again(rules, stage, case)
        except Exception:  # noqa: BLE001 - whatever it is, the live verdict stands
            if self._failed_shadow is not rules:
                self._failed_shadow = rules
                note = "mail is judged by the live rules as ever; further failures of these rules are only counted"
                _log.exception("shadow.failed", id=case.envelope.id, rules=rules.name, note=note)
            on_error = self._options.on_error
            failed = Disposition.ACCEPT if on_error is OnError.ACCEPT else Disposition.DEFER
            return Shadow(rule=INTERNAL_RULE, disposition=failed)
        return shadow if shadow.differs(live) else None

    def _sign(
        self, envelope: Envelope, message: Message, author: Author | NoAuthor, edits: Edits
    ) -> tuple[Edits, Signing | None]:
        """Put our signatures below the stamp, over all the other edits.

        A quarantined message is signed, too: whoever lets it go later has no second chance.
        """
        signer = self.signer
        if signer is None or not envelope.session.is_ours:
            return edits, None
        own_results = forged_positions(message, (self._authserv_id,))
        signed = signer.sign(message, author, edits, now=self._clock(), own_results=own_results)
        at = 1 if _is_stamped(envelope) else 0
        prepend = (*edits.prepend[:at], *signed.fields, *edits.prepend[at:])
        return Edits(prepend=prepend, remove=edits.remove), signed.signing

    def _seal(
        self, message: Message, evidence: Evidence, edits: Edits
    ) -> tuple[Edits, ChainValidation | None]:
        """Put our ARC Set below the stamp that it repeats. What is not to be trusted is not sealed, nor are our own users."""
        sealer = self.sealer
        if sealer is None or evidence.arc is None:
            return edits, None
        stamped, *others = edits.prepend
        sealed = sealer.seal(message, edits, stamped, evidence.arc, now=self._clock())
        if sealed is None:
            return edits, None
        return Edits(prepend=(stamped, *sealed.fields, *others), remove=edits.remove), sealed.chain_validation

    async def _evidence(
        self, envelope: Envelope, message: Message, author: Author | NoAuthor, notes: Notes
    ) -> Evidence:
        """Everything the checks find. Our own users are not judged: their mail comes from where they are."""
        if envelope.session.is_ours:
            return NO_EVIDENCE
        resolver = notes.resolver = self._budget()
        now, options = self._clock(), self._options
        connection = await self._check_connection(envelope, resolver)
        dkim = await check_dkim(
            message, resolver, now=now, max_signatures=options.max_signatures, memory=self._keys
        )
        dmarc = await self._dmarc.check(author, connection.spf, dkim, resolver, suffix_list=self.suffix_list)
        # Last: a stranger's chain must not use up the questions of the checks that decide.
        arc = await check_arc(
            message, resolver, now=now, max_instances=options.max_arc_instances, memory=self._keys
        )
        return Evidence(
            spf_helo=connection.spf_helo,
            spf=connection.spf,
            dkim=dkim,
            dmarc=dmarc,
            arc=arc,
            iprev=connection.iprev,
            sender_domain=connection.sender_domain,
        )

    async def _check_connection(
        self, envelope: Envelope, resolver: BudgetedResolver
    ) -> ConnectionEvidence | Evidence:
        """What can be found out before the message: client, HELO, reverse path."""
        if not self._options.client_known:
            return Evidence(sender_domain=await check_sender_domain(envelope.mail_from, resolver))
        return await self._connections.check(envelope.session, envelope.mail_from, resolver)

    async def _connection_evidence(self, envelope: Envelope, resolver: BudgetedResolver) -> Evidence:
        if envelope.session.is_ours:
            return NO_EVIDENCE
        found = await self._check_connection(envelope, resolver)
        return Evidence(
            spf_helo=found.spf_helo, spf=found.spf, iprev=found.iprev, sender_domain=found.sender_domain
        )

    def _refuse_sender(self, envelope: Envelope, message: Message | None = None) -> Verdict | None:
        """Whether one of our users writes as somebody else; the rules' mode does not matter: no stranger is judged."""
        submission = self._submission_of(envelope)
        if submission is None:
            return None
        reply = submission.refuse_sender(envelope)
        if reply is None and message is not None:
            reply = submission.refuse_authors(envelope, message)
        if reply is None:
            return None
        return Verdict(disposition=Disposition.REJECT, rule=SENDER_RULE, reply=reply)

    def _submission_of(self, envelope: Envelope) -> Submission | None:
        return self.submission if envelope.session.listener is _SUBMISSION else None

    def _edits(self, envelope: Envelope, message: Message, marks: list[NewField]) -> Edits:
        if envelope.session.listener is _OUTBOUND:  # what our own inbound side found travels with it
            return Edits(prepend=tuple(marks))
        forged = forged_positions(message, (self._authserv_id,))
        stale_marks = message.positions(_QUARANTINE_KEY)
        edits = Edits(prepend=tuple(marks), remove=forged.union(stale_marks))
        submission = self._submission_of(envelope)
        if submission is None:
            return edits
        completed = submission.complete(envelope, message, self._clock())
        return Edits(prepend=edits.prepend + completed.prepend, remove=edits.remove | completed.remove)

    def _unreadable(self, envelope: Envelope) -> Verdict:
        """Refuse in every mode, and from our own users too: handed on, results in our name would be believed."""
        reply = Reply.of(
            550, "5.6.0", f"the header section is too large (RFC 5322 section 3.6) ({envelope.id})"
        )
        return Verdict(disposition=Disposition.REJECT, rule=UNREADABLE_RULE, reply=reply)

    def _failed(self, envelope: Envelope, message: Message) -> Verdict:
        # A user whose From was not looked at must not write as another: whatever the operator chose for strangers.
        unchecked = self._submission_of(envelope) is not None
        if unchecked or self._options.on_error is OnError.DEFER or hides_results(message):
            reply = Reply.of(451, "4.3.0", f"internal error, please try again later ({envelope.id})")
            return Verdict(disposition=Disposition.DEFER, rule=INTERNAL_RULE, reply=reply)
        marks = [stamp_failure(self._authserv_id, INTERNAL_RULE)] if _is_stamped(envelope) else []
        return Verdict(
            disposition=Disposition.ACCEPT, rule=INTERNAL_RULE, edits=self._edits(envelope, message, marks)
        )


def _is_stamped(envelope: Envelope) -> bool:
    """Mail on its way out is not: nothing was checked, and the world need not know our users' logins (decision 12)."""
    return envelope.session.listener not in _UNSTAMPED


def _quarantine_mark(rule: Rule, envelope: Envelope) -> NewField:
    return fold_field(QUARANTINE_FIELD, [f"rule={rule.id};", f"id={envelope.id}"])


def _fill_reply(rule: Rule, case: Case) -> Reply:
    template = rule.reply
    if template is None:
        raise AssertionError(f"rule {rule.id} refuses without a reply")
    envelope, evidence = case.envelope, case.evidence
    session = envelope.session
    dmarc, spf = evidence.dmarc, evidence.spf
    return template.fill(
        {
            "id": envelope.id,
            "rule": rule.id,
            "author_domain": (dmarc and dmarc.author_domain) or "the author's domain",
            "mail_from_domain": envelope.mail_from.domain if envelope.mail_from else "the null sender",
            "client_ip": str(session.client_ip),
            "helo": (session.helo or "")[:64],
            "spf": spf.status if spf else "none",
            "dkim": dkim_summary(evidence),
            "dmarc": dmarc.status if dmarc else "none",
        }
    )
