"""Signed by `gateway serve`, carried by real Postfix, read from the mailbox, verified by strangers: dkimpy and OpenDKIM."""

import re
import shutil
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.mail.message import Message
from tests.auth.dkim.signing import ed25519_key, ed25519_public, rsa_pem, rsa_public
from tests.auth.dkim.test_sign_oracles import SIGNED_MAIL, dkimpy_verdicts
from tests.corpus.make import txt
from tests.live.dns_bed import DnsBed
from tests.live.doors import free_port
from tests.live.network import NetworkUnavailableError, private_network, resolving_by
from tests.live.postfix import PostfixBed, open_directory, wait_until
from tests.live.test_flow import greets

pytestmark = pytest.mark.live

CONFIG: Final = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "zone.txt"
[inbound]
listen = ["127.0.0.1:{inbound}"]
downstream = "127.0.0.1:{downstream}"
trusted_networks = ["127.0.0.1"]
[milter]
listen = "unix:{folder}/milter.sock"
socket_mode = 0o666
trusted_networks = ["127.0.0.1"]
[[signing]]
domain = "example.org"
selector = "rsa"
key = "rsa.pem"
[[signing]]
domain = "example.org"
selector = "ed"
key = "ed.pem"
"""


class World:
    """A gateway with both doors open to our own hosts, a Postfix behind the one and a Postfix before the other."""

    def __init__(self, inbound: int, behind: PostfixBed, before: PostfixBed) -> None:
        self.ways = {"proxy": (inbound, behind), "milter": (before.port, before)}

    def carry(self, way: str, raw: bytes) -> bytes:
        """Hand it in; what arrives, with the line ends that it has on the wire."""
        port, postfix = self.ways[way]
        with smtplib.SMTP("127.0.0.1", port, "client.example.org", timeout=60) as client:
            client.sendmail("joe@example.org", ["bob@example.net"], raw, mail_options=["BODY=8BITMIME"])
        return postfix.wait_for_message("bob", timeout_s=30).replace(b"\n", b"\r\n")


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with open_directory() as folder:
        inbound = free_port()
        behind = PostfixBed.start(folder / "behind", xclient=True, local_domains=("example.net",))
        before = PostfixBed.start(
            folder / "before",
            local_domains=("example.net",),
            milters=(f"unix:{folder}/milter.sock",),
            # Postfix's own defaults: it completes what a client of its own host leaves out, before milters see it.
            # Its own bounces it shows to milters only where it is told to.
            extra={
                "local_header_rewrite_clients": "permit_inet_interfaces",
                "myorigin": "host.example.org",
                "internal_mail_filter_classes": "bounce",
            },
        )
        ed25519_pem = ed25519_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        for name, content in (("rsa.pem", rsa_pem()), ("ed.pem", ed25519_pem), ("zone.txt", b"")):
            (folder / name).write_bytes(content)
            (folder / name).chmod(0o600)
        (folder / "gateway.toml").write_text(
            CONFIG.format(inbound=inbound, downstream=behind.port, folder=folder)
        )
        with (folder / "log").open("wb") as log:
            gateway = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "gateway.toml")],
                stderr=log,
            )
        try:
            log_text = (folder / "log").read_text
            wait_until((folder / "milter.sock").exists, "the milter", timeout_s=20, explain=log_text)
            wait_until(lambda: greets(inbound), "the proxy's greeting", timeout_s=20, explain=log_text)
            yield World(inbound, behind, before)
        finally:
            gateway.terminate()
            assert gateway.wait(30) == 0
            behind.stop()
            before.stop()


@pytest.mark.parametrize("raw", SIGNED_MAIL.values(), ids=SIGNED_MAIL)
@pytest.mark.parametrize("way", ["proxy", "milter"])
def test_both_signatures_arrive_whole(world: World, way: str, raw: bytes) -> None:
    arrived = world.carry(way, raw)
    assert arrived.count(b"DKIM-Signature: v=1;") == 2 + raw.count(b"DKIM-Signature:")
    assert dkimpy_verdicts(arrived, 2) == [True, True]


def test_what_postfix_completes_is_completed_before_it_is_signed(world: World) -> None:
    arrived = world.carry("milter", b"From: root (Cron Daemon)\r\nTo: ann\r\nSubject: cron\r\n\r\nran\r\n")
    for completed in (
        rb"(?m)^From: root@host\.example\.org \(Cron Daemon\)\r$",
        rb"(?m)^To: ann@host\.example\.org\r$",
        rb"(?m)^Date: .*\r$",
        rb"(?m)^Message-Id: .*\r$",
    ):
        assert re.search(completed, arrived), arrived.decode()
    assert dkimpy_verdicts(arrived, 2) == [True, True]
    assert dkimpy_verdicts(b"Date: Fri, 11 Jul 2025 21:00:37 -0700\r\n" + arrived, 1) == [False]


def test_mail_of_a_local_program_is_signed(world: World) -> None:
    _, postfix = world.ways["milter"]
    postfix.submit(
        b"Subject: by hand\nBcc: secret@example.net\n\nlocal\n.\n",
        sender="root@example.org",
        recipient="bob@example.net",
    )
    arrived = postfix.wait_for_message("bob").replace(b"\n", b"\r\n")
    assert b"secret" not in arrived
    assert re.search(rb"(?m)^From: root <root@example\.org>\r$", arrived), arrived.decode()
    assert dkimpy_verdicts(arrived, 2) == [True, True]


def test_a_bounce_is_signed_by_its_from(world: World) -> None:
    _, postfix = world.ways["milter"]
    postfix.submit(
        b"From: bob@example.net\nSubject: lost\n\nx\n", sender="bob@example.net", recipient="x@nowhere.test"
    )
    arrived = postfix.wait_for_message("bob", timeout_s=30).replace(b"\n", b"\r\n")
    assert re.search(rb"(?m)^From: Mail Delivery System <MAILER-DAEMON@host\.example\.org>", arrived), (
        arrived.decode()
    )
    assert b"Return-Path: <>" in arrived
    assert dkimpy_verdicts(arrived, 2) == [True, True]


@pytest.mark.parametrize("way", ["proxy", "milter"])
def test_what_is_not_ours_is_not_signed(world: World, way: str) -> None:
    arrived = world.carry(way, b"From: joe@elsewhere.example\r\nSubject: x\r\n\r\nHi\r\n")
    assert b"DKIM-Signature" not in arrived


def test_opendkim_finds_both_good_by_dns(world: World, tmp_path: Path) -> None:
    program = shutil.which("opendkim-testmsg", path="/usr/sbin:/usr/bin")
    if program is None:
        pytest.skip("opendkim-testmsg is not installed: apt-get install opendkim-tools")
    arrived = {
        f"{way}, {name}": world.carry(way, SIGNED_MAIL[name])
        for way in world.ways
        for name in ("7-bit", "8-bit", "UTF-8 in the header", "dots", "a line of 998", "no body", "folded")
    }
    zone = "".join(
        f"{selector}._domainkey TXT {txt(record)}\n"
        for selector, record in (
            ("rsa", f"v=DKIM1; p={rsa_public()}"),
            ("ed", f"v=DKIM1; k=ed25519; p={ed25519_public()}"),
        )
    )
    try:
        with private_network() as network:
            bed = network.within(
                partial(DnsBed.start, tmp_path / "dns", {"example.org": zone}, resolver_port=53)
            )

            def says(message: bytes) -> str:
                """Nothing, where it is content."""
                command = [*resolving_by(tmp_path), program]
                done = network.within(
                    lambda: subprocess.run(
                        command, input=message, capture_output=True, timeout=30, check=False
                    )
                )
                assert (done.returncode == 0) == (not done.stderr)
                return done.stderr.decode()

            try:
                for name, raw in arrived.items():
                    for kept in (0, 1):
                        lone = with_one_signature(raw, kept).replace(b"\r\n", b"\n")
                        assert says(lone) == "", f"{name}, {kept}"
                        assert says(lone + b"x\n"), f"{name}, {kept}"
            finally:
                bed.stop()
    except NetworkUnavailableError as reason:
        pytest.skip(f"opendkim-testmsg asks port 53 for keys: {reason}")


def with_one_signature(raw: bytes, kept: int) -> bytes:
    """It is content with one good signature: without the others, that must be this one."""
    message = Message(raw)
    others = [
        message.field_bytes(position)
        for at, position in enumerate(message.positions(b"dkim-signature"))
        if at != kept
    ]
    for other in others:
        raw = raw.replace(other, b"", 1)
    return raw
