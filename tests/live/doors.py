"""The gateway's doors, opened in the test's own loop: an SMTP proxy in front of a downstream, and who talks to it."""

import smtplib
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from gateway.listeners.observer import NoObserver
from gateway.listeners.smtp import SmtpListener
from gateway.ops.config import InboundSettings
from gateway.verdict import Judge
from tests.corpus import AUTHSERV_ID, RECIPIENT


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@asynccontextmanager
async def open_proxy(judge: Judge, downstream_port: int, **settings: Any) -> AsyncIterator[int]:
    """A running proxy that takes XCLIENT from us; its port."""
    inbound = InboundSettings.model_validate(
        {
            "listen": [f"127.0.0.1:{free_port()}"],
            "downstream": f"127.0.0.1:{downstream_port}",
            "xclient_from": ["127.0.0.1"],
            **settings,
        }
    )
    listener = SmtpListener(
        inbound, hostname=AUTHSERV_ID, local_domains=("example.net",), judge=judge, observer=NoObserver()
    )
    await listener.start()
    try:
        yield inbound.listen[0].port
    finally:
        await listener.drain(5.0)
        listener.close()


class Inbox:
    """A foreign downstream (aiosmtpd) that keeps what it accepts, byte for byte."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        assert envelope.original_content is not None
        self.messages.append(envelope.original_content)
        return "250 2.0.0 kept"


@contextmanager
def open_inbox() -> Iterator[tuple[Inbox, int]]:
    inbox = Inbox()
    controller = Controller(inbox, hostname="127.0.0.1", port=free_port(), enable_SMTPUTF8=True)
    controller.start()
    try:
        yield inbox, int(controller.port)
    finally:
        controller.stop()


def hand_in(
    port: int, *, ip: str, helo: str, mail_from: str, raw: bytes, recipient: str = RECIPIENT
) -> tuple[int, str]:
    """Give one message to the proxy as the client `ip`; the reply that ended it."""
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        client.ehlo("balancer.example.net")
        assert client.docmd("XCLIENT", f"ADDR={ip} NAME=[UNAVAILABLE]")[0] == 220
        client.ehlo(helo)
        for command in (f"MAIL FROM:<{mail_from}> BODY=8BITMIME", f"RCPT TO:<{recipient}>", "DATA"):
            code, text = client.docmd(command)
            if code >= 400:
                return code, text.decode()
        stuffed = raw.replace(b"\r\n.", b"\r\n..")
        client.send(stuffed + (b".\r\n" if stuffed.endswith(b"\r\n") else b"\r\n.\r\n"))
        code, text = client.getreply()
        return code, text.decode()
