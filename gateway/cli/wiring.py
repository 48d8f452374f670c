"""From settings to the parts that judge and decide: resolver, engine, TLS policies. `serve` and the commands build them in the same way."""

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from gateway.auth.arc.seal import Sealer
from gateway.auth.dkim.key_table import KeyTable, SigningKey
from gateway.auth.dkim.sign import Signer
from gateway.cli.errors import UsageFault
from gateway.dns.cache import CacheLimits
from gateway.dns.stub import DnsObservation, StubOptions, StubResolver, Validation
from gateway.dns.zone import ZoneResolver
from gateway.engine import Engine, EngineOptions, Judged, OnError
from gateway.keys.rotation import Schedule
from gateway.ops.config import (
    ArcSettings,
    DkimSettings,
    DnsSettings,
    KeysSettings,
    OutboundSettings,
    OutboundTlsSettings,
    PolicySettings,
    Settings,
    TraceSettings,
)
from gateway.ops.config.files import load_hash_key
from gateway.policy import RuleSet
from gateway.smtp.relay import LocalDomains
from gateway.submission import FromCheck, Submission
from gateway.tlspolicy.dane import ValidationWatch
from gateway.tlspolicy.decide import Decider, DeciderOptions, DecisionObserver, StsSource
from gateway.tlspolicy.mta_sts.cache import PolicyCache
from gateway.tlspolicy.mta_sts.events import PolicyEvent
from gateway.tlspolicy.mta_sts.fetch import FetchOptions, HttpsFetcher
from gateway.tlspolicy.mta_sts.shelf import MemoryShelf, PolicyShelf
from gateway.trace.addresses import AddressHider

RESOLV_CONF: Final = Path("/etc/resolv.conf")
LOOPBACK: Final = "127.0.0.1"
SMTP_PORT: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Observers:
    """Who is told of what happens; None: nobody."""

    judged: Callable[[Judged], None] | None = None
    dns: Callable[[DnsObservation], None] | None = None


NOBODY: Final = Observers()


def build_resolver(dns: DnsSettings, observers: Observers = NOBODY) -> StubResolver | ZoneResolver:
    """A zone file's resolver where one is named, else a stub.

    Raises:
        OSError, ZoneError: the zone file; `gateway.ops.config.load` has looked at it before.
    """
    if dns.zone_file is not None:
        return ZoneResolver.from_file(dns.zone_file)
    options = StubOptions(
        timeout_s=dns.timeout_s,
        attempt_timeout_s=min(StubOptions().attempt_timeout_s, dns.timeout_s),
        cache=CacheLimits(max_entries=dns.cache_entries),
    )
    return StubResolver(resolver_addresses(dns), options=options, observe=observers.dns)


def resolver_addresses(dns: DnsSettings) -> list[str]:
    """The resolvers to ask, in this order."""
    return [str(server) for server in dns.servers] or system_servers()


def system_servers(path: Path = RESOLV_CONF) -> list[str]:
    """The system's resolvers; the one on this host where none is named, as resolv.conf(5) has it."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    words = (line.split() for line in lines)
    found = [
        word[1] for word in words if len(word) > 1 and word[0] == "nameserver" and _is_plain_address(word[1])
    ]
    return found or [LOOPBACK]


def _is_plain_address(text: str) -> bool:
    """Whether the stub resolver can use it: an address without a scope (`fe80::1%eth0`)."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text


@dataclass(frozen=True, slots=True, kw_only=True)
class Judging:
    """All that the engine is built from."""

    resolver: StubResolver | ZoneResolver
    rules: RuleSet
    shadow: RuleSet | None = None
    authserv_id: str
    dns: DnsSettings
    policy: PolicySettings
    dkim: DkimSettings
    arc: ArcSettings
    clock: Callable[[], float] = time.time


def build_engine(parts: Judging, observers: Observers = NOBODY, *, client_known: bool = True) -> Engine:
    """The engine of these parts."""
    options = EngineOptions(
        max_queries=parts.dns.max_queries_per_message,
        message_timeout_s=parts.dns.message_timeout_s,
        max_signatures=parts.dkim.max_signatures,
        max_arc_instances=parts.arc.max_instances,
        trusted_sealers=frozenset(parts.arc.trusted_sealers),
        on_error=OnError(parts.policy.on_error),
        client_known=client_known,
    )
    engine = Engine(
        parts.resolver,
        parts.rules,
        authserv_id=parts.authserv_id,
        options=options,
        observe=observers.judged,
        clock=parts.clock,
    )
    engine.shadow = parts.shadow
    return engine


def build_signer(keys: KeyTable) -> Signer | None:
    """The signer with these keys; None where there are none, and nothing is signed."""
    return Signer(keys) if keys.keys else None


def build_submission(settings: Settings) -> Submission | None:
    """What the submission door asks of its users' messages; None where there is no such door."""
    door = settings.submission
    if door is None:
        return None
    return Submission(
        hostname=settings.hostname,
        from_check=FromCheck(door.from_check),
        senders=door.senders,
        is_local=LocalDomains(settings.local_domains).__contains__,
        login_domain=door.login_domain,
        recipient_delimiter=door.recipient_delimiter,
    )


def build_sealer(key: SigningKey | None) -> Sealer | None:
    """The sealer with this key; None where there is none, and nothing is sealed."""
    return Sealer(key) if key is not None else None


def build_decider(
    tls: OutboundTlsSettings,
    resolver: StubResolver | ZoneResolver,
    *,
    port: int = SMTP_PORT,
    sts: StsSource | None = None,
    observe: DecisionObserver | None = None,
) -> Decider:
    """What decides about outbound TLS.

    Args:
        tls: what the operator allows.
        resolver: for all look-ups.
        port: of remote mail servers.
        sts: where MTA-STS policies come from; None: nowhere.
        observe: told of each decision that is asked for.
    """
    return Decider(
        resolver,
        sts=sts,
        dane=ValidationWatch(validation_check(resolver)) if tls.dane else None,
        options=DeciderOptions(overrides=tls.overrides, port=port),
        observe=observe,
    )


def build_policies(
    tls: OutboundTlsSettings,
    resolver: StubResolver | ZoneResolver,
    shelf: PolicyShelf | None,
    observe: Callable[[PolicyEvent], None],
) -> PolicyCache | None:
    """The MTA-STS policies, kept on `shelf` or in memory alone; None where MTA-STS is off.

    Raises:
        OSError: `ca_file`; `gateway.ops.config.load` has looked at it before.
    """
    if not tls.mta_sts:
        return None
    return PolicyCache(resolver, policy_fetcher(tls, resolver), shelf or MemoryShelf(), observe=observe)


def policy_fetcher(tls: OutboundTlsSettings, resolver: StubResolver | ZoneResolver) -> HttpsFetcher:
    """What fetches MTA-STS policies.

    Raises:
        OSError: `ca_file`.
    """
    options = FetchOptions(timeout_s=tls.fetch_timeout_s, port=tls.policy_port, ca_file=tls.ca_file)
    return HttpsFetcher(resolver, options)


def build_hider(trace: TraceSettings) -> AddressHider | None:
    """Who hashes addresses in traces; None where they are kept as they are.

    Raises:
        UsageFault: its key cannot be read; `gateway.ops.config.load` has looked at it before.
    """
    if trace.addresses == "plain" or trace.hash_key_file is None:
        return None
    try:
        return AddressHider(load_hash_key(trace.hash_key_file))
    except (OSError, ValueError) as error:
        raise UsageFault(f"[trace] hash_key_file = {trace.hash_key_file}: {error}") from error


def rotation_schedule(keys: KeysSettings) -> Schedule:
    """When managed keys take their steps."""
    return Schedule(
        publish_ahead_s=keys.publish_ahead_s,
        keep_old_s=keys.keep_old_s,
        rotate_every_s=keys.rotate_every_s or None,
    )


def remote_port(outbound: OutboundSettings | None) -> int:
    """The port of the world's mail servers, which is part of their TLSA names."""
    return SMTP_PORT if outbound is None else outbound.remote_port


def validation_check(resolver: StubResolver | ZoneResolver) -> Callable[[], Awaitable[Validation]]:
    """What tells whether the resolver validates (DNSSEC)."""
    if isinstance(resolver, StubResolver):
        return resolver.check_validating

    async def as_written() -> Validation:  # a zone text says itself what is secure
        return Validation.YES

    return as_written
