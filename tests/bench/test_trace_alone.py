"""What keeping a trace costs by itself, to the microsecond: a real message's story is told again and again, with the ring full.

The processor time of the whole process counts: of the thread that tells, of the one that writes, of SQLite in it, and of the kernel for
both. What it costs beside mail is in `test_trace`.
"""

import sys
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from gateway.engine import Engine
from gateway.mail.envelope import Envelope
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.store import Store
from gateway.store.traces import Ring
from gateway.store.writer import DEFAULT_LIMITS
from gateway.trace.batch import TOGETHER
from gateway.trace.tell import Story, Tracer
from gateway.verdict import Stage
from tests.guard.workload import good_message
from tests.store.databases import sqlite_url, until

pytestmark = pytest.mark.bench

GOAL_US = 25.0

ROUNDS, MESSAGES, KEEP = 5, 20_480, 10_000
BURST = TOGETHER * DEFAULT_LIMITS.batch_items  # as much as the writer waits for
QUESTIONS = 12


async def judged(engine: Engine, envelope: Envelope, raw: bytes) -> Story:
    """A message that passed every check, with as many DNS questions as one from a domain that is new."""
    verdict = await engine.judge(envelope, Message(raw))
    inquiry = verdict.inquiry
    assert inquiry is not None
    assert inquiry.tried
    questions = (*inquiry.questions,) * QUESTIONS
    queued = Reply(250, "2.0.0", (f"Ok: queued as {envelope.id}",))
    return Story(
        envelope=envelope,
        stage=Stage.MESSAGE,
        received=datetime.now(UTC),
        reply=queued,
        verdict=replace(verdict, inquiry=replace(inquiry, questions=questions[:QUESTIONS])),
        asked=[(recipient, Reply.of(250, "2.1.5", "Ok")) for recipient in envelope.recipients],
        size=len(raw),
        heard=queued,
        heard_s=0.0012,
    )


async def stories() -> list[Story]:
    engine, envelope, raw = good_message()
    engine.tells = True
    return [await judged(engine, replace(envelope, id=f"{n // 50:012x}.{n % 50}"), raw) for n in range(1_000)]


def has_written(store: Store, traces: int) -> bool:
    return store.writer.counts.written == traces


async def test_what_a_trace_costs_alone(tmp_path: Path) -> None:
    told = await stories()
    store = Store.open(sqlite_url(tmp_path / "gateway.db"), ring=Ring(keep=KEEP))
    tracer = Tracer(store.keep)

    def tell(messages: int) -> tuple[float, float]:
        """Microseconds of all threads, and of this one."""
        began, began_here = time.process_time(), time.thread_time()
        for start in range(0, messages, BURST):
            written = store.writer.counts.written + BURST
            for number in range(start, start + BURST):
                tracer.tell(told[number % len(told)])
            until(partial(has_written, store, written))
        scale = 1e6 / messages
        return (time.process_time() - began) * scale, (time.thread_time() - began_here) * scale

    tell(MESSAGES)
    assert KEEP <= store.traces.count() < KEEP + TOGETHER
    rounds = [tell(MESSAGES) for _ in range(ROUNDS)]
    whole, here = (median(each) for each in zip(*rounds, strict=True))
    assert await store.close(5.0)
    size = (tmp_path / "gateway.db").stat().st_size / KEEP
    sys.stdout.write(
        f"\n\na trace: {whole:.1f} µs of all threads, {here:.1f} of the one that tells; {size:.0f} bytes\n"
    )
    assert whole < GOAL_US


async def test_what_it_costs_to_notice_what_is_told() -> None:
    engine, envelope, raw = good_message()

    async def judge() -> float:
        began = time.process_time()
        for _ in range(500):
            await engine.judge(envelope, Message(raw))
        return (time.process_time() - began) * 2_000

    silent: list[float] = []
    telling: list[float] = []
    for _ in range(15):
        for engine.tells, costs in ((False, silent), (True, telling)):
            costs.append(await judge())
    cost = min(telling) - min(silent)
    sys.stdout.write(f"\n\njudging: {min(silent):.1f} µs; noticing what is told: {cost:.1f} more\n")
