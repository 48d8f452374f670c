"""Every metric that grafana/README.md asks for is one that the gateway exports."""

import re
from pathlib import Path

from gateway.ops.metrics import Metrics

README = Path(__file__).parents[2] / "grafana" / "README.md"


def test_every_query_asks_for_a_metric_that_exists() -> None:
    exported = {family.name for family in Metrics().registry.collect()}
    asked = set(re.findall(r"gateway_[a-z_]+", README.read_text()))
    assert asked
    assert {re.sub(r"_(total|bucket)$", "", name) for name in asked} <= exported
