"""The certificates of a test's internet: an authority of its own, and what servers show instead of a good one."""

import hashlib
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Final, Self

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

NAME_OF_ANOTHER: Final = "mx.somewhere.else.test"
"""What the wrong certificate is for."""

_DAY: Final = timedelta(days=1)
_MATCHING: Final[tuple[Callable[[bytes], bytes], ...]] = (  # RFC 6698 §2.1.3
    lambda data: data,
    lambda data: hashlib.sha256(data).digest(),
    lambda data: hashlib.sha512(data).digest(),
)


class Certificate(StrEnum):
    """What a server shows."""

    GOOD = "good"
    WRONG_NAME = "wrong-name"
    EXPIRED = "expired"
    SELF_SIGNED = "self-signed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Authority:
    """The one authority that everybody trusts, and its certificates.

    Attributes:
        directory: where they lie.
        ca_file: its own certificate (PEM).
        files: by kind, the private key with the whole chain, the authority included (PEM): a TLSA record of usage 2 may
            name it only if the server sends it (RFC 7671 §5.2.1).
    """

    directory: Path
    ca_file: Path
    files: dict[Certificate, Path]

    @classmethod
    def found(cls, directory: Path, names: Sequence[str]) -> Self:
        """Make one, with a certificate of each kind; all but the wrong one bear all of `names`."""
        authority = trustme.CA()
        now = datetime.now(UTC)
        leaves = {
            Certificate.GOOD: authority.issue_cert(*names),
            Certificate.WRONG_NAME: authority.issue_cert(NAME_OF_ANOTHER),
            Certificate.EXPIRED: authority.issue_cert(
                *names, not_before=now - 30 * _DAY, not_after=now - _DAY
            ),
        }
        found = cls(
            directory=directory,
            ca_file=directory / "ca.pem",
            files={kind: directory / f"{kind}.pem" for kind in Certificate},
        )
        authority_pem = authority.cert_pem.bytes()
        found.ca_file.write_bytes(authority_pem)
        for kind, leaf in leaves.items():
            found.files[kind].write_bytes(leaf.private_key_and_cert_chain_pem.bytes() + authority_pem)
        found.files[Certificate.SELF_SIGNED].write_bytes(_self_signed(names, now))
        return found

    def server_context(self, kind: Certificate) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.files[kind])
        return context

    def tlsa(self, kind: Certificate, usage: int, selector: int, matching: int) -> str:
        """The record's data that names this server's certificate, or (usage 0 and 2) its authority's."""
        source = self.ca_file if usage in {0, 2} else self.files[kind]
        certificate = x509.load_pem_x509_certificates(source.read_bytes())[0]
        if selector == 0:
            data = certificate.public_bytes(Encoding.DER)
        else:
            data = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        return f"{usage} {selector} {matching} {_MATCHING[matching](data).hex()}"


def _self_signed(names: Sequence[str], now: datetime) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "self-signed")])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + 30 * _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return private + certificate.public_bytes(Encoding.PEM)
