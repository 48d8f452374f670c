"""Decisions for tests, as the decider makes them."""

from gateway.dns.resolver import Tlsa
from gateway.tlspolicy.model import (
    Decision,
    Demand,
    HostPolicy,
    MxHost,
    NoRoute,
    Route,
    StsView,
    TlsLevel,
    TlsProblem,
)

DOMAIN = "example.com"
TLSA = Tlsa(3, 1, 1, b"\x00" * 32)


def host(name: str, demand: Demand = Demand.PKIX, problem: TlsProblem | None = None) -> HostPolicy:
    return HostPolicy(
        host=MxHost(10, name),
        demand=demand,
        problem=problem,
        tlsa=(TLSA,) if demand is Demand.DANE and problem is None else (),
    )


def decided(
    level: TlsLevel,
    *hosts: HostPolicy,
    sts: StsView = StsView(),  # noqa: B008 - a frozen value
    override: str | None = None,
    domain: str = DOMAIN,
) -> Decision:
    hosts = hosts or (host(f"mx.{domain}", Demand.NONE),)
    return Decision(
        domain=domain,
        route=Route(domain=domain, hosts=tuple(one.host for one in hosts)),
        hosts=hosts,
        level=level,
        sts=sts,
        override=override,
        ttl=60,
    )


def no_route(level: TlsLevel, problem: TlsProblem, sts: StsView = StsView()) -> Decision:  # noqa: B008
    route = NoRoute(domain=DOMAIN, problem=problem, temporary=True)
    return Decision(domain=DOMAIN, route=route, hosts=(), level=level, sts=sts, ttl=5)


def enforced(*mx: str, mode: str = "enforce") -> StsView:
    lines = ("version: STSv1", f"mode: {mode}", *(f"mx: {one}" for one in mx), "max_age: 86400")
    return StsView(mode=mode, identifier="1", mx=mx, lines=lines)
