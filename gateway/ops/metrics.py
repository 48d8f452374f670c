"""What Prometheus may know: counts, times and sizes, never whose mail it was.

Label values are enums of ours or the operator's own names (listener, rule, own domain), so that no sender can make the number
of time series grow. docs/metrics.md lists every metric; a test compares.
"""

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from gateway import __version__
from gateway.auth.results import DkimResult, DmarcResult, Problem
from gateway.dns.stub import DnsObservation
from gateway.mail.envelope import Envelope, Listener, Tls
from gateway.ops.expiry import KeyDue
from gateway.ops.instruments import Downgrade, Instruments
from gateway.ops.labels import NONE, OwnDomains, auth_results, dkim_form, dmarc_policy
from gateway.ops.process import read_process
from gateway.ops.tally import OTHER, Labels
from gateway.ops.workers import Ledger
from gateway.tlspolicy.model import Decision, Demand, Route, TlsProblem
from gateway.tlspolicy.mta_sts.events import Change
from gateway.verdict import Answered, Disposition, Shadow, Stage, Verdict

if TYPE_CHECKING:
    from datetime import datetime

_CODES: Final = {code: str(code) for code in range(200, 600)}  # RFC 5321 §4.2.1


_CHANGES: Final = {
    Change.WEAKENED: Downgrade.POLICY_WEAKENED,
    Change.EXPIRED: Downgrade.POLICY_EXPIRED,
}
_LACKS: Final = {
    TlsProblem.TLS_NOT_OFFERED: Downgrade.TLS_MISSING,
    TlsProblem.TLS_REFUSED: Downgrade.TLS_MISSING,
}

_INTERNAL: Final = Problem.INTERNAL

TOGETHER: Final = 64
"""So many commands, replies, messages, verdicts or questions wait to be counted: those of some twenty messages."""

_Seen = TypeVar("_Seen")


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
    """The MTA-STS policies that are known; see `gateway.tlspolicy.mta_sts.events.Summary`."""

    @property
    def by_mode(self) -> Mapping[str, int]: ...  # noqa: D102 - the class says it; likewise below
    @property
    def nearest_end(self) -> "datetime | None": ...  # noqa: D102
    @property
    def overdue(self) -> int: ...  # noqa: D102


class Metrics(Instruments):
    """All metrics of one gateway, in a registry of their own. Every method is cheap, none raises, any thread may call.

    Args:
        workers: how many processes they are of: 1, or 0 for a sum that is to `absorb` others' first.
        worker: which process this is, for what is told of each by itself.

    Attributes:
        own_domains: the operator's; may be replaced at any time.
    """

    def __init__(self, *, workers: int = 1, worker: str = "0") -> None:
        super().__init__()
        self._seen_commands: Final[list[tuple[Listener, str, int]]] = []
        self._seen_replies: Final[list[tuple[str, int, float]]] = []
        self._seen_messages: Final[list[tuple[Listener, Answered, float]]] = []
        self._seen_judged: Final[list[tuple[Verdict, Listener, str, float]]] = []
        self._seen_queries: Final[list[DnsObservation]] = []
        self.ask_at_scrape(self._count_up)
        self.own_domains = OwnDomains()
        self._worker: Final = worker
        self._bytes_in_flight: list[Callable[[], float]] = []
        self._workers.set(workers)
        if workers:
            self._build.set(1, (__version__, platform.python_version()))
            self.reload_state(ok=True, at=time.time())
            self.count_process()

    # What every message reports waits until there is enough of it, or somebody asks: counted one after the other it costs half.

    def _see(self, seen: list[_Seen], what: _Seen) -> None:
        seen.append(what)
        if len(seen) >= TOGETHER:
            self._count_up()

    def _count_up(self) -> None:
        with self._lock:  # nobody else takes any out meanwhile
            self._count_commands(_take(self._seen_commands))
            self._count_replies(_take(self._seen_replies))
            self._count_messages(_take(self._seen_messages))
            self._count_judged(_take(self._seen_judged))
            self._count_queries(_take(self._seen_queries))

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
        self._see(self._seen_commands, (listener, verb, code))

    def _count_commands(self, seen: Sequence[tuple[Listener, str, int]]) -> None:
        self._commands.add_each([(listener, verb, _CODES.get(code, OTHER)) for listener, verb, code in seen])

    def login(self, listener: Listener, mechanism: str, outcome: str) -> None:
        """A log-in was answered. `mechanism` is one of those that are relayed, or `other`; never a client's own word."""
        with self._lock:
            self._logins.add((listener, mechanism, outcome))

    def message(self, listener: Listener, answered: Answered) -> None:
        """A message was answered at the end of its data; `judged` counts what became of it."""
        self._see(self._seen_messages, (listener, answered, time.time()))

    def _count_messages(self, seen: Sequence[tuple[Listener, Answered, float]]) -> None:
        self._size.observe_each([answered.size for _, answered, _ in seen])
        for listener in {listener for listener, *_ in seen}:
            its = [(answered, at) for whose, answered, at in seen if whose is listener]
            self._seconds.observe_messages(
                [(answered.seconds, answered.id, at) for answered, at in its], (listener,)
            )
            self._bytes.add((listener, "in"), sum([answered.size for answered, _ in its]))
            if handed_on := [answered.size for answered, _ in its if answered.is_handed_on]:
                self._bytes.add((listener, "out"), sum(handed_on))

    def downstream_reply(self, command: str, code: int, seconds: float) -> None:
        """The mail server replied."""
        self._see(self._seen_replies, (command, code, seconds))

    def _count_replies(self, seen: Sequence[tuple[str, int, float]]) -> None:
        for command in {command for command, *_ in seen}:
            self._reply_seconds.observe_each(
                [seconds for whose, _, seconds in seen if whose == command], (command,)
            )
        self._replies.add_each([(command, _CODES.get(code, OTHER)) for command, code, _ in seen])

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
        self._see(self._seen_judged, (verdict, envelope.session.listener, envelope.id, time.time()))

    def _count_judged(self, seen: Sequence[tuple[Verdict, Listener, str, float]]) -> None:
        messages: list[Labels] = []
        latest: dict[Labels, tuple[str, float]] = {}
        results: list[Labels] = []
        dkim: list[DkimResult] = []
        dmarc: list[DmarcResult] = []
        for verdict, listener, identifier, at in seen:
            labels = listener, verdict.disposition, verdict.rule
            messages.append(labels)
            latest[labels] = identifier, at
            results += auth_results(verdict.evidence)
            if verdict.intended is not None and verdict.intended is not verdict.disposition:
                self._monitored.add((verdict.intended, verdict.rule))
            if verdict.shadow is not None:
                self._differs(verdict, verdict.shadow)
            if verdict.rule == _INTERNAL:
                self._faults.add()
            if verdict.sealed is not None or verdict.signing is not None:
                self._signed(verdict)
            dkim += verdict.evidence.dkim
            if (found := verdict.evidence.dmarc) is not None:
                dmarc.append(found)
                self._count_dmarc(found, verdict.disposition)
        self._messages.add_messages(messages, latest)
        self._results.add_each(results)
        self._dkim.add_each(map(dkim_form, dkim))
        self._policies.add_each(map(dmarc_policy, dmarc))

    def _differs(self, verdict: Verdict, shadow: Shadow) -> None:
        disposition = shadow.disposition
        # Where only some recipients would have been refused, the rule that would have done it says more than the message's.
        same = disposition is verdict.disposition
        rule = shadow.recipients_rule if same and shadow.recipients_rule else shadow.rule
        self._shadow.add((verdict.rule, rule, verdict.disposition, disposition))

    def _count_dmarc(self, dmarc: DmarcResult, disposition: Disposition) -> None:
        if dmarc.organizational_domain is not None and dmarc.suffix_list_differs is not None:
            self._suffixes.add(("differs" if dmarc.suffix_list_differs else "agrees",))
        if dmarc.author_domain is not None:
            own = self.own_domains.find(dmarc.author_domain)
            if own is not None:
                self._own.add((own, dmarc.status, disposition))

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
        self._see(self._seen_queries, observation)

    def _count_queries(self, seen: Sequence[DnsObservation]) -> None:
        self._queries.add_each(
            [(each.record_type, each.outcome, "yes" if each.cached else "no") for each in seen]
        )
        for each in seen:
            if not each.cached:
                self._query_seconds.observe(each.seconds, (each.record_type,))

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


def _take(seen: list[_Seen]) -> list[_Seen]:
    """All of it. What another thread adds meanwhile stays for the next time."""
    taken = seen[:]
    del seen[: len(taken)]
    return taken
