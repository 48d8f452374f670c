"""The filters of the list, as they stand in its address: read leniently, with a word on what was not understood."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeVar
from urllib.parse import urlencode

from gateway.mail.envelope import Listener
from gateway.trace.search import TraceFilter
from gateway.verdict import Disposition

SINCE: Final = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}

_FIELDS: Final = ("q", "disposition", "rule", "listener", "since")
_MAX_WORDS: Final = 5
_MAX_CHARACTERS: Final = 300
_MAX_KEY_DIGITS: Final = 18

E = TypeVar("E", bound=StrEnum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What was asked for.

    Attributes:
        given: the filters as they were given.
        wanted: the same for the store.
        before: the key that the page ends at; None: the newest.
        faults: what was not understood; it is left out of `wanted`.
    """

    given: Mapping[str, str]
    wanted: TraceFilter
    before: int | None
    faults: tuple[str, ...]

    @property
    def is_narrow(self) -> bool:
        """Whether anything is filtered."""
        return bool(self.given)

    def query(self, **more: object) -> str:
        """The same filters for another address, escaped."""
        return urlencode({**self.given, **{name: str(value) for name, value in more.items()}})


def parse_search(query: Mapping[str, str], now: datetime) -> Search:
    """Read it."""
    given = {name: query[name].strip()[:_MAX_CHARACTERS] for name in _FIELDS if query.get(name, "").strip()}
    faults: list[str] = []
    since = None
    if (span := given.get("since")) is not None:
        if span in SINCE:
            since = now - SINCE[span]
        else:
            faults.append(f"Nothing is known of the time {span!r}: one of {', '.join(SINCE)}.")
    wanted = TraceFilter(
        words=tuple(given.get("q", "").split()[:_MAX_WORDS]),
        disposition=_one_of(Disposition, "verdict", given.get("disposition"), faults),
        listener=_one_of(Listener, "listener", given.get("listener"), faults),
        rule=given.get("rule"),
        since=since,
    )
    return Search(given=given, wanted=wanted, before=parse_key(query.get("before", "")), faults=tuple(faults))


def parse_key(text: str) -> int | None:
    """A trace's key; None for anything else."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MAX_KEY_DIGITS else None


def _one_of(words: type[E], name: str, given: str | None, faults: list[str]) -> E | None:
    if given is None:
        return None
    try:
        return words(given.lower())
    except ValueError:
        faults.append(f"There is no {name} {given!r}: one of {', '.join(words)}.")
        return None
