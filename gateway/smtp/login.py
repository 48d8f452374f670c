"""AUTH (RFC 4954): a user proves to downstream who they are, and we learn it; what proves it only passes through.

The exchange is downstream's: its challenges and the client's responses are passed on as they are, once their form is
checked. Downstream is asked with `AUTH mechanism` alone and gets the first response when it asks for it, so that who
logs in is known before, and a long one (OAUTH tokens) fits whatever a command line may have there.
"""

from dataclasses import dataclass
from typing import Final

from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.backend import CONTINUE_LOGIN, passed_on
from gateway.smtp.client import DownstreamFailure, Step
from gateway.smtp.command import Verb
from gateway.smtp.dialog import Awaiting, Dialog, LoginEnd, LoginOutcome
from gateway.smtp.effects import Pause, SessionEnd
from gateway.smtp.errors import LocalProtocolError, RemoteProtocolError
from gateway.smtp.guesses import Bar, Guess, Guesses
from gateway.smtp.sasl import (
    Mechanism,
    decode_response,
    encode_response,
    is_challenge,
    read_login,
)
from gateway.smtp.state import Turn

MAX_ROUNDS: Final = 4
"""Responses in one exchange; no mechanism that is relayed has more than three."""

TURN_S: Final = 0.1
MAX_TURNS: Final = 100
"""So often a guess asks whether it is its turn; then it is not asked at all."""

_CANCEL: Final = b"*"  # RFC 4954 §4
# About our own conversation with downstream: no AUTH there, none in clear text, a mechanism taken back.
_MISCONFIGURED: Final = frozenset({500, 502, 503, 504, 530, 538})


@dataclass(slots=True)
class _Exchange:
    """One AUTH.

    Attributes:
        response: the client's first, until downstream asks for it.
        is_asked: downstream waits for a response.
        refusal: what the client hears once downstream has let go of the exchange.
        late_reply: downstream's refusal, which the client hears when its penalty is over.
    """

    mechanism: Mechanism
    response: bytes | None = None
    login: str | None = None
    guess: Guess | None = None
    is_asked: bool = False
    rounds: int = 0
    turns: int = 0
    refusal: Reply | None = None
    late_reply: Reply | None = None


class Login:
    """The log-ins of one session, one after the other, until one succeeds.

    Args:
        dialog: the session's.
        guesses: what failed lately, in all sessions.
    """

    def __init__(self, dialog: Dialog, guesses: Guesses) -> None:
        self._dialog = dialog
        self._guesses = guesses
        self._backend = dialog.backend
        self._exchange: _Exchange | None = None

    # The client

    def auth(self, argument: str) -> None:
        """AUTH.

        Raises:
            RemoteProtocolError: not now, not in this way, or not by this mechanism.
        """
        dialog = self._dialog
        session = dialog.session
        if session.tls is None:
            raise RemoteProtocolError(replies.NEEDS_TLS)
        if session.login is not None:
            raise RemoteProtocolError(replies.LOGGED_IN_ALREADY)
        if not session.esmtp:
            raise RemoteProtocolError(replies.HELO_FIRST)
        word, _, given = argument.partition(" ")
        if word.upper() not in dialog.offered.auth:
            self._tell(LoginOutcome.MALFORMED, replies.UNKNOWN_MECHANISM, None)
            raise RemoteProtocolError(replies.UNKNOWN_MECHANISM)
        if self._guesses.bars(session.client_ip):
            self._bar(_Exchange(Mechanism(word.upper())))
            return
        exchange = _Exchange(Mechanism(word.upper()))
        if given:
            self._read_initial(exchange, given)
        self._exchange = exchange
        dialog.move(Verb.AUTH)
        if exchange.login is None:
            self._begin()
        else:
            self._take_turn(exchange)

    def _read_initial(self, exchange: _Exchange, given: str) -> None:
        if not exchange.mechanism.takes_initial_response:
            self._tell(LoginOutcome.MALFORMED, replies.NO_INITIAL_RESPONSE, exchange)
            raise RemoteProtocolError(replies.NO_INITIAL_RESPONSE)
        text = b"" if given == "=" else given.strip(" ").encode()  # RFC 4954 §4: "=" is the empty one
        if refusal := self._read(exchange, text):
            self._tell(LoginOutcome.MALFORMED, refusal, exchange)
            raise RemoteProtocolError(refusal)

    def respond(self, line: bytes | None) -> None:
        """A line of the client's within the exchange; None for one that is longer than any response."""
        exchange = self._current()
        if exchange.refusal:  # downstream is gone
            self._end_refused(exchange)
        elif line is None:
            self._cancel(replies.RESPONSE_TOO_LONG)
        elif line == _CANCEL:
            self._cancel(replies.AUTH_CANCELLED)
        elif exchange.rounds >= MAX_ROUNDS:
            self._cancel(replies.TOO_MANY_ROUNDS)
        elif refusal := self._read(exchange, line):
            self._cancel(refusal)
        elif exchange.guess is None:
            self._take_turn(exchange)
        else:
            self._pass_on(exchange)

    def _read(self, exchange: _Exchange, text: bytes) -> Reply | None:
        """Take a response; why it cannot be passed on."""
        exchange.rounds += 1
        try:
            response = decode_response(text)
        except ParseError:
            return replies.BAD_BASE64
        if exchange.login is None:
            try:
                exchange.login = read_login(exchange.mechanism, response)
            except ParseError:
                return replies.BAD_RESPONSE
        exchange.response = response
        return None

    # Its turn

    def _take_turn(self, exchange: _Exchange) -> None:
        """Ask downstream about this login, unless too many such guesses were wrong, or are still open."""
        dialog = self._dialog
        match self._guesses.begin(dialog.session.client_ip, exchange.login or ""):
            case Bar.BARRED:
                self._bar(exchange)
            case Bar.LATER:
                exchange.turns += 1
                if exchange.turns > MAX_TURNS:
                    self._cancel(replies.AUTH_UNAVAILABLE)
                    return
                dialog.wait(Awaiting.TURN)
                dialog.effects.append(Pause(TURN_S))
            case Guess() as guess:
                exchange.guess = guess
                if exchange.is_asked:
                    self._pass_on(exchange)
                else:
                    self._begin()

    def pause_over(self) -> None:
        """The time that was asked for has passed."""
        match self._dialog.awaiting:
            case Awaiting.TURN:
                self._take_turn(self._current())
            case Awaiting.PENALTY:
                exchange = self._current()
                self._end(LoginOutcome.REFUSED, exchange.late_reply or replies.AUTH_UNAVAILABLE)
            case _:  # the session has ended meanwhile
                pass

    def _bar(self, exchange: _Exchange) -> None:
        self._exchange = None
        self._tell(LoginOutcome.BARRED, replies.TOO_MANY_GUESSES, exchange)
        self._dialog.end(SessionEnd.TOO_MANY_GUESSES, replies.TOO_MANY_GUESSES)

    # Downstream

    def _begin(self) -> None:
        dialog = self._dialog
        dialog.wait(Awaiting.AUTH)
        if self._backend.prepare(dialog.session):
            self.downstream_ready()

    def downstream_ready(self) -> None:
        """The connection that AUTH waits for can be used."""
        self._backend.say(Step.AUTH, f"AUTH {self._current().mechanism}\r\n".encode())

    def _pass_on(self, exchange: _Exchange) -> None:
        response, exchange.response = exchange.response or b"", None
        self._ask(encode_response(response))

    def _cancel(self, refusal: Reply) -> None:
        """The client hears `refusal`; downstream first hears that there is nothing more to come."""
        exchange = self._current()
        exchange.response = None
        exchange.refusal = refusal
        if exchange.is_asked:
            self._ask(_CANCEL)
        else:
            self._end_refused(exchange)

    def _ask(self, line: bytes) -> None:
        self._current().is_asked = False
        self._dialog.wait(Awaiting.AUTH)
        self._backend.say(Step.AUTH, line + b"\r\n")

    def answered(self, reply: Reply) -> None:
        """Downstream's reply to AUTH or to a response."""
        exchange = self._current()
        if reply.code == CONTINUE_LOGIN:
            self._challenged(exchange, reply)
        elif exchange.refusal:
            self._end_refused(exchange)
        elif reply.is_positive:
            self._succeeded(exchange, reply)
        elif reply.is_transient or reply.code in _MISCONFIGURED:
            self._dialog.host.downstream_failed(DownstreamFailure.REFUSED, f"{Step.AUTH}: {reply}")
            self._unavailable(passed_on(reply) if reply.is_transient else replies.AUTH_UNAVAILABLE)
        else:
            self._failed(exchange, reply)

    def _challenged(self, exchange: _Exchange, reply: Reply) -> None:
        exchange.is_asked = True
        if exchange.refusal:
            self._ask(_CANCEL)
        elif exchange.response is not None:
            self._pass_on(exchange)
        elif len(reply.lines) != 1 or not is_challenge(reply.text):
            self._cancel(replies.AUTH_UNAVAILABLE)
        else:
            self._dialog.challenge(reply.text)
            self._dialog.resume()

    def _succeeded(self, exchange: _Exchange, reply: Reply) -> None:
        dialog = self._dialog
        # Somebody is let in who was not named, or whose proof was not asked for.
        if exchange.login is None or exchange.guess is None or exchange.response is not None:
            self._backend.release(reusable=False)
            self._unavailable(replies.AUTH_UNAVAILABLE)
            return
        self._guesses.succeeded(exchange.guess)
        dialog.log_in(exchange.login)
        self._end(LoginOutcome.ACCEPTED, passed_on(reply))

    def _failed(self, exchange: _Exchange, reply: Reply) -> None:
        exchange.late_reply = passed_on(reply)
        delay_s = self._guesses.failed(exchange.guess) if exchange.guess else 0.0
        self._dialog.wait(Awaiting.PENALTY)
        self._dialog.effects.append(Pause(delay_s))

    def downstream_lost(self) -> None:
        """The connection is of no more use; the client hears of it when it is to hear something."""
        exchange = self._exchange
        if exchange is None:
            return
        exchange.is_asked = False
        match self._dialog.awaiting:
            case Awaiting.AUTH | Awaiting.TURN:
                self._unavailable(replies.AUTH_UNAVAILABLE)
            case Awaiting.CLIENT:  # it was told to respond, and will
                exchange.refusal = replies.AUTH_UNAVAILABLE
            case _:  # PENALTY: the answer is known
                pass

    def _unavailable(self, reply: Reply) -> None:
        """Downstream cannot say whether it is right."""
        exchange = self._current()
        if exchange.guess:
            self._guesses.withdraw(exchange.guess)
        self._end(LoginOutcome.UNAVAILABLE, reply)

    # The end

    def _end_refused(self, exchange: _Exchange) -> None:
        refusal = exchange.refusal or replies.AUTH_UNAVAILABLE
        if exchange.guess:
            if refusal.is_transient:
                self._guesses.withdraw(exchange.guess)
            else:
                self._guesses.failed(exchange.guess)
        match refusal:
            case replies.AUTH_CANCELLED:
                outcome = LoginOutcome.CANCELLED
            case replies.AUTH_UNAVAILABLE:
                outcome = LoginOutcome.UNAVAILABLE
            case _:
                outcome = LoginOutcome.MALFORMED
        self._end(outcome, refusal)

    def _end(self, outcome: LoginOutcome, reply: Reply) -> None:
        dialog, exchange = self._dialog, self._current()
        self._exchange = None
        self._tell(outcome, reply, exchange)
        dialog.move(Turn.AUTH_ENDED)
        dialog.reply(Verb.AUTH, reply)
        dialog.resume()
        if reply.is_permanent:
            dialog.count_error()

    def _tell(self, outcome: LoginOutcome, reply: Reply, exchange: _Exchange | None) -> None:
        mechanism, login = (exchange.mechanism, exchange.login) if exchange else (None, None)
        self._dialog.host.login_ended(LoginEnd(outcome, mechanism, login, reply))

    def _current(self) -> _Exchange:
        if self._exchange is None:
            raise LocalProtocolError(f"no log-in in state {self._dialog.state}")
        return self._exchange
