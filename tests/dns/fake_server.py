"""A DNS server on loopback that says whatever a test tells it to, by UDP and, where asked, by TCP on the same port."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import cast

import dns.flags
import dns.message
import dns.rrset

Handler = Callable[[dns.message.Message, "FakeServer"], list[bytes]]


def reply(
    query: dns.message.Message, *answers: str, rcode: int = 0, flags: str = "QR RD RA", authority: str = ""
) -> bytes:
    """A reply whose records are lines of a master file, `name ttl TYPE data`."""
    message = dns.message.make_response(query)
    message.flags = dns.flags.from_text(flags)
    message.set_rcode(rcode)  # type: ignore[arg-type]
    for section, lines in ((message.answer, answers), (message.authority, (authority,) if authority else ())):
        for line in lines:
            name, ttl, record_type, data = line.split(" ", 3)
            rrset = dns.rrset.from_text(name, int(ttl), "IN", record_type, data)
            section.append(rrset)
    return message.to_wire(max_size=65_535)


@dataclass(slots=True)
class FakeServer(asyncio.DatagramProtocol):
    """Calls `handler` for each question; what it returns is sent, packet by packet."""

    handler: Handler
    port: int = 0
    questions: list[tuple[str, str]] = field(default_factory=list)
    queries: list[bytes] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    source_ports: set[int] = field(default_factory=set)
    by_tcp: bool = False
    answer_later: Callable[[], None] = lambda: None
    _transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(
            "asyncio.DatagramTransport", transport
        )  # the loops' own classes do not derive from it

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        transport = self._transport
        assert transport is not None
        self.by_tcp = False
        self.source_ports.add(addr[1])
        query = self._take(data)

        def send(packets: list[bytes]) -> None:
            for packet in packets:
                transport.sendto(packet, addr)

        self.answer_later = lambda: send([reply(query, f"{query.question[0].name} 60 TXT late")])
        send(self.handler(query, self))

    def _take(self, data: bytes) -> dns.message.Message:
        query = dns.message.from_wire(data)
        self.queries.append(data)
        self.questions.append(
            (query.question[0].name.to_text(omit_final_dot=True), query.question[0].rdtype.name)
        )
        self.asked.set()
        return query

    async def serve_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(2))
        query = self._take(await reader.readexactly(length))
        self.by_tcp = True
        for packet in self.handler(query, self):
            writer.write(len(packet).to_bytes(2) + packet)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def serving(handler: Handler, *, tcp: bool = False) -> AsyncIterator[FakeServer]:
    """Run a server on a free port; without `tcp` connections are refused."""
    loop = asyncio.get_running_loop()
    fake = FakeServer(handler)
    listener = socket.create_server(("127.0.0.1", 0))  # the port must be free for both
    fake.port = listener.getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(lambda: fake, local_addr=("127.0.0.1", fake.port))
    server = None
    if tcp:
        server = await asyncio.start_server(fake.serve_tcp, sock=listener)
    else:
        listener.close()
    try:
        yield fake
    finally:
        transport.close()
        if server is not None:
            server.close()
            await server.wait_closed()
