"""What our own users may write, and what is done to it before it leaves (RFC 6409)."""

import re
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.dkim import check_dkim
from gateway.auth.dkim.key_table import KeyTable
from gateway.auth.dkim.sign import Signer
from gateway.auth.results import DkimStatus
from gateway.engine import SENDER_RULE, Engine, EngineOptions, OnError
from gateway.mail.address import parse_mailbox
from gateway.mail.edits import apply_edits
from gateway.mail.envelope import Envelope, Listener, Session
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.policy import load_rules
from gateway.smtp.relay import LocalDomains
from gateway.submission import FromCheck, Submission
from gateway.verdict import Disposition, Stage
from tests.auth.dkim.signing import NOW, zone
from tests.auth.dkim.test_sign import BOTH
from tests.corpus import AUTHSERV_ID

BODY = b"\r\n\r\nHello\r\n"


def make(from_check: FromCheck = FromCheck.LOGIN, **changes: object) -> Submission:
    values: dict[str, object] = {
        "hostname": "mx.example.net",
        "senders": {
            "Ann": ["sales@example.net", "@lists.example.net"],
            "*": ["office@example.net"],
            "robot": ["@example.net"],
        },
        "is_local": LocalDomains(["example.net", "lists.example.net"]).__contains__,
        "login_domain": "example.net",
        "recipient_delimiter": "+",
    }
    return Submission(from_check=from_check, **(values | changes))  # type: ignore[arg-type]  # a test names what it changes


def envelope(login: str = "ann", mail_from: str = "ann@example.net") -> Envelope:
    session = Session(
        id="s", listener=Listener.SUBMISSION, client_ip=ip_address("192.0.2.1"), esmtp=True, login=login
    )
    return Envelope(id="s.1", session=session, mail_from=parse_mailbox(mail_from) if mail_from else None)


def refused(submission: Submission, given_envelope: Envelope, header: bytes) -> str | None:
    reply = submission.refuse_authors(given_envelope, Message(header + BODY))
    return reply.text if reply else None


@pytest.mark.parametrize(
    ("login", "address"),
    [
        ("ann", "ann@example.net"),
        ("ANN", "Ann@EXAMPLE.net"),
        ("ann", "ann+shop@example.net"),
        ("ann@example.net", "ann@example.net"),
        ("ann@lists.example.net", "ann@lists.example.net"),
        ("ann", "sales@example.net"),
        ("ann", "anything@lists.example.net"),
        ("ann", "office@example.net"),
        ("bob", "office@example.net"),
        ("robot", "anybody@example.net"),
        ("robot", "ann+x@example.net"),
        ("jürgen", "jürgen@example.net"),
    ],
)
def test_an_address_that_belongs_to_the_login(login: str, address: str) -> None:
    assert refused(make(), envelope(login, address), f"From: Somebody <{address}>".encode()) is None
    assert make().refuse_sender(envelope(login, address)) is None


@pytest.mark.parametrize(
    ("login", "address"),
    [
        ("ann", "bob@example.net"),  # a colleague
        ("ann", "ann@example.com"),  # the same name elsewhere
        ("ann", "ann@sub.example.net"),
        ("ann", "+ann@example.net"),
        ("ann+x", "ann@example.net"),
        ("bob", "sales@example.net"),  # ann's
        ("ann@example.com", "ann@example.com"),  # a login at a domain that is not ours: who knows whose it is
        ("strasse", "straße@example.net"),  # two people, for mail servers
        ("ann@example.net@example.net", "ann@example.net"),
        ("", "@example.net"),
        ("*", "ann@example.net"),
    ],
)
def test_an_address_that_does_not(login: str, address: str) -> None:
    said = refused(make(), envelope(login, "ann@example.net"), f"From: Somebody <{address}>".encode())
    assert said
    if not address.startswith("@"):
        assert said.endswith(f"may not send as {address} (s.1)".replace("ß", "?"))
        reply = make().refuse_sender(envelope(login, address))
        assert isinstance(reply, Reply)
        assert (reply.code, reply.enhanced) == (550, "5.7.1")


@pytest.mark.parametrize(
    ("header", "word"),
    [
        (b"Subject: x", "no From"),
        (b"From: ann@example.net\r\nFrom: ann@example.net", "several From"),  # espoofer client_a2
        (b"From: ann@example.net\r\nFrom: ceo@example.net", "several From"),
        (b"From: ceo@example.net\r\nFrom: ann@example.net", "several From"),
        (b"From : ceo@example.net\r\nFrom: ann@example.net", "several From"),
        (b" From: ceo@example.net\r\nFrom: ann@example.net", "one way only"),
        (b"From: ann@example.net, ceo@example.net", "may not send as ceo@example.net"),  # client_a3
        (b"From: ceo@example.net, ann@example.net", "may not send as ceo@example.net"),
        (b"From: <ceo@example.net> <ann@example.net>", "one way only"),
        (b"From: <@ceo@example.net,@x:ann@example.net>", "one way only"),
        (b"From: ceo@example.net <ann@example.net>", "one way only"),
        (b"From: ann@example.net(<ceo@example.net>)", "one way only"),
        (b'From: "ceo@example.net\\" <ann@example.net>', "one way only"),
        (b"From: Staff: ann@example.net, ceo@example.net;", "may not send as ceo@example.net"),
        (b"From: undisclosed:;", "names no address"),
        (b"From: <>", "names no address"),
        (b"From: ann", "one way only"),
        (b"From: ann@[192.0.2.1]", "cannot exist"),
        (b"From: ann@example.net\r\nSender: ceo@example.net", "may not send as ceo@example.net"),
        (b"From: ann@example.net\r\nSender: ann@example.net\r\nSender: ceo@example.net", "several Sender"),
        (b"From: ann@example.net\r\nSender: ann@example.net, office@example.net", "several addresses"),
        (b"From: ceo@example.net\r\nResent-From: ann@example.net", "may not send as ceo@example.net"),
        (b"From: ceo@example.net\r\nSender: ann@example.net", "may not send as ceo@example.net"),
        (b"From: ann@example.net\0", "one way only"),
        (b"From: ann@example.net\r\n \r\n\r\nFrom: ceo@example.net", "one way only"),
    ],
)
def test_a_header_that_is_refused_in_plain_words(header: bytes, word: str) -> None:
    said = refused(make(), envelope(), header)
    assert said
    assert word in said


@pytest.mark.parametrize(
    "header",
    [
        b"From: =?utf-8?q?J=C3=BCrgen?= <ann@example.net>",
        b"From: ann@example.net, office@example.net\r\nSender: ann@example.net",
        b"from:\r\n Ann\r\n <ann@example.net>",
        b"From: ann@example.net\r\nReply-To: whoever@elsewhere.example",
        b"From: ann@example.net\r\nResent-From: whoever@elsewhere.example",
    ],
)
def test_a_header_that_passes(header: bytes) -> None:
    assert refused(make(), envelope(), header) is None


def test_what_downstream_let_pass_belongs_to_the_login() -> None:
    submission = make(FromCheck.DOWNSTREAM)
    assert submission.refuse_sender(envelope(mail_from="boss@example.com")) is None, "downstream's to say"
    assert refused(submission, envelope(mail_from="Boss@example.com"), b"From: boss@example.com") is None
    assert refused(submission, envelope(mail_from="boss@example.com"), b"From: ann@example.net") is None
    assert refused(submission, envelope(mail_from="boss@example.com"), b"From: ceo@example.com")
    assert refused(submission, envelope(mail_from=""), b"From: boss@example.com")


def test_receipts_have_no_reverse_path_but_an_author() -> None:
    assert make().refuse_sender(envelope(mail_from="")) is None
    assert refused(make(), envelope(mail_from=""), b"From: ceo@example.net")


def test_off_is_off() -> None:
    submission = make(FromCheck.OFF)
    assert submission.refuse_sender(envelope(mail_from="ceo@example.com")) is None
    assert refused(submission, envelope(), b"From: a@b.example\r\nFrom: c@d.example") is None


def test_without_a_login_domain_a_bare_login_owns_only_what_is_listed() -> None:
    submission = make(login_domain=None)
    assert refused(submission, envelope("ann"), b"From: ann@example.net")
    assert refused(submission, envelope("ann"), b"From: sales@example.net") is None


@given(st.binary(max_size=300), st.text(max_size=30))
def test_any_message_and_login_are_refused_or_pass(raw: bytes, login: str) -> None:
    message = Message(raw)
    for from_check in FromCheck:
        submission = make(from_check)
        reply = submission.refuse_authors(envelope(login), message)
        assert reply is None or reply.code == 550
        submission.complete(envelope(login), message, NOW)


def left(header: bytes) -> bytes:
    message = Message(header + BODY)
    return b"".join(apply_edits(message, make().complete(envelope(), message, 1_774_000_000)))


def test_blind_copies_are_taken_out_however_they_are_written() -> None:
    header = b"From: a@b.example\r\nBCC: x@y.example,\r\n z@y.example\r\nBcc : v@y.example\r\nSubject: s\r\nbcc:\r\nResent-Bcc: w@y.example\r\nDate: now\r\nMessage-ID: <1@x>"
    assert left(header) == b"From: a@b.example\r\nSubject: s\r\nDate: now\r\nMessage-ID: <1@x>" + BODY


def test_a_missing_date_and_message_id_are_put_in() -> None:
    first, second, *rest = left(b"From: a@b.example").split(b"\r\n")
    assert first == b"Date: Fri, 20 Mar 2026 09:46:40 +0000"
    assert second == b"Message-ID: <20260320094640.s.1@mx.example.net>"
    assert rest[0] == b"From: a@b.example"


def test_those_that_are_there_stay_as_they_are() -> None:
    header = b"date: never\r\nMESSAGE-ID: what\r\nFrom: a@b.example"
    assert left(header) == header + BODY


# With the engine


def make_engine(on_error: OnError = OnError.DEFER) -> Engine:
    engine = Engine(
        zone(),
        load_rules("default"),
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(on_error=on_error),
        clock=lambda: NOW,
    )
    engine.submission = make(is_local=LocalDomains(["example.org"]).__contains__, login_domain="example.org")
    engine.signer = Signer(KeyTable(BOTH))
    return engine


JOE = envelope("joe", "joe@example.org")
MAIL = (
    b"From: Joe <joe@example.org>\r\nBcc: shirley@other.example\r\nTo: suzie@shopping.example.net\r\n"
    + f"Authentication-Results: {AUTHSERV_ID}; dmarc=pass\r\n".encode()
    + b"Subject: Is dinner ready?\r\n\r\nHi.\r\n"
)


async def test_the_signature_is_over_the_message_as_it_leaves() -> None:
    message = Message(MAIL)
    verdict = await make_engine().judge(JOE, message)
    assert verdict.disposition is Disposition.ACCEPT
    assert [field.name for field in verdict.edits.prepend] == [
        "DKIM-Signature",
        "DKIM-Signature",
        "Date",
        "Message-ID",
    ]
    handed_on = Message(b"".join(apply_edits(message, verdict.edits)))
    assert not handed_on.positions(b"bcc")
    assert {result.status for result in await check_dkim(handed_on, zone(), now=NOW)} == {DkimStatus.PASS}
    for signature in verdict.edits.prepend[:2]:
        signed = re.sub(r"\s", "", signature.value).lower().partition("h=")[2].partition(";")[0].split(":")
        assert {"date", "message-id"} <= set(signed)
        assert "bcc" not in signed


async def test_no_results_of_ours_leave_and_no_forged_ones() -> None:
    verdict = await make_engine().judge(JOE, Message(MAIL))
    handed_on = b"".join(apply_edits(Message(MAIL), verdict.edits))
    assert b"authentication-results" not in handed_on.lower()


@pytest.mark.parametrize("rules", ["default", "monitor", "strict"])
async def test_writing_as_another_is_refused_whatever_the_rules(rules: str) -> None:
    engine = make_engine()
    engine.rules = load_rules(rules)
    verdict = await engine.judge(JOE, Message(MAIL.replace(b"joe@", b"ceo@")))
    assert (verdict.disposition, verdict.rule) == (Disposition.REJECT, SENDER_RULE)
    early = await engine.screen(Stage.MAIL, envelope("joe", "ceo@example.org"))
    assert early
    assert early.reply
    assert early.reply.text == "joe may not send as ceo@example.org (s.1)"
    assert await engine.screen(Stage.MAIL, JOE) is None


async def test_other_doors_are_not_asked() -> None:
    stranger = Session(id="s", listener=Listener.INBOUND, client_ip=ip_address("192.0.2.1"), login="joe")
    verdict = await make_engine().judge(
        Envelope(id="s.1", session=stranger, mail_from=None), Message(MAIL.replace(b"joe@", b"ceo@"))
    )
    assert verdict.disposition is Disposition.ACCEPT
    assert verdict.edits.prepend[0].name == "Authentication-Results"


class Broken(Submission):
    def refuse_authors(self, envelope: Envelope, message: Message) -> Reply | None:
        raise RuntimeError("a bug")


async def test_a_bug_never_lets_a_user_write_as_another() -> None:
    engine = make_engine(OnError.ACCEPT)
    engine.submission = Broken(
        hostname="mx.example.net",
        from_check=FromCheck.LOGIN,
        senders={"joe": ["joe@example.org"]},
        is_local=lambda _: True,
    )
    verdict = await engine.judge(JOE, Message(MAIL))
    assert verdict.disposition is Disposition.DEFER
