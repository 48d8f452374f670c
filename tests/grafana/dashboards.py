"""The committed dashboards as Grafana will read them: their panels, their questions to Prometheus, and the alerts' questions."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
JSON_FOLDER: Final = ROOT / "grafana/json"
RULES_FOLDER: Final = ROOT / "deploy/prometheus"
_METRIC: Final = re.compile(r"\b(?:gateway|process)_[a-z0-9_]+")
_SELECTOR: Final = re.compile(r"\b(?:up|(?:gateway|process)_[a-z0-9_]+)(?:\{[^}]*\})?")
_LABEL_VALUES: Final = re.compile(r"label_values\((?P<selector>.+), (?P<label>\w+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One PromQL expression.

    Attributes:
        where: dashboard and panel, or alert and selector.
        expr: as it is written there, with Grafana's variables.
    """

    where: str
    expr: str

    @property
    def metrics(self) -> set[str]:
        return set(_METRIC.findall(re.sub(r'"[^"]*"', "", self.expr)))


def load_dashboards() -> dict[str, dict[str, Any]]:
    """By the name of the file."""
    return {path.name: json.loads(path.read_text()) for path in sorted(JSON_FOLDER.glob("*.json"))}


def questions_of(name: str, dashboard: dict[str, Any]) -> Iterator[Question]:
    """Every panel's, every variable's, every annotation's."""
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield Question(where=f"{name}: {panel['title']} {target['refId']}", expr=target["expr"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            found = _LABEL_VALUES.fullmatch(variable["query"])
            assert found, variable
            expr = f"group by ({found['label']}) ({found['selector']})"
            yield Question(where=f"{name}: ${variable['name']}", expr=expr)
    for annotation in dashboard["annotations"]["list"]:
        yield Question(where=f"{name}: {annotation['name']}", expr=annotation["expr"])


def rule_files() -> list[Path]:
    return sorted(RULES_FOLDER.glob("*.rules.yml"))


def alert_questions() -> Iterator[Question]:
    """The series that each alert looks at. That it fires when it should is tested with made-up series, by promtool."""
    for path in rule_files():
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                for selector in dict.fromkeys(_SELECTOR.findall(rule["expr"])):
                    yield Question(where=f"{rule['alert']}: {selector}", expr=selector)


def all_questions() -> list[Question]:
    found = [one for name, board in load_dashboards().items() for one in questions_of(name, board)]
    return [*found, *alert_questions()]
