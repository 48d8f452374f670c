import asyncio
import time

import pytest

from gateway.dns.budget import BudgetedResolver
from gateway.dns.resolver import Answer, NotFound, Outcome, RecordType, Temporary, Trouble
from gateway.dns.zone import ZoneResolver

A, TXT = RecordType.A, RecordType.TXT
OVER = Temporary(Trouble.BUDGET)
ZONE = ZoneResolver.from_text("a. TXT one\n$TROUBLE broken. TXT servfail")


class Slow:
    """Answers when told to, and never at once."""

    def __init__(self) -> None:
        self.release = asyncio.Event()
        self.asked: list[str] = []
        self.cancelled = 0

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        self.asked.append(name)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return await ZONE.query(name, record_type)


def in_a_minute() -> float:
    return time.monotonic() + 60


async def test_questions_are_counted_once_each_and_written_down() -> None:
    resolver = BudgetedResolver(ZONE, max_queries=3, deadline=in_a_minute())
    first = await resolver.query("a", TXT)
    assert isinstance(first, Answer)
    assert await resolver.query("A", TXT) is first
    assert isinstance(await resolver.query("a", A), NotFound)
    assert await resolver.query("broken", TXT) == Temporary(Trouble.SERVFAIL)
    exhausted = [resolver.exhausted]
    assert await resolver.query("b", TXT) == OVER
    assert await resolver.query("c", TXT) == OVER
    assert await resolver.query("a", TXT) is first, "what is known stays known"
    assert [*exhausted, resolver.exhausted] == [False, True]
    assert [(one.name, one.record_type, one.outcome) for one in resolver.asked] == [
        ("a", TXT, "answer"),
        ("a", A, "nodata"),
        ("broken", TXT, "servfail"),
        ("b", TXT, "budget"),
    ]


async def test_no_question_fits_in_a_budget_of_none() -> None:
    assert await BudgetedResolver(ZONE, max_queries=0, deadline=in_a_minute()).query("a", TXT) == OVER


async def test_after_the_deadline_nobody_is_asked() -> None:
    slow = Slow()
    assert await BudgetedResolver(slow, max_queries=9, deadline=time.monotonic()).query("a", TXT) == OVER
    assert not slow.asked


async def test_the_deadline_ends_a_question_on_its_way() -> None:
    slow = Slow()
    resolver = BudgetedResolver(slow, max_queries=9, deadline=time.monotonic() + 0.02)
    assert await resolver.query("a", TXT) == OVER
    assert slow.cancelled == 1
    assert resolver.exhausted
    assert [one.outcome for one in resolver.asked] == ["budget"]
    assert resolver.asked[0].ms >= 10


async def test_two_checks_that_wait_for_the_same_question_count_once() -> None:
    slow = Slow()
    resolver = BudgetedResolver(slow, max_queries=1, deadline=in_a_minute())
    waiting = [asyncio.ensure_future(resolver.query("a", TXT)) for _ in range(3)]
    await asyncio.sleep(0)
    slow.release.set()
    outcomes = await asyncio.gather(*waiting)
    assert all(isinstance(outcome, Answer) for outcome in outcomes)
    assert len(resolver.asked) == 1


async def test_who_gives_up_leaves_nothing_running() -> None:
    slow = Slow()
    resolver = BudgetedResolver(slow, max_queries=1, deadline=in_a_minute())
    waiting = asyncio.ensure_future(resolver.query("a", TXT))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert slow.cancelled == 1


async def test_what_is_known_at_once_does_not_suspend() -> None:
    resolver = BudgetedResolver(ZONE, max_queries=1, deadline=in_a_minute())
    with pytest.raises(StopIteration) as done:
        resolver.query("a", TXT).send(None)
    assert isinstance(done.value.value, Answer)
