"""One connection of the mail server to the milter: one SMTP session of a client of its own, as the packets tell it.

The packets themselves are in `gateway.milter.wire`, what becomes of a message in `milter_session`; no sockets here.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, Protocol, cast

import structlog

from gateway.listeners.milter_session import Bench, MilterSession
from gateway.mail.errors import ParseError
from gateway.milter import wire
from gateway.milter.actions import Refuse
from gateway.milter.collect import MACROS
from gateway.milter.wire import May, Packet, PacketReader, Skip
from gateway.verdict import Stage

ACTIONS: Final = May.ADD_HEADERS | May.CHANGE_HEADERS | May.QUARANTINE | May.CHOOSE_MACROS
"""What we may do to a message."""

PROTOCOL: Final = (
    Skip.NO_CONNECT_REPLY
    | Skip.NO_HELO_REPLY
    | Skip.NO_DATA
    | Skip.NO_HEADER_REPLY
    | Skip.NO_END_OF_HEADER
    | Skip.NO_BODY_REPLY
    | Skip.NO_UNKNOWN
    | Skip.LEADING_SPACE
)
"""What the mail server must be able to spare us; MAIL's and RCPT's answers come to it where no rule has a word on them."""

MAX_WAITING_BYTES: Final = 256 * 1024
"""Sent ahead while a question is open; no mail server does. More stays in the kernel."""

_COMMANDS: Final = bytes((wire.CONNECT, wire.HELO, wire.MAIL, wire.RCPT, wire.END_OF_BODY))
"""Those whose macros are read, in their order. Postfix sends some with each header field and each piece of the body, too."""

_P = ParamSpec("_P")

_log: Final = structlog.get_logger(__name__)


class Host(Protocol):
    """Whose connections these are.

    Attributes:
        timeout_s: so long a mail server may be silent.
        bench: what the next session works with.
    """

    @property
    def timeout_s(self) -> float: ...  # noqa: D102 - above
    @property
    def bench(self) -> Bench: ...  # noqa: D102 - above

    def closed(self, connection: "MilterConnection") -> None:
        """A connection is over."""


class MilterConnection(asyncio.Protocol):
    """One connection of the mail server: packets in, packets out, all that have come at once in one go.

    Attributes:
        ended: done when it is over.
    """

    def __init__(self, host: Host) -> None:
        self._loop = asyncio.get_running_loop()
        self.ended: Final = self._loop.create_future()
        self._host = host
        self._transport: asyncio.Transport | None = None
        self._reader = PacketReader()
        self._session: MilterSession | None = None
        self._macros: dict[int, dict[str, str | None]] = {}
        self._waiting: deque[Packet] = deque()
        self._waiting_bytes = 0
        self._task: asyncio.Task[None] | None = None
        self._output: list[bytes] = []
        self._is_paused = False
        self._is_choked = False
        self._spared = Skip(0)
        self._has_sender = False
        self._refused: Refuse | None = None  # what nobody waited for: said as soon as somebody does
        self._seen = 0.0
        self._clock: asyncio.TimerHandle | None = None

    # ── asyncio.Protocol ────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The mail server connected."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._watch()

    def data_received(self, data: bytes) -> None:
        """It said something."""
        self._seen = self._loop.time()
        try:
            packets = self._reader.feed(data)
            if self._task is not None:
                self._keep(packets, len(data))
                return
            self._waiting.extend(packets)
            self._work()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this connection only
            self._failed(error)

    def pause_writing(self) -> None:
        """It does not read what it is told: it is asked nothing more until it does."""
        self._is_choked = True
        self._regulate()

    def resume_writing(self) -> None:
        """It reads again."""
        self._is_choked = False
        self._regulate()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - why it is gone changes nothing
        """It is gone; a message under way was not answered, and its sender will try again."""
        self._transport = None
        if self._clock is not None:
            self._clock.cancel()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
        self._end_session()
        self._host.closed(self)
        if not self.ended.done():
            self.ended.set_result(None)

    def hang_up(self) -> None:
        """End it, what was answered before still on its way."""
        self._waiting.clear()
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _failed(self, error: Exception) -> None:
        if isinstance(error, ParseError):
            _log.error("milter.not-understood", error=str(error)[:200], note="the connection is closed")
        else:
            _log.exception("milter.failed")
        self.hang_up()

    def _watch(self) -> None:
        """One timer for each connection, moved when it rings: a packet costs none of its own."""
        silent_s = self._loop.time() - self._seen if self._seen else 0.0
        timeout_s = self._host.timeout_s
        if silent_s >= timeout_s and self._task is None:
            _log.warning("milter.silent", seconds=round(silent_s), note="the connection is closed")
            self.hang_up()
            return
        self._seen = self._seen or self._loop.time()
        self._clock = self._loop.call_later(max(timeout_s - silent_s, 1.0), self._watch)

    # ── packets ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _keep(self, packets: list[Packet], size: int) -> None:
        """While a question is open, what is sent ahead waits."""
        self._waiting.extend(packets)
        self._waiting_bytes += size
        self._regulate()

    def _regulate(self) -> None:
        """Read only as fast as questions are answered and answers are taken."""
        transport = self._transport
        wants_pause = self._is_choked or self._waiting_bytes > MAX_WAITING_BYTES
        if wants_pause == self._is_paused or transport is None or transport.is_closing():
            return
        self._is_paused = wants_pause
        (transport.pause_reading if wants_pause else transport.resume_reading)()

    def _work(self) -> None:
        waiting = self._waiting
        while waiting and self._task is None:
            command, data = waiting.popleft()
            if command == wire.HEADER:
                self._begun().header(*wire.parse_header(data))
            elif command == wire.MACROS:
                self._take_macros(data)
            elif command == wire.BODY:
                self._begun().body(data)
            elif command == wire.END_OF_BODY:
                self._end_of_body(data)
            elif command == wire.RCPT:
                self._recipient(data)
            elif command == wire.MAIL:
                self._mail(data)
            else:
                self._obey(command, data)
        self._flush()

    def _obey(self, command: int, data: bytes) -> None:
        """What is said once for a session, or seldom."""
        match command:
            case wire.NEGOTIATE:
                self._negotiate(data)
            case wire.CONNECT:
                if self._session is None:
                    self._session = MilterSession(self._host.bench)
                self._session.connect(*wire.parse_client(data))
            case wire.HELO:
                self._told().helo(wire.parse_helo(data))
            case wire.ABORT:
                self._forget()
                if self._session is not None:
                    self._session.abort()
            case wire.QUIT:
                self.hang_up()
            case wire.NEXT_SESSION:
                self._end_session()
            case wire.DATA | wire.END_OF_HEADER | wire.UNKNOWN:  # we asked not to be told
                self._output.append(wire.CARRY_ON)
            case _:
                raise ParseError(f"a command that is none: {command:#x}")

    def _negotiate(self, data: bytes) -> None:
        offer = wire.parse_offer(data)
        lacks_actions, lacks_protocol = ACTIONS & ~offer.actions, PROTOCOL & ~offer.protocol
        if offer.version < wire.VERSION or lacks_actions or lacks_protocol:
            _log.error(
                "milter.protocol-too-old",
                version=offer.version,
                missing=hex(lacks_actions | lacks_protocol),
                note="Postfix: milter_protocol = 6 (2.6 or newer)",
            )
            self._output.append(wire.REJECT)
            self.hang_up()
            return
        # Each answer that it waits for costs it, and us, more than the question. What we refuse of our own accord (a form that
        # cannot be read, too many sessions) can wait for the next answer; a rule's refusal cannot, for it may be about one recipient.
        asks, spared = self._host.bench.asks, PROTOCOL
        if not asks(Stage.MAIL):
            spared |= Skip.NO_MAIL_REPLY & offer.protocol
        if not asks(Stage.RCPT):
            spared |= Skip.NO_RCPT_REPLY & offer.protocol
        self._spared = spared
        self._output.append(wire.write_answer(ACTIONS, spared, MACROS))

    def _take_macros(self, data: bytes) -> None:
        if data and data[0] not in _COMMANDS:
            return
        command, macros = wire.parse_macros(data)
        self._macros[command] = macros

    def _macro(self, name: str) -> str | None:
        for command in reversed(_COMMANDS):
            macros = self._macros.get(command)
            if macros is not None and name in macros:
                return macros[name]
        return None

    def _mail(self, data: bytes) -> None:
        self._refused = None
        session = self._told()
        refused = session.mail(wire.parse_address(data), self._macro)
        self._macros.pop(wire.MAIL, None)  # a login is not the next message's
        self._has_sender = True
        if refused is None and session.asks(Stage.MAIL):
            self._start(self._screen, session, Stage.MAIL)
        else:
            self._answer(refused, Skip.NO_MAIL_REPLY)

    def _recipient(self, data: bytes) -> None:
        session = self._begun()
        if self._refused is not None:
            self._answer(self._refused, Skip.NO_RCPT_REPLY)
            return
        # Rules that came to ask about recipients do so from the mail server's next connection on.
        asks = session.asks(Stage.RCPT) and not self._spared & Skip.NO_RCPT_REPLY
        refused = session.recipient(wire.parse_address(data), self._macro, is_taken=not asks)
        self._macros.pop(wire.RCPT, None)
        if refused is None and asks:
            self._start(self._screen, session, Stage.RCPT)
        else:
            self._answer(refused, Skip.NO_RCPT_REPLY)

    def _end_of_body(self, data: bytes) -> None:
        session = self._begun()
        if self._refused is not None:
            self._output.append(wire.write_refusal(self._refused))
            self._forget()
            session.end_refused()
            return
        if data:
            session.body(data)
        self._start(self._judge, session)

    def _answer(self, refused: Refuse | None, unless: Skip) -> None:
        """Answer a command, unless nobody waits for it."""
        if self._spared & unless:
            self._refused = refused
        else:
            self._output.append(wire.CARRY_ON if refused is None else wire.write_refusal(refused))

    async def _screen(self, session: MilterSession, stage: Stage) -> None:
        refused = await session.screen(stage)
        self._answer(refused, Skip.NO_MAIL_REPLY if stage is Stage.MAIL else Skip.NO_RCPT_REPLY)

    async def _judge(self, session: MilterSession) -> None:
        self._output.append(wire.write_actions(await session.end(self._macro)))
        self._forget()

    def _start(
        self, ask: Callable[_P, Coroutine[Any, Any, None]], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        self._task = self._loop.create_task(self._run(ask, *args, **kwargs))

    async def _run(
        self, ask: Callable[_P, Coroutine[Any, Any, None]], *args: _P.args, **kwargs: _P.kwargs
    ) -> None:
        """Have a question answered, and go on with what waits."""
        try:
            await ask(*args, **kwargs)
            self._resume()
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this connection only
            self._failed(error)

    def _resume(self) -> None:
        self._task = None
        self._seen = self._loop.time()
        self._work()
        if not self._waiting:  # until then all that was sent ahead counts
            self._waiting_bytes = 0
            self._regulate()

    def _told(self) -> MilterSession:
        if self._session is None:
            raise ParseError("a command before it was told who the client is")
        return self._session

    def _begun(self) -> MilterSession:
        if self._session is None or not self._has_sender:
            raise ParseError("a part of a message before its sender")
        return self._session

    def _forget(self) -> None:
        self._has_sender = False
        self._refused = None
        for later in (wire.MAIL, wire.RCPT, wire.END_OF_BODY):
            self._macros.pop(later, None)

    def _end_session(self) -> None:
        session, self._session = self._session, None
        self._macros.clear()
        self._forget()
        if session is not None:
            session.close()

    def _flush(self) -> None:
        if self._output and self._transport is not None:
            self._transport.write(self._output[0] if len(self._output) == 1 else b"".join(self._output))
        self._output.clear()
