"""A gateway with every door open, a world around it, and a Prometheus that watches: all real, all on high ports of loopback.

`Watched.live_through` makes the events of a bad day, so that every number that there can be is there.
"""

import asyncio
import json
import os
import shutil
import signal
import smtplib
import socket
import ssl
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from gateway.postfix.netstring import encode
from tests.auth.dkim.signing import rsa_pem
from tests.cli.test_serve import PATIENCE_S, Served, write_pair
from tests.cli.test_serve_workers import workers_of
from tests.corpus import FOLDER, TRUSTED_IP, load_cases
from tests.live.doors import free_port, hand_in
from tests.live.internet import Internet, Server, World, internet_on
from tests.live.network import host_network
from tests.live.outbound_scenarios import mx, policy, sts, tlsa
from tests.live.remote_servers import Page
from tests.milter.raw_client import Mail, RawClient
from tests.postfix.datagrams import datagram, sts_policy

SCRAPE_S: Final = 1
_WORKERS: Final = 2
_LOST_NAMES: Final = (b"\x04slow\x07example", b"\x04dead\x07example")
_OWN: Final = b"From: alice@bed.test\r\nTo: bob@example.org\r\nSubject: hello\r\n\r\nhello\r\n"
_PRETENDED: Final = _OWN.replace(b"Subject: hello", b"Subject: false")

_CONFIG: Final = """
authserv_id = "mx.example.net"
local_domains = ["example.net", "bed.test"]
workers = {workers}
[dns]
servers = ["127.0.0.1:{dns}"]
timeout_s = 0.5
[http]
listen = "127.0.0.1:{http}"
[inbound]
listen = ["127.0.0.1:{inbound}"]
downstream = "127.0.0.1:{downstream}"
tls_certificate = "cert.pem"
tls_key = "key.pem"
xclient_from = ["127.0.0.1"]
trusted_networks = ["{trusted}"]
[submission]
listen = ["127.0.0.1:{submission}"]
downstream = "127.0.0.1:{downstream}"
tls_certificate = "cert.pem"
tls_key = "key.pem"
login_domain = "bed.test"
auth_delay_s = 0.05
[milter]
listen = "unix:{folder}/milter.sock"
[outbound]
listen = ["127.0.0.1:{outbound}"]
clients = ["127.0.0.1"]
remote_port = {smtp}
own_addresses = ["127.0.0.1"]
connect_timeout_s = 2
[outbound_tls]
ca_file = "{ca_file}"
policy_port = {https}
fetch_timeout_s = 2
[tls_policy]
listen = "unix:{folder}/tls-policy.sock"
tlsrpt_socket = "unix:{folder}/tlsrpt.sock"
[arc]
trusted_sealers = ["lists.example", "slow.example"]
seal_domain = "bed.test"
seal_selector = "one"
seal_key = "dkim.pem"
[[signing]]
domain = "bed.test"
selector = "one"
key = "dkim.pem"
[keys]
directory = "{folder}/keys"
[store]
url = "sqlite:///{folder}/gateway.db"
[policy]
shadow = "strict"
rules = """

_RULES: Final = """
based_on = "default"
[[rule]]
id = "nobody-writes-to-the-archive"
why = "It takes mail from us only."
stage = "rcpt"
when = { recipient = "archive@example.net" }
action = "reject"
match = [{ recipient = "archive@example.net" }]
skip = [{ recipient = "bob@example.net" }]
"""


def _example_zone() -> str:
    """The corpus' own world, without what knot cannot play: lost answers, and other zones' names."""
    lines = [
        line
        for name in ("world.zone", "keys.zone")
        for line in (FOLDER / name).read_text().splitlines()
        if not line.startswith("$") and "in-addr.arpa" not in line
    ]
    return "\n".join(lines).replace("{", "{{").replace("}", "}}")


_ENFORCED: Final = ("sts.test", "stripped.test", "wrong.test")
_ZONES: Final = {
    "example": _example_zone(),
    "bed.test": '_dmarc TXT "v=DMARC1; p=reject"\n',
    "dane.test": mx(Server.GOOD) + tlsa(Server.GOOD, "3 1 1"),
    "sts.test": mx(Server.GOOD) + sts(),
    "stripped.test": mx(Server.PLAIN) + sts(),
    "wrong.test": mx(Server.WRONG_NAME) + sts(),
    "unfetched-1.test": mx(Server.GOOD) + sts(),
    "unfetched-2.test": mx(Server.GOOD) + sts(),
    "plain.test": mx(Server.PLAIN),
    "busy.test": mx(Server.BUSY),
    "null.test": "@ MX 0 .\n",
    "bogus.test": mx(Server.GOOD),
}
_DESTINATIONS: Final = tuple(name for name in _ZONES if name not in {"example", "bed.test"})


class _Downstream:
    """The mail server behind: it knows no `nobody`, and has enough of `closing`."""

    async def handle_MAIL(  # noqa: N802 - aiosmtpd's; likewise below
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address.startswith("closing@"):
            return "421 4.3.2 shutting down"
        envelope.mail_from, envelope.mail_options = address, options
        return "250 2.1.0 ok"

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address.startswith("nobody@"):
            return "550 5.1.1 no such user"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 ok"

    async def handle_DATA(self, _server: SMTP, _session: Session, _envelope: Envelope) -> str:  # noqa: N802
        return "250 2.0.0 taken"


def _authenticate(
    _server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, login: object
) -> AuthResult:
    assert isinstance(login, LoginPassword)
    return AuthResult(success=login.password == b"secret", handled=False)


class _LossyResolver(asyncio.DatagramProtocol):
    """In front of a resolver: questions for some names are lost on the way."""

    def __init__(self, resolver: tuple[str, int]) -> None:
        self._resolver = resolver
        self._asked: dict[int, tuple[bytes, tuple[str, int]]] = {}
        self._count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.DatagramTransport = transport  # type: ignore[assignment]  # it is one

    def close(self) -> None:
        self._transport.close()

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        if address == self._resolver:
            identifier, asker = self._asked.pop(struct.unpack(">H", data[:2])[0])
            self._transport.sendto(identifier + data[2:], asker)
        elif not any(name in data.lower() for name in _LOST_NAMES):
            self._count = (self._count + 1) % 65_536
            self._asked[self._count] = data[:2], address
            self._transport.sendto(struct.pack(">H", self._count) + data[2:], self._resolver)


class Prometheus:
    """Debian's, with its data in a directory of its own."""

    def __init__(self, folder: Path, target: str, rules: Sequence[Path]) -> None:
        self.port = free_port()
        folder.mkdir()
        config = {
            "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [{"job_name": "gateway", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address=127.0.0.1:{self.port}",
                    "--enable-feature=exemplar-storage",
                ],
                stderr=log,
                stdout=log,
            )

    def ask(self, path: str, **parameters: str) -> Any:
        """What its API answers under `data`."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            return json.load(answer)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return found

    def wait_for_scrapes(self, count: int) -> None:
        """Wait until it has seen the gateway so many times more."""

        def seen() -> float:
            with suppress(OSError):
                for found in self.query('sum(count_over_time(up{job="gateway"}[1h]))'):
                    return float(found["value"][1])
            return 0

        wanted = seen() + count
        deadline = time.monotonic() + PATIENCE_S
        while seen() < wanted:
            assert self._process.poll() is None, self._log.read_text()
            assert time.monotonic() < deadline, self._log.read_text()
            time.sleep(0.1)

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@dataclass(frozen=True, slots=True, kw_only=True)
class Watched:
    """The gateway, its doors, and who watches it."""

    folder: Path
    gateway: Served
    prometheus: Prometheus
    submission_port: int
    outbound_port: int

    def live_through(self) -> None:
        """A bad day: twice, because a rate needs a before and an after."""
        for round_ in (1, 2):
            self._mail([name for name in _DESTINATIONS if not name.startswith("unfetched")])
            self._relay([f"unfetched-{round_}.test"])  # asked once, and then not again for minutes
            self.prometheus.wait_for_scrapes(2)
        good = self.gateway.config.read_text()
        self._reload(good.replace('rules = "rules.toml"', 'rules = "monitor"'), "config.reloaded")
        for _ in range(2):
            self._corpus()
            self.prometheus.wait_for_scrapes(2)
        self._reload(f"{good}nonsense = 1\n", "config.refused")
        self.prometheus.wait_for_scrapes(2)
        os.kill(workers_of(self.gateway)["worker-1"], signal.SIGKILL)
        self.gateway.wait_for("worker.ready", _WORKERS + 2)
        self.prometheus.wait_for_scrapes(3)

    def _reload(self, config: str, event: str) -> None:
        already = sum(one["event"] == event for one in self.gateway.events())
        self.gateway.config.write_text(config)
        self.gateway.process.send_signal(signal.SIGHUP)
        self.gateway.wait_for(event, already + 1)

    def _mail(self, destinations: Sequence[str]) -> None:
        with ThreadPoolExecutor(8) as pool:
            done = [pool.submit(act) for act in (self._corpus, self._rudeness, self._milter, self._submit)]
            done += [pool.submit(act, destinations) for act in (self._relay, self._postfix)]
            for one in done:
                one.result()

    def _corpus(self) -> None:
        def send(case: Any) -> None:
            hand_in(
                self.gateway.smtp_port, ip=case.ip, helo=case.helo, mail_from=case.mail_from, raw=case.raw
            )

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(send, load_cases()))

    def _rudeness(self) -> None:
        for sender, recipient in (
            ("x@evil.example", "archive@example.net"),
            ("x@evil.example", "nobody@example.net"),
            ("closing@evil.example", "bob@example.net"),
            ("x@evil.example", "bob@example.net"),
        ):
            hand_in(
                self.gateway.smtp_port,
                ip="203.0.113.66",
                helo="mx.evil.example",
                mail_from=sender,
                raw=_PRETENDED,
                recipient=recipient,
            )
        with smtplib.SMTP("127.0.0.1", self.gateway.smtp_port, timeout=PATIENCE_S) as client:
            client.starttls(context=_trusting())
            client.ehlo("mx.evil.example")
            client.docmd("DATA")

    def _milter(self) -> None:
        with RawClient(self.folder / "milter.sock") as client:
            client.connect()
            client.helo()
            client.send(Mail())
            client.quit()

    def _submit(self) -> None:
        for password in ("wrong", "secret"):
            with smtplib.SMTP("127.0.0.1", self.submission_port, timeout=PATIENCE_S) as client:
                client.starttls(context=_trusting())
                with suppress(smtplib.SMTPAuthenticationError):
                    client.login("alice", password)
                    client.sendmail("alice@bed.test", ["bob@example.org"], _OWN)

    def _relay(self, destinations: Sequence[str]) -> None:
        for domain in destinations:
            with (
                smtplib.SMTP("127.0.0.1", self.outbound_port, timeout=30) as client,
                suppress(smtplib.SMTPException),
            ):
                client.sendmail("alice@bed.test", [f"bob@{domain}"], _OWN)

    def _postfix(self, destinations: Sequence[str]) -> None:
        for domain in destinations:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(PATIENCE_S)
                client.connect(str(self.folder / "tls-policy.sock"))
                client.sendall(encode(f"postfix {domain}".encode()))
                assert client.recv(1_000)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as writer:
            for report in (datagram(sts_policy()), b"no report"):
                writer.sendto(report, str(self.folder / "tlsrpt.sock"))


def _trusting() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # whose certificate it is, is not the question here
    return context


@contextmanager
def open_watched(rules: Sequence[Path]) -> Iterator[Watched]:
    """Start everything; skips where something of Debian's is not installed."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus (Debian: prometheus) is not installed")
    made_of = World(
        zones=_ZONES,
        signed=["dane.test"],
        domains=_DESTINATIONS,
        names=[f"{host}.{domain}" for domain in _DESTINATIONS for host in ("mx", "mta-sts")],
    )
    with ExitStack() as stack:
        network = stack.enter_context(host_network())
        world = stack.enter_context(internet_on(network, made_of))
        for domain in _ENFORCED:
            world.policy_host.pages[domain] = policy("enforce", f"mx.{domain}")
        for domain in ("unfetched-1.test", "unfetched-2.test"):
            world.policy_host.pages[domain] = Page(status="500 Internal Server Error")
        controller = Controller(
            _Downstream(),
            hostname="127.0.0.1",
            port=free_port(),
            authenticator=_authenticate,
            auth_require_tls=False,
        )
        controller.start()
        stack.callback(controller.stop)
        folder = world.directory / "gateway"
        watched = _start(folder, world, int(controller.port), rules, stack)
        watched.prometheus.wait_for_scrapes(2)
        yield watched


def _start(
    folder: Path, world: Internet, downstream_port: int, rules: Sequence[Path], stack: ExitStack
) -> Watched:
    ports = {name: free_port() for name in ("inbound", "submission", "outbound", "http", "dns")}
    folder.mkdir()
    write_pair(folder)
    (folder / "dkim.pem").write_bytes(rsa_pem())
    (folder / "dkim.pem").chmod(0o600)
    (folder / "rules.toml").write_text(_RULES)
    (folder / "keys").mkdir(mode=0o700)
    config = folder / "gateway.toml"
    text = _CONFIG.format(
        workers=_WORKERS,
        downstream=downstream_port,
        trusted=TRUSTED_IP,
        folder=folder,
        smtp=world.network.smtp_port,
        https=world.network.https_port,
        ca_file=world.authority.ca_file,
        **ports,
    )
    config.write_text(f'{text}"rules.toml"\n')
    new_key = ["keys", "new", "bed.test", "--algorithm", "ed25519", "--config", str(config)]
    subprocess.run([sys.executable, "-m", "gateway", *new_key], check=True, stdout=subprocess.DEVNULL)
    resolver = _LossyResolver(("127.0.0.1", world.network.dns_port))
    world.crew.run(_listen(resolver, ports["dns"]))
    stack.callback(world.crew.loop.call_soon_threadsafe, resolver.close)
    gateway = Served(config, ports["inbound"], ports["http"])
    stack.callback(_end, gateway)
    gateway.wait_for("worker.ready", _WORKERS + 1)
    prometheus = Prometheus(folder / "prometheus", f"127.0.0.1:{ports['http']}", rules)
    stack.callback(prometheus.stop)
    return Watched(
        folder=folder,
        gateway=gateway,
        prometheus=prometheus,
        submission_port=ports["submission"],
        outbound_port=ports["outbound"],
    )


async def _listen(resolver: _LossyResolver, port: int) -> None:
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: resolver, ("127.0.0.1", port))


def _end(gateway: Served) -> None:
    if gateway.process.poll() is None:
        gateway.stop()
