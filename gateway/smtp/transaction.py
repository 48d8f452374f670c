"""One mail transaction while it grows: reverse path, recipients, content (RFC 5321 §3.3)."""

from typing import TYPE_CHECKING, Final, Protocol

from gateway.mail.envelope import Envelope, Recipient, Session
from gateway.mail.message import Buffer, Message
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.command import Verb
from gateway.smtp.data import ContentFilter, Fault
from gateway.smtp.parameters import Sender

if TYPE_CHECKING:
    from datetime import datetime

    from gateway.verdict import Verdict

MAX_ASKED: Final = 100
"""Recipients whose answers are remembered; of more there is only the number."""


class Spool(Protocol):
    """Where content is kept until it is judged and handed on."""

    def write(self, block: bytes) -> bool:
        """Keep more; False where there is no room: the memory budget is used up, or the disk is full."""
        ...

    def finish(self) -> Buffer:
        """All of it."""
        ...

    def discard(self) -> None:
        """Give the room back. May be called more than once."""
        ...


class Content:
    """A message's content as it arrives, cut anywhere: filtered, measured, kept.

    Attributes:
        size: in bytes, as far as it was kept.
        is_dotted: a line of it may begin with a dot. DATA tells, by the dots that were put before those; BDAT does not.
    """

    __slots__ = ("_filter", "_lost", "_max_bytes", "_normalize", "_spool", "is_dotted", "size")

    def __init__(self, spool: Spool, *, max_bytes: int, normalize: bool) -> None:
        self.size = 0
        self.is_dotted = True
        self._normalize = normalize
        self._filter = ContentFilter(normalize=normalize)
        self._spool = spool
        self._max_bytes = max_bytes
        self._lost: Reply | None = None

    def push(self, block: bytes) -> None:
        """Take the next bytes; where the message is lost already, swallow them."""
        self._keep(self._filter.push(block))

    def sent_with_dots(self, *, found: bool) -> None:
        """Whether dots were taken off; where line ends were mended, more lines may begin with one than had such a dot."""
        self.is_dotted = found or self._normalize

    def finish(self) -> None:
        """There are no more."""
        self._keep(self._filter.finish())

    def _keep(self, block: bytes) -> None:
        if self._lost or not block:
            return
        self.size += len(block)
        if self.size > self._max_bytes:
            self._lost = replies.TOO_LARGE
        elif not self._spool.write(block):
            self._lost = replies.NO_ROOM
        if self._lost:
            self._spool.discard()

    @property
    def refusal(self) -> Reply | None:
        """Why the message cannot be taken, as far as it is known."""
        match self._filter.fault:
            case Fault.NUL:
                return replies.NUL_IN_MESSAGE
            case Fault.BARE_LINE_END:
                return replies.BARE_LINE_END
            case None:
                return self._lost

    def message(self) -> Message:
        """All of it; only after `finish`, and where there is no refusal."""
        return Message(self._spool.finish(), is_vetted=True)

    def discard(self) -> None:
        """Give the room back."""
        self._spool.discard()


class Transaction:
    """From MAIL to the message's reply, or to RSET.

    Attributes:
        id: ours, for the log, the trace and the Received field.
        began: when MAIL came.
        asked: recipients and what the client heard of each; `more_asked`: how many there were besides.
        has_refused: a recipient was refused.
        is_broken: downstream has lost it; everything more is answered with 451.
        content: None before the first of it.
        verb: DATA or BDAT, once there is content.
        envelope, message, verdict: from the end of the content on.
        screened: the judge's last refusal of a command.
        heard: what downstream said to the content.
        is_answered: the message has got its reply.
    """

    __slots__ = (
        "_session",
        "asked",
        "began",
        "content",
        "envelope",
        "has_refused",
        "heard",
        "id",
        "is_answered",
        "is_broken",
        "message",
        "more_asked",
        "recipients",
        "screened",
        "sender",
        "verb",
        "verdict",
    )

    def __init__(self, identifier: str, session: Session, sender: Sender, began: "datetime") -> None:
        self.id = identifier
        self.began = began
        self.asked: list[tuple[Recipient, Reply]] = []
        self.more_asked = 0
        self.sender = sender
        self.recipients: list[Recipient] = []
        self.has_refused = False
        self.is_broken = False
        self.content: Content | None = None
        self.verb = Verb.DATA
        self.envelope: Envelope | None = None
        self.message: Message | None = None
        self.verdict: Verdict | None = None
        self.screened: Verdict | None = None
        self.heard: Reply | None = None
        self.is_answered = False
        self._session = session

    def envelope_for(self, recipients: tuple[Recipient, ...]) -> Envelope:
        """The transaction as the judge sees it, with these recipients."""
        sender = self.sender
        return Envelope(
            id=self.id,
            session=self._session,
            mail_from=sender.mailbox,
            recipients=recipients,
            smtputf8=sender.smtputf8,
            params=sender.params,
        )

    def recipient_answered(self, recipient: Recipient, reply: Reply) -> None:
        """The client heard this of a recipient."""
        if len(self.asked) < MAX_ASKED:
            self.asked.append((recipient, reply))
        else:
            self.more_asked += 1

    def discard(self) -> None:
        """Give the content's room back."""
        self.message = None
        if self.content:
            self.content.discard()
