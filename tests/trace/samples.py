"""Traces made by hand, for the tests of their documents, of the store, the command line and the pages."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from ipaddress import ip_address
from typing import overload

from gateway.auth.arc.sets import ChainValidation
from gateway.auth.results import MadeSignature, Signing
from gateway.dns.budget import DnsQuestion
from gateway.dns.resolver import RecordType
from gateway.mail.envelope import Listener, Session, Tls
from gateway.mail.reply import Reply
from gateway.trace.batch import TOGETHER, Batch
from gateway.trace.document import read_document
from gateway.trace.model import Addressee, Attempt, Heard, Trace
from gateway.verdict import Disposition, RuleTried, Shadow, Stage
from tests.ops.evidence import FORGED

AT = datetime(2026, 3, 14, 12, 0, 0, 123456, tzinfo=UTC)

SESSION = Session(
    id="0f1e2d3c4b5a",
    listener=Listener.INBOUND,
    client_ip=ip_address("192.0.2.1"),
    client_name="mail.example.com",
    helo="mail.example.com",
    esmtp=True,
    tls=Tls(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384"),
)


def trace(identifier: str = "0f1e2d3c4b5a.1", **changes: object) -> Trace:
    """A forged message that was refused, or what you make of it."""
    given: dict[str, object] = {
        "id": identifier,
        "session": SESSION,
        "stage": Stage.MESSAGE,
        "received": AT,
        "answered": AT,
        "judging_ms": 12.3,
        "reply": Reply.of(550, "5.7.1", f"refused by the policy of bank.example ({identifier})"),
        "disposition": Disposition.REJECT,
        "intended": Disposition.REJECT,
        "rule": "dmarc-reject",
        "message_id": "<20260314.1@bank.example>",
        "mail_from": "Ann@Example.com",
        "recipients": (
            Addressee("bob@example.net", 250),
            Addressee("nobody@example.net", 550, "5.1.1 no such user"),
        ),
        "author": "ceo@bank.example",
        "size": 5_120,
        "evidence": FORGED,
        "questions": (
            DnsQuestion("example.com", RecordType.TXT, "answer", 1.25),
            DnsQuestion("_dmarc.bank.example", RecordType.TXT, "answer", 20.5),
        ),
        "tried": (
            RuleTried("own-users", "ours", "true"),
            RuleTried("dmarc-quarantine", "arc_trusted", "arc_trusted = true", is_exception=True),
        ),
        "facts": {"ours": "false", "arc_trusted": "true"},
    }
    return Trace(**given | changes)  # type: ignore[arg-type] # a test's own words


EVERYTHING = trace(
    queue_id="4VxYz12345",
    shadow=Shadow(
        rule="pass", disposition=Disposition.ACCEPT, refused_recipients=1, recipients_rule="no-robots"
    ),
    more_recipients=3,
    author_fault=None,
    added=("Authentication-Results",),
    removed=("authentication-results",),
    signing=Signing(made=(MadeSignature(domain="example.net", selector="2026a", algorithm="rsa-sha256"),)),
    sealed=ChainValidation.PASS,
    downstream=Heard(reply=Reply(250, "2.0.0", ("Ok: queued as 4VxYz12345",)), ms=3.5),
    downstream_failure="lost: the connection was closed",
    attempts=(
        Attempt(
            host="mx.example.org",
            address=ip_address("2001:db8::25"),
            tls=Tls(version="TLSv1.3", cipher="TLS_AES_128_GCM_SHA256"),
            demand="dane",
            policy="tlsa",
            problem="tls.certificate-tlsa",
            failure="tls",
            detail="no TLSA record matches",
            ms=40.0,
        ),
    ),
)
"""Every field has something in it."""


def _same(trace: Trace) -> Trace:
    return trace


def batches(traces: Iterable[Trace]) -> list[Batch]:
    """As a tracer hands them on."""
    found: list[Batch] = []
    for each in traces:
        make = partial(_same, each)
        if not found or not found[-1].add(make):
            found.append(Batch())
            assert found[-1].add(make)
    assert all(len(each) <= TOGETHER for each in found)
    return found


class Told(Sequence[Trace]):
    """What a tracer has told so far: `Tracer(told.keep)`."""

    def __init__(self) -> None:
        self._batches: list[Batch] = []

    def keep(self, batch: Batch) -> None:
        self._batches.append(batch)

    def _traces(self) -> list[Trace]:
        blocks = [block for batch in self._batches if (block := batch.block()) is not None]
        return [read_document(document) for block in blocks for document in block.documents.splitlines()]

    @overload
    def __getitem__(self, at: int) -> Trace: ...
    @overload
    def __getitem__(self, at: slice) -> list[Trace]: ...
    def __getitem__(self, at: int | slice) -> Trace | list[Trace]:
        return self._traces()[at]

    def __len__(self) -> int:
        return len(self._traces())
