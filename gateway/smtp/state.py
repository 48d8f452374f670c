"""The SMTP dialog as one table: in which state which event is possible, and where it leads (RFC 5321 §4.1.4).

A command that is missing in its state's row is refused with `refusal`; an event of ours that is missing is a bug.
A command stands in the table for its success: one that is refused for its content leaves the state as it is.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.command import Verb
from gateway.smtp.errors import LocalProtocolError


class State(StrEnum):
    """Where a session stands."""

    BALANCER = "balancer"  # the PROXY header is awaited; nothing was said yet
    GREETED = "greeted"  # our greeting, or STARTTLS, or XCLIENT: everything begins with EHLO
    READY = "ready"  # no mail transaction
    AUTH = "auth"  # lines are a log-in's responses, not commands
    MAIL = "mail"  # a reverse path, no recipient
    RCPT = "rcpt"  # at least one recipient
    DATA = "data"  # after 354: everything is content up to the final dot
    BDAT = "bdat"  # at least one chunk, the last is yet to come
    MESSAGE = "message"  # a whole message: judged, handed on, not yet answered
    CLOSED = "closed"


class Turn(StrEnum):
    """What happens that is no command."""

    HEADER_READ = "header-read"  # the PROXY header
    END_OF_DATA = "end-of-data"  # the final dot
    LAST_CHUNK = "last-chunk"  # BDAT … LAST, and all of it is here
    AUTH_ENDED = "auth-ended"  # in success or not
    ANSWERED = "answered"  # the message's own reply was given: the transaction is over
    CLOSE = "close"


Event = Verb | Turn

# Possible wherever commands are, and without effect on the state.
_ANYWHERE: Final = (Verb.NOOP, Verb.HELP, Verb.VRFY)


def _row(state: State, moves: Mapping[Event, State]) -> Mapping[Event, State]:
    stay: dict[Event, State] = dict.fromkeys(_ANYWHERE, state)
    return MappingProxyType({**stay, Verb.QUIT: State.CLOSED, Turn.CLOSE: State.CLOSED, **moves})


_HELLO: Final[Mapping[Event, State]] = {
    Verb.HELO: State.READY,
    Verb.EHLO: State.READY,
    Verb.RSET: State.READY,
}
_RESTART: Final[Mapping[Event, State]] = {Verb.STARTTLS: State.GREETED, Verb.XCLIENT: State.GREETED}
_CLOSE_ONLY: Final[Mapping[Event, State]] = {Turn.CLOSE: State.CLOSED}

TABLE: Final[Mapping[State, Mapping[Event, State]]] = MappingProxyType(
    {
        State.BALANCER: {Turn.HEADER_READ: State.GREETED, **_CLOSE_ONLY},
        State.GREETED: _row(
            State.GREETED,
            {Verb.HELO: State.READY, Verb.EHLO: State.READY, Verb.RSET: State.GREETED, **_RESTART},
        ),
        State.READY: _row(State.READY, {**_HELLO, **_RESTART, Verb.AUTH: State.AUTH, Verb.MAIL: State.MAIL}),
        State.AUTH: {Turn.AUTH_ENDED: State.READY, **_CLOSE_ONLY},
        # STARTTLS and XCLIENT not within a transaction (RFC 3207 §4 leaves it open, XCLIENT_README forbids it).
        State.MAIL: _row(State.MAIL, {**_HELLO, Verb.RCPT: State.RCPT}),
        State.RCPT: _row(
            State.RCPT,
            {**_HELLO, Verb.RCPT: State.RCPT, Verb.DATA: State.DATA, Verb.BDAT: State.BDAT},
        ),
        State.DATA: {Turn.END_OF_DATA: State.MESSAGE, **_CLOSE_ONLY},
        # RFC 3030 §3: no DATA, no RCPT after the first chunk.
        State.BDAT: _row(
            State.BDAT,
            {
                **_HELLO,
                Verb.BDAT: State.BDAT,
                Turn.LAST_CHUNK: State.MESSAGE,
                Turn.ANSWERED: State.READY,
            },
        ),
        State.MESSAGE: {Turn.ANSWERED: State.READY, **_CLOSE_ONLY},
        State.CLOSED: {},
    },
)


def is_possible(state: State, event: Event) -> bool:
    """Whether the table has it."""
    return event in TABLE[state]


def advance(state: State, event: Event) -> State:
    """Where the event leads.

    Raises:
        LocalProtocolError: it is not possible here: a command must be refused before, and the rest is ours to know.
    """
    try:
        return TABLE[state][event]
    except KeyError:
        raise LocalProtocolError(f"{event} in state {state}") from None


def refusal(state: State, verb: Verb) -> Reply:
    """What a client hears for a command that the table does not have in this state."""
    match verb:
        case Verb.OTHER:
            return replies.UNKNOWN_COMMAND
        case Verb.EXPN:
            return replies.NOT_OFFERED
        case _:
            return _out_of_order(state, verb)


def _out_of_order(state: State, verb: Verb) -> Reply:
    match state:
        case State.GREETED:
            return replies.HELO_FIRST
        case State.READY:
            return replies.MAIL_FIRST
        case State.BDAT:
            return replies.CHUNKS_ONLY
        case State.MAIL if verb in {Verb.DATA, Verb.BDAT}:
            return replies.RCPT_FIRST
        case _:
            return replies.NESTED_MAIL
