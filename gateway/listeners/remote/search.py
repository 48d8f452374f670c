"""The way to a recipient: through the domain's mail servers in their order, until one can take the message (RFC 5321 §5.1).

Equal preferences are shuffled, we ourselves and all behind us are left out, and what a policy forbids is passed by. All of it
ends before our own mail server loses its patience.
"""

import asyncio
import random
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import groupby
from typing import Final

from gateway.dns.resolver import Answer, RecordType, Temporary
from gateway.listeners.remote import refusals
from gateway.listeners.remote.pool import Found, Key, RemotePool
from gateway.listeners.remote.session import SessionFacts, open_host
from gateway.mail.envelope import IpAddress
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.effects import Destination
from gateway.tlspolicy.model import Decision, Demand, HostPolicy, NoRoute, PolicyType, Route, TlsProblem

BUDGET_S: Final = 150.0
"""Postfix waits 300 s for the answer to RCPT (smtp_rcpt_timeout), and the remote server has MAIL and RCPT to answer yet."""

PLACE_WAIT_S: Final = 30.0
"""For a connection to a domain that has as many as it may: longer, and one slow domain would hold all of Postfix's processes."""

SLOW_S: Final = 5.0
SILENT_S: Final = 60.0
"""A domain whose servers kept us waiting for nothing is not asked again for so long: each message would wait as long."""


class HostSearch:
    """One message's search.

    Args:
        pool: the connections there are.
        destination: where to.

    Attributes:
        sessions: those that were opened, or could not be, in their order.
    """

    def __init__(self, pool: RemotePool, destination: Destination) -> None:
        self._pool = pool
        self._destination = destination
        self._began = asyncio.get_running_loop().time()
        self._has_found = False
        self._has_place = True
        self._decision: Decision | None = None
        self._hosts: list[HostPolicy] = []
        self._tried = 0
        self._replies: list[Reply] = []
        self._last: Found | None = None
        self.sessions: Final[list[SessionFacts]] = []

    async def next(self) -> Found | Reply:
        """The next server that can be used, or why there is none."""
        domain = self._destination.domain
        try:
            async with asyncio.timeout_at(self._began + BUDGET_S):
                found = await self._next()
        except TimeoutError:
            found = self._temporary() or refusals.out_of_time(domain)
        waited_s = asyncio.get_running_loop().time() - self._began
        if not isinstance(found, Reply):
            self._has_found = True
        elif not self._has_found and waited_s > SLOW_S and found.is_transient and self._has_place:
            self._pool.silent.note(domain, found, SILENT_S)
        return found

    async def _next(self) -> Found | Reply:
        if self._decision is None:
            if known := self._pool.silent.look_up(self._destination.domain):
                return known
            self._decision = await self._pool.decider.decide(self._destination.domain)
            refusal = self._plan(self._decision)
            if refusal:
                return refusal
        found = await self._go_on()
        while found is None and self._hosts and self._tried < self._pool.limits.max_hosts:
            found = await self._reach(self._hosts.pop(0))
        self._last = found
        if found:
            return found
        return self._temporary() or self._replies[-1]

    async def _go_on(self) -> Found | None:
        """After a server that was of no use: the same one again, where only our old connection to it had died."""
        last, self._last = self._last, None
        if last is None:
            return None
        if last.reused and not last.connection.is_open:
            return await self._reach(last.facts.policy, fresh=True)
        self._replies.append(replies.REMOTE_FAILED)
        return None

    def _temporary(self) -> Reply | None:
        """The last reason that may pass; one that will not must not stand for a server that was only asleep."""
        return next((reply for reply in reversed(self._replies) if reply.is_transient), None)

    # The plan

    def _plan(self, decision: Decision) -> Reply | None:
        route, domain = decision.route, self._destination.domain
        if isinstance(route, NoRoute):
            return refusals.no_route(route)
        hosts = list(decision.hosts)
        own = [
            each.host.preference for each in hosts if each.host.name.lower() in self._pool.limits.own_names
        ]
        if own:  # RFC 5321 §5.1: those behind us would only give it back
            hosts = [each for each in hosts if each.host.preference < min(own)]
            if not hosts:
                return refusals.final(domain, TlsProblem.ROUTE_LOOP)
        if self._destination.requiretls:
            hosts = [policy for each in hosts if (policy := _required(each, route))]
            if not hosts:
                return replies.REMOTE_NO_REQUIRETLS
        self._hosts = list(_shuffled(hosts))
        return None if self._hosts else refusals.final(domain, TlsProblem.NO_HOST)

    # One host

    async def _reach(self, policy: HostPolicy, *, fresh: bool = False) -> Found | None:
        domain = self._destination.domain
        if policy.problem and policy.is_enforced:
            self._told(SessionFacts(policy=policy, problem=policy.problem, detail="barred by the policy"))
            if policy.problem in {TlsProblem.OVERRIDE_REFUSE, TlsProblem.NO_ADDRESS}:
                self._replies.append(refusals.final(domain, policy.problem))
            else:
                self._replies.append(refusals.barred(domain, policy.host.name, policy.problem))
            return None
        self._tried += 1
        keys = [] if fresh else [Key(domain, each) for each in self._equals(policy)]
        try:
            async with asyncio.timeout(PLACE_WAIT_S):
                found = await self._pool.place_or_idle(domain, keys)
        except TimeoutError:
            self._has_place = False
            self._hosts.clear()
            self._replies.append(refusals.too_many(domain))
            return None
        if found is None:
            found = await self._open(policy)
        elif found.facts.policy != policy:  # another one's turn came first
            self._hosts = [policy, *(each for each in self._hosts if each != found.facts.policy)]
        return found if found and self._is_enough(found) else None

    def _equals(self, policy: HostPolicy) -> Iterator[HostPolicy]:
        """The host, and those of the same preference: a connection that is there is worth more than the shuffle."""
        yield policy
        for each in self._hosts:
            if each.host.preference == policy.host.preference and not each.problem:
                yield each

    async def _open(self, policy: HostPolicy) -> Found | None:
        """A new connection, in the place that was taken for it."""
        domain, pool = self._destination.domain, self._pool
        opened = None
        try:
            addresses = await self._addresses(policy)
            if addresses:
                opened = await open_host(policy, addresses, pool.options, pool, self._told)
        finally:
            if opened is None:
                pool.give_back_place(domain)
        if opened is None:
            return None
        connection, facts = opened
        pool.keep(connection, Key(domain, policy), facts)
        return Found(connection, facts, reused=False)

    def _is_enough(self, found: Found) -> bool:
        """RFC 8689 §4.2.1: who does not know REQUIRETLS would not hand the demand on."""
        if not self._destination.requiretls or found.connection.client.capabilities is None:
            return True
        if found.connection.client.capabilities.requiretls:
            return True
        self._replies.append(replies.REMOTE_NO_REQUIRETLS)
        self._pool.put_back(found.connection, reusable=True)
        return False

    async def _addresses(self, policy: HostPolicy) -> list[IpAddress]:
        name = policy.host.name
        if name.startswith("["):
            addresses: list[IpAddress] = [ip_address(name[1:-1].removeprefix("IPv6:"))]
        else:
            resolver = self._pool.resolver
            outcomes = await asyncio.gather(
                resolver.query(name, RecordType.AAAA), resolver.query(name, RecordType.A)
            )
            addresses = [
                record
                for outcome in outcomes
                if isinstance(outcome, Answer)
                for record in outcome.records
                if isinstance(record, IPv4Address | IPv6Address)
            ]
            if not addresses and any(isinstance(outcome, Temporary) for outcome in outcomes):
                self._replies.append(refusals.no_addresses(name))
                return []
        if not addresses:
            self._replies.append(refusals.final(self._destination.domain, TlsProblem.NO_ADDRESS))
        elif any(self._pool.is_ours(address) for address in addresses):
            self._replies.append(refusals.final(self._destination.domain, TlsProblem.ROUTE_LOOP))
            self._hosts = [each for each in self._hosts if each.host.preference < policy.host.preference]
            return []
        return addresses

    def _told(self, facts: SessionFacts) -> None:
        self.sessions.append(facts)
        if self._decision:
            self._pool.watcher.session(self._destination, self._decision, facts)
        if facts.failure:
            self._replies.append(refusals.not_reached(facts))


def _shuffled(hosts: list[HostPolicy]) -> Iterator[HostPolicy]:
    """RFC 5321 §5.1: the load is spread over hosts of equal preference."""
    for _, equal in groupby(hosts, key=lambda policy: policy.host.preference):
        group = list(equal)
        random.shuffle(group)
        yield from group


def _required(policy: HostPolicy, route: Route) -> HostPolicy | None:
    """The host as REQUIRETLS has it (RFC 8689 §4.2.1): found in a way that can be trusted, with a certificate that proves it."""
    if policy.demand is Demand.DANE:
        return replace(policy, is_enforced=True)
    if policy.demand is Demand.PKIX and policy.policy_type is PolicyType.STS:
        return replace(policy, is_enforced=True)
    if policy.problem is not None and policy.is_enforced:  # barred in any case, and its own reason says why
        return policy
    if not route.secure:
        return None
    name = policy.host.name
    return replace(policy, demand=Demand.PKIX, is_enforced=True, names=policy.names or (name,))
