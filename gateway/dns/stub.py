"""The resolver of a running gateway: asks the operator's validating resolver, and remembers what it said.

It does what a stub resolver must (RFC 1035 §5.3.1) and no more. Recursion and DNSSEC are the work of unbound, knot-resolver
or BIND beside us: their AD bit is believed, so that the way to them must be one that nobody can write on: loopback, or a
network of the operator's own.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from gateway.dns.cache import CacheLimits, DnsCache, Key
from gateway.dns.exchange import NoReplyError, Server, exchange, random_identifier
from gateway.dns.names import canonical_name
from gateway.dns.resolver import Missing, NotFound, Outcome, RecordType, Temporary, Trouble, outcome_word
from gateway.dns.wire import decode_reply, encode_query, encode_root_query, is_vouched_for

_CANNOT_EXIST: Final = NotFound(Missing.NXDOMAIN, ttl=86_400, secure=False)
_TIMEOUT: Final = Temporary(Trouble.TIMEOUT)


class DnsObservation(NamedTuple):
    """One lookup, for the metrics: words of ours only, never the name.

    Attributes:
        record_type: what was asked for.
        outcome: see `outcome_word`.
        cached: no question was sent for it, not even one shared with others.
        seconds: how long the asker waited.
    """

    record_type: RecordType
    outcome: str
    cached: bool
    seconds: float


class Validation(StrEnum):
    """Whether the resolvers check DNSSEC, as far as can be told from here.

    It shows that each sets AD on the root's own data. It cannot show that they refuse what is bogus, nor that nobody
    between them and us sets the bit.
    """

    YES = "yes"  # every one of them vouched for the root
    NO = "no"  # at least one answered without vouching: DANE is off; turn validation on (unbound: auto-trust-anchor-file)
    UNKNOWN = "unknown"  # at least one did not answer: ask again later


@dataclass(frozen=True, slots=True, kw_only=True)
class StubOptions:
    """Limits.

    Attributes:
        attempt_timeout_s: how long one server is waited for before the next one, or itself again, is asked.
        timeout_s: for one lookup as a whole, waiting for its turn included.
        max_in_flight: questions on their way at a time.
        cache: how much is remembered.
    """

    attempt_timeout_s: float = 2.0
    timeout_s: float = 5.0
    max_in_flight: int = 256
    cache: CacheLimits = field(default_factory=CacheLimits)


class StubResolver:
    """Asks a validating resolver; identical questions at the same time are asked once.

    Servers are asked in order; one that is silent or fails gives way to the next. They should all validate or none: what one
    calls bogus the next must not deliver (`check_validating` says NO to a mixture).

    Args:
        servers: addresses, each with an optional port.
        options: limits.
        observe: told of every lookup; must not raise.
        now: a clock that never goes back, in seconds.

    Raises:
        ValueError: no server is given, or one is no address.
    """

    def __init__(
        self,
        servers: Sequence[str],
        *,
        options: StubOptions = StubOptions(),
        observe: Callable[[DnsObservation], None] | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if not servers:
            raise ValueError("a resolver needs a server to ask")
        self._servers = [Server.parse(server) for server in servers]
        self._options = options
        self._observe = observe
        self._now = now
        self._slots = asyncio.Semaphore(options.max_in_flight)
        self._in_flight: dict[Key, asyncio.Future[Outcome]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self.cache: Final = DnsCache(options.cache, now)

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        """Look up `name`; see `Resolver.query`. Does not suspend where the answer is known."""
        canonical = canonical_name(name)
        if canonical is None:
            return _CANNOT_EXIST
        key = (canonical, record_type)
        known = self._recall(key)
        if known is not None:
            return known
        start = self._now()
        outcome = await asyncio.shield(self._fetch(key))  # one asker that gives up must not stop the others
        self._report(record_type, outcome, cached=False, seconds=self._now() - start)
        return outcome

    def peek(self, name: str, record_type: RecordType) -> Outcome | None:
        """What is known of `name` without asking anyone; None where somebody must be asked."""
        canonical = canonical_name(name)
        return _CANNOT_EXIST if canonical is None else self._recall((canonical, record_type))

    async def check_validating(self) -> Validation:
        """Ask every server for the root's SOA: do they vouch for it? See `Validation` for what that is worth."""
        found = await asyncio.gather(*[self._vouches(server) for server in self._servers])
        if False in found:
            return Validation.NO
        return Validation.UNKNOWN if None in found else Validation.YES

    async def aclose(self) -> None:
        """Stop asking. Those who wait hear `Temporary(TIMEOUT)`, as does whoever asks after this."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in self._in_flight.values():  # of tasks that were cancelled before their first step
            future.set_result(_TIMEOUT)
        self._in_flight.clear()

    def _recall(self, key: Key) -> Outcome | None:
        outcome = self.cache.get(key)
        if outcome is not None:
            self._report(key[1], outcome, cached=True, seconds=0.0)
        return outcome

    def _report(self, record_type: RecordType, outcome: Outcome, *, cached: bool, seconds: float) -> None:
        if self._observe is not None:
            self._observe(DnsObservation(record_type, outcome_word(outcome), cached, seconds))

    def _fetch(self, key: Key) -> asyncio.Future[Outcome]:
        """The answer to come: one that others wait for already, or a new question's."""
        future = self._in_flight.get(key)
        if future is None:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            if self._closed:
                future.set_result(_TIMEOUT)
                return future
            self._in_flight[key] = future
            task = loop.create_task(self._resolve(key, future))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return future

    async def _resolve(self, key: Key, future: asyncio.Future[Outcome]) -> None:
        outcome: Outcome = _TIMEOUT
        try:
            outcome = self.cache.put(key, await self._ask(key))
        finally:  # a bug here is the loop's to report; nobody is left waiting
            del self._in_flight[key]
            if not future.done():
                future.set_result(outcome)

    async def _ask(self, key: Key) -> Outcome:
        deadline = asyncio.get_running_loop().time() + self._options.timeout_s
        try:
            async with asyncio.timeout_at(deadline):
                await self._slots.acquire()
        except TimeoutError:
            return _TIMEOUT
        try:
            return await self._ask_servers(key, deadline)
        finally:
            self._slots.release()

    async def _ask_servers(self, key: Key, deadline: float) -> Outcome:
        """Ask one after the other until one knows; those that only stayed silent are asked again while there is time."""
        loop = asyncio.get_running_loop()
        heard: Temporary | None = None
        silent = list(self._servers)
        while silent and loop.time() < deadline:
            for server in tuple(silent):
                try:
                    async with asyncio.timeout_at(
                        min(loop.time() + self._options.attempt_timeout_s, deadline)
                    ):
                        outcome = await _ask_one(server, key)
                except TimeoutError:
                    continue
                if not isinstance(outcome, Temporary):
                    self._prefer(server)
                    return outcome
                silent.remove(server)
                if heard is None or heard.trouble is Trouble.TIMEOUT:
                    heard = outcome
        return heard or _TIMEOUT

    def _prefer(self, server: Server) -> None:
        """Begin with the one that answered: a dead first server must not cost every lookup its timeout."""
        if self._servers[0] is not server:
            self._servers = [server, *(other for other in self._servers if other is not server)]

    async def _vouches(self, server: Server) -> bool | None:
        query = encode_root_query(random_identifier())
        try:
            async with asyncio.timeout(self._options.timeout_s):
                return is_vouched_for(await exchange(server, query))
        except (TimeoutError, NoReplyError):
            return None


async def _ask_one(server: Server, key: Key) -> Outcome:
    query = encode_query(random_identifier(), *key)
    try:
        return decode_reply(await exchange(server, query), query, key[1])
    except NoReplyError:
        return _TIMEOUT
