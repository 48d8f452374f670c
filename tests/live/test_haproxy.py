"""Several gateways behind a real HAProxy: each judges the client that HAProxy names, and nobody else may name one."""

import asyncio
import shutil
import smtplib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Final

import pytest

from tests.listeners.proxy import FakeJudge
from tests.live.doors import free_port, open_inbox, open_proxy
from tests.live.postfix import wait_until

pytestmark = pytest.mark.live

CLIENT: Final = "127.9.9.9"
CONFIG: Final = """\
defaults
    mode tcp
    timeout connect 5s
    timeout client 30s
    timeout server 30s
frontend mail
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    balance roundrobin
{servers}
"""
RAW: Final = b"From: <ann@example.org>\r\nSubject: x\r\n\r\nhi\r\n"


@contextmanager
def open_haproxy(folder: Path, ports: Sequence[int], option: str) -> Iterator[int]:
    haproxy = shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin")
    if haproxy is None:
        pytest.skip("haproxy is not installed (Debian: haproxy)")
    port = free_port()
    servers = "\n".join(f"    server n{number} 127.0.0.1:{one} {option}" for number, one in enumerate(ports))
    config = folder / "haproxy.cfg"
    config.write_text(CONFIG.format(port=port, servers=servers))
    process = subprocess.Popen([haproxy, "-db", "-f", config], stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: answers(port), "HAProxy", timeout_s=10)
        yield port
    finally:
        process.terminate()
        process.wait(10)


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def hand_in(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=20, source_address=(CLIENT, 0)) as client:
        client.sendmail("ann@example.org", ["bob@example.net"], RAW)


def say(port: int, data: bytes, source: str) -> bytes:
    """What a client hears that says this at once, up to the end of the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=10, source_address=(source, 0)) as client:
        client.sendall(data)
        client.shutdown(socket.SHUT_WR)
        heard = b""
        while block := client.recv(4096):
            heard += block
        return heard


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
async def test_each_gateway_judges_the_client_and_not_the_balancer(tmp_path: Path, option: str) -> None:
    judges = FakeJudge(), FakeJudge()
    trusting = {"proxy_protocol_from": ["127.0.0.1"]}
    with open_inbox() as (inbox, downstream):
        async with (
            open_proxy(judges[0], downstream, **trusting) as first,
            open_proxy(judges[1], downstream, **trusting) as second,
        ):
            with open_haproxy(tmp_path, (first, second), option) as port:
                for _ in range(6):
                    await asyncio.to_thread(hand_in, port)
    assert len(inbox.messages) == 6
    assert all(judge.seen for judge in judges), "both have their share"
    seen = {envelope.session.client_ip for judge in judges for envelope, _ in judge.seen}
    assert seen == {ip_address(CLIENT)}


async def test_only_the_balancer_may_name_a_client() -> None:
    judge = FakeJudge()
    named = f"PROXY TCP4 192.0.2.1 192.0.2.2 1 25\r\nEHLO {CLIENT}\r\nQUIT\r\n".encode()
    with open_inbox() as (_, downstream):
        async with open_proxy(judge, downstream, proxy_protocol_from=["127.0.0.1"]) as port:
            stranger = await asyncio.to_thread(say, port, named, CLIENT)
            without = await asyncio.to_thread(say, port, b"EHLO balancer\r\nQUIT\r\n", "127.0.0.1")
    lines = stranger.splitlines()
    assert [line[:3] for line in lines[:2]] == [b"220", b"500"], (
        "the header is a command like any other, and a bad one"
    )
    assert without == b"", "a balancer without its header is not spoken to"
