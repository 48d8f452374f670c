"""`gateway tls`: which TLS policy applies to mail for a domain, and why."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from rich.text import Text

from gateway.cli.errors import UsageFault
from gateway.cli.explain_tls import exit_status, explain_decision
from gateway.cli.runtime import open_store
from gateway.cli.show import finding_line, finding_object, terminal
from gateway.cli.tls_probe import (
    Probe,
    explain_probe,
    ourselves,
    probe_all,
    probe_object,
    probe_options,
    probes_status,
)
from gateway.cli.wiring import build_decider, build_policies, build_resolver, remote_port
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneError, ZoneResolver
from gateway.explain import Explanation, Finding
from gateway.mail.address import parse_domain_or_literal
from gateway.mail.errors import ParseError
from gateway.ops.config import DnsSettings, OutboundSettings, OutboundTlsSettings, Settings
from gateway.ops.config.load import load_config
from gateway.ops.text import printable
from gateway.tlspolicy.model import Decision, HostPolicy, NoRoute, Route
from gateway.tlspolicy.mta_sts.events import PolicyEvent
from gateway.tlspolicy.mta_sts.shelf import MemoryShelf, PolicyShelf, StoredPolicy

_SQLITE: Final = "sqlite:///"


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsRequest:
    """What was asked on the command line; None: not said."""

    domain: str
    config: Path | None = None
    zone: Path | None = None
    connect: bool = False
    as_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Basis:
    """What the answer is made from."""

    dns: DnsSettings
    tls: OutboundTlsSettings
    outbound: OutboundSettings | None
    settings: Settings | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """The decision, what became of policies on the way to it, and the sessions that were tried."""

    decision: Decision
    events: Sequence[PolicyEvent] = ()
    probes: Sequence[Probe] = ()


def run_tls(request: TlsRequest) -> int:
    """Find out, print, and give the exit status.

    Raises:
        UsageFault: an argument that cannot be used.
        ConfigError: a config that cannot be.
    """
    domain = _domain(request.domain)
    basis = basis_of(request.config, request.zone)
    resolver = resolver_of(basis.dns)
    answer = asyncio.run(_answer(domain, basis, resolver, connect=request.connect))
    explanation = explain_decision(answer.decision, basis.tls)
    if request.as_json:
        print(json.dumps(as_object(answer, explanation), default=str))
    else:
        _show(answer, explanation)
    return max(exit_status(answer.decision), probes_status(answer.probes))


def _domain(text: str) -> str:
    try:
        return parse_domain_or_literal(text.rpartition("@")[2])
    except ParseError:
        raise UsageFault(f"{printable(text)!r} is no domain: write example.com or [192.0.2.1]") from None


def basis_of(config: Path | None, zone: Path | None) -> Basis:
    """The config's parts, with the command line's over them.

    Raises:
        ConfigError: it cannot be used.
    """
    basis = Basis(dns=DnsSettings(), tls=OutboundTlsSettings(), outbound=None, settings=None)
    if config is not None:
        settings = load_config(config, os.environ, look_at_files=False).settings
        basis = Basis(
            dns=settings.dns, tls=settings.outbound_tls, outbound=settings.outbound, settings=settings
        )
    if zone is None:
        return basis
    dns = basis.dns.model_copy(update={"zone_file": zone})
    return Basis(dns=dns, tls=basis.tls, outbound=basis.outbound, settings=basis.settings)


def resolver_of(dns: DnsSettings) -> StubResolver | ZoneResolver:
    """The resolver of these settings.

    Raises:
        UsageFault: the zone file cannot be used.
    """
    try:
        return build_resolver(dns)
    except OSError as error:
        raise UsageFault(f"{dns.zone_file}: cannot be read: {error.strerror}") from None
    except ZoneError as error:
        faults = [f"{dns.zone_file}:{fault.line}: {fault.message}" for fault in error.faults]
        raise UsageFault("\n".join(faults)) from None


async def _answer(
    domain: str, basis: Basis, resolver: StubResolver | ZoneResolver, *, connect: bool
) -> Answer:
    events: list[PolicyEvent] = []
    port = remote_port(basis.outbound)
    async with _shelf(basis.settings) as shelf:
        try:
            policies = build_policies(basis.tls, resolver, shelf, events.append)
            options = probe_options(basis.tls, basis.outbound, port)
        except OSError as error:
            raise UsageFault(f"[outbound_tls] ca_file = {basis.tls.ca_file}: {error}") from None
        try:
            decision = await build_decider(basis.tls, resolver, port=port, sts=policies).decide(domain)
            probes = (
                await probe_all(decision, resolver, options, ourselves(basis.settings)) if connect else ()
            )
        finally:
            if policies is not None:
                await policies.aclose()
            if isinstance(resolver, StubResolver):
                await resolver.aclose()
    return Answer(decision=decision, events=events, probes=probes)


class _OnlyRead:
    """A shelf that is looked at and left as it is: the running gateway keeps it."""

    def __init__(self, shelf: PolicyShelf) -> None:
        self._shelf = shelf

    async def get(self, domain: str) -> StoredPolicy | None:
        return await self._shelf.get(domain)

    async def put(self, policy: StoredPolicy) -> None:
        del policy

    async def drop(self, domain: str, now: datetime) -> None:
        del domain, now

    async def all(self) -> list[StoredPolicy]:
        return []


@asynccontextmanager
async def _shelf(settings: Settings | None) -> AsyncIterator[PolicyShelf]:
    """The running gateway's policies, where there is a config and a store; a store file is never made here."""
    if settings is None or not _is_there(settings):
        yield MemoryShelf()
        return
    try:
        store = await open_store(settings)
    except UsageFault as error:
        print(f"stored policies are not looked at: {error}", file=sys.stderr)
        store = None
    if store is None:
        yield MemoryShelf()
        return
    try:
        yield _OnlyRead(store.policies)
    finally:
        await store.close(1.0)


def _is_there(settings: Settings) -> bool:
    if settings.store is None:
        return False
    url = settings.store.url
    return not url.startswith(_SQLITE) or Path(url.removeprefix(_SQLITE)).exists()


def _show(answer: Answer, explanation: Explanation) -> None:
    console = terminal()
    decision = answer.decision
    route = decision.route
    is_final = isinstance(route, NoRoute) and not route.temporary
    console.print(Text(f"{decision.domain}: {'NO ROUTE' if is_final else decision.level.upper()}", "bold"))
    findings = list(_with_probes(explanation, answer))
    width = max(len(finding.check) for finding in findings) + 2
    for finding in findings:
        console.print(finding_line(finding, width))
    for event in answer.events:
        if event.detail:
            console.print(Text(f"    {event.change}: {printable(event.detail)}", "dim"))
    console.print(Text(f"  = {explanation.conclusion}"))


def _with_probes(explanation: Explanation, answer: Answer) -> Iterator[Finding]:
    """Each host's sessions behind the host itself; the hosts are the last findings."""
    hosts = answer.decision.hosts
    first = len(explanation.findings) - len(hosts)
    yield from explanation.findings[:first]
    for policy, finding in zip(hosts, explanation.findings[first:], strict=True):
        yield finding
        yield from (explain_probe(probe) for probe in answer.probes if probe.policy is policy)


def as_object(answer: Answer, explanation: Explanation) -> dict[str, object]:
    """The answer for programs. Keys are only ever added; absent is null."""
    decision = answer.decision
    route, sts = decision.route, decision.sts
    return {
        "domain": decision.domain,
        "level": decision.level,
        "override": decision.override,
        "route": {
            "implicit": route.implicit if isinstance(route, Route) else None,
            "secure": route.secure if isinstance(route, Route) else None,
            "problem": None if isinstance(route, Route) else route.problem,
            "temporary": None if isinstance(route, Route) else route.temporary,
        },
        "mta_sts": {
            "mode": sts.mode,
            "id": sts.identifier,
            "mx": sts.mx,
            "expires": sts.expires.isoformat() if sts.expires else None,
            "problem": sts.problem,
            "is_unknown": sts.is_unknown,
        },
        "dane_problem": decision.dane_problem,
        "hosts": [_host_object(host) for host in decision.hosts],
        "sessions": [probe_object(probe) for probe in answer.probes],
        "findings": [finding_object(finding) for finding in explanation.findings],
        "conclusion": explanation.conclusion,
    }


def _host_object(policy: HostPolicy) -> dict[str, object]:
    return {
        "preference": policy.host.preference,
        "name": policy.host.name,
        "demand": policy.demand,
        "enforced": policy.is_enforced,
        "policy_type": policy.policy_type,
        "names": policy.names,
        "server_name": policy.server_name,
        "tlsa": [f"{one.usage} {one.selector} {one.matching_type} {one.data.hex()}" for one in policy.tlsa],
        "problem": policy.problem,
        "note": policy.note,
    }
