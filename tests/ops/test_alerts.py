"""Each alert, on numbers that must raise it and on numbers like them that must not; asked of Prometheus' own rule tester."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from typer.main import get_command

from gateway.cli.app import app
from gateway.ops.metrics import Metrics

ROOT: Final = Path(__file__).parents[2]
RULES: Final = ROOT / "deploy" / "prometheus" / "gateway.rules.yml"
RUNBOOK: Final = ROOT / "docs" / "runbook.md"
DAY_S: Final = 86_400
EVALUATED: Final = {"1m": "1m", "5m": "30m"}
"""How often the rules are asked, by the step of the story's numbers."""

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed"
)


def rules() -> list[dict[str, Any]]:
    loaded = yaml.safe_load(RULES.read_text())
    return [rule for group in loaded["groups"] for rule in group["rules"]]


def of(name: str, **labels: str) -> str:
    """A series of one gateway's."""
    given = {"job": "gateway", "instance": "mx1", **labels}
    written = ",".join(f'{key}="{value}"' for key, value in given.items())
    return f"{name}{{{written}}}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Days:
    """What Prometheus saw, and what it makes of that.

    Attributes:
        why: what this is.
        series: values in promtool's notation, one each `step`: `0+5x60` begins at 0 and has sixty more, each larger by 5.
        at: when the question is asked, from the beginning.
        fires: the alerts that are firing then.
    """

    why: str
    series: Mapping[str, str]
    fires: tuple[str, ...] = ()
    at: str = "1h"
    step: str = "1m"


MESSAGES = of("gateway_messages_total", disposition="accept", rule="default")
REFUSED = of("gateway_messages_total", disposition="reject", rule="dmarc-reject")
LOST = of("gateway_downstream_failures_total", kind="connect")
SESSIONS = of("gateway_sessions_total", listener="inbound", end="quit")
ANSWERED = of("gateway_dns_queries_total", type="TXT", outcome="answer", cached="no")
SILENT = of("gateway_dns_queries_total", type="TXT", outcome="timeout", cached="no")
BROKEN_ZONES = of("gateway_dns_queries_total", type="TXT", outcome="servfail", cached="no")
CACHED = of("gateway_dns_queries_total", type="TXT", outcome="timeout", cached="yes")
TEMPERROR = of("gateway_auth_results_total", method="dmarc", status="temperror", problem="dns.servfail")
PASS = of("gateway_auth_results_total", method="dmarc", status="pass")
OWN = of("gateway_own_domain_messages_total", domain="example.net", dmarc="fail", disposition="reject")
GUESSES = of("gateway_logins_total", mechanism="PLAIN", outcome="refused")
BARRED = of("gateway_logins_total", mechanism="PLAIN", outcome="barred")
LOGINS = of("gateway_logins_total", mechanism="PLAIN", outcome="accepted")
FETCH_FAILED = of("gateway_mta_sts_policies_total", change="fetch-failed", problem="mta-sts.fetch-connect")
FETCHED = of("gateway_mta_sts_policies_total", change="fetched")
OVERDUE = of("gateway_mta_sts_overdue_policies")
DOWNGRADES = of("gateway_tls_downgrades_total", kind="policy-weakened")
RELAY_TLS = of("gateway_relay_sessions_total", demand="dane", failure="tls", problem="tls.certificate-tlsa")
RELAY_OK = of("gateway_relay_sessions_total", demand="dane", tls="TLSv1.3")
TEMP = of("gateway_tls_policy_answers_total", level="refuse", outcome="temp")
MAY = of("gateway_tls_policy_answers_total", level="may", outcome="not-found")
PARENT = of("gateway_tls_policy_answers_total", outcome="parent")
CERTIFICATE = of("gateway_certificate_not_after_timestamp_seconds", listener="inbound")
KEY = of("gateway_dkim_key_due_timestamp_seconds", domain="example.net", selector="a", state="made")
WAITING = of("gateway_store_rows_waiting")
DROPPED = of("gateway_store_rows_total", table="traces", outcome="dropped")
LOSSES = of("gateway_worker_losses_total")
WORKERS, WANTED = of("gateway_workers"), of("gateway_workers_configured")
TRACEBACKS, BUGS = of("gateway_log_tracebacks_total"), of("gateway_internal_errors_total")
RELOAD = of("gateway_config_last_reload_successful")
UP = of("up")

A_WEEK_ON = "7d2h"  # 2,016 steps of 5 minutes, and 24 more

STORIES: Final = (
    Days(why="nobody answers", series={UP: "1x5 0x60"}, fires=("GatewayDown",)),
    Days(why="no gateway is known to Prometheus", series={UP: "_x70"}, fires=("GatewayDown",)),
    Days(why="one scrape was lost", series={UP: "1x58 0 1x5"}, at="59m"),
    # Mail
    Days(
        why="this week one message where last week fifty came",
        series={MESSAGES: "0+50x2004 100200+1x40"},
        fires=("GatewayNoMail",),
        at=A_WEEK_ON,
        step="5m",
    ),
    Days(
        why="nothing for over an hour after a busy day, without a week to compare",
        series={MESSAGES: "0+25x240 6000x18"},
        at="21h30m",
        step="5m",
        fires=("GatewayNoMail",),
    ),
    Days(
        why="half of last week's mail", series={MESSAGES: "0+50x2004 100200+25x40"}, at=A_WEEK_ON, step="5m"
    ),
    Days(why="a small site sleeps", series={MESSAGES: "0+1x100 100x200"}, at="4h"),
    Days(
        why="every tenth session finds no mail server",
        series={SESSIONS: "0+20x70", LOST: "0+2x70"},
        fires=("GatewayDownstreamFailing",),
    ),
    Days(why="a failure among many", series={SESSIONS: "0+900x70", LOST: "0+2x70"}),
    Days(why="a restart of Postfix", series={SESSIONS: "0+20x70", LOST: "0x50 40x20"}),
    Days(
        why="a third of the questions without an answer",
        series={ANSWERED: "0+20x70", SILENT: "0+10x70"},
        fires=("GatewayDnsFailing",),
    ),
    Days(why="other people's zones are broken", series={ANSWERED: "0+20x70", BROKEN_ZONES: "0+30x70"}),
    Days(why="an old failure is remembered", series={ANSWERED: "0+20x70", CACHED: "0+30x70"}),
    Days(why="one question in ten", series={ANSWERED: "0+90x70", SILENT: "0+10x70"}),
    Days(
        why="every tenth DMARC result is temperror",
        series={PASS: "0+45x70", TEMPERROR: "0+5x70"},
        fires=("GatewayTempErrors",),
    ),
    Days(why="every hundredth", series={PASS: "0+495x70", TEMPERROR: "0+5x70"}),
    Days(why="the only message of the hour", series={PASS: "0x70", TEMPERROR: "0x30 1x40"}),
    Days(
        why="half of the mail is refused, where last week nothing was",
        series={MESSAGES: "0+20x2040", REFUSED: "0x2000 0+20x40"},
        fires=("GatewayVerdictMixShift",),
        at=A_WEEK_ON,
        step="5m",
    ),
    Days(
        why="nothing is refused any more",
        series={MESSAGES: "0+20x2040", REFUSED: "0+20x2000 40000x40"},
        fires=("GatewayVerdictMixShift",),
        at=A_WEEK_ON,
        step="5m",
    ),
    Days(why="as last week", series={MESSAGES: "0+20x2040", REFUSED: "0+20x2040"}, at=A_WEEK_ON, step="5m"),
    Days(
        why="too little mail to tell",
        series={MESSAGES: "0+1x2040", REFUSED: "0x2000 0+1x40"},
        at=A_WEEK_ON,
        step="5m",
    ),
    Days(
        why="a wave in the name of a domain of ours",
        series={OWN: "0+5x280 1400+50x16"},
        at="24h30m",
        step="5m",
        fires=("GatewayOwnDomainRejected",),
    ),
    Days(
        why="a wave in a name that nobody had used before",
        series={OWN: "_x20 0+3x60"},
        at="1h15m",
        fires=("GatewayOwnDomainRejected",),
    ),
    Days(why="as many forgeries as every day", series={OWN: "0+50x300"}, at="24h30m", step="5m"),
    Days(
        why="nine of ten log-ins fail",
        series={GUESSES: "0+5x70", BARRED: "0+4x70", LOGINS: "0+1x70"},
        fires=("GatewayAuthGuessing",),
    ),
    Days(why="many users, some of whom mistype", series={GUESSES: "0+5x70", LOGINS: "0+50x70"}),
    Days(why="one user with an old password", series={GUESSES: "0+1x70"}),
    # Outbound
    Days(
        why="hardly any policy can be fetched",
        series={FETCH_FAILED: "0+1x90", FETCHED: "0x50 1x40"},
        at="1h20m",
        fires=("GatewayMtaStsFetchFailing",),
    ),
    Days(why="some policy hosts are down", series={FETCH_FAILED: "0+1x90", FETCHED: "0+5x90"}, at="1h20m"),
    Days(
        why="two policies are not renewed",
        series={OVERDUE: "2x70"},
        at="1h5m",
        fires=("GatewayMtaStsPolicyExpiring",),
    ),
    Days(why="all are", series={OVERDUE: "0x70"}, at="1h5m"),
    Days(why="one was weakened", series={DOWNGRADES: "0x30 1x40"}, fires=("GatewayTlsDowngrade",)),
    Days(why="one was weakened yesterday", series={DOWNGRADES: "0x30 1x100"}, at="2h"),
    Days(
        why="a tenth of the sessions lacks the TLS demanded",
        series={RELAY_TLS: "0+1x70", RELAY_OK: "0+9x70"},
        fires=("GatewayRelayDeferringForTls",),
    ),
    Days(why="one receiver among a hundred", series={RELAY_TLS: "0+1x70", RELAY_OK: "0+99x70"}),
    Days(
        why="Postfix hears TEMP every tenth time",
        series={TEMP: "0+1x70", MAY: "0+9x70", PARENT: "0+90x70"},
        fires=("GatewayPostfixDeferringForTls",),
    ),
    Days(why="Postfix hears TEMP for one domain", series={TEMP: "0+1x70", MAY: "0+99x70"}),
    # Ourselves
    Days(
        why="ten days",
        series={CERTIFICATE: f"{10 * DAY_S}x130"},
        at="2h",
        fires=("GatewayCertificateExpiresSoon",),
    ),
    Days(
        why="two days",
        series={CERTIFICATE: f"{2 * DAY_S}x130"},
        at="2h",
        fires=("GatewayCertificateExpires",),
    ),
    Days(why="a month", series={CERTIFICATE: f"{30 * DAY_S}x130"}, at="2h"),
    Days(
        why="due at the beginning, four days ago",
        series={KEY: "0x1200"},
        at="96h",
        step="5m",
        fires=("GatewayKeyRotationStuck",),
    ),
    Days(why="due yesterday", series={KEY: f"{3 * DAY_S}x1200"}, at="96h", step="5m"),
    Days(why="the database is away", series={WAITING: "6000x70"}, fires=("GatewayStoreBehind",)),
    Days(why="a busy moment", series={WAITING: "0x57 6000x10"}),
    Days(why="traces were dropped", series={DROPPED: "0x50 40x20"}, fires=("GatewayStoreDropping",)),
    Days(why="traces were dropped this morning", series={DROPPED: "0x10 40x60"}),
    Days(why="a worker was killed", series={LOSSES: "0x50 1x20"}, fires=("GatewayWorkerRestarting",)),
    Days(why="a worker was killed an hour ago", series={LOSSES: "0x10 1x60"}),
    Days(
        why="one of two is missing",
        series={WORKERS: "1x70", WANTED: "2x70"},
        fires=("GatewayWorkersMissing",),
    ),
    Days(why="both are there, and one that leaves", series={WORKERS: "3x70", WANTED: "2x70"}),
    Days(why="a traceback", series={TRACEBACKS: "0x50 1x20"}, fires=("GatewayInternalErrors",)),
    Days(why="a bug decided", series={BUGS: "0x50 1x20"}, fires=("GatewayInternalErrors",)),
    Days(why="no bug since yesterday", series={TRACEBACKS: "7x70", BUGS: "3x70"}),
    Days(why="a faulty config", series={RELOAD: "1x50 0x20"}, fires=("GatewayConfigReloadRefused",)),
    Days(why="mended", series={RELOAD: "0x50 1x20"}),
)


def as_test(story: Days) -> dict[str, Any]:
    """The story as promtool has it; JSON is YAML."""
    series = {UP: "1x3000", **story.series}
    question = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": story.at,
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in sorted(story.fires)],
    }
    return {
        "interval": story.step,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [question],
    }


def passes(stories: Sequence[Days], folder: Path) -> bool:
    """Whether promtool finds each as it is told; it asks the rules at every `EVALUATED` from the beginning on."""
    step = stories[0].step
    file = folder / "test.yml"
    told = {
        "rule_files": [str(RULES)],
        "evaluation_interval": EVALUATED[step],
        "tests": list(map(as_test, stories)),
    }
    file.write_text(json.dumps(told))
    return not subprocess.run(
        ["promtool", "test", "rules", file], capture_output=True, check=False
    ).returncode


@needs_promtool
@pytest.mark.parametrize("step", EVALUATED)
def test_what_fires_and_what_does_not(step: str, tmp_path: Path) -> None:
    stories = [story for story in STORIES if story.step == step]
    if not passes(
        stories, tmp_path
    ):  # all at once take promtool a tenth of the time, but it does not say which it was
        assert [story.why for story in stories if not passes([story], tmp_path)] == []


def test_every_alert_is_tested_both_ways() -> None:
    alerts = {rule["alert"] for rule in rules()}
    assert {alert for story in STORIES for alert in story.fires} == alerts
    # Its own series, with nothing firing: what it looks at stands still or is harmless there.
    quiet = {name for story in STORIES if not story.fires for name in metrics_of(" ".join(story.series))}
    assert {rule["alert"] for rule in rules() if not metrics_of(rule["expr"]) & (quiet | {"up"})} == set()


@needs_promtool
def test_promtool_finds_no_fault() -> None:
    checked = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_alert_says_how_bad_it_is_and_where_to_read_on() -> None:
    sections = set(re.findall(r"(?m)^## (\w+)$", RUNBOOK.read_text()))
    assert sections == {rule["alert"] for rule in rules()}
    for rule in rules():
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"


def metrics_of(expr: str) -> set[str]:
    return set(re.findall(r"\b(?:gateway|process)_[a-z0-9_]+|\bup\b", re.sub(r'"[^"]*"', "", expr)))


def test_every_metric_asked_for_is_exported() -> None:
    metrics = Metrics()
    exported = {f"{one.name}_total" if metrics.is_counter(one) else one.name for one in metrics.declared}
    asked = {name for rule in rules() for name in metrics_of(rule["expr"])} - {"up"}
    assert asked
    assert asked - exported == set()


def test_every_command_in_the_runbook_exists() -> None:
    told = set(re.findall(r"`gateway (\w+)(?: ([a-z]+))?", RUNBOOK.read_text()))
    assert told
    for command, below in told:
        group = get_command(app).commands[command]  # type: ignore[attr-defined]
        if below:
            assert below in group.commands, (command, below)
