"""docs/metrics.md lists every metric, with its labels, and nothing else."""

import re
from pathlib import Path

from gateway.ops.metrics import Metrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
_ROW = re.compile(r"(?m)^\| (`(?:gateway|process)_[^|]+) \|([^|]*)\|")


def documented() -> dict[str, tuple[str, ...]]:
    return {
        name: tuple(re.findall(r"`([a-z_]+)`", labels))
        for names, labels in _ROW.findall(PAGE.read_text())
        for name in re.findall(r"`([a-z_]+)`", names)
    }


def test_every_metric_is_listed_with_its_labels() -> None:
    metrics = Metrics()
    assert documented() == {
        f"{declared.name}_total" if metrics.is_counter(declared) else declared.name: declared.labels
        for declared in metrics.declared
    }
