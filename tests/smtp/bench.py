"""A driver without sockets for `ProxySession`: carries out its effects at once, in order."""

import io
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import NamedTuple, assert_never

from gateway.mail.envelope import Envelope, IpAddress, Tls
from gateway.mail.message import Buffer, Message
from gateway.mail.reply import Reply, parse_reply
from gateway.smtp.client import DownstreamFailure, SmtpClient, Step
from gateway.smtp.command import Verb
from gateway.smtp.dialog import Dialog, LoginEnd
from gateway.smtp.effects import (
    Ask,
    Close,
    Deliver,
    Destination,
    Effect,
    Lease,
    Pause,
    Release,
    Screen,
    Seek,
    Send,
    SessionEnd,
    StartTls,
    Tell,
)
from gateway.smtp.ehlo import Capabilities, parse_capabilities
from gateway.smtp.guesses import Guesses
from gateway.smtp.proxy import ProxySession
from gateway.smtp.relay import LocalDomains
from gateway.smtp.settings import ProxySettings
from gateway.smtp.transaction import Spool, Transaction
from gateway.smtp.transfer import Transfer
from gateway.verdict import Disposition, Stage, Verdict
from tests.smtp.downstream import CLOSE, FakeConnection, FakeDownstream

ACCEPT = Verdict(disposition=Disposition.ACCEPT, rule="test")
NO_SERVER = Reply.of(451, "4.4.1", "no server answers")
NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


def settings(**changes: object) -> ProxySettings:
    values: dict[str, object] = {
        "hostname": "mx.example.net",
        "local_domains": LocalDomains(("example.net", ".sub.example.net")),
        "max_message_bytes": 10_000,
        "max_recipients": 5,
        "max_errors": 20,
    }
    return ProxySettings(**(values | changes))  # type: ignore[arg-type]  # a test names what it changes


class MemorySpool:
    def __init__(self, room: int) -> None:
        self._room = room
        self._content = io.BytesIO()
        self.is_discarded = False

    def write(self, block: bytes) -> bool:
        self._content.write(block)
        return self._content.tell() <= self._room

    def finish(self) -> Buffer:
        return self._content.getvalue()

    def discard(self) -> None:
        self.is_discarded = True


@dataclass(slots=True)
class Pooled:
    client: SmtpClient
    connection: FakeConnection


class Lost(NamedTuple):
    """Downstream has closed this connection; the driver has yet to hear of it."""

    held: Pooled


@dataclass(slots=True)
class Bench:
    """One session on the bench.

    Attributes:
        guesses: makes it a submission door.
        paused_s: the pauses that were asked for; each is over at once, unless `is_pausing`.
        idle: connections to the fake downstream that may be reused, as the pool would.
        dead: the connection that is held, or idle, is lost at the next word.
    """

    settings: ProxySettings = field(default_factory=settings)
    downstream: FakeDownstream = field(default_factory=FakeDownstream)
    peer: IpAddress = field(default_factory=lambda: ip_address("192.0.2.1"))
    verdict: Verdict = ACCEPT
    screens: dict[Stage, Verdict] = field(default_factory=dict)
    room: int = 1_000_000
    is_screening: bool = True
    starttls: bool = False
    xclient: bool = False
    guesses: Guesses | None = None
    tls: Tls | None = None
    is_pausing: bool = False
    known: Capabilities | None = None
    refused: Reply | None = None
    is_downstream_down: bool = False
    idle: list[Pooled] = field(default_factory=list)
    idle_is_dead: bool = False

    output: bytearray = field(default_factory=bytearray)
    end: SessionEnd | None = None
    judged: list[tuple[Envelope, Message]] = field(default_factory=list)
    screened: list[tuple[Stage, Envelope]] = field(default_factory=list)
    answered: list[tuple[str, int]] = field(default_factory=list)
    refused_senders: list[tuple[str, int]] = field(default_factory=list)
    dropped: list[tuple[str, list[int]]] = field(default_factory=list)
    failures: list[DownstreamFailure] = field(default_factory=list)
    spools: list[MemorySpool] = field(default_factory=list)
    commands: list[tuple[Verb, int]] = field(default_factory=list)
    logins: list[LoginEnd] = field(default_factory=list)
    paused_s: list[float] = field(default_factory=list)
    told: list[bytes] = field(default_factory=list)
    is_tls_pending: bool = False
    refusals: list[int] = field(default_factory=list)
    # Of the relay: the servers of each domain in their order, and what is said where none is left.
    world: dict[str, list[FakeDownstream]] = field(default_factory=dict)
    unroutable: Reply = NO_SERVER
    sought: list[tuple[str, bool]] = field(default_factory=list)
    make_transfer: Callable[[Dialog], Transfer] | None = None
    held: Pooled | None = None
    core: ProxySession = field(init=False)
    _servers: list[FakeDownstream] = field(default_factory=list)
    _effects: deque[Effect | Lost] = field(default_factory=deque)
    _is_performing: bool = False

    def __post_init__(self) -> None:
        self.core = ProxySession(
            self.settings,
            self,
            peer=self.peer,
            identifier="sess",
            make_transfer=self.make_transfer or (lambda dialog: Transfer(dialog, self.guesses)),
        )
        self.perform(self.core.connected(self.tls))

    # what happens

    def send(self, data: bytes, *, cut: int = 0) -> bytes:
        """The client sends; what it hears."""
        pieces = [data[at : at + cut] for at in range(0, len(data), cut)] if cut else [data]
        for piece in pieces:
            self.perform(self.core.received(piece))
        return self.take_output()

    def line(self, text: str) -> bytes:
        return self.send(text.encode() + b"\r\n")

    def take_output(self) -> bytes:
        output = bytes(self.output)
        self.output.clear()
        return output

    def finish_tls(self) -> None:
        self.is_tls_pending = False
        self.perform(self.core.tls_started(Tls(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")))

    def lose_downstream(self) -> None:
        self.perform(self.core.downstream_failed(DownstreamFailure.LOST, "closed"))

    # the driver

    def perform(self, effects: list[Effect]) -> None:
        self._effects += effects
        if self._is_performing:
            return
        self._is_performing = True
        while self._effects:
            self._one(self._effects.popleft())
        self._is_performing = False

    def _one(self, effect: Effect | Lost) -> None:
        match effect:
            case Lost(held):
                if self.held is held:
                    self.lose_downstream()
            case Send(data):
                assert self.end is None, "nothing is said after Close"
                self.output += data
            case Screen(stage, envelope):
                self.screened.append((stage, envelope))
                self.perform(self.core.screened(self.screens.get(stage)))
            case Ask(envelope, message):
                self.judged.append((envelope, message))
                self.perform(self.core.judged(self.verdict))
            case StartTls():
                self.is_tls_pending = True
            case Pause(seconds):
                self.paused_s.append(seconds)
                if not self.is_pausing:
                    self.perform(self.core.pause_over())
            case Close(end):
                assert self.end is None, "closed once"
                self.end = end
            case _:
                self._one_downstream(effect)

    def _one_downstream(self, effect: Tell | Deliver | Lease | Seek | Release) -> None:
        match effect:
            case Seek(destination, again):
                self._seek(destination, again=again)
            case Tell(data):
                self.told.append(data)
                self._tell(data)
            case Deliver(blocks):
                content = b"".join(blocks)
                self.core.delivered()
                self._tell(content)
            case Lease(fresh):
                self._lease(fresh=fresh)
            case Release(reusable):
                if reusable and self.held and not self.held.client.is_private:
                    self.idle.append(self.held)
                self.held = None
            case _:
                assert_never(effect)

    def _lease(self, *, fresh: bool) -> None:
        if self.idle and not fresh:
            self.held = self.idle.pop()
            self.perform(self.core.leased(self.held.client, reused=True))
            return
        if self.is_downstream_down:
            self.perform(self.core.downstream_failed(DownstreamFailure.CONNECT, "refused"))
            return
        self.idle_is_dead = False
        client = SmtpClient(self.settings.hostname, xclient=self.xclient)
        self.held = Pooled(client, self.downstream.connect())
        self.perform(self.core.leased(client, reused=False))
        self._hear(self.held.connection.greeting())

    def _seek(self, destination: Destination, *, again: bool) -> None:
        """A server of the destination that has been greeted; each is tried once."""
        assert not self.held, "one connection at a time"
        self.sought.append((destination.domain, again))
        if not again:
            self._servers = list(self.world.get(destination.domain, ()))
        if not self._servers:
            self.perform(self.core.unroutable(self.unroutable))
            return
        connection = self._servers.pop(0).connect()
        connection.greeting()
        client = SmtpClient(self.settings.hostname, xclient=False)
        client.adopt(parse_capabilities(parse_reply(connection.receive(b"EHLO x\r\n").splitlines())))
        self.held = Pooled(client, connection)
        self.perform(self.core.leased(client, reused=False))

    def _tell(self, data: bytes) -> None:
        assert self.held, "nothing is said to downstream without a connection"
        if self.idle_is_dead:
            self._hear(CLOSE)
        else:
            self._hear(self.held.connection.receive(data))

    def _hear(self, answer: bytes) -> None:
        """Downstream's answer, cut into bytes: it must not matter."""
        words = answer.removesuffix(CLOSE)
        held = self.held
        for at in range(len(words)):
            if self.held is held:
                self.perform(self.core.downstream_received(words[at : at + 1]))
        if answer.endswith(CLOSE) and held:
            # In its turn: what was asked for before may have given the connection back.
            self._effects.append(Lost(held))
            self.perform([])

    # Host

    def now(self) -> datetime:
        return NOW

    def admit(self, address: IpAddress) -> Reply | None:
        return self.refused

    def capabilities(self) -> Capabilities | None:
        return self.known

    def asks(self, stage: Stage) -> bool:
        return self.is_screening

    def has_room(self, size: int) -> bool:
        return size <= self.room

    def open_spool(self) -> Spool:
        self.spools.append(MemorySpool(self.room))
        return self.spools[-1]

    def starttls_ready(self) -> bool:
        return self.starttls

    def command_answered(self, verb: Verb, code: int) -> None:
        self.commands.append((verb, code))

    def downstream_answered(self, step: Step, code: int) -> None:
        pass

    def downstream_failed(self, failure: DownstreamFailure, detail: str) -> None:
        self.failures.append(failure)

    def login_ended(self, login: LoginEnd) -> None:
        self.logins.append(login)

    def recipient_refused(self, transaction: Transaction, reply: Reply) -> None:
        self.refusals.append(reply.code)

    def sender_refused(self, transaction: Transaction, reply: Reply) -> None:
        self.refused_senders.append((transaction.id, reply.code))

    def transaction_dropped(self, transaction: Transaction) -> None:
        self.dropped.append((transaction.id, [reply.code for _, reply in transaction.asked]))

    def message_answered(self, transaction: Transaction, reply: Reply) -> None:
        self.answered.append((transaction.id, reply.code))
