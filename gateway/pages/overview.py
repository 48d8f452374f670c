"""Is mail flowing? The last quarter of an hour, counted by door, by minute and by refusing rule."""

from collections import Counter
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, assert_never

from gateway.explain.story import outcome_word
from gateway.mail.envelope import Listener
from gateway.trace.tally import Group, Tally
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


def flow_of(tally: Tally, now: datetime) -> Flow:
    """The same by minute, by door and by whoever refused."""
    by_minute: Counter[tuple[int, str]] = Counter()
    by_door: Counter[tuple[Listener, str]] = Counter()
    by_rule: Counter[tuple[str, str]] = Counter()
    for group in tally.groups:
        word = outcome_word(group.disposition, group.code)
        by_minute[group.age_min, word] += group.messages
        by_door[group.listener, word] += group.messages
        if word in _AGAINST:
            by_rule[_refuser(group, word), word] += group.messages
    ages = range(int(SPAN.total_seconds()) // _MINUTE_S - 1, -1, -1)
    return Flow(
        since=tally.since,
        until=now,
        total=by_door.total(),
        is_cut=tally.is_cut,
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
        last=max((group.last for group in tally.groups), default=None),
    )


def _refuser(group: Group, word: str) -> str:
    """Who would not let it through: a rule, or whoever answered without one."""
    match group.disposition:
        case Disposition.REJECT | Disposition.DEFER:
            return group.rule or BEFORE_JUDGING
        case Disposition.ACCEPT | Disposition.QUARANTINE:
            return group.rule or BEFORE_JUDGING if word == "quarantined" else MAIL_SERVER
        case None:
            return BEFORE_JUDGING
        case _:
            assert_never(group.disposition)
