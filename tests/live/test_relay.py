"""The relay between real Postfixes: ours hands in, others take; and a gateway that is killed at every stage (promises 1 and 3)."""

import asyncio
import re
import smtplib
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trustme
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.live.doors import Inbox, free_port
from tests.live.postfix import PostfixBed, open_directory, wait_until
from tests.live.test_kill import anonymous_kb

pytestmark = pytest.mark.live

CONFIG = """\
authserv_id = "gateway.example.net"
[dns]
zone_file = "zone.txt"
[outbound]
listen = ["127.0.0.1:{port}"]
clients = ["127.0.0.1"]
own_addresses = []
remote_port = {remote_port}
{more}
[outbound_tls]
mta_sts = false
dane = false
{tls}
"""

SERVICE = Path(__file__).parents[2] / "deploy/postfix/relay.cf"

# The queue is run every second, so that a test need not wait for five minutes.
OURS = {
    "mynetworks": "127.0.0.0/8",
    "smtpd_relay_restrictions": "permit_mynetworks, reject",
    "smtpd_recipient_restrictions": "permit_mynetworks, reject",
    "queue_run_delay": "1s",
    "minimal_backoff_time": "1s",
    "maximal_backoff_time": "1s",
}


@dataclass(slots=True)
class Gateway:
    """A gateway with nothing but the relay, in a process of its own."""

    directory: Path
    port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None
    _runs: int = 0

    def configure(self, zone: str, remote_port: int, *, more: str = "", tls: str = "") -> None:
        (self.directory / "zone.txt").write_text(zone)
        (self.directory / "gateway.toml").write_text(
            CONFIG.format(port=self.port, remote_port=remote_port, more=more, tls=tls)
        )

    def start(self) -> None:
        self._runs += 1
        log = self.directory / f"gateway-{self._runs}.log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(self.directory / "gateway.toml")],
                stderr=output,
            )
        wait_until(
            lambda: b"listener.ready" in log.read_bytes(), "the gateway", timeout_s=20, explain=self.log
        )

    def log(self) -> str:
        return "".join(path.read_text() for path in sorted(self.directory.glob("gateway-*.log")))

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()


@dataclass(slots=True)
class Bed:
    """Our Postfix, and the gateway behind it."""

    gateway: Gateway
    postfix: PostfixBed

    def send(self, *recipients: str, content: bytes = b"Subject: x\r\n\r\nhi\r\n") -> None:
        with smtplib.SMTP("127.0.0.1", self.postfix.port) as client:
            client.sendmail("ann@bed.test", recipients, content)

    def wait_until_sent(self, count: int = 1) -> None:
        flushed = 0

        def is_sent() -> bool:
            # What Postfix was about to try again while its delivery agent had it still, it puts aside for minutes.
            nonlocal flushed
            log = self.postfix.log()
            if log.count("skipped, still being delivered") > flushed:
                flushed += 1
                self.postfix.flush()
            return log.count("status=sent") >= count

        wait_until(
            is_sent,
            f"{count} deliveries",
            timeout_s=30,
            explain=lambda: self.postfix.log() + self.gateway.log(),
        )


def shipped_parameters() -> dict[str, str]:
    """The main.cf lines that the shipped file asks for."""
    return dict(re.findall(r"(?m)^#   (\w+) = (.+)$", SERVICE.read_text()))


@contextmanager
def open_bed(
    zone: str, remote_port: int, *, more: str = "", tls: str = "", ours: Mapping[str, str] | None = None
) -> Iterator[Bed]:
    with open_directory() as directory:
        gateway = Gateway(directory)
        gateway.configure(zone, remote_port, more=more, tls=tls)
        gateway.start()
        try:
            postfix = PostfixBed.start(
                directory / "ours",
                services=SERVICE.read_text(),
                extra=OURS
                | shipped_parameters()
                | {"relayhost": f"[127.0.0.1]:{gateway.port}"}
                | dict(ours or {}),
            )
            try:
                yield Bed(gateway, postfix)
            finally:
                postfix.stop()
        finally:
            gateway.kill()


@contextmanager
def open_world(*inboxes: Inbox) -> Iterator[int]:
    """Foreign mail servers at 127.0.0.2 and on; their port."""
    port = free_port()
    with_addresses = [
        Controller(inbox, hostname=f"127.0.0.{number}", port=port, enable_SMTPUTF8=True)
        for number, inbox in enumerate(inboxes, 2)
    ]
    for controller in with_addresses:
        controller.start()
    try:
        yield port
    finally:
        for controller in with_addresses:
            controller.stop()


def domain(name: str, *addresses: str) -> str:
    """A domain whose mail servers have these addresses, in this order."""
    return "".join(
        f"{name} MX {10 * at} mx{at}.{name}\nmx{at}.{name} A {address}\n"
        for at, address in enumerate(addresses, 1)
    )


THREE = domain("one.test", "127.0.0.2") + domain("two.test", "127.0.0.3") + domain("three.test", "127.0.0.4")
EVERYBODY = ("a@one.test", "b@two.test", "c@three.test", "d@one.test")


def test_one_message_to_three_domains_arrives_everywhere_at_once() -> None:
    inboxes = [Inbox(), Inbox(), Inbox()]
    with open_world(*inboxes) as port, open_bed(THREE, port) as bed:
        bed.send(*EVERYBODY)
        bed.wait_until_sent(4)
        assert [len(inbox.messages) for inbox in inboxes] == [2, 1, 1]
        assert "status=deferred" not in bed.postfix.log()


def test_without_the_recipient_limit_the_other_domains_wait_and_are_not_lost() -> None:
    """Why docs/relay.md asks for it: Postfix has only one queue for a relayhost, and defers who hears 452."""
    inboxes = [Inbox(), Inbox(), Inbox()]
    with (
        open_world(*inboxes) as port,
        open_bed(THREE, port, ours={"gateway_destination_recipient_limit": "50"}) as bed,
    ):
        bed.send(*EVERYBODY)
        bed.wait_until_sent(4)
        assert [len(inbox.messages) for inbox in inboxes] == [1, 1, 1]
        assert "452 4.5.3 One recipient domain at a time" in bed.postfix.log()


def test_routes_that_do_not_exist_are_told_to_the_sender_and_others_wait() -> None:
    zone = (
        domain("up.test", "127.0.0.2")
        + domain("down.test", "127.0.0.9")
        + "null.test MX 0 .\n$TROUBLE trouble.test MX servfail\n"
    )
    with open_world(Inbox()) as port, open_bed(zone, port) as bed:
        for name in ("null", "absent", "down", "trouble"):
            bed.send(f"bob@{name}.test")
        bed.postfix.wait_for_log(r"to=<bob@null.test>.*dsn=5\.1\.10, status=bounced.*556 5\.1\.10")
        bed.postfix.wait_for_log(r"to=<bob@absent.test>.*dsn=5\.1\.2, status=bounced")
        bed.postfix.wait_for_log(r"to=<bob@down.test>.*dsn=4\.4\.1, status=deferred.*127\.0\.0\.9")
        bed.postfix.wait_for_log(r"to=<bob@trouble.test>.*dsn=4\.4\.3, status=deferred")


class Greylist(Inbox):
    """Says 450 to the first attempt."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if not self.seen:
            self.seen = True
            return "450 4.2.0 Greylisted, come back"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"


def test_a_greylisted_message_waits_in_our_queue_and_is_delivered_then() -> None:
    inbox = Greylist()
    with open_world(inbox) as port, open_bed(domain("grey.test", "127.0.0.2"), port) as bed:
        bed.send("bob@grey.test")
        bed.postfix.wait_for_log(r"status=deferred.*450 4\.2\.0 Greylisted, come back \(in reply to RCPT")
        bed.wait_until_sent()
        assert len(inbox.messages) == 1


def test_the_second_mail_server_takes_what_the_first_cannot() -> None:
    inbox = Inbox()
    with open_world(inbox) as port, open_bed(domain("two.test", "127.0.0.9", "127.0.0.2"), port) as bed:
        bed.send("bob@two.test")
        bed.wait_until_sent()
        assert "status=deferred" not in bed.postfix.log()


# Postfix on the other side


@contextmanager
def remote_postfix(certificate: trustme.LeafCert | None) -> Iterator[PostfixBed]:
    with open_directory() as directory:
        extra = {}
        if certificate:
            pem = directory / "server.pem"
            certificate.private_key_and_cert_chain_pem.write_to_path(pem)
            pem.chmod(0o644)
            extra = {
                "smtpd_tls_security_level": "may",
                "smtpd_tls_chain_files": str(pem),
                "smtpd_tls_loglevel": "1",
            }
        remote = PostfixBed.start(
            directory / "theirs", local_domains=("their.test",), extra=extra | {"mydestination": ""}
        )
        try:
            yield remote
        finally:
            remote.stop()


@pytest.fixture
def authority(tmp_path: Path) -> trustme.CA:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    return authority


def test_to_a_real_postfix_over_tls_whose_certificate_is_checked(
    authority: trustme.CA, tmp_path: Path
) -> None:
    tls = f'ca_file = "{tmp_path}/ca.pem"\noverrides = {{ "their.test" = "secure" }}'
    with (
        remote_postfix(authority.issue_cert("mx1.their.test")) as remote,
        open_bed(domain("their.test", "127.0.0.1"), remote.port, tls=tls) as bed,
    ):
        content = "Subject: ünïcode\r\n\r\n.dots\r\n..\r\ncafé\r\n".encode()
        bed.send("alice@their.test", content=content)
        delivered = remote.wait_for_message("alice", timeout_s=20)
        assert delivered.endswith("\n\n.dots\n..\ncafé\n".encode())
        assert b"with ESMTPS" in delivered or b"using TLSv1.3" in delivered
        assert "relay.delivered" in bed.gateway.log()
        assert '"tls":"TLSv1.3"' in bed.gateway.log().replace(" ", "")


@pytest.mark.parametrize("name", ["wrong-name", "stranger", "none"])
def test_a_certificate_that_proves_nothing_keeps_the_message_here(
    authority: trustme.CA, tmp_path: Path, name: str
) -> None:
    tls = f'ca_file = "{tmp_path}/ca.pem"\noverrides = {{ "their.test" = "secure" }}'
    certificate = None
    if name != "none":
        signer = trustme.CA() if name == "stranger" else authority
        certificate = signer.issue_cert("other.test" if name == "wrong-name" else "mx1.their.test")
    with (
        remote_postfix(certificate) as remote,
        open_bed(domain("their.test", "127.0.0.1"), remote.port, tls=tls) as bed,
    ):
        bed.send("alice@their.test")
        bed.postfix.wait_for_log(r"dsn=4\.7\.5, status=deferred")
        assert not remote.messages("alice")
        assert "status=bounced" not in bed.postfix.log()


def test_a_recipient_that_a_real_postfix_refuses_is_told_in_its_words() -> None:
    with remote_postfix(None) as remote, open_bed(domain("their.test", "127.0.0.1"), remote.port) as bed:
        bed.send("nobody@their.test")
        bed.postfix.wait_for_log(
            r"dsn=5\.1\.1, status=bounced.*550 5\.1\.1 <nobody@their\.test>: Recipient address rejected"
        )


# Killed


class Stopping(Inbox):
    """Stops at one stage until it is let go on."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage
        self.reached = threading.Event()
        self.may_go_on = threading.Event()

    async def _stop_at(self, stage: str) -> None:
        if stage == self._stage and not self.may_go_on.is_set():
            self.reached.set()
            await asyncio.to_thread(self.may_go_on.wait, 30)

    async def handle_EHLO(  # noqa: N802
        self, _server: SMTP, session: Session, _envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        session.host_name = hostname
        await self._stop_at("ehlo")
        return responses

    async def handle_MAIL(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        await self._stop_at("mail")
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Ok"

    async def handle_RCPT(  # noqa: N802
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        await self._stop_at("rcpt")
        envelope.rcpt_tos.append(address)
        envelope.rcpt_options.extend(options)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        await self._stop_at("content")
        answer = await super().handle_DATA(server, session, envelope)
        await self._stop_at("kept")
        return answer


@pytest.mark.parametrize("stage", ["ehlo", "mail", "rcpt", "content", "kept"])
def test_killed_at_every_stage_the_message_is_delivered_in_the_end_and_never_bounced(stage: str) -> None:
    """Our Postfix keeps it until somebody has said 250. Killed when it is kept and not yet answered, it arrives twice."""
    inbox = Stopping(stage)
    with open_world(inbox) as port, open_bed(domain("kill.test", "127.0.0.2"), port) as bed:
        bed.send("bob@kill.test")
        assert inbox.reached.wait(20)
        bed.gateway.kill()
        bed.postfix.wait_for_log(r"status=deferred")
        assert "status=sent" not in bed.postfix.log()
        before = len(inbox.messages)
        inbox.may_go_on.set()
        bed.gateway.start()
        bed.wait_until_sent()
        assert "status=bounced" not in bed.postfix.log()
        with suppress(AssertionError):  # what the killed one had handed over may still be on its way in
            wait_until(lambda: len(inbox.messages) > before, "the message", timeout_s=5)
        assert len(inbox.messages) in ({2} if stage == "kept" else {1, 2} if stage == "content" else {1})


def test_told_to_stop_it_finishes_the_delivery_that_is_under_way() -> None:
    inbox = Stopping("kept")
    with open_world(inbox) as port, open_bed(domain("stop.test", "127.0.0.2"), port) as bed:
        bed.send("bob@stop.test")
        assert inbox.reached.wait(20)
        assert bed.gateway._process
        bed.gateway._process.terminate()
        wait_until(lambda: "gateway.draining" in bed.gateway.log(), "the gateway to drain")
        inbox.may_go_on.set()
        bed.wait_until_sent()
        assert bed.gateway._process.wait(20) == 0
        assert len(inbox.messages) == 1


def test_a_large_message_costs_no_memory_of_its_size_over_tls_either(
    authority: trustme.CA, tmp_path: Path
) -> None:
    """40 MB to a real Postfix: the gateway reads its file as fast as the remote server takes it."""
    block = b"a line of text that is as long as lines of text are\r\n" * 20_000
    tls = f'ca_file = "{tmp_path}/ca.pem"\noverrides = {{ "their.test" = "secure" }}'
    with (
        remote_postfix(authority.issue_cert("mx1.their.test")) as remote,
        open_bed(domain("their.test", "127.0.0.1"), remote.port, tls=tls) as bed,
    ):
        process = bed.gateway._process
        assert process
        before = peak = anonymous_kb(process.pid)
        done = threading.Event()

        def watch() -> None:
            nonlocal peak
            while not done.wait(0.01):
                peak = max(peak, anonymous_kb(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        with smtplib.SMTP("127.0.0.1", bed.gateway.port, timeout=60) as client:
            client.sendmail("ann@bed.test", "alice@their.test", b"Subject: large\r\n\r\n" + block * 40)
        done.set()
        watcher.join()
        assert len(remote.wait_for_message("alice")) > 39 * len(block)
        assert peak - before < 20_000, f"{peak - before} KB"
