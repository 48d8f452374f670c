"""Which metrics there are: their names, labels and buckets. docs/metrics.md lists every one; a test compares.

What they count, and when, is in `gateway.ops.metrics`.
"""

from enum import StrEnum
from typing import Final

from gateway.ops.register import Register
from gateway.ops.tally import Merge

_MESSAGE_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_REPLY_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30, 120)
_QUERY_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_LAG_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_BYTES: Final = tuple(1_024 * 4**n for n in range(9))  # 1 KiB to 64 MiB


class Downgrade(StrEnum):
    """How outbound mail came to be, or was to be made, less protected than it had been asked to be."""

    POLICY_WEAKENED = "policy-weakened"  # an enforced MTA-STS policy was replaced by a weaker one
    POLICY_EXPIRED = "policy-expired"  # an enforced one ran out without being renewed
    TLS_MISSING = "tls-missing"  # a server that must have TLS did not offer it, or refused it
    INJECTION = "injection"  # replies were put in before the handshake: somebody is in between


class Instruments(Register):
    """All of one gateway, declared and not yet counted."""

    def __init__(self) -> None:
        super().__init__()
        self._declare_mail()
        self._declare_evidence()
        self._declare_surroundings()
        self._declare_outbound()
        self._declare_self()

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
