"""What a decision about outbound TLS costs: kept, derived again from what is known, and first."""

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import pytest

from gateway.dns.stub import Validation
from gateway.dns.zone import ZoneResolver
from gateway.tlspolicy.dane import ValidationWatch
from gateway.tlspolicy.decide import Decider
from gateway.tlspolicy.mta_sts.cache import PolicyCache
from gateway.tlspolicy.mta_sts.fetch import Fetched, FetchFailure
from gateway.tlspolicy.mta_sts.policy import parse_policy
from gateway.tlspolicy.mta_sts.shelf import MemoryShelf

pytestmark = pytest.mark.bench

ROUNDS = 5
TIMES = 20_000
GOAL_US = 50
POLICY = "version: STSv1\nmode: enforce\nmx: *.example.com\nmax_age: 604800\n"
ZONE = ZoneResolver.from_text(
    f"""
$TTL 300
$SECURE on
example.com. MX 10 mx1.example.com.
example.com. MX 20 mx2.example.com.
mx1.example.com. A 192.0.2.1
mx2.example.com. A 192.0.2.2
_25._tcp.mx1.example.com. TLSA 3 1 1 {"11" * 32}
_25._tcp.mx2.example.com. TLSA 3 1 1 {"11" * 32}
_mta-sts.example.com. TXT "v=STSv1; id=1"
"""
)


class Files:
    async def fetch(self, domain: str) -> Fetched | FetchFailure:
        return Fetched(policy=parse_policy(POLICY.encode()), text=POLICY)

    async def aclose(self) -> None:
        return


async def validates() -> Validation:
    return Validation.YES


async def microseconds(work: Callable[[], Awaitable[object]], times: int) -> float:
    rounds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(times):
            await work()
        rounds.append((time.perf_counter() - start) / times * 1e6)
    return statistics.median(rounds)


async def measure() -> tuple[float, float, float]:
    clock = [0.0]
    cache = PolicyCache(ZONE, Files(), MemoryShelf(), now=lambda: datetime.now(UTC))
    decider = Decider(ZONE, sts=cache, dane=ValidationWatch(validates), now=lambda: clock[0])

    async def again() -> None:
        clock[0] += 3_600
        await decider.decide("example.com")

    await decider.decide("example.com")
    kept = await microseconds(lambda: decider.decide("example.com"), TIMES)
    derived = await microseconds(again, TIMES // 20)
    policy = await microseconds(lambda: cache.look_up("example.com"), TIMES // 10)
    await cache.aclose()
    return kept, derived, policy


def test_a_kept_decision_costs_less_than_the_goal(capsys: pytest.CaptureFixture[str]) -> None:
    kept, derived, policy = asyncio.run(measure())
    with capsys.disabled():
        sys.stdout.write(
            f"\nTLS decision: kept {kept:.1f} µs, derived again from known facts {derived:.0f} µs;"
            f" a known MTA-STS policy {policy:.1f} µs\n"
        )
    assert kept < GOAL_US
