"""A socketmap listener in the test's own loop, a decider that says what it is told to, and a client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.listeners.socketmap import SocketmapListener, SocketmapOptions
from gateway.postfix.netstring import Decoder, encode
from gateway.tlspolicy.model import Decision, TlsLevel, TlsSession
from tests.postfix.decisions import decided

PATIENCE_S = 10.0


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until this holds."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - what the listener does inside has no event
            await asyncio.sleep(0)


class FakeDecider:
    """Knows some domains at once; others it must look up, which takes until `release`."""

    def __init__(self, *known: Decision) -> None:
        self.known = {decision.domain: decision for decision in known}
        self.slow: dict[str, asyncio.Future[Decision]] = {}
        self.asked: list[str] = []

    def kept(self, domain: str) -> Decision | None:
        return self.known.get(domain)

    async def decide(self, domain: str) -> Decision:
        self.asked.append(domain)
        decision = await self.slow.setdefault(domain, asyncio.get_running_loop().create_future())
        self.known[domain] = decision
        return decision

    def release(self, domain: str, level: TlsLevel = TlsLevel.ENCRYPT) -> None:
        self.slow[domain].set_result(decided(level, domain=domain))


class Counts:
    def __init__(self) -> None:
        self.answers: list[tuple[str, str]] = []
        self.sessions: list[TlsSession] = []

    def tls_policy_answered(self, level: str, outcome: str) -> None:
        self.answers.append((level, outcome))


class Client:
    """One connection, as Postfix has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self._decoder = Decoder(100_000)

    def send(self, *keys: str) -> None:
        self.writer.write(b"".join(encode(f"postfix {key}".encode()) for key in keys))

    async def reply(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            while (content := self._decoder.next()) is None:
                data = await self.reader.read(65_536)
                assert data, "the connection was closed"
                self._decoder.feed(data)
        return content.decode()

    async def ask(self, key: str) -> str:
        self.send(key)
        return await self.reply()

    async def end(self) -> bytes:
        """All that still comes before the other side closes."""
        async with asyncio.timeout(PATIENCE_S):
            try:
                return await self.reader.read()
            except ConnectionResetError:
                return b""


class Bed:
    """The listener and who may be asked about it."""

    def __init__(self, listener: SocketmapListener, decider: FakeDecider, counts: Counts) -> None:
        self.listener, self.decider, self.counts = listener, decider, counts
        self._clients: list[Client] = []

    async def connect(self) -> Client:
        (where,) = self.listener.addresses
        opened = (
            asyncio.open_unix_connection(where)
            if isinstance(where, Path)
            else asyncio.open_connection(*where)
        )
        client = Client(*await opened)
        self._clients.append(client)
        return client

    async def until_asked(self, count: int) -> None:
        await until(lambda: len(self.decider.asked) >= count)

    def disconnect(self) -> None:
        for client in self._clients:
            client.writer.close()


@asynccontextmanager
async def open_bed(*known: Decision, **options: Any) -> AsyncIterator[Bed]:
    decider, counts = FakeDecider(*known), Counts()
    given = {"listen": ("127.0.0.1", 0), "overrides": {}} | options
    listener = SocketmapListener(
        SocketmapOptions(**given), decider=decider, observer=counts, record=counts.sessions.append
    )
    await listener.start()
    bed = Bed(listener, decider, counts)
    try:
        yield bed
    finally:
        bed.disconnect()
        listener.close()
        await asyncio.sleep(0)
