"""Answers kept for as long as their owner allows (RFC 1035 §3.2.1), a "no" too (RFC 2308), a failure only for a moment.

Bounded in entries and in bytes: strangers choose what is looked up. The least recently used goes first, so that a flood of
invented names cannot push out what every message needs.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, assert_never

from gateway.dns.resolver import Answer, Mx, NotFound, Outcome, RecordType, Temporary, Tlsa, Trouble

Key = tuple[str, RecordType]

_ENTRY_BYTES: Final = 600  # key, entry and outcome: measured with 64-bit CPython, rounded up
_RECORD_BYTES: Final = 80  # a record's object and its place in the tuple, besides its text


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheLimits:
    """How much is kept, and for how many seconds at the least and at the most.

    Attributes:
        max_entries: answers kept.
        max_bytes: an estimate of the memory that they take.
        min_ttl_s: Deviation from RFC 1035: an answer that may not be kept is kept this long, or each of its owner's
            messages would cost us a question.
        max_ttl_s: RFC 8767 §4 holds a week for enough; a mail policy that changed should not wait so long.
        max_negative_ttl_s: a record just published must be seen soon.
        failure_s: SERVFAIL and the like; RFC 9520 §3.2 asks for at least 1 second.
        timeout_s: shorter, because a resolver that restarts is soon back.
    """

    max_entries: int = 50_000
    max_bytes: int = 64 * 1024 * 1024
    min_ttl_s: float = 5.0
    max_ttl_s: float = 86_400.0
    max_negative_ttl_s: float = 900.0
    failure_s: float = 5.0
    timeout_s: float = 1.0


@dataclass(slots=True)
class _Entry:
    outcome: Outcome
    expires: float
    renew: float
    size: int


class DnsCache:
    """Outcomes by name and type.

    Args:
        limits: see `CacheLimits`.
        now: a clock that never goes back, in seconds.
    """

    def __init__(self, limits: CacheLimits, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: Key) -> Outcome | None:
        """What is known, its TTL counted down; None where it is unknown or too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        now = self._now()
        if now >= entry.expires:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        if now >= entry.renew:
            _count_down(entry, now)
        return entry.outcome

    def put(self, key: Key, outcome: Outcome) -> Outcome:
        """Keep an outcome, unless it alone would fill the cache.

        Returns:
            The outcome with no longer a TTL than the limits allow: who keeps what rests on it keeps to them, too.
        """
        self._drop(key)
        lifetime = self._lifetime(outcome)
        outcome = _lower(outcome, math.floor(lifetime))
        size = _ENTRY_BYTES + len(key[0]) + _size(outcome)
        if size > self._limits.max_bytes:
            return outcome
        now = self._now()
        self._entries[key] = _Entry(outcome, now + lifetime, now + 1, size)
        self.size_bytes += size
        while len(self._entries) > self._limits.max_entries or self.size_bytes > self._limits.max_bytes:
            self._drop(next(iter(self._entries)))
        return outcome

    def clear(self) -> None:
        """Forget everything."""
        self._entries.clear()
        self.size_bytes = 0

    def _drop(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.size_bytes -= entry.size

    def _lifetime(self, outcome: Outcome) -> float:
        limits = self._limits
        match outcome:
            case Answer():
                return min(max(outcome.ttl, limits.min_ttl_s), limits.max_ttl_s)
            case NotFound():
                return min(max(outcome.ttl, limits.min_ttl_s), limits.max_negative_ttl_s)
            case Temporary():
                return limits.timeout_s if outcome.trouble is Trouble.TIMEOUT else limits.failure_s
            case _:
                assert_never(outcome)


def _count_down(entry: _Entry, now: float) -> None:
    """Lower the TTL handed out to what is left: at most one new object a second, however often it is asked for."""
    entry.renew = now + 1
    entry.outcome = _lower(entry.outcome, math.floor(entry.expires - now))


def _lower(outcome: Outcome, ttl: int) -> Outcome:
    match outcome:
        case Answer() if ttl < outcome.ttl:
            return Answer(outcome.records, ttl, outcome.secure, outcome.name)
        case NotFound() if ttl < outcome.ttl:
            return NotFound(outcome.missing, ttl, outcome.secure)
        case _:
            return outcome


def _size(outcome: Outcome) -> int:
    if not isinstance(outcome, Answer):
        return 0
    size = len(outcome.name)
    for record in outcome.records:
        match record:
            case str() | bytes():
                size += len(record)
            case Mx():
                size += len(record.exchange) + _RECORD_BYTES
            case Tlsa():
                size += len(record.data) + _RECORD_BYTES
            case _:
                pass
        size += _RECORD_BYTES
    return size
