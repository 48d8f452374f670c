import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import ClassVar, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.dns.resolver import RecordType
from gateway.dns.stub import DnsObservation
from gateway.mail.envelope import Listener
from gateway.ops.metrics import Metrics
from gateway.ops.tally import MAX_SERIES, Spread
from gateway.verdict import Answered, Disposition, Shadow, Verdict
from tests.ops.evidence import REJECTED, envelope


def one_message(metrics: Metrics) -> None:
    """All that a listener, the engine and the resolver report of one session with one message."""
    metrics.session_opened(Listener.INBOUND)
    for verb in ("EHLO", "MAIL", "RCPT", "DATA", "QUIT"):
        metrics.command(Listener.INBOUND, verb, 250)
    for command in ("EHLO", "MAIL", "RCPT", "DATA"):
        metrics.downstream_reply(command, 250, 0.001)
    for _ in range(4):
        metrics.dns(DnsObservation(RecordType.TXT, "answer", cached=True, seconds=0.0))
    metrics.judged(REJECTED, envelope())
    answered = Answered("4f2a", Disposition.REJECT, size=5_000, seconds=0.02, is_handed_on=False)
    metrics.message(Listener.INBOUND, answered)
    metrics.session_closed(Listener.INBOUND, "quit")


def scrape(metrics: Metrics) -> dict[str, float]:
    """Every sample, as Prometheus would write its name."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(metrics.exposition("")[0].decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()) if value)
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


@pytest.fixture
def metrics() -> Metrics:
    metrics = Metrics()
    one_message(metrics)
    return metrics


def test_one_message_is_counted_once_everywhere(metrics: Metrics) -> None:
    samples = scrape(metrics)
    assert samples["gateway_sessions_total{end=quit,listener=inbound}"] == 1
    assert samples["gateway_sessions_open{listener=inbound}"] == 0
    assert samples["gateway_messages_total{disposition=reject,listener=inbound,rule=dmarc-reject}"] == 1
    assert samples["gateway_commands_total{code=250,listener=inbound,verb=MAIL}"] == 1
    assert samples["gateway_message_duration_seconds_count{listener=inbound}"] == 1
    assert samples["gateway_message_size_bytes_bucket{le=4096.0}"] == 0
    assert samples["gateway_message_size_bytes_bucket{le=16384.0}"] == 1
    assert (
        samples["gateway_auth_results_total{method=spf,problem=spf.too-many-lookups,status=permerror}"] == 1
    )
    assert samples["gateway_auth_results_total{method=spf_helo,status=none}"] == 1
    assert samples["gateway_auth_results_total{method=dkim,problem=dkim.body-hash,status=fail}"] == 1
    assert samples["gateway_auth_results_total{method=dkim,status=pass}"] == 1
    assert samples["gateway_auth_results_total{method=dmarc,status=fail}"] == 1
    assert (
        samples["gateway_dmarc_policy_total{applied=reject,discovery=own,requested=reject,status=fail}"] == 1
    )
    assert samples["gateway_dns_queries_total{cached=yes,outcome=answer,type=TXT}"] == 4
    assert samples["gateway_downstream_replies_total{code=250,command=RCPT}"] == 1
    assert samples["gateway_internal_errors_total{}"] == 0


def test_only_a_bug_counts_as_one(metrics: Metrics) -> None:
    metrics.judged(Verdict(disposition=Disposition.ACCEPT, rule="gateway.internal"), envelope())
    assert scrape(metrics)["gateway_internal_errors_total{}"] == 1


def test_what_the_shadow_rules_would_have_done_is_counted_by_both_rules() -> None:
    metrics = Metrics()
    metrics.judged(replace(REJECTED, shadow=Shadow(rule="pass", disposition=Disposition.ACCEPT)), envelope())
    metrics.judged(REJECTED, envelope())
    some = Shadow(
        rule="pass", disposition=Disposition.REJECT, refused_recipients=1, recipients_rule="no-robots"
    )
    metrics.judged(replace(REJECTED, shadow=some), envelope())
    name, both = "gateway_shadow_messages_total", "live_disposition=reject,live_rule=dmarc-reject"
    shadowed = {name: value for name, value in scrape(metrics).items() if "shadow" in name}
    assert shadowed == {
        f"{name}{{{both},shadow_disposition=accept,shadow_rule=pass}}": 1,
        f"{name}{{{both},shadow_disposition=reject,shadow_rule=no-robots}}": 1,
    }


def test_bytes_in_flight_are_those_of_all_doors() -> None:
    metrics = Metrics()
    for held in (1_000, 200, 30):
        metrics.bytes_in_flight_from(lambda held=held: held)  # type: ignore[misc]  # bound at once
    assert scrape(metrics)["gateway_bytes_in_flight{}"] == 1_230


def test_only_questions_sent_are_timed() -> None:
    metrics = Metrics()
    metrics.dns(DnsObservation(RecordType.MX, "timeout", cached=False, seconds=5.0))
    metrics.dns(DnsObservation(RecordType.MX, "answer", cached=True, seconds=0.0))
    samples = scrape(metrics)
    assert samples["gateway_dns_query_duration_seconds_count{type=MX}"] == 1
    assert samples["gateway_dns_query_duration_seconds_sum{type=MX}"] == 5


def test_gauges_reloads_and_build() -> None:
    metrics = Metrics()
    metrics.session_opened(Listener.MILTER)
    metrics.bytes_in_flight_from(lambda: 12_345)
    metrics.reloaded(ok=True)
    metrics.reloaded(ok=False)
    metrics.downstream_failed("connect")
    samples = scrape(metrics)
    assert samples["gateway_sessions_open{listener=milter}"] == 1
    assert samples["gateway_bytes_in_flight{}"] == 12_345
    assert samples["gateway_config_reload_total{outcome=ok}"] == 1
    assert samples["gateway_config_reload_total{outcome=refused}"] == 1
    assert samples["gateway_downstream_failures_total{kind=connect}"] == 1
    assert sum(name.startswith("gateway_build_info{") for name in samples) == 1


class Counts(NamedTuple):
    waiting: int = 3
    failures: int = 6


class Rows:
    counts = Counts()
    ended: ClassVar = {("tls_results", "written"): 40, ("traces", "dropped"): 5}


def test_the_store_is_told_of_where_there_is_one() -> None:
    metrics = Metrics()
    assert not [name for name in scrape(metrics) if "store" in name]
    metrics.store_from(Rows())
    samples = {name: value for name, value in scrape(metrics).items() if "store" in name}
    assert samples == {
        "gateway_store_rows_waiting{}": 3,
        "gateway_store_rows_total{outcome=written,table=tls_results}": 40,
        "gateway_store_rows_total{outcome=dropped,table=tls_results}": 0,
        "gateway_store_rows_total{outcome=dropped,table=traces}": 5,
        "gateway_store_failures_total{}": 6,
    }


def test_a_bug_that_lets_strangers_into_labels_cannot_fill_the_memory() -> None:
    metrics = Metrics()
    for number in range(MAX_SERIES + 500):
        metrics.command(Listener.INBOUND, f"WORD{number}", 500)
        metrics.downstream_reply(f"WORD{number}", 250, 0.1)
    commands = {
        name: value for name, value in scrape(metrics).items() if name.startswith("gateway_commands_total")
    }
    assert len(commands) == MAX_SERIES + 1
    assert commands["gateway_commands_total{code=other,listener=other,verb=other}"] == 500


def test_a_code_that_smtp_does_not_have_is_other() -> None:
    metrics = Metrics()
    metrics.downstream_reply("MAIL", 999, 0.1)
    assert scrape(metrics)["gateway_downstream_replies_total{code=other,command=MAIL}"] == 1


def test_threads_lose_no_count() -> None:
    metrics = Metrics()

    def open_many() -> None:
        for _ in range(2_000):
            metrics.session_opened(Listener.MILTER)

    with ThreadPoolExecutor(8) as threads:
        for _ in range(8):
            threads.submit(open_many)
    assert scrape(metrics)["gateway_sessions_open{listener=milter}"] == 16_000


def test_buckets_are_cumulated_and_bounds_inclusive() -> None:
    spread = Spread("x", "X.", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 9.0):
        spread.observe(value)
    assert spread.buckets(()) == [("1.0", 2), ("2.0", 3), ("+Inf", 4)]


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_has_nothing_to_say(metrics: Metrics) -> None:
    body, _ = metrics.exposition("text/plain")
    checked = subprocess.run(["promtool", "check", "metrics"], input=body, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_open_metrics_is_spoken_where_asked_for(metrics: Metrics) -> None:
    body, content_type = metrics.exposition("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")
