"""All numbers of one process, or of several added up, and how Prometheus gets them.

A number is declared once, here it is counted, added to other processes' and shown: nothing that is declared can be left out of
the sum over the workers. The lock is held while what some messages reported is counted, or while one metric is copied, never for a whole scrape.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from threading import Lock
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as PrometheusMetric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar as PrometheusExemplar

from gateway.ops.tally import Exemplar, Labels, Merge, Spread, Tally

PREFIX: Final = "gateway_"

_Family = CounterMetricFamily | GaugeMetricFamily


class Register(Collector):
    """Counters, gauges and histograms. Any thread may call."""

    def __init__(self) -> None:
        self.registry: Final = CollectorRegistry()
        self._lock: Final = Lock()
        self._counters: dict[str, Tally] = {}
        self._gauges: dict[str, Tally] = {}
        self._histograms: dict[str, Spread] = {}
        self._sources: list[Callable[[], None]] = []
        self.registry.register(self)

    # Declaring

    def counter(
        self, name: str, text: str, *labels: str, known: Iterable[Labels] | None = None, prefix: str = PREFIX
    ) -> Tally:
        """Something that only grows; its name is shown with `_total`."""
        tally = Tally(f"{prefix}{name}", text, *labels, known=known)
        self._counters[tally.name] = tally
        return tally

    def gauge(
        self, name: str, text: str, *labels: str, merge: Merge = Merge.SUM, prefix: str = PREFIX
    ) -> Tally:
        """Something that holds now; not there until it is set, unless it is a sum without labels."""
        known = () if merge is not Merge.SUM else None
        tally = Tally(f"{prefix}{name}", text, *labels, known=known, merge=merge)
        self._gauges[tally.name] = tally
        return tally

    def histogram(self, name: str, text: str, bounds: tuple[float, ...], *labels: str) -> Spread:
        """Times or sizes."""
        spread = Spread(f"{PREFIX}{name}", text, bounds, *labels)
        self._histograms[spread.name] = spread
        return spread

    def ask_at_scrape(self, source: Callable[[], None]) -> None:
        """Have `source` set what it knows each time before the numbers are taken. It must be quick, and not raise."""
        self._sources.append(source)

    @property
    def declared(self) -> tuple[Tally | Spread, ...]:
        """All of them, in their order."""
        return (*self._counters.values(), *self._gauges.values(), *self._histograms.values())

    def is_counter(self, metric: Tally | Spread) -> bool:
        """Whether it only grows: its name is shown with `_total`."""
        return metric.name in self._counters

    # Several processes

    def snapshot(self) -> dict[str, Any]:
        """Everything counted so far in plain values that JSON can carry; `absorb` takes it in elsewhere."""
        self._ask()
        return {
            "counters": self._dump(self._counters),
            "gauges": self._dump(self._gauges),
            "histograms": self._dump(self._histograms),
        }

    def _dump(self, metrics: Mapping[str, Tally | Spread]) -> dict[str, Any]:
        dumped: dict[str, Any] = {}
        for name, metric in metrics.items():
            with self._lock:
                dumped[name] = metric.dump()
        return dumped

    def absorb(self, snapshot: Mapping[str, Any], *, alive: bool) -> None:
        """Add what another process counted. What holds only now (gauges) is taken of a living one alone."""
        with self._lock:
            for kind, metrics in (("counters", self._counters), ("gauges", self._gauges)):
                if alive or kind == "counters":
                    for name, tally in metrics.items():
                        tally.load(snapshot[kind].get(name, ()))
            for name, spread in self._histograms.items():
                spread.load(snapshot["histograms"].get(name, ()))

    # Showing

    def _ask(self) -> None:
        for source in self._sources:
            source()

    def collect(self) -> Iterator[PrometheusMetric]:
        """Everything, as Prometheus wants it; called by the registry at each scrape."""
        self._ask()
        for tally in self._counters.values():
            yield self._family(tally, CounterMetricFamily(tally.name, tally.text, labels=tally.labels))
        for tally in self._gauges.values():
            yield self._family(tally, GaugeMetricFamily(tally.name, tally.text, labels=tally.labels))
        for spread in self._histograms.values():
            yield self._histogram(spread)

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The scrape's body and content type: OpenMetrics where the `Accept` header asks for it, else plain text."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def _family(self, tally: Tally, family: _Family) -> _Family:
        with self._lock:
            values, exemplars = dict(tally.values), dict(tally.exemplars)
        for labels, value in values.items():
            words = [str(label) for label in labels]
            if (exemplar := exemplars.get(labels)) and isinstance(family, CounterMetricFamily):
                family.add_metric(words, value, exemplar=_shown(exemplar))
            else:
                family.add_metric(words, value)
        return family

    def _histogram(self, spread: Spread) -> HistogramMetricFamily:
        with self._lock:
            series = [
                (labels, spread.buckets(labels), total[0]) for labels, (_, total) in spread.values.items()
            ]
            exemplars = dict(spread.exemplars)
        family = HistogramMetricFamily(spread.name, spread.text, labels=spread.labels)
        for labels, buckets, total in series:
            shown = [
                (bound, count, _shown(exemplar))
                if (exemplar := exemplars.get((labels, number)))
                else (bound, count)
                for number, (bound, count) in enumerate(buckets)
            ]
            family.add_metric([str(label) for label in labels], shown, total)
        return family


def _shown(exemplar: Exemplar) -> PrometheusExemplar:
    return PrometheusExemplar({"trace_id": exemplar.trace_id}, exemplar.value, exemplar.at)
