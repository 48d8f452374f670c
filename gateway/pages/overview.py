"""Is mail flowing? The last quarter of an hour, counted by door, by minute and by refusing rule."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

from gateway.explain.story import outcome_word
from gateway.mail.envelope import Listener
from gateway.store.traces import TraceLine
from gateway.verdict import Disposition

SPAN: Final = timedelta(minutes=15)
OUTCOMES: Final = ("accepted", "quarantined", "deferred", "refused", "not judged")

MAIL_SERVER: Final = "the mail server"
BEFORE_JUDGING: Final = "before judging"
"""What stands in place of a rule: what was judged fit was not taken; the dialog ended before there was a verdict."""

_AGAINST: Final = frozenset({"quarantined", "deferred", "refused"})
_MINUTE_S: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Minute:
    """One bar: messages by outcome, in the order of `OUTCOMES`."""

    at: datetime
    counts: tuple[int, ...]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.counts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """The last minutes.

    Attributes:
        since: so far back it goes: `SPAN`, or to the oldest line where there are more than were looked at.
        doors: each listener with its messages by outcome.
        refusers: what is refused, deferred or quarantined, by rule: `(rule, outcome, messages)`, the most first.
        last: when the newest was answered; None: there was none.
    """

    since: datetime
    until: datetime
    total: int
    is_cut: bool
    minutes: tuple[Minute, ...]
    doors: tuple[tuple[Listener, tuple[int, ...]], ...]
    refusers: tuple[tuple[str, str, int], ...]
    last: datetime | None

    @property
    def most(self) -> int:
        """The highest bar."""
        return max((minute.total for minute in self.minutes), default=0)

    @property
    def counts(self) -> tuple[int, ...]:
        """All messages by outcome."""
        return tuple(sum(each) for each in zip(*(counts for _, counts in self.doors), strict=True)) or (
            0,
        ) * len(OUTCOMES)


def count(lines: Sequence[TraceLine], now: datetime, limit: int) -> Flow:
    """Count them. `lines`: newest first, none older than `SPAN`; `limit`: how many were asked for."""
    is_cut = len(lines) >= limit
    since = lines[-1].at if is_cut and lines else now - SPAN
    words = [outcome_word(line.disposition, line.code) for line in lines]
    by_minute: Counter[tuple[int, str]] = Counter()
    by_door: Counter[tuple[Listener, str]] = Counter()
    by_rule: Counter[tuple[str, str]] = Counter()
    for line, word in zip(lines, words, strict=True):
        age = max(0, int((now - line.at).total_seconds()) // _MINUTE_S)
        by_minute[age, word] += 1
        by_door[line.listener, word] += 1
        if word in _AGAINST:
            by_rule[_refuser(line, word), word] += 1
    ages = range(int(SPAN.total_seconds()) // _MINUTE_S - 1, -1, -1)
    return Flow(
        since=since,
        until=now,
        total=len(lines),
        is_cut=is_cut,
        minutes=tuple(
            Minute(
                at=now - timedelta(minutes=age + 1), counts=tuple(by_minute[age, word] for word in OUTCOMES)
            )
            for age in ages
        ),
        doors=tuple(
            (door, tuple(by_door[door, word] for word in OUTCOMES))
            for door in Listener
            if any(by_door[door, word] for word in OUTCOMES)
        ),
        refusers=tuple((rule, word, many) for (rule, word), many in by_rule.most_common(12)),
        last=lines[0].at if lines else None,
    )


def _refuser(line: TraceLine, word: str) -> str:
    """Who would not let it through: a rule, or whoever answered without one."""
    match line.disposition:
        case Disposition.REJECT | Disposition.DEFER:
            return line.rule or BEFORE_JUDGING
        case Disposition.ACCEPT | Disposition.QUARANTINE:
            return line.rule or BEFORE_JUDGING if word == "quarantined" else MAIL_SERVER
        case None:
            return BEFORE_JUDGING
        case _:
            assert_never(line.disposition)
