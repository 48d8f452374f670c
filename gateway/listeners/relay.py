"""The outbound relay: our own mail servers hand in what is to leave, and hear what the world's mail servers say of it.

The protocol towards our mail server is `gateway.smtp.relay_transfer`, the way to the remote ones `gateway.listeners.remote`. Each delivery
leaves one line in the log, each TLS session one more, and one for the daily report to the domain that it concerns (RFC 8460).
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address, ip_network
from typing import ClassVar, Final, Protocol

import structlog

from gateway.dns.resolver import Resolver
from gateway.listeners.observer import SmtpObserver
from gateway.listeners.remote.pool import Decider, Found, Limits, RemotePool
from gateway.listeners.remote.report import describe_session
from gateway.listeners.remote.search import HostSearch
from gateway.listeners.remote.session import RemoteOptions, SessionFacts
from gateway.listeners.remote.tls import ClientContexts
from gateway.listeners.smtp import SmtpConfig, SmtpServer
from gateway.listeners.smtp_session import MAX_TROUBLE_CHARACTERS, SmtpSession
from gateway.mail.envelope import IpAddress, Listener, Tls
from gateway.mail.reply import Reply
from gateway.smtp import replies
from gateway.smtp.client import DownstreamFailure, Step
from gateway.smtp.dialog import Host
from gateway.smtp.effects import Destination, Seek
from gateway.smtp.proxy import ProxySession
from gateway.smtp.relay import LocalDomains
from gateway.smtp.relay_transfer import RelayTransfer, offered
from gateway.smtp.settings import Networks, ProxySettings, is_within
from gateway.smtp.transaction import Transaction
from gateway.tlspolicy.model import Decision, Demand, TlsProblem, TlsSession
from gateway.trace.model import Attempt
from gateway.verdict import Judge, Stage

MAX_SEARCHES: Final = 10
"""Of one transaction, for its trace."""

_log: Final = structlog.get_logger(__name__)


class Outcome(StrEnum):
    """What became of a delivery; the word is the log event's and the metric label."""

    DELIVERED = "delivered"  # the remote server said 2xx to the message
    DEFERRED = "deferred"  # 4xx: our mail server keeps it
    REFUSED = "refused"  # 5xx: our mail server tells the sender


class RelayObserver(SmtpObserver, Protocol):
    """What happens on the relay besides. None of these may block or raise."""

    def relay_outcome(self, outcome: Outcome) -> None:
        """A message, or one of its recipients, was answered."""
        ...

    def relay_session(
        self, demand: Demand, tls: Tls | None, problem: TlsProblem | None, failure: DownstreamFailure | None
    ) -> None:
        """A session with a remote mail server was opened, or could not be."""
        ...


class RelayConfig(SmtpConfig, Protocol):
    """The `[outbound]` section, as far as it is used here."""

    @property
    def clients(self) -> Networks: ...  # noqa: D102 - the config documents it; likewise below
    @property
    def dsn(self) -> bool: ...  # noqa: D102
    @property
    def ehlo_name(self) -> str | None: ...  # noqa: D102
    @property
    def own_names(self) -> Sequence[str]: ...  # noqa: D102
    @property
    def own_addresses(self) -> Networks: ...  # noqa: D102
    @property
    def source_ipv4(self) -> IPv4Address | None: ...  # noqa: D102
    @property
    def source_ipv6(self) -> IPv6Address | None: ...  # noqa: D102
    @property
    def remote_port(self) -> int: ...  # noqa: D102
    @property
    def max_connections(self) -> int: ...  # noqa: D102
    @property
    def max_connections_per_destination(self) -> int: ...  # noqa: D102
    @property
    def idle_connection_s(self) -> float: ...  # noqa: D102
    @property
    def max_hosts(self) -> int: ...  # noqa: D102
    @property
    def connect_timeout_s(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class WayOut:
    """What the relay finds its way with.

    Attributes:
        decider: who knows where a domain's mail goes, and how.
        resolver: for the addresses of mail servers.
        contexts: for TLS with them.
        report: takes what became of each TLS session; must not raise.
    """

    decider: Decider
    resolver: Resolver
    contexts: ClientContexts
    report: Callable[[TlsSession], None] = lambda _session: None


class RelaySession(SmtpSession):
    """One of our mail servers' connection."""

    def __init__(self, listener: "RelayListener") -> None:
        super().__init__(listener)
        self._relay = listener
        self._search: HostSearch | None = None
        self._destination: Destination | None = None
        self._facts: SessionFacts | None = None
        self._sought_at = 0.0
        self._searches: list[
            HostSearch
        ] = []  # of this transaction; more than one where a domain took no recipient
        self._reused: list[SessionFacts] = []

    def admit(self, address: IpAddress) -> Reply | None:
        """Nobody else may even ask: an open relay is found within the hour."""
        if not is_within(address, self._relay.proxy.trusted_networks):
            _log.warning("relay.stranger", client=str(address), note="not in [outbound] clients")
            return replies.NOT_A_CLIENT
        return super().admit(address)

    # The way to the recipient (RemoteBorrower)

    def _seek(self, effect: Seek) -> None:
        if not effect.again or self._search is None:
            self._destination = effect.destination
            self._search = HostSearch(self._relay.remote, effect.destination)
            if len(self._searches) < MAX_SEARCHES:
                self._searches.append(self._search)
            self._sought_at = time.monotonic()
        self._facts = None
        self._relay.remote.seek(self, self._search)

    def remote_found(self, found: Found) -> None:
        """A connection that can take the message."""
        self._downstream, self._facts = found.connection, found.facts
        if found.reused and len(self._reused) < MAX_SEARCHES:
            self._reused.append(found.facts)
        core = self._core
        if core:
            self._feed(lambda: core.leased(found.connection.client, reused=found.reused))

    def remote_missing(self, reply: Reply) -> None:
        """There is none."""
        self._search = None
        if self._core:
            self._feed(self._core.unroutable, reply)

    # What became of it (Host)

    def downstream_answered(self, step: Step, code: int) -> None:
        """Of other people's servers only the outcome counts, and in the trace how long it took."""
        del step, code
        self._answer_s = time.perf_counter() - self._asked_at

    def downstream_failed(self, failure: DownstreamFailure, detail: str) -> None:
        """Likewise; but the operator may want to know why."""
        self._trouble = f"{failure}: {detail}"[:MAX_TROUBLE_CHARACTERS]
        fields = self._where() | {"failure": failure, "detail": detail[:200]}
        _log.info("relay.connection-failed", session=self._identifier, **fields)

    def recipient_refused(self, transaction: Transaction, reply: Reply) -> None:
        """By the remote server, or because there is no way to it."""
        self._tell(transaction, reply, Step.RCPT)

    def message_answered(self, transaction: Transaction, reply: Reply) -> None:
        """Count it, and tell the operator what became of it."""
        super().message_answered(transaction, reply)
        self._tell(transaction, reply, Step.MESSAGE)

    def _tell(self, transaction: Transaction, reply: Reply, step: Step) -> None:
        outcome = Outcome.DELIVERED if reply.is_positive else Outcome.DEFERRED
        if reply.is_permanent:
            outcome = Outcome.REFUSED
        self._relay.observe_relay.relay_outcome(outcome)
        _log.info(
            f"relay.{outcome}",
            id=transaction.id,
            step=step,
            recipients=len(transaction.recipients),
            code=reply.code,
            enhanced=reply.enhanced,
            text=reply.text[:200],
            ms=round((time.monotonic() - self._sought_at) * 1_000),
            **self._where(),
        )

    def transaction_dropped(self, transaction: Transaction) -> None:
        """A short trace, where a recipient was refused."""
        super().transaction_dropped(transaction)
        self._attempts(transaction)

    def _attempts(self, transaction: Transaction) -> Sequence[Attempt]:
        """What was tried for this transaction; told once."""
        del transaction
        made = [_attempt(facts) for search in self._searches for facts in search.sessions]
        made += [_attempt(facts, reused=True) for facts in self._reused]
        self._searches.clear()
        self._reused.clear()
        return made

    def _where(self) -> dict[str, object]:
        facts, destination = self._facts, self._destination
        fields: dict[str, object] = {"domain": destination.domain if destination else None}
        return fields | _fields(facts) if facts else fields


class RelayListener(SmtpServer):
    """The relay: its ports, its sessions, and all connections to the world.

    Args:
        settings: the config's `[outbound]`.
        hostname: our name in the greeting and in Received.
        way_out: see there.
        judge, observer, asks: see `SmtpServer`.
    """

    role: ClassVar[Listener] = Listener.OUTBOUND

    def __init__(
        self,
        settings: RelayConfig,
        *,
        hostname: str,
        way_out: WayOut,
        judge: Judge,
        observer: RelayObserver,
        asks: Callable[[Stage], bool] = lambda _stage: True,
    ) -> None:
        ehlo_name = settings.ehlo_name or hostname
        self.observe_relay: Final = observer
        self._report = way_out.report
        self.remote: Final = RemotePool(
            way_out.decider,
            way_out.resolver,
            options=RemoteOptions(
                ehlo_name=ehlo_name,
                contexts=way_out.contexts,
                port=settings.remote_port,
                source_ipv4=settings.source_ipv4,
                source_ipv6=settings.source_ipv6,
                connect_timeout_s=settings.connect_timeout_s,
                command_timeout_s=settings.downstream_timeout_s,
            ),
            limits=Limits(
                max_connections=settings.max_connections,
                max_connections_per_destination=settings.max_connections_per_destination,
                idle_connection_s=settings.idle_connection_s,
                max_hosts=settings.max_hosts,
                own_names=frozenset(name.lower() for name in (hostname, ehlo_name, *settings.own_names)),
                own_addresses=(*settings.own_addresses, *_networks(settings)),
            ),
            watcher=self,
            offered=offered(dsn=settings.dsn),
        )
        super().__init__(
            settings,
            proxy=ProxySettings(
                role=self.role,
                hostname=hostname,
                local_domains=LocalDomains(()),
                max_message_bytes=settings.max_message_bytes,
                max_recipients=settings.max_recipients,
                max_errors=settings.max_errors,
                normalize=settings.bare_line_end == "normalize",
                trusted_networks=settings.clients,
            ),
            pool=self.remote,
            judge=judge,
            observer=observer,
            asks=asks,
        )

    def trust(self, contexts: ClientContexts) -> None:
        """Check certificates with these from now on."""
        self.remote.options = replace(self.remote.options, contexts=contexts)

    def make_core(self, host: Host, *, peer: IpAddress, identifier: str) -> ProxySession:
        """The protocol of one session."""
        return ProxySession(self.proxy, host, peer=peer, identifier=identifier, make_transfer=RelayTransfer)

    def make_driver(self) -> SmtpSession:
        """The sockets of one session."""
        return RelaySession(self)

    def session(self, destination: Destination, decision: Decision, facts: SessionFacts) -> None:
        """A session with a remote server was opened, or could not be (`SessionWatcher`)."""
        self.observe_relay.relay_session(facts.policy.demand, facts.tls, facts.problem, facts.failure)
        # A session as it should be is told with its message.
        log = (
            _log.info
            if facts.failure or (facts.problem and facts.policy.demand is not Demand.NONE)
            else _log.debug
        )
        log("relay.session", id=destination.message, domain=destination.domain, **_fields(facts))
        report = describe_session(decision, facts, at=datetime.now(UTC))
        if report:
            self._report(report)


def _networks(settings: RelayConfig) -> Networks:
    """Where we send from is ourselves, too."""
    return tuple(ip_network(address) for address in (settings.source_ipv4, settings.source_ipv6) if address)


def _attempt(facts: SessionFacts, *, reused: bool = False) -> Attempt:
    policy = facts.policy
    return Attempt(
        host=policy.host.name,
        address=facts.address,
        tls=facts.tls,
        demand=policy.demand if policy.is_enforced else f"{policy.demand} (testing)",
        policy=policy.policy_type,
        problem=facts.problem,
        failure=facts.failure,
        detail=facts.detail[:MAX_TROUBLE_CHARACTERS],
        ms=None if reused else round(facts.seconds * 1_000, 1),
    )


def _fields(facts: SessionFacts) -> dict[str, object]:
    policy = facts.policy
    return {
        "host": policy.host.name,
        "address": str(facts.address) if facts.address else None,
        "tls": facts.tls.version if facts.tls else None,
        "cipher": facts.tls.cipher if facts.tls else None,
        "demand": policy.demand if policy.is_enforced else f"{policy.demand} (testing)",
        "policy": policy.policy_type,
        "problem": facts.problem,
        "failure": facts.failure,
        "detail": facts.detail[:200] or None,
        "open_ms": round(facts.seconds * 1_000),
    }
