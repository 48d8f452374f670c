"""The socket to which Postfix 3.10 and newer report each TLS session; one datagram is one report (smtp_tlsrpt_socket_name).

The writer never waits: what the kernel does not queue (net.unix.max_dgram_qlen datagrams) is lost, so the queue is emptied a good
piece at a time. What a datagram says is `gateway.postfix.tlsrpt`'s; where the sessions go is the store's.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol

import structlog

from gateway.listeners.socket_path import SocketPath, bind_socket
from gateway.postfix.tlsrpt import MAX_DATAGRAM_BYTES, DatagramError, parse_datagram
from gateway.tlspolicy.model import TlsSession

AT_ONCE: Final = 50
"""Datagrams read in one turn of the loop; then others have theirs."""

MAX_QUEUED: Final = 1_000
"""As many may wait at the end; Linux queues 10 (net.unix.max_dgram_qlen), a busy host may have been given 512."""

QUIET_S: Final = 60.0
"""Faulty datagrams are counted each, and told of so often."""

_log: Final = structlog.get_logger(__name__)


class ReportOutcome(StrEnum):
    """What became of a datagram; the metric's label."""

    TAKEN = "taken"
    REFUSED = "refused"


class ReportObserver(Protocol):
    """Who counts. May not block or raise."""

    def tls_report(self, outcome: str) -> None:
        """A datagram came."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportSocket:
    """Where the socket is, and who may write to it."""

    path: Path
    mode: int = 0o660
    group: str | None = None


class TlsReportListener:
    """Takes the reports.

    Args:
        where: the socket.
        record: takes each session; may neither block nor raise.
        observer: who counts.
        now: UTC.
    """

    def __init__(
        self,
        where: ReportSocket,
        *,
        record: Callable[[TlsSession], None],
        observer: ReportObserver,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._where = where
        self._record = record
        self._observer = observer
        self._now = now
        self._socket: socket.socket | None = None
        self._path: SocketPath | None = None
        self._told_at = float("-inf")

    async def start(self, *, shared: bool = False) -> None:
        """Listen; `shared`: in place of another process of ours.

        Raises:
            OSError: the path cannot be had.
        """
        where = self._where
        path = SocketPath(where.path, where.mode, group=where.group, kind=socket.SOCK_DGRAM, take_over=shared)
        sock = bind_socket(path)
        try:
            path.publish()
        except OSError:
            sock.close()
            path.abandon()
            raise
        self._path, self._socket = path, sock
        asyncio.get_running_loop().add_reader(sock, self._read)

    @property
    def addresses(self) -> list[Path]:
        """Where it listens; nowhere before `start` and after its end."""
        return [] if self._path is None else [self._path.path]

    def close(self) -> None:
        """Take what has come, within reason, and end."""
        if self._socket is None or self._path is None:
            return
        self._path.remove()  # nothing new from here on
        # Who was connected can still send: a flood must not keep us from ending. More than these the kernel never queues.
        for _ in range(MAX_QUEUED // AT_ONCE):
            if not self._read():
                break
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        self._socket = self._path = None

    def _read(self) -> bool:
        """Take some datagrams; whether there may be more."""
        assert self._socket is not None  # noqa: S101 - for the type checker
        for _ in range(AT_ONCE):
            try:
                data = self._socket.recv(
                    MAX_DATAGRAM_BYTES + 1
                )  # a byte more: what is cut is seen to be too long
            except (BlockingIOError, InterruptedError):
                return False
            except OSError as error:
                _log.warning("tlsrpt.unreadable", reason=str(error))
                return False
            self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        try:
            sessions = parse_datagram(data, self._now())
        except DatagramError as error:
            self._observer.tls_report(ReportOutcome.REFUSED)
            if (now := asyncio.get_running_loop().time()) - self._told_at > QUIET_S:
                self._told_at = now
                _log.warning("tlsrpt.refused", reason=str(error), size=len(data))
            return
        for session in sessions:
            self._record(session)
            _log.debug(
                "tlsrpt.session",
                domain=session.policy_domain,
                policy=session.policy_type,
                failure=session.failure,
                mx=session.receiving_mx_hostname,
            )
        self._observer.tls_report(ReportOutcome.TAKEN)
