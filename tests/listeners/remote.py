"""The relay between real sockets: our mail server's client in front, the world's mail servers, as rude as they like, behind."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_network
from pathlib import Path
from typing import Literal

from gateway.dns.zone import ZoneResolver
from gateway.listeners.observer import NoObserver
from gateway.listeners.relay import Outcome, RelayListener, WayOut
from gateway.listeners.remote.tls import make_client_contexts
from gateway.mail.envelope import Tls
from gateway.smtp.client import DownstreamFailure
from gateway.smtp.settings import Networks
from gateway.tlspolicy.model import (
    Decision,
    Demand,
    HostPolicy,
    MxHost,
    NoRoute,
    Route,
    StsView,
    TlsLevel,
    TlsProblem,
    TlsSession,
)
from tests.listeners.proxy import Client, FakeJudge, settle
from tests.smtp.downstream import CLOSE, FakeConnection, FakeDownstream

LOOPBACK = (ip_network("127.0.0.0/8"),)
MESSAGE = b"Subject: x\r\n\r\n..text\r\n.\r\n"


@dataclass(slots=True, kw_only=True)
class RelayBedConfig:
    """The `[outbound]` section, small enough to run into its limits."""

    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),)
    clients: Networks = LOOPBACK
    dsn: bool = True
    ehlo_name: str | None = "out.example.net"
    own_names: Sequence[str] = ()
    own_addresses: Networks = ()
    source_ipv4: IPv4Address | None = None
    source_ipv6: IPv6Address | None = None
    remote_port: int = 0
    max_connections: int = 100
    max_connections_per_destination: int = 10
    idle_connection_s: float = 15.0
    max_hosts: int = 5
    connect_timeout_s: float = 2.0
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    max_message_bytes: int = 50_000_000
    max_recipients: int = 100
    max_errors: int = 20
    max_sessions: int = 100
    max_sessions_per_client: int = 50
    max_bytes_in_flight: int = 100_000_000
    spool_threshold_bytes: int = 1_000_000
    command_timeout_s: float = 60
    data_timeout_s: float = 60
    downstream_timeout_s: float = 60
    downstream_data_timeout_s: float = 60
    bare_line_end: Literal["reject", "normalize"] = "reject"


class RemoteProtocol(asyncio.Protocol):
    """`FakeDownstream` on a socket, with STARTTLS where it has a certificate."""

    def __init__(self, server: "RemoteServer") -> None:
        self._server = server
        self._connection: FakeConnection | None = None
        self._transport: asyncio.Transport | None = None
        self._upgrade: asyncio.Task[None] | None = None
        self._early: bytes | None = None
        self.is_lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # a stream's is one
        self._connection = self._server.mail.connect()
        self._say(self._connection.greeting())

    def data_received(self, data: bytes) -> None:
        assert self._connection
        if self._server.hangs_up and data.startswith(b"\x16"):
            self.close()
            return
        if self._early is not None:  # within TLS, before we know that the handshake is over
            self._early += data
            return
        answer = self._connection.receive(data)
        self._say(answer)
        if data == b"STARTTLS\r\n" and answer.startswith(b"220") and self._server.context:
            self._early = b""
            self._upgrade = asyncio.get_running_loop().create_task(self._shake_hands(self._server.context))

    async def _shake_hands(self, context: ssl.SSLContext) -> None:
        assert self._transport
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._transport, self, context, server_side=True
            )
        except OSError:
            return
        assert secured
        self._transport = secured
        ssl_object = secured.get_extra_info("ssl_object")
        self._server.versions.append(ssl_object.version())
        early, self._early = self._early or b"", None
        if early:
            self.data_received(early)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True

    def say(self, words: bytes) -> None:
        """Unasked."""
        if not self.is_lost:
            self._say(words)

    def _say(self, answer: bytes) -> None:
        assert self._transport
        self._transport.write(answer.removesuffix(CLOSE))
        if answer.endswith(CLOSE):
            self._transport.close()

    def close(self) -> None:
        assert self._transport
        self._transport.close()


@dataclass(slots=True)
class RemoteServer:
    """One mail server of the world.

    Attributes:
        mail: how it behaves.
        context: its certificate; without one it offers no STARTTLS.
        names: the server names it was asked for (SNI).
        versions: of each TLS session.
        hangs_up: at the first word of the handshake.
    """

    mail: FakeDownstream = field(default_factory=FakeDownstream)
    context: ssl.SSLContext | None = None
    names: list[str | None] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)
    hangs_up: bool = False
    protocols: list[RemoteProtocol] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.context:
            self.mail.keywords += ("STARTTLS",)
            self.mail.at.setdefault(("STARTTLS", 0), b"220 2.0.0 go on\r\n")
            self.context.sni_callback = lambda _object, name, _context: self.names.append(name)

    def accept(self) -> RemoteProtocol:
        self.protocols.append(RemoteProtocol(self))
        return self.protocols[-1]


@dataclass(slots=True)
class FakeDecider:
    """Says what it was told: hosts by domain; any other domain does not exist."""

    hosts: Mapping[str, Sequence[HostPolicy]]
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    secure: bool = False
    sts: StsView = field(default_factory=StsView)

    async def decide(self, domain: str) -> Decision:
        if domain in self.decisions:
            return self.decisions[domain]
        hosts = tuple(self.hosts.get(domain, ()))
        route: Route | NoRoute = NoRoute(domain=domain, problem=TlsProblem.NO_DOMAIN, temporary=False)
        if hosts:
            route = Route(domain=domain, hosts=tuple(each.host for each in hosts), secure=self.secure)
        return Decision(domain=domain, route=route, hosts=hosts, level=TlsLevel.MAY, sts=self.sts)


class Watcher(NoObserver):
    """Remembers what the relay counts."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        self.sessions: list[tuple[Demand, str | None, TlsProblem | None, DownstreamFailure | None]] = []

    def relay_outcome(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def relay_session(
        self, demand: Demand, tls: Tls | None, problem: TlsProblem | None, failure: DownstreamFailure | None
    ) -> None:
        self.sessions.append((demand, tls.version if tls else None, problem, failure))


@dataclass(slots=True)
class RelayBed:
    """The relay, who stands behind it, and clients in front of it."""

    listener: RelayListener
    judge: FakeJudge
    watcher: Watcher
    reports: list[TlsSession]
    clients: list[Client] = field(default_factory=list)

    async def connect(self) -> Client:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.listener.addresses[0].port)
        self.clients.append(Client(reader, writer))
        return self.clients[-1]

    async def greeted(self) -> Client:
        client = await self.connect()
        assert (await client.reply()).startswith("220")
        assert (await client.ask("EHLO mail.example.net")).startswith("250")
        return client

    async def send(
        self, *recipients: str, message: bytes = MESSAGE, sender: str = "FROM:<a@example.net>"
    ) -> list[str]:
        """One message on a connection of its own: the replies from MAIL on, up to the first refusal."""
        client = await self.greeted()
        heard = [await client.ask(f"MAIL {sender}")]
        for recipient in recipients:
            if heard[-1].startswith("2"):
                heard.append(await client.ask(f"RCPT TO:<{recipient}>"))
        if heard[-1].startswith("2"):
            heard.append(await client.ask("DATA"))
        if heard[-1].startswith("3"):
            await client.send(message)
            heard.append(await client.reply())
        await client.send(b"QUIT\r\n")
        client.close()
        return heard


def policy(name: str, preference: int = 10, **changes: object) -> HostPolicy:
    values: dict[str, object] = {"demand": Demand.NONE, "server_name": name}
    return HostPolicy(host=MxHost(preference, name), **(values | changes))  # type: ignore[arg-type]  # by name


@asynccontextmanager
async def open_relay(
    servers: Mapping[str, RemoteServer],
    decider: FakeDecider,
    config: RelayBedConfig | None = None,
    *,
    judge: FakeJudge | None = None,
    ca_file: Path | None = None,
) -> AsyncIterator[RelayBed]:
    """The relay and a world of servers by address; each host's address is its name's in `ZONE`."""
    config = config or RelayBedConfig()
    loop = asyncio.get_running_loop()
    bound: list[asyncio.Server] = []
    for address, server in servers.items():
        bound.append(await loop.create_server(server.accept, address, config.remote_port))
        config.remote_port = bound[0].sockets[0].getsockname()[1]
    watcher, reports = Watcher(), list[TlsSession]()
    judge = judge or FakeJudge()
    listener = RelayListener(
        config,
        hostname="gateway.example.net",
        way_out=WayOut(
            decider=decider,
            resolver=ZONE,
            contexts=make_client_contexts(ca_file),
            report=reports.append,
        ),
        judge=judge,
        observer=watcher,
    )
    await listener.start()
    bed = RelayBed(listener, judge, watcher, reports)
    try:
        yield bed
    finally:
        for client in bed.clients:
            client.close()
        listener.close()
        for each in bound:
            each.close()
        await settle(lambda: not listener._sessions and not listener.remote._open)
        protocols = [protocol for server in servers.values() for protocol in server.protocols]
        for protocol in protocols:
            protocol.close()
        await settle(lambda: all(protocol.is_lost for protocol in protocols))


def _zone() -> ZoneResolver:
    hosts = "".join(f"mx{number}.example A 127.0.0.{number}\n" for number in range(1, 10))
    return ZoneResolver.from_text(
        f"{hosts}both.example A 127.0.0.1\nboth.example AAAA ::1\nmapped.example AAAA ::ffff:127.0.0.1\n$TROUBLE trouble.example A servfail\n$TROUBLE trouble.example AAAA servfail\n"
    )


ZONE = _zone()
