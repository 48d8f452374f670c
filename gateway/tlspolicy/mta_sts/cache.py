"""The policies that are known: in memory, on the shelf, and renewed before they run out (RFC 8461 §3.3, §5.1, §10.2).

A policy once fetched holds until it expires, whatever becomes of its record or its host in the meantime: an attacker who can
block both must not be able to take it away. Each step down is told to whoever watches: it may be the domain's own wish.
"""

import asyncio
import heapq
import random
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeVar, assert_never

import structlog

from gateway.dns.resolver import Answer, NotFound, Outcome, RecordType, Resolver, Temporary
from gateway.tlspolicy.model import StsView, TlsProblem
from gateway.tlspolicy.mta_sts.events import Change, LookUp, PolicyEvent, Summary
from gateway.tlspolicy.mta_sts.failures import FAILURE_HOLDS, Failures, is_open, remember
from gateway.tlspolicy.mta_sts.fetch import Fetched, Fetcher, FetchFailure
from gateway.tlspolicy.mta_sts.policy import Mode, Policy, PolicyError, parse_policy
from gateway.tlspolicy.mta_sts.record import RecordError, is_sts_record, parse_record
from gateway.tlspolicy.mta_sts.shelf import PolicyShelf, ShelfError, StoredPolicy

RENEW_AFTER: Final = timedelta(days=1)  # RFC 8461 §3.3 suggests once a day
RENEW_AGAIN_MOST: Final = timedelta(hours=1)
JITTER: Final = 0.2
"""Renewals are moved forward by up to a fifth, so that a restart does not send all of them out in one minute each day."""

TICK_S: Final = 60.0
MAX_RENEWALS_AT_ONCE: Final = 5
MAX_RENEWALS_PER_TICK: Final = 500
MAX_POLICY_MEMORY_BYTES: Final = 64 * 1024 * 1024
MAX_STRANGERS: Final = 50_000
"""Domains remembered to have no policy on the shelf, or none to be fetched."""

SHELF_TIMEOUT_S: Final = 2.0
LOAD_TIMEOUT_S: Final = 60.0
LOADED_AT_ONCE: Final = 100
"""Policies read from the shelf's text before others on the loop have their turn: some milliseconds."""

SHELF_AGAIN: Final = timedelta(seconds=30)
_ENTRY_BYTES: Final = 1_000
_PATTERN_BYTES: Final = 150  # twice: the pattern, and its line for reports

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Held:
    """A policy in memory."""

    policy: Policy
    view: StsView
    fetched: datetime
    expires: datetime
    renew: datetime
    size: int


def _ignore(_event: PolicyEvent) -> None:
    return


def utc_now() -> datetime:
    """The clock."""
    return datetime.now(UTC)


class PolicyCache:
    """What MTA-STS says of each domain; see `decide.StsSource`.

    Args:
        resolver: for the TXT records; its cache decides how soon a new `id` is seen.
        fetcher: gets policy files.
        shelf: where policies outlive us.
        observe: told of every change; must not raise.
        now: the time in UTC.
        chance: from 0 to 1, for the jitter.

    Attributes:
        count: told of every look-up; must not raise. None: nobody.
    """

    def __init__(
        self,
        resolver: Resolver,
        fetcher: Fetcher,
        shelf: PolicyShelf,
        *,
        observe: Callable[[PolicyEvent], None] = _ignore,
        now: Callable[[], datetime] = utc_now,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._resolver = resolver
        self._fetcher = fetcher
        self._shelf = shelf
        self._observe = observe
        self.count: Callable[[LookUp], None] | None = None
        self._now = now
        self._chance = chance
        self._held: OrderedDict[str, _Held] = OrderedDict()
        self._held_bytes = 0
        self._renewals: list[tuple[datetime, str]] = []
        self._failures = Failures(MAX_STRANGERS, now)
        self._not_on_shelf: OrderedDict[str, None] = OrderedDict()
        self._shelf_again: datetime | None = None
        self._gone: set[str] = set()
        self._unsaved: set[str] = set()
        self._writing = asyncio.Lock()
        self._fetches: dict[str, asyncio.Task[TlsProblem | None]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    # Asking

    async def look_up(self, domain: str) -> StsView:
        """What holds for `domain` now.

        A policy that is not known, or has a new `id`, is waited for, as long as a fetch may take; who asks at the same time
        waits for the same fetch.
        """
        view, look_up = await self._look_up(domain)
        if self.count is not None:
            self.count(look_up)
        return view

    async def _look_up(self, domain: str) -> tuple[StsView, LookUp]:
        await self._recall(domain)
        outcome = await self._resolver.query(f"_mta-sts.{domain}", RecordType.TXT)
        identifier, problem = _read_record(outcome)
        held, was_fetched = self._unexpired(domain), False
        if identifier is not None:
            self._gone.discard(domain)
            if held is None or held.view.identifier != identifier:
                problem = self._failures.lately(domain, identifier)
                if problem is None:
                    was_fetched = True
                    untried = await asyncio.shield(self._fetch_once(domain, identifier))
                    held = self._unexpired(domain)
                    problem = self._failures.lately(domain, identifier) or untried
        if held is None and problem is not None:  # another process may have been luckier
            self._not_on_shelf.pop(domain, None)
            await self._recall(domain)
            held = self._unexpired(domain)
        if identifier is None:
            view = self._without_record(domain, held, problem)
        else:
            view = _view(held, identifier, problem)
        if held is None and problem is not None and (is_open(problem) or self._shelf_again is not None):
            view = replace(view, is_unknown=self._failures.still_waits(domain))
        else:
            self._failures.found_out(domain)
        return view, _look_up_of(view, was_fetched=was_fetched)

    def _without_record(self, domain: str, held: _Held | None, problem: TlsProblem | None) -> StsView:
        """RFC 8461 §3.3: nothing new can be found; a known policy stands."""
        if held is None:
            return StsView(problem=problem)
        mode = held.policy.mode
        if problem is None and mode is not Mode.NONE:  # after `none` the record may go: RFC 8461 §8.3
            problem = TlsProblem.STS_RECORD_GONE
            if mode is Mode.ENFORCE and domain not in self._gone:
                self._gone.add(domain)
                self._tell(Change.RECORD_GONE, domain, mode, mode, problem=problem)
        return held.view if problem is None else replace(held.view, problem=problem)

    def summary(self) -> Summary:
        """What is in memory; looks at each policy, which is some 10 ms where there are 50,000."""
        now = self._now()
        enforced = [
            held for held in self._held.values() if held.policy.mode is Mode.ENFORCE and now < held.expires
        ]
        return Summary(
            by_mode=Counter(str(held.policy.mode) for held in self._held.values() if now < held.expires),
            nearest_end=min((held.expires for held in enforced), default=None),
            overdue=sum((held.expires - now) * 4 < held.expires - held.fetched for held in enforced),
        )

    # Fetching

    def _fetch_once(self, domain: str, identifier: str) -> asyncio.Task[TlsProblem | None]:
        task = self._fetches.get(domain)
        if task is None:
            task = self._fetches[domain] = self._begin(self._fetch(domain, identifier))
            task.add_done_callback(lambda _: self._fetches.pop(domain, None))
        return task

    async def _fetch(self, domain: str, identifier: str) -> TlsProblem | None:
        """Fetch and take it; what comes back is why it was not even tried, which says nothing about the domain."""
        result = await self._fetcher.fetch(domain)
        match result:
            case Fetched():
                self._failures.fetched(domain)
                self._take(domain, identifier, result)
                return None
            case FetchFailure():
                was_tried = not is_open(result.problem)
                if was_tried:
                    self._failures.failed(domain, identifier, result.problem)
                held = self._unexpired(domain)
                mode = held.policy.mode if held is not None else None
                self._tell(
                    Change.FETCH_FAILED, domain, mode, mode, problem=result.problem, detail=result.detail
                )
                return None if was_tried else result.problem
            case _:
                assert_never(result)

    def _take(self, domain: str, identifier: str, fetched: Fetched) -> None:
        now = self._now()
        before = self._unexpired(domain)
        policy = fetched.policy
        stored = StoredPolicy(
            domain=domain,
            identifier=identifier,
            text=fetched.text,
            fetched=now,
            expires=now + timedelta(seconds=policy.max_age_s),
        )
        self._hold(stored, policy)
        old = before.policy if before is not None else None
        self._tell(_change(old, policy), domain, old.mode if old else None, policy.mode)
        self._begin(self._put(stored))

    # Renewing

    async def run(self) -> None:
        """Take what is on the shelf, then renew policies before they expire; for a task of its own, until cancelled."""
        await self.load()
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self.renew_due()
            except Exception:  # noqa: BLE001  # a bug must not end all renewing
                structlog.get_logger().exception("mta_sts.renewal-failed")

    async def load(self) -> None:
        """Take all policies from the shelf, so that they stand even when it is down later."""
        found = await self._on_shelf(self._shelf.all, LOAD_TIMEOUT_S)
        for number, stored in enumerate(found or ()):
            if number % LOADED_AT_ONCE == 0:
                await asyncio.sleep(0)
            if stored.domain not in self._held:
                self._hold_stored(stored)

    async def renew_due(self) -> None:
        """Renew the policies whose time has come, a few at once, and put on the shelf what it could not take before."""
        for domain in list(self._unsaved):
            self._save(domain)
        now = self._now()
        slots = asyncio.Semaphore(MAX_RENEWALS_AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            for _ in range(MAX_RENEWALS_PER_TICK):
                if not self._renewals or self._renewals[0][0] > now:
                    break
                due, domain = heapq.heappop(self._renewals)
                held = self._held.get(domain)
                if held is not None and held.renew == due:  # else another entry is the one that counts
                    tasks.create_task(self._renew(domain, slots))

    async def _renew(self, domain: str, slots: asyncio.Semaphore) -> None:
        async with slots:
            if await self._renewed_by_others(domain):
                return
            outcome = await self._resolver.query(f"_mta-sts.{domain}", RecordType.TXT)
            held = self._unexpired(domain)
            identifier, problem = _read_record(outcome)
            if held is None:
                return
            if identifier is None:
                self._without_record(domain, held, problem)
            elif self._failures.lately(domain, identifier) is None:
                await asyncio.shield(self._fetch_once(domain, identifier))
        held = self._unexpired(domain)
        if held is not None and held.renew <= self._now():  # nothing new could be had
            self._renew_at(domain, held, self._now() + self._patience(held))

    async def _renewed_by_others(self, domain: str) -> bool:
        """Whether another process with the same shelf was quicker: its policy is taken, and nobody is asked."""
        stored = await self._on_shelf(lambda: self._shelf.get(domain))
        held = self._held.get(domain)
        if stored is None or held is None or stored.fetched <= held.fetched:
            return False
        self._hold_stored(stored)
        return True

    def _patience(self, held: _Held) -> timedelta:
        """Until the next try: several before it expires, and no more often than RFC 8461 §3.3 allows."""
        left = held.expires - self._now()
        return max(FAILURE_HOLDS, min(left / 4, RENEW_AGAIN_MOST)) * (1 + JITTER * self._chance())

    def _renew_at(self, domain: str, held: _Held, when: datetime) -> None:
        self._held[domain] = replace(held, renew=when)
        heapq.heappush(self._renewals, (when, domain))

    # Memory

    async def _recall(self, domain: str) -> None:
        """Take the domain's policy from the shelf, where it is not in memory, or ran out there, and may be there."""
        held = self._held.get(domain)
        is_good = held is not None and self._now() < held.expires
        if is_good or domain in self._not_on_shelf:
            return
        stored = await self._on_shelf(lambda: self._shelf.get(domain))
        if self._held.get(domain) is not held:  # another asker was quicker
            return
        if stored is not None and (held is None or stored.fetched > held.fetched):
            self._hold_stored(stored)
        elif held is None and self._shelf_again is None:  # it did answer
            remember(self._not_on_shelf, domain, None, MAX_STRANGERS)

    def _unexpired(self, domain: str) -> _Held | None:
        held = self._held.get(domain)
        if held is None:
            return None
        if self._now() < held.expires:
            self._held.move_to_end(domain)
            return held
        self._forget(domain)
        if held.policy.mode is Mode.ENFORCE:
            self._tell(Change.EXPIRED, domain, held.policy.mode, None)
        remember(self._not_on_shelf, domain, None, MAX_STRANGERS)
        self._begin(self._drop(domain))
        return None

    def _hold_stored(self, stored: StoredPolicy) -> None:
        with suppress(PolicyError):  # a stricter version of this program reads it no more
            self._hold(stored, parse_policy(stored.text.encode()))

    def _hold(self, stored: StoredPolicy, policy: Policy) -> None:
        domain = stored.domain
        self._forget(domain)
        self._not_on_shelf.pop(domain, None)
        life = min(RENEW_AFTER, (stored.expires - stored.fetched) / 2)
        view = StsView(
            mode=policy.mode,
            identifier=stored.identifier,
            mx=policy.mx,
            lines=policy.lines(),
            expires=stored.expires,
        )
        size = _ENTRY_BYTES + sum(_PATTERN_BYTES + 2 * len(pattern) for pattern in policy.mx)
        held = _Held(policy, view, stored.fetched, stored.expires, stored.fetched, size)
        self._held[domain] = held
        self._held_bytes += size
        if policy.mode is not Mode.NONE:
            self._renew_at(domain, held, stored.fetched + life * (1 - JITTER * self._chance()))
        while self._held_bytes > MAX_POLICY_MEMORY_BYTES:  # the shelf still has it
            self._forget(next(iter(self._held)))

    def _forget(self, domain: str) -> None:
        held = self._held.pop(domain, None)
        if held is not None:
            self._held_bytes -= held.size
        self._gone.discard(domain)

    # The shelf

    async def _on_shelf(self, ask: Callable[[], Awaitable[_T]], timeout_s: float | None = None) -> _T | None:
        """Its answer; None, and quiet for a while, where it fails: nobody's mail waits for a store that is down."""
        if self._shelf_again is not None and self._now() < self._shelf_again:
            return None
        try:
            async with asyncio.timeout(timeout_s or SHELF_TIMEOUT_S):
                answer = await ask()
        except (ShelfError, TimeoutError) as error:
            self._shelf_again = self._now() + SHELF_AGAIN
            detail = str(error) or f"no answer in {timeout_s or SHELF_TIMEOUT_S:g} s"
            self._tell(Change.SHELF_FAILED, "", None, None, detail=detail)
            return None
        self._shelf_again = None
        return answer

    async def _put(self, stored: StoredPolicy) -> None:
        """One write after the other: a policy just fetched is never dropped in place of the one before it."""
        self._unsaved.add(stored.domain)

        async def put() -> bool:
            await self._shelf.put(stored)
            return True

        async with self._writing:
            if await self._on_shelf(put):
                self._unsaved.discard(stored.domain)

    async def _drop(self, domain: str) -> None:
        async with self._writing:
            if domain not in self._held:
                await self._on_shelf(lambda: self._shelf.drop(domain, self._now()))

    def _save(self, domain: str) -> None:
        """Put on the shelf what it could not take when it was fetched."""
        held = self._held.get(domain)
        if held is None:
            self._unsaved.discard(domain)
            return
        stored = StoredPolicy(
            domain=domain,
            identifier=held.view.identifier or "",
            text=str(held.policy),
            fetched=held.fetched,
            expires=held.expires,
        )
        self._begin(self._put(stored))

    # Tasks

    async def aclose(self) -> None:
        """End every fetch, and with it whoever waits for one; what was fetched before is put on the shelf, in a short time."""
        for fetch in list(self._fetches.values()):
            fetch.cancel()
        if self._tasks:
            _, late = await asyncio.wait(list(self._tasks), timeout=SHELF_TIMEOUT_S)
            for task in late:
                task.cancel()
        await self._fetcher.aclose()

    def _begin(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _tell(
        self,
        change: Change,
        domain: str,
        before: Mode | None,
        mode: Mode | None,
        *,
        problem: TlsProblem | None = None,
        detail: str = "",
    ) -> None:
        self._observe(
            PolicyEvent(
                change=change, domain=domain, before=before, mode=mode, problem=problem, detail=detail
            )
        )


def _read_record(outcome: Outcome) -> tuple[str | None, TlsProblem | None]:
    """The policy's `id`; or None, and what is wrong where that is more than a domain without MTA-STS (RFC 8461 §3.1)."""
    match outcome:
        case Temporary():
            return None, TlsProblem.STS_DNS
        case NotFound():
            return None, None
        case Answer():
            pass
    records = [record for record in outcome.records if isinstance(record, bytes) and is_sts_record(record)]
    if len(records) != 1:
        return None, TlsProblem.STS_SEVERAL_RECORDS if records else None
    try:
        return parse_record(records[0]), None
    except RecordError:
        return None, TlsProblem.STS_RECORD_INVALID


def _view(held: _Held | None, identifier: str, problem: TlsProblem | None) -> StsView:
    if held is None:
        return StsView(identifier=identifier, problem=problem)
    return held.view if problem is None else replace(held.view, problem=problem)


def _look_up_of(view: StsView, *, was_fetched: bool) -> LookUp:
    """How the question was answered."""
    if view.mode is None:
        return LookUp.NONE if view.problem is None else LookUp.FAILED
    if view.problem is not None:
        return LookUp.STANDS
    return LookUp.FETCHED if was_fetched else LookUp.HIT


def _change(before: Policy | None, policy: Policy) -> Change:
    if before is not None and before.mode is Mode.ENFORCE:
        if policy.mode is not Mode.ENFORCE:
            return Change.WEAKENED
        if set(before.mx) != set(policy.mx):
            return Change.MX_CHANGED
    return Change.RENEWED if before == policy else Change.FETCHED
