"""The servers of a test's internet that no real program would play: a policy host that lies, mail servers that misbehave.

All of them run in one event loop in a thread of its own, so that a test may be plain and blocking.
"""

import asyncio
import re
import ssl
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from tests.live.certificates import Authority, Certificate
from tests.live.network import Network

_T = TypeVar("_T")
_Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

_POLICY_PATH: Final = "/.well-known/mta-sts.txt"  # RFC 8461 §3.3


@dataclass(slots=True)
class Crew:
    """The loop and what listens in it."""

    network: Network
    loop: asyncio.AbstractEventLoop
    _servers: list[asyncio.Server] = field(default_factory=list)

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(30)

    def serve(
        self, address: str, port: int, talk: _Talk, tls: ssl.SSLContext | None = None
    ) -> asyncio.Server:
        """Listen, and hold each conversation by `talk`; a peer that goes away ends it."""

        async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await talk(reader, writer)
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass  # the peer is gone, or the crew is dismissed
            finally:
                writer.close()

        listening = self.network.listen(address, port)
        server = self.run(asyncio.start_server(hold, sock=listening, ssl=tls))
        self._servers.append(server)
        return server

    def dismiss(self, server: asyncio.Server) -> None:
        """From now on its port refuses."""

        async def close() -> None:
            server.close()

        self.run(close())


@contextmanager
def crew(network: Network) -> Iterator[Crew]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="remote servers")
    thread.start()
    members = Crew(network, loop)
    try:
        yield members
    finally:
        for server in members._servers:
            members.dismiss(server)
        members.run(_end_conversations())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _end_conversations() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)  # transports close in the loop's next turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What a policy host answers for one domain, and with which certificate."""

    body: str = ""
    status: str = "200 OK"
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[str, ...] = ()
    certificate: Certificate = Certificate.GOOD
    delay_s: float = 0.0


@dataclass(slots=True)
class PolicyHost:
    """Serves `mta-sts.<domain>` over HTTPS, each as its page says; by name, and each request is counted.

    Attributes:
        pages: by domain; change it while it runs.
        requests: the domains asked for, in order.
    """

    crew: Crew
    authority: Authority
    address: str
    pages: dict[str, Page] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    _server: asyncio.Server | None = None

    def start(self) -> None:
        contexts = {kind: self.authority.server_context(kind) for kind in Certificate}

        def choose(connection: ssl.SSLObject, name: str | None, _default: ssl.SSLContext) -> None:
            page = self.pages.get((name or "").removeprefix("mta-sts."))
            connection.context = contexts[page.certificate if page else Certificate.GOOD]

        front = self.authority.server_context(Certificate.GOOD)
        front.sni_callback = choose
        self._server = self.crew.serve(self.address, self.crew.network.https_port, self._answer, front)

    def stop(self) -> None:
        if self._server is not None:
            self.crew.dismiss(self._server)
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request, *fields = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        hosts = [line.partition(":")[2].strip() for line in fields if line.lower().startswith("host:")]
        domain = hosts[0].partition(":")[0].removeprefix("mta-sts.") if hosts else ""
        page = self.pages.get(domain)
        self.requests.append(domain)
        if page is None or request.split()[1] != _POLICY_PATH:
            page = Page(status="404 Not Found", body="no such page\r\n")
        await asyncio.sleep(page.delay_s)  # slowness is what is played here
        body = page.body.encode()
        head = [
            f"HTTP/1.1 {page.status}",
            f"Content-Type: {page.content_type}",
            f"Content-Length: {len(body)}",
            "Connection: close",
            *page.headers,
        ]
        writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await writer.drain()


async def busy(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A mail server that is too busy to greet (RFC 5321 §3.8)."""
    writer.write(b"421 4.3.2 busy, try again later\r\n")
    await writer.drain()


@dataclass(slots=True)
class InjectingServer:
    """What a man in the middle makes of a mail server: a reply in clear text, right behind the one to STARTTLS.

    A client that reads on after the handshake takes it for the answer to its next command, and from there on is one behind.

    Attributes:
        commands: what clients said under TLS; nothing, where they saw it.
        recipients: whose mail it took.
    """

    tls: ssl.SSLContext
    commands: list[str] = field(default_factory=list)
    recipients: set[str] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 injected ESMTP\r\n")
        while (command := (await reader.readline()).upper()) and not command.startswith(b"STARTTLS"):
            writer.write(
                b"250-injected\r\n250 STARTTLS\r\n" if command.startswith(b"EHLO") else b"250 ok\r\n"
            )
        if not command:
            return
        writer.write(b"220 2.0.0 go ahead\r\n250 2.0.0 injected\r\n")
        await writer.start_tls(self.tls)
        recipients: list[str] = []
        while command := await reader.readline():
            self.commands.append(command.decode().strip())
            if to := re.match(rb"RCPT TO:<(.*)>", command, re.IGNORECASE):
                recipients.append(to[1].decode())
            if command.upper().startswith(b"DATA"):
                writer.write(b"354 go ahead\r\n")
                await reader.readuntil(b"\r\n.\r\n")
                self.recipients.update(recipients)
            writer.write(b"250 2.0.0 ok\r\n")


@dataclass(slots=True)
class Greylist:
    """A Postfix policy service (SMTPD_POLICY_README): the first attempt of a recipient is put off, later ones are not.

    Attributes:
        seen: recipients that have been put off.
    """

    seen: set[str] = field(default_factory=set)

    async def talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            request = (await reader.readuntil(b"\n\n")).decode()
            recipient = dict(line.split("=", 1) for line in request.split("\n") if "=" in line)["recipient"]
            action = "dunno" if recipient in self.seen else "450 4.7.1 greylisted, try again later"
            self.seen.add(recipient)
            writer.write(f"action={action}\n\n".encode())
            await writer.drain()
