"""The demo: one gateway, a small world in a zone file, and a handful of honest, forged, broken and signed messages.

Run it by `sh deploy/demo.sh`. Everything it makes is in `.demo/`: look at gateway.toml, zone.txt and gateway.log there.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import smtplib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import dkim
from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import SMTP, Envelope, Session
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".demo"
USER = "bob@example.net"
START_TIMEOUT_S = 30.0
COLOURS = {"accept": "green", "quarantine": "yellow", "defer": "yellow", "reject": "red"}

HONEST, BANK, EVIL = "127.0.0.11", "127.0.0.20", "127.0.0.66"

ZONE = """\
; The demo's whole DNS. Names that are not here do not exist.
$TTL 300
example.net.           MX  10 mx.example.net.
example.net.           TXT "v=spf1 mx -all"
mx.example.net.        A   192.0.2.25
25.2.0.192.in-addr.arpa. PTR mx.example.net.
_dmarc.example.net.    TXT "v=DMARC1; p=quarantine"
honest.example.        MX  10 mail.honest.example.
honest.example.        TXT "v=spf1 ip4:127.0.0.11 -all"
mail.honest.example.   A   127.0.0.11
_dmarc.honest.example. TXT "v=DMARC1; p=reject"
11.0.0.127.in-addr.arpa. PTR mail.honest.example.
bank.example.          MX  10 mail.bank.example.
bank.example.          TXT "v=spf1 ip4:127.0.0.20 -all"
mail.bank.example.     A   127.0.0.20
_dmarc.bank.example.   TXT "v=DMARC1; p=reject"
careful.example.       MX  10 mail.honest.example.
_dmarc.careful.example. TXT "v=DMARC1; p=quarantine"
evil.example.          MX  10 mx.evil.example.
evil.example.          TXT "v=spf1 ip4:127.0.0.66 -all"
mx.evil.example.       A   127.0.0.66
$TROUBLE _dmarc.dead.example. TXT servfail
"""

CONFIG = """\
authserv_id = "mx.example.net"
local_domains = ["example.net"]

[dns]
zone_file = "zone.txt"

[inbound]
listen = ["127.0.0.1:{smtp}"]
downstream = "127.0.0.1:{downstream}"

[http]
listen = "127.0.0.1:{http}"

[store]
url = "sqlite:///{store}"

[policy]
shadow = "strict"

[log]
format = "json"
"""


@dataclass(frozen=True)
class Letter:
    """One message of the tour."""

    title: str
    about: str
    client: str
    helo: str
    mail_from: str
    content: bytes
    recipient: str = USER


class Keys:
    """Fresh keys of honest.example, and what it publishes of them."""

    def __init__(self) -> None:
        self._rsa = rsa.generate_private_key(65537, 2048)
        self._ed25519 = ed25519.Ed25519PrivateKey.generate()

    def records(self) -> str:
        der = self._rsa.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        public = {
            "rsa": "v=DKIM1; k=rsa; p=" + base64.b64encode(der).decode(),
            "ed": "v=DKIM1; k=ed25519; p="
            + base64.b64encode(self._ed25519.public_key().public_bytes_raw()).decode(),
        }
        return "".join(
            f"{selector}._domainkey.honest.example. TXT "
            + " ".join(f'"{record[at : at + 250]}"' for at in range(0, len(record), 250))
            + "\n"
            for selector, record in public.items()
        )

    def sign(self, raw: bytes, *, selector: str = "rsa") -> bytes:
        if selector == "rsa":
            key = self._rsa.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
            algorithm = b"rsa-sha256"
        else:
            key = base64.b64encode(self._ed25519.private_bytes_raw())
            algorithm = b"ed25519-sha256"
        field = dkim.sign(
            raw,
            selector.encode(),
            b"honest.example",
            key,
            canonicalize=(b"relaxed", b"relaxed"),
            signature_algorithm=algorithm,
            include_headers=[b"from", b"to", b"subject"],
        )
        return bytes(field) + raw


def letter(author: str, subject: str, body: str = "Hello Bob.\r\n", extra: str = "") -> bytes:
    return f"{extra}From: {author}\r\nTo: <{USER}>\r\nSubject: {subject}\r\n\r\n{body}".encode()


def tour(keys: Keys) -> Iterator[Letter]:
    """What is sent, in order."""
    honest = (HONEST, "mail.honest.example", "ann@honest.example")
    evil = (EVIL, "mx.evil.example", "x@evil.example")
    ann = "Ann <ann@honest.example>"
    yield Letter("Honest", "from its own server, signed", *honest, keys.sign(letter(ann, "Lunch on Friday?")))
    yield Letter(
        "Forwarded",
        "by somebody else's server: SPF speaks only for that one, the Ed25519 signature for Ann",
        *evil,
        keys.sign(letter(ann, "Forwarded"), selector="ed"),
    )
    yield Letter(
        "Forged, p=reject",
        "SPF passes, but for the forger's own domain",
        *evil,
        letter("The Bank <service@bank.example>", "Your account"),
    )
    yield Letter(
        "Forged, p=quarantine",
        "the domain asks for suspicion only",
        *evil,
        letter("<ann@careful.example>", "Invoice"),
    )
    yield Letter(
        "Altered",
        "a signed message whose body was changed on the way",
        *evil,
        keys.sign(letter(ann, "Payment", "Pay 10 to Ann.\r\n")).replace(b"Pay 10", b"Pay 9999"),
    )
    yield Letter(
        "Two authors",
        "two From fields: the checks see one, the reader the other",
        *evil,
        letter("The Bank <service@bank.example>", "Look", extra="From: <x@evil.example>\r\n"),
    )
    yield Letter(
        "Forged stamp",
        "claims our own Authentication-Results",
        *evil,
        letter(
            "<x@evil.example>",
            "Trust me",
            extra="Authentication-Results: mx.example.net; dmarc=pass header.from=bank.example\r\n",
        ),
    )
    yield Letter(
        "Smuggled",
        "hides a second message behind a wrong end of data",
        *evil,
        letter("<x@evil.example>", "Smuggle", "one\n.\nMAIL FROM:<service@bank.example>\r\n"),
    )
    yield Letter(
        "Author's DNS is down",
        "nobody knows what that domain wants: try again later",
        *evil,
        letter("<ann@dead.example>", "Hello"),
    )
    yield Letter(
        "Relay attempt",
        "for a domain that is not ours",
        *evil,
        letter("<x@evil.example>", "Relay"),
        "someone@elsewhere.example",
    )
    yield Letter(
        "Unknown user",
        "the mail server behind refuses, and its words are passed on",
        *evil,
        letter("<x@evil.example>", "Hello?"),
        "nobody@example.net",
    )


class Sink(Mailbox):
    """The mail server behind the gateway: delivers into a Maildir, and knows one user."""

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's name and arguments
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if address.lower() != USER:
            return f"550 5.1.1 <{address}>: no such user here"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def maildir_sink(folder: Path) -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    """A downstream of one Maildir; its port, and what has arrived."""
    maildir = folder / "Maildir"
    shutil.rmtree(maildir, ignore_errors=True)
    controller = Controller(Sink(str(maildir)), hostname="127.0.0.1", port=free_port())
    controller.start()
    try:
        yield (
            controller.port,
            lambda: [path.read_bytes() for path in sorted((maildir / "new").iterdir())],
        )
    finally:
        controller.stop()


@contextlib.contextmanager
def real_postfix() -> Iterator[tuple[int, Callable[[], list[bytes]]]]:
    """A downstream that is a private real Postfix, as the tests use it."""
    sys.path.insert(0, str(ROOT))
    from tests.live.postfix import PostfixBed, open_directory  # noqa: PLC0415 - only with --postfix

    with open_directory() as directory:
        bed = PostfixBed.start(directory / "postfix", xclient=True, local_domains=("example.net",))
        try:
            yield bed.port, lambda: bed.messages(USER)
        finally:
            bed.stop()


@contextlib.contextmanager
def gateway(folder: Path, http: int) -> Iterator[Path]:
    """The real command with the demo's config; its log is what the tour is told from."""
    log = folder / "gateway.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "gateway.toml")],
            stderr=stream,
            cwd=ROOT,
        )
        try:
            deadline = time.monotonic() + START_TIMEOUT_S
            while True:
                with contextlib.suppress(OSError), urlopen(f"http://127.0.0.1:{http}/readyz", timeout=1):
                    break
                if process.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit(f"the gateway did not start; its log:\n{log.read_text()}")
                time.sleep(0.05)
            yield log
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def send(item: Letter, port: int) -> str:
    """Hand one message in; what the client heard in the end."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname=item.helo, source_address=(item.client, 0)) as client:
        client.ehlo(item.helo)
        for command in (f"MAIL FROM:<{item.mail_from}>", f"RCPT TO:<{item.recipient}>", "DATA"):
            code, text = client.docmd(command)
            if code >= 400:  # noqa: PLR2004 - RFC 5321 section 4.2.1
                return f"{code} {text.decode()}"
        stuffed = re.sub(rb"(?m)^\.(?=.*\r\n)", b"..", item.content)
        client.send(stuffed + b".\r\n")
        code, text = client.getreply()
        return f"{code} {text.decode()}"


def judged(log: Path) -> list[dict[str, object]]:
    """The gateway's own word on each message so far."""
    events = (json.loads(line) for line in log.read_text().splitlines() if line.startswith("{"))
    return [event for event in events if event.get("event") == "message.judged"]


def told(identifier: str) -> str:
    """What the gateway's own command says of a message, a moment after its answer."""
    command = [sys.executable, "-m", "gateway", "trace", identifier, "--config", str(FOLDER / "gateway.toml")]
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout
        if time.monotonic() > deadline:
            raise SystemExit(f"no trace of {identifier}: {done.stderr}")
        time.sleep(0.2)


def show(console: Console, item: Letter, reply: str, event: dict[str, object] | None) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_row("client", f"{item.client} says {item.helo}, MAIL FROM:<{item.mail_from}>")
    heard = "green" if reply.startswith("2") else "yellow" if reply.startswith("4") else "red"
    table.add_row("hears", f"[{heard}]{reply}[/]")
    if event:
        colour = COLOURS.get(str(event["disposition"]), "white")
        table.add_row("verdict", f"[{colour}]{event['disposition']}[/] by rule {event['rule']}")
        signatures = ", ".join(map(str, event["dkim"])) if isinstance(event["dkim"], list) else ""
        table.add_row("because", f"spf={event['spf']}  dkim={signatures or 'none'}  dmarc={event['dmarc']}")
    else:
        table.add_row("verdict", "refused in the SMTP dialog, before there was a message to judge")
    console.print(Panel(table, title=f"{item.title}: {item.about}", title_align="left"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true", help="end after the tour")
    parser.add_argument("--postfix", action="store_true", help="a private real Postfix as downstream")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # leave nothing running behind
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    keys = Keys()
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "zone.txt").write_text(ZONE + keys.records())
    downstream = real_postfix() if options.postfix else maildir_sink(FOLDER)
    with downstream as (downstream_port, arrived):
        smtp, http = free_port(), free_port()
        store = FOLDER / "gateway.db"
        for left_over in FOLDER.glob("gateway.db*"):
            left_over.unlink()
        config = CONFIG.format(smtp=smtp, http=http, downstream=downstream_port, store=store)
        (FOLDER / "gateway.toml").write_text(config)
        with gateway(FOLDER, http) as log:
            expected = 0
            for item in tour(keys):
                before = len(judged(log))
                reply = send(item, smtp)
                events = judged(log)
                show(console, item, reply, events[-1] if len(events) > before else None)
                expected += reply.startswith("2")
            deadline = time.monotonic() + START_TIMEOUT_S
            while len(arrived()) < expected and time.monotonic() < deadline:
                time.sleep(0.05)
            messages = arrived()
            console.print(f"\n[bold]{len(messages)} messages arrived.[/] The first one begins:")
            console.print(messages[0].decode("utf-8", "replace").split("\n\n")[0][:1200], markup=False)
            if len(messages) != expected:
                raise SystemExit(f"{expected} messages were accepted and {len(messages)} arrived")
            refused = next(event for event in judged(log) if event["disposition"] == "reject")
            console.print(f"\n[bold]Why was one of them refused?[/] gateway trace {refused['id']}")
            console.print(told(str(refused["id"])), markup=False)
            console.print(
                f"\npages    http://127.0.0.1:{http}/ (whether mail flows, each message's story, our domains, the doctor)"
                f"\nSMTP     127.0.0.1:{smtp}   try: swaks --server 127.0.0.1:{smtp} --to {USER} --from x@evil.example"
                f"\nmetrics  http://127.0.0.1:{http}/metrics"
                f"\nconfig   {os.path.relpath(FOLDER / 'gateway.toml')}   log {os.path.relpath(log)}",
                markup=False,
            )
            if not options.once:
                console.print("\nCtrl-C ends it.")
                with contextlib.suppress(KeyboardInterrupt):
                    signal.pause()


if __name__ == "__main__":
    main()
