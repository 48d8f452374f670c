"""From what the engine and a listener know of a transaction to its trace; the one place where traces are made.

It copies little: results, replies and the session go in as they are.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Final

import structlog

from gateway.auth.results import NO_EVIDENCE, ArcResult, Evidence
from gateway.mail.author import Author, NoAuthor
from gateway.mail.envelope import Envelope, Recipient
from gateway.mail.reply import Reply
from gateway.mail.value import Value, field, replace
from gateway.trace.addresses import AddressHider
from gateway.trace.batch import Batch
from gateway.trace.model import Addressee, Attempt, Heard, Trace
from gateway.verdict import Inquiry, Stage, Verdict

MAX_RECIPIENTS: Final = 100
MAX_ATTEMPTS: Final = 20

_ADDRESS_FACTS: Final = frozenset({"mail_from", "recipient", "author"})
_HIDDEN: Final = "(hidden)"
_NO_INQUIRY: Final = Inquiry(seconds=0.0)
_POSTMASTER: Final = "Postmaster"  # RFC 5321 §4.5.1: the one address that needs no domain

_log: Final = structlog.get_logger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


class Story(Value, frozen=True, kw_only=True):
    """A transaction that is over, as its listener tells it; the verdict brings what the engine knows.

    Attributes:
        asked: recipients, and what the client heard of each; None: nobody told us.
        more_asked: how many there were besides.
        heard: downstream's reply to the content, after `heard_s`.
    """

    envelope: Envelope
    stage: Stage
    received: datetime
    reply: Reply | None
    verdict: Verdict | None = None
    asked: Sequence[tuple[Recipient, Reply | None]] = ()
    more_asked: int = 0
    size: int | None = None
    heard: Reply | None = None
    heard_s: float = 0.0
    downstream_failure: str | None = None
    attempts: Sequence[Attempt] = ()
    answered: datetime = field(default_factory=_now)


class Tracer:
    """Takes stories from every listener, on any thread.

    Args:
        keep: takes a batch with its first trace in it, to which others are added later; must not block.
        hider: where addresses are kept hashed.
    """

    def __init__(self, keep: Callable[[Batch], None], hider: AddressHider | None = None) -> None:
        self._keep = keep
        self._hider = hider
        self._batch: Batch | None = None

    def tell(self, story: Story) -> None:
        """Keep it. Nothing of it may be changed from now on: it is written down later. Never raises."""
        make = partial(self._make, story)
        try:
            if self._batch is None or not self._batch.add(make):
                batch = Batch()
                batch.add(make)
                self._batch = batch
                self._keep(batch)
        except Exception:  # noqa: BLE001 - no mail is lost for a trace
            _log.exception("trace.failed", id=story.envelope.id)

    def _make(self, story: Story) -> Trace | None:
        try:
            trace = _trace(story)
            return trace if self._hider is None else _hidden(trace, self._hider)
        except Exception:  # noqa: BLE001 - a bug here costs this trace, and no other
            _log.exception("trace.failed", id=story.envelope.id)
            return None


def _trace(story: Story) -> Trace:
    envelope, verdict = story.envelope, story.verdict
    inquiry = (verdict.inquiry if verdict else None) or _NO_INQUIRY
    author = inquiry.author
    heard = story.heard
    asked = story.asked[:MAX_RECIPIENTS]
    return Trace(
        id=envelope.id,
        session=envelope.session,
        stage=story.stage,
        received=story.received,
        answered=story.answered,
        judging_ms=round(inquiry.seconds * 1_000, 2) if verdict else None,
        reply=story.reply,
        disposition=verdict.disposition if verdict else None,
        intended=verdict.intended if verdict else None,
        rule=verdict.rule if verdict else None,
        shadow=verdict.shadow if verdict else None,
        queue_id=envelope.queue_id,
        message_id=inquiry.message_id,
        mail_from=envelope.mail_from.text if envelope.mail_from else "",
        recipients=tuple([_addressee(*each) for each in asked]),
        more_recipients=story.more_asked + len(story.asked) - len(asked),
        author=author.mailbox.text if isinstance(author, Author) else None,
        author_fault=author.fault.value if isinstance(author, NoAuthor) else None,
        size=story.size,
        evidence=_lean(verdict.evidence) if verdict else NO_EVIDENCE,
        questions=tuple(inquiry.questions),
        is_remembered=inquiry.is_remembered,
        tried=inquiry.tried,
        facts=inquiry.facts,
        added=tuple([each.name for each in verdict.edits.prepend]) if verdict else (),
        removed=inquiry.removed,
        signing=verdict.signing if verdict else None,
        sealed=verdict.sealed if verdict else None,
        downstream=None if heard is None else Heard(reply=heard, ms=round(story.heard_s * 1_000, 2)),
        downstream_failure=story.downstream_failure,
        attempts=tuple(story.attempts[:MAX_ATTEMPTS]),
    )


def _addressee(recipient: Recipient, reply: Reply | None) -> Addressee:
    address = recipient.mailbox.text if recipient.mailbox else _POSTMASTER
    if reply is None:
        return Addressee(address)
    said = "" if reply.is_positive else f"{reply.enhanced or ''} {reply.text}".lstrip()
    return Addressee(address, reply.code, said)


def _lean(evidence: Evidence) -> Evidence:
    """Of what others wrote into an ARC chain only the results, without whom and what they speak of."""
    arc = evidence.arc
    return replace(evidence, arc=_lean_arc(arc)) if arc is not None and arc.sets else evidence


def _lean_arc(arc: ArcResult) -> ArcResult:
    sets = tuple(
        replace(
            each,
            results=None
            if each.results is None
            else tuple(replace(said, reason=None, properties=(), comment=None) for said in each.results),
        )
        for each in arc.sets
    )
    return replace(arc, sets=sets)


def _hidden(trace: Trace, hider: AddressHider) -> Trace:
    return replace(
        trace,
        session=hider.session(trace.session),
        mail_from=hider.address(trace.mail_from),
        recipients=tuple(_hidden_addressee(each, hider) for each in trace.recipients),
        author=hider.address(trace.author) if trace.author else None,
        evidence=hider.evidence(trace.evidence),
        questions=hider.questions(trace.questions, trace.mail_from),
        facts={key: _HIDDEN if key in _ADDRESS_FACTS else words for key, words in trace.facts.items()},
    )


def _hidden_addressee(addressee: Addressee, hider: AddressHider) -> Addressee:
    """Mail servers like to repeat the address in their refusal; the code and its detail say enough."""
    hidden = hider.address(addressee.address)
    return addressee._replace(address=hidden, text=addressee.text.replace(addressee.address, hidden))
