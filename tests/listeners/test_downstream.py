"""Connections to other mail servers, and servers that do not behave at their end."""

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from gateway.listeners import downstream
from gateway.listeners.downstream import DownstreamConnection
from gateway.smtp.client import SmtpClient


class Owner:
    def __init__(self) -> None:
        self.forgotten = asyncio.Event()

    def forget(self, connection: DownstreamConnection) -> None:
        self.forgotten.set()


async def _say_farewell_to_who_reads_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        owner = Owner()
        connection = DownstreamConnection(owner, SmtpClient("gw.example.net", xclient=False), _Nobody())
        await asyncio.get_running_loop().create_connection(lambda: connection, *server.getsockname())
        connection.borrower = None
        connection.send(b"x" * 32_000_000)
        connection.quit()
        await asyncio.wait_for(owner.forgotten.wait(), 10)


class _Nobody:
    def downstream_connected(self, connection: DownstreamConnection) -> None: ...
    def downstream_data(self, data: bytes) -> None: ...
    def downstream_lost(self, failure: object, detail: str) -> None: ...


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_who_reads_no_more_does_not_keep_the_connection(
    make_loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downstream, "QUIT_S", 0.1)
    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(_say_farewell_to_who_reads_nothing())
