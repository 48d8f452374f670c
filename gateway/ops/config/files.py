"""The files that the config names: are they there, do they read, do they fit together?

A gateway that starts with a certificate whose key does not match refuses every TLS session; better not to start.
"""

import base64
import ssl
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Protocol

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from gateway.auth.arc.seal import load_seal_key
from gateway.auth.dkim.key_table import KeyFault, KeyTableError, SigningEntry, load_key_table
from gateway.dns.zone import ZoneError, ZoneResolver
from gateway.keys.directory import KeyDirectory
from gateway.keys.errors import KeyDirectoryError
from gateway.keys.model import KeyState
from gateway.keys.signing import signing_entries
from gateway.ops.config.faults import ConfigError, Fault
from gateway.ops.config.models import (
    ArcSettings,
    DnsSettings,
    DnsUpdateSettings,
    HttpSettings,
    KeysSettings,
    MtaStsSettings,
    OutboundTlsSettings,
    PolicySettings,
    Settings,
    SigningSettings,
    TraceSettings,
)
from gateway.ops.config.values import is_token
from gateway.policy import RuleError, load_rules
from gateway.tlspolicy.mta_sts.own import POLICY_HOST_LABEL
from gateway.tlspolicy.mta_sts.policy import Mode, matches

_MAX_SECRET_BYTES: Final = 4_096
_MIN_HASH_KEY_BYTES: Final = 16


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
    """Whether the rule files parse."""
    for key, source in (("rules", policy.rules), ("shadow", policy.shadow)):
        if source is None or (key == "shadow" and source == policy.rules):
            continue
        try:
            load_rules(source)
        except RuleError as error:
            for fault in error.faults:
                named = f"{fault.place} = {fault.value}" if fault.value else fault.place
                yield FileFault(section="policy", key=key, what=f"{named}: {fault.remedy}", file=fault.file)


def signing_entry(signing: SigningSettings) -> SigningEntry:
    """The key that one `[[signing]]` section names."""
    return SigningEntry(
        domain=signing.domain,
        selector=signing.selector,
        key_path=signing.key,
        subdomains=signing.subdomains,
        expires_after_s=signing.expires_after_s,
    )


def all_signing_entries(settings: Settings) -> tuple[SigningEntry, ...]:
    """The keys of `[[signing]]`, then those of the managed directory that sign now.

    Raises:
        ConfigError: the state of the managed keys cannot be read any more: `check_keys` has read it before.
    """
    try:
        managed = signing_entries(KeyDirectory(settings.keys.directory)) if settings.keys else ()
    except KeyDirectoryError as error:
        raise ConfigError(
            [Fault(source=str(error.path), key="", what=error.what, remedy=error.remedy)]
        ) from error
    return (*map(signing_entry, settings.signing), *managed)


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


def seal_entry(arc: ArcSettings) -> SigningEntry | None:
    """The key that `[arc]` names to seal with; None where nothing is sealed."""
    if arc.seal_domain is None or arc.seal_selector is None or arc.seal_key is None:
        return None
    return SigningEntry(
        domain=arc.seal_domain, selector=arc.seal_selector, key_path=arc.seal_key, subdomains=False
    )


def check_seal(arc: ArcSettings) -> Iterator[FileFault]:
    """Whether `[arc]` names a key that can seal."""
    entry = seal_entry(arc)
    if entry is None:
        return
    try:
        load_seal_key(entry)
    except KeyTableError as error:
        yield from (_about_seal(fault) for fault in error.faults)
    else:
        yield from (_about_seal(fault, is_warning=True) for fault in load_key_table([entry]).warnings)


def _about_seal(fault: KeyFault, *, is_warning: bool = False) -> FileFault:
    return FileFault(
        section="arc", key="seal_key", what=fault.what, remedy=fault.remedy, is_warning=is_warning
    )


class TlsFiles(Protocol):
    """A section that names a certificate and its key."""

    @property
    def tls_certificate(self) -> Path | None: ...  # noqa: D102
    @property
    def tls_key(self) -> Path | None: ...  # noqa: D102


def check_tls(section: str, files: TlsFiles, now: datetime) -> Iterator[FileFault]:
    """Whether certificate and key can be read, belong together and are valid now."""
    if files.tls_certificate is None or files.tls_key is None:
        return
    for fault in _check_tls(files.tls_certificate, files.tls_key, now):
        yield replace(fault, section=section)


def _check_tls(chain: Path, key: Path, now: datetime) -> Iterator[FileFault]:
    """The faults of a pair; the caller knows in which section it is named."""
    certificate: x509.Certificate | None = None
    try:
        certificate = load_certificate(chain)
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
        public_key = _public_key(key)
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
        yield from _check_pair(chain, key, certificate, public_key)
    if certificate is not None:
        yield from _check_dates(certificate, now)
    if public_key is not None and key.stat().st_mode & stat.S_IROTH:
        yield _warning("tls_key", "can be read by every user of this host", f"chmod o-r {key}")


def load_certificate(path: Path) -> x509.Certificate:
    """The first certificate of a chain.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no certificate.
    """
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def certificate_names(certificate: x509.Certificate) -> tuple[str, ...]:
    """The host names that it is good for (RFC 9525 §2): those of subjectAltName and no other, in lower case."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return ()
    return tuple(name.lower() for name in names.get_values_for_type(x509.DNSName))


def check_policy_host(mta_sts: MtaStsSettings, settings: Settings) -> Iterator[FileFault]:
    """Whether our policy can be fetched for every domain of ours, and names this host where it is a mail server of theirs."""
    if mta_sts.tls_certificate is not None:
        with suppress(OSError, ValueError):  # said by `check_tls`
            names = certificate_names(load_certificate(mta_sts.tls_certificate))
            yield from _check_policy_names(names, settings.local_domains)
    policy = mta_sts.policy
    if policy.mode is not Mode.NONE and settings.inbound is not None and not policy.lists(settings.hostname):
        yield FileFault(
            section="mta_sts",
            key="mx",
            what=f"does not name {settings.hostname}",
            remedy="add it if it is in the domain's MX: senders deliver only to servers that are named here",
            is_warning=True,
        )


def _check_policy_names(names: Sequence[str], local_domains: Sequence[str]) -> Iterator[FileFault]:
    for domain in local_domains:
        host = f"{POLICY_HOST_LABEL}.{domain.removeprefix('.')}"
        if domain.startswith(".") or any(matches(name, host) for name in names):
            continue  # for whole trees of subdomains nobody knows which names are needed
        yield FileFault(
            section="mta_sts",
            key="tls_certificate",
            what=f"is not good for {host}",
            remedy="get one that names it: senders fetch the policy from there and from nowhere else",
            is_warning=True,
        )


def check_keys(keys: KeysSettings) -> Iterator[FileFault]:
    """Whether the keys of the managed directory that sign can be read."""
    directory = KeyDirectory(keys.directory)
    try:
        managed = directory.read()
    except KeyDirectoryError as error:
        yield FileFault(
            section="keys", key="directory", what=error.what, remedy=error.remedy, file=str(error.path)
        )
        return
    active = [key for key in managed if key.state is KeyState.ACTIVE]
    for key in active:
        try:
            directory.load(key)
        except KeyDirectoryError as error:
            yield FileFault(
                section="keys", key="directory", what=error.what, remedy=error.remedy, file=str(error.path)
            )
    with suppress(KeyTableError, KeyDirectoryError):  # said above
        for doubt in load_key_table(signing_entries(directory)).warnings:
            yield FileFault(
                section="keys",
                key="directory",
                what=doubt.what,
                remedy=doubt.remedy,
                is_warning=True,
                file=str(doubt.entry.key_path),
            )
    if not active:
        yield FileFault(
            section="keys",
            key="directory",
            what="holds no key that signs yet",
            remedy="`gateway keys new DOMAIN`, publish its record, then `gateway keys rotate`",
            is_warning=True,
        )


def check_update(update: DnsUpdateSettings) -> Iterator[FileFault]:
    """Whether the TSIG secret can be read, and can be one."""
    try:
        load_secret(update.tsig_secret_file)
    except OSError as error:
        yield _unreadable("dns_update", "tsig_secret_file", error)
    except ValueError:
        yield FileFault(
            section="dns_update",
            key="tsig_secret_file",
            what="holds no TSIG secret",
            remedy="write the secret alone, in base64: the `secret` that keymgr -t or tsig-keygen prints",
        )


def load_secret(path: Path) -> str:
    """A TSIG secret, in base64.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    with path.open("rb") as file:
        secret = file.read(_MAX_SECRET_BYTES).decode("ascii").strip()
    if not base64.b64decode(secret, validate=True):
        raise ValueError("empty")
    return secret


def check_hash_key(trace: TraceSettings) -> Iterator[FileFault]:
    """Whether the key that addresses are hashed with can be read, and is long enough."""
    if trace.hash_key_file is None:
        return
    try:
        load_hash_key(trace.hash_key_file)
    except OSError as error:
        yield _unreadable("trace", "hash_key_file", error)
    except ValueError as error:
        remedy = f"make one: openssl rand -hex 32 > {trace.hash_key_file.name}"
        yield FileFault(section="trace", key="hash_key_file", what=str(error), remedy=remedy)


def load_hash_key(path: Path) -> bytes:
    """The key of `[trace] hash_key_file`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is too short.
    """
    with path.open("rb") as file:
        key = file.read(_MAX_SECRET_BYTES).strip()
    if len(key) < _MIN_HASH_KEY_BYTES:
        raise ValueError(f"holds fewer than {_MIN_HASH_KEY_BYTES} bytes")
    return key


def check_token(http: HttpSettings) -> Iterator[FileFault]:
    """Whether the pages' token can be read, and is hard enough to guess."""
    if http.token_file is None:
        return
    try:
        load_token(http.token_file)
    except OSError as error:
        yield _unreadable("http", "token_file", error)
    except ValueError as error:
        remedy = f"make one: openssl rand -hex 24 > {http.token_file.name}"
        yield FileFault(section="http", key="token_file", what=str(error), remedy=remedy)


def load_token(path: Path) -> str:
    """The token of `[http] token_file`.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    with path.open("rb") as file:
        token = file.read(_MAX_SECRET_BYTES).strip()
    if not is_token(token.decode("latin-1")):
        raise ValueError("holds no token: one line of 16 characters or more, without spaces")
    return token.decode("ascii")


def check_authorities(outbound_tls: OutboundTlsSettings) -> Iterator[FileFault]:
    """Whether the trusted authorities can be read: without them every certificate would be refused."""
    if outbound_tls.ca_file is None:
        return
    try:
        ssl.create_default_context(cafile=outbound_tls.ca_file)
    except ssl.SSLError:
        yield FileFault(
            section="outbound_tls",
            key="ca_file",
            what="holds no readable certificate",
            remedy="give a PEM file of authorities, or leave it out for the system's",
        )
    except OSError as error:
        yield _unreadable("outbound_tls", "ca_file", error)


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
