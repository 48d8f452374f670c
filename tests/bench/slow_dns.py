"""A resolver that is far away: hands each question on, and each answer back after so many milliseconds.

`python -m tests.bench.slow_dns PORT UPSTREAM_PORT MILLISECONDS`; UDP only, each question by a socket of its own.
"""

import asyncio
import sys
from typing import cast

import uvloop


class _Upstream(asyncio.DatagramProtocol):
    """One question on its way."""

    def __init__(self, door: "_Door", question: bytes, client: tuple[str, int]) -> None:
        self._door, self._question, self._client = door, question, client
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)
        self._transport.sendto(self._question)

    def datagram_received(self, data: bytes, addr: object) -> None:
        del addr
        self._door.answer_later(data, self._client)
        if self._transport:
            self._transport.close()


class _Door(asyncio.DatagramProtocol):
    def __init__(self, upstream_port: int, delay_s: float) -> None:
        self._upstream_port, self._delay_s = upstream_port, delay_s
        self._transport: asyncio.DatagramTransport | None = None
        self._tasks: set[asyncio.Task[object]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        task: asyncio.Task[object] = asyncio.get_running_loop().create_task(self._ask(data, addr))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _ask(self, data: bytes, client: tuple[str, int]) -> None:
        await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Upstream(self, data, client), remote_addr=("127.0.0.1", self._upstream_port)
        )

    def answer_later(self, data: bytes, client: tuple[str, int]) -> None:
        assert self._transport is not None
        asyncio.get_running_loop().call_later(self._delay_s, self._transport.sendto, data, client)


async def serve(port: int, upstream_port: int, delay_s: float) -> None:
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: _Door(upstream_port, delay_s), local_addr=("127.0.0.1", port))
    await loop.create_server(asyncio.Protocol, "127.0.0.1", port)  # a sign that we are there
    await asyncio.Event().wait()


if __name__ == "__main__":
    given = [int(word) for word in sys.argv[1:]]
    uvloop.run(serve(given[0], given[1], given[2] / 1_000))
