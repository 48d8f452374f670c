"""One client's session as the mail server tells it, whichever library speaks the protocol: what is refused, what is done.

`gateway.listeners.milter_connection` speaks the protocol on the event loop, `gateway.listeners.libmilter` by libmilter's threads.
"""

import asyncio
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import structlog

from gateway.listeners.milter_story import MilterStory
from gateway.mail.envelope import Envelope, Listener
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.milter.actions import Action, Refuse, plan, refuse
from gateway.milter.collect import CollectOptions, Conversation, MacroReader
from gateway.trace.tell import Tracer
from gateway.verdict import Answered, Disposition, Judge, Stage

if TYPE_CHECKING:
    from gateway.ops.config import MilterSettings

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

_log: Final = structlog.get_logger()


class MilterObserver(Protocol):
    """Told of what happens, with libmilter from several threads at once; none of these may block or raise."""

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


class Load:
    """How many sessions are open and how many messages are under way; from any thread.

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
        asks: whether `judge.screen` could refuse anything at this stage; if not, it is not troubled.
        hold: whether QUARANTINE means the hold queue.
        tracer: who keeps what becomes of each transaction; None: nobody.
    """

    judge: Judge
    asks: Callable[[Stage], bool]
    judge_timeout_s: float
    observer: MilterObserver
    load: Load
    options: CollectOptions
    hold: bool
    tracer: Tracer | None = None

    @classmethod
    def of(
        cls,
        settings: "MilterSettings",
        *,
        judge: Judge,
        asks: Callable[[Stage], bool],
        observer: MilterObserver,
        load: Load,
    ) -> "Bench":
        """As the `[milter]` section has it."""
        return cls(
            judge=judge,
            asks=asks,
            judge_timeout_s=settings.judge_timeout_s,
            observer=observer,
            load=load,
            options=CollectOptions(
                max_message_bytes=settings.max_message_bytes,
                spool_threshold_bytes=settings.spool_threshold_bytes,
                trusted_networks=tuple(settings.trusted_networks),
            ),
            hold=settings.quarantine == "hold",
        )


class MilterSession:
    """What one connection of the mail server comes to. Nothing here raises: a bug of ours is 451, and its traceback is in the log.

    A refusal is for the command that was asked about; None: carry on. For headers and body nobody waits, so a fault there is remembered
    and answered at the end of the message.
    """

    __slots__ = ("_broken", "_conversation", "_id", "_story", "_under_way", "_verdict_on", "bench")

    def __init__(self, bench: Bench) -> None:
        self.bench: Final = bench
        self._conversation = Conversation(bench.options, _new_id)
        self._id: str | None = None
        self._under_way = False
        self._broken = False
        self._story: MilterStory | None = None
        self._verdict_on: Envelope | None = None  # what `screen` is to be asked about
        bench.load.open_session()
        bench.observer.session_opened(Listener.MILTER)

    def connect(self, name: str, address: str | None) -> None:
        """The client, by the mail server's word; again after each XCLIENT."""
        self._conversation.connect(name, address)

    def helo(self, name: str | None) -> None:
        """HELO or EHLO."""
        self._conversation.helo(name)

    def mail(self, arguments: Sequence[bytes], macro: MacroReader) -> Refuse | None:
        """MAIL FROM: a message begins. Where `asks(Stage.MAIL)`, `screen` is to be asked next."""
        self._finish()
        bench = self.bench
        try:
            if bench.load.sessions > bench.load.max_sessions:
                return self._refuse_command(Stage.MAIL, TOO_MANY_SESSIONS)
            if not bench.load.begin_message():
                return self._refuse_command(Stage.MAIL, SHUTTING_DOWN)
            self._under_way = True
            envelope = self._verdict_on = self._conversation.mail(arguments, macro)
            self._id = envelope.id
            if bench.tracer is not None:
                self._story = MilterStory(bench.tracer, envelope)
        except ParseError:
            return self._refuse_command(Stage.MAIL, BAD_SENDER)
        except Exception:  # noqa: BLE001 - the one place where a bug of this command ends
            return self._fault()
        return None

    def recipient(self, arguments: Sequence[bytes], macro: MacroReader, *, is_taken: bool) -> Refuse | None:
        """RCPT TO that the mail server itself would take; `is_taken`: without `screen` being asked next."""
        try:
            envelope = self._verdict_on = self._conversation.recipient(arguments, macro)
            if is_taken:
                self._take(envelope)
        except ParseError:
            return self._refuse_command(Stage.RCPT, BAD_RECIPIENT)
        except Exception:  # noqa: BLE001 - as above
            return self._fault()
        return None

    def _take(self, envelope: Envelope) -> None:
        self._conversation.add(envelope)
        if self._story is not None:
            self._story.passed(*envelope.recipients)

    def asks(self, stage: Stage) -> bool:
        """Whether the judge has a word on this command."""
        return self.bench.asks(stage)

    async def screen(self, stage: Stage) -> Refuse | None:
        """The judge's word on the command that has just been taken."""
        bench, envelope = self.bench, self._verdict_on
        if envelope is None:
            return self._fault()
        try:
            async with asyncio.timeout(bench.judge_timeout_s):
                verdict = await bench.judge.screen(stage, envelope)
            if verdict is not None and verdict.reply is not None:
                if self._story is not None:
                    self._story.refused(stage, envelope, verdict.reply, verdict)
                return self._refuse_command(stage, verdict.reply)
            if stage is Stage.RCPT:
                self._take(envelope)
        except TimeoutError:
            _log.error("milter.too-slow", id=self._id, stage=stage)
            return self._refuse_command(stage, TOO_SLOW)
        except Exception:  # noqa: BLE001 - as above
            return self._fault()
        return None

    def header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        try:
            self._conversation.header(name, value)
        except Exception:  # noqa: BLE001 - as above; nobody waits for an answer before the end of the message
            self._break()

    def body(self, chunk: bytes) -> None:
        """A part of the body."""
        try:
            self._conversation.body(chunk)
        except Exception:  # noqa: BLE001 - as above; a full disk ends here
            self._break()

    async def end(self, macro: MacroReader) -> tuple[Action, ...]:
        """The end of the data: judge it; what the mail server is to do."""
        started = time.perf_counter()
        identifier, size = self._id or "", self._conversation.size
        disposition = Disposition.DEFER
        if self._story is not None:
            self._story.message(size)
        try:
            if self._broken:
                return (self._refuse_message(FAULT),)
            disposition, actions = await self._judge(macro)
        except Exception:  # noqa: BLE001 - as above
            return (self._fault(),)
        else:
            return actions
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

    def end_refused(self) -> None:
        """The end of the data, where a command was refused and nobody had waited for that: the whole message was, unjudged."""
        if self._under_way:  # with the sender everything was over
            size = self._conversation.size
            _log.info("milter.refused", id=self._id, size=size, text=BAD_RECIPIENT.text)
            if self._story is not None:
                self._story.message(size)
                self._story.answered(BAD_RECIPIENT)
            answered = Answered(
                id=self._id or "", disposition=Disposition.REJECT, size=size, seconds=0.0, is_handed_on=False
            )
            self.bench.observer.message(Listener.MILTER, answered)
        self._finish()

    def abort(self) -> None:
        """The message under way will not be ended; the client may send another."""
        self._finish()

    def close(self) -> None:
        """The connection is over."""
        self._finish()
        self.bench.load.close_session()
        self.bench.observer.session_closed(Listener.MILTER, "closed")

    async def _judge(self, macro: MacroReader) -> tuple[Disposition, tuple[Action, ...]]:
        bench = self.bench
        whole = self._conversation.end(macro)
        if whole is None:
            return Disposition.REJECT, (self._refuse_message(TOO_LARGE),)
        envelope, message = whole
        try:
            async with asyncio.timeout(bench.judge_timeout_s):
                verdict = await bench.judge.judge(envelope, message)
        except TimeoutError:
            _log.error("milter.too-slow", id=envelope.id, queue_id=envelope.queue_id)
            return Disposition.DEFER, (self._refuse_message(TOO_SLOW),)
        if self._story is not None:
            self._story.judged(envelope, verdict)
        return verdict.disposition, plan(verdict, message, hold=bench.hold)

    def _refuse_command(self, stage: Stage, reply: Reply) -> Refuse:
        if stage is Stage.MAIL:
            self._finish()
        self.bench.observer.command(Listener.MILTER, _VERBS[stage], reply.code)
        return refuse(reply)

    def _refuse_message(self, reply: Reply) -> Refuse:
        """Refuse it without a verdict."""
        if self._story is not None:
            self._story.answered(reply)
        return refuse(reply)

    def _break(self) -> None:
        if not self._broken:
            self._broken = True
            self._conversation.abort()
            _log.exception("milter.failed", id=self._id)

    def _fault(self) -> Refuse:
        _log.exception("milter.failed", id=self._id)
        return self._refuse_message(FAULT)

    def _finish(self) -> None:
        """Whatever message was under way is so no longer."""
        story, self._story = self._story, None
        if story is not None:
            story.end()
        self._conversation.abort()
        self._broken = False
        self._id = None
        self._verdict_on = None
        if self._under_way:
            self._under_way = False
            self.bench.load.end_message()


_LET_PASS: Final = frozenset({Disposition.ACCEPT, Disposition.QUARANTINE})
_VERBS: Final = {Stage.MAIL: "MAIL", Stage.RCPT: "RCPT"}


def _new_id() -> str:
    return os.urandom(8).hex()
