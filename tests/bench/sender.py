"""Sends one prepared message many times by SMTP: `python -m tests.bench.sender '<Load as JSON>'`.

Its own process, and no more than is needed: MAIL, RCPT and DATA go in one write (RFC 2920), the message in a second, and
replies are counted by their lines.
"""

import asyncio
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from tests.bench.load import Load, Sent
from tests.bench.mail import HELO, RECIPIENT, SENDER

_ENVELOPE = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{RECIPIENT}>\r\nDATA\r\n".encode()


class _Session(asyncio.Protocol):
    """One connection. `steps` are what is still to be said, each with the replies to await before it."""

    def __init__(self, content: bytes, messages: int, done: "asyncio.Future[int]") -> None:
        self._done = done
        self._content = content
        self._left = messages
        self._accepted = 0
        self._missing = 1
        self._next: Callable[[], None] = self._say_ehlo
        self._tail = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's are not asyncio's by descent

    def data_received(self, data: bytes) -> None:
        lines = (self._tail + data).split(b"\r\n")
        self._tail = lines.pop()
        for line in lines:
            if line[3:4] == b"-":
                continue
            if line[:1] not in (b"2", b"3"):
                self._fail(f"refused: {line!r}")
                return
            self._missing -= 1
        if not self._missing:
            self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(f"closed after {self._accepted} messages: {exc}"))

    def _say(self, what: bytes, replies: int, then: Callable[[], None]) -> None:
        self._missing, self._next = replies, then
        assert self._transport is not None
        self._transport.write(what)

    def _say_ehlo(self) -> None:
        self._say(f"EHLO {HELO}\r\n".encode(), 1, self._say_envelope)

    def _say_envelope(self) -> None:
        self._say(_ENVELOPE, 3, self._say_content)

    def _say_content(self) -> None:
        self._say(self._content, 1, self._count)

    def _count(self) -> None:
        self._accepted += 1
        self._left -= 1
        if self._left:
            self._say_envelope()
        else:
            self._say(b"QUIT\r\n", 1, self._end)

    def _end(self) -> None:
        self._done.set_result(self._accepted)
        assert self._transport is not None
        self._transport.close()

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError(why))
        assert self._transport is not None
        self._transport.abort()


def dot_stuffed(raw: bytes) -> bytes:
    """The content as it goes over the wire (RFC 5321 §4.5.2), its final dot included."""
    stuffed = raw.replace(b"\r\n.", b"\r\n..")
    return (b"." if stuffed.startswith(b".") else b"") + stuffed + b".\r\n"


async def send(load: Load, raw: bytes) -> Sent:
    """Send all of it, each connection taking the next session as soon as it is free."""
    host, _, port = load.address.partition(":")
    content = dot_stuffed(raw)
    loop = asyncio.get_running_loop()
    waiting = [load.per_session] * (load.messages // load.per_session)

    async def work() -> int:
        accepted = 0
        while waiting:
            count = waiting.pop()
            done: asyncio.Future[int] = loop.create_future()
            await loop.create_connection(partial(_Session, content, count, done), host, int(port))
            accepted += await done
        return accepted

    started, cpu_started = time.perf_counter(), time.process_time()
    accepted = sum(await asyncio.gather(*(work() for _ in range(load.connections))))
    return Sent(
        accepted=accepted,
        seconds=time.perf_counter() - started,
        cpu_seconds=time.process_time() - cpu_started,
    )


if __name__ == "__main__":
    given = Load.from_arguments()
    uvloop.run(send(given, Path(given.message_file).read_bytes())).report()
