"""The answer: what is to be done with a message, by which rule, with which words, on what evidence."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple, Protocol

from gateway.auth.arc.sets import ChainValidation
from gateway.auth.results import NO_EVIDENCE, Evidence, Signing
from gateway.dns.budget import DnsQuestion
from gateway.mail.author import Author, NoAuthor
from gateway.mail.edits import NO_EDITS, Edits
from gateway.mail.envelope import Envelope
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.mail.value import Value, field


class Disposition(StrEnum):
    """What becomes of the message; one of four, never two booleans."""

    ACCEPT = "accept"  # handed on with its stamp
    QUARANTINE = "quarantine"  # handed on marked (proxy) or held (milter): somebody must look at it
    DEFER = "defer"  # 4xx: the sender keeps it and tries again
    REJECT = "reject"  # 5xx: the sender's server tells the sender


class Stage(StrEnum):
    """When in the SMTP dialog a question is asked."""

    MAIL = "mail"  # at MAIL FROM: client, HELO and reverse path are known
    RCPT = "rcpt"  # at RCPT TO: and one recipient
    MESSAGE = "message"  # at the end of the data: everything is


class RuleTried(NamedTuple):
    """A rule that did not take the message, and the first of its conditions that was not met."""

    rule: str
    key: str
    wanted: str
    """What the condition asks for; of an exception, what it excepts."""
    is_exception: bool = False
    """The conditions were met, and so was the exception (`unless`)."""


class Shadow(Value, frozen=True, kw_only=True):
    """What the shadow rules (`[policy] shadow`) would have done, had they been the live ones.

    Attributes:
        rule: the id of theirs; `gateway.undecided` where the live rules refused before the message came and no rule of the
            shadow would have; `gateway.internal` where judging by them failed.
        refused_recipients: so many, not all, of the message's recipients would have been refused at RCPT, by `recipients_rule`.
    """

    rule: str
    disposition: Disposition
    refused_recipients: int = 0
    recipients_rule: str | None = None

    def differs(self, disposition: Disposition) -> bool:
        """Whether something else would have become of the message than this."""
        return self.disposition is not disposition or self.refused_recipients > 0


class Inquiry(Value, frozen=True, kw_only=True):
    """How a verdict came about, for the trace.

    Attributes:
        message_id: the Message-ID field as it stands there, cut.
        questions: what the DNS was asked.
        is_remembered: for client and sender's domain it was not asked, because it had been before.
        tried: the rules before the one that was taken.
        facts: what their conditions found, by their keys, in words.
        removed: the names of the fields that the edits leave out.
    """

    seconds: float
    author: Author | NoAuthor | None = None
    message_id: str | None = None
    questions: Sequence[DnsQuestion] = ()
    is_remembered: bool = False
    tried: tuple[RuleTried, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    removed: tuple[str, ...] = ()


class Verdict(Value, frozen=True, kw_only=True):
    """The engine's answer for one message (or, before DATA, for what is known by then).

    Attributes:
        disposition: what to do.
        intended: what the rule asked for; differs from `disposition` only where the rule set is a monitor.
        rule: the id of the operator's rule that matched; `gateway.internal` where a bug of ours decided,
            `gateway.sender` where a user of ours wrote as somebody else, `gateway.unreadable` where the header section is beyond what is read.
        reply: what to tell the client; for ACCEPT and QUARANTINE None: the reply is downstream's own.
        edits: what to change in the message that is handed on; the same for every listener.
        evidence: what it rests on.
        signing: our own signatures, which are among the edits; None where it was not asked for: a stranger's message, a
            message that is not handed on, or no keys.
        sealed: what our ARC seal, which is among the edits, says of the chain before it; None where there is none.
        shadow: what the shadow rules would have done, where that is something else; None where there are none, or they agree.
        inquiry: how it came about; None where nobody keeps traces.
    """

    disposition: Disposition
    rule: str
    intended: Disposition | None = None
    reply: Reply | None = None
    edits: Edits = NO_EDITS
    evidence: Evidence = NO_EVIDENCE
    signing: Signing | None = None
    sealed: ChainValidation | None = None
    shadow: Shadow | None = None
    inquiry: Inquiry | None = None

    def __post_init__(self) -> None:
        """A refusal has a reply of its own class."""
        match self.disposition:
            case Disposition.ACCEPT | Disposition.QUARANTINE:
                fits = self.reply is None
            case Disposition.DEFER:
                fits = self.reply is not None and self.reply.is_transient
            case Disposition.REJECT:
                fits = self.reply is not None and self.reply.is_permanent
        if not fits:
            raise ValueError(f"{self.disposition} does not go with the reply {self.reply}")


class Answered(NamedTuple):
    """A message whose client was answered at the end of its data: what the metrics are told by each listener.

    Attributes:
        id: of its envelope.
        disposition: the judge's.
        size: bytes, as received.
        seconds: from the end of the data to our reply.
        is_handed_on: the next mail server has it (for the milter: may take it).
    """

    id: str
    disposition: Disposition
    size: int
    seconds: float
    is_handed_on: bool


class Judge(Protocol):
    """What a listener needs of the engine. Neither question raises for anything that a peer or the DNS does."""

    async def screen(self, stage: Stage, envelope: Envelope) -> Verdict | None:
        """Ask before DATA; None, or a verdict that is DEFER or REJECT, ends the matter for this command."""
        ...

    async def judge(self, envelope: Envelope, message: Message) -> Verdict:
        """Ask about a whole message."""
        ...
