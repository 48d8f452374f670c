"""One question to one server: UDP first, TCP where the answer did not fit (RFC 7766).

Every question has a socket of its own: connected, so that the kernel drops what others send, on a port that the kernel picks
at random, which with the random identifier is what keeps a blind forger out (RFC 5452 §9). It costs a few tens of
microseconds and leaves no state to share.
"""

import asyncio
import re
import secrets
import socket
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

from gateway.dns.wire import Query, is_reply, is_truncated

DNS_PORT = 53
MAX_STRAYS = (
    100  # packets that are no answer of ours; more are an attack, and reading on would hold up the loop
)
_BRACKETED = re.compile(r"\[([^]]*)\](?::(.*))?")
_PORT = re.compile(r"[0-9]{1,5}")
_DATAGRAM_BYTES = 4096  # well over the payload that we offer


class NoReplyError(Exception):
    """The server cannot be reached, hangs up, or sends only what is no answer. Waiting for it is of no use."""


@dataclass(frozen=True, slots=True)
class Server:
    """A resolver's address."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `127.0.0.1`, `127.0.0.1:53`, `::1` or `[::1]:53`.

        Raises:
            ValueError: it is no address: a resolver's name would need a resolver.
        """
        bracketed = _BRACKETED.fullmatch(text)
        if bracketed:
            host, port = bracketed.groups(str(DNS_PORT))
        else:
            host, _, port = text.partition(":") if text.count(":") == 1 else (text, "", str(DNS_PORT))
        if not _PORT.fullmatch(port) or not 0 < int(port) < 1 << 16:
            raise ValueError(f"{text!r} has no port that could be")
        return cls(str(ip_address(host)), int(port))

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET


def random_identifier() -> int:
    """16 bits that nobody can guess (RFC 5452 §9.2)."""
    return secrets.randbits(16)


async def exchange(server: Server, query: Query) -> bytes:
    """Send `query` and wait for its reply, however long: the caller bounds the time.

    Raises:
        NoReplyError: there will be none.
    """
    try:
        wire = await _exchange_udp(server, query)
        if is_truncated(wire):
            wire = await _exchange_tcp(server, query)
    except OSError as error:
        raise NoReplyError(str(error)) from error
    return wire


async def _exchange_udp(server: Server, query: Query) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(server.family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(0)
        sock.connect((server.host, server.port))  # sends nothing: it only sets the one peer
        sock.send(query.wire)
        for _ in range(MAX_STRAYS):
            wire = await loop.sock_recv(sock, _DATAGRAM_BYTES)
            if is_reply(wire, query):
                return wire
    raise NoReplyError("only packets that answer something else")


async def _exchange_tcp(server: Server, query: Query) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket(server.family, socket.SOCK_STREAM) as sock:
        sock.settimeout(0)
        await loop.sock_connect(sock, (server.host, server.port))
        await loop.sock_sendall(sock, len(query.wire).to_bytes(2) + query.wire)
        length = int.from_bytes(await _receive(sock, 2))
        wire = await _receive(sock, length)
    if not is_reply(wire, query) or is_truncated(wire):
        raise NoReplyError("an answer by TCP that is not whole, or to something else")
    return wire


async def _receive(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    received = bytearray()
    while len(received) < size:
        piece = await loop.sock_recv(sock, size - len(received))
        if not piece:
            raise NoReplyError("the connection ended within an answer")
        received += piece
    return bytes(received)
