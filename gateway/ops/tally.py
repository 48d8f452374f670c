"""Plain numbers by label values, shown as Prometheus families when somebody asks.

prometheus_client's own metrics take a lock and three checks for each increment; a message makes thirty of them. Here an
increment is one dictionary entry, and the work is done at the scrape. `gateway.ops.register` holds the lock.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum
from itertools import accumulate
from typing import Any, Final, NamedTuple

Labels = tuple[str, ...]
MAX_SERIES: Final = 2_000
"""Series of one metric. Our enums and rules stay far below; should strangers get in by a bug, they end as `other`."""

OTHER: Final = "other"
MAX_TRACE_ID_CHARACTERS: Final = 100  # OpenMetrics: 128 for all of an exemplar's labels


class Merge(StrEnum):
    """What several processes' values of one gauge are together."""

    SUM = "sum"
    MIN = "min"  # the worst of what should be late, or of what must hold in all of them
    MAX = "max"  # all mean the same thing, or the worst of what should be low


class Exemplar(NamedTuple):
    """One message that was counted: which, with what value, and when (seconds since the epoch)."""

    trace_id: str
    value: float
    at: float


class Tally:
    """Numbers by label values: a counter, or a gauge.

    Args:
        name: the metric's whole name, without `_total`.
        text: what it says, for people.
        labels: their names.
        known: series that are there from the start, at 0: what has not happened yet can be watched, too.
        merge: of several processes; a counter's is always the sum.
    """

    __slots__ = ("exemplars", "labels", "merge", "name", "text", "values")

    def __init__(
        self,
        name: str,
        text: str,
        *labels: str,
        known: Iterable[Labels] | None = None,
        merge: Merge = Merge.SUM,
    ) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self.merge = merge
        self.exemplars: dict[Labels, Exemplar] = {}
        self.values: dict[Labels, float] = {}
        if known is None and not labels:
            known = ((),)
        for one in known or ():
            self.values[one] = 0

    def add(self, labels: Labels = (), amount: float = 1) -> None:
        """Count."""
        try:
            self.values[labels] += amount
        except KeyError:
            labels = bounded(labels, len(self.values))
            self.values[labels] = self.values.get(labels, 0) + amount

    def add_each(self, seen: Iterable[Labels]) -> None:
        """Count each of these."""
        for labels, count in Counter(seen).items():
            self.add(labels, count)

    def add_messages(self, seen: Iterable[Labels], latest: Mapping[Labels, tuple[str, float]]) -> None:
        """Count messages, and remember of those with the same labels the latest: its trace id, and when it was."""
        self.add_each(seen)
        for labels, (trace_id, at) in latest.items():
            if labels in self.values:
                self.exemplars[labels] = Exemplar(trace_id[:MAX_TRACE_ID_CHARACTERS], 1, at)

    def set(self, value: float, labels: Labels = ()) -> None:
        """Let a gauge have this value."""
        if labels not in self.values:
            labels = bounded(labels, len(self.values))
        self.values[labels] = value

    def dump(self) -> list[Any]:
        """Its series in plain values."""
        return [
            ([str(label) for label in labels], value, self.exemplars.get(labels))
            for labels, value in self.values.items()
        ]

    def load(self, dumped: Iterable[Any]) -> None:
        """Take in what `dump` gave in another process."""
        for labels, value, exemplar in dumped:
            key = tuple(labels)
            own = self.values.get(key)
            if own is None or self.merge is Merge.SUM:
                self.add(key, value)
            else:
                self.values[key] = min(own, value) if self.merge is Merge.MIN else max(own, value)
            if exemplar is not None and key in self.values:
                _keep_later(self.exemplars, key, Exemplar(*exemplar))


class Spread:
    """A histogram by label values. `bounds` are the buckets' upper bounds, each inclusive."""

    __slots__ = ("bounds", "exemplars", "labels", "name", "text", "values")

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> None:
        self.name = name
        self.text = text
        self.bounds = bounds
        self.labels = labels
        self.exemplars: dict[tuple[Labels, int], Exemplar] = {}
        self.values: dict[Labels, tuple[list[int], list[float]]] = {}
        if not labels:
            self.values[()] = self._empty()

    def _empty(self) -> tuple[list[int], list[float]]:
        return [0] * (len(self.bounds) + 1), [0.0]

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count one observation."""
        self.observe_each((value,), labels)

    def observe_each(self, values: Iterable[float], labels: Labels = ()) -> None:
        """Count each of these."""
        _, counts, total = self._series(labels)
        bounds = self.bounds
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            total[0] += value

    def observe_messages(self, seen: Iterable[tuple[float, str, float]], labels: Labels) -> None:
        """Count messages: the value, the trace id and when it was; of each bucket the latest is remembered."""
        labels, counts, total = self._series(labels)
        latest: dict[int, tuple[str, float, float]] = {}
        for value, trace_id, at in seen:
            bucket = bisect_left(self.bounds, value)
            counts[bucket] += 1
            total[0] += value
            latest[bucket] = trace_id, value, at
        for bucket, (trace_id, value, at) in latest.items():
            self.exemplars[labels, bucket] = Exemplar(trace_id[:MAX_TRACE_ID_CHARACTERS], value, at)

    def _series(self, labels: Labels) -> tuple[Labels, list[int], list[float]]:
        if labels not in self.values:
            labels = bounded(labels, len(self.values))
        return labels, *self.values.setdefault(labels, self._empty())

    def dump(self) -> list[Any]:
        """Its series in plain values."""
        return [
            (
                [str(label) for label in labels],
                list(counts),
                total[0],
                [(bucket, *one) for (whose, bucket), one in self.exemplars.items() if whose == labels],
            )
            for labels, (counts, total) in self.values.items()
        ]

    def load(self, dumped: Iterable[Any]) -> None:
        """Add what `dump` gave in another process; one with other buckets is of another release and is left out."""
        for labels, counts, total, exemplars in dumped:
            if len(counts) != len(self.bounds) + 1:
                continue
            key = tuple(labels)
            if key not in self.values:
                key = bounded(key, len(self.values))
            own, own_total = self.values.setdefault(key, self._empty())
            own[:] = map(sum, zip(own, counts, strict=True))
            own_total[0] += total
            for bucket, *exemplar in exemplars:
                _keep_later(self.exemplars, (key, bucket), Exemplar(*exemplar))

    def buckets(self, labels: Labels) -> list[tuple[str, float]]:
        """The cumulated counts as Prometheus has them, `+Inf` last."""
        counts, _ = self.values[labels]
        bounds = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(counts), strict=True))


def bounded(labels: Labels, series: int) -> Labels:
    """The labels of a new series, or those of the last one that a metric may have."""
    return labels if series < MAX_SERIES else (OTHER,) * len(labels)


def _keep_later(exemplars: "dict[Any, Exemplar]", key: object, other: Exemplar) -> None:
    own = exemplars.get(key)
    if own is None or own.at < other.at:
        exemplars[key] = other
