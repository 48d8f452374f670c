"""A port where TLS begins at once (RFC 8314 §3.3): no word in the clear, and nothing there to strip.

Connections are accepted here and not by the event loop's own server. That one begins to read before it can be told that
what comes is a handshake, or else tells nobody of handshakes that fail; and a PROXY header stands before the handshake.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Final, Self

import structlog

from gateway.listeners.downstream import set_no_delay

BACKLOG: Final = 512
RETRY_S: Final = 1.0

_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log: Final = structlog.get_logger(__name__)


class TlsPort:
    """One address; make it with `open`."""

    def __init__(self, sock: socket.socket, accepted: Callable[[socket.socket], None]) -> None:
        self._sock = sock
        self._accepted = accepted
        self._task = asyncio.get_running_loop().create_task(self._accept())

    @classmethod
    async def open(
        cls, host: str, port: int, accepted: Callable[[socket.socket], None], *, reuse_port: bool
    ) -> list[Self]:
        """Listen on every address of the host.

        Args:
            host: as in the config.
            port: likewise; 0 for any.
            accepted: gets each connection, and is its owner from then on.
            reuse_port: other processes listen there, too.

        Raises:
            OSError: it cannot be bound.
        """
        found = await asyncio.get_running_loop().getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        ports: list[Self] = []
        try:
            for family, _, _, _, address in dict.fromkeys(found):
                ports.append(cls(_bind(family, address, reuse_port=reuse_port), accepted))
        except OSError:
            for each in ports:
                each.close()
            raise
        return ports

    @property
    def address(self) -> tuple[str, int]:
        """Where it is bound."""
        host, port = self._sock.getsockname()[:2]
        return str(host), int(port)

    def close(self) -> None:
        """Accept no more."""
        self._task.cancel()
        self._sock.close()

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._sock)
            except OSError as error:
                if self._sock.fileno() < 0:
                    return
                if error.errno in _EXHAUSTED:
                    _log.exception("listener.accept-failed")
                    await asyncio.sleep(RETRY_S)
                continue
            try:
                set_no_delay(connection)
                self._accepted(connection)
            except Exception:  # noqa: BLE001 - a bug, or a client that is gone: the port stays open
                _log.exception("listener.accept-failed")
                connection.close()


def _bind(family: int, address: tuple[object, ...], *, reuse_port: bool) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if reuse_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.settimeout(0)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
