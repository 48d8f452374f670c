"""The gateway beside its peers, in one run: what a message costs by each door, and what the same checks cost elsewhere.

The figures go to the terminal (and to GATEWAY_BENCH_OUTPUT) and are told in docs/performance.md. Asserted is that every message was
accepted, that gateway and rspamd found every one good, and that opendkim and opendmarc do so with one and refuse a forged one.
"""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.bench.corpus import Corpus, Signatures, messages, write_corpus, write_zone
from tests.bench.figures import Figures, keep, keep_plot, measure, table
from tests.bench.load import Load, Way, send
from tests.bench.stacks import (
    Ground,
    Stack,
    open_gateway,
    open_ground,
    open_opendkim,
    open_opendmarc,
    open_postfix,
    open_rspamd,
    sink_stack,
)
from tests.live.certificates import Authority, Certificate
from tests.live.postfix import PostfixBed, open_directory

pytestmark = pytest.mark.bench

ROUNDS = 3  # odd: the middle one counts
SESSIONS = {"many": 50, "one": 1}
DOMAINS = 100
SINK = "sink"
PEERED = re.compile(r"dkim=pass|spf=pass|dmarc=pass")


@dataclass(frozen=True, slots=True)
class Field:
    """All that is measured, and what is sent."""

    ground: Ground
    stacks: list[Stack]
    directory: Path

    def stack(self, name: str) -> Stack:
        return next(stack for stack in self.stacks if stack.name == name)

    def corpus(self, way: Way, corpus: Corpus) -> Path:
        kind = Way.MILTER if way is Way.MILTER else Way.SMTP
        path = self.directory / f"{hash(corpus):x}.{kind}"
        return path if path.exists() else write_corpus(corpus, kind, path)


@pytest.fixture(scope="module")
def field() -> Iterator[Field]:
    with ExitStack() as stack:
        directory = stack.enter_context(open_directory())
        zone = write_zone(DOMAINS, directory / "zone")
        ground = stack.enter_context(open_ground(directory, zone))
        certificates = Authority.found(directory, ["mx.example.net"])
        tls = certificates.files[Certificate.GOOD]
        inbound = f'tls_certificate = "{tls}"\ntls_key = "{tls}"\n'
        gateway = stack.enter_context(open_gateway(ground, "gateway", inbound=inbound))
        pair = stack.enter_context(open_gateway(ground, "gateway-2", workers=2))
        by_library = []
        if find_spec("milter"):  # the extra
            ours = open_gateway(ground, "gateway-pymilter", milter='implementation = "pymilter"')
            by_library.append(stack.enter_context(ours).stack("our milter, pymilter", Way.MILTER))
        rspamd = stack.enter_context(open_rspamd(ground, "rspamd milter", workers=1))
        rspamd_pair = stack.enter_context(open_rspamd(ground, "rspamd milter, 2 workers", workers=2))
        opendkim = stack.enter_context(open_opendkim(ground))
        opendmarc = stack.enter_context(open_opendmarc(ground))
        milter = gateway.stack("our milter", Way.MILTER)
        postfix, _ = stack.enter_context(open_postfix(ground, "Postfix alone"))
        with_ours, _ = stack.enter_context(open_postfix(ground, "Postfix + our milter", milter))
        with_rspamd, _ = stack.enter_context(open_postfix(ground, "Postfix + rspamd", rspamd))
        with_opendkim, bed = stack.enter_context(
            open_postfix(ground, "Postfix + opendkim + opendmarc", opendkim, opendmarc)
        )
        peers_check(Field(ground, [], directory), with_opendkim, bed)
        yield Field(
            ground,
            [
                sink_stack(ground),
                gateway.stack("our proxy", Way.SMTP),
                gateway.stack("our proxy, TLS", Way.SMTP_TLS),
                pair.stack("our proxy, 2 workers", Way.SMTP),
                gateway.relay("our relay"),
                milter,
                *by_library,
                pair.stack("our milter, 2 workers", Way.MILTER),
                rspamd,
                rspamd_pair,
                postfix,
                with_ours,
                with_rspamd,
                with_opendkim,
            ],
            directory,
        )


def peers_check(field: Field, stack: Stack, bed: PostfixBed) -> None:
    """opendkim and opendmarc keep no log of what they found: their stamps on a delivered message say it."""
    corpus = Corpus(messages=1, recipient="alice@bed.test")
    good = field.corpus(Way.SMTP, corpus)
    send(Load(way=Way.SMTP, address=stack.address, corpus=good, messages=1, per_session=1, connections=1))
    stamped = bed.wait_for_message("alice").decode()
    assert set(PEERED.findall(stamped)) == {"dkim=pass", "spf=pass", "dmarc=pass"}, stamped
    forged = field.directory / "forged"
    forged.write_bytes(good.read_bytes().replace(b"Minutes of the", b"Minutes of our"))
    send(Load(way=Way.SMTP, address=stack.address, corpus=forged, messages=1, per_session=1, connections=1))
    assert "dkim=pass" not in bed.wait_for_message("alice").decode()


def run(
    field: Field, names: list[str], corpus: Corpus, count: int, connections: int = 10
) -> dict[tuple[str, str], Figures]:
    """Each round goes through all stacks, so that a slow minute of the machine falls on all alike."""
    found: dict[tuple[str, str], list[Figures]] = {}
    for number in range(ROUNDS + 1):
        for sessions, per_session in SESSIONS.items():
            for name in names:
                stack = field.stack(name)
                some = count if number else count // 3 // 50 * 50  # the first is to warm up
                load = Load(
                    way=stack.way,
                    address=stack.address,
                    corpus=field.corpus(stack.way, corpus),
                    messages=some,
                    per_session=per_session,
                    connections=connections,
                )
                figures = measure(stack, load)
                if number:
                    found.setdefault((name, sessions), []).append(figures)
    return {key: Figures.middle(rounds) for key, rounds in found.items()}


def say(title: str, text: str) -> None:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    sys.stdout.write(f"\n\n{title} (load average now {load})\n\n{text}\n")
    sys.stdout.flush()


def test_5_kb(field: Field) -> None:
    names = [stack.name for stack in field.stacks]
    found = run(field, names, Corpus(), 1_500)
    text = table(found, SINK)
    say(f"5 KB, {DOMAINS} domains, RSA-2048, 10 at a time, medians of {ROUNDS}", text)
    keep("5kb", found, text)
    bars = [(name, found[name, "many"].cpu) for name in names]
    keep_plot("performance", "CPU seconds for 1,000 signed messages of 5 KB, 50 a session", bars)
    ours, theirs = (found[f"{name}, 2 workers", "many"] for name in ("our milter", "rspamd milter"))
    sys.stdout.write(
        f"two workers against rspamd's two: {ours.rate / theirs.rate:.2f} times the rate, {theirs.whole / ours.whole:.2f} times less CPU\n"
    )


@pytest.mark.parametrize("attachment", [True, False], ids=["attachment", "text"])
def test_100_kb(field: Field, *, attachment: bool) -> None:
    names = [SINK, "our proxy", "our milter", "rspamd milter"]
    if attachment:
        names += ["Postfix + our milter", "Postfix + rspamd"]
    found = run(
        field, names, Corpus(size=100_000, messages=100, attachment=attachment), 300 if attachment else 150
    )
    text = table(found, SINK)
    kind = "attachment" if attachment else "text"
    say(f"100 KB, {kind}", text)
    keep(f"100kb-{kind}", found, text)


@pytest.mark.parametrize("connections", [1, 50])
def test_sessions_at_a_time(field: Field, connections: int) -> None:
    names = [SINK, "our proxy", "our milter", "rspamd milter"]
    found = run(field, names, Corpus(), 500 if connections == 1 else 2_500, connections)
    text = table(found, SINK)
    say(f"5 KB, {connections} at a time", text)
    keep(f"sessions-{connections}", found, text)


def test_signatures(field: Field) -> None:
    lines = ["| signatures | our milter, CPU s | our proxy, CPU s |", "|---|---|---|"]
    kinds = [(signatures.value, Corpus(signatures=signatures)) for signatures in Signatures]
    kinds += [(f"{count} times RSA-2048", Corpus(repeat=count, size=8_000)) for count in (2, 4, 8)]
    for name, corpus in kinds:
        cells = []
        for way in ("our milter", "our proxy"):
            stack = field.stack(way)
            load = Load(
                way=stack.way, address=stack.address, corpus=field.corpus(stack.way, corpus), messages=1_000
            )
            rounds = [measure(stack, load) for _ in range(ROUNDS + 1)][1:]
            cells.append(f"{Figures.middle(rounds).whole:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    text = "\n".join(lines)
    say("signatures", text)
    keep("signatures", {}, text)


def test_the_corpus_is_what_it_says() -> None:
    found = list(messages(Corpus(messages=4, domains=2, signatures=Signatures.BOTH)))
    assert len({raw for _, raw in found}) == 4
    assert all(raw.count(b"DKIM-Signature:") == 2 and 4_500 < len(raw) < 7_000 for _, raw in found)
