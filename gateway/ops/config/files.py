"""The files that the config names: are they there, do they read, do they fit together?

A gateway that starts with a certificate whose key does not match refuses every TLS session; better not to start.
"""

import ssl
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway.auth.dkim.key_table import KeyFault, KeyTableError, SigningEntry, load_key_table
from gateway.dns.zone import ZoneError, ZoneResolver
from gateway.ops.config.models import DnsSettings, PolicySettings, SigningSettings, SmtpSettings
from gateway.policy import RuleError, load_rules


@dataclass(frozen=True, slots=True, kw_only=True)
class FileFault:
    """One thing about a file that the config names; `section` and `key` say where it is named."""

    section: str
    key: str
    what: str
    remedy: str = ""
    is_warning: bool = False
    index: int | None = None
    """Which one of a section that stands several times: `[[signing]]`."""
    file: str = ""
    """The file to blame where it is not the config: the zone or rule file."""


def check_zone(dns: DnsSettings) -> Iterator[FileFault]:
    """Whether the zone file parses."""
    if dns.zone_file is None:
        return
    try:
        ZoneResolver.from_file(dns.zone_file)
    except OSError as error:
        yield _unreadable("dns", "zone_file", error)
    except ZoneError as error:
        for fault in error.faults:
            yield FileFault(
                section="dns", key="zone_file", what=fault.message, file=f"{dns.zone_file}:{fault.line}"
            )


def check_rules(policy: PolicySettings) -> Iterator[FileFault]:
    """Whether the rule file parses."""
    try:
        load_rules(policy.rules)
    except RuleError as error:
        for fault in error.faults:
            named = f"{fault.place} = {fault.value}" if fault.value else fault.place
            yield FileFault(section="policy", key="rules", what=f"{named}: {fault.remedy}", file=fault.file)


def signing_entry(signing: SigningSettings) -> SigningEntry:
    """The key that one `[[signing]]` section names."""
    return SigningEntry(
        domain=signing.domain,
        selector=signing.selector,
        key_path=signing.key,
        subdomains=signing.subdomains,
        expires_after_s=signing.expires_after_s,
    )


def check_signing(sections: Sequence[tuple[int, SigningSettings]]) -> Iterator[FileFault]:
    """Whether each `[[signing]]` section, given with its place in the file, names a key that can sign."""
    places = [(index, signing_entry(signing)) for index, signing in sections]
    faults: Sequence[KeyFault] = ()
    warnings: Sequence[KeyFault] = ()
    try:
        warnings = load_key_table(entry for _, entry in places).warnings
    except KeyTableError as error:
        faults = error.faults
    for fault in (*faults, *warnings):
        yield FileFault(
            section="signing",
            index=next(index for index, entry in places if entry is fault.entry),
            key="key",
            what=fault.what,
            remedy=fault.remedy,
            is_warning=fault in warnings,
        )


def check_tls(section: str, door: SmtpSettings, now: datetime) -> Iterator[FileFault]:
    """Whether a door's certificate and key can be read, belong together and are valid now."""
    return (replace(fault, section=section) for fault in _tls_faults(door, now))


def _tls_faults(door: SmtpSettings, now: datetime) -> Iterator[FileFault]:
    if door.tls_certificate is None or door.tls_key is None:
        return
    certificate: x509.Certificate | None = None
    try:
        certificate = x509.load_pem_x509_certificates(door.tls_certificate.read_bytes())[0]
    except OSError as error:
        yield _unreadable("", "tls_certificate", error)
    except ValueError:
        yield _tls(
            "tls_certificate",
            "holds no readable certificate",
            "give the PEM file of the chain, own certificate first",
        )
    public_key: bytes | None = None
    try:
        public_key = _public_key(door.tls_key)
    except OSError as error:
        yield _unreadable("", "tls_key", error)
    except TypeError:
        yield _tls(
            "tls_key",
            "is encrypted",
            "give the key without a passphrase: nobody is there to type it at start-up",
        )
    except (ValueError, UnsupportedAlgorithm):
        yield _tls(
            "tls_key", "holds no readable private key", "give the PEM file of the certificate's private key"
        )
    if certificate is not None and public_key is not None:
        yield from _check_pair(door.tls_certificate, door.tls_key, certificate, public_key)
    if certificate is not None:
        yield from _check_dates(certificate, now)
    if public_key is not None and door.tls_key.stat().st_mode & stat.S_IROTH:
        yield _warning("tls_key", "can be read by every user of this host", f"chmod o-r {door.tls_key}")


def _public_key(path: Path) -> bytes:
    key = load_pem_private_key(path.read_bytes(), password=None)
    return key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _check_pair(
    chain: Path, key: Path, certificate: x509.Certificate, public_key: bytes
) -> Iterator[FileFault]:
    certified = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certified != public_key:
        yield _tls(
            "tls_key",
            "is not the key of the first certificate in tls_certificate",
            "give the pair that belongs together",
        )
        return
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(chain, key)
    except ssl.SSLError as error:
        yield _tls(
            "tls_certificate",
            f"is refused by OpenSSL: {error}",
            "give another pair; a short key is the usual cause",
        )


def _check_dates(certificate: x509.Certificate, now: datetime) -> Iterator[FileFault]:
    ends, begins = certificate.not_valid_after_utc, certificate.not_valid_before_utc
    if ends < now:
        yield _warning("tls_certificate", f"expired on {ends:%Y-%m-%d}", "renew it, then send SIGHUP")
    elif begins > now:
        yield _warning(
            "tls_certificate", f"is not valid before {begins:%Y-%m-%d}", "look at this host's clock"
        )


def _tls(key: str, what: str, remedy: str) -> FileFault:
    return FileFault(section="", key=key, what=what, remedy=remedy)


def _warning(key: str, what: str, remedy: str) -> FileFault:
    return FileFault(section="", key=key, what=what, remedy=remedy, is_warning=True)


def _unreadable(section: str, key: str, error: OSError) -> FileFault:
    match error:
        case FileNotFoundError():
            what, remedy = (
                "there is no such file",
                "look at the path; a relative one starts at the config file",
            )
        case PermissionError():
            what, remedy = "may not be read by the gateway's user", "give that user the right to read it"
        case IsADirectoryError():
            what, remedy = "is a directory", "give the file in it"
        case _:
            what, remedy = f"cannot be read: {error.strerror or error}", "look at the file"
    return FileFault(section=section, key=key, what=what, remedy=remedy)


def utc_now() -> datetime:
    """The clock, for certificates."""
    return datetime.now(UTC)
