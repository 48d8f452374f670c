"""Every question that a dashboard or an alert asks, asked of a real Prometheus that watches a real gateway on a bad day."""

import math
import re
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from tests.grafana.dashboards import ROOT, Question, all_questions, rule_files
from tests.grafana.watched import Watched, open_watched

pytestmark = pytest.mark.live

VARIABLES: Final = {
    "$__rate_interval": "1m",
    "$__range": "1m",
    "$job": ".*",
    "$instance": ".*",
    "$listener": ".*",
}

SILENT: Final[dict[str, str]] = {}
"""Questions without an answer here, and the event that they wait for. A question that has one may not stay in this list."""


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with open_watched(rule_files()) as bed:
        bed.live_through()
        yield bed


def as_prometheus_hears_it(question: Question) -> str:
    expr = question.expr
    for name, value in VARIABLES.items():
        expr = expr.replace(name, value)
    return expr


def is_answered(watched: Watched, question: Question) -> bool:
    found = watched.prometheus.query(as_prometheus_hears_it(question))
    return any(not math.isnan(float(one["value"][1])) for one in found)


def exported(watched: Watched) -> set[str]:
    """The names of all metrics that the gateway has."""
    return set(re.findall(r"(?m)^# TYPE ((?:gateway|process)_\w+) ", watched.gateway.get("/metrics")))


def test_every_question_is_answered(watched: Watched) -> None:
    silent = {one.where for one in all_questions() if not is_answered(watched, one)}
    assert silent == SILENT.keys(), watched.folder


def test_every_metric_is_used_or_explained(watched: Watched) -> None:
    used = {name for one in all_questions() for name in one.metrics}
    used |= {re.sub(r"_(bucket|sum|count)$", "", name) for name in used}
    documented = set(re.findall(r"`((?:gateway|process)_\w+)`", (ROOT / "docs/metrics.md").read_text()))
    assert exported(watched) - used - documented == set()


def test_a_slow_moment_leads_to_a_message(watched: Watched) -> None:
    found = watched.prometheus.ask(
        "query_exemplars", query="gateway_message_duration_seconds_bucket", start="0", end="9999999999"
    )
    ids = {exemplar["labels"]["trace_id"] for series in found for exemplar in series["exemplars"]}
    judged = {one["id"] for one in watched.gateway.events() if one["event"] == "message.judged"}
    assert ids
    assert ids <= judged
    stories = (watched.gateway.get(f"/traces/{one}") for one in sorted(ids))
    assert all("<h1" in story for story in stories)  # where the dot leads in Grafana


def test_prometheus_loaded_every_rule(watched: Watched) -> None:
    groups = watched.prometheus.ask("rules")["groups"]
    broken = [rule for group in groups for rule in group["rules"] if rule["health"] == "err"]
    assert broken == []
    for path in rule_files():
        checked = subprocess.run(["promtool", "check", "rules", path], capture_output=True, check=False)
        assert checked.returncode == 0, checked.stdout
