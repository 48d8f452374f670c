"""Plain numbers by label values, shown as Prometheus families when somebody asks.

prometheus_client's own metrics take a lock and three checks for each increment; a message makes thirty of them. Here an
increment is one dictionary entry, and the work is done at the scrape. `gateway.ops.metrics` holds the lock.
"""

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from typing import Final

Labels = tuple[str, ...]
MAX_SERIES: Final = 2_000
"""Series of one metric. Our enums and rules stay far below; should strangers get in by a bug, they end as `other`."""

OTHER: Final = "other"


class Tally:
    """Numbers by label values: a counter, or a gauge that also goes down."""

    __slots__ = ("labels", "name", "text", "values")

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self.name = name
        self.text = text
        self.labels = labels
        self.values: dict[Labels, float] = {}
        if not labels:
            self.values[()] = 0

    def add(self, labels: Labels = (), amount: float = 1) -> None:
        """Count."""
        try:
            self.values[labels] += amount
        except KeyError:
            labels = bounded(labels, len(self.values))
            self.values[labels] = self.values.get(labels, 0) + amount

    def dump(self) -> list[tuple[list[str], float]]:
        """Its series in plain values."""
        return [([str(label) for label in labels], value) for labels, value in self.values.items()]

    def load(self, dumped: Iterable[tuple[list[str], float]]) -> None:
        """Add what `dump` gave in another process."""
        for labels, value in dumped:
            self.add(tuple(labels), value)


class Spread:
    """A histogram by label values. `bounds` are the buckets' upper bounds, each inclusive."""

    __slots__ = ("bounds", "labels", "name", "text", "values")

    def __init__(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> None:
        self.name = name
        self.text = text
        self.bounds = bounds
        self.labels = labels
        self.values: dict[Labels, tuple[list[int], list[float]]] = {}
        if not labels:
            self.values[()] = self._empty()

    def _empty(self) -> tuple[list[int], list[float]]:
        return [0] * (len(self.bounds) + 1), [0.0]

    def observe(self, value: float, labels: Labels = ()) -> None:
        """Count one observation."""
        try:
            counts, total = self.values[labels]
        except KeyError:
            labels = bounded(labels, len(self.values))
            counts, total = self.values.setdefault(labels, self._empty())
        counts[bisect_left(self.bounds, value)] += 1
        total[0] += value

    def dump(self) -> list[tuple[list[str], list[int], float]]:
        """Its series in plain values."""
        return [
            ([str(label) for label in labels], list(counts), total[0])
            for labels, (counts, total) in self.values.items()
        ]

    def load(self, dumped: Iterable[tuple[list[str], list[int], float]]) -> None:
        """Add what `dump` gave in another process; one with other buckets is of another release and is left out."""
        for labels, counts, total in dumped:
            if len(counts) != len(self.bounds) + 1:
                continue
            key = tuple(labels)
            if key not in self.values:
                key = bounded(key, len(self.values))
            own, own_total = self.values.setdefault(key, self._empty())
            own[:] = map(sum, zip(own, counts, strict=True))
            own_total[0] += total

    def buckets(self, labels: Labels) -> list[tuple[str, float]]:
        """The cumulated counts as Prometheus has them, `+Inf` last."""
        counts, _ = self.values[labels]
        bounds = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return list(zip(bounds, accumulate(counts), strict=True))


def bounded(labels: Labels, series: int) -> Labels:
    """The labels of a new series, or those of the last one that a metric may have."""
    return labels if series < MAX_SERIES else (OTHER,) * len(labels)
