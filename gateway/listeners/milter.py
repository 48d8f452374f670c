"""The milter listener: Postfix asks about a message before it takes it (Sendmail Mail Filter API, protocol 6).

Here is the socket and who is let in; what is said there is in `milter_connection`, what becomes of a message in `milter_session`.

Mail from Postfix's `sendmail` command (`non_smtpd_milters`) comes as from 127.0.0.1, HELO localhost: it is one of our own
only where `trusted_networks` says so. Better not to show it to this milter at all.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from gateway.listeners.milter_connection import MilterConnection
from gateway.listeners.milter_session import Bench, Load, MilterObserver
from gateway.listeners.socket_path import SocketPath, bind_socket
from gateway.listeners.turns import Turns
from gateway.trace.tell import Tracer
from gateway.verdict import Judge, Stage

if TYPE_CHECKING:
    from gateway.ops.config import MilterSettings

CONNECTIONS_A_SESSION: Final = 2
"""So many times `max_sessions` may be connected: whoever is over `max_sessions` is told so for each message, and needs a place for it."""

_BACKLOG: Final = 512
_START_S: Final = 0.001
_ACCEPT_AGAIN_S: Final = 1.0
_log: Final = structlog.get_logger(__name__)


class MilterSocket:
    """The socket, opened and not yet served. Where several processes are to serve it, one opens it and forks.

    Args:
        settings: the `[milter]` section.

    Raises:
        SocketInUseError: the path is not free.
        OSError: it cannot be bound there.
    """

    def __init__(self, settings: "MilterSettings") -> None:
        self.path: Final = SocketPath(Path(settings.listen.removeprefix("unix:")), settings.socket_mode)
        self.turns: Final = Turns()
        self.socket: Final = bind_socket(self.path)
        try:
            self.socket.listen(_BACKLOG)
            self.path.publish()
        except OSError:
            self.path.abandon()
            raise

    def remove(self) -> None:
        """Take its name away; only for the process that opened it."""
        self.path.remove()


class MilterListener:
    """Serves the milter protocol on a UNIX socket, on the event loop.

    Args:
        settings: the `[milter]` section.
        sock: where; opened in this process or in the one that forked it.
        judge: who decides.
        observer: who counts.
        asks: whether `judge` could refuse at this stage before the message (MAIL, RCPT); if not, no time is spent on it.
    """

    def __init__(
        self,
        settings: "MilterSettings",
        *,
        sock: MilterSocket,
        judge: Judge,
        observer: MilterObserver,
        asks: Callable[[Stage], bool] = lambda _stage: True,
    ) -> None:
        self.timeout_s: Final = settings.timeout_s
        self._max_connections: Final = CONNECTIONS_A_SESSION * settings.max_sessions
        self._is_full = False
        self.connections: Final[set[MilterConnection]] = set()
        self._socket: Final = sock
        self._worker = 0
        self._waiting_room: socket.socket | None = None
        self._connecting: Final[set[asyncio.Task[None]]] = set()
        self._idle: Final = asyncio.Event()
        self._load: Final = Load(settings.max_sessions, self._idle.set)
        self.bench = Bench.of(settings, judge=judge, asks=asks, observer=observer, load=self._load)

    def trace_to(self, tracer: Tracer | None) -> None:
        """Have what becomes of each transaction kept there, from the next session on."""
        self.bench = replace(self.bench, tracer=tracer)

    async def start(self, *, worker: int = 0) -> None:
        """Serve. Other processes may serve the same socket: connections are taken one by one and by turns.

        Args:
            worker: which of them this is, from 0.
        """
        self._worker = worker
        self._waiting_room = self._socket.socket.dup()
        self._note()
        self._await_next()

    def _await_next(self) -> None:
        if self._waiting_room is not None:
            asyncio.get_running_loop().add_reader(self._waiting_room, self._next)

    def _next(self) -> None:
        """Somebody is at the door. Whoever has more connections than another worker gives that one a start."""
        room = self._waiting_room
        if room is None:
            return
        if self._socket.turns.has_turn(len(self.connections)):
            self._accept(room)
        else:
            self._pause(room, _START_S, self._accept_late)

    def _pause(self, room: socket.socket, seconds: float, go_on: Callable[[], None]) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(room)
        loop.call_later(seconds, go_on)

    def _accept_late(self) -> None:
        if self._waiting_room is not None:
            self._await_next()
            self._accept(self._waiting_room)

    def _accept(self, room: socket.socket) -> None:
        try:
            connection, _ = room.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster
        except OSError as error:  # no descriptors left: they wait where they are
            note = "raise the limit of open files (LimitNOFILE)"
            _log.error("milter.accept-failed", error=str(error), note=note)
            self._pause(room, _ACCEPT_AGAIN_S, self._await_next)
            return
        protocol = MilterConnection(self)
        if not self.opened(protocol):
            connection.close()
            return
        connection.setblocking(False)  # noqa: FBT003 - the socket module's own way
        task = asyncio.get_running_loop().create_task(self._connect(connection, protocol))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, connection: socket.socket, protocol: MilterConnection) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, connection)
        except OSError:  # gone already
            connection.close()
            protocol.connection_lost(None)

    async def retire(self, deadline_s: float) -> None:
        """Take no new connections; let those that are there go on until they end, or the deadline. `drain` ends the rest."""
        self._stop_listening()
        pending = [connection.ended for connection in self.connections]
        if pending:
            await asyncio.wait(pending, timeout=deadline_s)

    async def drain(self, deadline_s: float) -> int:
        """Take no new message, let those under way end, hang up.

        Returns:
            the number of messages that were still under way after `deadline_s`; their clients will see a 4xx.
        """
        if not self._load.drain():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), deadline_s)
        self._stop_listening()
        left = self._load.messages
        for connection in tuple(self.connections):
            connection.hang_up()
        return left

    def _stop_listening(self) -> None:
        room, self._waiting_room = self._waiting_room, None
        if room is not None:
            asyncio.get_running_loop().remove_reader(room)
            room.close()
            self._socket.turns.leave(self._worker)

    def _note(self) -> None:
        if self._waiting_room is not None:
            self._socket.turns.note(self._worker, len(self.connections))

    def opened(self, connection: MilterConnection) -> bool:
        """The mail server connected; False where there are enough."""
        if len(self.connections) >= self._max_connections:
            if not self._is_full:
                self._is_full = True
                _log.error(
                    "milter.full",
                    connections=len(self.connections),
                    note="mail is deferred; raise [milter] max_sessions",
                )
            return False
        self.connections.add(connection)
        self._note()
        return True

    def closed(self, connection: MilterConnection) -> None:
        """A connection is over."""
        self.connections.discard(connection)
        self._is_full = False
        self._note()
