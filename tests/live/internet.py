"""A small internet for outbound mail: DNS with DNSSEC, mail servers with good and bad certificates, MTA-STS policy hosts.

    zones = {"signed.test": "@ MX 10 mx\\nmx A {good}\\n_{port}._tcp.mx TLSA {good:3 1 1}"}
    made_of = World(zones=zones, signed=["signed.test"], domains=["signed.test"], names=["mx.signed.test"])
    with private_network() as network, internet_on(network, made_of) as world, gateway_in(world, directory) as gateway:
        ...  # what arrives: world.remote.wait_for_message("alice@signed.test")

A zone's text names servers by kind: `{good}` is the address of the mail server with the good certificate, `{good:3 1 1}` the TLSA
data that vouches for it, `{port}` the port of all mail servers. The well-behaved ones are one real Postfix that listens at an
address for each certificate; what it takes lies in its Maildirs. Whoever sends in this internet is a real gateway process
(`gateway_in`) or a real Postfix with the gateway's socketmap (`postfix_in`).
"""

import json
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from tests.live.certificates import Authority, Certificate
from tests.live.dns_bed import DnsBed
from tests.live.network import Network, resolving_by
from tests.live.postfix import PostfixBed, open_directory, wait_until
from tests.live.remote_servers import Crew, Greylist, InjectingServer, PolicyHost, busy, crew

SENDER: Final = "sender@client.test"
RELAY_NAME: Final = "out.client.test"
"""What the gateway calls itself, in its EHLO too."""


class Server(StrEnum):
    """The machines of the world, by what they do."""

    GOOD = "good"
    WRONG_NAME = "wrong_name"
    EXPIRED = "expired"
    SELF_SIGNED = "self_signed"
    PLAIN = "plain"  # STARTTLS is not offered, or stripped
    GREYLISTING = "greylisting"
    BUSY = "busy"  # greets with 421
    INJECTING = "injecting"  # a reply in clear text behind the one to STARTTLS
    NOBODY = "nobody"  # nothing listens
    POLICY_HOST = "policy_host"
    SENDER = "sender"  # whoever asks: a loop

    @property
    def address(self) -> str:
        if self is Server.SENDER:
            return "127.0.0.1"
        return f"127.0.1.{list(Server).index(self) + 1}"


_CERTIFICATES: Final = {
    Server.GOOD: Certificate.GOOD,
    Server.WRONG_NAME: Certificate.WRONG_NAME,
    Server.EXPIRED: Certificate.EXPIRED,
    Server.SELF_SIGNED: Certificate.SELF_SIGNED,
    Server.GREYLISTING: Certificate.GOOD,
}
"""Which machines of the remote Postfix speak TLS, and what they show."""


@dataclass(frozen=True, slots=True)
class _Named:
    """A server in a zone's text: its address, or with a format such as `3 1 1` its TLSA data."""

    server: Server
    authority: Authority

    def __format__(self, tlsa: str) -> str:
        if not tlsa:
            return self.server.address
        usage, selector, matching = map(int, tlsa.split())
        return self.authority.tlsa(_CERTIFICATES[self.server], usage, selector, matching)


@dataclass(frozen=True, slots=True, kw_only=True)
class Internet:
    """All of it, running.

    Attributes:
        directory: of this world alone.
        dns: knot and unbound; `change` its zones through `change_zone`.
        remote: the Postfix behind every mail server that has a certificate.
        policy_host: its pages are the test's to set.
        greylist: who has been put off.
        injecting: what it was told under TLS.
    """

    directory: Path
    network: Network
    dns: DnsBed
    authority: Authority
    crew: Crew
    remote: PostfixBed
    policy_host: PolicyHost
    greylist: Greylist
    injecting: InjectingServer

    def change_zone(self, name: str, text: str) -> None:
        self.dns.change(name, _filled(text, self.network, self.authority))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What an internet is made of.

    Attributes:
        zones: text by name, with servers named by kind.
        signed: which of them are signed.
        domains: those that the remote Postfix takes mail for.
        names: those that certificates bear.
    """

    zones: Mapping[str, str]
    signed: Collection[str] = ()
    domains: Sequence[str] = ()
    names: Sequence[str] = ()


@contextmanager
def internet_on(network: Network, world: World) -> Iterator[Internet]:
    """Start all of it, and end it."""
    with ExitStack() as stack:
        directory = stack.enter_context(open_directory())
        authority = Authority.found(directory, world.names)
        servers = stack.enter_context(crew(network))
        greylist = Greylist()
        greylist_port = network.free_port()
        servers.serve("127.0.0.1", greylist_port, greylist.talk)
        injecting = InjectingServer(authority.server_context(Certificate.GOOD))
        servers.serve(Server.INJECTING.address, network.smtp_port, injecting.talk)
        servers.serve(Server.BUSY.address, network.smtp_port, busy)
        policy_host = PolicyHost(servers, authority, Server.POLICY_HOST.address)
        policy_host.start()
        zones = {name: _filled(text, network, authority) for name, text in world.zones.items()}
        dns = network.within(
            lambda: DnsBed.start(
                directory / "dns", zones, signed=world.signed, resolver_port=network.dns_port
            )
        )
        stack.callback(dns.stop)
        remote = network.within(
            lambda: PostfixBed.start(
                directory / "remote",
                local_domains=tuple(world.domains),
                extra={"smtpd_tls_received_header": "yes", "smtpd_tls_loglevel": "1"},
                services=_remote_services(network, authority, greylist_port),
            )
        )
        stack.callback(remote.stop)
        yield Internet(
            directory=directory,
            network=network,
            dns=dns,
            authority=authority,
            crew=servers,
            remote=remote,
            policy_host=policy_host,
            greylist=greylist,
            injecting=injecting,
        )


def _filled(text: str, network: Network, authority: Authority) -> str:
    return text.format(port=network.smtp_port, **{server: _Named(server, authority) for server in Server})


def _remote_services(network: Network, authority: Authority, greylist_port: int) -> str:
    """One more smtpd of the remote Postfix for each address (master.cf)."""
    lines = [f"{Server.PLAIN.address}:{network.smtp_port} inet n - n - - smtpd"]
    for server, certificate in _CERTIFICATES.items():
        lines += [
            f"{server.address}:{network.smtp_port} inet n - n - - smtpd",
            " -o smtpd_tls_security_level=may",
            f" -o smtpd_tls_chain_files={authority.files[certificate]}",
        ]
        if server is Server.GREYLISTING:
            policy = f"check_policy_service,inet:127.0.0.1:{greylist_port}"
            lines.append(f" -o smtpd_recipient_restrictions=reject_unlisted_recipient,{policy}")
    return "\n".join(lines)


@dataclass(slots=True, kw_only=True)
class Gateway:
    """A gateway process that sends into an internet: the relay and the socketmap are open.

    Attributes:
        directory: its config, store and log.
        relay_port: of [outbound].
        tls_policy_port: of [tls_policy].
    """

    network: Network
    directory: Path
    relay_port: int
    tls_policy_port: int
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it (again, after `stop`: with the store as it was) and wait until its doors are open."""
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(self.directory / "gateway.toml")]
        already = len(self.log())
        with (self.directory / "log").open("ab") as log:
            process = self.network.within(
                lambda: subprocess.Popen(command, stderr=log, stdin=subprocess.DEVNULL)
            )
        self._process = process

        def is_open() -> bool:
            assert process.poll() is None, self.log()
            return "listener.ready" in self.log()[already:]

        try:
            wait_until(is_open, "the gateway", timeout_s=20, explain=self.log)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End it as an operator does, so that what it knows is stored."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the gateway did not end:\n{self.log()}") from None

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else ""

    def events(self) -> list[dict[str, Any]]:
        """What it has logged, in all its lives."""
        return [json.loads(line) for line in self.log().splitlines() if line.startswith("{")]


_GATEWAY_CONFIG: Final = """\
authserv_id = "{name}"
[dns]
servers = ["127.0.0.1:{dns_port}"]
timeout_s = 8
[outbound]
listen = ["127.0.0.1:{relay_port}"]
clients = ["127.0.0.1"]
remote_port = {smtp_port}
connect_timeout_s = 5
idle_connection_s = 0.1
own_addresses = ["127.0.0.1"]
max_sessions_per_client = 500
[outbound_tls]
ca_file = "{ca_file}"
fetch_timeout_s = {fetch_timeout_s}
policy_port = {https_port}
[tls_policy]
listen = "127.0.0.1:{tls_policy_port}"
[store]
url = "sqlite:///{directory}/gateway.db"
[log]
format = "json"
"""
FETCH_TIMEOUT_S: Final = 4.0


@contextmanager
def gateway_in(world: Internet, directory: Path) -> Iterator[Gateway]:
    """A running gateway, with its files in a directory of its own."""
    network = world.network
    gateway = Gateway(
        network=network,
        directory=directory,
        relay_port=network.free_port(),
        tls_policy_port=network.free_port(),
    )
    directory.mkdir()
    (directory / "gateway.toml").write_text(
        _GATEWAY_CONFIG.format(
            name=RELAY_NAME,
            dns_port=network.dns_port,
            smtp_port=network.smtp_port,
            https_port=network.https_port,
            relay_port=gateway.relay_port,
            tls_policy_port=gateway.tls_policy_port,
            ca_file=world.authority.ca_file,
            fetch_timeout_s=FETCH_TIMEOUT_S,
            directory=directory,
        )
    )
    gateway.start()
    try:
        yield gateway
    finally:
        gateway.stop()


@contextmanager
def postfix_in(world: Internet, directory: Path, extra: Mapping[str, str]) -> Iterator[PostfixBed]:
    """A Postfix that delivers into the internet by itself; only in a private network, where its ports are the world's."""
    assert world.network.is_private
    directory.mkdir(exist_ok=True)
    sending = {
        "default_transport": "smtp",
        "smtp_dns_support_level": "dnssec",
        "smtp_host_lookup": "dns",
        "smtp_tls_CAfile": str(world.authority.ca_file),
        "smtp_tls_security_level": "may",
        "smtp_tls_loglevel": "1",
        "smtp_connect_timeout": "8s",
        "smtp_helo_timeout": "10s",
        "myhostname": "client.test",
        **extra,
    }
    prefix = resolving_by(directory)
    sender = world.network.within(
        lambda: PostfixBed.start(
            directory / "postfix", local_domains=("client.test",), extra=sending, prefix=prefix
        )
    )
    try:
        yield sender
    finally:
        sender.stop()
