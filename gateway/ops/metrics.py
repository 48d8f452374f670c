"""What Prometheus may know: counts, times and sizes, never whose mail it was.

Label values are enums of ours or the operator's own names (listener, rule, own domain), so that no sender can make the number
of time series grow. docs/metrics.md lists every metric; a test compares.
"""

import platform
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol

from gateway import __version__
from gateway.auth.results import Problem
from gateway.dns.stub import DnsObservation
from gateway.mail.envelope import Envelope, Listener, Tls
from gateway.ops.expiry import KeyDue
from gateway.ops.labels import NONE, OwnDomains, auth_results, dkim_form, dmarc_policy
from gateway.ops.process import read_process
from gateway.ops.register import Register
from gateway.ops.tally import OTHER, Labels, Merge
from gateway.ops.workers import Ledger
from gateway.tlspolicy.model import Decision, Demand, Route, TlsProblem
from gateway.tlspolicy.mta_sts.cache import Change
from gateway.verdict import Answered, Shadow, Stage, Verdict

if TYPE_CHECKING:
    from datetime import datetime

_MESSAGE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REPLY_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120)
_QUERY_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_BYTES: Final = tuple(1_024 * 4**n for n in range(9))  # 1 KiB to 64 MiB
_CODES: Final = {code: str(code) for code in range(200, 600)}  # RFC 5321 §4.2.1


class Downgrade(StrEnum):
    """How outbound mail came to be, or was to be made, less protected than it had been asked to be."""

    POLICY_WEAKENED = "policy-weakened"  # an enforced MTA-STS policy was replaced by a weaker one
    POLICY_EXPIRED = "policy-expired"  # an enforced one ran out without being renewed
    TLS_MISSING = "tls-missing"  # a server that must have TLS did not offer it, or refused it
    INJECTION = "injection"  # replies were put in before the handshake: somebody is in between


_CHANGES: Final = {
    Change.WEAKENED: Downgrade.POLICY_WEAKENED,
    Change.EXPIRED: Downgrade.POLICY_EXPIRED,
}
_LACKS: Final = {
    TlsProblem.TLS_NOT_OFFERED: Downgrade.TLS_MISSING,
    TlsProblem.TLS_REFUSED: Downgrade.TLS_MISSING,
}

TOGETHER: Final = 256
"""Observations that wait to be counted: those of some twenty messages."""


class RowCounts(Protocol):
    """Rows waiting for the store now, and failed attempts since the start."""

    @property
    def waiting(self) -> int: ...  # noqa: D102 - the class says it; likewise below
    @property
    def failures(self) -> int: ...  # noqa: D102


class StoreWriter(Protocol):
    """What the metrics need of the store."""

    @property
    def counts(self) -> RowCounts: ...  # noqa: D102 - the class says it
    @property
    def ended(self) -> Mapping[tuple[str, str], int]:
        """Rows by their table and what became of them."""
        ...


class ReadyCheck(Protocol):
    """One thing that must be in order before mail should come; see `gateway.listeners.http.Readiness`."""

    @property
    def name(self) -> str: ...  # noqa: D102 - the class says it; likewise below
    @property
    def ok(self) -> bool: ...  # noqa: D102


class PolicySummary(Protocol):
    """The MTA-STS policies that are known; see `gateway.tlspolicy.mta_sts.cache.Summary`."""

    @property
    def by_mode(self) -> Mapping[str, int]: ...  # noqa: D102 - the class says it; likewise below
    @property
    def nearest_end(self) -> "datetime | None": ...  # noqa: D102
    @property
    def overdue(self) -> int: ...  # noqa: D102


class Metrics(Register):
    """All metrics of one gateway, in a registry of their own. Every method is cheap, none raises, any thread may call.

    Args:
        workers: how many processes they are of: 1, or 0 for a sum that is to `absorb` others' first.
        worker: which process this is, for what is told of each by itself.

    Attributes:
        own_domains: the operator's; may be replaced at any time.
    """

    def __init__(self, *, workers: int = 1, worker: str = "0") -> None:
        super().__init__()
        self._waiting: Final[deque[tuple[Callable[..., None], tuple[Any, ...]]]] = deque()
        self.ask_at_scrape(self._count_up)
        self.own_domains = OwnDomains()
        self._worker: Final = worker
        self._bytes_in_flight: list[Callable[[], float]] = []
        self._declare_mail()
        self._declare_evidence()
        self._declare_surroundings()
        self._declare_outbound()
        self._declare_self()
        self._workers.set(workers)
        if workers:
            self._build.set(1, (__version__, platform.python_version()))
            self.reload_state(ok=True, at=time.time())
            self.count_process()

    # Declarations

    def _declare_mail(self) -> None:
        counter = self.counter
        self._sessions = counter("sessions", "Sessions, by how they ended.", "listener", "end")
        self._sessions_open = self.gauge("sessions_open", "Sessions open now.", "listener")
        self._tls = counter(
            "tls_sessions",
            "TLS handshakes done: with clients (in), with remote mail servers (out).",
            "direction",
            "listener",
            "version",
            "cipher",
        )
        self._commands = counter("commands", "Commands answered, by our reply.", "listener", "verb", "code")
        self._logins = counter("logins", "Log-ins answered.", "listener", "mechanism", "outcome")
        self._messages = counter("messages", "Messages judged.", "listener", "disposition", "rule")
        self._monitored = counter(
            "monitored_messages",
            "Messages that a rule would have refused, if the rules were not a monitor.",
            "intended",
            "rule",
        )
        self._refusals = counter(
            "early_refusals",
            "Senders and recipients refused by a rule before the message.",
            "listener",
            "stage",
            "disposition",
            "rule",
        )
        self._shadow = counter(
            "shadow_messages",
            "Messages, senders and recipients with which the shadow rules would have done something else.",
            "live_rule",
            "shadow_rule",
            "live_disposition",
            "shadow_disposition",
        )
        self._seconds = self.histogram(
            "message_duration_seconds", "From the end of the data to our reply.", _MESSAGE_SECONDS, "listener"
        )
        self._size = self.histogram("message_size_bytes", "Messages' sizes.", _BYTES)
        self._bytes = counter(
            "message_bytes",
            "Bytes of messages: judged (in), and taken by the next mail server (out); both as received.",
            "listener",
            "direction",
        )
        self._in_flight = self.gauge("bytes_in_flight", "Message bytes held now.")

    def _declare_evidence(self) -> None:
        counter = self.counter
        self._results = counter(
            "auth_results", "Results of the checks, with their cause.", "method", "status", "problem"
        )
        self._dkim = counter(
            "dkim_signatures",
            "DKIM signatures of messages, by how they were made.",
            "algorithm",
            "key_bits",
            "canonicalization",
            "status",
        )
        self._policies = counter(
            "dmarc_policy",
            "Messages under DMARC: the result, what the record asks for, what applies, where it was found.",
            "status",
            "requested",
            "applied",
            "discovery",
        )
        self._suffixes = counter(
            "dmarc_tree_walks",
            "Organizational domains found by tree walk: would the public suffix list say another?",
            "suffix_list",
            known=(("agrees",), ("differs",)),
        )
        self._own = counter(
            "own_domain_messages",
            "Messages from outside that name one of our own domains as their author's.",
            "domain",
            "dmarc",
            "disposition",
        )
        self._seals = counter("arc_seals", "ARC seals of ours, by what they say of the chain before.", "cv")
        self._signatures = counter("signatures", "DKIM signatures of ours.", "domain", "algorithm")
        self._unsigned = counter(
            "unsigned_messages", "Own messages handed on without one, and why.", "reason"
        )

    def _declare_surroundings(self) -> None:
        counter = self.counter
        self._queries = counter("dns_queries", "DNS questions of the checks.", "type", "outcome", "cached")
        self._query_seconds = self.histogram(
            "dns_query_duration_seconds", "DNS questions put to a server.", _QUERY_SECONDS, "type"
        )
        self._replies = counter("downstream_replies", "Replies of the mail server.", "command", "code")
        self._reply_seconds = self.histogram(
            "downstream_duration_seconds", "Until the mail server replied.", _REPLY_SECONDS, "command"
        )
        self._failures = counter("downstream_failures", "Times the mail server could not be used.", "kind")
        self._rows = counter("store_rows", "Rows for the store, by what became of them.", "table", "outcome")
        self._rows_waiting = self.gauge("store_rows_waiting", "Rows that wait to be written to the store.")
        self._store_failures = counter("store_failures", "Times the store could not be written.")
        for tally in (self._rows_waiting, self._store_failures):
            tally.values.clear()  # not there where there is no store

    def _declare_outbound(self) -> None:
        counter = self.counter
        self._relayed = counter(
            "relay_deliveries", "Answers to messages that leave, and to their refused recipients.", "outcome"
        )
        self._remote_sessions = counter(
            "relay_sessions",
            "Sessions with remote mail servers: what was demanded, what there was, what was wrong.",
            "demand",
            "tls",
            "problem",
            "failure",
        )
        self._decisions = counter(
            "tls_decisions",
            "Decisions on a domain's outbound TLS: their level, MTA-STS mode, and whether they were kept.",
            "level",
            "sts",
            "cached",
        )
        self._doubts = counter(
            "tls_decision_problems", "What was wrong when a decision was derived, by method.", "problem"
        )
        self._downgrades = counter(
            "tls_downgrades",
            "Outbound mail less protected than was asked for.",
            "kind",
            known=((kind,) for kind in Downgrade),
        )
        self._tls_answers = counter(
            "tls_policy_answers", "Postfix's questions about outbound TLS, by our answer.", "level", "outcome"
        )
        self._tls_reports = counter(
            "tlsrpt_datagrams", "Postfix's reports of TLS sessions, by what became of them.", "outcome"
        )
        self._sts_lookups = counter(
            "mta_sts_lookups", "Look-ups of a domain's MTA-STS policy, by how they were answered.", "outcome"
        )
        self._sts_policies = counter(
            "mta_sts_policies", "MTA-STS policies fetched, renewed, lost, and why.", "change", "problem"
        )
        self._sts_known = self.gauge(
            "mta_sts_known_policies", "MTA-STS policies in memory.", "mode", merge=Merge.MAX
        )
        self._sts_end = self.gauge(
            "mta_sts_nearest_expiry_timestamp_seconds",
            "When the first enforced MTA-STS policy runs out.",
            merge=Merge.MIN,
        )
        self._sts_overdue = self.gauge(
            "mta_sts_overdue_policies",
            "Enforced MTA-STS policies that should long have been renewed: under a quarter of their life is left.",
            merge=Merge.MAX,
        )

    def _declare_self(self) -> None:
        counter, gauge = self.counter, self.gauge
        self._faults = counter("internal_errors", "Bugs that cost a message a 451.")
        self._tracebacks = counter("log_tracebacks", "Bugs that left a traceback in the log.")
        self._lines = counter("log_events", "Lines of the log.", "level")
        self._reloads = counter(
            "config_reload",
            "Reloads of config, rules and certificates, by each process.",
            "outcome",
            known=(("ok",), ("refused",)),
        )
        self._reload_ok = gauge(
            "config_last_reload_successful",
            "0: the files were refused, and what was in force before is so still.",
            merge=Merge.MIN,
        )
        self._reload_at = gauge(
            "config_last_reload_success_timestamp_seconds",
            "Since when the config of the process that reads it least often is in force.",
            merge=Merge.MIN,
        )
        self._ready = gauge(
            "ready",
            "1: in order, as /readyz has it; 0: in at least one process it is not.",
            "check",
            merge=Merge.MIN,
        )
        self._workers = gauge("workers", "Processes that do the work.")
        self._workers_wanted = gauge(
            "workers_configured", "How many there should be, by the config.", merge=Merge.MAX
        )
        self._workers_lost = counter("worker_losses", "Processes that ended unasked, and were begun again.")
        self._build = gauge(
            "build_info", "1; its labels say what runs here.", "version", "python", merge=Merge.MAX
        )
        self._lag = self.histogram(
            "event_loop_lag_seconds",
            "How late the event loop was, asked twice a second.",
            _LAG_SECONDS,
            "worker",
        )
        self._certificates = gauge(
            "certificate_not_after_timestamp_seconds",
            "Until when the certificate in use is valid, with its chain.",
            "listener",
            merge=Merge.MIN,
        )
        self._keys = gauge(
            "dkim_key_due_timestamp_seconds",
            "When a managed DKIM key's next step is due.",
            "domain",
            "selector",
            "state",
            merge=Merge.MAX,
        )
        self._cpu = counter("process_cpu_seconds", "User and system time of all processes.", prefix="")
        self._resident = gauge(
            "process_resident_memory_bytes",
            "Memory of all processes; what they share counts for each.",
            prefix="",
        )
        self._virtual = gauge("process_virtual_memory_bytes", "Address space of all processes.", prefix="")
        self._open_fds = gauge(
            "process_open_fds", "Descriptors of the process that has most.", prefix="", merge=Merge.MAX
        )
        self._max_fds = gauge(
            "process_max_fds", "Descriptors that a process may have.", prefix="", merge=Merge.MIN
        )
        self._started = gauge(
            "process_start_time_seconds", "When the oldest process began.", prefix="", merge=Merge.MIN
        )

    # What every message reports waits until there is enough of it, or somebody asks: counted one after the other it costs half.

    def _later(self, count: Callable[..., None], *what: Any) -> None:
        self._waiting.append((count, what))
        if len(self._waiting) >= TOGETHER:
            self._count_up()

    def _count_up(self) -> None:
        waiting = self._waiting
        with self._lock:  # nobody else takes any out meanwhile
            while waiting:
                count, what = waiting.popleft()
                count(*what)

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

    def tls_started(self, listener: Listener, tls: Tls) -> None:
        """A client's TLS handshake is done; version and cipher are OpenSSL's names."""
        with self._lock:
            self._tls.add(("in", listener, tls.version, tls.cipher))

    def command(self, listener: Listener, verb: str, code: int) -> None:
        """A command was answered. `verb` is one of those that we know, or `other`; never a client's own word."""
        self._later(self._count_command, listener, verb, code)

    def _count_command(self, listener: Listener, verb: str, code: int) -> None:
        self._commands.add((listener, verb, _CODES.get(code, OTHER)))

    def login(self, listener: Listener, mechanism: str, outcome: str) -> None:
        """A log-in was answered. `mechanism` is one of those that are relayed, or `other`; never a client's own word."""
        with self._lock:
            self._logins.add((listener, mechanism, outcome))

    def message(self, listener: Listener, answered: Answered) -> None:
        """A message was answered at the end of its data; `judged` counts what became of it."""
        self._later(self._count_message, listener, answered, time.time())

    def _count_message(self, listener: Listener, answered: Answered, at: float) -> None:
        self._seconds.observe(answered.seconds, (listener,), trace_id=answered.id, at=at)
        self._size.observe(answered.size)
        self._bytes.add((listener, "in"), answered.size)
        if answered.is_handed_on:
            self._bytes.add((listener, "out"), answered.size)

    def downstream_reply(self, command: str, code: int, seconds: float) -> None:
        """The mail server replied."""
        self._later(self._count_reply, command, code, seconds)

    def _count_reply(self, command: str, code: int, seconds: float) -> None:
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

    def relay_session(
        self, demand: Demand, tls: Tls | None, problem: TlsProblem | None, failure: str | None
    ) -> None:
        """A session with a remote mail server was opened, or could not be; the words are our own enums' and OpenSSL's."""
        version = "none" if tls is None else tls.version
        with self._lock:
            self._remote_sessions.add((demand, version, problem or NONE, failure or NONE))
            if tls is not None:
                self._tls.add(("out", Listener.OUTBOUND, tls.version, tls.cipher))
            if problem is TlsProblem.TLS_INJECTION:
                self._downgrades.add((Downgrade.INJECTION,))
            elif demand is not Demand.NONE and problem in _LACKS:
                self._downgrades.add((_LACKS[problem],))

    def bytes_in_flight_from(self, read: Callable[[], float]) -> None:
        """Take a door's bytes in flight from their owner, at each scrape."""
        self._bytes_in_flight.append(read)
        if len(self._bytes_in_flight) == 1:
            self.ask_at_scrape(self._ask_bytes)

    def _ask_bytes(self) -> None:
        with self._lock:
            self._in_flight.set(sum(read() for read in self._bytes_in_flight))

    # What the engine and the resolver report

    def judged(self, verdict: Verdict, envelope: Envelope) -> None:
        """A message was judged."""
        self._later(self._count_judged, verdict, envelope.session.listener, envelope.id, time.time())

    def _count_judged(self, verdict: Verdict, listener: Listener, identifier: str, at: float) -> None:
        evidence = verdict.evidence
        self._messages.add_message((listener, verdict.disposition, verdict.rule), identifier, at=at)
        if verdict.intended is not None and verdict.intended is not verdict.disposition:
            self._monitored.add((verdict.intended, verdict.rule))
        if verdict.shadow is not None:
            self._differs(verdict, verdict.shadow)
        for labels in auth_results(evidence):
            self._results.add(labels)
        for signature in evidence.dkim:
            self._dkim.add(dkim_form(signature))
        self._judged_dmarc(verdict)
        self._signed(verdict)
        if verdict.rule == Problem.INTERNAL:
            self._faults.add()

    def _differs(self, verdict: Verdict, shadow: Shadow) -> None:
        disposition = shadow.disposition
        # Where only some recipients would have been refused, the rule that would have done it says more than the message's.
        same = disposition is verdict.disposition
        rule = shadow.recipients_rule if same and shadow.recipients_rule else shadow.rule
        self._shadow.add((verdict.rule, rule, verdict.disposition, disposition))

    def _judged_dmarc(self, verdict: Verdict) -> None:
        dmarc = verdict.evidence.dmarc
        if dmarc is None:
            return
        self._policies.add(dmarc_policy(dmarc))
        if dmarc.organizational_domain is not None and dmarc.suffix_list_differs is not None:
            self._suffixes.add(("differs" if dmarc.suffix_list_differs else "agrees",))
        if dmarc.author_domain is not None:
            own = self.own_domains.find(dmarc.author_domain)
            if own is not None:
                self._own.add((own, dmarc.status, verdict.disposition))

    def _signed(self, verdict: Verdict) -> None:
        if verdict.sealed is not None:
            self._seals.add((verdict.sealed,))
        signing = verdict.signing
        if signing is None:
            return
        for made in signing.made:
            self._signatures.add((made.domain, made.algorithm))
        if signing.reason is not None:
            self._unsigned.add((signing.reason,))

    def refused_early(self, stage: Stage, envelope: Envelope, verdict: Verdict) -> None:
        """A rule refused a sender or a recipient."""
        listener = envelope.session.listener
        with self._lock:
            self._refusals.add((listener, stage, verdict.disposition, verdict.rule))
            if verdict.shadow is not None:
                self._differs(verdict, verdict.shadow)

    def dns(self, observation: DnsObservation) -> None:
        """A check asked the DNS."""
        self._later(self._count_query, observation)

    def _count_query(self, observation: DnsObservation) -> None:
        record_type = observation.record_type
        self._queries.add((record_type, observation.outcome, "yes" if observation.cached else "no"))
        if not observation.cached:
            self._query_seconds.observe(observation.seconds, (record_type,))

    # Outbound TLS

    def decided(self, decision: Decision, *, was_kept: bool) -> None:
        """Somebody asked what holds for a domain."""
        with self._lock:
            self._decisions.add((decision.level, decision.sts.mode or NONE, "yes" if was_kept else "no"))
            if not was_kept:
                for problem in _problems(decision):
                    self._doubts.add((problem,))

    def sts_looked_up(self, outcome: str) -> None:
        """A domain's MTA-STS policy was asked for; `outcome` is a word of the cache's own enum."""
        with self._lock:
            self._sts_lookups.add((outcome,))

    def sts_policy(self, change: Change, problem: str | None) -> None:
        """An MTA-STS policy came, went or changed; both are words of `tlspolicy`'s own enums."""
        with self._lock:
            self._sts_policies.add((change, problem or NONE))
            if change in _CHANGES:
                self._downgrades.add((_CHANGES[change],))

    def sts_policies_from(self, read: Callable[[], PolicySummary]) -> None:
        """Take from their owner what is known of the MTA-STS policies in memory, at each scrape."""

        def ask() -> None:
            summary = read()
            with self._lock:
                self._sts_known.values = {(mode,): count for mode, count in summary.by_mode.items()}
                self._sts_overdue.set(summary.overdue)
                self._sts_end.values.clear()
                if summary.nearest_end is not None:
                    self._sts_end.set(summary.nearest_end.timestamp())

        self.ask_at_scrape(ask)

    # The store, files, and ourselves

    def store_from(self, writer: StoreWriter) -> None:
        """Take the store's counts from their owner, at each scrape: they are the whole truth of this process."""

        def ask() -> None:
            counts, ended = writer.counts, writer.ended
            with self._lock:
                self._rows.values = {(table, "dropped"): 0 for table, _ in ended}
                for labels, count in ended.items():
                    self._rows.set(count, labels)
                self._rows_waiting.set(counts.waiting)
                self._store_failures.set(counts.failures)

        self.ask_at_scrape(ask)

    def certificate(self, listener: str, end: "datetime") -> None:
        """A listener took this certificate into use; `end` is the end of its validity."""
        with self._lock:
            self._certificates.set(end.timestamp(), (listener,))

    def keys_from(self, read: Callable[[], tuple[KeyDue, ...]]) -> None:
        """Take from their owner when managed keys are due, at each scrape."""

        def ask() -> None:
            due: dict[Labels, float] = {
                (one.domain, one.selector, one.state): one.due.timestamp() for one in read()
            }
            with self._lock:
                self._keys.values = due

        self.ask_at_scrape(ask)

    def readiness_from(self, checks: Iterable[Callable[[], ReadyCheck]]) -> None:
        """Ask at each scrape whether what we depend on is in order."""
        asked = tuple(checks)

        def ask() -> None:
            found = [check() for check in asked]
            with self._lock:
                self._ready.values = {(one.name,): int(one.ok) for one in found}

        self.ask_at_scrape(ask)

    def reloaded(self, *, ok: bool) -> None:
        """SIGHUP was obeyed, or the new files were refused and the old ones stand."""
        with self._lock:
            self._reloads.add(("ok" if ok else "refused",))
        self.reload_state(ok=ok, at=time.time())

    def reload_state(self, *, ok: bool, at: float) -> None:
        """How the last reload went, and when: seconds since the epoch."""
        with self._lock:
            self._reload_ok.set(int(ok))
            if ok:
                self._reload_at.set(at)

    def workers_configured(self, count: int) -> None:
        """So many processes are to do the work."""
        with self._lock:
            self._workers_wanted.set(count)

    def loop_was_late(self, seconds: float) -> None:
        """The event loop was asked for a moment, and had one so long after it."""
        with self._lock:
            self._lag.observe(seconds, (self._worker,))

    def logged(self, level: str, is_bug: bool) -> None:  # noqa: FBT001 - a callback's second word
        """A line of the log was written; `is_bug`: with a traceback."""
        with self._lock:
            self._lines.add((level,))
            if is_bug:
                self._tracebacks.add()

    def count_process(self) -> None:
        """Let what this process takes of the machine be told, too."""
        self.ask_at_scrape(self._ask_process)

    def supervised_by(self, ledger: Ledger) -> None:
        """Take from the supervisor what only it knows: workers lost, and files refused before any worker saw them."""

        def ask() -> None:
            told = ledger.read()
            with self._lock:
                self._workers_lost.set(told.losses)
                self._reloads.set(told.refusals, ("refused",))
                self._reload_ok.set(int(not told.is_refused))

        self.ask_at_scrape(ask)

    def _ask_process(self) -> None:
        figures = read_process()
        if figures is None:
            return
        with self._lock:
            self._cpu.set(figures.cpu_s)
            self._resident.set(figures.resident_bytes)
            self._virtual.set(figures.virtual_bytes)
            self._open_fds.set(figures.open_fds)
            self._max_fds.set(figures.max_fds)
            self._started.set(figures.started)


def _problems(decision: Decision) -> set[str]:
    """What was wrong with route, MTA-STS, DANE and hosts; each once."""
    found = {decision.sts.problem, decision.dane_problem}
    if not isinstance(decision.route, Route):
        found.add(decision.route.problem)
    for host in decision.hosts:
        found |= {host.problem, host.note}
    return {problem for problem in found if problem is not None}
