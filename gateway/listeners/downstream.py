"""Connections to the mail server behind us, reused from one session to the next.

A connection costs the mail server a process, so idle ones are few and short-lived; opening one for every message would
cost both sides more than the message does.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final, Protocol, cast

import structlog

from gateway.mail.envelope import Session
from gateway.smtp.client import DownstreamError, DownstreamFailure, SmtpClient

if TYPE_CHECKING:
    from gateway.smtp.ehlo import Capabilities

MAX_IDLE_S: Final = 30.0
"""Well below a mail server's own patience (Postfix: 300 s, 10 s under stress), which ends in a connection lost."""

MAX_USES: Final = 200
"""Leases of one connection: a mail server that leaks, or balances by connection, gets a new one now and then."""

QUIT_S: Final = 5.0
"""So long a farewell may take to leave; whoever reads no more must not keep a connection, and its place, for ever."""

_log: Final = structlog.get_logger(__name__)


class Borrower(Protocol):
    """Who holds a connection."""

    def downstream_connected(self, connection: "DownstreamConnection") -> None:
        """It stands; bytes may come from now on."""
        ...

    def downstream_data(self, data: bytes) -> None:
        """Bytes from it."""
        ...

    def downstream_lost(self, failure: DownstreamFailure, detail: str) -> None:
        """It could not be made, or was closed by the other side."""
        ...


class Owner(Protocol):
    """Whose a connection is while nobody borrows it."""

    def forget(self, connection: "DownstreamConnection") -> None:
        """It is closed."""
        ...


class DownstreamConnection(asyncio.Protocol):
    """One connection: the borrower's while it has one, else its owner's."""

    def __init__(self, owner: Owner, client: SmtpClient, borrower: Borrower | None) -> None:
        self.client: Final = client
        self.uses = 1
        self.idle_since = 0.0
        self._owner = owner
        self.borrower: Borrower | None = borrower
        self._transport: asyncio.Transport | None = None
        self._blocks: Iterator[bytes] | None = None
        self._done: Callable[[], None] | None = None
        self._is_paused = False

    @property
    def is_open(self) -> bool:
        """Whether it can be written to."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Hand it to the borrower before the first byte can come: uvloop does not wait for `create_connection`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        set_no_delay(transport.get_extra_info("socket"))
        if self.borrower:
            self.borrower.downstream_connected(self)
        else:
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """To the borrower; an idle connection only has the reply to RSET to come."""
        if self.borrower:
            self.borrower.downstream_data(data)
            return
        try:
            for _ in self.client.receive(data):
                pass
        except DownstreamError as error:
            _log.debug("downstream.idle-closed", failure=error.failure, detail=error.detail[:200])
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """The other side closed it, or the network did."""
        self._transport = None
        self._blocks = None
        self._owner.forget(self)
        if self.borrower:
            self.borrower.downstream_lost(DownstreamFailure.LOST, str(exc or "closed by downstream"))

    def send(self, data: bytes) -> None:
        """A command."""
        if self._transport:
            self._transport.write(data)

    def deliver(self, blocks: Iterator[bytes], done: Callable[[], None]) -> None:
        """Content, as fast as downstream takes it; `done` is called when the last block is handed to the kernel's care."""
        self._blocks, self._done = blocks, done
        self._pump()

    def _pump(self) -> None:
        while self._blocks and self._transport and not self._is_paused:
            block = next(self._blocks, None)
            if block is None:
                self._blocks = None
                if self._done:
                    self._done()
            else:
                self._transport.write(block)

    def pause_writing(self) -> None:
        """Downstream is slower than we are."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._is_paused = False
        self._pump()

    def close(self) -> None:
        """End it now; nobody is told."""
        self.borrower = None
        self._blocks = None
        if self._transport:
            self._transport.abort()

    def quit(self) -> None:
        """End it politely: without QUIT the mail server would log a lost connection."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(b"QUIT\r\n")
            self._transport.close()
            asyncio.get_running_loop().call_later(QUIT_S, self._transport.abort)


class DownstreamPool:
    """All connections to downstream.

    Args:
        host: name or address.
        port: of its SMTP service.
        make_client: makes the protocol side of a new connection.
        max_idle: connections kept for the next session.
    """

    def __init__(self, host: str, port: int, *, make_client: Callable[[], SmtpClient], max_idle: int) -> None:
        self.capabilities: Capabilities | None = None
        self._host = host
        self._port = port
        self._make_client = make_client
        self._max_idle = max_idle
        self._idle: list[DownstreamConnection] = []
        self._connecting: dict[Borrower, asyncio.Task[None]] = {}
        self._is_closed = False

    def lease(self, borrower: Borrower, session: Session, *, fresh: bool) -> DownstreamConnection | None:
        """An idle connection, best one that already speaks for this client; None: one is being made."""
        if not fresh:
            connection = self._take_idle(session)
            if connection:
                connection.borrower = borrower
                connection.uses += 1
                return connection
        self._connecting[borrower] = asyncio.get_running_loop().create_task(self._connect(borrower))
        return None

    def _take_idle(self, session: Session) -> DownstreamConnection | None:
        chosen = None
        for connection in reversed(self._idle):  # the last one used is the least likely to be dead
            if connection.is_open and connection.client.speaks_for(session):
                chosen = connection
                break
            if chosen is None and connection.is_open and connection.client.can_speak_for_others:
                chosen = connection
        if chosen:
            self._idle.remove(chosen)
        return chosen

    async def _connect(self, borrower: Borrower) -> None:
        connection = DownstreamConnection(self, self._make_client(), borrower)
        try:
            await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)
        except OSError as error:
            if connection.borrower is borrower:
                connection.borrower = None
                borrower.downstream_lost(DownstreamFailure.CONNECT, str(error))
        except asyncio.CancelledError:
            connection.close()
            raise
        finally:
            if self._connecting.get(borrower) is asyncio.current_task():
                del self._connecting[borrower]

    def release(self, borrower: Borrower, connection: DownstreamConnection | None, *, reusable: bool) -> None:
        """Take it back, or stop making it."""
        task = self._connecting.pop(borrower, None)
        if task:
            task.cancel()
        if connection is None:
            return
        connection.borrower = None
        self.capabilities = connection.client.capabilities or self.capabilities
        if not reusable or not connection.is_open:
            connection.close()
        elif self._is_closed or connection.uses >= MAX_USES or connection.client.is_private:
            connection.quit()
        else:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
            if len(self._idle) > self._max_idle:
                self._idle.pop(0).quit()

    def forget(self, connection: DownstreamConnection) -> None:
        """It is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def close_idle(self, now: float) -> None:
        """End those that nobody has wanted for a while; `now` is `time.monotonic()`."""
        for connection in [each for each in self._idle if now - each.idle_since > MAX_IDLE_S]:
            self._idle.remove(connection)
            connection.quit()

    def close(self) -> None:
        """End all that are idle; those in use end when they are given back."""
        self._is_closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            connection.quit()


def set_no_delay(sock: socket.socket) -> None:
    """Send every write at once: with Nagle's algorithm a delayed ACK costs 40 ms a message.

    asyncio does this only for sockets that were made with `proto=IPPROTO_TCP`.
    """
    if sock.family in {socket.AF_INET, socket.AF_INET6}:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
