"""How Prometheus is asked: PromQL in the few shapes that the panels need.

Every selector keeps to the chosen gateways; `LISTENER` among the matchers keeps to the chosen doors too. Rates are over
`$__rate_interval`, which Grafana makes long enough for any scrape interval.
"""

from typing import Final

CHOSEN: Final = 'job=~"$job",instance=~"$instance"'
LISTENER: Final = 'listener=~"$listener"'
HAS_PROBLEM: Final = 'problem!=""'
PER_RATE_INTERVAL: Final = "$__rate_interval"
SHOWN: Final = "$__range"
"""The whole time that the dashboard shows."""


def select(metric: str, *matchers: str) -> str:
    """The series of the chosen gateways."""
    return f"{metric}{{{','.join((CHOSEN, *matchers))}}}"


def grouped(aggregation: str, inner: str, by: str = "") -> str:
    """`sum by (rule) (…)`; `by`: label names, separated by commas."""
    return f"{aggregation} by ({by}) ({inner})" if by else f"{aggregation}({inner})"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """How many a second."""
    return grouped("sum", f"rate({select(metric, *matchers)}[{PER_RATE_INTERVAL}])", by)


def increase(metric: str, *matchers: str, by: str = "", over: str = SHOWN) -> str:
    """How many in all."""
    return grouped("sum", f"increase({select(metric, *matchers)}[{over}])", by)


def some(counted: str) -> str:
    """Without those of which there are none."""
    return f"{counted} > 0"


def share(metric: str, of: str, *matchers: str, by: str = "") -> str:
    """The part of them that has the matcher `of`; no data while there are none."""
    return f"{rate(metric, of, *matchers, by=by)} / {rate(metric, *matchers, by=by)}"


def quantile(fraction: float, metric: str, *matchers: str, by: str = "") -> str:
    """A quantile of a histogram; `metric` without `_bucket`."""
    buckets = rate(f"{metric}_bucket", *matchers, by=f"{by},le" if by else "le")
    return f"histogram_quantile({fraction}, {buckets})"


def until(metric: str, *matchers: str, by: str = "") -> str:
    """Seconds until the time that a metric holds; negative when it is past."""
    return f"{grouped('min', select(metric, *matchers), by)} - time()"
