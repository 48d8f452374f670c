"""What is remembered of the DNS' answers: for how long, how much, and who pays."""

from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from gateway.dns.budget import BudgetedResolver
from gateway.dns.memory import MAX_AGE_S, DnsMemory, Watch
from gateway.dns.resolver import Answer, Missing, NotFound, Outcome, RecordType, Temporary, Trouble

ADDRESS = ip_address("192.0.2.1")


@dataclass
class World:
    """A resolver in which names below `no.example` do not exist and those below `bad.example` cannot be known."""

    ttl: int = 300
    asked: list[str] = field(default_factory=list)

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        del record_type
        self.asked.append(name)
        if name.endswith("bad.example"):
            return Temporary(Trouble.SERVFAIL)
        if name.endswith("long.example"):
            return Answer((b"x" * 1_500,), self.ttl, secure=False, name=name)
        if name.endswith("no.example"):
            return NotFound(Missing.NXDOMAIN, ttl=60, secure=False)
        return Answer((ADDRESS,), self.ttl, secure=False, name=name)


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Checks:
    """A check of a name and its parent, remembered, as the checks of mail are."""

    world: World = field(default_factory=World)
    clock: Clock = field(default_factory=Clock)
    max_entries: int = 10

    def __post_init__(self) -> None:
        self.memory: DnsMemory[str, str] = DnsMemory(self.max_entries, now=self.clock)

    def budget(self, max_queries: int = 60, seconds: float = 20.0) -> BudgetedResolver:
        deadline = self.clock.now + seconds
        return BudgetedResolver(self.world, max_queries=max_queries, deadline=deadline, now=self.clock)

    async def check(self, name: str, resolver: BudgetedResolver) -> str:
        known = self.memory.recall(name, resolver)
        if known is not None:
            return known
        watch = Watch(resolver)
        words = [type(await watch.query(one, RecordType.A)).__name__ for one in (name, f"x.{name}")]
        result = " ".join(words)
        self.memory.keep(name, result, watch)
        return result


async def test_the_second_message_asks_nobody_pays_the_same_and_says_what_it_rests_on() -> None:
    checks = Checks()
    first, second = checks.budget(), checks.budget()
    assert await checks.check("a.example", first) == await checks.check("a.example", second)
    assert checks.world.asked == ["a.example", "x.a.example"]
    assert first.spent == second.spent == 2
    assert [(one.name, one.outcome) for one in second.asked] == [
        (one.name, one.outcome) for one in first.asked
    ]


@pytest.mark.parametrize(
    ("name", "ttl", "seconds"),
    [
        ("a.example", 300, 300.0),
        ("no.example", 300, 60.0),
        ("a.example", 10 * int(MAX_AGE_S), MAX_AGE_S),
    ],
    ids=["the answers' TTL", "a no has one too", "never longer than an hour"],
)
async def test_it_is_asked_for_again_when_the_answers_are_too_old(
    name: str, ttl: int, seconds: float
) -> None:
    checks = Checks(World(ttl))
    await checks.check(name, checks.budget())
    checks.clock.now += seconds - 1
    await checks.check(name, checks.budget())
    assert len(checks.world.asked) == 2
    checks.clock.now += 1
    await checks.check(name, checks.budget())
    assert len(checks.world.asked) == 4


async def test_the_shortest_lived_answer_counts() -> None:
    checks = Checks()
    watch = Watch(checks.budget())
    for name in ("a.example", "no.example", "b.example"):
        await watch.query(name, RecordType.A)
    assert (watch.ttl, watch.in_doubt) == (60, False)


@pytest.mark.parametrize("name", ["bad.example", "long.example"])
async def test_what_could_not_be_known_or_is_too_long_is_not_kept(name: str) -> None:
    checks = Checks()
    await checks.check(name, checks.budget())
    await checks.check(name, checks.budget())
    assert len(checks.world.asked) == 4


async def test_who_cannot_pay_is_told_what_he_would_have_been_told_without_a_memory() -> None:
    checks = Checks()
    await checks.check("a.example", checks.budget())
    poor, late = checks.budget(max_queries=1), checks.budget(seconds=0.0)
    assert await checks.check("a.example", poor) == "Answer Temporary"
    assert await checks.check("a.example", late) == "Temporary Temporary"
    assert await checks.check("a.example", checks.budget()) == "Answer Answer"


async def test_a_question_is_paid_for_once_whoever_asks_it() -> None:
    checks = Checks()
    await checks.check("a.example", checks.budget())
    before, after = checks.budget(), checks.budget()
    await before.query("a.example", RecordType.A)
    await checks.check("a.example", before)
    await checks.check("a.example", after)
    assert isinstance(await after.query("A.example", RecordType.A), Answer)
    assert before.spent == after.spent == 2


async def test_a_name_in_another_case_is_the_same_question() -> None:
    checks = Checks()
    watch = Watch(asking := checks.budget())
    for name in ("a.example", "A.example"):
        await watch.query(name, RecordType.A)
    checks.memory.keep("key", "result", watch)
    remembering = checks.budget()
    assert checks.memory.recall("key", remembering) == "result"
    assert (asking.spent, remembering.spent) == (1, 1)


async def test_only_so_many_are_kept_and_those_that_are_used() -> None:
    checks = Checks(max_entries=2)
    for name in ("a.example", "b.example", "a.example", "c.example"):
        await checks.check(name, checks.budget())
    asked = len(checks.world.asked)
    await checks.check("a.example", checks.budget())
    assert len(checks.world.asked) == asked
    await checks.check("b.example", checks.budget())
    assert len(checks.world.asked) == asked + 2
