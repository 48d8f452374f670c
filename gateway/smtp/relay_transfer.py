"""Mail that leaves: each transaction goes to one recipient domain, and every word of its mail server comes back (RFC 5321 §3.6).

We own no queue. MAIL is answered by ourselves, for only the first recipient says where the message goes; from then on our
mail server hears what the remote one says, to this very recipient and to this very message, and keeps the message until
that is 2xx.
"""

from dataclasses import dataclass, field, replace
from typing import Final

from gateway.mail.address import Mailbox
from gateway.mail.envelope import Recipient
from gateway.mail.message import Buffer
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.backend import CLOSING
from gateway.smtp.client import DownstreamFailure, Step
from gateway.smtp.dialog import Awaiting
from gateway.smtp.effects import Destination
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.errors import LocalProtocolError
from gateway.smtp.parameters import write_parameters
from gateway.smtp.transaction import Transaction
from gateway.smtp.transfer import Transfer
from gateway.verdict import Disposition

_BLOCK_BYTES: Final = 256 * 1024
_DSN: Final = frozenset({"RET", "ENVID", "NOTIFY", "ORCPT"})


def offered(*, dsn: bool) -> Capabilities:
    """What the relay offers before it knows who the next server is; `RelayTransfer` says what that one lacks.

    Args:
        dsn: see `[outbound] dsn`.
    """
    return Capabilities(
        takes_size=True, eight_bit=True, smtputf8=True, dsn=dsn, pipelining=True, requiretls=True
    )


@dataclass(slots=True, kw_only=True)
class _Course:
    """How far one transaction has come.

    Attributes:
        destination: where it is taken; None before the first recipient.
        is_begun: the remote server has taken MAIL.
        mail_reply: what a server of this destination said to MAIL, where it was no.
        refusals: domains that could not be reached: their further recipients hear the same, at once.
    """

    transaction: Transaction
    destination: Destination | None = None
    is_begun: bool = False
    mail_reply: Reply | None = None
    refusals: dict[str, Reply] = field(default_factory=dict)


class RelayTransfer(Transfer):
    """The mail that one of our own mail servers sends to the world."""

    chunks_content = False  # what strangers' servers offer they do not always do
    _course: _Course | None = None

    def capabilities(self) -> Capabilities | None:
        """Ours: the next server is not known yet."""
        return self._dialog.host.capabilities()

    def _note_progress(self) -> None:
        """Only whole answers count: with a byte now and then, a stranger's server could hold our process for ever."""

    # MAIL

    def _ask_mail(self) -> None:
        self._end_mail(replies.SENDER_OK)

    def downstream_ready(self) -> None:
        """The connection that the recipient waits for can be used: MAIL, as this server takes it."""
        transaction = self._current()
        remote = self._backend.capabilities or Capabilities()
        refusal = _refuse_sender(transaction, remote)
        if refusal:
            self._end_route(refusal)
            return
        self._dialog.wait(Awaiting.MAIL)
        sender = transaction.sender
        params = {keyword: value for keyword, value in sender.params.items() if _is_taken(keyword, remote)}
        path = _path(sender.mailbox, remote) if sender.mailbox else ""
        self._backend.say(Step.MAIL, f"MAIL FROM:<{path}>{write_parameters(params)}\r\n".encode())

    def _mail_answered(self, reply: Reply) -> None:
        course = self._current_course()
        if reply.is_positive and self._recipient:
            course.is_begun = True
            self._say_rcpt(self._recipient)
        elif reply.is_transient:
            self._seek_another(self._pass_on(reply))
        else:
            self._end_route(self._pass_on(reply))

    # RCPT

    def _refuse_recipient(self, mailbox: Mailbox | None) -> Reply | None:
        if not self._dialog.session.trusted:
            return replies.NOT_A_CLIENT
        if mailbox is None:
            return replies.NEEDS_DOMAIN
        course = self._current_course()
        destination = course.destination
        if course.transaction.recipients and destination and destination.domain != mailbox.domain:
            return replies.OTHER_DOMAIN
        return None

    def _ask_rcpt(self, recipient: Recipient) -> None:
        course = self._current_course()
        domain = recipient.mailbox.domain if recipient.mailbox else ""
        if domain in course.refusals:
            self._end_rcpt(course.refusals[domain])
        elif course.is_begun and course.destination and course.destination.domain == domain:
            self._say_rcpt(recipient)
        else:
            self._begin_route(domain)

    def _say_rcpt(self, recipient: Recipient) -> None:
        remote = self._backend.capabilities or Capabilities()
        refusal = (
            replies.REMOTE_FAILED if self._current().is_broken else _refuse_parameters(recipient, remote)
        )
        if refusal or recipient.mailbox is None:
            self._end_rcpt(refusal or replies.NEEDS_DOMAIN)
            return
        self._dialog.wait(Awaiting.RCPT)
        params = {keyword: value for keyword, value in recipient.params.items() if _is_taken(keyword, remote)}
        path = _path(recipient.mailbox, remote)
        self._backend.say(Step.RCPT, f"RCPT TO:<{path}>{write_parameters(params)}\r\n".encode())

    def _count_refusal(self) -> None:
        """Our own mail server guesses no addresses."""

    # The route

    def _begin_route(self, domain: str) -> None:
        course, dialog = self._current_course(), self._dialog
        transaction = course.transaction
        if course.is_begun and not transaction.is_broken:  # at another domain, which took no recipient
            self._backend.reset()
        transaction.is_broken = course.is_begun = False
        course.mail_reply = None
        course.destination = Destination(
            message=transaction.id, domain=domain, requiretls="REQUIRETLS" in transaction.sender.params
        )
        dialog.wait(Awaiting.ROUTE)
        self._backend.seek(course.destination, again=False)

    def _seek_another(self, mail_reply: Reply | None = None) -> None:
        """The next server of the domain: this one did not take the message now, or is gone."""
        course = self._current_course()
        if course.destination is None:
            raise LocalProtocolError("a route to nowhere")
        course.mail_reply = mail_reply or course.mail_reply
        self._dialog.wait(Awaiting.ROUTE)
        self._backend.seek(course.destination, again=True)

    def _try_another(self, reply: Reply) -> bool:
        """RFC 5321 §5.1: nothing that counts was said to this server yet."""
        self._backend.release(reusable=False)
        self._seek_another(None if reply is replies.REMOTE_FAILED else reply)
        return True

    def downstream_failed(
        self, failure: DownstreamFailure, detail: str, reply: Reply = replies.REMOTE_FAILED
    ) -> None:
        """The connection is of no more use; or, where there is none yet, the search for one took too long."""
        if self._dialog.awaiting is Awaiting.ROUTE:
            self._end_route(reply)
        else:
            super().downstream_failed(failure, detail, reply)

    def unroutable(self, reply: Reply) -> None:
        """No server of the domain is left; what one of them said to MAIL says more than that."""
        if self._dialog.awaiting is Awaiting.ROUTE:
            self._end_route(self._current_course().mail_reply or reply)

    def _end_route(self, reply: Reply) -> None:
        course = self._current_course()
        if course.destination:
            course.refusals[course.destination.domain] = reply
        self._backend.release(reusable=True)
        self._end_rcpt(reply)

    def _current_course(self) -> _Course:
        transaction = self._current()
        if self._course is None or self._course.transaction is not transaction:
            self._course = _Course(transaction=transaction)
        return self._course

    # Content

    def _refuse_message(self) -> Reply | None:
        """What this server cannot take, now that the content is known (RFC 6152 §3, RFC 6531 §3.2)."""
        transaction = self._current()
        remote = self._backend.capabilities or Capabilities()
        message, params = transaction.message, transaction.sender.params
        if transaction.verdict and transaction.verdict.disposition is Disposition.QUARANTINE:
            return replies.HELD_BACK  # a mark for our own mailboxes is of no use to others
        if message is None:
            raise LocalProtocolError("a message that was not judged")
        if remote.max_bytes is not None and len(message) > remote.max_bytes:
            return replies.REMOTE_TOO_LARGE
        if "SMTPUTF8" in params and not remote.smtputf8 and not _is_ascii(message.raw, message.body_start):
            return replies.REMOTE_NO_UTF8_HEADER
        is_8bit = (params.get("BODY") or "").upper() == "8BITMIME"
        if is_8bit and not remote.eight_bit and not _is_ascii(message.raw, len(message)):
            return replies.REMOTE_NO_8BIT
        return None

    def end_message(self, reply: Reply) -> None:
        """Answer the message; the next one may go elsewhere."""
        super().end_message(reply)
        self._backend.release(reusable=True)

    def _pass_on(self, reply: Reply) -> Reply:
        """The remote server's reply, untouched: class, text and enhanced code.

        But 421 becomes 451: it is not our connection that closes, and our mail server would hold back all mail for it.
        """
        if reply.code == CLOSING:
            return Reply(451, reply.enhanced or "4.3.2", reply.lines)
        return reply if reply.enhanced else replace(reply, enhanced=f"{reply.code // 100}.0.0")


def _is_taken(keyword: str, remote: Capabilities) -> bool:
    """Whether the parameter is passed on; of those that are not, `_refuse_…` have seen to the promise."""
    match keyword:
        case "SIZE":
            return remote.takes_size
        case "BODY":
            return remote.eight_bit
        case "SMTPUTF8":
            return remote.smtputf8
        case _ if keyword in _DSN:
            return remote.dsn
        case _:
            return True


def _refuse_sender(transaction: Transaction, remote: Capabilities) -> Reply | None:
    """What this server lacks for the message, as far as MAIL tells; the rest is seen when the content is there."""
    sender = transaction.sender
    if "REQUIRETLS" in sender.params and not remote.requiretls:
        return replies.REMOTE_NO_REQUIRETLS
    if sender.size is not None and remote.max_bytes is not None and sender.size > remote.max_bytes:
        return replies.REMOTE_TOO_LARGE
    if sender.mailbox and not _fits(sender.mailbox, remote):
        return replies.REMOTE_NO_SMTPUTF8
    return None


def _refuse_parameters(recipient: Recipient, remote: Capabilities) -> Reply | None:
    """What this server lacks for the recipient.

    Without DSN there, only a report of success is lost for certain: of failures it sends the ordinary kind, and RET, ENVID and
    ORCPT are for servers that write reports (RFC 3461 §5.2.2). The report `relayed` that we would owe we cannot write.
    """
    if recipient.mailbox and not _fits(recipient.mailbox, remote):
        return replies.REMOTE_NO_SMTPUTF8
    if not remote.dsn and "SUCCESS" in (recipient.params.get("NOTIFY") or "").upper():
        return replies.REMOTE_NO_DSN
    original = recipient.params.get("ORCPT") or ""
    if remote.dsn and not remote.smtputf8 and not original.isascii():
        return replies.REMOTE_NO_SMTPUTF8
    return None


def _fits(mailbox: Mailbox, remote: Capabilities) -> bool:
    return remote.smtputf8 or mailbox.local_part.isascii()


def _path(mailbox: Mailbox, remote: Capabilities) -> str:
    """As our client wrote it; without SMTPUTF8 the domain in A-labels, which is the same domain (RFC 6531 §3.2)."""
    return mailbox.text if mailbox.text.isascii() or remote.smtputf8 else str(mailbox)


def _is_ascii(raw: Buffer, end: int) -> bool:
    """Whether the first `end` bytes are; in blocks, for the message may be a file."""
    return all(
        bytes(raw[start : min(start + _BLOCK_BYTES, end)]).isascii() for start in range(0, end, _BLOCK_BYTES)
    )
