"""What watching costs a message: gateways in one run, alike but for metrics, traces and shadow rules.

The ring of traces is small, so that its lasting state is measured: for each that comes one goes. Asserted is that the ones that are to
keep traces do, and the others none; the figures go to the terminal and are told in docs/performance.md.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from operator import sub
from pathlib import Path
from statistics import median

import pytest

from gateway.store.engine import open_to_read
from gateway.store.traces import MAX_PAGE, Traces
from tests.bench.corpus import Corpus, write_corpus, write_zone
from tests.bench.figures import measure
from tests.bench.load import Load, Way
from tests.bench.processes import threads_cpu
from tests.bench.stacks import Gateway, Ground, open_gateway, open_ground
from tests.live.postfix import open_directory
from tests.store.databases import until

pytestmark = pytest.mark.bench

COPIES, ROUNDS = 3, 3
"""So many processes of each kind, alike but for where they lie in memory: that alone makes one a tenth of the difference dearer."""
MESSAGES = 2_000
SESSIONS = {"many": 50, "one": 1}
WAYS = {"proxy": Way.SMTP, "milter": Way.MILTER}
STORE = '[store]\nurl = "sqlite:///{database}"\n[trace]\nkeep = 3000\n'
SHADOW = '[policy]\nshadow = "strict"\n'
GATEWAYS = {  # metrics, traces, shadow
    "bare": (False, False, False),
    "metrics": (True, False, False),
    "trace": (False, True, False),
    "shadow": (False, False, True),
    "all": (True, True, True),
}

Found = dict[tuple[str, str, str], dict[tuple[int, int], float]]
"""By way, sessions and kind of gateway: µs of a message, by round and copy."""


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with open_directory() as directory, open_ground(directory, write_zone(100, directory / "zone")) as ground:
        yield ground


def opened(ground: Ground, name: str, copy: int) -> AbstractContextManager[Gateway]:
    watched, traced, shadowed = GATEWAYS[name]
    more = SHADOW if shadowed else ""
    more += STORE.format(database=database(ground, name, copy)) if traced else ""
    return open_gateway(ground, f"{name}{copy}", more=more, watched=watched)


def database(ground: Ground, name: str, copy: int) -> Path:
    return ground.directory / f"{name}{copy}.db"


def test_what_watching_costs(ground: Ground) -> None:
    corpora = {way: write_corpus(Corpus(), way, ground.directory / f"corpus.{way}") for way in WAYS.values()}
    with ExitStack() as stack:
        gateways = {
            (name, copy): stack.enter_context(opened(ground, name, copy))
            for copy in range(COPIES)
            for name in GATEWAYS
        }
        found: Found = {}
        for number in range(ROUNDS + 1):
            for sessions, per_session in SESSIONS.items():
                for kind, way in WAYS.items():
                    names = list(gateways)
                    first = number % len(names)  # whoever is measured twice in a row finds its caches warm
                    for name, copy in names[first:] + names[:first]:
                        gateway = gateways[name, copy]
                        door = gateway.stack(name, way)
                        if GATEWAYS[name][1]:
                            door = replace(door, settle=keeps(database(ground, name, copy), MESSAGES))
                        load = Load(
                            way=way,
                            address=door.address,
                            corpus=corpora[way],
                            messages=MESSAGES,
                            per_session=per_session,
                        )
                        before = threads_cpu(gateway.pid)
                        measure(door, load)
                        spent_us = (threads_cpu(gateway.pid) - before) * 1e6 / MESSAGES
                        if number:  # the first is to warm up
                            found.setdefault((kind, sessions, name), {})[number, copy] = spent_us
    for name, copy in gateways:
        if GATEWAYS[name][1]:
            traces = Traces(open_to_read(f"sqlite:///{database(ground, name, copy)}"))
            assert len(traces.find(limit=MAX_PAGE)) == MAX_PAGE
    sys.stdout.write(f"\n\n{table(found)}\n")


def keeps(path: Path, more: int) -> Callable[[], None]:
    """To wait for so many traces more than there are now: the writing is a part of what they cost."""
    traces = Traces(open_to_read(f"sqlite:///{path}"))
    last = traces.last_key() + more
    return lambda: until(lambda: traces.last_key() == last)


def table(found: Found) -> str:
    """Costs are the middle of the differences: what a busy machine adds to a round it adds to all of them."""
    lines = [
        "| way | sessions | bare, µs | metrics | trace | shadow | all three | of the message |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        for sessions in SESSIONS:
            pairs = sorted(found[way, sessions, "bare"])
            whole = {name: [found[way, sessions, name][pair] for pair in pairs] for name in GATEWAYS}
            bare = whole.pop("bare")
            costs = {name: median(map(sub, rounds, bare)) for name, rounds in whole.items()}
            share = median((every - none) / every for every, none in zip(whole["all"], bare, strict=True))
            told = " | ".join(f"{cost:+.0f}" for cost in costs.values())
            lines.append(f"| {way} | {sessions} | {median(bare):.0f} | {told} | {share:.1%} |")
    return "\n".join(lines)
