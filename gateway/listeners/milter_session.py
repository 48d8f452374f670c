"""One connection of the mail server to the milter: libmilter's callbacks in, its actions out.

libmilter calls each method from one of its own threads, never two at once for the same connection. What a callback returns
is libmilter's own word; for headers and body nobody waits (SMFIP_NR_*), so a fault there is remembered and answered at the
end of the message.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeVar, assert_never

import structlog

from gateway.listeners.milter_story import MilterStory
from gateway.mail.envelope import Envelope, Listener
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.milter.actions import (
    Accept,
    Action,
    DeleteHeader,
    InsertHeader,
    Quarantine,
    Refuse,
    plan,
    refuse,
)
from gateway.milter.collect import CollectOptions, Conversation
from gateway.trace.tell import Tracer
from gateway.verdict import Answered, Disposition, Judge, Stage

BAD_SENDER: Final = Reply.of(
    553, "5.1.7", "the sender address has a form that can be read in more than one way, or in none"
)
BAD_RECIPIENT: Final = Reply.of(
    553, "5.1.3", "the recipient address has a form that can be read in more than one way, or in none"
)
TOO_LARGE: Final = Reply.of(552, "5.3.4", "the message is larger than we take")
SHUTTING_DOWN: Final = Reply.of(451, "4.3.2", "shutting down, please try again later")
TOO_MANY_SESSIONS: Final = Reply.of(451, "4.3.2", "too many sessions, please try again later")
FAULT: Final = Reply.of(451, "4.3.0", "internal error, please try again later")
TOO_SLOW: Final = Reply.of(451, "4.3.0", "checking the message took too long, please try again later")

_T = TypeVar("_T")

_log: Final = structlog.get_logger()


class MilterObserver(Protocol):
    """Told of what happens, from several threads at once; none of these may block or raise."""

    def session_opened(self, listener: Listener) -> None:
        """The mail server connected, for one SMTP session of a client."""
        ...

    def session_closed(self, listener: Listener, end: str) -> None:
        """That session is over; `end` is always `closed`, for nobody tells a milter how its client went."""
        ...

    def command(self, listener: Listener, verb: str, code: int) -> None:
        """We had MAIL or RCPT refused with this code; what the mail server itself answers we do not see."""
        ...

    def message(self, listener: Listener, answered: Answered) -> None:
        """A message was answered."""
        ...


class Context(Protocol):
    """What we use of pymilter's context object."""

    def getsymval(self, name: str) -> str | None:
        """A macro's value; UnicodeDecodeError where it is not UTF-8."""

    def setreply(self, code: str, enhanced: str | None, *lines: str) -> None:
        """The reply that goes with the next REJECT or TEMPFAIL."""

    def addheader(self, name: str, value: str, index: int) -> None:
        """Insert a header field."""

    def chgheader(self, name: str, occurrence: int, value: str | None) -> None:
        """Change or, with None, delete a header field."""

    def quarantine(self, reason: str) -> None:
        """Put the message on hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """libmilter's return codes, given in so that no test needs libmilter."""

    carry_on: int
    no_reply: int
    accept: int
    reject: int
    temp_fail: int


class Load:
    """How many sessions are open and how many messages are under way, across all of libmilter's threads.

    Args:
        max_sessions: more get a 4xx for each of their messages.
        on_idle: called once `draining` is set and the last message has been answered.
    """

    def __init__(self, max_sessions: int, on_idle: Callable[[], None]) -> None:
        self.max_sessions: Final = max_sessions
        self._on_idle: Final = on_idle
        self._lock = threading.Lock()
        self.sessions = 0
        self.messages = 0
        self.draining = False

    def open_session(self) -> None:
        """A connection came."""
        with self._lock:
            self.sessions += 1

    def close_session(self) -> None:
        """A connection went."""
        with self._lock:
            self.sessions -= 1

    def begin_message(self) -> bool:
        """Take a message under way, unless we are shutting down."""
        with self._lock:
            if self.draining:
                return False
            self.messages += 1
            return True

    def end_message(self) -> None:
        """A message was answered or abandoned."""
        with self._lock:
            self.messages -= 1
            idle = self.draining and self.messages == 0
        if idle:
            self._on_idle()

    def drain(self) -> bool:
        """Take no further message; whether none is under way."""
        with self._lock:
            self.draining = True
            return self.messages == 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every session works with.

    Attributes:
        asks: whether `judge.screen` could refuse anything at this stage; if not, the loop is not troubled.
        hold: whether QUARANTINE means the hold queue.
        tracer: who keeps what becomes of each transaction; None: nobody.
    """

    judge: Judge
    asks: Callable[[Stage], bool]
    loop: asyncio.AbstractEventLoop
    judge_timeout_s: float
    observer: MilterObserver
    load: Load
    options: CollectOptions
    new_id: Callable[[], str]
    words: Words
    hold: bool
    tracer: Tracer | None = None


@dataclass(slots=True)
class MilterSession:
    """The callbacks of one connection. None of them raises: a bug of ours is 451, and its traceback is in the log."""

    bench: Bench
    _conversation: Conversation = field(init=False)
    _id: str | None = None
    _under_way: bool = False
    _broken: bool = False
    _story: MilterStory | None = None

    def __post_init__(self) -> None:
        bench = self.bench
        self._conversation = Conversation(bench.options, bench.new_id)
        bench.load.open_session()
        bench.observer.session_opened(Listener.MILTER)

    def connect(self, name: str, address: str | None) -> int:
        """The client, by the mail server's word; again after each XCLIENT."""
        self._conversation.connect(name, address)
        return self.bench.words.no_reply

    def helo(self, name: str) -> int:
        """HELO or EHLO."""
        self._conversation.helo(name)
        return self.bench.words.no_reply

    def mail(self, context: Context, arguments: tuple[bytes, ...]) -> int:
        """MAIL FROM: a message begins."""
        self._finish()
        bench = self.bench
        try:
            if bench.load.sessions > bench.load.max_sessions:
                return self._refuse_command(context, "MAIL", TOO_MANY_SESSIONS)
            if not bench.load.begin_message():
                return self._refuse_command(context, "MAIL", SHUTTING_DOWN)
            self._under_way = True
            envelope = self._conversation.mail(arguments, _macros(context))
            self._id = envelope.id
            if bench.tracer is not None:
                self._story = MilterStory(bench.tracer, envelope)
            return self._screen(context, Stage.MAIL, envelope)
        except ParseError:
            return self._refuse_command(context, "MAIL", BAD_SENDER)
        except Exception:  # noqa: BLE001 - the one place where a bug of this callback ends
            return self._fault(context)

    def recipient(self, context: Context, arguments: tuple[bytes, ...]) -> int:
        """RCPT TO that the mail server itself would take."""
        try:
            envelope = self._conversation.recipient(arguments, _macros(context))
            said = self._screen(context, Stage.RCPT, envelope)
            if said == self.bench.words.carry_on:
                self._conversation.add(envelope)
                if self._story is not None:
                    self._story.passed(*envelope.recipients)
        except ParseError:
            return self._refuse_command(context, "RCPT", BAD_RECIPIENT)
        except Exception:  # noqa: BLE001 - as above
            return self._fault(context)
        return said

    def header(self, name: str, value: bytes) -> int:
        """One header field."""
        try:
            self._conversation.header(name, value)
        except Exception:  # noqa: BLE001 - as above; nobody waits for an answer before the end of the message
            self._break()
        return self.bench.words.no_reply

    def body(self, chunk: bytes) -> int:
        """A part of the body."""
        try:
            self._conversation.body(chunk)
        except Exception:  # noqa: BLE001 - as above; a full disk ends here
            self._break()
        return self.bench.words.no_reply

    def end(self, context: Context) -> int:
        """The end of the data: judge, edit, answer."""
        started = time.perf_counter()
        identifier, size = self._id or "", self._conversation.size
        disposition = Disposition.DEFER
        if self._story is not None:
            self._story.message(size)
        try:
            if self._broken:
                return self._say(context, self._refuse_message(FAULT))
            disposition, actions = self._judge(context)
            return self._carry_out(context, actions)
        except Exception:  # noqa: BLE001 - as above
            disposition = Disposition.DEFER
            return self._fault(context)
        finally:
            self._finish()
            answered = Answered(
                id=identifier,
                disposition=disposition,
                size=size,
                seconds=time.perf_counter() - started,
                is_handed_on=disposition in _LET_PASS,
            )
            self.bench.observer.message(Listener.MILTER, answered)

    def abort(self) -> int:
        """The message under way will not be ended; the client may send another."""
        self._finish()
        return self.bench.words.carry_on

    def close(self) -> int:
        """The connection is over."""
        self._finish()
        self.bench.load.close_session()
        self.bench.observer.session_closed(Listener.MILTER, "closed")
        return self.bench.words.carry_on

    def _judge(self, context: Context) -> tuple[Disposition, tuple[Action, ...]]:
        bench = self.bench
        whole = self._conversation.end(_macros(context))
        if whole is None:
            return Disposition.REJECT, (self._refuse_message(TOO_LARGE),)
        envelope, message = whole
        try:
            verdict = self._ask(bench.judge.judge(envelope, message))
        except TimeoutError:
            _log.error("milter.too-slow", id=envelope.id, queue_id=envelope.queue_id)
            return Disposition.DEFER, (self._refuse_message(TOO_SLOW),)
        if self._story is not None:
            self._story.judged(envelope, verdict)
        return verdict.disposition, plan(verdict, message, hold=bench.hold)

    def _screen(self, context: Context, stage: Stage, envelope: Envelope) -> int:
        bench = self.bench
        if not bench.asks(stage):
            return bench.words.carry_on
        try:
            verdict = self._ask(bench.judge.screen(stage, envelope))
        except TimeoutError:
            _log.error("milter.too-slow", id=envelope.id, stage=stage)
            return self._refuse_command(context, _VERBS[stage], TOO_SLOW)
        if verdict is None or verdict.reply is None:
            return bench.words.carry_on
        if self._story is not None:
            self._story.refused(stage, envelope, verdict.reply, verdict)
        return self._refuse_command(context, _VERBS[stage], verdict.reply)

    def _ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Have the event loop answer: 35 µs of CPU there and back; a lock of our own was no faster."""
        bench = self.bench
        try:
            answer = asyncio.run_coroutine_threadsafe(question, bench.loop)
        except RuntimeError:  # the loop is closed
            question.close()
            raise
        try:
            return answer.result(bench.judge_timeout_s)
        except TimeoutError:
            answer.cancel()
            raise

    def _carry_out(self, context: Context, actions: tuple[Action, ...]) -> int:
        for action in actions:
            match action:
                case DeleteHeader(name, occurrence):
                    context.chgheader(name, occurrence, None)
                case InsertHeader(name, value):
                    context.addheader(name, value, 0)
                case Quarantine(reason):
                    context.quarantine(reason)
                case Refuse():
                    return self._say(context, action)
                case Accept():
                    return self.bench.words.accept
                case unknown:
                    assert_never(unknown)
        raise AssertionError("a plan ends with Accept or Refuse")

    def _refuse_command(self, context: Context, verb: str, reply: Reply) -> int:
        if verb == "MAIL":
            self._finish()
        self.bench.observer.command(Listener.MILTER, verb, reply.code)
        return self._refuse(context, reply)

    def _refuse_message(self, reply: Reply) -> Refuse:
        """Refuse it without a verdict."""
        if self._story is not None:
            self._story.answered(reply)
        return refuse(reply)

    def _refuse(self, context: Context, reply: Reply) -> int:
        return self._say(context, refuse(reply))

    def _say(self, context: Context, refusal: Refuse) -> int:
        context.setreply(refusal.code, refusal.enhanced, *refusal.lines)
        return self.bench.words.reject if refusal.is_permanent else self.bench.words.temp_fail

    def _break(self) -> None:
        if not self._broken:
            self._broken = True
            self._conversation.abort()
            _log.exception("milter.failed", id=self._id)

    def _fault(self, context: Context) -> int:
        _log.exception("milter.failed", id=self._id)
        return self._say(context, self._refuse_message(FAULT))

    def _finish(self) -> None:
        """Whatever message was under way is so no longer."""
        story, self._story = self._story, None
        if story is not None:
            story.end()
        self._conversation.abort()
        self._broken = False
        self._id = None
        if self._under_way:
            self._under_way = False
            self.bench.load.end_message()


_LET_PASS: Final = frozenset({Disposition.ACCEPT, Disposition.QUARANTINE})
_VERBS: Final = {Stage.MAIL: "MAIL", Stage.RCPT: "RCPT"}


def _macros(context: Context) -> Callable[[str], str | None]:
    def macro(name: str) -> str | None:
        try:
            return context.getsymval(name)
        except UnicodeDecodeError:  # a login that is not UTF-8 is nobody we know
            return None

    return macro


def words_of(milter: Any) -> Words:
    """The numbers that this build of pymilter uses."""
    return Words(
        carry_on=milter.CONTINUE,
        no_reply=milter.NOREPLY,
        accept=milter.ACCEPT,
        reject=milter.REJECT,
        temp_fail=milter.TEMPFAIL,
    )
