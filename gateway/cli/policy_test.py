"""`gateway policy test`: what another rule file would change, shown on mail that was judged before.

Saved messages are judged again, by both files on the same evidence. A log has only what was logged, and a trace what was
kept: the rules are tried on that, and where the answer depends on anything else, the message is counted as one that cannot be decided.
"""

import asyncio
import json
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

from rich.text import Text

from gateway.cli.check import NO_CLIENT, CheckRequest, prepare_judging, reverse_path
from gateway.cli.errors import UsageFault
from gateway.cli.judged_log import read_log
from gateway.cli.kept_traces import read_traces
from gateway.cli.progress import progress
from gateway.cli.recalled import Passed, Recalled
from gateway.cli.saved_mail import client_of, count_saved, is_saved_mail, read_saved
from gateway.cli.show import terminal
from gateway.cli.wiring import build_engine
from gateway.dns.stub import StubResolver
from gateway.mail.envelope import Envelope, Listener, Session
from gateway.mail.message import Message
from gateway.ops.config import Settings
from gateway.ops.config.faults import shown
from gateway.ops.config.load import load_config
from gateway.ops.text import printable
from gateway.policy import RuleSet, load_rules
from gateway.policy.partial import Decided, Undecided, decide_for_each, possible_ends
from gateway.store import StoreError
from gateway.store.engine import open_to_read
from gateway.store.traces import Traces
from gateway.verdict import Disposition

STATUS_SAME: Final = 0
STATUS_CHANGES: Final = 1
STATUS_UNKNOWN: Final = 3
"""No change was seen, but not every message could be decided."""

EXAMPLES: Final = 3
STORE: Final = "store"
"""In place of a path: the traces that the config's store keeps. A file of this name is `./store`."""

_MIB: Final = 1024 * 1024
_MAX_GROUPS: Final = 1_000
_REFUSED: Final = frozenset({Disposition.DEFER, Disposition.REJECT})


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayRequest:
    """What was asked on the command line; None: not said.

    Attributes:
        rules: the file that is tried; None: the config's `[policy] shadow`.
        live: what it is compared with; None: with the config's rules for saved messages, with what was done for a log.
        limit: examples shown of each change.
    """

    against: Path
    rules: str | None = None
    live: str | None = None
    config: Path | None = None
    zone: Path | None = None
    as_json: bool = False
    limit: int = EXAMPLES


class Change(NamedTuple):
    """From which rule and disposition to which."""

    live_rule: str
    live: Disposition
    rule: str
    disposition: Disposition


class Doubt(NamedTuple):
    """What a message could not be decided by: the rule, and what it asks that is not known."""

    rule: str
    keys: tuple[str, ...]


@dataclass(slots=True)
class Tested:
    """What was seen so far; its size does not depend on the number of messages."""

    limit: int
    source: str = "log"
    messages: int = 0
    without_rule: int = 0
    unreadable: int = 0
    changes: Counter[Change] = field(default_factory=Counter)
    examples: dict[Change, list[str]] = field(default_factory=dict)
    doubts: Counter[Doubt] = field(default_factory=Counter)
    clients_unknown: int = 0
    passed: Passed = field(default_factory=Passed)

    def changed(self, change: Change, message_id: str) -> None:
        """Count one. A hostile log may name any number of rules; beyond a thousand they are one."""
        if change not in self.changes and len(self.changes) >= _MAX_GROUPS:
            change = change._replace(live_rule="other")
        self.changes[change] += 1
        examples = self.examples.setdefault(change, [])
        if len(examples) < self.limit:
            examples.append(printable(message_id, 120))

    def count_changes(self, holds: Callable[[Change], bool]) -> int:
        """How many messages changed in this way."""
        return sum(number for change, number in self.changes.items() if holds(change))

    @property
    def status(self) -> int:
        """The exit status."""
        if self.changes:
            return STATUS_CHANGES
        return STATUS_UNKNOWN if self.doubts or self.unreadable else STATUS_SAME


def run_policy_test(request: ReplayRequest) -> int:
    """Replay, print, and give the exit status.

    Raises:
        UsageFault: an argument that cannot be used.
        ConfigError, RuleError: a file that cannot be.
    """
    settings = None
    if request.config is not None:
        settings = load_config(request.config, os.environ, look_at_files=False).settings
    rules = load_rules(_tried(request, settings))
    tested = Tested(limit=request.limit)
    try:
        if str(request.against) == STORE:
            _try_traces(request, settings, rules, tested)
        elif is_saved_mail(request.against):
            asyncio.run(_judge_saved(request, settings, rules, tested))
        else:
            _try_log(request, settings, rules, tested)
    except OSError as error:
        where = printable(str(request.against))
        raise UsageFault(f"--against {where}: cannot be read: {error.strerror or error}") from None
    if request.as_json:
        print(json.dumps(as_object(tested, rules)))
    else:
        _show(tested, rules)
    return tested.status


def _tried(request: ReplayRequest, settings: Settings | None) -> str | Path:
    if request.rules is not None:
        return request.rules
    if settings is None or settings.policy.shadow is None:
        raise UsageFault("which rules? Give --rules FILE, or a --config with [policy] shadow")
    return settings.policy.shadow


# A log, and the store


def _try_log(request: ReplayRequest, settings: Settings | None, rules: RuleSet, tested: Tested) -> None:
    live = load_rules(request.live) if request.live is not None else None
    sealers = settings.arc.trusted_sealers if settings is not None else None
    total = request.against.stat().st_size // _MIB + 1
    with progress("reading, MiB", total, quiet=request.as_json) as tick:
        done = 0
        for recalled in read_log(request.against, sealers, tested.passed):
            _compare(recalled, live, rules, tested)
            while done < tested.passed.read_bytes // _MIB:
                done += 1
                tick(request.against.name)


def _try_traces(request: ReplayRequest, settings: Settings | None, rules: RuleSet, tested: Tested) -> None:
    if settings is None or settings.store is None:
        raise UsageFault("--against store: give a --config that has a [store], where traces are kept")
    tested.source = "trace"
    live = load_rules(request.live) if request.live is not None else None
    url = settings.store.url
    try:
        engine = open_to_read(url)
        try:
            traces = Traces(engine)
            with progress("reading, traces", traces.count(), quiet=request.as_json) as tick:
                for recalled in read_traces(traces, settings.arc.trusted_sealers, tested.passed):
                    _compare(recalled, live, rules, tested)
                    tick(recalled.id)
        finally:
            engine.dispose()
    except StoreError as error:
        raise UsageFault(printable(f"[store] url = {shown('url', url)}: {error}", 1_000)) from error


def _compare(recalled: Recalled, live: RuleSet | None, rules: RuleSet, tested: Tested) -> None:
    tested.messages += 1
    if not recalled.is_by_rules:
        tested.without_rule += 1
        return
    before: Decided | Undecided = Decided(rule=recalled.rule, disposition=recalled.disposition)
    if live is not None:
        before = decide_for_each(live, recalled.facts, recalled.recipients)
    after = decide_for_each(rules, recalled.facts, recalled.recipients)
    if isinstance(before, Decided) and isinstance(after, Decided):
        if before.disposition is not after.disposition:
            change = Change(before.rule, before.disposition, after.rule, after.disposition)
            tested.changed(change, recalled.id)
    elif (
        len(possible_ends(before) | possible_ends(after)) > 1
    ):  # else the same becomes of it, whichever of them takes it
        for found in (before, after):
            if isinstance(found, Undecided):
                tested.doubts[Doubt(found.rule, found.keys)] += 1
                return


# Saved messages


async def _judge_saved(
    request: ReplayRequest, settings: Settings | None, rules: RuleSet, tested: Tested
) -> None:
    judging = prepare_judging(
        CheckRequest(messages=(), config=request.config, zone=request.zone, rules=request.live)
    )
    hostname = settings.hostname if settings is not None else ""
    engines = {known: build_engine(judging, client_known=known) for known in (True, False)}
    for engine in engines.values():
        engine.shadow = rules
    try:
        async for name, message in _told(request):
            if message is None:
                tested.unreadable += 1
                continue
            client = client_of(message, hostname)
            tested.messages += 1
            tested.clients_unknown += client is None
            session = Session(
                id="test",
                listener=Listener.CHECK,
                client_ip=client.ip if client else NO_CLIENT,
                helo=client.helo if client else None,
                esmtp=True,
            )
            envelope = Envelope(
                id="test", session=session, mail_from=reverse_path(None, message), smtputf8=True
            )
            verdict = await engines[client is not None].judge(envelope, message)
            if (shadow := verdict.shadow) is not None:
                change = Change(verdict.rule, verdict.disposition, shadow.rule, shadow.disposition)
                tested.changed(change, name)
    finally:
        if isinstance(judging.resolver, StubResolver):
            await judging.resolver.aclose()


async def _told(request: ReplayRequest) -> AsyncIterator[tuple[str, Message | None]]:
    """Each message, and how far it is; of an mbox nobody knows how many there are."""
    total = count_saved(request.against)
    with progress("judging", total or 0, quiet=request.as_json or total is None) as tick:
        for name, message in read_saved(request.against):
            yield name, message
            tick(name)


# The answer


def _summary(tested: Tested) -> str:
    more = tested.count_changes(lambda one: one.disposition in _REFUSED and one.live not in _REFUSED)
    fewer = tested.count_changes(lambda one: one.live in _REFUSED and one.disposition not in _REFUSED)
    changed = tested.changes.total()
    others = changed - more - fewer
    text = f"of {tested.messages} messages {changed} would change: {more} more refused, {fewer} fewer"
    return f"{text}, {others} treated otherwise" if others else text


def _notes(tested: Tested) -> Iterator[str]:
    for doubt, number in tested.doubts.most_common():
        keys = ", ".join(doubt.keys) or "more than is known"
        yield f'{number} cannot be decided: rule "{doubt.rule}" asks about {keys}, which is not in the {tested.source}'
    if tested.without_rule:
        yield f"{tested.without_rule} ended without a rule: no rule file has a say there"
    if tested.clients_unknown:
        yield f"{tested.clients_unknown} came without a Received field of ours: SPF and reverse DNS were not judged"
    if tested.unreadable:
        yield f"{tested.unreadable} messages could not be read, or are too large"
    if tested.passed.broken:
        what = "lines of the log" if tested.source == "log" else "traces, of another release,"
        yield f"{tested.passed.broken} {what} could not be read"
    if tested.passed.is_cut:
        yield "the log ends in the middle: what is behind was not seen"


def _show(tested: Tested, rules: RuleSet) -> None:
    console = terminal()
    if tested.changes:
        console.print(
            Text(f"{'now':<34} {'with ' + printable(rules.name, 28):<34} {'count':>7} {'share':>7}", "bold")
        )
    for change, number in tested.changes.most_common():
        before = f"{change.live} by {printable(change.live_rule, 48)}"
        after = f"{change.disposition} by {change.rule}"
        console.print(Text(f"{before:<34} {after:<34} {number:>7} {number / tested.messages:>7.1%}"))
        console.print(Text(f"    such as {', '.join(tested.examples[change])}", "dim"))
    for note in _notes(tested):
        console.print(Text(note, "yellow"))
    console.print(Text(_summary(tested)))


def as_object(tested: Tested, rules: RuleSet) -> dict[str, object]:
    """The answer for programs. Keys are only ever added."""
    return {
        "rules": rules.name,
        "messages": tested.messages,
        "changed": tested.changes.total(),
        "changes": [
            {
                "live_rule": printable(change.live_rule),
                "live_disposition": change.live,
                "rule": change.rule,
                "disposition": change.disposition,
                "count": number,
                "examples": tested.examples[change],
            }
            for change, number in tested.changes.most_common()
        ],
        "undecided": [
            {"rule": doubt.rule, "unknown": doubt.keys, "count": number}
            for doubt, number in tested.doubts.most_common()
        ],
        "clients_unknown": tested.clients_unknown,
        "unreadable": tested.unreadable,
        "without_rule": tested.without_rule,
        "broken_lines": tested.passed.broken,
        "is_cut": tested.passed.is_cut,
        "summary": _summary(tested),
    }
