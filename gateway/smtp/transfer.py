"""Mail transactions: each question is asked of downstream while the client waits; the content is judged, then handed on.

250 after the final dot is said in one place (`_content_answered`), and only in downstream's own words about this message.
"""

from collections.abc import Iterator
from itertools import islice
from typing import ClassVar, assert_never

from gateway.mail.address import Mailbox
from gateway.mail.edits import Edits, apply_edits
from gateway.mail.envelope import Recipient
from gateway.mail.received import write_received
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.ahead import MAX_AHEAD, Ahead, Early
from gateway.smtp.backend import CLOSING, makes_sense, passed_on
from gateway.smtp.client import Answer, DownstreamError, DownstreamFailure, SmtpClient, Step
from gateway.smtp.command import Verb, parse_command
from gateway.smtp.data import encode_chunk, encode_data
from gateway.smtp.dialog import Awaiting, Dialog
from gateway.smtp.effects import Ask, Deliver, Screen, SessionEnd
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.errors import LocalProtocolError, RemoteProtocolError
from gateway.smtp.guesses import Guesses
from gateway.smtp.login import Login
from gateway.smtp.parameters import keeps, parse_recipient, parse_sender, write_parameters
from gateway.smtp.relay import may_receive
from gateway.smtp.state import State, Turn
from gateway.smtp.transaction import Content, Transaction
from gateway.verdict import Disposition, Stage, Verdict


class Transfer:
    """The mail that one session sends, one transaction after the other.

    Attributes:
        login: who sends it, where that must be said first; None: anybody may.
        chunks_content: content goes in one chunk (RFC 3030 §2) where that is offered: one way there and back less than DATA,
            no dots, and nothing in it that could end it early.
    """

    chunks_content: ClassVar[bool] = True

    def __init__(self, dialog: Dialog, guesses: Guesses | None = None) -> None:
        self.login = Login(dialog, guesses) if guesses else None
        self._dialog = dialog
        self._backend = dialog.backend
        self._messages = 0
        self._recipient: Recipient | None = None
        self._ahead = Ahead()
        self._is_delivered = False

    def max_bytes(self) -> int:
        """The largest message: ours or downstream's limit, whichever is less."""
        ours, theirs = self._dialog.settings.max_message_bytes, self._dialog.offered.max_bytes
        return ours if theirs is None else min(ours, theirs)

    def capabilities(self) -> Capabilities | None:
        """What the next server offers, as far as it is known."""
        return self._backend.capabilities or self._dialog.host.capabilities()

    # MAIL

    def mail(self, argument: str) -> None:
        """MAIL: ask the judge, then downstream."""
        dialog = self._dialog
        sender = parse_sender(argument, dialog.offered)
        if sender.size is not None and sender.size > self.max_bytes():
            raise RemoteProtocolError(replies.TOO_LARGE)
        if not dialog.host.has_room(sender.size or 0):
            raise RemoteProtocolError(replies.NO_ROOM)
        self._messages += 1
        identifier = f"{dialog.session.id}.{self._messages}"
        transaction = Transaction(identifier, dialog.session, sender, began=dialog.host.now())
        dialog.transaction = transaction
        if dialog.host.asks(Stage.MAIL):
            dialog.wait(Awaiting.SCREEN_MAIL)
            dialog.effects.append(Screen(Stage.MAIL, transaction.envelope_for(())))
        else:
            self._ask_mail()

    def _ask_mail(self) -> None:
        self._dialog.wait(Awaiting.MAIL)
        if self._backend.prepare(self._dialog.session):
            self.downstream_ready()

    def downstream_ready(self) -> None:
        """The connection that MAIL waits for can be used."""
        sender, downstream = self._current().sender, self._downstream()
        params = sender.params
        if not keeps(downstream, params):
            self._end_mail(replies.DOWNSTREAM_CHANGED)
            return
        if not downstream.takes_size and "SIZE" in params:  # SIZE is our own offer, and we have kept it
            params = {keyword: value for keyword, value in params.items() if keyword != "SIZE"}
        path = sender.mailbox.text if sender.mailbox else ""
        mail = (Step.MAIL, f"MAIL FROM:<{path}>{write_parameters(params)}\r\n".encode())
        self._backend.say_all([mail, *(self._ask_ahead() if downstream.pipelining else ())])

    def _ask_ahead(self) -> Iterator[tuple[Step, bytes]]:
        """The recipients that the client has sent behind MAIL, as far as nobody but downstream is to be asked about them."""
        dialog, transaction = self._dialog, self._current()
        if dialog.host.asks(Stage.RCPT):
            return
        most = min(MAX_AHEAD, dialog.settings.max_recipients)
        for line in islice(dialog.sent_ahead(), most):
            try:
                verb, argument = parse_command(line)
                if verb is not Verb.RCPT:
                    return
                mailbox, params = parse_recipient(
                    argument, dialog.offered, smtputf8=transaction.sender.smtputf8
                )
            except RemoteProtocolError:
                return
            if self._refuse_recipient(mailbox):
                return
            recipient = Recipient(mailbox=mailbox, params=params)
            self._ahead.ask(Early(line, recipient))
            yield Step.RCPT, _rcpt_line(recipient)

    def _end_mail(self, reply: Reply) -> None:
        dialog = self._dialog
        if reply.is_positive:
            dialog.move(Verb.MAIL)
        else:
            dialog.host.sender_refused(self._current(), reply)
            dialog.transaction = None
            self._ahead.drop()
        dialog.reply(Verb.MAIL, reply)
        dialog.resume()

    # RCPT

    def was_asked_ahead(self, line: bytes) -> bool:
        """Whether this command is a RCPT that was said to downstream before its turn; then its answer is awaited now."""
        early = self._ahead.take(line)
        if early is None:
            return False
        self._recipient = early
        self._await_rcpt()
        return True

    def rcpt(self, argument: str) -> None:
        """RCPT: is it ours? Then ask the judge, then downstream."""
        dialog, transaction = self._dialog, self._current()
        settings = dialog.settings
        mailbox, params = parse_recipient(argument, dialog.offered, smtputf8=transaction.sender.smtputf8)
        if len(transaction.recipients) >= settings.max_recipients:
            raise RemoteProtocolError(replies.TOO_MANY_RECIPIENTS)
        refusal = self._refuse_recipient(mailbox)
        if refusal:
            transaction.has_refused = True
            transaction.recipient_answered(Recipient(mailbox=mailbox, params=params), refusal)
            raise RemoteProtocolError(refusal)
        recipient = self._recipient = Recipient(mailbox=mailbox, params=params)
        if dialog.host.asks(Stage.RCPT):
            dialog.wait(Awaiting.SCREEN_RCPT)
            dialog.effects.append(Screen(Stage.RCPT, transaction.envelope_for((recipient,))))
        else:
            self._ask_rcpt(recipient)

    def _refuse_recipient(self, mailbox: Mailbox | None) -> Reply | None:
        """Why we take no mail for it, whatever downstream would say."""
        dialog = self._dialog
        if dialog.session.is_ours or may_receive(mailbox, dialog.settings.local_domains):
            return None
        return replies.RELAY_DENIED

    def _ask_rcpt(self, recipient: Recipient) -> None:
        if self._current().is_broken:
            self._end_rcpt(replies.DOWNSTREAM_FAILED)
            return
        self._dialog.wait(Awaiting.RCPT)
        self._backend.say(Step.RCPT, _rcpt_line(recipient))

    def _await_rcpt(self) -> None:
        """The answer to a recipient that was asked about ahead; it may be there."""
        self._dialog.wait(Awaiting.RCPT)
        reply = self._ahead.reply()
        if reply:
            self._end_rcpt(reply)

    def _end_rcpt(self, reply: Reply) -> None:
        dialog, transaction = self._dialog, self._current()
        recipient, self._recipient = self._recipient, None
        if recipient:
            transaction.recipient_answered(recipient, reply)
        if reply.is_positive and recipient:
            transaction.recipients.append(recipient)
            dialog.move(Verb.RCPT)
        else:
            transaction.has_refused = True
            dialog.host.recipient_refused(transaction, reply)
        dialog.reply(Verb.RCPT, reply)
        dialog.resume()
        if reply.is_permanent:
            self._count_refusal()

    def _count_refusal(self) -> None:
        """Strangers who guess addresses are stopped at some time."""
        self._dialog.count_error()

    # Content

    def open_content(self, verb: Verb) -> Content:
        """DATA, or the first BDAT, is possible.

        Raises:
            RemoteProtocolError: downstream has lost the transaction, or there is no room.
        """
        dialog, transaction = self._dialog, self._current()
        if transaction.is_broken:
            raise RemoteProtocolError(replies.DOWNSTREAM_FAILED)
        if not dialog.host.has_room(0):
            raise RemoteProtocolError(replies.NO_ROOM)
        transaction.verb = verb
        transaction.content = Content(
            dialog.host.open_spool(), max_bytes=self.max_bytes(), normalize=dialog.settings.normalize
        )
        return transaction.content

    def end_content(self, event: Turn) -> None:
        """The content is here: have it judged, unless its form, or downstream, has decided already."""
        dialog, transaction = self._dialog, self._current()
        dialog.move(event)
        dialog.progress += 1
        content = transaction.content
        if content is None:
            raise LocalProtocolError("the end of no content")
        refusal = content.refusal or (replies.DOWNSTREAM_FAILED if transaction.is_broken else None)
        if refusal:
            self.end_message(refusal)
            return
        message = content.message()
        envelope = transaction.envelope_for(tuple(transaction.recipients))
        transaction.message, transaction.envelope = message, envelope
        dialog.wait(Awaiting.VERDICT)
        dialog.effects.append(Ask(envelope, message))

    def end_message(self, reply: Reply) -> None:
        """Answer the message: its transaction is over on both sides."""
        dialog, transaction = self._dialog, self._current()
        if dialog.awaiting is Awaiting.DELIVERY:
            transaction.is_broken = True  # its reply has ended it there: nothing to reset
        transaction.is_answered = True
        dialog.host.message_answered(transaction, reply)
        dialog.drop_transaction()
        dialog.forgive_idle()
        if dialog.state is State.CLOSED:  # the client did not wait for it
            self._backend.release(reusable=True)
            return
        dialog.move(Turn.ANSWERED)
        dialog.reply(transaction.verb, reply)
        dialog.resume()

    # The judge

    def screened(self, verdict: Verdict | None) -> None:
        """The judge's word on MAIL or RCPT."""
        reply = verdict.reply if verdict else None
        if reply and self._dialog.transaction:
            self._dialog.transaction.screened = verdict
        match self._dialog.awaiting:
            case Awaiting.SCREEN_MAIL:
                if reply:
                    self._end_mail(reply)
                else:
                    self._ask_mail()
            case Awaiting.SCREEN_RCPT:
                if reply or not self._recipient:
                    self._end_rcpt(reply or replies.INTERNAL)
                else:
                    self._ask_rcpt(self._recipient)
            case _:  # the session has ended meanwhile
                pass

    def judged(self, verdict: Verdict) -> None:
        """The judge's word on the message."""
        dialog = self._dialog
        if dialog.awaiting is not Awaiting.VERDICT:
            return
        transaction = self._current()
        transaction.verdict = verdict
        match verdict.disposition:
            case Disposition.REJECT | Disposition.DEFER:
                self.end_message(verdict.reply or replies.INTERNAL)
            case Disposition.ACCEPT | Disposition.QUARANTINE if transaction.is_broken:
                self.end_message(replies.DOWNSTREAM_FAILED)
            case Disposition.ACCEPT | Disposition.QUARANTINE:
                refusal = self._refuse_message()
                if refusal:
                    self.end_message(refusal)
                elif self.chunks_content and self._downstream().chunking:
                    self._deliver(in_one_chunk=True)
                else:
                    dialog.wait(Awaiting.DATA)
                    self._backend.say(Step.DATA, b"DATA\r\n")
            case _:
                assert_never(verdict.disposition)

    def _refuse_message(self) -> Reply | None:
        """Why a message that was accepted cannot be handed on."""
        return None

    # Downstream

    def leased(self, client: SmtpClient, *, reused: bool) -> bool:
        """The connection that was asked for is here: True if it can be used now."""
        self._ahead.forget()
        return self._backend.leased(client, self._dialog.session, reused=reused)

    def downstream_received(self, data: bytes) -> bool:
        """Bytes from downstream: True if it can be used from now on."""
        self._note_progress()
        was_ready = self._backend.is_ready
        try:
            for answer in self._backend.receive(data):
                self._dialog.host.downstream_answered(answer.step, answer.reply.code)
                self._answered(answer)
        except DownstreamError as error:
            self.downstream_failed(error.failure, error.detail)
            return False
        return self._backend.is_ready and not was_ready

    def _note_progress(self) -> None:
        """Downstream has said something, if only a part of its answer: it is alive."""
        self._dialog.progress += 1

    def _answered(self, answer: Answer) -> None:
        step, reply = answer
        if reply.code == CLOSING:
            self.downstream_failed(DownstreamFailure.CLOSING, str(reply), self._pass_on(reply))
            return
        if not makes_sense(step, reply):
            self.downstream_failed(DownstreamFailure.PROTOCOL, f"{step}: {reply}")
            return
        awaiting = self._dialog.awaiting
        if step is Step.RCPT:
            if awaiting is Awaiting.RCPT and not self._ahead.is_owed_stray:
                self._end_rcpt(self._pass_on(reply))
            else:
                self._ahead.answered(self._pass_on(reply))
        elif step is Step.MAIL and awaiting is Awaiting.MAIL:
            self._mail_answered(reply)
        elif step is Step.DATA and awaiting is Awaiting.DATA:
            if reply.is_positive:
                self._deliver()
            else:
                self._current().heard = reply
                self.end_message(self._pass_on(reply))
        elif step is Step.MESSAGE and awaiting is Awaiting.DELIVERY:
            self._current().heard = reply
            self._content_answered(reply)
        elif step is Step.AUTH and awaiting is Awaiting.AUTH and self.login:
            self.login.answered(reply)
        else:
            raise LocalProtocolError(f"an answer to {step} while {awaiting} was awaited")

    def _pass_on(self, reply: Reply) -> Reply:
        """Downstream's reply, as our client hears it."""
        return passed_on(reply)

    def _mail_answered(self, reply: Reply) -> None:
        self._end_mail(self._pass_on(reply))

    def _downstream(self) -> Capabilities:
        """What the connection that is held offers."""
        return self._backend.capabilities or Capabilities()

    def _deliver(self, *, in_one_chunk: bool = False) -> None:
        dialog, transaction = self._dialog, self._current()
        envelope, verdict = transaction.envelope, transaction.verdict
        if envelope is None or verdict is None or transaction.message is None:
            raise LocalProtocolError("a message that was not judged")
        received = write_received(
            envelope,
            by=dialog.settings.hostname,
            now=dialog.host.now(),
            for_recipient=True,
            hide_client=dialog.settings.hide_client,
        )
        edits = Edits(prepend=(*verdict.edits.prepend, received), remove=verdict.edits.remove)
        pieces = apply_edits(transaction.message, edits)
        is_dotted = transaction.content is None or transaction.content.is_dotted
        dialog.wait(Awaiting.DELIVERY)
        self._is_delivered = False
        self._backend.begin_content()
        blocks = encode_chunk(pieces) if in_one_chunk else encode_data(pieces, is_dotted=is_dotted)
        dialog.effects.append(Deliver(blocks))

    def delivered(self) -> None:
        """All of the content is on its way: only from now on can a 2xx be about the whole message."""
        self._is_delivered = True

    def _content_answered(self, reply: Reply) -> None:
        if self._is_delivered:
            self.end_message(self._pass_on(reply))
        else:
            # An answer to half a message: a refusal may be meant, a 2xx cannot. The rest would be read as commands.
            refusal = replies.DOWNSTREAM_FAILED if reply.is_positive else self._pass_on(reply)
            self.downstream_failed(
                DownstreamFailure.PROTOCOL, f"answered before the final dot: {reply}", refusal
            )

    def downstream_failed(
        self, failure: DownstreamFailure, detail: str, reply: Reply = replies.DOWNSTREAM_FAILED
    ) -> None:
        """The connection could not be had, or is of no more use; what the client waits for gets this reply."""
        dialog = self._dialog
        dialog.host.downstream_failed(failure, detail)
        self._ahead.forget()
        # Neither has said anything yet that downstream could have acted on.
        early = dialog.awaiting in {Awaiting.CAPABILITIES, Awaiting.AUTH, Awaiting.MAIL}
        if early and self._try_another(reply):
            return
        self._backend.release(reusable=False)
        if dialog.transaction:
            dialog.transaction.is_broken = True
        match dialog.awaiting:
            case Awaiting.CAPABILITIES:
                # Not the keywords that are ours alone: without 8BITMIME or SMTPUTF8 some senders give up for good.
                dialog.end(SessionEnd.DOWNSTREAM_DOWN, replies.DOWNSTREAM_DOWN)
            case Awaiting.AUTH | Awaiting.TURN | Awaiting.PENALTY if self.login:
                self.login.downstream_lost()
            case Awaiting.MAIL:
                self._end_mail(reply)
            case Awaiting.RCPT | Awaiting.ROUTE:
                self._end_rcpt(reply)
            case Awaiting.DATA | Awaiting.DELIVERY:
                # Promise 1. It may have taken the message and died before it could say so: the sender, told 451, sends
                # it again, and it arrives twice. The other answer could lose it.
                self.end_message(reply)
            case Awaiting.CLIENT if self.login and dialog.state is State.AUTH:
                self.login.downstream_lost()
            case Awaiting.CLIENT if dialog.session.login is not None and dialog.transaction is None:
                dialog.end(SessionEnd.DOWNSTREAM_DOWN, replies.DOWNSTREAM_DOWN)  # what proved it is not kept
            case (
                _
            ):  # nobody waits for it; the transaction that is lost with it is answered when it comes to that
                pass

    def _try_another(self, reply: Reply) -> bool:
        """Whether another connection was asked for; `reply` is what the client hears otherwise."""
        del reply
        return self._backend.try_another()

    def unroutable(self, reply: Reply) -> None:
        """There is no way to the recipient; only the relay looks for one."""
        raise LocalProtocolError(f"no route, and none was looked for: {reply}")

    def _current(self) -> Transaction:
        if self._dialog.transaction is None:
            raise LocalProtocolError(f"no transaction in state {self._dialog.state}")
        return self._dialog.transaction


def _rcpt_line(recipient: Recipient) -> bytes:
    path = recipient.mailbox.text if recipient.mailbox else "Postmaster"
    return f"RCPT TO:<{path}>{write_parameters(recipient.params)}\r\n".encode()
