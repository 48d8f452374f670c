"""What all parts of a session share: where it stands, whose turn it is, what is to be said and done next."""

from collections.abc import Callable, Iterator
from datetime import datetime
from enum import StrEnum
from typing import Final, NamedTuple, Protocol

from gateway.mail.envelope import IpAddress, Session
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.smtp import replies
from gateway.smtp.backend import CONTINUE_LOGIN, Backend
from gateway.smtp.client import DownstreamFailure, Step
from gateway.smtp.command import Verb
from gateway.smtp.effects import Close, Effect, Send, SessionEnd
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.errors import RemoteProtocolError
from gateway.smtp.sasl import Mechanism
from gateway.smtp.settings import ProxySettings
from gateway.smtp.state import State, Turn, advance
from gateway.smtp.transaction import Spool, Transaction
from gateway.verdict import Stage

MAX_IDLE_COMMANDS: Final = 100
"""Commands that achieve nothing (NOOP, RSET, …) between two messages; one more ends the session."""


class Awaiting(StrEnum):
    """Whose turn it is."""

    CLIENT = "client"
    TLS = "tls"  # the handshake
    AUTH = "auth"  # downstream's reply within a log-in
    TURN = "turn"  # other guesses at the same login, or from the same address, are not answered yet
    PENALTY = "penalty"  # a wrong guess is answered late
    CAPABILITIES = "capabilities"  # a connection downstream, to answer EHLO truthfully
    SCREEN_MAIL = "screen-mail"  # the judge; likewise the next, and VERDICT
    SCREEN_RCPT = "screen-rcpt"
    VERDICT = "verdict"
    ROUTE = "route"  # a connection to a mail server of the recipient's domain (relay)
    MAIL = "mail"  # downstream's reply to it; likewise the next two
    RCPT = "rcpt"
    DATA = "data"
    DELIVERY = "delivery"  # downstream's reply to the content: the one that counts


_CLIENT: Final = Awaiting.CLIENT


class LoginOutcome(StrEnum):
    """What became of a log-in; the word is the log field and the metric label."""

    ACCEPTED = "accepted"
    REFUSED = "refused"  # downstream says: wrong password, no such user, not now
    BARRED = "barred"  # too many failures of this address or login: downstream was not asked
    MALFORMED = "malformed"  # not the mechanism's form, or a mechanism that is not offered
    CANCELLED = "cancelled"  # by the client
    UNAVAILABLE = "unavailable"  # downstream could not say: look at its log


class LoginEnd(NamedTuple):
    """One log-in, as far as it may be told: never what proves it."""

    outcome: LoginOutcome
    mechanism: Mechanism | None
    """None for those that are not relayed."""
    login: str | None
    """Who it claimed to be; None where it did not come so far."""
    reply: Reply


class Host(Protocol):
    """What a session needs to know of the process that it runs in, and whom it tells what it did."""

    def now(self) -> datetime:
        """The time, with its zone."""
        ...

    def admit(self, address: IpAddress) -> Reply | None:
        """Count the session for this client; a refusal where there are too many."""
        ...

    def capabilities(self) -> Capabilities | None:
        """What downstream offered last; None where it was not asked yet."""
        ...

    def asks(self, stage: Stage) -> bool:
        """Whether the judge could refuse anything at this stage; if not, it is not troubled."""
        ...

    def has_room(self, size: int) -> bool:
        """Whether a message of this size could be kept now."""
        ...

    def open_spool(self) -> Spool:
        """A place for one message."""
        ...

    def starttls_ready(self) -> bool:
        """Whether there is a certificate."""
        ...

    def command_answered(self, verb: Verb, code: int) -> None:
        """A command was answered."""
        ...

    def downstream_answered(self, step: Step, code: int) -> None:
        """Downstream answered."""
        ...

    def downstream_failed(self, failure: DownstreamFailure, detail: str) -> None:
        """Downstream could not be used."""
        ...

    def login_ended(self, login: LoginEnd) -> None:
        """A log-in was answered, in success or not."""
        ...

    def recipient_refused(self, transaction: Transaction, reply: Reply) -> None:
        """A recipient was asked about, and refused."""
        ...

    def sender_refused(self, transaction: Transaction, reply: Reply) -> None:
        """MAIL was refused, by the judge or by downstream."""
        ...

    def transaction_dropped(self, transaction: Transaction) -> None:
        """It ended without a message's reply: RSET, QUIT, or the client is gone."""
        ...

    def message_answered(self, transaction: Transaction, reply: Reply) -> None:
        """A message got its reply; without a verdict where its form was refused before it was judged."""
        ...


def _nothing() -> Iterator[bytes]:
    return iter(())


class Dialog:
    """One session's shared ground.

    Attributes:
        state: where the session stands.
        awaiting: whose turn it is.
        session: who it is with.
        offered: what the client was told of downstream in the last EHLO reply.
        transaction: the one that is open, from MAIL on, its own reply not awaited.
        progress: changes whenever the client or downstream has done something that counts; timers look at it.
        is_draining: nothing new is to begin.
        effects: what the driver is to do, in order, behind the replies.
        sent_ahead: gives the lines that the client has sent behind the command that is being obeyed.
    """

    def __init__(self, settings: ProxySettings, host: Host, session: Session) -> None:
        self.settings: Final = settings
        self.host: Final = host
        self.state = State.GREETED
        self.awaiting = Awaiting.CLIENT
        self.session = session
        self.offered = Capabilities()
        self.transaction: Transaction | None = None
        self.progress = 0
        self.is_draining = False
        self.effects: Final[list[Effect]] = []
        self.sent_ahead: Callable[[], Iterator[bytes]] = _nothing
        self.backend: Final = Backend(self.effects)
        self._output: list[bytes] = []
        self._errors = 0
        self._idle_commands = 0

    def move(self, event: Verb | Turn) -> None:
        """Follow the table of states."""
        self.state = advance(self.state, event)

    def log_in(self, login: str) -> None:
        """Downstream knows who the client is."""
        self.session = replace(self.session, login=login)

    def wait(self, awaiting: Awaiting) -> None:
        """A question is open, with time of its own; what the client sends ahead waits."""
        self.awaiting = awaiting
        self.progress += 1

    def resume(self) -> None:
        """The open question is answered."""
        self.awaiting = _CLIENT
        self.progress += 1
        if self.is_draining and self.transaction is None:
            self.end(SessionEnd.DRAINED, replies.CLOSING)

    def say(self, reply: Reply) -> None:
        """Say something that no command asked for."""
        self._output.append(reply.to_bytes())

    def reply(self, verb: Verb, reply: Reply) -> None:
        """Answer a command."""
        self.host.command_answered(verb, reply.code)
        self._output.append(reply.to_bytes())

    def challenge(self, text: str) -> None:
        """Downstream's words within a log-in: base64, of any length."""
        self.host.command_answered(Verb.AUTH, CONTINUE_LOGIN)
        self._output.append(f"{CONTINUE_LOGIN} {text}\r\n".encode("ascii"))

    def refuse(self, verb: Verb, error: RemoteProtocolError) -> None:
        """Answer a command that was not obeyed."""
        self.reply(verb, error.reply)
        if error.closes:
            self.end(SessionEnd.NOT_SMTP)
        elif error.reply.is_permanent:
            self.count_error()

    def count_error(self) -> None:
        """One more thing that should not have been sent."""
        self._errors += 1
        if self._errors >= self.settings.max_errors:
            self.end(SessionEnd.TOO_MANY_ERRORS, replies.TOO_MANY_ERRORS)

    def count_idle(self) -> bool:
        """One more command that achieves nothing; False, and the end, where there were too many."""
        self._idle_commands += 1
        if self._idle_commands <= MAX_IDLE_COMMANDS:
            return True
        self.end(SessionEnd.TOO_MANY_ERRORS, replies.TOO_MANY_ERRORS)
        return False

    def forgive_idle(self) -> None:
        """A message was sent."""
        self._idle_commands = 0

    def drop_transaction(self) -> None:
        """RSET, and all that implies it: on both sides nothing is left of the transaction."""
        transaction, self.transaction = self.transaction, None
        if transaction:
            if not transaction.is_answered:
                self.host.transaction_dropped(transaction)
            transaction.discard()
            if not transaction.is_broken:
                self.backend.reset()

    def end(self, end: SessionEnd, reply: Reply | None = None) -> None:
        """Close the session, with a last word where there is one."""
        if self.state is State.CLOSED:
            return
        if reply:
            self.say(reply)
        # Within content RSET would be content, and so would the next session's commands.
        mid_content = self.awaiting in {Awaiting.DATA, Awaiting.DELIVERY}
        if mid_content and self.transaction:
            self.transaction.is_broken = True
        self.drop_transaction()
        self.backend.release(reusable=not mid_content)
        self.state = State.CLOSED
        self.awaiting = Awaiting.CLIENT
        self.effects.append(Close(end))

    def let_go(self) -> None:
        """Part from the session."""
        self.sent_ahead = _nothing

    def abandon(self) -> None:
        """After a bug nothing here can be relied on: forget all, apologise, close."""
        was_open = self.state is not State.CLOSED
        self.effects.clear()
        self._output.clear()
        self.state = State.CLOSED
        self.awaiting = Awaiting.CLIENT
        transaction, self.transaction = self.transaction, None
        if transaction:
            transaction.discard()
        self.backend.release(reusable=False)
        if was_open:
            self.say(replies.INTERNAL)
            self.effects.append(Close(SessionEnd.INTERNAL))

    def take_effects(self) -> list[Effect]:
        """Replies go out first, all in one write: what follows (TLS, closing) is behind them on the wire."""
        taken: list[Effect] = []
        if self._output:
            taken.append(Send(self._output[0] if len(self._output) == 1 else b"".join(self._output)))
            self._output.clear()
        taken += self.effects
        self.effects.clear()
        return taken
