"""What the benches send: a signed message of a given size, from a domain for which every check passes on loopback."""

import base64
import random
from dataclasses import dataclass
from functools import cache

import dkim
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

HELO = "mail.bench.example"
SENDER = "ann@bench.example"
RECIPIENT = "bob@example.net"
CLIENT_IP = "127.0.0.1"

_HEADER = (
    "Received: from desk.bench.example (desk.bench.example [192.0.2.7])\r\n"
    "\tby mail.bench.example (Postfix) with ESMTPSA id 4f2a9c01b7\r\n"
    "\tfor <bob@example.net>; Wed, 18 Nov 2026 11:06:38 +0000 (UTC)\r\n"
    "Date: Wed, 18 Nov 2026 11:06:37 +0000\r\n"
    "From: Ann Archer <ann@bench.example>\r\n"
    "To: Bob Baker <bob@example.net>\r\n"
    "Subject: Minutes of the meeting on Tuesday\r\n"
    "Message-ID: <20261118110637.4f2a@bench.example>\r\n"
    "MIME-Version: 1.0\r\n"
    "Content-Type: text/plain; charset=utf-8\r\n"
    "Content-Transfer-Encoding: 7bit\r\n"
)
_WORDS = [
    "the",
    "minutes",
    "of",
    "this",
    "meeting",
    "were",
    "read",
    "and",
    "nobody",
    "had",
    "a",
    "word",
    "to",
    "add,",
    "so",
    "we",
    "went",
    "on",
    "to",
    "the",
    "next",
    "point",
]


@dataclass(frozen=True, slots=True)
class Signed:
    """A message, and the zone in which SPF, DKIM, DMARC, iprev and the sender's domain are all good."""

    raw: bytes
    zone: str


@cache
def _key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(65537, 2048)


def signed_message(size: int) -> Signed:
    """A message of about `size` bytes, signed with RSA-2048, relaxed/relaxed, as most mail is."""
    unsigned = (_HEADER + "\r\n" + _body(size - len(_HEADER) - 700)).encode()
    pem = _key().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    names = [b"from", b"to", b"subject", b"date", b"message-id", b"mime-version", b"content-type"]
    field = dkim.sign(
        unsigned,
        b"bench",
        b"bench.example",
        pem,
        canonicalize=(b"relaxed", b"relaxed"),
        include_headers=names,
    )
    return Signed(raw=bytes(field) + unsigned, zone=_zone())


def _body(size: int) -> str:
    """Lines of words, some empty, some that begin with a dot, as in mail between people."""
    choice = random.Random(5321)
    lines: list[str] = []
    length = 0
    while length < size:
        line = " ".join(choice.choices(_WORDS, k=choice.randint(0, 14)))
        if choice.random() < 0.01:
            line = "." + line
        lines.append(line)
        length += len(line) + 2
    return "\r\n".join(lines) + "\r\nAnn\r\n"


def _zone() -> str:
    public = (
        _key()
        .public_key()
        .public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    record = "v=DKIM1; k=rsa; p=" + base64.b64encode(public).decode()
    strings = " ".join(f'"{record[at : at + 200]}"' for at in range(0, len(record), 200))
    return (
        "$TTL 3600\n"
        "bench.example.                  MX   10 mail.bench.example.\n"
        f'bench.example.                  TXT  "v=spf1 a:mail.bench.example ip4:192.0.2.0/24 -all"\n'
        '_dmarc.bench.example.           TXT  "v=DMARC1; p=reject"\n'
        f"bench._domainkey.bench.example. TXT  {strings}\n"
        f"mail.bench.example.             A    {CLIENT_IP}\n"
        'mail.bench.example.             TXT  "v=spf1 a -all"\n'
        "1.0.0.127.in-addr.arpa.         PTR  mail.bench.example.\n"
    )
