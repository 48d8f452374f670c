"""Trying a domain's mail servers live, as a delivery would, without sending mail: what each shows, and whether it would do."""

import asyncio
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Final

from gateway.cli.explain_tls import STATUS_FLAWED, STATUS_NEVER, STATUS_PROTECTED, STATUS_WAITS
from gateway.dns.resolver import Answer, RecordType, Resolver, Temporary
from gateway.explain import Finding, Tone
from gateway.explain.problems import TLS_WORDS
from gateway.listeners.remote.session import RemoteOptions, SessionFacts, probe_host
from gateway.listeners.remote.tls import make_client_contexts
from gateway.mail.address import parse_domain
from gateway.mail.envelope import IpAddress
from gateway.mail.errors import ParseError
from gateway.ops.config import OutboundSettings, OutboundTlsSettings, Settings
from gateway.ops.config.files import certificate_names
from gateway.smtp.client import DownstreamFailure
from gateway.tlspolicy.dane import load_certificate
from gateway.tlspolicy.dane_match import match_chain
from gateway.tlspolicy.model import Decision, Demand, HostPolicy, TlsProblem

MAX_HOSTS: Final = 10
CONNECT_S: Final = 10.0
ANSWER_S: Final = 15.0
_NAMES_SHOWN: Final = 4
_EHLO_NAME: Final = "gateway.invalid"
_FINAL: Final = frozenset({TlsProblem.NO_ADDRESS, TlsProblem.ROUTE_LOOP})
"""What the relay refuses a message for, instead of waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A certificate, as far as it can be read."""

    names: tuple[str, ...]
    issuer: str
    expires: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What one address of one mail server showed.

    Attributes:
        facts: the session, in which a certificate for the host's name was hoped for.
        certificate: the server's own.
        pkix: what a certificate check against the trusted authorities found wrong; None: nothing.
        tlsa: the same of the host's TLSA records, where it has some.
        would_do: whether mail would be sent over such a session.
    """

    policy: HostPolicy
    facts: SessionFacts
    certificate: Shown | None = None
    pkix: TlsProblem | None = None
    tlsa: TlsProblem | None = None
    would_do: bool = False


def probe_options(tls: OutboundTlsSettings, outbound: OutboundSettings | None, port: int) -> RemoteOptions:
    """How to meet the world from the command line.

    Raises:
        OSError: `ca_file`.
    """
    contexts = make_client_contexts(tls.ca_file)
    if outbound is None:
        return RemoteOptions(
            ehlo_name=_own_name(),
            contexts=contexts,
            port=port,
            connect_timeout_s=CONNECT_S,
            command_timeout_s=ANSWER_S,
        )
    return RemoteOptions(
        ehlo_name=outbound.ehlo_name or _own_name(),
        contexts=contexts,
        port=port,
        source_ipv4=outbound.source_ipv4,
        source_ipv6=outbound.source_ipv6,
        connect_timeout_s=outbound.connect_timeout_s,
        command_timeout_s=ANSWER_S,
    )


def _own_name() -> str:
    try:
        return parse_domain(platform.node())
    except ParseError:
        return _EHLO_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Ourselves:
    """What would lead back to us (RFC 5321 §5.1): names in lower case, and networks."""

    names: frozenset[str] = frozenset()
    networks: tuple[IPv4Network | IPv6Network, ...] = ()

    def is_at(self, address: IpAddress) -> bool:
        """Whether a mail server at this address is us."""
        return address.is_unspecified or any(address in network for network in self.networks)


NOBODY: Final = Ourselves()


def ourselves(settings: Settings | None) -> Ourselves:
    """As the relay of this config knows itself."""
    outbound = settings.outbound if settings is not None else None
    if settings is None or outbound is None:
        return NOBODY
    names = (settings.hostname, outbound.ehlo_name or settings.hostname, *outbound.own_names)
    sources = (outbound.source_ipv4, outbound.source_ipv6)
    return Ourselves(
        names=frozenset(name.lower() for name in names),
        networks=(*outbound.own_addresses, *(ip_network(source) for source in sources if source)),
    )


async def probe_all(
    decision: Decision, resolver: Resolver, options: RemoteOptions, own: Ourselves = NOBODY
) -> list[Probe]:
    """Try every address of the first hosts, the hosts side by side; we ourselves and all behind us are not tried."""
    hosts = decision.hosts[:MAX_HOSTS]
    found = await asyncio.gather(*[_addresses(policy.host.name, resolver) for policy in hosts])
    loops = [
        policy.host.preference
        for policy, addresses in zip(hosts, found, strict=True)
        if policy.host.name.lower() in own.names or any(map(own.is_at, addresses or ()))
    ]
    nearer = min(loops, default=None)
    tried = await asyncio.gather(
        *[
            _probe(policy, addresses, options)
            if nearer is None or policy.host.preference < nearer
            else _not_tried(policy, TlsProblem.ROUTE_LOOP)
            for policy, addresses in zip(hosts, found, strict=True)
        ]
    )
    return [probe for probes in tried for probe in probes]


async def _probe(
    policy: HostPolicy, addresses: Sequence[IpAddress] | None, options: RemoteOptions
) -> list[Probe]:
    if not addresses:
        return await _not_tried(policy, None if addresses is None else TlsProblem.NO_ADDRESS)
    hoped = replace(policy, demand=Demand.PKIX, is_enforced=False, names=(policy.host.name,))
    return [assess(policy, facts, datetime.now(UTC)) for facts in await probe_host(hoped, addresses, options)]


async def _not_tried(policy: HostPolicy, problem: TlsProblem | None) -> list[Probe]:
    """A host that there is no way to; `problem`: None where its addresses cannot be known now."""
    detail = TLS_WORDS[problem].says if problem else "its addresses could not be looked up"
    facts = SessionFacts(policy=policy, problem=problem, failure=DownstreamFailure.CONNECT, detail=detail)
    return [Probe(policy=policy, facts=facts)]


async def _addresses(host: str, resolver: Resolver) -> list[IpAddress] | None:
    """None: DNS cannot tell now."""
    if host.startswith("["):
        content = host[1:-1]
        is_six = content.startswith("IPv6:")
        return [IPv6Address(content.removeprefix("IPv6:")) if is_six else IPv4Address(content)]
    outcomes = await asyncio.gather(resolver.query(host, RecordType.AAAA), resolver.query(host, RecordType.A))
    found = list(_of(outcome for outcome in outcomes if isinstance(outcome, Answer)))
    return found if found or not any(isinstance(outcome, Temporary) for outcome in outcomes) else None


def _of(answers: Iterable[Answer]) -> Iterable[IpAddress]:
    return (one for answer in answers for one in answer.records if isinstance(one, IPv4Address | IPv6Address))


def assess(policy: HostPolicy, facts: SessionFacts, now: datetime) -> Probe:
    """What the session is worth under each way to check it, and under the host's own policy."""
    tlsa = match_chain(policy.tlsa, facts.chain, policy.names, now) if policy.tlsa and facts.tls else None
    match policy.demand:
        case _ if facts.failure is not None or (policy.is_enforced and policy.problem is not None):
            would_do = False
        case Demand.NONE:
            would_do = True
        case _ if not policy.is_enforced:
            would_do = True
        case Demand.ENCRYPT:
            would_do = facts.tls is not None
        case Demand.PKIX:
            would_do = facts.tls is not None and facts.problem is None
        case Demand.DANE:
            would_do = facts.tls is not None and tlsa is None
    return Probe(
        policy=policy,
        facts=facts,
        certificate=_shown(facts.chain[0]) if facts.chain else None,
        pkix=facts.problem,
        tlsa=tlsa,
        would_do=would_do,
    )


def _shown(der: bytes) -> Shown | None:
    certificate = load_certificate(der)
    if certificate is None:
        return None
    try:
        return Shown(
            names=certificate_names(certificate),
            issuer=certificate.issuer.rfc4514_string(),
            expires=certificate.not_valid_after_utc,
        )
    except Exception:  # noqa: BLE001 - of the library's, on a stranger's bytes
        return None


def explain_probe(probe: Probe) -> Finding:
    """One address in words."""
    facts = probe.facts
    where = f"  at {facts.address}" if facts.address else "  not tried"
    if facts.failure is not None:
        words = TLS_WORDS[facts.problem] if facts.problem else None
        return Finding(
            check=where,
            status="failed",
            tone=Tone.BAD,
            says=f"{facts.detail or facts.failure}.",
            section=words.section if words else "RFC 5321 §4.2",
            problem=facts.problem,
        )
    cause = _cause(probe)
    return Finding(
        check=where,
        status=facts.tls.version if facts.tls else "clear text",
        tone=Tone.GOOD if probe.would_do and facts.tls else Tone.DOUBT if probe.would_do else Tone.BAD,
        says="; ".join([*_session(probe), "mail would go" if probe.would_do else "mail would not go"]) + ".",
        section=TLS_WORDS[cause].section if cause else "RFC 3207 §4",
        problem=cause,
    )


def _cause(probe: Probe) -> TlsProblem | None:
    """What keeps mail away, else what is not as it should be."""
    if probe.policy.tlsa and probe.facts.tls is not None:
        return probe.tlsa
    return probe.pkix


def _session(probe: Probe) -> Iterable[str]:
    facts, certificate = probe.facts, probe.certificate
    if facts.tls is None:
        yield TLS_WORDS[facts.problem].says if facts.problem else "no TLS"
        return
    yield facts.tls.cipher
    if certificate is not None:
        names = ", ".join(certificate.names[:_NAMES_SHOWN]) or "no name"
        yield f"certificate for {names}, until {certificate.expires:%Y-%m-%d}, by {certificate.issuer}"
    yield "authority and name are good" if probe.pkix is None else TLS_WORDS[probe.pkix].says
    if probe.policy.tlsa:
        yield "a TLSA record vouches for it" if probe.tlsa is None else TLS_WORDS[probe.tlsa].says


def probes_status(probes: Sequence[Probe]) -> int:
    """Of what was tried: 0 all would do, 10 not all, 11 none, 12 nor ever will."""
    if not probes or all(probe.would_do and probe.facts.failure is None for probe in probes):
        return STATUS_PROTECTED
    if any(probe.would_do for probe in probes):
        return STATUS_FLAWED
    return STATUS_NEVER if all(probe.facts.problem in _FINAL for probe in probes) else STATUS_WAITS


def probe_object(probe: Probe) -> dict[str, object]:
    """For programs."""
    facts, certificate = probe.facts, probe.certificate
    return {
        "host": probe.policy.host.name,
        "address": str(facts.address) if facts.address else None,
        "helo": facts.helo,
        "tls": facts.tls.version if facts.tls else None,
        "cipher": facts.tls.cipher if facts.tls else None,
        "certificate": None
        if certificate is None
        else {
            "names": certificate.names,
            "issuer": certificate.issuer,
            "expires": certificate.expires.isoformat(),
        },
        "pkix": probe.pkix,
        "tlsa": probe.tlsa,
        "failure": facts.failure,
        "detail": facts.detail,
        "would_do": probe.would_do,
    }
