"""What went wrong of late with domains of whose policy nothing is known: how long mail waits for it, and when it is tried again."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, TypeVar

from gateway.tlspolicy.model import TlsProblem

FIRST_WORD_WITHIN: Final = timedelta(minutes=15)
"""So long mail to a domain of which nothing is known waits where it cannot be found out whether there is a policy.

The trouble may be our own resolver's, and then nobody's mail must leave unprotected for it. Should it last, it is the domain's:
RFC 8461 §3.1 knows no answer for that, and its mail goes as if there were no policy.
"""
TROUBLE_FORGOTTEN: Final = timedelta(days=1)
FAILURE_HOLDS: Final = timedelta(minutes=5)  # RFC 8461 §3.3: at least so long, per version of the policy

_UNDECIDED: Final = frozenset({TlsProblem.STS_DNS, TlsProblem.STS_FETCH_BUSY})
"""What leaves it open whether the domain has a policy."""

_T = TypeVar("_T")


def is_open(problem: TlsProblem) -> bool:
    """Whether this leaves it open if the domain has a policy."""
    return problem in _UNDECIDED


@dataclass(frozen=True, slots=True)
class _Failure:
    """A fetch that failed."""

    identifier: str
    at: datetime
    problem: TlsProblem


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Nothing could be found out about a domain, at first and lately."""

    since: datetime
    last: datetime


class Failures:
    """By domain; strangers choose which, so the oldest go first.

    Args:
        max_domains: so many are remembered of each kind.
        now: the time in UTC.
    """

    def __init__(self, max_domains: int, now: Callable[[], datetime]) -> None:
        self._max_domains = max_domains
        self._now = now
        self._fetches: OrderedDict[str, _Failure] = OrderedDict()
        self._troubled: OrderedDict[str, _Trouble] = OrderedDict()

    def __len__(self) -> int:
        return len(self._fetches)

    def failed(self, domain: str, identifier: str, problem: TlsProblem) -> None:
        """This version of its policy could not be fetched."""
        remember(self._fetches, domain, _Failure(identifier, self._now(), problem), self._max_domains)

    def fetched(self, domain: str) -> None:
        """It has been fetched."""
        self._fetches.pop(domain, None)

    def lately(self, domain: str, identifier: str) -> TlsProblem | None:
        """Why this version could not be fetched, if that was so short a time ago that it is not to be tried again."""
        failure = self._fetches.get(domain)
        if failure is None or failure.identifier != identifier or self._now() - failure.at >= FAILURE_HOLDS:
            return None
        return failure.problem

    def still_waits(self, domain: str) -> bool:
        """Nothing can be found out: whether mail waits for a first word about the domain."""
        now = self._now()
        trouble = self._troubled.get(domain)
        since = now if trouble is None or now - trouble.last >= TROUBLE_FORGOTTEN else trouble.since
        remember(self._troubled, domain, _Trouble(since, now), self._max_domains)
        return now - since < FIRST_WORD_WITHIN

    def found_out(self, domain: str) -> None:
        """Something could."""
        self._troubled.pop(domain, None)


def remember(memory: OrderedDict[str, _T], domain: str, value: _T, limit: int) -> None:
    """Keep the newest, up to the limit."""
    memory[domain] = value
    memory.move_to_end(domain)
    if len(memory) > limit:
        memory.popitem(last=False)
