"""What the benches send: mail from many domains and addresses for which every check passes, ready to go over the wire.

Domain N of a corpus is `dN.bench.example`'s kin: its mail server has an address of its own in 127/8, its own SPF, DMARC and DKIM
records, and one of sixteen keys. Every message differs from every other one. The zone says all of it.
"""

import base64
import random
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

from gateway.auth.dkim.key_table import KeyTable, PrivateKey, SigningKey
from gateway.auth.dkim.sign import Signer
from gateway.mail.author import find_author
from gateway.mail.edits import Edits
from gateway.mail.message import Message
from tests.bench.load import Way
from tests.bench.mail import _body

RECIPIENT: Final = "bob@example.net"
KEYS: Final = 16
SIGNED_AT: Final = 1_700_000_000
_BOUNDARY: Final = "=_bench"


class Signatures(StrEnum):
    """How a corpus is signed."""

    NONE = "unsigned"
    RSA = "RSA-2048"
    ED25519 = "Ed25519"
    BOTH = "RSA-2048 and Ed25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class Corpus:
    """`messages` different ones of about `size` bytes from `domains` domains, in turn.

    Attributes:
        signatures: how each is signed.
        repeat: how many times each kind of signature is there.
        attachment: whether all but 3 KB of the body is a file in base64, as in most large mail, and not text.
        recipient: of all of them.
    """

    size: int = 5_000
    domains: int = 100
    messages: int = 300
    signatures: Signatures = Signatures.RSA
    repeat: int = 1
    attachment: bool = False
    recipient: str = RECIPIENT


@dataclass(frozen=True, slots=True)
class Sender:
    """Who sends one message."""

    number: int

    @property
    def domain(self) -> str:
        return f"d{self.number}.example"

    @property
    def helo(self) -> str:
        return f"mail.{self.domain}"

    @property
    def address(self) -> str:
        return f"127.{1 + self.number // 62_500}.{self.number // 250 % 250}.{1 + self.number % 250}"

    @property
    def mail_from(self) -> str:
        return f"ann@{self.domain}"


@cache
def _rsa_keys() -> tuple[rsa.RSAPrivateKey, ...]:
    return tuple(rsa.generate_private_key(65537, 2048) for _ in range(KEYS))


@cache
def _ed25519_keys() -> tuple[ed25519.Ed25519PrivateKey, ...]:
    return tuple(ed25519.Ed25519PrivateKey.generate() for _ in range(KEYS))


@cache
def _bodies(size: int, *, attachment: bool) -> tuple[str, ...]:
    if attachment:
        return tuple(_with_attachment(size - 1_300, number) for number in range(16))
    return tuple(_body(size - 1_300 + number) for number in range(16))


def _with_attachment(size: int, number: int) -> str:
    content = base64.b64encode(random.Random(number).randbytes((size - 3_500) * 3 // 4)).decode()
    lines = "\r\n".join(content[at : at + 76] for at in range(0, len(content), 76))
    return (
        f"--{_BOUNDARY}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{_body(3_000 + number)}\r\n--{_BOUNDARY}\r\n"
        f"Content-Type: application/octet-stream\r\nContent-Transfer-Encoding: base64\r\n\r\n{lines}\r\n--{_BOUNDARY}--\r\n"
    )


def messages(corpus: Corpus) -> Iterator[tuple[Sender, bytes]]:
    """Each message, as it is signed."""
    bodies = _bodies(corpus.size, attachment=corpus.attachment)
    for number in range(corpus.messages):
        sender = Sender(number % corpus.domains)
        raw = _unsigned(sender, number, bodies[number % len(bodies)], corpus)
        yield sender, _sign(raw, sender, corpus)


def write_corpus(corpus: Corpus, way: Way, path: Path) -> Path:
    """The corpus as the load generator reads it: four counted pieces a message."""
    prepare = _milter_pieces if way is Way.MILTER else _smtp_pieces
    with path.open("wb") as file:
        for sender, raw in messages(corpus):
            for piece in prepare(sender, raw, corpus.recipient):
                file.write(struct.pack(">I", len(piece)) + piece)
    return path


def write_zone(domains: int, path: Path) -> Path:
    """The zone of all senders and of the recipient, for any corpus with no more domains."""
    keys = [_key_record(number) for number in range(KEYS)]
    with path.open("w") as file:
        file.write(
            "$TTL 86400\n. SOA ns.example. h.example. 1 3600 600 86400 60\n. NS ns.example.\nns.example. A 127.0.0.1\n"
            'example.net. MX 10 in.remote.example.\nin.remote.example. A 127.0.0.1\n_spf.host.example. TXT "v=spf1 ip4:127.0.0.0/8 -all"\n'
        )
        for number in range(domains):
            sender = Sender(number)
            domain, helo = sender.domain, sender.helo
            reverse = ".".join(reversed(sender.address.split(".")))
            rsa_record, ed_record = keys[number % KEYS]
            file.write(
                f'{domain}. MX 10 {helo}.\n{domain}. TXT "v=spf1 a:{helo} include:_spf.host.example -all"\n'
                f'_dmarc.{domain}. TXT "v=DMARC1; p=reject"\n{helo}. A {sender.address}\n'
                f'{helo}. TXT "v=spf1 a -all"\n{reverse}.in-addr.arpa. PTR {helo}.\n'
                f"rsa._domainkey.{domain}. TXT {rsa_record}\ned._domainkey.{domain}. TXT {ed_record}\n"
            )
    return path


def _unsigned(sender: Sender, number: int, body: str, corpus: Corpus) -> bytes:
    recipient = corpus.recipient
    kind = f'multipart/mixed; boundary="{_BOUNDARY}"' if corpus.attachment else "text/plain; charset=utf-8"
    helo, domain = sender.helo, sender.domain
    return (
        f"Received: from desk.{domain} (desk.{domain} [192.0.2.7])\r\n"
        f"\tby {helo} (Postfix) with ESMTPSA id 4f2a{number:06x}\r\n"
        f"\tfor <{recipient}>; Wed, 18 Nov 2026 11:06:38 +0000 (UTC)\r\n"
        "Date: Wed, 18 Nov 2026 11:06:37 +0000\r\n"
        f"From: Ann Archer <ann@{domain}>\r\n"
        f"To: Bob Baker <{recipient}>\r\n"
        "Subject: Minutes of the meeting on Tuesday\r\n"
        f"Message-ID: <20261118110637.{number:06x}@{domain}>\r\n"
        "MIME-Version: 1.0\r\n"
        f"Content-Type: {kind}\r\n"
        "Content-Transfer-Encoding: 7bit\r\n"
        f"\r\nThis is number {number}.\r\n{body}"
    ).encode()


def _sign(raw: bytes, sender: Sender, corpus: Corpus) -> bytes:
    if corpus.signatures is Signatures.NONE:
        return raw
    message = Message(raw)
    signer = Signer(KeyTable(tuple(_signing_keys(sender, corpus))))
    signed = signer.sign(message, find_author(message), Edits(), now=SIGNED_AT)
    fields = signed.fields * corpus.repeat
    return b"".join(field.to_bytes() for field in fields) + raw


def _signing_keys(sender: Sender, corpus: Corpus) -> Iterator[SigningKey]:
    which = sender.number % KEYS
    private: dict[str, PrivateKey] = {}
    if corpus.signatures in {Signatures.RSA, Signatures.BOTH}:
        private["rsa"] = _rsa_keys()[which]
    if corpus.signatures in {Signatures.ED25519, Signatures.BOTH}:
        private["ed"] = _ed25519_keys()[which]
    for selector, key in private.items():
        yield SigningKey(
            domain=sender.domain, selector=selector, subdomains=False, expires_after_s=None, private_key=key
        )


def _key_record(number: int) -> tuple[str, str]:
    public = (
        _rsa_keys()[number]
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    point = _ed25519_keys()[number].public_key().public_bytes_raw()
    record = "v=DKIM1; k=rsa; p=" + base64.b64encode(public).decode()
    strings = " ".join(f'"{record[at : at + 200]}"' for at in range(0, len(record), 200))
    return strings, f'"v=DKIM1; k=ed25519; p={base64.b64encode(point).decode()}"'


def dot_stuffed(raw: bytes) -> bytes:
    """The content as it goes over the wire (RFC 5321 §4.5.2), its final dot included."""
    stuffed = raw.replace(b"\r\n.", b"\r\n..")
    return (b"." if stuffed.startswith(b".") else b"") + stuffed + b".\r\n"


def _smtp_pieces(sender: Sender, raw: bytes, recipient: str) -> Sequence[bytes]:
    envelope = f"MAIL FROM:<{sender.mail_from}>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n"
    return (
        sender.address.encode(),
        f"EHLO {sender.helo}\r\n".encode(),
        envelope.encode(),
        dot_stuffed(raw),
    )


def _packet(command: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", 1 + len(data)) + command + data


def _macros(command: bytes, *pairs: str) -> bytes:
    return _packet(b"D", command + "".join(f"{word}\0" for word in pairs).encode())


def _milter_pieces(sender: Sender, raw: bytes, recipient: str) -> Sequence[bytes]:
    """As Postfix says it: all behind a field's colon, LF within a folded one, the body in pieces of 64 KB at most."""
    header, _, body = raw.partition(b"\r\n\r\n")
    fields = header.replace(b"\r\n\t", b"\n\t").replace(b"\r\n ", b"\n ").split(b"\r\n")
    opening = (
        _macros(b"C", "j", "mx.example.net", "{daemon_name}", "smtpd", "v", "Postfix 3.9"),
        _packet(
            b"C", f"{sender.helo}\0".encode() + b"4" + struct.pack(">H", 25) + f"{sender.address}\0".encode()
        ),
        _packet(b"H", f"{sender.helo}\0".encode()),
    )
    envelope = (
        _macros(b"M", "{mail_addr}", sender.mail_from, "i", "4fQ2Z1"),
        _packet(b"M", f"<{sender.mail_from}>\0".encode()),
        _macros(b"R", "{rcpt_addr}", recipient),
        _packet(b"R", f"<{recipient}>\0".encode()),
        _packet(b"T"),
    )
    pairs = (field.partition(b":") for field in fields)
    content = [_packet(b"L", name + b"\0" + value + b"\0") for name, _, value in pairs]
    content.append(_packet(b"N"))
    content += [_packet(b"B", body[at : at + 65_535]) for at in range(0, len(body), 65_535)]
    content += [_macros(b"E", "i", "4fQ2Z1"), _packet(b"E")]
    return b"", b"".join(opening), b"".join(envelope), b"".join(content)
