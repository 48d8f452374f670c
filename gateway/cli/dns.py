"""`gateway dns`: what a domain should publish: printed, compared with what it does, or written into the zone."""

import asyncio
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from rich.text import Text

from gateway.auth.dkim.key_table import KeyFileError, load_private_key
from gateway.cli.errors import UsageFault
from gateway.cli.keys import key_directory, live_resolver, primary_of, read_domain, read_settings
from gateway.cli.show import terminal
from gateway.dns.stub import StubResolver
from gateway.keys.model import KeyState, ManagedKey, key_record
from gateway.keys.private_key import public_text, type_of
from gateway.mail.address import parse_mailbox
from gateway.mail.errors import ParseError
from gateway.ops.config import Settings
from gateway.ops.config.files import certificate_names, seal_entry
from gateway.ops.text import printable
from gateway.publish.compare import Comparison, Status, compare
from gateway.publish.master_file import format_master_file
from gateway.publish.records import OURS, Purpose, Wanted, is_of_purpose, presentation
from gateway.publish.update import Change, Mode, Primary, Wish
from gateway.publish.wanted import Facts, PublicKey, ServerKey, wanted_records

EXIT_STATUS: Final = {Status.OK: 0, Status.UNKNOWN: 10, Status.MISSING: 11, Status.DIFFERS: 12}
"""Of several records, the highest."""

_STYLE: Final = {
    Status.OK: "green",
    Status.UNKNOWN: "yellow",
    Status.MISSING: "red",
    Status.DIFFERS: "bold red",
}
_DEFAULT_TTL_S: Final = 3_600
_MAX_PEM_BYTES: Final = 1_048_576
_SAFE_IN_URI: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.@+_-")

_ABOUT: Final = {
    KeyState.MADE: "made, waits to be seen in the DNS",
    KeyState.PUBLISHED: "published, will sign",
    KeyState.ACTIVE: "signs",
    KeyState.RETIRING: "signs no more, stays for mail under way",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DnsRequest:
    """What was asked on the command line."""

    config: Path
    domain: str
    check: bool = False
    publish: bool = False
    everything: bool = False
    dry_run: bool = False
    next_keys: Sequence[Path] = ()
    reports_to: str | None = None
    as_json: bool = False


def run_dns(request: DnsRequest) -> int:
    """Print, compare or publish; give the exit status.

    Raises:
        UsageFault, ConfigError, KeyDirectoryError: what was given cannot be used.
        PublishError: the zone could not be written.
    """
    settings = read_settings(request.config)
    facts = facts_of(
        settings, read_domain(request.domain), next_keys=request.next_keys, reports_to=request.reports_to
    )
    if not facts.is_local and not facts.keys:
        raise UsageFault(
            f"{facts.domain} is none of ours: it is not in local_domains, and no key of [keys] or [[signing]] is for it"
        )
    wanted = wanted_records(facts)
    answer: dict[str, object] = {"domain": facts.domain, "records": [_as_object(one) for one in wanted]}
    status = 0
    if request.publish:
        changes = asyncio.run(_publish(request, primary_of(settings), wanted))
        answer["changes"] = [line for change in changes for line in change.lines()]
        answer["written"] = not request.dry_run
    if request.check:
        comparisons = asyncio.run(_compare(settings, facts, wanted))
        answer["checks"] = [_comparison_as_object(one) for one in comparisons]
        status = max(EXIT_STATUS[one.status] for one in comparisons)
        if not request.as_json:
            _show(comparisons)
    if request.as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    elif not (request.publish or request.check):
        ttl_s = settings.dns_update.ttl_s if settings.dns_update else _DEFAULT_TTL_S
        sys.stdout.write(format_master_file(facts.domain, wanted, ttl_s=ttl_s))
    return status


# What is known


def facts_of(
    settings: Settings, domain: str, *, next_keys: Sequence[Path] = (), reports_to: str | None = None
) -> Facts:
    """All that the config and its files know of the domain, which is in A-labels.

    Raises:
        UsageFault, KeyDirectoryError: a key or certificate cannot be read.
    """
    return Facts(
        domain=domain,
        settings=settings,
        keys=tuple(_keys(settings, domain)),
        server_key=_inbound_key(settings),
        next_keys=[_server_key(path) for path in next_keys],
        report_to=_address(reports_to or f"postmaster@{domain}"),
    )


def _keys(settings: Settings, domain: str) -> Iterator[PublicKey]:
    selectors: set[str] = set()
    for signing in settings.signing:
        if signing.domain == domain:
            selectors.add(signing.selector)
            yield _key_in_file(signing.selector, signing.key, "signs")
    if settings.keys is not None:
        for key in key_directory(settings.keys).read():
            if key.domain == domain and key.state is not KeyState.GONE:
                selectors.add(key.selector)
                yield _public_key(key)
    seal = seal_entry(settings.arc)
    if seal is not None and seal.domain == domain and seal.selector not in selectors:
        yield _key_in_file(seal.selector, seal.key_path, "seals (ARC)")


def _key_in_file(selector: str, path: Path, use: str) -> PublicKey:
    try:
        private = load_private_key(path)
    except KeyFileError as error:
        raise UsageFault(f"{path}: {error.what}; {error.remedy}") from None
    record = key_record(type_of(private), public_text(private))
    return PublicKey(selector=selector, record=record, about=f"of {path}, {use}")


def _public_key(key: ManagedKey) -> PublicKey:
    return PublicKey(selector=key.selector, record=key.record, about=f"{key.algorithm}, {_ABOUT[key.state]}")


def _inbound_key(settings: Settings) -> ServerKey | None:
    inbound = settings.inbound
    return _server_key(inbound.tls_certificate) if inbound and inbound.tls_certificate else None


def _server_key(path: Path) -> ServerKey:
    """The key of a certificate, or of a private or public key file."""
    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_PEM_BYTES)
    except OSError as error:
        raise UsageFault(f"{path}: cannot be read: {error.strerror or error}") from None
    names: tuple[str, ...] = ()
    key: PublicKeyTypes
    try:
        if b"-----BEGIN CERTIFICATE-----" in pem:
            certificate = x509.load_pem_x509_certificates(pem)[0]
            names = certificate_names(certificate)
            key = certificate.public_key()
        else:
            key = _load_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise UsageFault(f"{path}: holds neither a certificate nor a key (PEM)") from None
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return ServerKey(names=names, digest=hashlib.sha256(encoded).digest(), source=str(path))


def _load_key(pem: bytes) -> PublicKeyTypes:
    if b"-----BEGIN PUBLIC KEY-----" in pem:
        return load_pem_public_key(pem)
    return load_pem_private_key(pem, password=None).public_key()


def _address(text: str) -> str:
    """An address as it may stand in a record: nothing that a tag list or a URI would take for its own."""
    try:
        address = str(parse_mailbox(text))
    except ParseError:
        address = ""
    if not address or not set(address) <= _SAFE_IN_URI:
        raise UsageFault(
            f"{printable(text, 80)} is no address for reports: write it like reports@example.net"
        )
    return address


# Comparing


async def _compare(settings: Settings, facts: Facts, wanted: Sequence[Wanted]) -> tuple[Comparison, ...]:
    resolver = live_resolver(settings)
    try:
        return await compare(facts, wanted, resolver)
    finally:
        if isinstance(resolver, StubResolver):
            await resolver.aclose()


def _show(comparisons: Sequence[Comparison]) -> None:
    console = terminal()
    for one in comparisons:
        console.print(
            Text.assemble(
                (f"{one.status:<8}", _STYLE[one.status]),
                f" {one.wanted.purpose:<13} {one.wanted.name} {one.wanted.record_type}",
                f": {printable(one.note)}" if one.note else "",
            )
        )
        if one.status in {Status.MISSING, Status.DIFFERS}:
            for found in one.found:
                console.print(Text(f"         found  {printable(found)}", "dim"))
            for record in one.wanted.records:
                console.print(Text(f"         wanted {printable(presentation(record), 2_000)}", "dim"))


# Publishing


async def _publish(request: DnsRequest, primary: Primary, wanted: Sequence[Wanted]) -> list[Change]:
    """Show what changes, then change it."""
    changes = await primary.plan(_wishes(wanted, everything=request.everything))
    real = [change for change in changes if not change.is_none]
    if not request.as_json:
        console = terminal()
        for change in real:
            for line in change.lines():
                console.print(Text(printable(line, 2_000), "green" if line.startswith("+") else "red"))
        if not real:
            console.print("nothing to change: the zone holds every record of ours")
    if not request.dry_run:
        await primary.write(real)
    return real


def _wishes(wanted: Sequence[Wanted], *, everything: bool) -> Iterator[Wish]:
    for one in wanted:
        if one.records and (everything or one.purpose in OURS):
            yield Wish(
                name=one.name,
                record_type=one.record_type,
                records=one.records,
                mode=_mode(one.purpose),
                is_of_kind=partial(is_of_purpose, one.purpose),
            )


def _mode(purpose: Purpose) -> Mode:
    match purpose:
        case Purpose.DKIM | Purpose.MTA_STS:
            return Mode.REPLACE
        case Purpose.TLSA:  # of a key that is to come, or of another server: not known here
            return Mode.ADD
        case _:  # what somebody wrote for his own reasons is never overwritten
            return Mode.IF_ABSENT


# For programs


def _as_object(wanted: Wanted) -> dict[str, object]:
    return {
        "purpose": wanted.purpose,
        "name": wanted.name,
        "type": wanted.record_type,
        "data": [presentation(record) for record in wanted.records],
        "why": wanted.why,
    }


def _comparison_as_object(one: Comparison) -> dict[str, object]:
    return {
        "purpose": one.wanted.purpose,
        "name": one.wanted.name,
        "type": one.wanted.record_type,
        "status": one.status,
        "note": one.note,
        "found": list(one.found),
    }
