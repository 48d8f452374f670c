"""What the guard counts: `python -m tests.guard.workload LIBRARY`, below callgrind.

Two parts, each warmed up first: `Engine.judge` on a signed 5 KB message with every check good and all answers in memory, and the
SMTP listener with its log and metrics, a client's pipelined message in and a mail server's answers back: everything but sockets.
"""

import asyncio
import ctypes
import gc
import os
import socket
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from gateway.dns.zone import ZoneResolver
from gateway.engine import Engine
from gateway.listeners.downstream import Borrower, DownstreamConnection, DownstreamPool
from gateway.listeners.smtp import SmtpServer
from gateway.mail.address import parse_mailbox
from gateway.mail.edits import Edits, NewField
from gateway.mail.envelope import Envelope, Listener, Recipient, Session
from gateway.mail.message import Message
from gateway.ops.config import InboundSettings, LogSettings
from gateway.ops.health import Health
from gateway.ops.log import LogOutput, set_up_logging
from gateway.policy import load_rules
from gateway.smtp.client import SmtpClient
from gateway.smtp.relay import LocalDomains
from gateway.smtp.settings import ProxySettings
from gateway.verdict import Disposition, Stage, Verdict

MESSAGES: Final = 10
WARM_UP: Final = 3
_HERE: Final = Path(__file__).parent
_RAW: Final = (_HERE / "signed.eml").read_bytes()


class Switch:
    """From where to where instructions are counted; nothing at all without a library."""

    def __init__(self, library: str | None) -> None:
        self._library = ctypes.CDLL(library) if library else None

    def count(self, part: str, work: Callable[[], None]) -> None:
        for _ in range(WARM_UP):
            work()
        gc.collect()
        gc.disable()  # when it runs depends on everything before
        if self._library:
            self._library.count_begin()
        for _ in range(MESSAGES):
            work()
        if self._library:
            self._library.count_end(part.encode())
        gc.enable()


def good_message() -> tuple[Engine, Envelope, bytes]:
    """A signed message that passes every check, and the engine to judge it."""
    engine = Engine(
        ZoneResolver.from_text((_HERE / "zone.txt").read_text()),
        load_rules("default"),
        authserv_id="mx.example.net",
        clock=lambda: 1_800_000_000.0,
    )
    session = Session(
        id="guard",
        listener=Listener.INBOUND,
        client_ip=ip_address("127.0.0.1"),
        helo="mail.bench.example",
        esmtp=True,
    )
    envelope = Envelope(
        id="guard.1",
        session=session,
        mail_from=parse_mailbox("ann@bench.example"),
        recipients=(Recipient(mailbox=parse_mailbox("bob@example.net")),),
    )
    return engine, envelope, _RAW


def judging(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    engine, envelope, raw = good_message()

    def judge() -> None:
        verdict = loop.run_until_complete(engine.judge(envelope, Message(raw)))
        assert verdict.disposition is Disposition.ACCEPT
        assert "dmarc=pass" in verdict.edits.prepend[0].value

    return judge


class Wire(asyncio.Transport):
    """A connection that goes nowhere; what is written to it is kept until it is taken."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 2525), "socket": socket.socket(socket.AF_UNIX)})
        self._written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._written.append(bytes(data))

    def take(self) -> bytes:
        written = b"".join(self._written)
        self._written.clear()
        return written

    def is_closing(self) -> bool:
        return False


class EmptyPool(DownstreamPool):
    """Connects to nothing."""

    def __init__(self) -> None:
        super().__init__("127.0.0.1", 26, make_client=lambda: SmtpClient("", xclient=False), max_idle=0)

    def lease(self, _borrower: Borrower, _session: Session, *, fresh: bool) -> None:
        del fresh


class FixedJudge:
    """Says the same of every message, at once."""

    def __init__(self, verdict: Verdict) -> None:
        self._verdict = verdict

    async def judge(self, _envelope: Envelope, _message: Message) -> Verdict:
        return self._verdict

    async def screen(self, _stage: Stage, _envelope: Envelope) -> Verdict | None:
        return None


def proxying(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
    nowhere = Path(os.devnull).open("wb", buffering=0)  # noqa: SIM115 - for as long as the process lives
    set_up_logging(LogSettings(format="json"), LogOutput(stream=nowhere, is_terminal=False, colours=False))
    inbound = InboundSettings.model_validate({"listen": ["127.0.0.1:25"], "downstream": "127.0.0.1:26"})
    stamped = NewField(
        "Authentication-Results", "mx.example.net;\r\n    spf=pass smtp.mailfrom=ann@bench.example"
    )
    verdict = Verdict(disposition=Disposition.ACCEPT, rule="pass", edits=Edits(prepend=(stamped,)))
    pool = EmptyPool()
    listener = SmtpServer(
        inbound,
        proxy=ProxySettings(
            hostname="mx.example.net",
            local_domains=LocalDomains(("example.net",)),
            max_message_bytes=inbound.max_message_bytes,
            max_recipients=inbound.max_recipients,
            max_errors=inbound.max_errors,
        ),
        pool=pool,
        judge=FixedJudge(verdict),
        observer=Health(),
        asks=lambda _stage: False,
    )
    client, downstream = Wire(), Wire()
    session = listener.make_driver()
    server = DownstreamConnection(pool, SmtpClient("mx.example.net", xclient=False), session)

    async def begin() -> None:
        session.connection_made(client)
        session.data_received(b"EHLO mail.bench.example\r\n")
        server.connection_made(downstream)
        server.data_received(b"220 mail.example.net ESMTP\r\n")
        server.data_received(b"250-mail.example.net\r\n250-PIPELINING\r\n250-8BITMIME\r\n250 CHUNKING\r\n")

    loop.run_until_complete(begin())
    assert client.take().startswith(b"220 ")
    downstream.take()
    envelope = b"MAIL FROM:<ann@bench.example>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
    content = _RAW.replace(b"\r\n.", b"\r\n..") + b".\r\n"

    async def one_message() -> None:
        session.data_received(envelope)
        server.data_received(b"250 2.1.0 Ok\r\n250 2.1.5 Ok\r\n")
        session.data_received(content)
        await asyncio.sleep(0)  # the judge's turn
        server.data_received(b"250 2.0.0 Ok: queued as 4f2a9c01b7\r\n")

    def proxy() -> None:
        loop.run_until_complete(one_message())
        heard = client.take()
        assert [line[:3] for line in heard.splitlines()] == [b"250", b"250", b"354", b"250"], heard
        assert len(downstream.take()) > len(_RAW)

    return proxy


if __name__ == "__main__":
    switch = Switch(sys.argv[1] if len(sys.argv) > 1 else None)
    with asyncio.Runner() as runner:
        switch.count("judge", judging(runner.get_loop()))
        switch.count("proxy", proxying(runner.get_loop()))
