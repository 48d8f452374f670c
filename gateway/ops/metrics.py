"""What Prometheus may know: counts, times and sizes, never whose mail it was.

Label values are enums of ours or the operator's own names (listener, rule), so that no sender can make the number of time
series grow.
"""

import platform
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from threading import Lock
from typing import Any, Final, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.core import Metric as PrometheusMetric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from gateway import __version__
from gateway.auth.results import ArcStatus, Evidence, Problem
from gateway.dns.stub import DnsObservation
from gateway.mail.envelope import Envelope, Listener
from gateway.ops.tally import OTHER, Spread, Tally
from gateway.verdict import Disposition, Shadow, Verdict

_MESSAGE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REPLY_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120)
_QUERY_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_BYTES: Final = tuple(1_024 * 4**n for n in range(9))  # 1 KiB to 64 MiB
_CODES: Final = {code: str(code) for code in range(200, 600)}  # RFC 5321 §4.2.1
_NO_PROBLEM: Final = ""  # Prometheus: an empty label is one that is not there


class Method(StrEnum):
    """The checks, as `gateway_auth_results_total` names them."""

    SPF = "spf"
    SPF_HELO = "spf_helo"
    DKIM = "dkim"
    DMARC = "dmarc"
    IPREV = "iprev"
    ARC = "arc"


class RowCounts(Protocol):
    """Rows waiting for the store now; rows written, rows dropped and failed attempts since the start."""

    @property
    def waiting(self) -> int: ...  # noqa: D102 - the class says it; likewise below
    @property
    def written(self) -> int: ...  # noqa: D102
    @property
    def dropped(self) -> int: ...  # noqa: D102
    @property
    def failures(self) -> int: ...  # noqa: D102


class StoreWriter(Protocol):
    """What the metrics need of the store."""

    @property
    def counts(self) -> RowCounts: ...  # noqa: D102


class Metrics(Collector):
    """All metrics of one gateway, in a registry of their own. Every method is cheap, none raises, any thread may call.

    Args:
        workers: how many processes they are of: 1, or 0 for a sum that is to `absorb` others' first.
    """

    def __init__(self, *, workers: int = 1) -> None:
        self.registry: Final = CollectorRegistry()
        self._lock = Lock()
        self._workers = workers
        self._bytes_elsewhere = 0.0
        self._bytes_in_flight: list[Callable[[], float]] = []
        self._store: StoreWriter | None = None
        self._sessions = Tally("sessions", "Sessions, by how they ended.", "listener", "end")
        self._sessions_open = Tally("sessions_open", "Sessions open now.", "listener")
        self._commands = Tally("commands", "Commands answered, by our reply.", "listener", "verb", "code")
        self._logins = Tally("logins", "Log-ins answered.", "listener", "mechanism", "outcome")
        self._messages = Tally("messages", "Messages judged.", "listener", "disposition", "rule")
        self._shadow = Tally(
            "shadow_messages",
            "Messages, senders and recipients with which the shadow rules would have done something else.",
            "live_rule",
            "shadow_rule",
            "live_disposition",
            "shadow_disposition",
        )
        self._seconds = Spread(
            "message_duration_seconds", "From the end of the data to our reply.", _MESSAGE_SECONDS, "listener"
        )
        self._size = Spread("message_size_bytes", "Messages' sizes.", _BYTES)
        self._results = Tally(
            "auth_results", "Results of the checks, with their cause.", "method", "status", "problem"
        )
        self._policies = Tally(
            "dmarc_policy",
            "Messages under a DMARC record: what it asks for, what applies.",
            "requested",
            "applied",
        )
        self._seals = Tally("arc_seals", "ARC seals of ours, by what they say of the chain before.", "cv")
        self._signatures = Tally("signatures", "DKIM signatures of ours.", "domain", "algorithm")
        self._unsigned = Tally("unsigned_messages", "Own messages handed on without one, and why.", "reason")
        self._queries = Tally("dns_queries", "DNS questions of the checks.", "type", "outcome", "cached")
        self._query_seconds = Spread(
            "dns_query_duration_seconds", "DNS questions put to a server.", _QUERY_SECONDS, "type"
        )
        self._replies = Tally("downstream_replies", "Replies of the mail server.", "command", "code")
        self._reply_seconds = Spread(
            "downstream_duration_seconds", "Until the mail server replied.", _REPLY_SECONDS, "command"
        )
        self._failures = Tally("downstream_failures", "Times the mail server could not be used.", "kind")
        self._relayed = Tally(
            "relay_deliveries", "Answers to messages that leave, and to their refused recipients.", "outcome"
        )
        self._remote_sessions = Tally(
            "relay_sessions",
            "Sessions with remote mail servers: what was demanded, what there was, what was wrong.",
            "demand",
            "tls",
            "problem",
            "failure",
        )
        self._faults = Tally("internal_errors", "Bugs that cost a message a 451.")
        self._rows = Tally("store_rows", "Rows for the store, by what became of them.", "outcome")
        self._rows_waiting = Tally("store_rows_waiting", "Rows that wait to be written to the store.")
        self._store_failures = Tally("store_failures", "Times the store could not be written.")
        for tally in (self._rows_waiting, self._store_failures):
            tally.values.clear()  # not there where there is no store
        self._tls_answers = Tally(
            "tls_policy_answers", "Postfix's questions about outbound TLS, by our answer.", "level", "outcome"
        )
        self._tls_reports = Tally(
            "tlsrpt_datagrams", "Postfix's reports of TLS sessions, by what became of them.", "outcome"
        )
        self._reloads = Tally("config_reload", "Reloads of config, rules and certificates.", "outcome")
        self._sts_policies = Tally(
            "mta_sts_policies", "MTA-STS policies fetched, renewed, lost, and why.", "change", "problem"
        )
        self.registry.register(self)

    def collect(self) -> Iterator[PrometheusMetric]:
        """Everything, as Prometheus wants it; called by the registry at each scrape."""
        self._ask_store()
        with self._lock:
            families = [*map(_counter, self._counters()), *map(_histogram, self._histograms())]
            families += map(_gauge, self._gauges())
        in_flight = GaugeMetricFamily(
            "gateway_bytes_in_flight",
            "Message bytes held now.",
            self._bytes_here() + self._bytes_elsewhere,
        )
        processes = GaugeMetricFamily("gateway_workers", "Processes that do the work.", self._workers)
        build = GaugeMetricFamily(
            "gateway_build_info", "1; its labels say what runs here.", labels=("version", "python")
        )
        build.add_metric((__version__, platform.python_version()), 1)
        yield from (*families, in_flight, processes, build)

    def _counters(self) -> tuple[Tally, ...]:
        return (
            self._sessions,
            self._commands,
            self._logins,
            self._messages,
            self._shadow,
            self._results,
            self._policies,
            self._seals,
            self._signatures,
            self._unsigned,
            self._queries,
            self._replies,
            self._failures,
            self._relayed,
            self._remote_sessions,
            self._faults,
            self._rows,
            self._store_failures,
            self._tls_answers,
            self._tls_reports,
            self._reloads,
            self._sts_policies,
        )

    def _histograms(self) -> tuple[Spread, ...]:
        return self._seconds, self._size, self._query_seconds, self._reply_seconds

    def _gauges(self) -> tuple[Tally, ...]:
        return self._sessions_open, self._rows_waiting

    def _ask_store(self) -> None:
        """The store's own counts, which are the whole truth of this process."""
        if self._store is None:
            return
        counts = self._store.counts
        with self._lock:
            self._rows.values = {("written",): counts.written, ("dropped",): counts.dropped}
            self._rows_waiting.values = {(): counts.waiting}
            self._store_failures.values = {(): counts.failures}

    # Several processes

    def snapshot(self) -> dict[str, Any]:
        """Everything counted so far in plain values that JSON can carry; `absorb` takes it in elsewhere."""
        self._ask_store()
        with self._lock:
            return {
                "tallies": {tally.name: tally.dump() for tally in (*self._counters(), *self._gauges())},
                "spreads": {spread.name: spread.dump() for spread in self._histograms()},
                "bytes_in_flight": self._bytes_here() + self._bytes_elsewhere,
                "workers": self._workers,
            }

    def absorb(self, snapshot: Mapping[str, Any], *, alive: bool) -> None:
        """Add what another process counted. What holds only now (gauges) is taken of a living one alone."""
        tallies, spreads = snapshot["tallies"], snapshot["spreads"]
        with self._lock:
            for tally in (*self._counters(), *(self._gauges() if alive else ())):
                tally.load(tallies.get(tally.name, ()))
            for spread in self._histograms():
                spread.load(spreads.get(spread.name, ()))
            if alive:
                self._bytes_elsewhere += snapshot["bytes_in_flight"]
                self._workers += snapshot["workers"]

    # What the listeners report

    def session_opened(self, listener: Listener) -> None:
        """A client connected."""
        with self._lock:
            self._sessions_open.add((listener,))

    def session_closed(self, listener: Listener, end: str) -> None:
        """A session ended; `end` is a word of the listener's own enum."""
        with self._lock:
            self._sessions_open.add((listener,), -1)
            self._sessions.add((listener, end))

    def command(self, listener: Listener, verb: str, code: int) -> None:
        """A command was answered. `verb` is one of those that we know, or `other`; never a client's own word."""
        with self._lock:
            self._commands.add((listener, verb, _CODES.get(code, OTHER)))

    def login(self, listener: Listener, mechanism: str, outcome: str) -> None:
        """A log-in was answered. `mechanism` is one of those that are relayed, or `other`; never a client's own word."""
        with self._lock:
            self._logins.add((listener, mechanism, outcome))

    def message(self, listener: Listener, disposition: Disposition, size: int, seconds: float) -> None:
        """A message was answered at the end of its data; `judged` counts what became of it."""
        del disposition
        with self._lock:
            self._seconds.observe(seconds, (listener,))
            self._size.observe(size)

    def downstream_reply(self, command: str, code: int, seconds: float) -> None:
        """The mail server replied."""
        with self._lock:
            self._replies.add((command, _CODES.get(code, OTHER)))
            self._reply_seconds.observe(seconds, (command,))

    def downstream_failed(self, failure: str) -> None:
        """The mail server could not be reached, or broke the protocol; `failure` is a word of the listener's own enum."""
        with self._lock:
            self._failures.add((failure,))

    def tls_policy_answered(self, level: str, outcome: str) -> None:
        """Postfix asked what TLS a delivery must have; both are words of enums."""
        with self._lock:
            self._tls_answers.add((level, outcome))

    def tls_report(self, outcome: str) -> None:
        """Postfix reported a TLS session; `outcome` is a word of the listener's own enum."""
        with self._lock:
            self._tls_reports.add((outcome,))

    def relay_outcome(self, outcome: str) -> None:
        """A message that leaves, or one of its recipients, was answered; `outcome` is a word of the relay's own enum."""
        with self._lock:
            self._relayed.add((outcome,))

    def relay_session(self, demand: str, tls: str | None, problem: str | None, failure: str | None) -> None:
        """A session with a remote mail server was opened, or could not be; the words are our own enums' and OpenSSL's."""
        with self._lock:
            self._remote_sessions.add((demand, tls or "none", problem or _NO_PROBLEM, failure or _NO_PROBLEM))

    def bytes_in_flight_from(self, read: Callable[[], float]) -> None:
        """Take a door's bytes in flight from their owner, at each scrape."""
        self._bytes_in_flight.append(read)

    def _bytes_here(self) -> float:
        return sum(read() for read in self._bytes_in_flight)

    def store_from(self, writer: StoreWriter) -> None:
        """Take the store's counts from their owner, at each scrape."""
        self._store = writer

    # What the engine and the resolver report

    def judged(self, verdict: Verdict, envelope: Envelope) -> None:
        """A message was judged."""
        evidence = verdict.evidence
        dmarc = evidence.dmarc
        with self._lock:
            self._messages.add((envelope.session.listener, verdict.disposition, verdict.rule))
            if verdict.shadow is not None:
                self._differs(verdict, verdict.shadow)
            for labels in _results(evidence):
                self._results.add(labels)
            if dmarc is not None and dmarc.record is not None:
                self._policies.add((dmarc.requested, dmarc.applied))
            if verdict.sealed is not None:
                self._seals.add((verdict.sealed,))
            if verdict.signing is not None:
                for made in verdict.signing.made:
                    self._signatures.add((made.domain, made.algorithm))
                if verdict.signing.reason is not None:
                    self._unsigned.add((verdict.signing.reason,))
            if verdict.rule == Problem.INTERNAL:
                self._faults.add()

    def _differs(self, verdict: Verdict, shadow: Shadow) -> None:
        disposition = shadow.disposition
        # Where only some recipients would have been refused, the rule that would have done it says more than the message's.
        same = disposition is verdict.disposition
        rule = shadow.recipients_rule if same and shadow.recipients_rule else shadow.rule
        self._shadow.add((verdict.rule, rule, verdict.disposition, disposition))

    def dns(self, observation: DnsObservation) -> None:
        """A check asked the DNS."""
        record_type = observation.record_type
        with self._lock:
            self._queries.add((record_type, observation.outcome, "yes" if observation.cached else "no"))
            if not observation.cached:
                self._query_seconds.observe(observation.seconds, (record_type,))

    def reloaded(self, *, ok: bool) -> None:
        """SIGHUP was obeyed, or the new files were refused and the old ones stand."""
        with self._lock:
            self._reloads.add(("ok" if ok else "refused",))

    def sts_policy(self, change: str, problem: str | None) -> None:
        """An MTA-STS policy came, went or changed; both are words of `tlspolicy`'s own enums."""
        with self._lock:
            self._sts_policies.add((change, problem or _NO_PROBLEM))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The scrape's body and content type: OpenMetrics where the `Accept` header asks for it, else plain text."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type


def _results(evidence: Evidence) -> Iterator[tuple[str, str, str]]:
    """`(method, status, problem)` of every check that was made."""
    spf, spf_helo, dmarc, iprev = evidence.spf, evidence.spf_helo, evidence.dmarc, evidence.iprev
    arc = evidence.arc
    if spf is not None:
        yield Method.SPF, spf.status, spf.problem or _NO_PROBLEM
    if spf_helo is not None:
        yield Method.SPF_HELO, spf_helo.status, spf_helo.problem or _NO_PROBLEM
    for signature in evidence.dkim:
        yield Method.DKIM, signature.status, signature.problem or _NO_PROBLEM
    if dmarc is not None:
        yield Method.DMARC, dmarc.status, dmarc.problem or _NO_PROBLEM
    if iprev is not None:
        yield Method.IPREV, iprev.status, iprev.problem or _NO_PROBLEM
    if arc is not None and arc.status is not ArcStatus.NONE:
        yield Method.ARC, arc.status, arc.problem or _NO_PROBLEM


def _counter(tally: Tally) -> CounterMetricFamily:
    family = CounterMetricFamily(f"gateway_{tally.name}", tally.text, labels=tally.labels)
    for labels, value in tally.values.items():
        family.add_metric([str(label) for label in labels], value)
    return family


def _gauge(tally: Tally) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"gateway_{tally.name}", tally.text, labels=tally.labels)
    for labels, value in tally.values.items():
        family.add_metric([str(label) for label in labels], value)
    return family


def _histogram(spread: Spread) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"gateway_{spread.name}", spread.text, labels=spread.labels)
    for labels, (_, total) in spread.values.items():
        family.add_metric([str(label) for label in labels], spread.buckets(labels), total[0])
    return family
