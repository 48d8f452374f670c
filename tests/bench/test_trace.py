"""What keeping a trace costs a message: two gateways in one run, alike but for `[trace] keep`.

The ring is small, so that its lasting state is measured: for each row that comes one goes. Asserted is that the one kept traces and
the other none; the figures go to the terminal and are told in docs/performance.md.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway.store.engine import open_to_read
from gateway.store.traces import MAX_PAGE, Traces
from tests.bench.corpus import Corpus, write_corpus, write_zone
from tests.bench.figures import Figures, measure
from tests.bench.load import Load, Way
from tests.bench.stacks import Gateway, Ground, open_gateway, open_ground
from tests.live.postfix import open_directory

pytestmark = pytest.mark.bench

ROUNDS = 3  # odd: the middle one counts
MESSAGES = 2_000
SESSIONS = {"many": 50, "one": 1}
WAYS = {"proxy": Way.SMTP, "milter": Way.MILTER}
STORE = '[store]\nurl = "sqlite:///{database}"\n[trace]\nkeep = {keep}\n'


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with open_directory() as directory, open_ground(directory, write_zone(100, directory / "zone")) as ground:
        yield ground


def database(ground: Ground, name: str) -> Path:
    return ground.directory / f"{name}.db"


def test_what_a_trace_costs(ground: Ground) -> None:
    corpora = {way: write_corpus(Corpus(), way, ground.directory / f"corpus.{way}") for way in WAYS.values()}
    with ExitStack() as stack:
        gateways: dict[str, Gateway] = {}
        for name, keep in {"without": 0, "with": 3_000}.items():
            store = STORE.format(database=database(ground, name), keep=keep)
            gateways[name] = stack.enter_context(open_gateway(ground, name, more=store))
        found: dict[tuple[str, str, str], list[Figures]] = {}
        for number in range(ROUNDS + 1):
            for sessions, per_session in SESSIONS.items():
                for kind, way in WAYS.items():
                    for name, gateway in gateways.items():
                        door = gateway.stack(name, way)
                        load = Load(
                            way=way,
                            address=door.address,
                            corpus=corpora[way],
                            messages=MESSAGES,
                            per_session=per_session,
                        )
                        figures = measure(door, load)
                        if number:  # the first is to warm up
                            found.setdefault((kind, sessions, name), []).append(figures)
    kept = {
        name: len(Traces(open_to_read(f"sqlite:///{database(ground, name)}")).find(limit=MAX_PAGE))
        for name in gateways
    }
    assert kept == {"without": 0, "with": MAX_PAGE}
    sys.stdout.write(f"\n\n{table({key: Figures.middle(rounds) for key, rounds in found.items()})}\n")


def table(figures: dict[tuple[str, str, str], Figures]) -> str:
    lines = [
        "| way | sessions | without, µs | with, µs | a trace, µs | of the message |",
        "|---|---|---|---|---|---|",
    ]
    for way in WAYS:
        for sessions in SESSIONS:
            without, traced = (figures[way, sessions, name].whole * 1_000 for name in ("without", "with"))
            cost = traced - without
            lines.append(
                f"| {way} | {sessions} | {without:.0f} | {traced:.0f} | {cost:.0f} | {cost / without:.1%} |"
            )
    return "\n".join(lines)
