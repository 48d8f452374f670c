"""How many messages there were, of which kind, in the last minutes: out of the lines of their traces."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from typing import Final, NamedTuple

from gateway.mail.envelope import Listener
from gateway.trace.line import Outcome
from gateway.verdict import Disposition

_MINUTE: Final = timedelta(minutes=1)
_Alike = tuple[int, Listener, Disposition | None, int | None, str | None]


class Group(NamedTuple):
    """Messages that are alike.

    Attributes:
        age_min: how many whole minutes ago they were answered.
        code: what the client heard, in hundreds: 200, 400, 500.
        last: when the newest of them was answered.
    """

    age_min: int
    listener: Listener
    disposition: Disposition | None
    code: int | None
    rule: str | None
    messages: int
    last: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """The messages of a time, counted.

    Attributes:
        since: so far back they were counted: as was asked, or less where there are too many.
        is_cut: the latter.
    """

    groups: tuple[Group, ...]
    since: datetime
    is_cut: bool


def count_outcomes(outcomes: Iterable[Outcome], now: datetime, since: datetime, *, at_most: int) -> Tally:
    """Count those from `since` on, looking at so many. They come newest first, but for some that were written late."""
    outcomes = iter(outcomes)
    messages: dict[_Alike, int] = {}
    last: dict[_Alike, datetime] = {}
    for each in islice(outcomes, at_most):
        at, code = each.at, each.code
        if at >= since:
            age_min = max(0, (now - at) // _MINUTE)
            alike = (age_min, each.listener, each.disposition, code and code // 100 * 100, each.rule)
            messages[alike] = messages.get(alike, 0) + 1
            if alike not in last or at > last[alike]:
                last[alike] = at
    left = next(outcomes, None)
    is_cut = left is not None and left.at >= since
    return Tally(
        groups=tuple(Group(*alike, many, last[alike]) for alike, many in messages.items()),
        since=left.at if left is not None and is_cut else since,
        is_cut=is_cut,
    )
