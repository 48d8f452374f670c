"""A listener with pages over a real store, filled with messages of all kinds, some of them as hostile as they can be."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from gateway.auth.results import (
    DkimResult,
    DkimStatus,
    DmarcPolicy,
    DmarcRecord,
    DmarcResult,
    DmarcStatus,
    Evidence,
    IprevResult,
    IprevStatus,
    SenderDomain,
    SpfIdentity,
    SpfResult,
    SpfStatus,
)
from gateway.dns.budget import DnsQuestion
from gateway.dns.resolver import RecordType
from gateway.dns.stub import Validation
from gateway.dns.zone import ZoneResolver
from gateway.doctor.case import Tools
from gateway.doctor.examine import examine
from gateway.doctor.posture import Posture
from gateway.doctor.report import Report
from gateway.listeners.http import HttpListener, Readiness
from gateway.mail.envelope import Listener
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.ops.config import HostPort, HttpSettings
from gateway.ops.metrics import Metrics
from gateway.pages import Access, Site, Sources
from gateway.pages.examinations import Examinations
from gateway.pages.site import Process
from gateway.store.engine import open_engine, open_to_read
from gateway.store.traces import DEFAULT_RING, TraceRing, Traces
from gateway.trace.model import Addressee, Heard, Trace
from gateway.verdict import Disposition, RuleTried, Stage
from tests.trace.samples import EVERYTHING, SESSION, batches, trace

REFUSED = "0f1e2d3c4b5a.1"
ACCEPTED = "0f1e2d3c4b5a.2"
HOSTILE = "0f1e2d3c4b5a.6"

EVIL = (
    "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{7*7}}\x1b[2J\x07\0\u202eliame\u2066\r\nX: y"
    "e" + "\u0301" * 60 + "א" * 30 + "w" * 600
)

ZONE = """\
$ORIGIN example.net.
@ 3600 IN SOA ns hostmaster 1 7200 900 1209600 300
@ IN MX 10 mx
mx IN A 192.0.2.25
@ IN TXT "v=spf1 mx -all"
_dmarc IN TXT "v=DMARC1; p=none; rua=mailto:dmarc@example.net"
"""

_PASSED = Evidence(
    spf_helo=SpfResult(identity=SpfIdentity.HELO, status=SpfStatus.PASS, domain="mail.example.com"),
    spf=SpfResult(
        identity=SpfIdentity.MAIL_FROM,
        status=SpfStatus.PASS,
        domain="example.com",
        mechanism="ip4:192.0.2.0/24",
        lookups=1,
    ),
    dkim=(
        DkimResult(
            position=0,
            status=DkimStatus.PASS,
            domain="example.com",
            selector="2026a",
            algorithm="rsa-sha256",
            key_bits=2048,
        ),
    ),
    dmarc=DmarcResult(
        status=DmarcStatus.PASS,
        author_domain="example.com",
        organizational_domain="example.com",
        record=DmarcRecord(domain="example.com", policy=DmarcPolicy.REJECT),
        requested=DmarcPolicy.REJECT,
        spf_aligned=True,
        dkim_aligned="example.com",
    ),
    iprev=IprevResult(status=IprevStatus.PASS, client_ip=ip_address("192.0.2.1"), name="mail.example.com"),
    sender_domain=SenderDomain.MX,
)


def accepted(identifier: str = ACCEPTED, **changes: object) -> Trace:
    """A message that passed everything and was taken."""
    return trace(
        identifier,
        **{
            "reply": Reply(250, "2.0.0", ("Ok: queued as 4VxYz12345",)),
            "disposition": Disposition.ACCEPT,
            "intended": Disposition.ACCEPT,
            "rule": "accept",
            "message_id": "<2026.77@example.com>",
            "author": "ann@example.com",
            "queue_id": "4VxYz12345",
            "recipients": (Addressee("bob@example.net", 250),),
            "evidence": _PASSED,
            "questions": (
                DnsQuestion("example.com", RecordType.TXT, "answer", 1.25),
                DnsQuestion("1.2.0.192.in-addr.arpa", RecordType.PTR, "answer", 8.5),
                DnsQuestion("2026a._domainkey.example.com", RecordType.TXT, "answer", 31.0),
                DnsQuestion("_dmarc.example.com", RecordType.TXT, "answer", 12.0),
            ),
            "tried": (RuleTried("dmarc-reject", "dmarc.applied", "reject"),),
            "facts": {"dmarc.applied": "none"},
            "added": ("Received", "Authentication-Results"),
            "removed": ("Authentication-Results",),
            "downstream": Heard(reply=Reply(250, "2.0.0", ("Ok: queued as 4VxYz12345",)), ms=3.5),
            **changes,
        },
    )


def messages(now: datetime) -> list[Trace]:
    """One of each kind, the oldest first."""
    few = [
        trace(
            REFUSED,
            questions=(
                DnsQuestion("example.com", RecordType.TXT, "answer", 1.25),
                DnsQuestion("_dmarc.bank.example", RecordType.TXT, "answer", 20.5),
            ),
        ),
        accepted(),
        replace(
            accepted("0f1e2d3c4b5a.3"),
            disposition=Disposition.QUARANTINE,
            intended=Disposition.QUARANTINE,
            rule="dmarc-quarantine",
        ),
        trace(
            "0f1e2d3c4b5a.4",
            stage=Stage.RCPT,
            disposition=None,
            intended=None,
            rule=None,
            reply=Reply.of(550, "5.1.1", "no such user"),
            size=None,
            author=None,
            message_id=None,
            tried=(),
            facts={},
            judging_ms=None,
            evidence=Evidence(),
            questions=(),
        ),
        replace(
            accepted("0f1e2d3c4b5a.5"),
            reply=Reply.of(451, "4.3.0", "the mail server is not there"),
            downstream=None,
            downstream_failure="refused: nobody listens at 127.0.0.1:10025",
        ),
        hostile(),
        replace(EVERYTHING, id="0f1e2d3c4b5a.7", session=replace(SESSION, listener=Listener.OUTBOUND)),
    ]
    many = [accepted(f"0f1e2d3c4b5a.{100 + n}") for n in range(70)]
    count = len(few) + len(many)
    step = timedelta(minutes=14) / count
    return [
        replace(
            each,
            received=now - step * (count - n) - timedelta(milliseconds=61),
            answered=now - step * (count - n),
        )
        for n, each in enumerate([*many, *few])
    ]


def hostile() -> Trace:
    """Everything that a stranger may choose is chosen by one who means it."""
    return trace(
        HOSTILE,
        session=replace(SESSION, helo=EVIL, client_name=EVIL),
        reply=Reply.of(550, "5.7.1", "refused"),
        message_id=EVIL,
        mail_from=f"{EVIL}@example.com",
        recipients=(Addressee(f"{EVIL}@example.net", 250), Addressee("x@example.net", 550, EVIL)),
        author=f"{EVIL}@bank.example",
        queue_id=EVIL,
        evidence=replace(
            _PASSED,
            spf=SpfResult(
                identity=SpfIdentity.MAIL_FROM,
                status=SpfStatus.FAIL,
                domain=EVIL,
                mechanism=EVIL,
                explanation=EVIL,
            ),
            dkim=(
                DkimResult(position=0, status=DkimStatus.FAIL, domain=EVIL, selector=EVIL, algorithm=EVIL),
            ),
            iprev=IprevResult(status=IprevStatus.PASS, client_ip=SESSION.client_ip, name=EVIL),
        ),
        questions=(
            DnsQuestion(EVIL, RecordType.TXT, "answer", 3.0),
            DnsQuestion(f"_dmarc.{EVIL}", RecordType.TXT, "nxdomain", 1.0),
        ),
        tried=(RuleTried("own-users", "ours", EVIL),),
        facts={"ours": EVIL},
        added=(EVIL,),
        removed=(EVIL,),
        downstream_failure=EVIL,
    )


@dataclass
class Bed:
    """A site that answers, and the store behind it."""

    url: str
    database: str

    def add(self, *more: Trace) -> None:
        """Write these, as the gateway would."""
        write(self.database, more)


def write(database: str, traces: Sequence[Trace]) -> None:
    engine = open_engine(database)
    if traces:
        with engine.begin() as connection:
            TraceRing(DEFAULT_RING).write(connection, batches(traces))
    engine.dispose()


async def _validating() -> Validation:
    return Validation.YES


def doctor(domains: Sequence[str] = ("example.net",)) -> Examinations:
    resolver = ZoneResolver.from_text(ZONE)

    def tools(_domain: str) -> Tools:
        return Tools(resolver=resolver, validation=_validating)

    async def look_at(domain: str) -> Report:
        return await examine(domain, tools(domain))

    return Examinations(look_at, Posture(domains, tools).look)


def processes() -> tuple[Process, ...]:
    checks = (
        Readiness("listeners", True, "inbound 0.0.0.0:25, http 127.0.0.1:9108"),  # noqa: FBT003
        Readiness("downstream", False, "failed: refused"),  # noqa: FBT003
    )
    return (
        Process(name="worker 0", pid=4711, checks=checks),
        Process(name="worker 1", pid=4712, checks=(Readiness("listeners", True, "inbound 0.0.0.0:25"),)),  # noqa: FBT003
    )


@asynccontextmanager
async def serving(
    store: Path | str,
    *,
    token: str | None = None,
    host: str = "127.0.0.1",
    kept: Sequence[Trace] | None = None,
) -> AsyncIterator[Bed]:
    """Pages at a free port, over an empty database or one in this folder; `kept`: the messages, or one of each kind."""
    database = store if isinstance(store, str) else f"sqlite:///{store}/traces.db"
    write(database, messages(datetime.now(UTC)) if kept is None else kept)
    engine = await asyncio.to_thread(open_to_read, database)
    examinations = doctor()
    sources = Sources(traces=Traces(engine), processes=processes, doctor=examinations)
    site = Site(Access(host, token), sources, name="mx.example.net")
    listener = HttpListener(HttpSettings(listen=HostPort("127.0.0.1", 0)), metrics=Metrics(), pages=[site])
    await listener.start()
    try:
        where, port = listener.addresses[0]
        yield Bed(url=f"http://{where}:{port}", database=database)
    finally:
        await listener.close()
        await examinations.close()
        engine.dispose()
