"""The dashboards hold what they promise before anybody opens them: made by their code, complete, in order, linked, and true."""

import importlib
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import units
from grafana_foundation_sdk.models.dashboard import Dashboard

from gateway.ops.metrics import Metrics
from grafana.dashboards.__main__ import render
from tests.grafana.dashboards import JSON_FOLDER, ROOT, all_questions, load_dashboards, questions_of

DASHBOARDS = load_dashboards()
GRID_WIDTH = 24
each = pytest.mark.parametrize("name", DASHBOARDS)


def panels(name: str) -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARDS[name]["panels"] if panel["type"] != "row"]


def test_the_json_is_what_the_code_makes() -> None:
    rendered = render()
    assert rendered.keys() == DASHBOARDS.keys()
    for name, content in rendered.items():
        assert (JSON_FOLDER / name).read_text() == content, f"run `python -m grafana.dashboards` for {name}"


@each
def test_grafanas_own_types_can_read_it(name: str) -> None:
    read = Dashboard.from_json(DASHBOARDS[name])
    again = JSONEncoder().encode(read)
    assert read.title
    assert f'"uid": "{DASHBOARDS[name]["uid"]}"' in again
    assert len(read.panels or ()) == len(DASHBOARDS[name]["panels"])


def lost(kept: Any, read: Any, path: str = "") -> Iterator[str]:
    """Where the two differ."""
    if isinstance(kept, dict) and isinstance(read, dict):
        for key in kept.keys() | read.keys():
            yield from lost(kept.get(key), read.get(key), f"{path}.{key}")
    elif isinstance(kept, list) and isinstance(read, list) and len(kept) == len(read):
        for at, (one, other) in enumerate(zip(kept, read, strict=True)):
            yield from lost(one, other, f"{path}[{at}]")
    elif kept != read:
        yield path


@each
def test_grafanas_own_types_know_every_word_of_it(name: str) -> None:
    """What Grafana's schema does not know is lost when its types read it: a misspelt option, one of another panel's."""
    board = DASHBOARDS[name]
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(board)))
    of_prometheus = re.compile(r"\.annotations\.list\[\d+\]\.(expr|step|titleFormat|textFormat|tagKeys)")
    assert [where for where in lost(board, read) if not of_prometheus.fullmatch(where)] == []
    for panel in panels(name):
        kind = importlib.import_module(f"grafana_foundation_sdk.models.{panel['type']}")
        options = json.loads(JSONEncoder().encode(kind.Options.from_json(panel["options"])))
        assert list(lost(panel["options"], options)) == [], panel["title"]
        drawn = panel.get("fieldConfig", {}).get("defaults", {}).get("custom")
        if drawn is not None:
            again = json.loads(JSONEncoder().encode(kind.FieldConfig.from_json(drawn)))
            assert list(lost(drawn, again)) == [], panel["title"]


UNITS = {value for name, value in vars(units).items() if name[0].isupper() and isinstance(value, str)}


@each
def test_every_unit_is_one_of_grafanas(name: str) -> None:
    used = re.findall(r'"unit": "([^"]*)"', (JSON_FOLDER / name).read_text())
    assert used or name == "reports.json"
    assert set(used) <= UNITS


@each
def test_every_line_is_named_by_a_label_that_the_question_keeps(name: str) -> None:
    for panel in panels(name):
        targets = panel.get("targets", ())
        assert len({target["refId"] for target in targets}) == len(targets), panel["title"]
        for target in targets:
            named = set(re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")))
            if not named:
                continue
            kept = re.findall(r"\bby \(([^)]*)\)", target["expr"])
            assert kept, f"{panel['title']} {target['refId']}: no `by`"
            assert named <= {label.strip() for labels in kept for label in labels.split(",")}, panel["title"]


@each
def test_every_question_goes_to_the_chosen_source(name: str) -> None:
    board = DASHBOARDS[name]
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [panel for panel in panels(name) if panel.get("targets")]
    asking += board["annotations"]["list"]
    asking += [variable for variable in board["templating"]["list"] if variable["type"] == "query"]
    assert asking
    assert [one.get("title", one.get("name")) for one in asking if one["datasource"] != chosen] == []


@each
def test_every_panel_says_what_it_shows_and_what_to_do(name: str) -> None:
    titles = [panel["title"] for panel in panels(name)]
    assert len(set(titles)) == len(titles)
    for panel in panels(name):
        assert len(panel["description"]) > 40, panel["title"]
        if panel["type"] != "text":
            defaults = panel["fieldConfig"]["defaults"]
            assert defaults["unit"], panel["title"]
            assert defaults["noValue"], panel["title"]


@each
def test_no_panel_covers_another_and_none_leaves_the_page(name: str) -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in DASHBOARDS[name]["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= GRID_WIDTH, panel["title"]
        for x in range(at["x"], at["x"] + at["w"]):
            for y in range(at["y"], at["y"] + at["h"]):
                assert (x, y) not in taken, f"{panel['title']} covers {taken[x, y]}"
                taken[x, y] = panel["title"]


@each
def test_each_line_of_panels_is_filled_and_level(name: str) -> None:
    by_line: dict[int, list[dict[str, Any]]] = {}
    for panel in panels(name):
        by_line.setdefault(panel["gridPos"]["y"], []).append(panel)
    for line in by_line.values():
        titles = [panel["title"] for panel in line]
        assert sum(panel["gridPos"]["w"] for panel in line) == GRID_WIDTH, titles
        assert len({panel["gridPos"]["h"] for panel in line}) == 1, titles


@each
def test_ids_are_unique(name: str) -> None:
    ids = [panel["id"] for panel in DASHBOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    uids = [board["uid"] for board in DASHBOARDS.values()]
    assert len(set(uids)) == len(uids)


@each
def test_every_link_leads_somewhere(name: str) -> None:
    board = DASHBOARDS[name]
    uids = {f"/d/{one['uid']}" for one in DASHBOARDS.values()}
    urls = [link["url"] for link in board["links"]]
    assert {url for url in urls if url.startswith("/d/")} == uids - {f"/d/{board['uid']}"}
    assert "${gateway_url}/traces" in urls
    for panel in panels(name):
        assert {link["url"] for link in panel.get("links", ())} <= uids


@each
def test_every_question_keeps_to_the_chosen_gateways(name: str) -> None:
    for question in questions_of(name, DASHBOARDS[name]):
        if "$job" in question.where:
            continue
        selectors = re.findall(r"[a-z_]+\{([^}]*)\}", question.expr)
        assert selectors, question
        assert all('job=~"$job"' in one for one in selectors), question


@each
def test_every_variable_that_is_used_is_there(name: str) -> None:
    names = {variable["name"] for variable in DASHBOARDS[name]["templating"]["list"]}
    text = (JSON_FOLDER / name).read_text()
    assert {word for word in re.findall(r"\$\{?([a-z_]+)", text) if not word.startswith("__")} == names


@each
def test_rates_span_grafanas_rate_interval(name: str) -> None:
    """A fixed `[1m]` shows nothing where the scrape interval is a minute."""
    for panel in panels(name):
        for target in panel.get("targets", ()):
            expr = re.sub(r'"[^"]*"', "", target["expr"])
            spans = re.findall(r"rate\([^\[]*\[([^]]*)\]", expr)
            assert set(spans) <= {"$__rate_interval"}, panel["title"]


def test_latency_leads_to_traces() -> None:
    dots = [
        panel["title"]
        for panel in panels("mail-flow.json")
        for target in panel.get("targets", ())
        if target.get("exemplar")
    ]
    assert "Time of a message" in dots


def exported() -> set[str]:
    """Names as in PromQL."""
    suffixes = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"], "gauge": [""]}
    return {
        f"{family.name}{suffix}"
        for family in Metrics().registry.collect()
        for suffix in suffixes[family.type]
    }


def test_every_question_asks_for_a_metric_that_exists() -> None:
    names = exported()
    asked = all_questions()
    assert asked
    assert {(one.where, *one.metrics - names) for one in asked if one.metrics - names} == set()


# What brings them up


def test_grafana_finds_source_and_dashboards_by_itself() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    source = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"][0]
    provider = yaml.safe_load((folder / "dashboards/gateway.yaml").read_text())["providers"][0]
    compose = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text())["services"]
    assert source["type"] == "prometheus"
    dot = source["jsonData"]["exemplarTraceIdDestinations"][0]
    assert (dot["name"], dot["url"]) == ("trace_id", "$GATEWAY_URL/traces/$${__value.raw}")
    grafana = compose["grafana"]
    assert set(re.findall(r"\$([A-Z_]+)", str(source))) <= grafana["environment"].keys()
    assert f"../../grafana/json:{provider['options']['path']}:ro" in grafana["volumes"]


def test_what_compose_mounts_is_there() -> None:
    folder = ROOT / "deploy/compose"
    compose = yaml.safe_load((folder / "compose.yaml").read_text())
    for service in compose["services"].values():
        for volume in service.get("volumes", ()):
            source = volume.split(":")[0]
            assert (folder / source).exists() if source.startswith(".") else source in compose["volumes"]
    assert (ROOT / compose["services"]["gateway"]["build"]["dockerfile"]).exists()


def test_composes_gateway_is_well_configured() -> None:
    checked = subprocess.run(
        [sys.executable, "-m", "gateway", "config", "check", str(ROOT / "deploy/compose/gateway.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 0, checked.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize("folder", ["prometheus", "compose"])
def test_prometheus_takes_its_config(folder: str, tmp_path: Path) -> None:
    place = tmp_path / "prometheus"
    shutil.copytree(ROOT / "deploy/prometheus", place)
    shutil.copytree(ROOT / "deploy/prometheus", place / "rules")
    shutil.copy(ROOT / f"deploy/{folder}/prometheus.yml", place / "prometheus.yml")
    checked = subprocess.run(
        ["promtool", "check", "config", place / "prometheus.yml"], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
