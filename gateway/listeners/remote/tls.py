"""TLS as a client of mail: who is at the other end, and is that good enough (RFC 3207, RFC 7672, RFC 8461 §4)?

OpenSSL checks chains and dates; names are compared here, because a host may be known by several and only its DNS names
count. A chain under DANE is checked against the TLSA records and nothing else.
"""

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, assert_never

from gateway.tlspolicy.certificate import classify_certificate_error
from gateway.tlspolicy.dane_match import match_chain
from gateway.tlspolicy.model import Demand, HostPolicy, TlsProblem

_DER: Final = 2  # _ssl.ENCODING_DER


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientContexts:
    """One context for each kind of handshake; made once, for reading the authorities is dear.

    Attributes:
        opportunistic: whatever OpenSSL can still speak: bad encryption is better than none, and none is what would follow.
        encrypted: TLS 1.2 or newer, any certificate; DANE looks at the certificate itself.
        authenticated: TLS 1.2 or newer, a chain to a trusted authority, dates; not names.
    """

    opportunistic: ssl.SSLContext
    encrypted: ssl.SSLContext
    authenticated: ssl.SSLContext

    def for_demand(self, demand: Demand) -> ssl.SSLContext:
        """The context for this demand."""
        match demand:
            case Demand.NONE:
                return self.opportunistic
            case Demand.ENCRYPT | Demand.DANE:
                return self.encrypted
            case Demand.PKIX:
                return self.authenticated
            case _:
                assert_never(demand)


def make_client_contexts(ca_file: Path | None = None) -> ClientContexts:
    """Contexts that trust the authorities in `ca_file`, or else the system's; reads them now.

    Raises:
        OSError: the file cannot be read, or holds no certificate (`ssl.SSLError` is an OSError).
    """
    authenticated = _make_context()
    authenticated.verify_mode = ssl.CERT_REQUIRED
    if ca_file is None:
        authenticated.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        authenticated.load_verify_locations(ca_file)
    opportunistic = _make_context()
    opportunistic.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    opportunistic.set_ciphers("DEFAULT:@SECLEVEL=0")
    return ClientContexts(opportunistic=opportunistic, encrypted=_make_context(), authenticated=authenticated)


def _make_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # SNI and the names to accept are two things: see `wrong_with`
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    return context


def wrong_with(session: ssl.SSLObject, policy: HostPolicy) -> TlsProblem | None:
    """What the finished handshake lacks of what the policy demands; None: nothing."""
    match policy.demand:
        case Demand.NONE | Demand.ENCRYPT:
            return None
        case Demand.PKIX:  # the chain was checked in the handshake
            return None if bears_one_of(policy.names, session) else TlsProblem.CERTIFICATE_NAME
        case Demand.DANE:
            return match_chain(policy.tlsa, peer_chain(session), policy.names, datetime.now(UTC))
        case _:
            assert_never(policy.demand)


def bears_one_of(names: Iterable[str], session: ssl.SSLObject) -> bool:
    """Whether the verified certificate is for one of the names: its DNS names alone, never the subject (RFC 8461 §4.1)."""
    certificate: Mapping[str, object] = session.getpeercert() or {}
    alternatives = certificate.get("subjectAltName")
    if not isinstance(alternatives, tuple):
        return False
    given = [value for kind, value in alternatives if kind == "DNS"]
    return any(is_named(name, pattern) for name in names for pattern in given)


def is_named(name: str, pattern: str) -> bool:
    """Whether the pattern is the name, or has `*` for the whole of its first label and no other (RFC 9525 §6.3)."""
    name, pattern = name.lower().rstrip("."), pattern.lower().rstrip(".")
    if not pattern.startswith("*."):
        return pattern == name and "*" not in pattern
    label, dot, parent = name.partition(".")
    return bool(label and dot) and "." in parent and parent == pattern[2:]


def peer_chain(session: ssl.SSLObject) -> tuple[bytes, ...]:
    """The certificates that the server sent, in DER, its own first; as they came, for DANE needs no trusted root."""
    public = getattr(session, "get_unverified_chain", None)
    if public is not None:  # Python 3.13
        return tuple(public() or ())
    # Before 3.13 the method is there, but on the object within: bpo-18233.
    inner = session._sslobj  # type: ignore[attr-defined]  # noqa: SLF001
    return tuple(certificate.public_bytes(_DER) for certificate in inner.get_unverified_chain() or ())


def handshake_problem(error: Exception) -> TlsProblem:
    """Why a handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return classify_certificate_error(error)[0]
    return TlsProblem.TLS_HANDSHAKE
