"""Chains of any kind, honest or not: each custodian's set can be made as no sealer would make it.

The canonical forms are the verifier's own; that they are the right ones is proved in test_oracles.py and by the suite.
"""

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256

from gateway.auth.dkim.canonical import Canonicalization, canonical_body, canonical_field
from gateway.dns.resolver import Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message
from tests.auth.dkim.signing import rsa_key, rsa_public, zone

RELAXED = Canonicalization.RELAXED
FIELDS = (b"arc-authentication-results", b"arc-message-signature", b"arc-seal")
DMARC_PASS = "mx.lists.example; dmarc=pass header.from=example.org"
SEALERS = ("lists.example", "forward.example", "evil.example")


def world(**records: bytes | Trouble | list[bytes] | None) -> ZoneResolver:
    """The keys of every sealer, all with the same key, and what else is given: domain (dots as `_`) to record."""
    key = b"v=DKIM1; k=rsa; p=" + rsa_public().encode()
    found: dict[str, bytes | Trouble | list[bytes] | None] = {
        f"rsa._domainkey.{domain}": key for domain in SEALERS
    }
    for domain, record in records.items():
        found[f"rsa._domainkey.{domain.replace('_', '.')}"] = record
    return zone(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Custodian:
    """Who adds a set, and how; `message_tags` and `seal_tags` override, add or (None) leave out tags."""

    domain: str = "lists.example"
    results: str = DMARC_PASS
    cv: str | None = None
    instance: int | None = None
    signed: str = "from:to:subject:date"
    alone: bool = False
    message_tags: Mapping[str, str | None] = field(default_factory=dict)
    seal_tags: Mapping[str, str | None] = field(default_factory=dict)

    def seal(self, raw: bytes) -> bytes:
        """The message with one more set on top."""
        message = Message(raw)
        older = [name for name in FIELDS if message.positions(name)]
        instance = self.instance or max([0, *(len(message.positions(name)) for name in older)]) + 1
        cv = self.cv or ("none" if instance == 1 else "pass")
        results = f"ARC-Authentication-Results: i={instance}; {self.results}\r\n".encode()
        common: dict[str, str | None] = {"i": str(instance), "a": "rsa-sha256", "d": self.domain, "s": "rsa"}
        body = b"".join(canonical_body([raw[message.body_start :]], RELAXED))
        signature = _field(
            "ARC-Message-Signature",
            common
            | {
                "c": "relaxed/relaxed",
                "h": self.signed,
                "bh": base64.b64encode(hashlib.sha256(body).digest()).decode(),
            }
            | dict(self.message_tags),
        )
        signature = _sign(signature, self._signed_fields(message))
        seal = _field("ARC-Seal", common | {"cv": cv} | dict(self.seal_tags))
        seal = _sign(seal, [*(() if self.alone else _sets(message)), results, signature])
        return seal + signature + results + raw

    def _signed_fields(self, message: Message) -> list[bytes]:
        unused = {
            name: list(message.positions(name))
            for name in (name.strip().lower().encode() for name in self.signed.split(":"))
        }
        found = []
        for name in self.signed.lower().split(":"):
            places = unused[name.strip().encode()]
            if places:
                found.append(message.field_bytes(places.pop()))
        return found


def chain(raw: bytes, *custodians: Custodian) -> bytes:
    """The message after it went through these hands."""
    for custodian in custodians:
        raw = custodian.seal(raw)
    return raw


def _sets(message: Message) -> list[bytes]:
    """The fields of the sets that are there, oldest first; made by us, so newest stand on top."""
    found = []
    for index in range(1, len(message.positions(FIELDS[0])) + 1):
        found += [message.field_bytes(message.positions(name)[-index]) for name in FIELDS]
    return found


def _field(name: str, tags: Mapping[str, str | None]) -> bytes:
    text = "; ".join(f"{tag}={value}" for tag, value in tags.items() if value is not None)
    return f"{name}: {text}; b=\r\n".encode()


def _sign(own: bytes, others: list[bytes]) -> bytes:
    signed = b"".join(canonical_field(one, RELAXED) for one in (*others, own)).removesuffix(b"\r\n")
    digest = hashlib.sha256(signed).digest()
    signature = rsa_key(2048).sign(digest, PKCS1v15(), Prehashed(SHA256()))
    return own.removesuffix(b"\r\n") + base64.b64encode(signature) + b"\r\n"
