import json
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import ClassVar, NamedTuple

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics_families
from prometheus_client.parser import text_string_to_metric_families

from gateway.auth.results import (
    DkimResult,
    DkimStatus,
    DmarcPolicy,
    DmarcRecord,
    DmarcResult,
    DmarcStatus,
    Evidence,
)
from gateway.dns.resolver import RecordType
from gateway.dns.stub import DnsObservation
from gateway.mail.envelope import Listener, Tls
from gateway.mail.value import replace
from gateway.ops.labels import OwnDomains
from gateway.ops.metrics import Metrics
from gateway.ops.tally import MAX_SERIES, Spread
from gateway.ops.workers import Ledger
from gateway.tlspolicy.model import Decision, Demand, NoRoute, StsView, TlsLevel, TlsProblem
from gateway.tlspolicy.mta_sts.events import Change, Summary
from gateway.verdict import Answered, Disposition, Shadow, Stage, Verdict
from tests.ops.evidence import FORGED, REJECTED, envelope


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


# Several processes


def summed(*alive: Metrics, ended: tuple[Metrics, ...] = ()) -> dict[str, float]:
    """As the process that serves /metrics adds them up; JSON in between, as on the wire."""
    total = Metrics(workers=0)
    for metrics, lives in (*((one, True) for one in alive), *((one, False) for one in ended)):
        total.absorb(json.loads(json.dumps(metrics.snapshot())), alive=lives)
    return scrape(total)


def a_worker(name: str, *, certificate_ends: int, reload_ok: bool = True) -> Metrics:
    metrics = Metrics(worker=name)
    one_message(metrics)
    metrics.session_opened(Listener.INBOUND)
    metrics.workers_configured(2)
    metrics.certificate("inbound", datetime.fromtimestamp(certificate_ends, UTC))
    metrics.reloaded(ok=reload_ok)
    metrics.loop_was_late(0.02)
    return metrics


def test_counts_add_up_and_gauges_say_the_worst() -> None:
    one, other = a_worker("0", certificate_ends=2_000), a_worker("1", certificate_ends=1_000, reload_ok=False)
    samples = summed(one, other)
    assert samples["gateway_messages_total{disposition=reject,listener=inbound,rule=dmarc-reject}"] == 2
    assert samples["gateway_sessions_open{listener=inbound}"] == 2
    assert samples["gateway_message_duration_seconds_count{listener=inbound}"] == 2
    assert samples["gateway_workers{}"] == samples["gateway_workers_configured{}"] == 2
    assert samples["gateway_certificate_not_after_timestamp_seconds{listener=inbound}"] == 1_000
    assert samples["gateway_config_last_reload_successful{}"] == 0
    assert samples["gateway_event_loop_lag_seconds_count{worker=1}"] == 1
    assert samples["process_cpu_seconds_total{}"] > time.process_time()
    assert sum(name.startswith("gateway_build_info{") for name in samples) == 1


def test_of_a_process_that_has_ended_only_the_counts_stay() -> None:
    samples = summed(a_worker("0", certificate_ends=2_000), ended=(a_worker("1", certificate_ends=1_000),))
    assert samples["gateway_messages_total{disposition=reject,listener=inbound,rule=dmarc-reject}"] == 2
    assert samples["gateway_sessions_open{listener=inbound}"] == 1
    assert samples["gateway_workers{}"] == 1
    assert samples["gateway_certificate_not_after_timestamp_seconds{listener=inbound}"] == 2_000


def test_whatever_is_declared_is_in_the_sum() -> None:
    """By construction; and so that nobody takes it out again."""
    metrics = Metrics()
    for declared in metrics.declared:
        words = tuple(f"a-{label}" for label in declared.labels)
        if isinstance(declared, Spread):
            declared.observe(1.0, words)
        else:
            declared.set(7, words)
    total = Metrics(workers=0)
    total.absorb(metrics.snapshot(), alive=True)
    names = {name.partition("{")[0] for name in scrape(total)}
    assert {re.sub(r"_(total|bucket|count|sum)$", "", name) for name in names} == {
        declared.name for declared in metrics.declared
    }


def test_a_snapshot_that_lacks_a_metric_is_of_another_release_and_taken_all_the_same() -> None:
    total = Metrics(workers=0)
    total.absorb({"counters": {}, "gauges": {}, "histograms": {}}, alive=True)
    assert scrape(total)["gateway_internal_errors_total{}"] == 0


def test_the_supervisor_is_heard() -> None:
    ledger, metrics = Ledger(), Metrics(workers=0)
    metrics.supervised_by(ledger)
    assert scrape(metrics)["gateway_config_last_reload_successful{}"] == 1
    ledger.note_loss()
    ledger.note_reload(ok=False)
    samples = summed(metrics, a_worker("0", certificate_ends=1))
    assert samples["gateway_worker_losses_total{}"] == 1
    assert samples["gateway_config_reload_total{outcome=refused}"] == 1
    assert samples["gateway_config_reload_total{outcome=ok}"] == 1
    assert samples["gateway_config_last_reload_successful{}"] == 0
    ledger.note_reload(ok=True)
    assert summed(metrics)["gateway_config_last_reload_successful{}"] == 1


# From a number to a message


OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


def exemplars(metrics: Metrics) -> dict[str, str]:
    """The trace id by sample, as an OpenMetrics scrape has it."""
    shown = metrics.exposition(OPEN_METRICS)[0].decode()
    return {
        sample.name + str(sorted(sample.labels.items())): sample.exemplar.labels["trace_id"]
        for family in open_metrics_families(shown)  # type: ignore[no-untyped-call]  # the library leaves it so
        for sample in family.samples
        if sample.exemplar
    }


def test_buckets_and_verdicts_lead_to_the_latest_message() -> None:
    metrics = Metrics()
    for number, seconds in enumerate((0.02, 0.021, 4.0)):
        answered = Answered(f"m{number}", Disposition.REJECT, size=1, seconds=seconds, is_handed_on=False)
        metrics.message(Listener.INBOUND, answered)
        metrics.judged(REJECTED, replace(envelope(), id=f"m{number}"))
    found = exemplars(metrics)
    assert sorted(found.values()) == ["m1", "m2", "m2"]
    assert found["gateway_message_duration_seconds_bucket[('le', '0.025'), ('listener', 'inbound')]"] == "m1"
    assert found["gateway_message_duration_seconds_bucket[('le', '5.0'), ('listener', 'inbound')]"] == "m2"


def test_of_several_workers_the_latest_message_is_shown() -> None:
    workers = [Metrics(worker=name) for name in ("0", "1")]
    for number in range(4):
        answered = Answered(f"m{number}", Disposition.ACCEPT, size=1, seconds=0.02, is_handed_on=True)
        workers[number % 2].message(Listener.INBOUND, answered)
    total = Metrics(workers=0)
    for worker in reversed(workers):
        total.absorb(json.loads(json.dumps(worker.snapshot())), alive=True)
    assert list(exemplars(total).values()) == ["m3"]


def test_an_id_of_any_length_leaves_the_scrape_readable() -> None:
    metrics = Metrics()
    answered = Answered("x" * 500, Disposition.ACCEPT, size=1, seconds=0.02, is_handed_on=True)
    metrics.message(Listener.INBOUND, answered)
    (shown,) = exemplars(metrics).values()
    assert len("trace_id" + shown) <= 128


# What each event counts


def test_how_strangers_sign_is_told_in_our_words() -> None:
    metrics = Metrics()
    forms = [
        ("rsa-sha256", 2_048, "relaxed/relaxed"),
        ("rsa-sha256", 2_047, "relaxed/simple"),
        ('x"} 1\n', 99, "../../etc"),
        (None, None, None),
    ]
    evidence = Evidence(
        dkim=tuple(
            DkimResult(
                position=0, status=DkimStatus.FAIL, algorithm=algorithm, key_bits=bits, canonicalization=form
            )
            for algorithm, bits, form in forms
        )
    )
    metrics.judged(replace(REJECTED, evidence=evidence), envelope())
    found = {name for name in scrape(metrics) if name.startswith("gateway_dkim_signatures_total")}
    assert found == {
        "gateway_dkim_signatures_total{algorithm=rsa-sha256,canonicalization=relaxed/relaxed,key_bits=2048,status=fail}",
        "gateway_dkim_signatures_total{algorithm=rsa-sha256,canonicalization=relaxed/simple,key_bits=other,status=fail}",
        "gateway_dkim_signatures_total{algorithm=other,canonicalization=other,key_bits=other,status=fail}",
        "gateway_dkim_signatures_total{status=fail}",
    }


def record(domain: str) -> DmarcRecord:
    return DmarcRecord(domain=domain, policy=DmarcPolicy.REJECT)


@pytest.mark.parametrize(
    ("result", "labels"),
    [
        (
            DmarcResult(
                status=DmarcStatus.PASS,
                author_domain="a.example",
                record=record("a.example"),
                requested=DmarcPolicy.REJECT,
            ),
            "applied=none,discovery=own,requested=reject,status=pass",
        ),
        (
            DmarcResult(
                status=DmarcStatus.FAIL,
                author_domain="a.b.example",
                record=record("b.example"),
                requested=DmarcPolicy.REJECT,
                applied=DmarcPolicy.QUARANTINE,
            ),
            "applied=quarantine,discovery=walk,requested=reject,status=fail",
        ),
        (DmarcResult(status=DmarcStatus.NONE, author_domain="a.example"), "discovery=none,status=none"),
        (
            DmarcResult(
                status=DmarcStatus.PERMERROR, requested=DmarcPolicy.REJECT, applied=DmarcPolicy.REJECT
            ),
            "applied=reject,discovery=none,requested=reject,status=permerror",
        ),
    ],
)
def test_where_a_policy_was_found_and_what_applies(result: DmarcResult, labels: str) -> None:
    metrics = Metrics()
    metrics.judged(replace(REJECTED, evidence=Evidence(dmarc=result)), envelope())
    assert scrape(metrics)[f"gateway_dmarc_policy_total{{{labels}}}"] == 1


@pytest.mark.parametrize(
    ("differs", "agreeing", "differing"), [(None, 0, 0), (False, 1, 0), (True, 0, 1)], ids=str
)
def test_only_what_was_compared_with_the_suffix_list_is_counted(
    differs: bool | None,  # noqa: FBT001 - a case
    agreeing: int,
    differing: int,
) -> None:
    metrics = Metrics()
    found = DmarcResult(
        status=DmarcStatus.NONE,
        author_domain="a.example",
        organizational_domain="a.example",
        suffix_list_differs=differs,
    )
    metrics.judged(replace(REJECTED, evidence=Evidence(dmarc=found)), envelope())
    samples = scrape(metrics)
    assert samples["gateway_dmarc_tree_walks_total{suffix_list=agrees}"] == agreeing
    assert samples["gateway_dmarc_tree_walks_total{suffix_list=differs}"] == differing


@pytest.mark.parametrize(
    ("author_domain", "own"),
    [
        ("example.net", "example.net"),
        ("news.example.net", "example.net"),
        ("a.b.sub.example.org", "sub.example.org"),  # written as .sub.example.org
        ("notexample.net", None),
        ("net", None),
        (".".join(["a"] * 120), None),
    ],
)
def test_who_writes_in_our_own_name(author_domain: str, own: str | None) -> None:
    domains = OwnDomains(["Example.net", ".sub.example.org"])
    assert domains.find(author_domain) == own
    metrics = Metrics()
    metrics.own_domains = domains
    found = DmarcResult(status=DmarcStatus.FAIL, author_domain=author_domain)
    metrics.judged(replace(REJECTED, evidence=Evidence(dmarc=found)), envelope())
    told = [name for name in scrape(metrics) if name.startswith("gateway_own_domain_messages_total")]
    labels = f"disposition=reject,dmarc=fail,domain={own}"
    assert told == ([f"gateway_own_domain_messages_total{{{labels}}}"] if own else [])


def test_what_a_monitor_lets_pass_is_told() -> None:
    metrics = Metrics()
    let_pass = Verdict(
        disposition=Disposition.ACCEPT, intended=Disposition.REJECT, rule="dmarc-reject", evidence=FORGED
    )
    metrics.judged(let_pass, envelope())
    metrics.judged(REJECTED, envelope())
    name = "gateway_monitored_messages_total{intended=reject,rule=dmarc-reject}"
    assert scrape(metrics)[name] == 1


def test_who_is_refused_before_the_message_is_counted() -> None:
    metrics = Metrics()
    metrics.refused_early(Stage.RCPT, envelope(), REJECTED)
    labels = "disposition=reject,listener=inbound,rule=dmarc-reject,stage=rcpt"
    assert scrape(metrics)[f"gateway_early_refusals_total{{{labels}}}"] == 1


@pytest.mark.parametrize(
    ("demand", "problem", "kind"),
    [
        (Demand.PKIX, TlsProblem.TLS_NOT_OFFERED, "tls-missing"),
        (Demand.DANE, TlsProblem.TLS_REFUSED, "tls-missing"),
        (Demand.NONE, TlsProblem.TLS_INJECTION, "injection"),
        (Demand.NONE, TlsProblem.TLS_NOT_OFFERED, None),  # nobody asked for it
        (Demand.PKIX, TlsProblem.CERTIFICATE_NAME, None),  # refused, not downgraded
        (Demand.PKIX, None, None),
    ],
)
def test_what_counts_as_a_downgrade_of_a_session(
    demand: Demand, problem: TlsProblem | None, kind: str | None
) -> None:
    metrics = Metrics()
    metrics.relay_session(demand, None, problem, None)
    counted = {name: value for name, value in scrape(metrics).items() if "downgrades" in name}
    assert len(counted) == 4  # all are there from the start, for increase() to see the first
    assert [name for name, value in counted.items() if value] == (
        [f"gateway_tls_downgrades_total{{kind={kind}}}"] if kind else []
    )


def test_a_policy_that_is_weakened_or_runs_out_is_a_downgrade() -> None:
    metrics = Metrics()
    for change in Change:
        metrics.sts_policy(change, None)
    samples = scrape(metrics)
    assert samples["gateway_tls_downgrades_total{kind=policy-weakened}"] == 1
    assert samples["gateway_tls_downgrades_total{kind=policy-expired}"] == 1
    assert samples["gateway_tls_downgrades_total{kind=tls-missing}"] == 0
    assert samples["gateway_mta_sts_policies_total{change=renewed}"] == 1


def test_sessions_in_tls_are_counted_both_ways() -> None:
    metrics = Metrics()
    tls = Tls(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
    metrics.tls_started(Listener.SUBMISSION, tls)
    metrics.relay_session(Demand.DANE, tls, None, None)
    samples = scrape(metrics)
    same = "cipher=TLS_AES_256_GCM_SHA384,direction={},listener={},version=TLSv1.3"
    assert samples[f"gateway_tls_sessions_total{{{same.format('in', 'submission')}}}"] == 1
    assert samples[f"gateway_tls_sessions_total{{{same.format('out', 'outbound')}}}"] == 1
    assert samples["gateway_relay_sessions_total{demand=dane,tls=TLSv1.3}"] == 1


def test_a_decision_tells_its_level_and_once_what_was_wrong() -> None:
    metrics = Metrics()
    decision = Decision(
        domain="stranger.example",
        route=NoRoute(domain="stranger.example", problem=TlsProblem.ROUTE_TIMEOUT, temporary=True),
        hosts=(),
        level=TlsLevel.REFUSE,
        sts=StsView(mode="enforce", problem=TlsProblem.STS_DNS),
        dane_problem=TlsProblem.DANE_NOT_VALIDATING,
    )
    metrics.decided(decision, was_kept=False)
    metrics.decided(decision, was_kept=True)
    samples = scrape(metrics)
    assert samples["gateway_tls_decisions_total{cached=no,level=refuse,sts=enforce}"] == 1
    assert samples["gateway_tls_decisions_total{cached=yes,level=refuse,sts=enforce}"] == 1
    problems = {name: value for name, value in samples.items() if "decision_problems" in name}
    assert set(problems.values()) == {1}
    assert len(problems) == 3


def test_the_policies_in_memory_are_told_of() -> None:
    metrics = Metrics()
    known = Summary(by_mode={"enforce": 3}, nearest_end=datetime.fromtimestamp(5_000, UTC), overdue=1)
    none = Summary(by_mode={}, nearest_end=None, overdue=0)
    told = [known]
    metrics.sts_policies_from(lambda: told[0])
    samples = scrape(metrics)
    assert samples["gateway_mta_sts_known_policies{mode=enforce}"] == 3
    assert samples["gateway_mta_sts_nearest_expiry_timestamp_seconds{}"] == 5_000
    assert samples["gateway_mta_sts_overdue_policies{}"] == 1
    told[0] = none
    assert "gateway_mta_sts_nearest_expiry_timestamp_seconds{}" not in scrape(metrics)


def test_bytes_out_are_those_that_the_next_server_has() -> None:
    metrics = Metrics()
    for handed_on in (True, False):
        answered = Answered("m", Disposition.ACCEPT, size=1_000, seconds=0.1, is_handed_on=handed_on)
        metrics.message(Listener.INBOUND, answered)
    samples = scrape(metrics)
    assert samples["gateway_message_bytes_total{direction=in,listener=inbound}"] == 2_000
    assert samples["gateway_message_bytes_total{direction=out,listener=inbound}"] == 1_000


def test_lines_and_bugs_of_the_log_are_counted() -> None:
    metrics = Metrics()
    assert scrape(metrics)["gateway_log_tracebacks_total{}"] == 0
    metrics.logged("error", is_bug=True)
    metrics.logged("error", is_bug=False)
    samples = scrape(metrics)
    assert samples["gateway_log_tracebacks_total{}"] == 1
    assert samples["gateway_log_events_total{level=error}"] == 2
