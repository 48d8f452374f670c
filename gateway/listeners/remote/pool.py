"""Connections to the world's mail servers: counted, lent to one session at a time, kept for a moment for the next message.

A connection is kept under the whole policy that it was opened under, and serves only messages for which that very policy holds: what was
verified for a weaker demand, an older TLSA record or another domain is never used again for more.
"""

import asyncio
import time
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import structlog

from gateway.dns.resolver import Resolver
from gateway.listeners.downstream import Borrower, DownstreamConnection
from gateway.listeners.remote.connection import RemoteConnection
from gateway.listeners.remote.places import Places
from gateway.listeners.remote.session import RemoteOptions, SessionFacts
from gateway.mail.envelope import IpAddress, Session, unmapped
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.effects import Destination
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.errors import LocalProtocolError
from gateway.smtp.settings import Networks
from gateway.tlspolicy.model import Decision, HostPolicy

MAX_USES: Final = 100
"""Messages over one connection; many servers count them, and end it rudely."""

MAX_SILENT: Final = 10_000


_log: Final = structlog.get_logger(__name__)


class Decider(Protocol):
    """Who knows what holds for a domain (`gateway.tlspolicy.decide`)."""

    async def decide(self, domain: str) -> Decision:
        """The domain's mail servers, in their order, and what each must satisfy. Never raises for what the network does."""
        ...


class SessionWatcher(Protocol):
    """Who hears of every session with a remote mail server, good or bad."""

    def session(self, destination: Destination, decision: Decision, facts: SessionFacts) -> None:
        """It was opened, or could not be."""
        ...


class RemoteBorrower(Borrower, Protocol):
    """Who sends a message."""

    def remote_found(self, found: "Found") -> None:
        """A connection that can take it."""
        ...

    def remote_missing(self, reply: Reply) -> None:
        """There is none; what our client hears."""
        ...


class Search(Protocol):
    """The way through one domain's mail servers (`search`)."""

    async def next(self) -> "Found | Reply":
        """The next that can be used, or why there is none."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """See the config's `[outbound]`.

    Attributes:
        own_names: of ours, as they may stand in MX records.
        own_addresses: of ours: a mail server found there is ourselves.
    """

    max_connections: int = 100
    max_connections_per_destination: int = 10
    idle_connection_s: float = 15.0
    max_hosts: int = 5
    own_names: frozenset[str] = frozenset()
    own_addresses: Networks = ()


class Key(NamedTuple):
    """For which messages a connection is good."""

    domain: str
    policy: HostPolicy


class Found(NamedTuple):
    """A connection, and what is known of it."""

    connection: RemoteConnection
    facts: SessionFacts
    reused: bool


class Silent:
    """Domains whose mail servers were asked in vain a moment ago, and what was said of them."""

    __slots__ = ("_known",)

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[float, Reply]] = OrderedDict()

    def note(self, domain: str, reply: Reply, seconds: float) -> None:
        """Say this for so long."""
        self._known[domain] = (time.monotonic() + seconds, reply)
        self._known.move_to_end(domain)
        if len(self._known) > MAX_SILENT:
            self._known.popitem(last=False)

    def look_up(self, domain: str) -> Reply | None:
        """What to say, where it is not worth while to ask."""
        until, reply = self._known.get(domain, (0.0, None))
        if reply is not None and time.monotonic() > until:
            del self._known[domain]
            return None
        return reply


@dataclass(slots=True)
class _Kept:
    key: Key
    facts: SessionFacts


class RemotePool:
    """All connections to the world.

    Args:
        decider: who knows where a domain's mail goes, and how.
        resolver: for the hosts' addresses.
        options: how we meet the world.
        limits: how many connections, and for how long.
        watcher: who hears of every session.
        offered: what our own clients are told that they may ask for.
    """

    def __init__(
        self,
        decider: Decider,
        resolver: Resolver,
        *,
        options: RemoteOptions,
        limits: Limits,
        watcher: SessionWatcher,
        offered: Capabilities,
    ) -> None:
        self.decider: Final = decider
        self.resolver: Final = resolver
        self.options = options
        self.limits: Final = limits
        self.watcher: Final = watcher
        self.capabilities: Capabilities | None = offered
        self.silent: Final = Silent()
        self._places = Places(
            limits.max_connections, limits.max_connections_per_destination, may_reuse=self._has_idle
        )
        self._open: dict[DownstreamConnection, _Kept] = {}
        self._idle: deque[RemoteConnection] = deque()  # the longest idle first
        self._searching: dict[RemoteBorrower, asyncio.Task[None]] = {}
        self._is_closed = False

    # What a session needs

    def seek(self, borrower: RemoteBorrower, search: Search) -> None:
        """Go on with a search, until `remote_found` or `remote_missing`."""
        task = asyncio.get_running_loop().create_task(self._seek(borrower, search))
        self._searching[borrower] = task

    async def _seek(self, borrower: RemoteBorrower, search: Search) -> None:
        found: Found | Reply
        try:
            found = await search.next()
        except Exception:  # noqa: BLE001 - a bug: 451, a traceback, and this message only
            _log.exception("relay.search-failed")
            found = replies.INTERNAL
        if self._searching.get(borrower) is asyncio.current_task():
            del self._searching[borrower]
        if isinstance(found, Reply):
            borrower.remote_missing(found)
        else:
            found.connection.borrower = borrower
            borrower.remote_found(found)

    def lease(self, borrower: Borrower, session: Session, *, fresh: bool) -> DownstreamConnection | None:
        """The relay has no one mail server behind it."""
        raise LocalProtocolError(f"a lease without a destination: {session.id}, {borrower}, {fresh}")

    def release(self, borrower: Borrower, connection: DownstreamConnection | None, *, reusable: bool) -> None:
        """Take it back, or stop looking for one."""
        task = self._searching.pop(borrower, None)  # type: ignore[call-overload]  # only relay sessions are in it
        if task:
            task.cancel()
        if connection is not None:
            self.put_back(connection, reusable=reusable)

    def put_back(self, connection: DownstreamConnection, *, reusable: bool) -> None:
        """Nobody has it now."""
        connection.borrower = None
        if not reusable or not connection.is_open or not isinstance(connection, RemoteConnection):
            connection.close()
        elif self._is_closed or connection.uses >= MAX_USES or not self.limits.idle_connection_s:
            connection.quit()
        else:
            connection.idle_since = time.monotonic()
            self._idle.append(connection)
            self._places.call_next()

    def close_idle(self, now: float) -> None:
        """End those that nobody has wanted for a while."""
        for connection in [
            each for each in self._idle if now - each.idle_since > self.limits.idle_connection_s
        ]:
            self._idle.remove(connection)
            connection.quit()

    def close(self) -> None:
        """End all that are idle; those in use end when they are given back."""
        self._is_closed = True
        while self._idle:
            self._idle.popleft().quit()

    def forget(self, connection: DownstreamConnection) -> None:
        """It is closed: its place is free."""
        kept = self._open.pop(connection, None)
        with suppress(ValueError):
            self._idle.remove(connection)  # type: ignore[arg-type]  # only such are in it
        if kept:
            self._places.give_back(kept.key.domain)

    # What a search needs

    async def place_or_idle(self, domain: str, keys: list[Key]) -> Found | None:
        """An idle connection for one of the keys, or None and a place for a new one, as soon as there is either."""
        has_waited = False
        if self._places.must_queue(domain):
            await self._places.wait(domain, first=False)
            has_waited = True
        while True:
            found = self.take_idle(keys)
            if found:
                return found
            self._make_room(domain)
            if self._places.take(domain):
                return None
            await self._places.wait(domain, first=has_waited)
            has_waited = True

    def take_idle(self, keys: list[Key]) -> Found | None:
        """An idle connection that is good for one of the keys; the one used last, which is the least likely to be dead."""
        for connection in reversed(self._idle):
            kept = self._open.get(connection)
            if kept and kept.key in keys and connection.is_open:
                self._idle.remove(connection)
                connection.uses += 1
                return Found(connection, kept.facts, reused=True)
        return None

    def keep(self, connection: RemoteConnection, key: Key, facts: SessionFacts) -> None:
        """It stands, in the place that was taken for it, until it is closed."""
        if not connection.is_open:
            self._places.give_back(key.domain)
        else:
            self._open[connection] = _Kept(key, facts)

    def give_back_place(self, domain: str) -> None:
        """Nothing came of the connection."""
        self._places.give_back(domain)

    def _make_room(self, domain: str) -> None:
        """An idle connection that is of no use to this message must not keep it waiting."""
        if self._places.is_full_for(domain):
            victim = next((each for each in self._idle if self._open[each].key.domain == domain), None)
        elif self._places.is_full:
            victim = self._idle[0] if self._idle else None
        else:
            victim = None
        if victim:
            self._idle.remove(victim)
            kept = self._open.pop(victim)
            self._places.give_back(kept.key.domain)
            victim.quit()

    def _has_idle(self, domain: str) -> bool:
        return any(self._open[each].key.domain == domain for each in self._idle)

    # Whether a server is ourselves

    def is_ours(self, address: IpAddress) -> bool:
        """Whether a mail server at this address is ourselves."""
        plain = unmapped(address)
        return plain.is_unspecified or any(plain in network for network in self.limits.own_addresses)
