import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from gateway.dns.resolver import Outcome, RecordType
from gateway.dns.zone import ZoneResolver
from gateway.tlspolicy.model import StsView, TlsProblem
from gateway.tlspolicy.mta_sts.cache import JITTER, RENEW_AFTER, SHELF_AGAIN, PolicyCache
from gateway.tlspolicy.mta_sts.events import Change, LookUp, PolicyEvent, Summary
from gateway.tlspolicy.mta_sts.failures import FAILURE_HOLDS, FIRST_WORD_WITHIN, TROUBLE_FORGOTTEN
from gateway.tlspolicy.mta_sts.fetch import Fetched, FetchFailure
from gateway.tlspolicy.mta_sts.policy import parse_policy
from gateway.tlspolicy.mta_sts.shelf import MemoryShelf, ShelfError, StoredPolicy

DOMAIN = "example.com"
DAY = timedelta(days=1)
WEEK_S = 7 * 86_400


def text(mode: str = "enforce", mx: str = "mx.example.com", max_age_s: int = WEEK_S) -> str:
    return f"version: STSv1\nmode: {mode}\nmx: {mx}\nmax_age: {max_age_s}\n"


class World:
    """DNS, a policy host, a shelf and a clock, all in hand."""

    def __init__(self, shelf: MemoryShelf | None = None) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.records: dict[str, str] = {}
        self.files: dict[str, str | TlsProblem] = {}
        self.fetches: list[str] = []
        self.shelf = shelf or MemoryShelf()
        self.events: list[PolicyEvent] = []
        self.gate: asyncio.Event | None = None
        self.begun = asyncio.Event()
        self.chance = 0.0
        self.cache = self.restart()

    def restart(self) -> PolicyCache:
        """A new process with the same shelf."""
        self.cache = PolicyCache(
            self,
            self,
            self.shelf,
            observe=self.events.append,
            now=lambda: self.now,
            chance=lambda: self.chance,
        )
        return self.cache

    def publish(self, identifier: str | None, file: str | TlsProblem, domain: str = DOMAIN) -> None:
        self.records[domain] = (
            "" if identifier is None else f'_mta-sts.{domain}. TXT "v=STSv1; id={identifier};"\n'
        )
        self.files[domain] = file

    def break_dns(self, trouble: str) -> None:
        self.records[DOMAIN] = f"$TROUBLE _mta-sts.{DOMAIN}. TXT {trouble}\n"

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        return await ZoneResolver.from_text("".join(self.records.values())).query(name, record_type)

    async def fetch(self, domain: str) -> Fetched | FetchFailure:
        self.fetches.append(domain)
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        file = self.files[domain]
        if isinstance(file, TlsProblem):
            return FetchFailure(problem=file, detail="as the test has it")
        return Fetched(policy=parse_policy(file.encode()), text=file)

    async def aclose(self) -> None:
        return

    async def look(self, domain: str = DOMAIN) -> StsView:
        view = await self.cache.look_up(domain)
        await self.settle()
        return view

    async def settle(self) -> None:
        """Until what was begun beside it is done."""
        while self.cache._tasks:
            await asyncio.gather(*self.cache._tasks)

    def changes(self) -> list[Change]:
        return [event.change for event in self.events]


async def test_a_domain_without_a_record_costs_no_fetch() -> None:
    world = World()
    assert await world.look() == StsView()
    assert (world.fetches, world.events) == ([], [])


async def test_first_contact_waits_for_the_policy() -> None:
    world = World()
    world.publish("1", text())
    view = await world.look()
    assert (view.mode, view.identifier, view.mx, view.problem) == ("enforce", "1", ("mx.example.com",), None)
    assert view.expires == world.now + timedelta(seconds=WEEK_S)
    assert view.lines[0] == "version: STSv1"
    await world.look()
    assert (len(world.fetches), world.changes()) == (1, [Change.FETCHED])


async def test_two_who_ask_at_once_cause_one_fetch() -> None:
    world = World()
    world.publish("1", text())
    world.gate = asyncio.Event()
    askers = [asyncio.create_task(world.cache.look_up(DOMAIN)) for _ in range(20)]
    await world.begun.wait()
    askers[0].cancel()  # one that gives up does not stop the others
    world.gate.set()
    views = await asyncio.gather(*askers[1:])
    assert {view.mode for view in views} == {"enforce"}
    assert len(world.fetches) == 1
    await world.settle()


@pytest.mark.parametrize(
    ("zone", "problem"),
    [
        ('_mta-sts.example.com. TXT "v=STSv1; id=1"\n_mta-sts.example.com. TXT "v=STSv1; id=2"\n', TlsProblem.STS_SEVERAL_RECORDS),
        ('_mta-sts.example.com. TXT "v=STSv1; id=1"\n_mta-sts.example.com. TXT "v=STSv1; id=1"\n', TlsProblem.STS_SEVERAL_RECORDS),
        ('_mta-sts.example.com. TXT "v=STSv1; id=?"\n', TlsProblem.STS_RECORD_INVALID),
        ('_mta-sts.example.com. TXT "v=spf1 -all"\n', None),
        ('example.com. TXT "v=STSv1; id=1"\n', None),  # not its place
    ],
)  # fmt: skip
async def test_a_record_that_cannot_be_used_is_no_policy(zone: str, problem: TlsProblem | None) -> None:
    world = World()
    world.records[DOMAIN] = zone
    assert await world.look() == StsView(problem=problem)
    assert world.fetches == []


@pytest.mark.parametrize("trouble", ["servfail", "timeout", "refused"])
async def test_a_first_look_up_that_fails_says_nothing_for_a_quarter_of_an_hour(trouble: str) -> None:
    world = World()
    world.break_dns(trouble)
    unknown = StsView(problem=TlsProblem.STS_DNS, is_unknown=True)
    assert await world.look() == unknown
    world.now += FIRST_WORD_WITHIN - timedelta(seconds=1)
    assert await world.look() == unknown
    world.now += timedelta(seconds=1)
    assert await world.look() == StsView(
        problem=TlsProblem.STS_DNS
    )  # its name server's own trouble: mail goes
    world.now += TROUBLE_FORGOTTEN
    assert await world.look() == unknown  # nobody has asked for a day


async def test_a_word_in_between_begins_the_wait_anew() -> None:
    world = World()
    world.break_dns("timeout")
    await world.look()
    world.records[DOMAIN] = ""
    world.now += FIRST_WORD_WITHIN
    assert await world.look() == StsView()
    world.break_dns("timeout")
    assert (await world.look()).is_unknown


async def test_a_policy_that_nobody_had_time_to_fetch_is_unknown_and_asked_for_again() -> None:
    world = World()
    world.publish("1", TlsProblem.STS_FETCH_BUSY)
    assert await world.look() == StsView(identifier="1", problem=TlsProblem.STS_FETCH_BUSY, is_unknown=True)
    world.publish("1", text())
    assert (await world.look()).mode == "enforce"
    assert len(world.fetches) == 2


async def test_a_policy_that_may_be_on_a_shelf_out_of_reach_is_unknown() -> None:
    class Down(MemoryShelf):
        async def get(self, domain: str) -> StoredPolicy | None:
            raise ShelfError("down")

    world = World(Down())
    world.publish("1", TlsProblem.STS_FETCH_CONNECT)
    assert (await world.look()).is_unknown
    world.now += FIRST_WORD_WITHIN
    assert not (await world.look()).is_unknown


async def test_other_records_at_the_name_do_not_count() -> None:
    world = World()
    world.publish("1", text())
    world.records["other"] = '_mta-sts.example.com. TXT "google-site-verification=x"\n'
    assert (await world.look()).mode == "enforce"


async def test_a_failed_fetch_is_no_policy_and_is_tried_again_after_five_minutes() -> None:
    world = World()
    world.publish("1", TlsProblem.STS_FETCH_STATUS)
    assert await world.look() == StsView(identifier="1", problem=TlsProblem.STS_FETCH_STATUS)
    world.publish("1", text())
    world.now += FAILURE_HOLDS - timedelta(seconds=1)
    assert (await world.look()).problem is TlsProblem.STS_FETCH_STATUS
    assert len(world.fetches) == 1
    world.now += timedelta(seconds=1)
    assert (await world.look()).mode == "enforce"
    assert world.changes() == [Change.FETCH_FAILED, Change.FETCHED]


async def test_a_failed_fetch_counts_for_its_version_only() -> None:
    world = World()
    world.publish("1", TlsProblem.STS_FETCH_STATUS)
    await world.look()
    world.publish("2", text())
    assert (await world.look()).mode == "enforce"  # RFC 8461 §3.3: per version


async def test_a_new_id_brings_the_new_policy() -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.publish("2", text(mx="*.example.com"))
    view = await world.look()
    assert (view.identifier, view.mx) == ("2", ("*.example.com",))


@pytest.mark.parametrize(
    "problem", [TlsProblem.STS_FETCH_CONNECT, TlsProblem.STS_FETCH_CERTIFICATE, TlsProblem.STS_POLICY_INVALID]
)
async def test_a_new_id_without_a_new_policy_leaves_the_old_one(problem: TlsProblem) -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.publish("2", problem)
    view = await world.look()
    assert (view.mode, view.identifier, view.problem) == ("enforce", "1", problem)
    assert world.events[-1].before == "enforce"


async def test_a_policy_stands_until_it_expires_though_the_record_went() -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.publish(None, TlsProblem.STS_FETCH_CONNECT)
    world.now += timedelta(seconds=WEEK_S - 1)
    view = await world.look()
    assert (view.mode, view.problem) == ("enforce", TlsProblem.STS_RECORD_GONE)
    await world.look()
    world.now += timedelta(seconds=1)
    assert await world.look() == StsView()
    assert world.changes() == [Change.FETCHED, Change.RECORD_GONE, Change.EXPIRED]  # each told once


async def test_a_policy_taken_back_is_neither_missed_nor_renewed() -> None:
    world = World()
    world.publish("1", text(mode="none"))
    await world.look()
    world.publish(None, text())
    assert (await world.look()).problem is None  # RFC 8461 §8.3
    world.now += RENEW_AFTER
    await world.cache.renew_due()
    assert world.changes() == [Change.FETCHED]
    assert len(world.fetches) == 1


@pytest.mark.parametrize("trouble", ["servfail", "timeout", "refused"])
async def test_dns_trouble_takes_no_policy_away(trouble: str) -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.break_dns(trouble)
    view = await world.look()
    assert (view.mode, view.problem) == ("enforce", TlsProblem.STS_DNS)
    assert world.changes() == [Change.FETCHED]


@pytest.mark.parametrize(
    ("then", "change"),
    [
        (text(mode="testing"), Change.WEAKENED),
        (text(mode="none"), Change.WEAKENED),
        (text(mx="elsewhere.example"), Change.MX_CHANGED),
        (text(), Change.RENEWED),
        (text(max_age_s=86_400), Change.FETCHED),
    ],
)
async def test_each_step_down_from_enforce_is_told(then: str, change: Change) -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.publish("2", then)
    await world.look()
    assert world.events[-1].change is change
    assert world.events[-1].before == "enforce"


async def test_a_step_up_is_no_step_down() -> None:
    world = World()
    world.publish("1", text(mode="testing"))
    await world.look()
    world.publish("2", text())
    assert (await world.look()).mode == "enforce"
    assert world.changes() == [Change.FETCHED, Change.FETCHED]


# Renewing


async def test_a_policy_is_renewed_a_day_later_and_holds_anew() -> None:
    world = World()
    world.publish("1", text())
    first = await world.look()
    world.now += RENEW_AFTER - timedelta(seconds=1)
    await world.cache.renew_due()
    assert len(world.fetches) == 1
    world.now += timedelta(seconds=1)
    await world.cache.renew_due()
    await world.settle()
    view = await world.look()
    assert (len(world.fetches), world.changes()[-1]) == (2, Change.RENEWED)
    assert first.expires is not None
    assert view.expires == first.expires + RENEW_AFTER


async def test_renewals_are_spread() -> None:
    world = World()
    world.chance = 1.0
    world.publish("1", text())
    await world.look()
    world.now += RENEW_AFTER * (1 - JITTER)
    await world.cache.renew_due()
    assert len(world.fetches) == 2
    await world.settle()


async def test_a_short_lived_policy_is_renewed_within_its_life() -> None:
    world = World()
    world.publish("1", text(max_age_s=3_600))
    await world.look()
    world.now += timedelta(seconds=1_800)
    await world.cache.renew_due()
    assert len(world.fetches) == 2
    await world.settle()


@pytest.mark.parametrize("lost", ["record", "host", "dns"])
async def test_renewing_that_fails_is_told_and_tried_until_the_policy_expires(lost: str) -> None:
    world = World()
    world.publish("1", text(max_age_s=2 * 86_400))
    expires = (await world.look()).expires
    assert expires is not None
    match lost:
        case "record":
            world.publish(None, text())
        case "host":
            world.publish("1", TlsProblem.STS_FETCH_CONNECT)
        case _:
            world.break_dns("servfail")
    while world.now < expires:
        assert (await world.look()).mode == "enforce"
        await world.cache.renew_due()
        world.now += timedelta(minutes=1)
    assert (await world.look()).mode is None
    assert world.changes()[-1] is Change.EXPIRED
    if lost == "host":
        assert (
            20 < world.changes().count(Change.FETCH_FAILED) < 60
        )  # about once an hour, oftener towards the end


async def test_an_unused_policy_that_runs_out_is_told_too() -> None:
    world = World()
    world.publish("1", text(max_age_s=86_400))
    await world.look()
    world.publish(None, text())
    for _ in range(25 * 12):
        world.now += timedelta(minutes=5)
        await world.cache.renew_due()
    assert world.changes()[-1] is Change.EXPIRED
    await world.settle()


# The shelf


async def test_restart_while_the_policy_host_is_down_leaves_enforce_in_force() -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.publish("1", TlsProblem.STS_FETCH_CONNECT)
    world.restart()
    view = await world.look()
    assert (view.mode, view.mx, view.problem) == ("enforce", ("mx.example.com",), None)
    world.publish("2", TlsProblem.STS_FETCH_CONNECT)  # nor can a forged record shake it
    assert (await world.look()).mode == "enforce"


async def test_restart_while_record_and_host_are_blocked_leaves_enforce_in_force() -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.break_dns("timeout")
    world.restart()
    assert (await world.look()).mode == "enforce"


async def test_an_expired_policy_on_the_shelf_does_not_come_back() -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    world.break_dns("timeout")
    world.now += timedelta(seconds=WEEK_S)
    world.restart()
    assert (await world.look()).mode is None
    assert world.changes()[-1] is Change.EXPIRED
    assert await world.shelf.all() == []


async def test_what_a_stricter_version_cannot_read_is_fetched_anew() -> None:
    world = World()
    await world.shelf.put(
        StoredPolicy(
            domain=DOMAIN, identifier="1", text="mode: enforce\n", fetched=world.now, expires=world.now + DAY
        )
    )
    world.publish("1", text())
    assert (await world.look()).mode == "enforce"
    assert len(world.fetches) == 1


async def test_all_on_the_shelf_is_taken_and_renewed_after_a_restart() -> None:
    world = World()
    for number in range(5):
        world.publish("1", text(), f"d{number}.example")
        await world.look(f"d{number}.example")
    world.restart()
    await world.cache.load()
    world.now += RENEW_AFTER
    await world.cache.renew_due()
    await world.settle()
    assert sorted(world.fetches[5:]) == [f"d{number}.example" for number in range(5)]


async def test_what_another_process_renewed_is_taken_without_a_fetch() -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    one = world.cache
    world.now += RENEW_AFTER
    other = world.restart()
    await other.load()
    await other.renew_due()
    await world.settle()
    assert len(world.fetches) == 2
    await one.renew_due()
    assert (await one.look_up(DOMAIN)).expires == world.now + timedelta(seconds=WEEK_S)
    assert len(world.fetches) == 2


@pytest.mark.parametrize("lost", ["dns", "host"])
async def test_what_another_process_fetched_is_looked_for_before_there_is_no_policy(lost: str) -> None:
    world = World()
    await world.look()  # nothing on the shelf, and that is remembered
    one = world.cache
    world.publish("1", text())
    world.restart()
    await world.look()
    if lost == "dns":
        world.break_dns("servfail")
    else:
        world.publish("1", TlsProblem.STS_FETCH_CONNECT)
    world.cache = one
    assert (await world.look()).mode == "enforce"


async def test_what_ran_out_here_and_was_renewed_by_another_process_stands() -> None:
    world = World()
    world.publish("1", text())
    await world.look()
    one = world.cache
    world.now += timedelta(seconds=WEEK_S) - FAILURE_HOLDS
    other = world.restart()
    world.publish("2", text())
    await world.look()
    world.now += FAILURE_HOLDS
    world.publish(None, TlsProblem.STS_FETCH_CONNECT)
    world.cache = one  # it could not renew: its way to the shelf was shut, say
    assert (await world.look()).mode == "enforce"
    world.cache = other
    assert (await world.look()).mode == "enforce"
    world.restart()
    assert (await world.look()).mode == "enforce"
    assert Change.EXPIRED not in world.changes()


class BrokenShelf(MemoryShelf):
    def __init__(self) -> None:
        super().__init__()
        self.works = True
        self.asked = 0

    async def get(self, domain: str) -> StoredPolicy | None:
        self.ask()
        return await super().get(domain)

    async def put(self, policy: StoredPolicy) -> None:
        self.ask()
        await super().put(policy)

    def ask(self) -> None:
        self.asked += 1
        if not self.works:
            raise ShelfError("the disk is full")


async def test_a_shelf_that_is_down_takes_no_policy_away_and_is_left_alone_for_a_while() -> None:
    shelf = BrokenShelf()
    world = World(shelf)
    world.publish("1", text())
    await world.look()
    shelf.works = False
    shelf.asked = 0
    world.publish("1", text(), "other.example")
    assert (await world.look()).mode == "enforce"
    assert (await world.look("other.example")).mode == "enforce"  # fetched, and in memory
    assert (await world.look("third.example")).mode is None
    assert shelf.asked == 1
    assert world.events[-2].change is Change.SHELF_FAILED
    assert world.events[-2].detail == "the disk is full"


async def test_what_the_shelf_could_not_take_is_put_there_later() -> None:
    shelf = BrokenShelf()
    shelf.works = False
    world = World(shelf)
    world.publish("1", text())
    await world.look()
    shelf.works = True
    world.now += SHELF_AGAIN
    await world.cache.renew_due()
    await world.settle()
    stored = await shelf.get(DOMAIN)
    assert stored is not None
    assert (stored.identifier, stored.expires) == ("1", datetime(2026, 1, 8, tzinfo=UTC))
    assert parse_policy(stored.text.encode()) == parse_policy(text().encode())


async def test_a_shelf_that_hangs_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tlspolicy.mta_sts.cache.SHELF_TIMEOUT_S", 0.05)

    class Hangs(MemoryShelf):
        async def get(self, domain: str) -> StoredPolicy | None:
            await asyncio.Event().wait()
            return None

    world = World(Hangs())
    world.publish("1", text())
    assert (await world.look()).mode == "enforce"
    assert world.changes()[0] is Change.SHELF_FAILED


# Bounds


async def test_strangers_without_policies_are_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tlspolicy.mta_sts.cache.MAX_STRANGERS", 10)
    world = World()
    world.publish("1", text())
    await world.look()
    for number in range(50):
        world.publish("1", TlsProblem.STS_FETCH_STATUS, f"s{number}.example")
        await world.look(f"s{number}.example")
    assert len(world.cache._failures) == 10
    assert len(world.cache._not_on_shelf) == 10
    world.break_dns("timeout")
    assert (await world.look()).mode == "enforce"


async def test_policies_beyond_memory_are_on_the_shelf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tlspolicy.mta_sts.cache.MAX_POLICY_MEMORY_BYTES", 5_000)
    world = World()
    for number in range(20):
        world.publish("1", text(), f"d{number}.example")
        await world.look(f"d{number}.example")
    assert len(world.cache._held) < 5
    world.records.clear()
    assert (await world.look("d0.example")).mode == "enforce"


async def test_closing_ends_what_is_under_way() -> None:
    world = World()
    world.publish("1", text())
    world.gate = asyncio.Event()
    asker = asyncio.create_task(world.cache.look_up(DOMAIN))
    await world.begun.wait()
    await world.cache.aclose()
    with pytest.raises(asyncio.CancelledError):
        await asker


async def test_a_bug_does_not_end_the_renewing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.tlspolicy.mta_sts.cache.TICK_S", 0)
    world = World()
    calls = asyncio.Queue[None]()

    async def fails() -> None:
        calls.put_nowait(None)
        raise RuntimeError("a bug")

    monkeypatch.setattr(world.cache, "renew_due", fails)
    task = asyncio.create_task(world.cache.run())
    for _ in range(3):
        await asyncio.wait_for(calls.get(), 5)
    task.cancel()


# For the metrics


async def test_every_look_up_says_how_it_was_answered() -> None:
    world = World()
    counted: list[LookUp] = []
    world.cache.count = counted.append
    await world.look()
    world.publish("1", TlsProblem.STS_FETCH_TIMEOUT)
    await world.look()
    world.now += FAILURE_HOLDS
    world.publish("2", text())
    await world.look()
    await world.look()
    world.break_dns("servfail")
    await world.look()
    world.publish("3", TlsProblem.STS_FETCH_STATUS)
    await world.look()
    assert counted == [
        LookUp.NONE,
        LookUp.FAILED,
        LookUp.FETCHED,
        LookUp.HIT,
        LookUp.STANDS,
        LookUp.STANDS,
    ]


async def test_the_summary_says_what_is_near_its_end() -> None:
    world = World()
    assert world.cache.summary() == Summary(by_mode={}, nearest_end=None, overdue=0)
    world.publish("1", text())
    world.publish("1", text(mode="testing"), "other.example")
    await world.look()
    await world.look("other.example")
    fetched, week = world.now, timedelta(seconds=WEEK_S)
    assert world.cache.summary() == Summary(
        by_mode={"enforce": 1, "testing": 1}, nearest_end=fetched + week, overdue=0
    )
    world.now = fetched + week * 0.74
    assert world.cache.summary().overdue == 0
    world.now = fetched + week * 0.76
    assert world.cache.summary().overdue == 1  # only the one that is enforced
    world.now = fetched + week
    assert world.cache.summary() == Summary(by_mode={}, nearest_end=None, overdue=0)
