"""What the guard counts: `python -m tests.guard.workload LIBRARY`, below callgrind.

Two parts, each warmed up first: `Engine.judge` on a signed 5 KB message with every check good and all answers in memory, and
`ProxySession` with a client's pipelined message in and a fake downstream's answers back, without sockets.
"""

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from gateway.dns.zone import ZoneResolver
from gateway.engine import Engine
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Envelope, Listener, Recipient, Session
from gateway.mail.message import Message
from gateway.policy import load_rules
from gateway.verdict import Disposition
from tests.smtp.bench import Bench

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


def judging(loop: asyncio.AbstractEventLoop) -> Callable[[], None]:
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

    def judge() -> None:
        verdict = loop.run_until_complete(engine.judge(envelope, Message(_RAW)))
        assert verdict.disposition is Disposition.ACCEPT
        assert "dmarc=pass" in verdict.edits.prepend[0].value

    return judge


class WholeAnswers(Bench):
    """The driver of the protocol's tests, but downstream's answers come as a server writes them: in one piece."""

    def _hear(self, answer: bytes) -> None:
        self.perform(self.core.downstream_received(answer))


def proxying() -> Callable[[], None]:
    bench = WholeAnswers()
    bench.send(b"EHLO mail.bench.example\r\n")
    envelope = b"MAIL FROM:<ann@bench.example>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
    content = _RAW.replace(b"\r\n.", b"\r\n..") + b".\r\n"

    def proxy() -> None:
        heard = bench.send(envelope) + bench.send(content)
        assert [line[:3] for line in heard.splitlines()] == [b"250", b"250", b"354", b"250"], heard
        for kept in (bench.judged, bench.told, bench.spools, bench.downstream.messages):
            kept.clear()

    return proxy


if __name__ == "__main__":
    switch = Switch(sys.argv[1] if len(sys.argv) > 1 else None)
    with asyncio.Runner() as runner:
        switch.count("judge", judging(runner.get_loop()))
    switch.count("proxy", proxying())
