"""Sign messages in ways that no honest signer does, to see what the verifier says of them.

The canonical forms are the verifier's own; that they are the right ones is proved against foreign signers in
test_oracles.py and by the conformance suites.
"""

import base64
import hashlib
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import (
    RSAPrivateKey,
    RSAPublicNumbers,
    generate_private_key,
)
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from gateway.auth.dkim.canonical import Canonicalization, canonical_body, canonical_field
from gateway.auth.dkim.content import SignedContent
from gateway.auth.dkim.signature import Algorithm, Signature, Terms, turns
from gateway.dns.resolver import RecordType, Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message

NOW = 1_760_000_000.0

HEADER = (
    b"From: Joe <joe@example.org>\r\n"
    b"To: suzie@example.net\r\n"
    b"Subject: Is dinner\r\n ready?\r\n"
    b"Date: Fri, 11 Jul 2025 21:00:37 -0700\r\n"
)
BODY = b"Hi.\r\n\r\nWe lost  the game.\tAre you hungry yet? \r\n\r\nJoe.\r\n\r\n\r\n"
MESSAGE = HEADER + b"\r\n" + BODY


@cache
def rsa_key(bits: int) -> RSAPrivateKey:
    return generate_private_key(65537, bits)


@cache
def ed25519_key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.generate()


def rsa_pem(bits: int = 2048) -> bytes:
    return rsa_key(bits).private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())


def ed25519_pem() -> bytes:
    return ed25519_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def short_rsa() -> tuple[int, int]:
    """A 768-bit modulus and its private exponent; `cryptography` makes no such keys any more."""
    choice = random.Random(6376)
    primes: list[int] = []
    while len(primes) < 2:
        candidate = choice.getrandbits(384) | (3 << 382) | 1
        if pow(2, candidate - 1, candidate) == 1 and (candidate - 1) % 65537:
            primes.append(candidate)
    p, q = primes
    return p * q, pow(65537, -1, (p - 1) * (q - 1))


def rsa_public(bits: int = 2048) -> str:
    return _base64(rsa_key(bits).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def rsa_public_pkcs1() -> str:
    return _base64(rsa_key(2048).public_key().public_bytes(Encoding.DER, PublicFormat.PKCS1))


def short_public() -> str:
    public = RSAPublicNumbers(65537, short_rsa()[0]).public_key()
    return _base64(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def ed25519_public() -> str:
    return _base64(ed25519_key().public_key().public_bytes_raw())


def zone(records: Mapping[str, bytes | Trouble | list[bytes] | None] | None = None) -> ZoneResolver:
    """The keys of example.org, and what else is given: selector to record; None: the name exists without TXT."""
    found: dict[str, bytes | Trouble | list[bytes] | None] = {
        "rsa": b"v=DKIM1; k=rsa; p=" + rsa_public().encode(),
        "ed": b"v=DKIM1; k=ed25519; p=" + ed25519_public().encode(),
        "short": b"v=DKIM1; p=" + short_public().encode(),
        **(records or {}),
    }
    answers: dict[tuple[str, RecordType], list[bytes]] = {}
    trouble: dict[tuple[str, RecordType], Trouble] = {}
    for selector, record in found.items():
        question = (selector if "." in selector else f"{selector}._domainkey.example.org", RecordType.TXT)
        match record:
            case Trouble():
                trouble[question] = record
            case bytes():
                answers[question] = [record]
            case None:
                answers[question] = []
            case list():
                answers[question] = record
    return ZoneResolver.from_records(answers, trouble=trouble)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """How to sign; `tags` overrides, adds or (None) leaves out a tag after the hashes are known."""

    algorithm: Algorithm = Algorithm.RSA_SHA256
    header: Canonicalization = Canonicalization.RELAXED
    body: Canonicalization = Canonicalization.RELAXED
    signed: str = "from:to:subject:date"
    selector: str = "rsa"
    length: int | None = None
    short: bool = False
    tags: Mapping[str, str | None] = field(default_factory=dict)

    def sign(self, raw: bytes) -> bytes:
        """The message with a signature on top."""
        message = Message(raw)
        canonical = b"".join(canonical_body([raw[message.body_start :]], self.body))
        hashed = canonical if self.length is None else canonical[: self.length]
        tags: dict[str, str | None] = {
            "v": "1",
            "a": str(self.algorithm),
            "c": f"{self.header}/{self.body}",
            "d": "example.org",
            "s": self.selector,
            "l": None if self.length is None else str(self.length),
            "h": self.signed,
            "bh": _base64(hashlib.sha256(hashed).digest()),
            **self.tags,
            "b": "",
        }
        text = "; ".join(f"{name}={value}" for name, value in tags.items() if value is not None)
        prepared = b"DKIM-Signature: " + text.encode() + b"\r\n" + raw
        signature = self._private(self._digest(prepared, tags["h"] or "from"))
        return prepared.replace(b"; b=\r\n", b"; b=" + _base64(signature).encode() + b"\r\n", 1)

    def _digest(self, prepared: bytes, names: str) -> bytes:
        message = Message(prepared)
        signed_fields = tuple(name.strip().lower().encode() for name in names.split(":"))
        terms = Terms(
            algorithm=self.algorithm,
            header_canonicalization=self.header,
            body_canonicalization=self.body,
            domain="example.org",
            selector=self.selector,
            auid="@example.org",
            signed_fields=signed_fields,
            signed_turns=turns(signed_fields),
            body_length=None,
            key_name=f"{self.selector}._domainkey.example.org",
            canonicalization=f"{self.header}/{self.body}",
        )
        signature = Signature(terms, signature=b"", signature_text="", body_hash=b"")
        return SignedContent(message, ()).header_digest(0, signature)

    def _private(self, digest: bytes) -> bytes:
        if self.short:
            return _sign_short(digest)
        if self.algorithm is Algorithm.ED25519_SHA256:
            return ed25519_key().sign(digest)
        return rsa_key(2048).sign(digest, PKCS1v15(), Prehashed(SHA256()))


def canonical_message(
    raw: bytes, header: Canonicalization, body: Canonicalization
) -> tuple[list[bytes], bytes]:
    """What two messages must share for one signature to fit both."""
    message = Message(raw)
    fields = [canonical_field(message.field_bytes(at), header) for at in range(len(message.keys))]
    return fields, b"".join(canonical_body([raw[message.body_start :]], body))


def _sign_short(digest: bytes) -> bytes:
    """EMSA-PKCS1-v1_5 (RFC 8017 §9.2) by hand."""
    modulus, exponent = short_rsa()
    size = (modulus.bit_length() + 7) // 8
    info = bytes.fromhex("3031300d060960864801650304020105000420") + digest
    padded = b"\x00\x01" + b"\xff" * (size - len(info) - 3) + b"\x00" + info
    return pow(int.from_bytes(padded), exponent, modulus).to_bytes(size)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
