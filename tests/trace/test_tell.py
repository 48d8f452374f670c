"""From the engine's verdict and a listener's account to a trace: all that was asked and answered, and no more than that."""

import threading
from datetime import UTC, datetime

import pytest

from gateway.dns.budget import DnsQuestion
from gateway.dns.resolver import RecordType
from gateway.engine import Engine, EngineOptions
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Recipient
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.policy import load_rules, parse_rules
from gateway.trace.addresses import AddressHider
from gateway.trace.batch import TOGETHER, Batch
from gateway.trace.document import read_document, write_documents
from gateway.trace.model import Heard, Trace
from gateway.trace.tell import MAX_RECIPIENTS, Story, Tracer
from gateway.verdict import Disposition, RuleTried, Stage, Verdict
from tests.corpus import AUTHSERV_ID, NOW, TRUSTED_SEALERS, CorpusCase, load_cases, world
from tests.ops.evidence import FORGED, REJECTED, envelope
from tests.trace.samples import Told

CASES = {case.name: case for case in load_cases()}
BOB = Recipient(mailbox=parse_mailbox("bob@example.net"))
OK = Reply.of(250, "2.1.5", "Ok")
BEGAN = datetime(2026, 3, 14, 12, 0, tzinfo=UTC)


def make_engine(rules: str = "default") -> Engine:
    engine = Engine(
        world(),
        load_rules(rules),
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(trusted_sealers=frozenset(TRUSTED_SEALERS)),
        clock=lambda: NOW,
    )
    engine.tells = True
    return engine


def told(story: Story, hider: AddressHider | None = None) -> Trace:
    kept = Told()
    Tracer(kept.keep, hider).tell(story)
    (trace,) = kept
    assert read_document(write_documents([trace])) == trace
    return trace


async def traced(
    case: CorpusCase, engine: Engine | None = None, hider: AddressHider | None = None
) -> tuple[Trace, Verdict]:
    message = Message(case.raw)
    verdict = await (engine or make_engine()).judge(case.envelope(), message)
    story = Story(
        envelope=case.envelope(),
        stage=Stage.MESSAGE,
        received=BEGAN,
        reply=verdict.reply,
        verdict=verdict,
        asked=[(BOB, OK)],
        size=len(message),
    )
    return told(story, hider), verdict


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
async def test_every_message_of_the_corpus_leaves_its_story_and_nothing_of_its_body(case: CorpusCase) -> None:
    trace, verdict = await traced(case)
    assert (trace.disposition, trace.rule, trace.reply) == (verdict.disposition, verdict.rule, verdict.reply)
    assert trace.size == len(case.raw)
    document = write_documents([trace])
    body = Message(case.raw).raw[Message(case.raw).body_start :]
    for line in bytes(body).splitlines():
        assert len(line) < 20 or line not in document


async def test_of_the_header_only_message_id_and_author_are_kept() -> None:
    raw = (
        b"Message-ID: <kept@honest.example>\r\nFrom: Secret Name <ann@honest.example>\r\nSubject: secret\r\n"
        b"To: secret@example.net\r\nX-Secret: secret\r\n\r\nsecret\r\n"
    )
    envelope = CASES["honest-rsa"].envelope()
    verdict = await make_engine().judge(envelope, Message(raw))
    trace = told(story(envelope=envelope, verdict=verdict, reply=None))
    assert (trace.message_id, trace.author) == ("<kept@honest.example>", "ann@honest.example")
    assert b"secret" not in write_documents([trace]).lower()


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
async def test_telling_changes_no_verdict(case: CorpusCase) -> None:
    silent = make_engine()
    silent.tells = False
    verdict = await silent.judge(case.envelope(), Message(case.raw))
    assert verdict.inquiry is None
    told = await make_engine().judge(case.envelope(), Message(case.raw))
    assert told.inquiry is not None
    assert replace(told, inquiry=None) == verdict


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
async def test_the_rules_that_were_tried_are_those_before_the_one_that_was_taken(case: CorpusCase) -> None:
    trace, verdict = await traced(case)
    if verdict.rule.startswith("gateway."):
        assert not trace.tried
        return
    rules = [rule for rule in load_rules("default").rules if rule.stage is Stage.MESSAGE]
    at = [rule.id for rule in rules].index(verdict.rule)
    assert [step.rule for step in trace.tried] == [rule.id for rule in rules[:at]]
    assert set(trace.facts) == {step.key for step in trace.tried}


async def test_what_is_remembered_of_rules_is_told_of_no_message_that_differs() -> None:
    shared = make_engine()
    for case in (*CASES.values(), *reversed(CASES.values())):
        alone, _ = await traced(case)
        again, _ = await traced(case, shared)
        assert (again.rule, again.tried, again.facts) == (alone.rule, alone.tried, alone.facts), case.name


async def test_a_rule_says_which_of_its_conditions_was_not_met() -> None:
    rules = parse_rules(
        """
        [[rule]]
        id = "size"
        why = "w"
        when = { size_over = 1_000_000 }
        action = "reject"
        reply = "554 5.3.4 no"
        [[rule]]
        id = "two"
        why = "w"
        when = { ours = false, dmarc = ["temperror", "none"] }
        action = "reject"
        reply = "550 5.7.1 no"
        [[rule]]
        id = "excepted"
        why = "w"
        when = { ours = false }
        unless = { spf = "pass" }
        action = "reject"
        reply = "550 5.7.1 no"
        [[rule]]
        id = "all"
        why = "w"
        action = "accept"
        """,
    )
    engine = make_engine()
    engine.rules = rules
    trace, _ = await traced(CASES["honest-rsa"], engine)
    assert trace.rule == "all"
    assert trace.tried == (
        RuleTried("size", "size_over", "1000000"),
        RuleTried("two", "dmarc", "none or temperror"),
        RuleTried("excepted", "spf", "spf = pass", is_exception=True),
    )
    assert trace.facts["dmarc"] == "pass"
    assert trace.facts["spf"] == "pass"


async def test_what_the_dns_was_asked_is_there_and_what_was_remembered_says_so() -> None:
    engine = make_engine()
    first, _ = await traced(CASES["honest-rsa"], engine)
    names = [question.name for question in first.questions]
    assert "_dmarc.honest.example" in names
    assert not first.is_remembered
    again, _ = await traced(CASES["honest-rsa"], engine)
    assert again.is_remembered
    assert len(again.questions) < len(first.questions)
    assert again.evidence == first.evidence


async def test_message_id_and_the_edits_by_name() -> None:
    trace, verdict = await traced(CASES["forged-results"])
    assert trace.added[0] == "Authentication-Results"
    assert len(trace.removed) == len(verdict.edits.remove)
    assert "authentication-results" in trace.removed


def story(**changes: object) -> Story:
    given: dict[str, object] = {
        "envelope": envelope(),
        "stage": Stage.MESSAGE,
        "received": BEGAN,
        "reply": REJECTED.reply,
        "verdict": REJECTED,
    }
    return Story(**given | changes)  # type: ignore[arg-type] # a test's own words


def test_a_message_that_was_never_judged_has_a_trace_all_the_same() -> None:
    trace = told(story(verdict=None, reply=Reply.of(552, "5.3.4", "too large")))
    assert trace.disposition is None
    assert trace.rule is None
    assert trace.reply is not None
    assert trace.reply.code == 552


def test_downstream_has_its_own_words() -> None:
    said = Reply(451, "4.3.0", ("queue is full",))
    trace = told(story(heard=said, heard_s=0.003))
    assert trace.downstream == Heard(reply=said, ms=3.0)


def test_recipients_are_counted_beyond_what_is_kept() -> None:
    trace = told(story(asked=[(BOB, OK)] * (MAX_RECIPIENTS + 20), more_asked=5))
    assert len(trace.recipients) == MAX_RECIPIENTS
    assert trace.more_recipients == 25


def test_a_fault_in_keeping_costs_no_mail(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(_batch: Batch) -> None:
        raise RuntimeError("the disk burns")

    Tracer(broken).tell(story())
    assert "the disk burns" in capsys.readouterr().out


def test_a_trace_that_cannot_be_written_costs_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    class Broken(AddressHider):
        def address(self, text: str) -> str:
            if text == "broken@example.com":
                raise RuntimeError("the key is gone")
            return text

    kept = Told()
    tracer = Tracer(kept.keep, Broken(b"key"))
    for sender in ("ann@example.com", "broken@example.com", "carol@example.com"):
        mail_from = parse_mailbox(sender)
        tracer.tell(story(envelope=replace(story().envelope, mail_from=mail_from)))
    assert [trace.mail_from for trace in kept] == ["ann@example.com", "carol@example.com"]
    assert "the key is gone" in capsys.readouterr().out


def test_stories_are_written_when_there_are_enough_of_them_or_when_they_are_asked_for() -> None:
    given: list[Batch] = []
    tracer = Tracer(given.append)
    for _ in range(TOGETHER + 3):
        tracer.tell(story())
    assert [len(batch) for batch in given] == [TOGETHER, 3]
    assert [block.count for batch in given if (block := batch.block())] == [TOGETHER, 3]
    tracer.tell(story())
    assert [len(batch) for batch in given] == [TOGETHER, 3, 1]


def test_of_several_threads_no_story_is_lost_and_none_told_twice() -> None:
    given: list[Batch] = []
    tracer = Tracer(given.append)
    envelope = story().envelope

    def tell(thread: int) -> None:
        for n in range(200):
            tracer.tell(story(envelope=replace(envelope, id=f"{thread}.{n}")))

    threads = [threading.Thread(target=tell, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        for batch in given:  # as the writer does
            batch.block()
    blocks = [block for batch in given if (block := batch.block())]
    documents = [read_document(document) for block in blocks for document in block.documents.splitlines()]
    assert sorted(trace.id for trace in documents) == sorted(f"{t}.{n}" for t in range(4) for n in range(200))


@pytest.mark.parametrize("case", CASES.values(), ids=lambda case: case.name)
async def test_hashed_nobody_can_read_who_wrote_to_whom(case: CorpusCase) -> None:
    trace, _ = await traced(case, hider=AddressHider(b"0123456789abcdef"))
    document = write_documents([trace]).decode()
    for address in (case.mail_from, "bob@example.net"):
        local_part = address.rpartition("@")[0]
        assert not local_part or f"{local_part}@" not in document
    assert "bob" not in document


def test_hashed_a_refusal_does_not_give_the_address_away() -> None:
    hider = AddressHider(b"0123456789abcdef")
    said = Reply.of(550, "5.1.1", "<bob@example.net>: Recipient address rejected: bob@example.net")
    trace = told(story(asked=[(BOB, said)]), hider)
    assert "bob" not in trace.recipients[0].text
    assert trace.recipients[0].text.startswith("5.1.1 <~")


def test_hashed_names_made_from_the_sender_are_not_kept() -> None:
    hider = AddressHider(b"0123456789abcdef")
    asked = [
        DnsQuestion("ann.lp._spf.example.com", RecordType.A, "answer", 1.0),
        DnsQuestion("example.com", RecordType.TXT, "answer", 1.0),
    ]
    assert [each.name for each in hider.questions(asked, "Ann@example.com")] == ["(hidden)", "example.com"]
    assert [each.name for each in hider.questions(asked, "")] == [each.name for each in asked]


def test_hashed_the_log_in_and_the_checks_words_are_hidden_too() -> None:
    hider = AddressHider(b"0123456789abcdef")
    session = replace(envelope().session, login="ann@example.com")
    spf = FORGED.spf
    assert spf is not None
    evidence = replace(FORGED, spf=replace(spf, sender="ann@example.com", explanation="ann may not"))
    trace = told(
        story(envelope=replace(envelope(), session=session), verdict=replace(REJECTED, evidence=evidence)),
        hider,
    )
    assert "ann" not in write_documents([trace]).decode()
    assert trace.session.login is not None
    assert trace.session.login.endswith("@example.com")


def test_a_hash_is_not_hashed_again_and_is_the_same_for_any_case() -> None:
    hider = AddressHider(b"0123456789abcdef")
    once = hider.address("Ann@Example.com")
    assert hider.address(once) == once
    assert hider.address("ann@example.COM") == once
    assert AddressHider(b"fedcba9876543210").address("ann@example.com") != once
    assert hider.address("") == ""


def test_accepted_by_a_monitor_says_what_would_have_been() -> None:
    verdict = replace(REJECTED, disposition=Disposition.ACCEPT, reply=None)
    trace = told(story(verdict=verdict, reply=Reply.of(250, "2.0.0", "ok")))
    assert (trace.disposition, trace.intended) == (Disposition.ACCEPT, Disposition.REJECT)
