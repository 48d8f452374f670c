"""What is kept of one message. Values only; `document` writes and reads them, `gateway.store.traces` keeps and finds them.

The findings are the checks' own results, so that a trace says neither more nor less than the verdict rested on.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from gateway.auth.arc.sets import ChainValidation
from gateway.auth.results import NO_EVIDENCE, Evidence, Signing
from gateway.dns.budget import DnsQuestion
from gateway.mail.envelope import IpAddress, Session, Tls
from gateway.mail.reply import Reply
from gateway.mail.value import Value, field
from gateway.verdict import Disposition, RuleTried, Shadow, Stage


class Addressee(NamedTuple):
    """One recipient that was asked about; a named tuple because a message may have a hundred."""

    address: str
    """As the client wrote it; `Postmaster` where that was all."""
    code: int | None = None
    """What the client heard of it; None where nobody told us (the milter's mail server answers by itself)."""
    text: str = ""
    """The reply's enhanced code and words; only of a refusal."""

    @property
    def is_refused(self) -> bool:
        """Whether it will not get the message, or not now."""
        return self.code is not None and self.code >= 400  # noqa: PLR2004


class Heard(Value, frozen=True, kw_only=True):
    """What the mail server behind us said to the message, and after how long."""

    reply: Reply
    ms: float


class Attempt(Value, frozen=True, kw_only=True):
    """One session of the relay with a remote mail server, or why there was none.

    Attributes:
        host: its name, as the MX has it.
        demand: what TLS had to be; `(testing)` behind it: it was not enforced.
        policy: what demanded it: `sts`, `tlsa`, `no-policy-found`.
        problem: what its TLS lacked.
        failure: why no mail could be sent; None: it could.
        ms: how long it took to open; None where it was open already.
    """

    host: str
    address: IpAddress | None = None
    tls: Tls | None = None
    demand: str = "none"
    policy: str = "no-policy-found"
    problem: str | None = None
    failure: str | None = None
    detail: str = ""
    ms: float | None = None


class Trace(Value, frozen=True, kw_only=True):
    """One mail transaction, from MAIL to its last answer.

    Attributes:
        id: as it stands in our replies, the log and the Received field.
        session: the client, as it stood then.
        stage: how far it came: refused at MAIL, at RCPT, or the message was there.
        received: when MAIL came. `answered`: when the client heard the last word.
        judging_ms: how long the checks and rules took together.
        reply: the last word; None where only the mail server knows it: the milter let the message pass.
        disposition, intended, rule: the verdict's; None where it was refused before it was judged.
        shadow: what the shadow rules would have done, where that is something else.
        mail_from: the reverse path; empty for the null path.
        more_recipients: how many there were besides `recipients`.
        author: who From says wrote it, or, where there is not exactly one, `author_fault`: why.
        size: of the message, in bytes; None where none came.
        questions: what the DNS was asked, in the order of the answers.
        is_remembered: client and sender's domain were known from an earlier message: nothing was asked for them.
        tried: the rules that did not take it, with the first condition that was not met.
        facts: what these conditions found, by their keys.
        added, removed: names of header fields.
        downstream: what the mail server said to the message. `downstream_failure`: why it could not say anything.
        attempts: of the relay, in their order.
    """

    id: str
    session: Session
    stage: Stage
    received: datetime
    answered: datetime
    judging_ms: float | None = None
    reply: Reply | None = None
    disposition: Disposition | None = None
    intended: Disposition | None = None
    rule: str | None = None
    shadow: Shadow | None = None
    queue_id: str | None = None
    message_id: str | None = None
    mail_from: str = ""
    recipients: tuple[Addressee, ...] = ()
    more_recipients: int = 0
    author: str | None = None
    author_fault: str | None = None
    size: int | None = None
    evidence: Evidence = NO_EVIDENCE
    questions: tuple[DnsQuestion, ...] = ()
    is_remembered: bool = False
    tried: tuple[RuleTried, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    signing: Signing | None = None
    sealed: ChainValidation | None = None
    downstream: Heard | None = None
    downstream_failure: str | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def author_domain(self) -> str | None:
        """The domain that DMARC was asked about, in A-labels."""
        dmarc = self.evidence.dmarc
        return dmarc.author_domain if dmarc else None
