"""Our own MTA-STS policy for those who deliver to us (RFC 8461 §3.3): one text, under `mta-sts.` and each domain of ours.

It is open to the whole internet, so the HTTPS door serves this and nothing else, and each connection gets one short life: a
policy is fetched in one request, and whoever is slow, on purpose or not, may come again.
"""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, cast

import structlog
from aiohttp import web

from gateway.listeners.http import MAX_HEADER_BYTES, SHUTDOWN_S, aiohttp_log, plain_errors, set_headers
from gateway.listeners.tls import make_server_context
from gateway.ops.config import MtaStsSettings
from gateway.smtp.relay import LocalDomains
from gateway.tlspolicy.mta_sts.own import WELL_KNOWN_PATH, policy_domain
from gateway.tlspolicy.mta_sts.policy import Policy

if TYPE_CHECKING:
    import ssl

LIFETIME_S: Final = 20.0
"""Handshake, request and answer together; RFC 8461 §3.3 advises senders to give up after a minute."""
HANDSHAKE_S: Final = 10.0
KEEP_ALIVE_S: Final = 5.0
MAX_CONNECTIONS: Final = 200
MAX_CONNECTIONS_PER_CLIENT: Final = 20
BACKLOG: Final = 128
PAUSE_S: Final = 1.0
"""How long nobody is let in after the system had no place for one more."""

_log: Final = structlog.get_logger()


class PolicyPage:
    """Answers for the policy's well-known path, on whichever server it is mounted.

    Args:
        policy: ours.
        local_domains: the domains that have it; `.example.net` is all below it.
    """

    def __init__(self, policy: Policy, local_domains: Sequence[str]) -> None:
        self._body = str(policy).encode("ascii")
        self._domains = LocalDomains(local_domains)

    def mount(self, application: web.Application) -> None:
        """Serve it there."""
        application.router.add_get(WELL_KNOWN_PATH, self._show)

    async def _show(self, request: web.Request) -> web.Response:
        domain = policy_domain(_host(request))
        if domain is None or domain not in self._domains:
            raise web.HTTPNotFound
        # RFC 8461 §3.2: text/plain, and nothing beside it that a reader could stumble over.
        return web.Response(body=self._body, headers={"Content-Type": "text/plain"})


def _host(request: web.Request) -> str:
    """Whom the client asked for, in lower case, without a port: the target's own host, else the Host field (RFC 9112 §3.2).

    Raises:
        HTTPBadRequest: there are several Host fields, which two servers could read in two ways.
    """
    fields = request.headers.getall("Host", [])
    if len(fields) > 1:
        raise web.HTTPBadRequest
    named = fields[0] if fields else ""
    # Of an absolute-form target the Host field does not count (RFC 9112 §3.2.2).
    host = request.host if "://" in request.raw_path else named
    return host.partition(":")[0].strip().removesuffix(".").lower()


class PolicyHostListener:
    """The HTTPS server of `[mta_sts] listen`.

    Connections are accepted one by one, and not by asyncio's server: a handshake costs us much and the client nothing, so that
    a client must be counted before it begins.

    Args:
        settings: where to listen, and the certificate.
        page: what it serves.
        lifetime_s: how long a connection may last.
    """

    def __init__(self, settings: MtaStsSettings, page: PolicyPage, *, lifetime_s: float = LIFETIME_S) -> None:
        self._settings = settings
        self._page = page
        self._lifetime_s = lifetime_s
        self._tls: ssl.SSLContext | None = None
        self._runner: web.AppRunner | None = None
        self._sockets: list[socket.socket] = []
        self._doormen: list[asyncio.Task[None]] = []
        self._clients: dict[asyncio.Task[None], str] = {}

    async def start(self, *, reuse_port: bool = False) -> None:
        """Read the certificate and listen.

        Args:
            reuse_port: other processes listen there, too; the kernel shares connections out between them.

        Raises:
            OSError: an address cannot be had, or the certificate cannot be read.
        """
        self.reload_tls()
        application = web.Application(middlewares=[plain_errors], client_max_size=1)
        application.on_response_prepare.append(set_headers)
        self._page.mount(application)
        self._runner = web.AppRunner(
            application,
            access_log=None,
            logger=aiohttp_log,
            handle_signals=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        await self._runner.setup()
        try:
            self._sockets += [_listen(*where, reuse_port=reuse_port) for where in self._settings.listen or ()]
        except OSError:
            await self.close()
            raise
        loop = asyncio.get_running_loop()
        self._doormen = [loop.create_task(self._accept(sock)) for sock in self._sockets]

    def reload_tls(self) -> None:
        """Read certificate and key again; connections that are open keep theirs.

        Raises:
            OSError: they cannot be read or do not fit; what was there before stays in force.
        """
        self.prepare_tls()()

    def prepare_tls(self) -> Callable[[], None]:
        """Read them; what comes back puts them in force.

        Raises:
            OSError: as above.
        """
        certificate, key = self._settings.tls_certificate, self._settings.tls_key
        if certificate is None or key is None:
            raise AssertionError("the config lets nobody listen without a certificate")
        context = make_server_context(certificate, key)
        context.set_alpn_protocols(["http/1.1"])

        def put_in_force() -> None:
            self._tls = context

        return put_in_force

    async def close(self) -> None:
        """Stop, letting an answer under way be finished."""
        await _end(self._doormen)
        for sock in self._sockets:
            sock.close()
        self._sockets.clear()
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()
        await _end(list(self._clients))

    @property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """Where it listens; nowhere before `start` and after `close`."""
        return [sock.getsockname()[:2] for sock in self._sockets]

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, peer = await loop.sock_accept(listening)
            except OSError as error:  # out of file descriptors, above all
                _log.warning("policy-host.accept-failed", error=error.strerror or str(error))
                await asyncio.sleep(PAUSE_S)
                continue
            client = str(peer[0])
            clients = list(self._clients.values())
            if len(clients) >= MAX_CONNECTIONS or clients.count(client) >= MAX_CONNECTIONS_PER_CLIENT:
                sock.close()
                continue
            task = loop.create_task(self._serve(sock))
            self._clients[task] = client
            task.add_done_callback(self._clients.pop)

    async def _serve(self, sock: socket.socket) -> None:
        """One connection, from its handshake to its end or ours."""
        if self._runner is None or (make_http := self._runner.server) is None:  # it is being closed
            sock.close()
            return
        connection = _Connection(make_http())
        try:
            async with asyncio.timeout(self._lifetime_s):
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: connection, sock, ssl=self._tls, ssl_handshake_timeout=HANDSHAKE_S
                )
                await connection.over.wait()
        except (OSError, TimeoutError):  # scanners, clients that do not like the certificate, slow ones
            pass
        finally:
            connection.abort()


def _listen(host: str, port: int, *, reuse_port: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.create_server((host, port), family=family, backlog=BACKLOG, reuse_port=reuse_port)
    sock.settimeout(0)
    return sock


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _Connection(asyncio.Protocol):
    """aiohttp's protocol, and word of when it is over."""

    def __init__(self, http: asyncio.Protocol) -> None:
        self.over: Final = asyncio.Event()
        self._http = http
        self._transport: asyncio.Transport | None = None

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one without saying so
        self._http.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._http.data_received(data)

    def eof_received(self) -> bool | None:
        return self._http.eof_received()

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._http.connection_lost(exc)
        self.over.set()
