"""However many strangers write, the number of series stays what it is.

`GATEWAY_TEST_MESSAGES` says how many different senders are to come: 10,000 where it is not set; `10000000` takes some ten minutes
for those that are only counted, and a hundredth of them are judged in full.
"""

import os
import re
import zlib
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Final

from gateway.auth.dmarc.suffix import SuffixList
from gateway.auth.results import DkimResult, DkimStatus, DmarcResult, DmarcStatus, Evidence
from gateway.dns.resolver import (
    Answer,
    Missing,
    NotFound,
    Outcome,
    RecordType,
    Temporary,
    Trouble,
    outcome_word,
)
from gateway.dns.stub import DnsObservation
from gateway.engine import Engine
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Envelope, Listener, Recipient, Session, Tls
from gateway.mail.message import Message
from gateway.mail.value import replace
from gateway.ops.labels import OwnDomains
from gateway.ops.metrics import Metrics
from gateway.policy import load_rules
from gateway.tlspolicy.model import Decision, Demand, NoRoute, TlsLevel, TlsProblem
from gateway.tlspolicy.mta_sts.events import Change, LookUp
from gateway.verdict import Answered, Disposition
from tests.ops.evidence import REJECTED, envelope

STRANGERS: Final = int(os.environ.get("GATEWAY_TEST_MESSAGES", "10000"))
ROUND: Final = 2_000
"""After so many strangers every kind has come; what differs from then on is only who they are."""

_SPF: Final = b"v=spf1 include:%s.example ip4:192.0.2.0/24 %s"
_OUTCOMES: Final = (
    lambda name: texts(name, _SPF % (name, b"-all")),
    lambda name: texts(name, b"v=DMARC1; p=reject; rua=mailto:x@" + name),
    lambda name: texts(name, b"v=DMARC1; p=none; " + name, b"v=spf1 ~all"),
    lambda name: texts(name, b"v=DKIM1; k=rsa; p=" + name),
    lambda _: NotFound(Missing.NXDOMAIN, ttl=60, secure=False),
    lambda _: NotFound(Missing.NODATA, ttl=60, secure=False),
    lambda _: Temporary(Trouble.TIMEOUT),
    lambda _: Temporary(Trouble.SERVFAIL),
)


def texts(name: bytes, *records: bytes) -> Answer:
    return Answer(records, ttl=60, secure=False, name=name.decode())


class Strange:
    """A DNS in which every name says something of its own, the same each time; it tells the metrics as the stub does."""

    def __init__(self, metrics: Metrics, kind: int = 0) -> None:
        self.metrics = metrics
        self.kind = kind

    async def query(self, name: str, record_type: RecordType) -> Outcome:
        number = (self.kind + zlib.crc32(re.sub(r"\d", "", name).encode())) % len(_OUTCOMES)
        outcome = _OUTCOMES[number](name.encode())
        if isinstance(outcome, Answer) and record_type is not RecordType.TXT:
            outcome = NotFound(Missing.NODATA, ttl=60, secure=False)
        self.metrics.dns(DnsObservation(record_type, outcome_word(outcome), cached=False, seconds=0.001))
        return outcome


def series(metrics: Metrics) -> int:
    return sum(len(family.samples) for family in metrics.registry.collect())


def a_message(number: int) -> tuple[Envelope, Message]:
    """From somebody who never wrote before, in one of the ways there are."""
    who = f"s{number}.d{number}"
    domain = (f"{who}.example", f"{who}.co.uk", f"{who}.example.net")[number % 3]
    algorithm = ("rsa-sha256", "ed25519-sha256", "rsa-sha1", f"rot{number}")[number % 4]
    form = ("relaxed/relaxed", "simple", f"loose{number}/tight")[number % 3]
    session = Session(
        id=f"s{number}",
        listener=(Listener.INBOUND, Listener.MILTER)[number % 2],
        client_ip=ip_address(0xC0000200 + number),
        helo=f"{who}.helo.example",
        esmtp=True,
    )
    raw = (
        f"DKIM-Signature: v=1; a={algorithm}; c={form}; d={domain}; s=k{number}; h=from:subject;"
        f" bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\n"
        f"From: {number} <u{number}@{domain}>\r\nSubject: {number}\r\n\r\n{number}\r\n"
    )
    given = Envelope(
        id=f"m{number}",
        session=session,
        mail_from=parse_mailbox(f"u{number}@{domain}") if number % 5 else None,
        recipients=(Recipient(mailbox=parse_mailbox(f"r{number}@example.net")),),
    )
    return given, Message(raw.encode())


def counted(metrics: Metrics, numbers: Iterator[int]) -> None:
    """All that the rest of the gateway tells of a stranger, with his words wherever a word of his is at hand."""
    for number in numbers:
        name = f"d{number}.example"
        signature = DkimResult(
            position=0,
            status=DkimStatus.NEUTRAL,
            domain=name,
            selector=name,
            algorithm=name,
            key_bits=number,
            canonicalization=name,
        )
        dmarc = DmarcResult(
            status=DmarcStatus.NONE,
            author_domain=name,
            organizational_domain=name,
            suffix_list_differs=bool(number % 2),
        )
        verdict = replace(REJECTED, evidence=Evidence(dkim=(signature,), dmarc=dmarc))
        metrics.judged(verdict, replace(envelope(helo=name), id=name))
        metrics.message(
            Listener.INBOUND, Answered(name, Disposition.REJECT, number, 0.01, is_handed_on=False)
        )
        metrics.command(Listener.INBOUND, "other", 100_000 + number)
        metrics.downstream_reply("mail", 100_000 + number, 0.01)
        metrics.relay_session(
            Demand.PKIX, Tls(version="TLSv1.3", cipher="X"), TlsProblem.CERTIFICATE_NAME, failure="tls"
        )
        route = NoRoute(domain=name, problem=TlsProblem.NULL_MX, temporary=False)
        metrics.decided(Decision(domain=name, route=route, hosts=(), level=TlsLevel.MAY), was_kept=False)
        metrics.sts_looked_up(LookUp.NONE)
        metrics.sts_policy(Change.FETCH_FAILED, TlsProblem.STS_FETCH_TIMEOUT)


def test_what_is_counted_of_millions_makes_no_series() -> None:
    metrics = Metrics()
    counted(metrics, iter(range(5_000)))  # among them all sizes that keys have
    before = series(metrics)
    counted(metrics, iter(range(5_000, STRANGERS)))
    assert series(metrics) == before
    assert "d9.example" not in metrics.exposition("")[0].decode()


async def test_what_is_judged_of_many_senders_makes_no_series() -> None:
    metrics = Metrics()
    metrics.own_domains = OwnDomains(["example.net"])
    dns = Strange(metrics)
    engine = Engine(
        dns,
        load_rules("default"),
        authserv_id="mx.example.net",
        observe=lambda judged: metrics.judged(judged.verdict, judged.envelope),
    )
    engine.suffix_list = SuffixList()
    last = STRANGERS if STRANGERS <= 20_000 else STRANGERS // 100
    before = 0
    for number in range(last):
        dns.kind = number // 60  # each way to write meets each state of the DNS
        if number == ROUND:
            before = series(metrics)
        await engine.judge(*a_message(number))
    after = series(metrics)
    assert after == before > 100
    shown = metrics.exposition("")[0].decode()
    assert f"d{last - 1}" not in shown
    assert '="rot' not in shown
    assert '="loose' not in shown
    assert (
        'gateway_own_domain_messages_total{disposition="reject",dmarc="fail",domain="example.net"}' in shown
    )
