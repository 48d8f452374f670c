"""What must hold for a delivery to this domain? Derived at each question from independent facts: route, DANE, MTA-STS.

DANE goes first where DNSSEC vouches for it (RFC 7672), and MTA-STS never overrides one that fails (RFC 8461 §2). Trouble with one
host's TLSA records touches that host only; trouble with the MTA-STS record is no policy, unless one is known already
(RFC 8461 §3.1, §5.1). The operator's own word for a domain stands before all of them.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol, assert_never

from gateway.dns.resolver import Resolver
from gateway.dns.stub import Validation
from gateway.tlspolicy.dane import HostTlsa, ValidationWatch, find_tlsa
from gateway.tlspolicy.model import (
    Decision,
    Demand,
    FailureType,
    HostPolicy,
    MxHost,
    NoRoute,
    PolicyType,
    Route,
    StsView,
    TlsLevel,
    TlsProblem,
)
from gateway.tlspolicy.mta_sts.policy import Mode, matches
from gateway.tlspolicy.mx import find_route

MIN_TTL_S: Final = 5
MAX_TTL_S: Final = 60
"""A decision is derived again after a minute at the latest: the facts have longer lives of their own."""

MAX_KEPT: Final = 10_000
MAX_KEPT_BYTES: Final = 32 * 1024 * 1024
"""An estimate: a stranger's domain may have fifty hosts, with TLSA records of 64 KB each."""

_DECISION_BYTES: Final = 1_000
_HOST_BYTES: Final = 700
_PIECE_BYTES: Final = 150  # a TLSA record, or a line of a policy with its pattern

STS_FAILURES: Final = {
    TlsProblem.STS_FETCH_CONNECT: FailureType.STS_POLICY_FETCH_ERROR,
    TlsProblem.STS_FETCH_TIMEOUT: FailureType.STS_POLICY_FETCH_ERROR,
    TlsProblem.STS_FETCH_STATUS: FailureType.STS_POLICY_FETCH_ERROR,
    TlsProblem.STS_FETCH_REDIRECT: FailureType.STS_POLICY_FETCH_ERROR,
    TlsProblem.STS_FETCH_TYPE: FailureType.STS_POLICY_FETCH_ERROR,
    TlsProblem.STS_FETCH_TOO_LARGE: FailureType.STS_POLICY_FETCH_ERROR,
    TlsProblem.STS_FETCH_CERTIFICATE: FailureType.STS_WEBPKI_INVALID,
    TlsProblem.STS_POLICY_INVALID: FailureType.STS_POLICY_INVALID,
}
"""`StsView.problem` as a TLS report has it (RFC 8460 §4.3.2.2); what is not here concerns the record and is not reported."""


class StsSource(Protocol):
    """Where MTA-STS policies come from."""

    async def look_up(self, domain: str) -> StsView:
        """What holds for the domain now. Bounded in time; never raises for anything that the network does."""
        ...


class DecisionObserver(Protocol):
    """Who counts."""

    def __call__(self, decision: Decision, /, *, was_kept: bool) -> None:
        """Somebody asked; `was_kept`: no fact was looked up for it. May not raise."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DeciderOptions:
    """How to decide.

    Attributes:
        overrides: a level by domain, or by `.domain` for all below it.
        port: of remote mail servers, which is part of the TLSA name.
    """

    overrides: Mapping[str, str] = field(default_factory=dict)
    port: int = 25


class Decider:
    """Answers what holds for a domain, and keeps the answer for a moment.

    Args:
        resolver: a validating one, if DANE is to be of use.
        sts: MTA-STS policies; None: MTA-STS is off.
        dane: whether the resolver validates; None: DANE is off.
        options: see there.
        observe: told of each decision that is asked for.
        now: a clock that never goes back, in seconds.
    """

    def __init__(
        self,
        resolver: Resolver,
        *,
        sts: StsSource | None = None,
        dane: ValidationWatch | None = None,
        options: DeciderOptions = DeciderOptions(),
        observe: DecisionObserver | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._resolver = resolver
        self._sts = sts
        self._dane = dane
        self._port = options.port
        self._overrides = dict(options.overrides)
        self._observe = observe
        self._now = now
        self._kept: OrderedDict[str, tuple[float, Decision]] = OrderedDict()
        self._kept_bytes = 0

    @property
    def overrides(self) -> Mapping[str, str]:
        """The operator's words as they are now; what `take_overrides` changes is seen here."""
        return MappingProxyType(self._overrides)

    def take_overrides(self, overrides: Mapping[str, str]) -> None:
        """Other words from now on, for domains already decided, too."""
        self._overrides.clear()
        self._overrides.update(overrides)
        self._kept.clear()
        self._kept_bytes = 0

    async def aclose(self) -> None:
        """End what goes on beside the questions."""
        if self._dane is not None:
            await self._dane.aclose()

    def kept(self, domain: str) -> Decision | None:
        """The decision where it is kept; None where it must be derived."""
        kept = self._kept.get(domain)
        if kept is None or self._now() >= kept[0]:
            return None
        self._kept.move_to_end(domain)
        if self._observe is not None:
            self._observe(kept[1], was_kept=True)
        return kept[1]

    async def decide(self, domain: str) -> Decision:
        """What holds for `domain`, as `parse_domain_or_literal` writes it. Does not suspend where the answer is kept."""
        kept = self.kept(domain)
        if kept is not None:
            return kept
        decision = await self._derive(domain)
        if self._observe is not None:
            self._observe(decision, was_kept=False)
        self._keep(domain, decision)
        return decision

    def _keep(self, domain: str, decision: Decision) -> None:
        self._forget(domain)
        self._kept[domain] = (self._now() + decision.ttl, decision)
        self._kept_bytes += _size(decision)
        while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:
            self._forget(next(iter(self._kept)))

    def _forget(self, domain: str) -> None:
        kept = self._kept.pop(domain, None)
        if kept is not None:
            self._kept_bytes -= _size(kept[1])

    async def _derive(self, domain: str) -> Decision:
        override = override_for(domain, self._overrides)
        if override is not None and override is not TlsLevel.DANE_ONLY:
            return overridden(domain, await find_route(domain, self._resolver), override)
        (route, tlsa, dane_problem), sts = await asyncio.gather(
            self._route_and_tlsa(domain), self._policy(domain, override)
        )
        return derive(
            Facts(domain=domain, route=route, tlsa=tlsa, sts=sts, dane_problem=dane_problem), override
        )

    async def _policy(self, domain: str, override: TlsLevel | None) -> StsView:
        if self._sts is None or override is not None or domain.startswith("["):
            return StsView()
        return await self._sts.look_up(domain)

    async def _route_and_tlsa(
        self, domain: str
    ) -> tuple[Route | NoRoute, tuple[HostTlsa, ...], TlsProblem | None]:
        route = await find_route(domain, self._resolver)
        if self._dane is None or isinstance(route, NoRoute):
            return route, (), None
        if await self._dane.look() is Validation.NO:
            return route, (), TlsProblem.DANE_NOT_VALIDATING
        if (
            not route.secure
        ):  # RFC 7672 §2.2.1: an insecure MX can name anybody's host, so its TLSA says nothing
            return route, (), None
        found = await asyncio.gather(
            *[find_tlsa(host.name, self._resolver, port=self._port) for host in route.hosts]
        )
        return route, tuple(found), None


def override_for(domain: str, overrides: Mapping[str, str]) -> TlsLevel | None:
    """The operator's word for the domain itself, else for the nearest one above it that is written with a dot."""
    level = overrides.get(domain)
    rest = domain
    while level is None and "." in rest:
        rest = rest.partition(".")[2]
        level = overrides.get(f".{rest}")
    return None if level is None else TlsLevel(level)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found out of one domain; `tlsa` goes with the route's hosts, or is empty where DANE was not asked."""

    domain: str
    route: Route | NoRoute
    tlsa: tuple[HostTlsa, ...] = ()
    sts: StsView = field(default_factory=StsView)
    dane_problem: TlsProblem | None = None


def derive(facts: Facts, override: TlsLevel | None = None) -> Decision:
    """The decision that follows; `override` is None or `dane-only`, which takes DANE from the facts."""
    route = facts.route
    hosts: tuple[HostPolicy, ...] = ()
    if isinstance(route, Route):
        found = facts.tlsa or (HostTlsa(),) * len(route.hosts)
        hosts = tuple(
            _host_policy(facts, route, host, tlsa) for host, tlsa in zip(route.hosts, found, strict=True)
        )
        if override is TlsLevel.DANE_ONLY:
            hosts = tuple(map(_dane_or_nothing, hosts))
    return Decision(
        domain=facts.domain,
        route=route,
        hosts=hosts,
        level=_level(route, hosts, facts.sts) if override is None else _level_of(override, hosts),
        sts=facts.sts,
        override=override,
        dane_problem=facts.dane_problem,
        ttl=MIN_TTL_S if facts.sts.is_unknown else _ttl(route, facts.tlsa),
    )


def overridden(domain: str, route: Route | NoRoute, override: TlsLevel) -> Decision:
    """The decision where the operator's own word stands, whatever the domain's DNS says."""
    hosts: tuple[HostPolicy, ...] = ()
    if isinstance(route, Route):
        hosts = tuple(_by_override(host, override) for host in route.hosts)
    return Decision(
        domain=domain,
        route=route,
        hosts=hosts,
        level=_level_of(override, hosts),
        override=override,
        ttl=_ttl(route, ()),
    )


def _host_policy(facts: Facts, route: Route, host: MxHost, tlsa: HostTlsa) -> HostPolicy:
    """DANE's demand where there is one, else that of MTA-STS, else none."""
    if tlsa.problem is TlsProblem.NO_ADDRESS:
        return HostPolicy(host=host, demand=Demand.NONE, problem=tlsa.problem)
    if tlsa.problem is not None:
        return HostPolicy(
            host=host,
            demand=Demand.DANE,
            policy_type=PolicyType.TLSA,
            problem=tlsa.problem,
            failure=FailureType.DNSSEC_INVALID,
        )
    if tlsa.records:
        names = (*tlsa.names, route.domain, route.alias_of)
        return HostPolicy(
            host=host,
            demand=Demand.DANE,
            policy_type=PolicyType.TLSA,
            names=tuple(dict.fromkeys(name for name in names if name)),  # RFC 7672 §3.2.2
            server_name=tlsa.base_domain,  # RFC 7672 §8.1
            tlsa=tlsa.records,
        )
    note = TlsProblem.DANE_UNUSABLE if tlsa.base_domain else None
    if facts.sts.is_unknown:
        return HostPolicy(host=host, demand=Demand.NONE, problem=facts.sts.problem, note=note)
    if facts.sts.mode == Mode.ENFORCE or (facts.sts.mode == Mode.TESTING and note is None):
        return _sts_host(facts.sts, host, note)
    if note is not None:  # RFC 7672 §2.2: TLS is demanded, though nobody can be authenticated
        return HostPolicy(
            host=host,
            demand=Demand.ENCRYPT,
            policy_type=PolicyType.TLSA,
            server_name=tlsa.base_domain,
            note=note,
        )
    return HostPolicy(host=host, demand=Demand.NONE, server_name=_server_name(host))


def _sts_host(sts: StsView, host: MxHost, note: TlsProblem | None) -> HostPolicy:
    """RFC 8461 §4.1, §4.2: the host is one of the policy's, and its certificate is valid for its own name."""
    is_listed = any(matches(pattern, host.name) for pattern in sts.mx)
    return HostPolicy(
        host=host,
        demand=Demand.PKIX,
        is_enforced=sts.mode == Mode.ENFORCE,
        policy_type=PolicyType.STS,
        names=(host.name,),
        server_name=_server_name(host),
        problem=None if is_listed else TlsProblem.STS_MX_NOT_LISTED,
        failure=None if is_listed else FailureType.VALIDATION_FAILURE,
        note=note,
    )


def _dane_or_nothing(policy: HostPolicy) -> HostPolicy:
    """The operator demands DANE: a host without it gets no mail."""
    if policy.demand is Demand.DANE or policy.problem is not None:
        return policy
    return HostPolicy(
        host=policy.host,
        demand=Demand.DANE,
        policy_type=PolicyType.TLSA,
        server_name=policy.server_name,
        problem=TlsProblem.DANE_REQUIRED,
        failure=FailureType.DANE_REQUIRED,
        note=policy.note,
    )


def _by_override(host: MxHost, override: TlsLevel) -> HostPolicy:
    server_name = _server_name(host)
    match override:
        case TlsLevel.MAY:
            return HostPolicy(host=host, demand=Demand.NONE, server_name=server_name)
        case TlsLevel.ENCRYPT:
            return HostPolicy(host=host, demand=Demand.ENCRYPT, server_name=server_name)
        case TlsLevel.SECURE:
            return HostPolicy(host=host, demand=Demand.PKIX, names=(host.name,), server_name=server_name)
        case TlsLevel.REFUSE:
            return HostPolicy(host=host, demand=Demand.NONE, problem=TlsProblem.OVERRIDE_REFUSE)
        case TlsLevel.DANE | TlsLevel.DANE_ONLY:
            raise ValueError(f"{override} is not decided without the domain's DNS")
        case _:
            assert_never(override)


def _level(route: Route | NoRoute, hosts: tuple[HostPolicy, ...], sts: StsView) -> TlsLevel:
    """One word for a mail server that does MX and TLSA lookups itself."""
    is_sts = sts.mode == Mode.ENFORCE
    may_be_sts = is_sts or sts.is_unknown
    if isinstance(route, NoRoute):
        if not route.temporary:
            return TlsLevel.MAY  # there is nowhere to deliver to, and the mail server finds that itself
        # Whether DANE holds cannot be known: what its own lookup may find a moment later must not go out unprotected.
        return TlsLevel.SECURE if is_sts else TlsLevel.REFUSE
    there = [host for host in hosts if host.problem is not TlsProblem.NO_ADDRESS]
    if not there:  # the mail server finds that itself, and looks at TLSA records should it find more
        if sts.is_unknown:
            return TlsLevel.REFUSE
        return TlsLevel.SECURE if is_sts else TlsLevel.DANE
    if all(host.is_enforced and host.problem is not None for host in there):
        return TlsLevel.REFUSE
    with_dane = [host for host in there if host.demand is Demand.DANE]
    if with_dane and (may_be_sts or len(with_dane) == len(there)):
        return TlsLevel.DANE_ONLY
    if any(host.policy_type is PolicyType.TLSA for host in there):
        return TlsLevel.DANE
    return TlsLevel.SECURE if is_sts else TlsLevel.MAY


def _level_of(override: TlsLevel, hosts: tuple[HostPolicy, ...]) -> TlsLevel:
    if hosts and all(host.problem is not None for host in hosts):
        return TlsLevel.REFUSE
    return override


def _ttl(route: Route | NoRoute, tlsa: tuple[HostTlsa, ...]) -> int:
    """As long as its shortest-lived fact; a failure is looked at again soon."""
    if isinstance(route, NoRoute):
        return MIN_TTL_S if route.temporary else MAX_TTL_S
    return max(MIN_TTL_S, min([MAX_TTL_S, route.ttl, *(host.ttl for host in tlsa)]))


def _server_name(host: MxHost) -> str | None:
    return None if host.name.startswith("[") else host.name


def _size(decision: Decision) -> int:
    """The memory that a decision takes, about."""
    size = _DECISION_BYTES + sum(_PIECE_BYTES + 2 * len(line) for line in decision.sts.lines)
    for host in decision.hosts:
        size += _HOST_BYTES + sum(_PIECE_BYTES + len(record.data) for record in host.tlsa)
    return size
