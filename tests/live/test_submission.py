"""Submission with nothing faked: `gateway serve` before Postfix's submission service, which asks Dovecot about every log-in.

Postfix is set up with the very lines of `deploy/postfix/submission.cf`.
"""

import base64
import hashlib
import hmac
import json
import re
import shutil
import signal
import smtplib
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway.auth.dkim import check_dkim
from gateway.auth.results import DkimStatus
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message
from tests.auth.dkim.signing import rsa_pem
from tests.live.doors import free_port
from tests.live.dovecot import DovecotBed
from tests.live.postfix import PostfixBed, open_directory, wait_until

pytestmark = pytest.mark.live

SERVICE = Path(__file__).parents[2] / "deploy/postfix/submission.cf"
PASSWORDS = {"alice": "open sesame", "bob": "secret"}
HELLO = b"From: Alice <alice@bed.test>\r\nTo: bob@bed.test\r\nSubject: hello\r\n\r\n.dot\r\n"

CONFIG = """\
authserv_id = "mx.bed.test"
local_domains = ["bed.test"]
[log]
format = "json"
[dns]
zone_file = "zone.txt"
[submission]
listen = ["127.0.0.1:{starttls}"]
listen_tls = ["127.0.0.1:{tls}"]
downstream = "127.0.0.1:{downstream}"
tls_certificate = "cert.pem"
tls_key = "key.pem"
login_domain = "bed.test"
recipient_delimiter = "+"
senders = {{ alice = ["postmaster@bed.test"] }}
auth_delay_s = 0.05
{more}
[[signing]]
domain = "bed.test"
selector = "one"
key = "dkim.pem"
"""


@dataclass(slots=True)
class World:
    """A gateway, and the Postfix and the Dovecot behind it."""

    folder: Path
    starttls: int
    tls: int
    postfix: PostfixBed
    dovecot: DovecotBed
    process: subprocess.Popen[bytes]
    authority: trustme.CA

    @property
    def context(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        return context

    @contextmanager
    def client(self, *, at_once: bool = True) -> Iterator[smtplib.SMTP]:
        if at_once:
            with smtplib.SMTP_SSL("127.0.0.1", self.tls, timeout=20, context=self.context) as client:
                client.ehlo("laptop.example")
                yield client
        else:
            with smtplib.SMTP("127.0.0.1", self.starttls, timeout=20) as client:
                client.starttls(context=self.context)
                client.ehlo("laptop.example")
                yield client

    def events(self) -> list[dict[str, Any]]:
        text = (self.folder / "log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@contextmanager
def serving(
    folder: Path, postfix: PostfixBed, dovecot: DovecotBed, downstream: int, more: str = ""
) -> Iterator[World]:
    folder.mkdir()
    authority = trustme.CA()
    issued = authority.issue_cert("mx.bed.test", "127.0.0.1")
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "key.pem").write_bytes(issued.private_key_pem.bytes())
    (folder / "dkim.pem").write_bytes(rsa_pem())
    (folder / "zone.txt").write_text("$ORIGIN .\nnothing.test. 60 IN A 192.0.2.1\n")
    starttls, tls = free_port(), free_port()
    config = folder / "gateway.toml"
    config.write_text(CONFIG.format(starttls=starttls, tls=tls, downstream=downstream, more=more))
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(config)], stderr=log
        )
    world = World(folder, starttls, tls, postfix, dovecot, process, authority)
    try:
        wait_until(
            lambda: (
                process.poll() is None
                and sum(event["event"] == "listener.ready" for event in world.events()) == 2
            ),
            "the gateway to listen",
            timeout_s=20,
            explain=(folder / "log").read_text,
        )
        yield world
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(40)


@pytest.fixture(scope="module")
def behind() -> Iterator[tuple[Path, PostfixBed, DovecotBed, int]]:
    with open_directory() as folder:
        port = free_port()
        service = SERVICE.read_text().replace("127.0.0.1:10587 inet n - y ", f"127.0.0.1:{port} inet n - n ")
        assert str(port) in service
        postfix = PostfixBed.start(
            folder / "postfix",
            services=service,
            extra={"smtpd_sender_login_maps": "inline:{ {boss@bed.test=alice} }"},
        )
        try:
            socket = folder / "postfix/queue/private/auth"
            with DovecotBed.running(folder / "dovecot", socket=socket, passwords=PASSWORDS) as dovecot:
                yield folder, postfix, dovecot, port
        finally:
            postfix.stop()


@pytest.fixture(scope="module")
def world(behind: tuple[Path, PostfixBed, DovecotBed, int]) -> Iterator[World]:
    folder, postfix, dovecot, port = behind
    with serving(folder / "gateway", postfix, dovecot, port) as world:
        yield world


def log_in(
    client: smtplib.SMTP, mechanism: str = "PLAIN", user: str = "alice", password: str | None = None
) -> int:
    client.user, client.password = user, password or PASSWORDS[user]
    by = {"PLAIN": client.auth_plain, "LOGIN": client.auth_login, "CRAM-MD5": client.auth_cram_md5}
    return client.auth(mechanism, by[mechanism])[0]  # type: ignore[arg-type]  # typeshed wants overloads


@pytest.mark.parametrize("at_once", [False, True], ids=["starttls", "tls-at-once"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_a_user_sends(world: World, mechanism: str, at_once: bool) -> None:  # noqa: FBT001 - which port
    with world.client(at_once=at_once) as client:
        assert "SCRAM-SHA-256" in client.esmtp_features["auth"].split()
        assert log_in(client, mechanism) == 235
        client.sendmail("alice@bed.test", ["bob@bed.test"], HELLO)
    delivered = world.postfix.wait_for_message("bob")
    assert delivered.endswith(b"\n\n.dot\n")
    assert b"with ESMTPSA id" in delivered


def test_scram_passes_through_whole(world: World) -> None:
    """RFC 7677, by hand: neither the gateway nor anybody else on the way could have learnt the password."""
    with world.client() as client:
        first = "n=alice,r=nonce0123456789"
        code, challenge = client.docmd("AUTH", "SCRAM-SHA-256 " + _b64("n,," + first))
        assert code == 334
        server = base64.b64decode(challenge).decode()
        parts = dict(part.split("=", 1) for part in server.split(","))
        salted = hashlib.pbkdf2_hmac(
            "sha256", PASSWORDS["alice"].encode(), base64.b64decode(parts["s"]), int(parts["i"])
        )
        client_key = hmac.digest(salted, b"Client Key", "sha256")
        last = f"c=biws,r={parts['r']}"
        signature = hmac.digest(
            hashlib.sha256(client_key).digest(), f"{first},{server},{last}".encode(), "sha256"
        )
        proof = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        code, verifier = client.docmd(_b64(f"{last},p={base64.b64encode(proof).decode()}"))
        assert code == 334
        server_key = hmac.digest(salted, b"Server Key", "sha256")
        expected = hmac.digest(server_key, f"{first},{server},{last}".encode(), "sha256")
        assert base64.b64decode(verifier) == b"v=" + base64.b64encode(expected), "and it was the right server"
        assert client.docmd("")[0] == 235
        assert client.mail("alice@bed.test")[0] == 250


@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
def test_a_token_passes_through_however_long_it_is(world: World, mechanism: str) -> None:
    """RFC 7628: longer than Postfix takes a command line; a bad one is answered in JSON first."""
    token = world.dovecot.make_token("alice", padding="x" * 3_000)
    start = "n,a=alice,\x01" if mechanism == "OAUTHBEARER" else "user=alice\x01"
    with world.client() as client:
        bad = f"{start}auth=Bearer {token[:-5]}AAAAA\x01\x01"
        code, challenge = client.docmd("AUTH", f"{mechanism} {_b64(bad)}")
        if code == 334:
            assert b"status" in base64.b64decode(challenge)
            code, _ = client.docmd("AQ==")
        assert code == 535
        somebody_else = f"{start}auth=Bearer {token}\x01\x01".replace("alice", "bob", 1)
        code, _ = client.docmd("AUTH", f"{mechanism} {_b64(somebody_else)}")
        if code == 334:
            code, _ = client.docmd("AQ==")
        assert code == 535, "the name beside the token is not believed"
        assert (
            client.docmd("AUTH", f"{mechanism} {_b64(f'{start}auth=Bearer {token}' + chr(1) * 2)}")[0] == 235
        )
        assert client.mail("alice@bed.test")[0] == 250


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def test_what_was_missing_is_there_and_what_was_blind_is_not(world: World) -> None:
    message = HELLO.replace(
        b"To: bob", b"Bcc: postmaster@bed.test,\r\n hidden@elsewhere.example\r\nBCC: x@y.example\r\nTo: bob"
    )
    with world.client() as client:
        log_in(client)
        client.sendmail("alice@bed.test", ["bob@bed.test", "postmaster@bed.test"], message)
    for user in ("bob", "postmaster"):
        delivered = world.postfix.wait_for_message(user)
        header = delivered.partition(b"\n\n")[0].lower()
        assert b"bcc" not in header
        assert b"hidden" not in header
        assert len(re.findall(rb"(?m)^date: ", header)) == 1
        assert re.search(rb"(?m)^message-id: <\d{14}\.[0-9a-f]+\.1@mx\.bed\.test>", header)
        assert b"authentication-results" not in header
        assert b"alice" not in header.partition(b"from: alice")[0].replace(b"<alice@bed.test>", b""), (
            "the login"
        )
        wire = Message(delivered.replace(b"\n", b"\r\n"))
        (result,) = await check_dkim(wire, published(world), now=time.time())
        assert result.status is DkimStatus.PASS, result


def published(world: World) -> ZoneResolver:
    """Our key, as it would be published."""
    key = load_pem_private_key((world.folder / "dkim.pem").read_bytes(), None).public_key()
    text = base64.b64encode(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    halves = f'"v=DKIM1; k=rsa; p={text[:200]}" "{text[200:]}"'
    return ZoneResolver.from_text(f"one._domainkey.bed.test. 60 IN TXT {halves}\n")


ESPOOFER = {
    "client_a1, several From fields": b"From: <alice@bed.test>\r\nFrom: <postmaster@elsewhere.test>\r\n",
    "client_a1, the other way round": b"From: <bob@bed.test>\r\nFrom: <alice@bed.test>\r\n",
    "client_a2, several addresses": b"From: <alice@bed.test>, <bob@bed.test>\r\nSender: <s@sender.elsewhere.test>\r\n",
    "client_a2, the other way round": b"From: <bob@bed.test>, <alice@bed.test>\r\n",
    "client_a3, a colleague's name": b"From: <bob@bed.test>\r\nSender: <s@sender.elsewhere.test>\r\n",
    "client_a3, with our Sender": b"From: <bob@bed.test>\r\nSender: <alice@bed.test>\r\n",
}


@pytest.mark.parametrize("case", ESPOOFER)
def test_espoofers_client_cases_are_refused(world: World, case: str) -> None:
    """github.com/chenjj/espoofer, client mode: a user of ours who writes as somebody else of our domain."""
    message = ESPOOFER[case] + b"To: <bob@bed.test>\r\nSubject: test\r\n\r\nHi, this is a test message!\r\n"
    with world.client() as client:
        log_in(client)
        with pytest.raises(smtplib.SMTPDataError) as caught:
            client.sendmail("alice@bed.test", ["bob@bed.test"], message)
        assert caught.value.smtp_code == 550
        assert bytes(caught.value.smtp_error).startswith(b"5.7.1 ")  # type: ignore[arg-type]  # bytes, whatever typeshed says
    assert world.postfix.messages("bob") == []


def test_a_reverse_path_of_somebody_else_is_refused_at_once(world: World) -> None:
    with world.client() as client:
        log_in(client)
        code, text = client.mail("bob@bed.test")
        assert (code, text.partition(b" (")[0]) == (550, b"5.7.1 alice may not send as bob@bed.test")
        assert client.mail("alice+shop@bed.test")[0] == 250
        client.rset()
        assert client.mail("postmaster@bed.test")[0] == 250
        client.rset()
        assert client.mail("")[0] == 250, "receipts"


def test_without_a_log_in_nothing_is_taken(world: World) -> None:
    with smtplib.SMTP("127.0.0.1", world.starttls, timeout=20) as client:
        client.ehlo("laptop.example")
        assert not client.has_extn("auth")
        assert client.docmd("AUTH PLAIN " + _b64("\0alice\0open sesame"))[0] == 538
        assert client.mail("alice@bed.test")[0] == 530
    with world.client() as client:
        assert client.mail("alice@bed.test")[0] == 530


def test_swaks_as_a_postmaster_would(world: World) -> None:
    if shutil.which("swaks") is None:
        pytest.skip("no swaks here (Debian packages: swaks, libnet-ssleay-perl)")
    for extra in (["--tls", "--port", str(world.starttls)], ["--tls-on-connect", "--port", str(world.tls)]):
        done = subprocess.run(
            [
                *("swaks", "--server", "127.0.0.1", *extra, "--auth", "LOGIN", "--auth-user", "alice"),
                *("--auth-password", "open sesame", "--from", "alice@bed.test", "--to", "bob@bed.test"),
                *("--header", "Subject: swaks", "--suppress-data"),
            ],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if "TLS not available" in done.stdout + done.stderr:
            pytest.skip("swaks has no TLS here (Debian package: libnet-ssleay-perl)")
        assert done.returncode == 0, done.stdout + done.stderr
        assert b"swaks" in world.postfix.wait_for_message("bob")


def test_a_wrong_password_is_downstreams_to_say_and_then_nobody_is_asked(
    behind: tuple[Path, PostfixBed, DovecotBed, int],
) -> None:
    folder, postfix, dovecot, port = behind
    with serving(folder / "guessed", postfix, dovecot, port, "max_auth_failures = 3") as world:
        asked = len(re.findall("authentication failed", postfix.log()))
        with world.client() as client:
            for _ in range(3):
                with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
                    log_in(client, "PLAIN", "bob", "hunter2")
                assert caught.value.smtp_code == 535
                assert b"authentication failed" in caught.value.smtp_error, "Postfix's own words"
            assert client.docmd("AUTH PLAIN " + _b64("\0bob\0secret"))[0] == 421
            client.close()
        with world.client(at_once=False) as client:
            assert client.docmd("AUTH LOGIN")[0] == 421, "the address, for every login"
            client.close()
        assert len(re.findall("authentication failed", postfix.log())) == asked + 3
        outcomes = [event["outcome"] for event in world.events() if event["event"] == "session.auth"]
        assert outcomes == ["refused", "refused", "refused", "barred", "barred"]
        assert "hunter2" not in (world.folder / "log").read_text()


def test_dovecot_away_is_a_temporary_failure(behind: tuple[Path, PostfixBed, DovecotBed, int]) -> None:
    folder, postfix, dovecot, port = behind
    with serving(folder / "away", postfix, dovecot, port, "max_auth_failures = 1") as world:
        with world.client() as client:
            dovecot.stop()
            try:
                code, _ = client.docmd("AUTH PLAIN " + _b64("\0bob\0secret"))
            finally:
                dovecot.launch()
            assert code in {454, 421}
        with world.client() as client:
            assert log_in(client, "PLAIN", "bob") == 235, "it did not count as a guess"


def test_what_postfix_lets_a_user_say_may_stand_in_from(
    behind: tuple[Path, PostfixBed, DovecotBed, int],
) -> None:
    folder, postfix, dovecot, port = behind
    with (
        serving(folder / "downstream", postfix, dovecot, port, 'from_check = "downstream"') as world,
        world.client() as client,
    ):
        log_in(client)
        boss = HELLO.replace(b"alice@", b"boss@")
        client.sendmail("boss@bed.test", ["bob@bed.test"], boss)
        assert b"From: Alice <boss@bed.test>" in postfix.wait_for_message("bob")
        with pytest.raises(smtplib.SMTPDataError):
            client.sendmail("alice@bed.test", ["bob@bed.test"], boss)


def test_the_client_is_told_to_postfix_or_hidden_from_the_world(
    behind: tuple[Path, PostfixBed, DovecotBed, int], world: World
) -> None:
    folder, postfix, dovecot, port = behind
    with world.client() as client:
        log_in(client)
        client.sendmail("alice@bed.test", ["bob@bed.test"], HELLO)
    assert b"laptop.example" in postfix.wait_for_message("bob")
    with (
        serving(folder / "hidden", postfix, dovecot, port, "hide_client = true") as hiding,
        hiding.client() as client,
    ):
        log_in(client)
        client.sendmail("alice@bed.test", ["bob@bed.test"], HELLO)
    assert b"laptop.example" not in postfix.wait_for_message("bob")


def test_sighup_takes_new_senders_without_losing_a_session(
    behind: tuple[Path, PostfixBed, DovecotBed, int],
) -> None:
    folder, postfix, dovecot, port = behind
    with serving(folder / "reloaded", postfix, dovecot, port) as world, world.client() as client:
        log_in(client)
        assert client.mail("bob@bed.test")[0] == 550
        config = world.folder / "gateway.toml"
        config.write_text(config.read_text().replace('"postmaster@bed.test"', '"bob@bed.test"'))
        world.process.send_signal(signal.SIGHUP)
        wait_until(lambda: any(event["event"] == "config.reloaded" for event in world.events()), "the reload")
        assert client.mail("bob@bed.test")[0] == 250
        client.rset()
        assert client.mail("postmaster@bed.test")[0] == 550


def test_sigterm_in_the_midst_of_a_message(behind: tuple[Path, PostfixBed, DovecotBed, int]) -> None:
    folder, postfix, dovecot, port = behind
    with serving(folder / "stopped", postfix, dovecot, port) as world:
        with world.client() as idle, world.client() as client:
            log_in(idle)
            log_in(client)
            client.mail("alice@bed.test")
            client.rcpt("bob@bed.test")
            assert client.docmd("DATA")[0] == 354
            world.process.send_signal(signal.SIGTERM)
            assert idle.getreply()[0] == 421
            client.send(HELLO.replace(b"\r\n.", b"\r\n..") + b".\r\n")
            assert client.getreply()[0] == 250
            assert client.getreply()[0] == 421
            idle.close()
            client.close()
        assert world.process.wait(20) == 0
    assert b"Subject: hello" in postfix.wait_for_message("bob")
