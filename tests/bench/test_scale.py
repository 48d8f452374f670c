"""How cost grows: with workers, nodes, size, domains, far resolvers and open sessions. Told in docs/performance.md and docs/scale.md."""

import asyncio
import hashlib
import os
import resource
import smtplib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import pytest

from gateway.auth.dkim.canonical import Canonicalization
from gateway.auth.dkim.content import SignedContent
from gateway.mail.message import Message
from tests.bench.corpus import Corpus, Sender, messages, write_corpus, write_zone
from tests.bench.figures import Figures, keep, measure
from tests.bench.load import Load, Way
from tests.bench.processes import free_port, resident_mb, running, tree, wait_for
from tests.bench.stacks import (
    Ground,
    Stack,
    open_gateway,
    open_ground,
    open_opendkim,
    open_opendmarc,
    open_postfix,
    open_rspamd,
    program,
)
from tests.live.postfix import open_directory
from tests.milter.raw_client import RawClient

pytestmark = pytest.mark.bench

ROUNDS = 3
DOMAINS = 10_000
HELD = 1_000

HAPROXY = """\
global
    maxconn 4000
defaults
    mode tcp
    timeout connect 5s
    timeout client 300s
    timeout server 300s
frontend mail
    bind 127.0.0.1:{port}
    default_backend gateways
backend gateways
    balance leastconn
{servers}
"""


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    with open_directory() as directory:
        zone = write_zone(DOMAINS, directory / "zone")
        with open_ground(directory, zone) as opened:
            yield opened


def load(stack: Stack, ground: Ground, corpus: Corpus, count: int, **more: int) -> Load:
    kind = Way.MILTER if stack.way is Way.MILTER else Way.SMTP
    path = ground.directory / f"{hash(corpus):x}.{kind}"
    if not path.exists():
        write_corpus(corpus, kind, path)
    return Load(way=stack.way, address=stack.address, corpus=path, messages=count, **more)


def say(name: str, title: str, lines: list[str]) -> None:
    text = "\n".join(lines)
    busy = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    sys.stdout.write(f"\n\n{title} (load average now {busy})\n\n{text}\n")
    sys.stdout.flush()
    keep(name, {}, text)


def test_workers(ground: Ground) -> None:
    lines = ["| workers | proxy CPU s | msgs/s | milter CPU s | msgs/s |", "|---|---|---|---|---|"]
    with ExitStack() as opened:
        gateways = {
            workers: opened.enter_context(open_gateway(ground, f"workers-{workers}", workers=workers))
            for workers in (1, 2, 4)
        }
        found: dict[tuple[int, Way], list[Figures]] = {}
        for number in range(ROUNDS + 1):
            for workers, gateway in gateways.items():
                for way in (Way.SMTP, Way.MILTER):
                    stack = gateway.stack(str(workers), way)
                    figures = measure(stack, load(stack, ground, Corpus(), 2_000))
                    if number:
                        found.setdefault((workers, way), []).append(figures)
    for workers in gateways:
        cells = (Figures.middle(found[workers, way]) for way in (Way.SMTP, Way.MILTER))
        lines.append(
            f"| {workers} | " + " | ".join(f"{one.whole:.2f} | {one.rate:,.0f}" for one in cells) + " |"
        )
    say("workers", "5 KB, 50 a session, 10 at a time", lines)


def test_behind_haproxy(ground: Ground) -> None:
    lines = ["| way | CPU s: gateways | HAProxy | msgs/s |", "|---|---|---|---|"]
    with ExitStack() as opened:
        trusting = 'proxy_protocol_from = ["127.0.0.1"]\n'
        pair = [opened.enter_context(open_gateway(ground, f"node-{n}", inbound=trusting)) for n in (1, 2)]
        alone = opened.enter_context(open_gateway(ground, "node-alone"))
        port = free_port()
        servers = "\n".join(
            f"    server node{number} 127.0.0.1:{node.smtp_port} send-proxy-v2"
            for number, node in enumerate(pair)
        )
        config = ground.directory / "haproxy.cfg"
        config.write_text(HAPROXY.format(port=port, servers=servers))
        balancer = opened.enter_context(running([program("haproxy", "haproxy"), "-db", "-f", config]))
        wait_for(balancer, ("127.0.0.1", port))
        behind = Stack(
            name="two gateways behind HAProxy",
            way=Way.SMTP,
            address=f"127.0.0.1:{port}",
            components={"HAProxy": balancer.pid, "node 1": pair[0].pid, "node 2": pair[1].pid},
            judged=lambda: sum(node.judged() for node in pair),
        )
        for stack in (alone.stack("one gateway", Way.SMTP), behind):
            rounds = [measure(stack, load(stack, ground, Corpus(), 2_000)) for _ in range(ROUNDS + 1)][1:]
            one = Figures.middle(rounds)
            balancing = one.cpu.get("HAProxy", 0.0)
            lines.append(
                f"| {stack.name} | {one.whole - balancing:.2f} | {balancing:.2f} | {one.rate:,.0f} |"
            )
            assert all(cpu > 0 for name, cpu in one.cpu.items() if name.startswith("node"))
    say("haproxy", "5 KB, 50 a session, 10 at a time", lines)


def test_size(ground: Ground) -> None:
    lines = [
        "| message | milter CPU s for 1,000 | proxy CPU s for 1,000 | body form and hash MB/s | SHA-256 alone MB/s |",
        "|---|---|---|---|---|",
    ]
    with open_gateway(ground, "sizes") as gateway:
        for size, count in ((5_000, 1_000), (50_000, 400), (500_000, 100), (5_000_000, 20)):
            corpus = Corpus(size=size, messages=10, domains=10)
            cells = []
            for way in (Way.MILTER, Way.SMTP):
                stack = gateway.stack("", way)
                sent = load(stack, ground, corpus, count, per_session=10)
                cells.append(f"{Figures.middle([measure(stack, sent) for _ in range(ROUNDS)]).whole:.2f}")
            ours, bare = hashing_rates(next(messages(corpus))[1])
            lines.append(f"| {size // 1000:,} KB | {' | '.join(cells)} | {ours:,.0f} | {bare:,.0f} |")
    say("size", "RSA-2048, relaxed/relaxed", lines)


def hashing_rates(raw: bytes) -> tuple[float, float]:
    body = raw[raw.index(b"\r\n\r\n") + 4 :]

    def rate(work: Callable[[], object]) -> float:
        repeat = max(3, 20_000_000 // len(body))
        rounds = []
        for _ in range(5):
            began = time.process_time()
            for _ in range(repeat):
                work()
            rounds.append((time.process_time() - began) / repeat)
        return len(body) / median(rounds) / 1e6

    return (
        rate(lambda: SignedContent(Message(raw), ()).body(Canonicalization.RELAXED).whole),
        rate(lambda: hashlib.sha256(body).digest()),
    )


def test_domains(ground: Ground) -> None:
    """Cold is the first message of each domain after a start; warm the same again."""
    lines = ["| domains | engine | cold CPU s | msgs/s | warm CPU s | msgs/s |", "|---|---|---|---|---|---|"]
    for domains in (1, 100, DOMAINS):
        corpus = Corpus(domains=domains, messages=DOMAINS if domains == DOMAINS else 300)
        for name in ("our milter", "our milter, cache_entries = 200,000", "rspamd milter"):
            if "cache" in name and domains < DOMAINS:
                continue
            with opened_engine(ground, f"{name} {domains}") as stack:
                cold = measure(stack, load(stack, ground, corpus, max(domains, 50)))
                warm = measure(stack, load(stack, ground, corpus, DOMAINS if domains == DOMAINS else 2_000))
            lines.append(
                f"| {domains:,} | {name} | {cold.whole:.2f} | {cold.rate:,.0f} | {warm.whole:.2f} | {warm.rate:,.0f} |"
            )
    say("domains", "5 KB by milter, 50 a session, 10 at a time", lines)


@contextmanager
def opened_engine(ground: Ground, name: str) -> Iterator[Stack]:
    if name.startswith("rspamd"):
        with open_rspamd(ground, name, workers=1) as stack:
            yield stack
    else:
        entries = 200_000 if "cache" in name else 50_000
        with open_gateway(ground, name, cache_entries=entries) as gateway:
            yield gateway.stack(name, Way.MILTER)


def test_dns_latency(ground: Ground) -> None:
    lines = ["| DNS ms | msgs/s | p50 ms | p99 ms | CPU s |", "|---|---|---|---|---|"]
    corpus = Corpus(domains=2_000, messages=2_000)
    for delay_ms in (0, 20, 200):
        port = free_port()
        command = [
            sys.executable,
            "-m",
            "tests.bench.slow_dns",
            str(port),
            str(ground.resolver_port),
            str(delay_ms),
        ]
        with (
            running(command) as resolver,
            open_gateway(ground, f"dns-{delay_ms}", resolver_port=port) as gateway,
        ):
            wait_for(resolver, ("127.0.0.1", port))
            stack = gateway.stack("", Way.SMTP)
            one = measure(stack, load(stack, ground, corpus, 2_000, per_session=1, connections=200))
            lines.append(
                f"| {delay_ms} | {one.rate:,.0f} | {one.p50_ms:,.0f} | {one.p99_ms:,.0f} | {one.whole:.2f} |"
            )
    say(
        "dns-latency",
        "proxy, every message from a new domain, 200 sessions at a time, one message each",
        lines,
    )


def test_store(ground: Ground) -> None:
    """What it costs to keep every message's trace in SQLite, and how many bytes one takes."""
    lines = ["| traces | milter CPU s | bytes a message |", "|---|---|---|"]
    with ExitStack() as opened:
        database = ground.directory / "gateway.db"
        kept = f'[store]\nurl = "sqlite:///{database}"\n[trace]\nkeep = 100_000\n'
        found: dict[str, list[Figures]] = {}
        gateways = {
            name: opened.enter_context(open_gateway(ground, f"store {name}", more=more))
            for name, more in {"none": "", "every message's": kept}.items()
        }
        for number in range(ROUNDS + 1):
            for name, gateway in gateways.items():
                stack = gateway.stack(name, Way.MILTER)
                figures = measure(stack, load(stack, ground, Corpus(), 2_000))
                if number:
                    found.setdefault(name, []).append(figures)
    # Closed, it is one file: what waited is written, and the log beside it is folded in.
    taken = database.stat().st_size // (2_000 * (ROUNDS + 1))
    for name, rounds in found.items():
        lines.append(f"| {name} | {Figures.middle(rounds).whole:.2f} | {taken if name != 'none' else 0:,} |")
    say("store", "5 KB, 50 a session, 10 at a time", lines)


async def open_sessions(port: int, count: int) -> list[asyncio.StreamWriter]:
    """Clients that have said EHLO and are silent."""
    gate = asyncio.Semaphore(100)

    async def one(number: int) -> asyncio.StreamWriter:
        async with gate:
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, local_addr=(Sender(number).address, 0)
            )
            await reader.readline()
            writer.write(b"EHLO mail.example\r\n")
            while (await reader.readline())[3:4] == b"-":
                pass
            return writer

    return list(await asyncio.gather(*(one(number) for number in range(count))))


async def test_open_sessions(ground: Ground) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lines = ["| open sessions | MB | KB a session |", "|---|---|---|"]
    try:
        with open_gateway(ground, "sessions", inbound="max_sessions = 20_000\n") as gateway:

            def memory() -> float:
                return sum(resident_mb(pid) for pid in tree(gateway.pid))

            empty = memory()
            writers: list[asyncio.StreamWriter] = []
            for count in (1, 100, 1_000, 10_000):
                if count > hard - 500:
                    lines.append(f"| {count:,} | more than this machine's {hard} open files | |")
                    continue
                fresh = await open_sessions(gateway.smtp_port, count)
                held = memory()
                lines.append(f"| {count:,} | {held:.0f} | {(held - empty) * 1024 / count:.1f} |")
                for writer in fresh:
                    writer.close()
                writers += fresh
                await asyncio.sleep(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    say("open-sessions", f"silent after EHLO; {empty:.0f} MB with none", lines)


def open_peers(ground: Ground, opened: ExitStack) -> Iterator[Stack]:
    yield opened.enter_context(open_gateway(ground, "held")).stack("our milter", Way.MILTER)
    yield opened.enter_context(open_rspamd(ground, "rspamd milter", workers=1))
    yield opened.enter_context(open_opendkim(ground))
    yield opened.enter_context(open_opendmarc(ground))


def test_open_milter_connections(ground: Ground) -> None:
    """What a milter keeps for each session of the mail server, beside its peers; Postfix has a process for each session."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lines = ["| milter | MB with none | MB with 1,000 connections |", "|---|---|---|"]
    try:
        with ExitStack() as opened:
            for stack in open_peers(ground, opened):
                (root,) = stack.components.values()
                empty = sum(resident_mb(pid) for pid in tree(root))
                clients = [RawClient(Path(stack.address)) for _ in range(HELD)]
                for client in clients:
                    client.connect()
                    client.helo()
                    client.flush()
                held = sum(resident_mb(pid) for pid in tree(root))
                lines.append(f"| {stack.name} | {empty:.0f} | {held:.0f} |")
                for client in clients:
                    client.close()
            _, bed = opened.enter_context(open_postfix(ground, "held Postfix"))
            with smtplib.SMTP("127.0.0.1", bed.port) as sender:
                sender.ehlo()
                each = median(map(resident_mb, bed.smtpd_pids()))
                lines.append(f"| Postfix | | {each * HELD:.0f}: a process of {each:.1f} for each |")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    say("open-milter-connections", "after HELO, silent", lines)
