"""The milter listener by Sendmail's own library, `[milter] implementation = "pymilter"`; `gateway.listeners.milter` is what is used otherwise.

libmilter (through pymilter) does the protocol on threads of its own; the engine answers on the event loop. libmilter keeps
its state in globals, so a process has one milter, once: after `drain` there is no second `start`.
"""

import asyncio
import os
import signal
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import structlog

from gateway.listeners.milter_session import Bench, Load, MilterObserver, MilterSession
from gateway.listeners.socket_path import SocketPath
from gateway.milter.actions import Accept, DeleteHeader, InsertHeader, Quarantine, Refuse
from gateway.milter.collect import MACROS, MacroReader
from gateway.milter.wire import MacroStage
from gateway.trace.tell import Tracer
from gateway.verdict import Judge, Stage

if TYPE_CHECKING:
    from gateway.ops.config import MilterSettings

_REPLY_GRACE_S: Final = 0.1
"""libmilter writes the last answer after our callback has returned, and tells nobody when it has."""

_NUDGE_S: Final = 0.05
_START_S: Final = 10.0
_BACKLOG: Final = 128

_STAGES: Final = {
    MacroStage.CONNECT: "M_CONNECT",
    MacroStage.HELO: "M_HELO",
    MacroStage.MAIL: "M_ENVFROM",
    MacroStage.RCPT: "M_ENVRCPT",
    MacroStage.END_OF_BODY: "M_EOM",
}
_PROTOCOL: Final = (
    "P_NR_CONN",
    "P_NR_HELO",
    "P_NODATA",
    "P_NR_HDR",
    "P_NOEOH",
    "P_NR_BODY",
    "P_NOUNKNOWN",
    "P_HDR_LEADSPC",  # without it no DKIM signature over `simple` headers survives
)

_T = TypeVar("_T")

_log: Final = structlog.get_logger()


class MilterUnavailableError(ImportError):
    """pymilter is not installed; the message says how to get it."""


def load_pymilter() -> Any:
    """The extension module.

    Raises:
        MilterUnavailableError: it is not installed.
    """
    try:
        return import_module("milter")
    except ImportError as error:
        raise MilterUnavailableError(
            "implementation = \"pymilter\" needs pymilter: pip install 'mailflow-gateway[milter]' "
            "(to build it, libmilter's headers: Debian libmilter-dev, Fedora sendmail-milter-devel); "
            'implementation = "own" needs nothing',
        ) from error


class LibmilterSocket:
    """The socket, opened by libmilter and not yet served. Where several processes are to serve it, one opens it and forks.

    Args:
        settings: the `[milter]` section.

    Raises:
        MilterUnavailableError: pymilter is not installed.
        SocketInUseError: the path is not free.
        milter.error: libmilter cannot bind there; it logs the reason.
    """

    def __init__(self, settings: "MilterSettings") -> None:
        self.milter: Final = load_pymilter()
        self._listener: LibmilterListener | None = None
        path = SocketPath(Path(settings.listen.removeprefix("unix:")), settings.socket_mode)
        self.path: Final = path
        milter = self.milter
        milter.set_flags(actions_of(milter))
        milter.set_exception_policy(milter.TEMPFAIL)
        milter.set_connect_callback(self._on_connect)
        milter.set_helo_callback(lambda context, name: context.getpriv().helo(name))
        milter.set_envfrom_callback(lambda context, *arguments: context.getpriv().mail(context, arguments))
        milter.set_envrcpt_callback(
            lambda context, *arguments: context.getpriv().recipient(context, arguments)
        )
        milter.set_header_callback(lambda context, name, value: context.getpriv().header(name, value))
        milter.set_body_callback(lambda context, chunk: context.getpriv().body(chunk))
        milter.set_eom_callback(lambda context: context.getpriv().end(context))
        milter.set_abort_callback(lambda context: context.getpriv().abort())
        milter.set_close_callback(_on_close)
        milter.settimeout(int(settings.timeout_s))
        milter.setbacklog(_BACKLOG)
        milter.setconn(f"unix:{path.private}")
        milter.register("gateway", negotiate=self._on_negotiate)
        before = _sockets()
        milter.opensocket(0)  # 0: do not remove what is there
        for descriptor in _sockets() - before:
            # Workers share it: the one that loses the race for a connection must not wait in accept() for the next.
            os.set_blocking(descriptor, False)
        path.publish()

    def serve(self, listener: "LibmilterListener") -> None:
        """Its sessions are this one's, in this process."""
        self._listener = listener

    def remove(self) -> None:
        """Take its name away; only for the process that opened it."""
        self.path.remove()

    def _on_negotiate(self, context: Any, offered: list[int]) -> int:
        milter = self.milter
        actions, protocol = actions_of(milter), protocol_of(milter)
        missing = (actions & ~offered[0]) | (protocol & ~offered[1])
        if missing:  # Postfix before 2.6, or a milter_protocol below 6
            _log.error("milter.protocol-too-old", missing=hex(missing))
            reject: int = milter.REJECT
            return reject
        for stage, macros in MACROS.items():
            context.setsymlist(getattr(milter, _STAGES[stage]), macros)
        offered[:] = [actions, protocol, 0, 0]
        carry_on: int = milter.CONTINUE
        return carry_on

    def _on_connect(self, context: Any, name: str, _family: int, address: Any) -> int:
        session = context.getpriv()
        if session is None:
            if self._listener is None:
                raise AssertionError("a session before `serve`")
            session = self._listener.new_session()
            context.setpriv(session)
        return int(session.connect(name, address[0] if isinstance(address, tuple) else None))


class LibmilterListener:
    """Serves the milter protocol on a UNIX socket, in this process.

    Args:
        settings: the `[milter]` section.
        sock: where; opened in this process or in the one that forked it.
        judge: asked on `loop`.
        observer: told from libmilter's threads.
        loop: where `judge` lives; it must run on another thread than the one that libmilter gets.
        asks: whether `judge` could refuse at this stage before the message (MAIL, RCPT); if not, no time is spent on it.
    """

    def __init__(
        self,
        settings: "MilterSettings",
        *,
        sock: LibmilterSocket,
        judge: Judge,
        observer: MilterObserver,
        loop: asyncio.AbstractEventLoop,
        asks: Callable[[Stage], bool] = lambda _stage: True,
    ) -> None:
        self._milter: Final = sock.milter
        self._socket: Final = sock
        self._loop: Final = loop
        self._idle: Final = asyncio.Event()
        self._stopping = False
        self._load: Final = Load(settings.max_sessions, self._on_idle)
        self._bench = Bench.of(settings, judge=judge, asks=asks, observer=observer, load=self._load)

    def trace_to(self, tracer: Tracer | None) -> None:
        """Have what becomes of each transaction kept there, from the next session on."""
        self._bench = replace(self._bench, tracer=tracer)

    def new_session(self) -> "Callbacks":
        """A connection of the mail server."""
        return Callbacks(MilterSession(self._bench), self._milter, self._loop)

    async def start(self, *, worker: int = 0) -> None:
        """Serve, on threads of libmilter's own, and return when it does. Call on the event loop's thread.

        The loop's thread and libmilter's are bound to one CPU, the `worker`-th that we may use. Only one of them runs Python
        at a time, and passing the interpreter's lock from CPU to CPU for every header field costs more than all the work:
        0.66 against 0.23 CPU s per 1,000 messages, 2,000 against 4,400 messages/s (5 KB, 10 connections).

        Raises:
            TimeoutError: libmilter does not answer.
        """
        self._socket.serve(self)
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[worker % len(cpus)]})  # this thread's; threads inherit it
        threading.Thread(target=self._run, name="milter", daemon=True).start()
        # A signal that came before libmilter's signal thread is at rest could end up there (see `_run`).
        await asyncio.to_thread(self._greet)

    async def drain(self, deadline_s: float) -> int:
        """Take no new message, let those under way end, stop listening.

        libmilter's main function may go on for 5 s (it looks for its end that often); there is nothing in it to wait for.

        Returns:
            the number of messages that were still under way after `deadline_s`; their clients will see a 4xx.
        """
        if not self._load.drain():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), deadline_s)
        left = self._load.messages
        await asyncio.sleep(_REPLY_GRACE_S)
        self._stopping = True
        await self._stop()
        return left

    def _run(self) -> None:
        try:
            self._milter.main()
        except self._milter.error:
            _log.exception("milter.main-failed")
        if not self._stopping:
            # libmilter has a thread that waits for SIGHUP, SIGINT and SIGTERM, too. The kernel gives them to the main thread
            # first, but where that is slow to wake and libmilter's thread looks just then (it does every 5 s), it ends itself.
            # Which signal it was we cannot know. To drain and be started again is right for each; to live on serving nobody
            # for none. (A worker that ignores all three, and is told by its parent through a pipe, is out of this.)
            _log.error("milter.ended-by-itself")
            os.kill(os.getpid(), signal.SIGTERM)

    def _greet(self) -> None:
        """Be a mail server for a moment: libmilter's answer to our offer says that it serves."""
        offer = struct.pack(">IcIII", 13, b"O", 6, actions_of(self._milter), protocol_of(self._milter))
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(_START_S)
            client.connect(os.fspath(self._socket.path.path))
            client.sendall(offer)
            client.recv(1)

    def _on_idle(self) -> None:
        self._loop.call_soon_threadsafe(self._idle.set)

    async def _stop(self) -> None:
        """Stop listening. libmilter does so between two connections, or every 5 s: a connection of ours hurries it."""
        stopping = asyncio.ensure_future(asyncio.to_thread(self._milter.stop))
        while not stopping.done():
            with socket.socket(socket.AF_UNIX) as nudge, suppress(OSError):
                nudge.settimeout(0)
                nudge.connect(os.fspath(self._socket.path.path))
            await asyncio.wait({stopping}, timeout=_NUDGE_S)
        await stopping


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


class Callbacks:
    """One connection, as libmilter calls it from one of its threads, never two at once; what they return is libmilter's own word."""

    def __init__(self, session: MilterSession, milter: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._session = session
        self._milter = milter
        self._loop = loop

    def connect(self, name: str, address: str | None) -> int:
        """The client; again after each XCLIENT."""
        self._session.connect(name, address)
        return int(self._milter.NOREPLY)

    def helo(self, name: str) -> int:
        """HELO or EHLO."""
        self._session.helo(name)
        return int(self._milter.NOREPLY)

    def mail(self, context: Context, arguments: tuple[bytes, ...]) -> int:
        """MAIL FROM."""
        session = self._session
        return self._command(context, Stage.MAIL, session.mail(arguments, _macros(context)))

    def recipient(self, context: Context, arguments: tuple[bytes, ...]) -> int:
        """RCPT TO."""
        session = self._session
        is_taken = not session.asks(Stage.RCPT)
        refused = session.recipient(arguments, _macros(context), is_taken=is_taken)
        return self._command(context, Stage.RCPT, refused)

    def header(self, name: str, value: bytes) -> int:
        """One header field."""
        self._session.header(name.encode(), value)
        return int(self._milter.NOREPLY)

    def body(self, chunk: bytes) -> int:
        """A part of the body."""
        self._session.body(chunk)
        return int(self._milter.NOREPLY)

    def end(self, context: Context) -> int:
        """The end of the data."""
        for action in self._ask(self._session.end(_macros(context))):
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
                    return int(self._milter.ACCEPT)
        raise AssertionError("a plan ends with Accept or Refuse")

    def abort(self) -> int:
        """The message under way is given up."""
        self._session.abort()
        return int(self._milter.CONTINUE)

    def close(self) -> int:
        """The connection is over."""
        self._session.close()
        return int(self._milter.CONTINUE)

    def _command(self, context: Context, stage: Stage, refused: Refuse | None) -> int:
        if refused is None and self._session.asks(stage):
            refused = self._ask(self._session.screen(stage))
        return int(self._milter.CONTINUE) if refused is None else self._say(context, refused)

    def _say(self, context: Context, refusal: Refuse) -> int:
        context.setreply(refusal.code, refusal.enhanced, *refusal.lines)
        return int(self._milter.REJECT if refusal.is_permanent else self._milter.TEMPFAIL)

    def _ask(self, question: Coroutine[Any, Any, _T]) -> _T:
        """Have the event loop answer: 35 µs of CPU there and back."""
        try:
            return asyncio.run_coroutine_threadsafe(question, self._loop).result()
        except RuntimeError:  # the loop is closed
            question.close()
            raise


def _macros(context: Context) -> MacroReader:
    def macro(name: str) -> str | None:
        try:
            return context.getsymval(name)
        except UnicodeDecodeError:  # a login that is not UTF-8 is nobody we know
            return None

    return macro


def actions_of(milter: Any) -> int:
    """What we may do to a message."""
    actions: int = milter.ADDHDRS | milter.CHGHDRS | milter.QUARANTINE | milter.SETSYMLIST
    return actions


def protocol_of(milter: Any) -> int:
    """What the mail server need not tell us, or wait for."""
    wanted = 0
    for name in _PROTOCOL:
        wanted |= getattr(milter, name)
    return wanted


def _on_close(context: Any) -> int:
    session = context.getpriv()
    if session is None:
        return 0
    context.setpriv(None)
    return int(session.close())


def _sockets() -> set[int]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists this directory is gone by now
            if str(entry.readlink()).startswith("socket:"):
                found.add(int(entry.name))
    return found
