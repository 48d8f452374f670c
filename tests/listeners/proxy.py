"""The real listener between real sockets: a client to type with, and the polite fake server behind it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from gateway.listeners.observer import NoObserver, SmtpObserver
from gateway.listeners.smtp import SmtpListener
from gateway.mail.envelope import Envelope
from gateway.mail.message import Message
from gateway.smtp.settings import Networks
from gateway.verdict import Disposition, Judge, Stage, Verdict
from tests.smtp.downstream import CLOSE, FakeConnection, FakeDownstream

ACCEPT = Verdict(disposition=Disposition.ACCEPT, rule="test")
TIMEOUT_S = 10.0


@dataclass(slots=True, kw_only=True)
class Config:
    """The `[inbound]` section, small enough to run into its limits."""

    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),)
    downstream: tuple[str, int] = ("127.0.0.1", 1)
    xclient: bool = False
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_message_bytes: int = 50_000_000
    max_recipients: int = 100
    max_errors: int = 20
    max_sessions: int = 100
    max_sessions_per_client: int = 50
    max_bytes_in_flight: int = 100_000_000
    spool_threshold_bytes: int = 1_000_000
    command_timeout_s: float = 60
    data_timeout_s: float = 60
    downstream_timeout_s: float = 60
    downstream_data_timeout_s: float = 60
    downstream_idle_connections: int = 10
    proxy_protocol_from: Networks = ()
    xclient_from: Networks = ()
    trusted_networks: Networks = ()
    bare_line_end: Literal["reject", "normalize"] = "reject"


@dataclass(slots=True)
class FakeJudge:
    """Says the same to everything, when it is let."""

    verdict: Verdict = ACCEPT
    fault: Exception | None = None
    may_answer: asyncio.Event | None = None
    seen: list[tuple[Envelope, int]] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    async def screen(self, stage: Stage, envelope: Envelope) -> Verdict | None:
        return None

    async def judge(self, envelope: Envelope, message: Message) -> Verdict:
        self.seen.append((envelope, len(message)))
        self.kinds.append(type(message.raw).__name__)
        if self.may_answer:
            await self.may_answer.wait()
        if self.fault:
            raise self.fault
        return self.verdict


class DownstreamProtocol(asyncio.Protocol):
    """`FakeDownstream` on a socket."""

    def __init__(self, server: FakeDownstream) -> None:
        self._server = server
        self._connection: FakeConnection | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's is one
        self._connection = self._server.connect()
        self._say(self._connection.greeting())

    def data_received(self, data: bytes) -> None:
        assert self._connection
        self._say(self._connection.receive(data))

    def _say(self, answer: bytes) -> None:
        assert self._transport
        self._transport.write(answer.removesuffix(CLOSE))
        if answer.endswith(CLOSE):
            self._transport.close()

    def close(self) -> None:
        assert self._transport
        self._transport.close()


@dataclass(slots=True)
class Client:
    """Types commands and reads replies."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), TIMEOUT_S)

    async def reply(self) -> str:
        """One whole reply, its lines joined by a blank; empty where the connection is closed instead."""
        texts = []
        while True:
            line = await asyncio.wait_for(self.reader.readline(), TIMEOUT_S)
            if not line:
                return ""
            texts.append(line.decode("ascii").rstrip("\r\n"))
            if texts[-1][3:4] == " ":
                return f"{texts[0][:3]} {' '.join(text[4:] for text in texts)}"

    async def codes(self, count: int) -> list[str]:
        return [(await self.reply())[:3] for _ in range(count)]

    async def ask(self, line: str) -> str:
        await self.send(line.encode() + b"\r\n")
        return await self.reply()

    async def begin(self) -> None:
        """Up to 354."""
        assert (await self.reply()).startswith("220")
        await self.send(b"EHLO client.example\r\n")
        assert (await self.reply()).startswith("250")
        await self.begin_message()

    async def begin_message(self) -> None:
        await self.send(b"MAIL FROM:<a@sender.example>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n")
        assert await self.codes(3) == ["250", "250", "354"]

    async def is_closed(self) -> bool:
        try:
            return await asyncio.wait_for(self.reader.read(1), TIMEOUT_S) == b""
        except ConnectionError:
            return True

    def close(self) -> None:
        self.writer.close()


@dataclass(slots=True)
class Bed:
    """The listener, what is behind it, and clients in front of it."""

    listener: SmtpListener
    downstream: FakeDownstream
    judge: FakeJudge
    clients: list[Client] = field(default_factory=list)
    protocols: list[DownstreamProtocol] = field(default_factory=list)

    @property
    def port(self) -> int:
        return self.listener.addresses[0].port

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]


@asynccontextmanager
async def open_bed(
    config: Config | None = None,
    *,
    downstream: FakeDownstream | None = None,
    judge: FakeJudge | None = None,
    observer: SmtpObserver | None = None,
) -> AsyncIterator[Bed]:
    config = config or Config()
    downstream = downstream or FakeDownstream()
    judge = judge or FakeJudge()
    protocols: list[DownstreamProtocol] = []

    def accept() -> DownstreamProtocol:
        protocols.append(DownstreamProtocol(downstream))
        return protocols[-1]

    server = None
    if config.downstream[1] == 1:
        server = await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)
        config.downstream = server.sockets[0].getsockname()[:2]
    listener = make_listener(config, judge, observer or NoObserver())
    await listener.start()
    bed = Bed(listener, downstream, judge, protocols=protocols)
    try:
        yield bed
    finally:
        for client in bed.clients:
            client.close()
        listener.close()
        if server:
            server.close()
        await settle(lambda: not listener._sessions)


def make_listener(config: Config, judge: Judge, observer: SmtpObserver) -> SmtpListener:
    return SmtpListener(
        config,
        hostname="mx.example.net",
        local_domains=("example.net", ".sub.example.net"),
        judge=judge,
        observer=observer,
    )


async def settle(condition: Callable[[], bool]) -> None:
    """Wait until something that no event tells of is so."""
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - the caller chose this for want of an event
            await asyncio.sleep(0.005)
