"""A gateway that dies, or carries a large message: what the client is told, and what it costs (promises 1 and 6)."""

import asyncio
import re
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.corpus import zone_text
from tests.live.doors import Inbox, free_port
from tests.live.postfix import wait_until

CONFIG = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "zone.txt"
[inbound]
listen = ["127.0.0.1:{port}"]
downstream = "127.0.0.1:{downstream}"
"""


class SlowInbox(Inbox):
    """Keeps a message, and says so only when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = threading.Event()
        self.may_answer = threading.Event()
        self.may_answer.set()

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        answer = await super().handle_DATA(server, session, envelope)
        self.kept.set()
        await asyncio.to_thread(self.may_answer.wait)
        return answer


@contextmanager
def gateway(folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], int, SlowInbox]]:
    inbox, port = SlowInbox(), free_port()
    controller = Controller(
        inbox, hostname="127.0.0.1", port=free_port(), data_size_limit=100_000_000, enable_SMTPUTF8=True
    )
    controller.start()
    (folder / "zone.txt").write_text(zone_text())
    (folder / "gateway.toml").write_text(CONFIG.format(port=port, downstream=controller.port))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "gateway.toml")], stderr=log
        )
    try:
        wait_until(lambda: b"listener.ready" in (folder / "log").read_bytes(), "the gateway", timeout_s=20)
        yield process, port, inbox
    finally:
        inbox.may_answer.set()
        process.kill()
        process.wait()
        controller.stop()


def begin(port: int) -> smtplib.SMTP:
    client = smtplib.SMTP("127.0.0.1", port, timeout=30)
    client.ehlo("mx.evil.example")
    assert client.docmd("MAIL", "FROM:<x@evil.example>")[0] == 250
    assert client.docmd("RCPT", "TO:<bob@example.net>")[0] == 250
    assert client.docmd("DATA")[0] == 354
    return client


def test_killed_within_the_content_nothing_is_delivered_and_nothing_was_promised(tmp_path: Path) -> None:
    with gateway(tmp_path) as (process, port, inbox):
        client = begin(port)
        client.send(b"From: <x@evil.example>\r\nSubject: half\r\n\r\nhal")
        process.kill()
        process.wait()
        with suppress(smtplib.SMTPServerDisconnected, OSError):
            client.send(b"f\r\n.\r\n")
        if client.sock is not None:  # else the connection was seen to be gone with the last words
            with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
                client.getreply()
        assert not inbox.messages
        client.close()


def test_killed_before_downstream_has_answered_the_client_hears_no_250(tmp_path: Path) -> None:
    """The message may arrive twice, when the sender tries again; told 250 without an answer, it could be lost."""
    with gateway(tmp_path) as (process, port, inbox):
        inbox.may_answer.clear()
        client = begin(port)
        client.send(b"From: <x@evil.example>\r\nSubject: whole\r\n\r\nwhole\r\n.\r\n")
        assert inbox.kept.wait(20)
        process.kill()
        process.wait()
        with pytest.raises((smtplib.SMTPServerDisconnected, OSError)):
            client.getreply()
        client.close()


def anonymous_kb(pid: int) -> int:
    found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1])


def test_a_large_message_costs_no_memory_of_its_size(tmp_path: Path) -> None:
    """40 MB go through an unlinked file; what the process itself holds grows by far less."""
    block = b"a line of text that is as long as lines of text are\r\n" * 20_000
    with gateway(tmp_path) as (process, port, inbox):
        before = anonymous_kb(process.pid)
        peak, done = before, threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, anonymous_kb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        client = begin(port)
        client.send(b"From: <x@evil.example>\r\nSubject: large\r\n\r\n")
        for _ in range(40):
            client.send(block)
        client.send(b".\r\n")
        code, text = client.getreply()
        done.set()
        watcher.join()
        client.quit()
        assert (code, text) == (250, b"2.0.0 kept")
        assert inbox.messages[0].endswith(block)
        assert len(inbox.messages[0]) > 40 * len(block)
        assert peak - before < 20_000, f"{peak - before} KB"
