"""Does a certificate chain match TLSA records (RFC 7671 §5, RFC 7672 §3)? Pure: no network, no clock of its own.

Usage 3 pins the server's own certificate or key and nothing else counts, neither name nor date. Usage 2 pins an authority: the chain
must lead to it by valid signatures, and names and dates count.
"""

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
)

from gateway.dns.resolver import Tlsa
from gateway.tlspolicy.dane import CERTIFICATE, DANE_EE, DANE_TA, FULL, load_certificate
from gateway.tlspolicy.model import TlsProblem
from gateway.tlspolicy.mta_sts.policy import matches

MAX_CERTIFICATES: Final = 16  # honest chains have two to four; OpenSSL itself takes 100 KB
MAX_CERTIFICATE_BYTES: Final = 65_536
MAX_SIGNATURES: Final = 32
"""Verified for one chain at most: certificates that all bear one name could each be each other's issuer, with dear keys."""

_DIGESTS: Final = {1: hashlib.sha256, 2: hashlib.sha512}
_SEQUENCE: Final = 0x30
_VERSION_TAG: Final = 0xA0
_FIELDS_BEFORE_KEY: Final = 5  # RFC 5280 §4.1: serial, signature, issuer, validity, subject


def match_chain(
    tlsa: Sequence[Tlsa], chain: Sequence[bytes], names: Sequence[str], now: datetime
) -> TlsProblem | None:
    """None where one of the records vouches for the chain, else why not.

    Args:
        tlsa: usable records (see `dane.usable`).
        chain: the certificates as sent, in DER, the server's own first.
        names: of which the certificate must bear one, for usage 2 (RFC 7672 §3.2.2).
        now: in UTC.
    """
    sent = [der for der in chain[:MAX_CERTIFICATES] if len(der) <= MAX_CERTIFICATE_BYTES]
    if not sent or sent[0] is not chain[0]:
        return TlsProblem.CERTIFICATE_TLSA
    if any(record.usage == DANE_EE and _vouches(record, sent[0]) for record in tlsa):
        return None  # RFC 7671 §5.1
    authorities = [record for record in tlsa if record.usage == DANE_TA]
    return _match_authority(authorities, sent, names, now) if authorities else TlsProblem.CERTIFICATE_TLSA


def _vouches(record: Tlsa, certificate: bytes) -> bool:
    """RFC 6698 §2.1: the selected part of the certificate, whole or as a digest."""
    selected = certificate if record.selector == CERTIFICATE else subject_public_key_info(certificate)
    if selected is None:
        return False
    if record.matching_type == FULL:
        return hmac.compare_digest(selected, record.data)
    digest = _DIGESTS.get(record.matching_type)
    return digest is not None and hmac.compare_digest(digest(selected).digest(), record.data)


def subject_public_key_info(certificate: bytes) -> bytes | None:
    """The key's part of a certificate, byte for byte as it stands there (RFC 6698 §2.1.2); None where it cannot be found.

    Cut out and not written anew: another encoding of the same key has another digest.
    """
    try:
        _, position, _ = _element(certificate, 0)
        _, position, _ = _element(certificate, position)  # TBSCertificate
        tag, _, end = _element(certificate, position)
        if tag == _VERSION_TAG:
            position = end
        for _ in range(_FIELDS_BEFORE_KEY):
            _, _, position = _element(certificate, position)
        tag, _, end = _element(certificate, position)
    except (IndexError, ValueError):
        return None
    return certificate[position:end] if tag == _SEQUENCE else None


def _element(der: bytes, position: int) -> tuple[int, int, int]:
    """The tag of the element at `position`, and where its content begins and ends (X.690 §8.1)."""
    tag, length = der[position], der[position + 1]
    content = position + 2
    if length & 0x80:
        size = length & 0x7F
        if not 1 <= size <= 4:  # noqa: PLR2004  # no certificate has 4 GB
            raise ValueError("a length that no certificate has")
        length = int.from_bytes(der[content : content + size])
        content += size
    if content + length > len(der):
        raise ValueError("an element runs past the end")
    return tag, content, content + length


def _match_authority(
    records: Sequence[Tlsa], sent: Sequence[bytes], names: Sequence[str], now: datetime
) -> TlsProblem | None:
    """RFC 7671 §5.2. What is found wrong first is told, unless another way to an authority is good."""
    leaf = load_certificate(sent[0])
    if leaf is None:
        return TlsProblem.CERTIFICATE_TLSA
    # RFC 7671 §5.2.2: an authority whose whole certificate stands in DNS need not be sent.
    given = [
        record.data for record in records if (record.selector, record.matching_type) == (CERTIFICATE, FULL)
    ]
    issuers = [
        (certificate, any(_vouches(record, der) for record in records))
        for der in dict.fromkeys((*sent[1:], *given[:MAX_CERTIFICATES]))
        if (certificate := load_certificate(der)) is not None
    ]
    problem: TlsProblem | None = None
    for path in _paths_to_authority(leaf, issuers):
        found = _check_path(path, names, now)
        if found is None:
            return None
        problem = problem or found
    return problem or TlsProblem.CERTIFICATE_TLSA


def _paths_to_authority(
    leaf: x509.Certificate, issuers: Sequence[tuple[x509.Certificate, bool]]
) -> Iterator[list[x509.Certificate]]:
    """Chains of signatures from the leaf to an authority, in whatever order they were sent, each certificate reached once."""
    left = MAX_SIGNATURES
    reached: set[int] = set()
    paths = [[leaf]]
    for path in paths:
        for at, (certificate, is_authority) in enumerate(issuers):
            if at in reached or certificate.subject != path[-1].issuer:
                continue
            if left == 0:
                return
            left -= 1
            if _is_issued_by(path[-1], certificate):
                reached.add(at)
                longer = [*path, certificate]
                if is_authority:
                    yield longer
                else:
                    paths.append(longer)


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except Exception:  # noqa: BLE001 - names differ, no such signature, no such algorithm, or a stranger's nonsense
        return False
    return True


def _check_path(path: Sequence[x509.Certificate], names: Sequence[str], now: datetime) -> TlsProblem | None:
    """Dates, then names, then all that RFC 5280 §6 asks of a chain whose end is trusted."""
    leaf, *_ = path
    try:
        if any(not one.not_valid_before_utc <= now <= one.not_valid_after_utc for one in path):
            return TlsProblem.CERTIFICATE_EXPIRED
        name = _name_of(leaf, names)
        if name is None:
            return TlsProblem.CERTIFICATE_NAME
        policy = PolicyBuilder().store(Store([path[-1]])).time(now).max_chain_depth(len(path))
        policy = policy.extension_policies(ca_policy=_AUTHORITY, ee_policy=_SERVER)
        policy.build_server_verifier(x509.DNSName(name)).verify(leaf, list(path[1:-1]))
    except Exception:  # noqa: BLE001 - a chain that is not good, or extensions that cannot be read
        return TlsProblem.CERTIFICATE_UNTRUSTED
    return None


def _name_of(leaf: x509.Certificate, names: Sequence[str]) -> str | None:
    """The first of the names that the certificate bears as a DNS-ID; the CN does not count (RFC 9525 §6.3)."""
    try:
        extension = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return None
    presented = [name.lower() for name in extension.value.get_values_for_type(x509.DNSName)]
    return next((name for name in names if any(matches(pattern, name) for pattern in presented)), None)


def _must_be_authority(
    policy: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints
) -> None:
    del policy, certificate
    if not constraints.ca:
        raise ValueError("the issuer is no authority")


def _must_sign_certificates(
    policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None
) -> None:
    del policy, certificate
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("the issuer's key is not for certificates")


def _must_serve(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    del policy, certificate
    if usage is not None and _SERVER_USES.isdisjoint(usage):
        raise ValueError("the certificate is not for servers")


_SERVER_USES: Final = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE})

# Private authorities seldom follow the Web's profile to the letter: what keeps the chain sound is asked for, and no more.
_AUTHORITY: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.AGNOSTIC, _must_be_authority)
    .may_be_present(x509.KeyUsage, Criticality.AGNOSTIC, _must_sign_certificates)
)
_SERVER: Final = (
    ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
    .may_be_present(x509.ExtendedKeyUsage, Criticality.AGNOSTIC, _must_serve)
)
