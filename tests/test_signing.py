"""Whose messages the engine signs, where the signatures stand, and what is told of them."""

import re
from collections.abc import Container

import pytest

from gateway.auth.dkim import check_dkim
from gateway.auth.dkim.key_table import KeyTable
from gateway.auth.dkim.sign import Signed, Signer
from gateway.auth.results import DkimStatus, NotSigned
from gateway.engine import QUARANTINE_FIELD, Engine, EngineOptions, Judged, OnError
from gateway.mail.author import Author, NoAuthor
from gateway.mail.edits import Edits, apply_edits
from gateway.mail.envelope import Envelope, Listener, Session
from gateway.mail.message import Message
from gateway.ops.log import judged_event
from gateway.ops.metrics import Metrics
from gateway.policy import RuleSet, load_rules, parse_rules
from gateway.submission import FromCheck, Submission
from gateway.verdict import Disposition, Verdict
from tests.auth.dkim.signing import MESSAGE, NOW, zone
from tests.auth.dkim.test_sign import BOTH
from tests.corpus import AUTHSERV_ID, load_cases

SIGNER = Signer(KeyTable(BOTH))


def rules(action: str) -> RuleSet:
    return parse_rules(f'[[rule]]\nid = "all"\nwhy = "w"\naction = "{action}"\n')


def make_engine(
    rule_set: RuleSet | None = None, signer: Signer | None = SIGNER, on_error: OnError = OnError.DEFER
) -> Engine:
    engine = Engine(
        zone(),
        rule_set or load_rules("default"),
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(on_error=on_error),
        clock=lambda: NOW,
    )
    engine.signer = signer
    return engine


def envelope(
    listener: Listener = Listener.SUBMISSION, *, login: str | None = None, trusted: bool = False
) -> Envelope:
    """A bounce, even: a null reverse path makes no difference to whose mail it is."""
    stranger = load_cases()[0].envelope()
    session = Session(
        id="s",
        listener=listener,
        client_ip=stranger.session.client_ip,
        helo="client.example",
        login=login,
        trusted=trusted,
    )
    return Envelope(id="m.1", session=session, mail_from=None, recipients=stranger.recipients)


def names(verdict: Verdict) -> list[str]:
    return [field.name for field in verdict.edits.prepend]


@pytest.mark.parametrize("listener", Listener)
async def test_our_own_mail_is_signed_below_the_stamp_by_every_door(listener: Listener) -> None:
    ours = (
        envelope(listener, login="joe")
        if listener is Listener.SUBMISSION
        else envelope(listener, trusted=True)
    )
    verdict = await make_engine().judge(ours, Message(MESSAGE))
    is_leaving = listener in {Listener.SUBMISSION, Listener.OUTBOUND}
    stamp = [] if is_leaving else ["Authentication-Results"]
    assert names(verdict) == [*stamp, "DKIM-Signature", "DKIM-Signature"]
    left = Message(b"".join(apply_edits(Message(MESSAGE), verdict.edits)))
    assert {result.status for result in await check_dkim(left, zone(), now=NOW)} == {DkimStatus.PASS}


async def test_what_submission_puts_in_and_takes_out_is_signed_as_it_leaves() -> None:
    engine = make_engine()
    engine.submission = Submission(
        hostname="mx.example.org", from_check=FromCheck.OFF, senders={}, is_local=lambda _domain: True
    )
    raw = b"Bcc: secret@example.net\r\nFrom: joe@example.org\r\n\r\nHi\r\n"
    verdict = await engine.judge(envelope(login="joe"), Message(raw))
    left = b"".join(apply_edits(Message(raw), verdict.edits))
    assert names(verdict) == ["DKIM-Signature", "DKIM-Signature", "Date", "Message-ID"]
    assert b"secret" not in left
    assert {result.status for result in await check_dkim(Message(left), zone(), now=NOW)} == {DkimStatus.PASS}
    redated = re.sub(rb"(?m)^Date: .*$", b"Date: Fri, 11 Jul 2025 21:00:37 -0700\r", left)
    assert {result.status for result in await check_dkim(Message(redated), zone(), now=NOW)} == {
        DkimStatus.FAIL
    }


async def test_strangers_mail_is_not_signed_whoever_it_says_it_is_from() -> None:
    verdict = await make_engine(rules("accept")).judge(envelope(Listener.INBOUND), Message(MESSAGE))
    assert names(verdict) == ["Authentication-Results"]
    assert verdict.signing is None


async def test_without_keys_nothing_is_signed() -> None:
    verdict = await make_engine(signer=None).judge(envelope(login="joe"), Message(MESSAGE))
    assert (names(verdict), verdict.signing) == ([], None)


@pytest.mark.parametrize(
    ("rule_set", "signed"),
    [
        (rules("accept"), True),
        (rules("quarantine"), True),  # whoever lets it go has no second chance to sign it
        (rules("defer"), False),
        (rules("reject"), False),
        (parse_rules('mode = "monitor"\n[[rule]]\nid = "all"\nwhy = "w"\naction = "reject"\n'), True),
    ],
)
async def test_what_is_handed_on_is_signed(rule_set: RuleSet, *, signed: bool) -> None:
    verdict = await make_engine(rule_set).judge(envelope(login="joe"), Message(MESSAGE))
    assert ("DKIM-Signature" in names(verdict)) == signed == (verdict.signing is not None)
    if verdict.disposition is Disposition.QUARANTINE:
        assert names(verdict)[-1] == QUARANTINE_FIELD


async def test_a_mark_that_is_taken_off_is_not_missed_by_the_signature() -> None:
    raw = b"X-Gateway-Quarantine: rule=x\r\nAuthentication-Results: mx.example.net; none\r\n" + MESSAGE
    verdict = await make_engine().judge(envelope(login="joe"), Message(raw))
    left = Message(b"".join(apply_edits(Message(raw), verdict.edits)))
    assert b"rule=x" not in left.raw
    assert {result.status for result in await check_dkim(left, zone(), now=NOW)} == {DkimStatus.PASS}


async def test_what_pretended_to_be_us_outside_does_not_leave_as_proven() -> None:
    """In by the front door, where DMARC does not pass; an alias sends it out again by the relay."""
    engine = make_engine(rules("accept"))
    came = await engine.judge(envelope(Listener.INBOUND), Message(MESSAGE))
    inside = b"".join(apply_edits(Message(MESSAGE), came.edits))
    leaving = b"Received: by postfix\r\n" + inside
    verdict = await engine.judge(envelope(Listener.OUTBOUND, trusted=True), Message(leaving))
    assert verdict.signing is not None
    assert verdict.signing.reason is NotSigned.NOT_PROVEN


async def test_what_submission_signed_the_relay_does_not_sign_again() -> None:
    engine = make_engine()
    submitted = await engine.judge(envelope(login="joe"), Message(MESSAGE))
    inside = b"Received: by postfix\r\n" + b"".join(apply_edits(Message(MESSAGE), submitted.edits))
    verdict = await engine.judge(envelope(Listener.OUTBOUND, trusted=True), Message(inside))
    assert verdict.signing is not None
    assert verdict.signing.reason is NotSigned.ALREADY_SIGNED
    left = Message(b"".join(apply_edits(Message(inside), verdict.edits)))
    assert [result.status for result in await check_dkim(left, zone(), now=NOW)] == [DkimStatus.PASS] * 2


class BrokenSigner(Signer):
    def sign(
        self,
        message: Message,
        author: Author | NoAuthor,
        edits: Edits,
        *,
        now: float,
        own_results: Container[int] = (),
    ) -> Signed:
        raise RuntimeError("a bug")


async def test_a_bug_in_signing_defers_the_message() -> None:
    verdict = await make_engine(signer=BrokenSigner(KeyTable(BOTH))).judge(
        envelope(login="joe"), Message(MESSAGE)
    )
    assert verdict.reply is not None
    assert str(verdict.reply).startswith("451 4.3.0 internal error")


async def test_or_it_goes_out_unsigned_where_the_operator_chose_so() -> None:
    engine = make_engine(signer=BrokenSigner(KeyTable(BOTH)), on_error=OnError.ACCEPT)
    verdict = await engine.judge(envelope(login="joe"), Message(MESSAGE))
    assert (verdict.disposition, verdict.rule, verdict.signing) == (
        Disposition.ACCEPT,
        "gateway.internal",
        None,
    )


async def test_what_is_told() -> None:
    metrics = Metrics()
    told: list[dict[str, object]] = []

    def observe(judged: Judged) -> None:
        metrics.judged(judged.verdict, judged.envelope)
        told.append(judged_event(judged.envelope, judged.message, None, judged.verdict, 0.0))

    engine = Engine(
        zone(), load_rules("default"), authserv_id=AUTHSERV_ID, observe=observe, clock=lambda: NOW
    )
    engine.signer = SIGNER
    for raw in (MESSAGE, MESSAGE.replace(b"example.org", b"elsewhere.example")):
        await engine.judge(envelope(login="joe"), Message(raw))
    assert [(event["signed"], event["not_signed"]) for event in told] == [
        (["example.org/rsa", "example.org/ed"], None),
        ([], "no-key"),
    ]
    shown = metrics.exposition("")[0].decode()
    assert re.findall(r"(?m)^gateway_(?:signatures|unsigned_messages)_total.*$", shown) == [
        'gateway_signatures_total{algorithm="rsa-sha256",domain="example.org"} 1.0',
        'gateway_signatures_total{algorithm="ed25519-sha256",domain="example.org"} 1.0',
        'gateway_unsigned_messages_total{reason="no-key"} 1.0',
    ]
