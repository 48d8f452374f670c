"""The engine on the whole corpus, and what becomes of a message when the fault is ours."""

import re

import pytest

from gateway.auth.dmarc.suffix import SuffixList
from gateway.dns.resolver import Outcome, RecordType
from gateway.engine import QUARANTINE_FIELD, Engine, EngineOptions, Judged, OnError
from gateway.mail.edits import apply_edits
from gateway.mail.envelope import Listener
from gateway.mail.message import Message
from gateway.mail.value import replace
from gateway.policy import load_rules, parse_rules
from gateway.policy.facts import problems
from gateway.verdict import Disposition, Shadow, Stage
from tests.corpus import AUTHSERV_ID, FOLDER, NOW, TRUSTED_SEALERS, CorpusCase, load_cases, world

CASES = load_cases()


def make_engine(rules: str = "default", **options: object) -> Engine:
    return Engine(
        world(),
        load_rules(rules),
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(**{"trusted_sealers": frozenset(TRUSTED_SEALERS), **options}),  # type: ignore[arg-type]  # keyword options of any kind
        clock=lambda: NOW,
    )


def test_every_message_of_the_corpus_has_a_case_and_the_reverse() -> None:
    assert {case.name for case in CASES} == {path.stem for path in FOLDER.glob("*.eml")}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_corpus(case: CorpusCase) -> None:
    message = Message(case.raw)
    verdict = await make_engine().judge(case.envelope(), message)
    expect = dict(case.expect)
    told = f"{verdict.evidence}"
    assert (verdict.disposition, verdict.rule) == (expect.pop("disposition"), expect.pop("rule")), told
    assert len(verdict.edits.remove) == expect.pop("removed", 0)
    if problem := expect.pop("problem", None):
        assert problem in problems(verdict.evidence), told
    stamp = verdict.edits.prepend[0]
    assert stamp.name == "Authentication-Results"
    assert stamp.value.startswith(AUTHSERV_ID)
    for method, word in expect.items():
        assert re.search(rf"\b{method}={word}\b", stamp.value), stamp.value
    handed_on = b"".join(apply_edits(message, verdict.edits))
    if case.name.startswith("arc-"):
        return  # others say so, under their own name
    assert handed_on.count(b"dmarc=pass header.from=bank.example") == (case.name == "spf-only")


@pytest.mark.parametrize("name", ["results-injection", "results-in-address"])
async def test_no_address_makes_a_result_even_for_who_only_searches_for_words(name: str) -> None:
    case = next(case for case in CASES if case.name == name)
    verdict = await make_engine().judge(case.envelope(), Message(case.raw))
    value = verdict.edits.prepend[0].value
    assert "smtp.mailfrom=@evil.example" in value
    assert re.findall(r"\w+=pass", value) == ["spf=pass"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_monitor_refuses_nothing_and_says_what_it_would_have_done(case: CorpusCase) -> None:
    verdict = await make_engine("monitor").judge(case.envelope(), Message(case.raw))
    assert verdict.disposition is Disposition.ACCEPT
    assert verdict.intended == case.expect["disposition"]
    assert QUARANTINE_FIELD not in [field.name for field in verdict.edits.prepend]


async def test_quarantine_is_marked_and_a_mark_that_came_in_is_not_believed() -> None:
    case = next(case for case in CASES if case.name == "spoofed-quarantine")
    raw = b"x-gateway-quarantine: rule=mine\r\n" + case.raw
    verdict = await make_engine().judge(case.envelope(), Message(raw))
    handed_on = b"".join(apply_edits(Message(raw), verdict.edits))
    marks = re.findall(rb"(?im)^x-gateway-quarantine:.*$", handed_on)
    assert marks == [b"X-Gateway-Quarantine: rule=dmarc-quarantine; id=corpus.1\r"]


@pytest.mark.parametrize("rules", ["default", "monitor"])
@pytest.mark.parametrize("filler", [b"X: y\r\n" * 2500, b"X: " + b"y" * 600_000 + b"\r\n"])
async def test_results_in_our_name_beyond_what_is_read_are_not_handed_on(rules: str, filler: bytes) -> None:
    case = next(case for case in CASES if case.name == "forged-results")
    verdict = await make_engine(rules).judge(case.envelope(), Message(filler + case.raw))
    assert verdict.disposition is Disposition.REJECT


class Broken:
    async def query(self, name: str, record_type: RecordType) -> Outcome:
        raise RuntimeError("a bug")


@pytest.mark.parametrize(
    ("on_error", "disposition", "code"),
    [(OnError.DEFER, Disposition.DEFER, 451), (OnError.ACCEPT, Disposition.ACCEPT, None)],
)
async def test_a_bug_is_never_a_pass_and_never_a_permanent_refusal(
    on_error: OnError, disposition: Disposition, code: int | None
) -> None:
    case = next(case for case in CASES if case.name == "forged-results")
    seen: list[Judged] = []
    engine = Engine(
        Broken(),
        load_rules("default"),
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(on_error=on_error),
        observe=seen.append,
    )
    verdict = await engine.judge(case.envelope(), Message(case.raw))
    assert verdict.disposition is disposition
    assert (verdict.reply.code if verdict.reply else None) == code
    assert [judged.verdict for judged in seen] == [verdict]
    if disposition is Disposition.ACCEPT:
        assert "dmarc=temperror" in verdict.edits.prepend[0].value
        assert len(verdict.edits.remove) == 5


async def test_a_message_has_a_bounded_number_of_questions() -> None:
    asked: list[str] = []

    class Endless:
        async def query(self, name: str, record_type: RecordType) -> Outcome:
            asked.append(name)
            return await world().query(name, record_type)

    case = next(case for case in CASES if case.name == "honest-rsa")
    engine = Engine(
        Endless(), load_rules("default"), authserv_id=AUTHSERV_ID, options=EngineOptions(max_queries=3)
    )
    verdict = await engine.judge(case.envelope(), Message(case.raw))
    assert len(asked) == 3
    assert verdict.disposition is Disposition.DEFER


async def test_early_rules_refuse_before_the_message() -> None:
    rules = parse_rules(
        '[[rule]]\nid = "early"\nwhy = "w"\nstage = "mail"\nwhen = { spf = "pass", mail_from = "evil.example" }\n'
        'action = "reject"\n[[rule]]\nid = "rest"\nwhy = "w"\naction = "accept"\n'
    )
    engine = Engine(world(), rules, authserv_id=AUTHSERV_ID)
    refused: list[tuple[Stage, str]] = []
    engine.observe_refusal = lambda stage, _, verdict: refused.append((stage, verdict.rule))
    evil = next(case for case in CASES if case.name == "spoofed-reject").envelope()
    honest = next(case for case in CASES if case.name == "honest-rsa").envelope()
    verdict = await engine.screen(Stage.MAIL, evil)
    assert verdict is not None
    assert str(verdict.reply) == "550 5.7.1 message refused (early, corpus.1)"
    assert await engine.screen(Stage.MAIL, honest) is None
    assert await engine.screen(Stage.RCPT, evil) is None
    assert refused == [(Stage.MAIL, "early")]


async def test_a_suffix_list_is_compared_and_decides_nothing() -> None:
    case = next(case for case in CASES if case.name == "spoofed-subdomain")
    engine = make_engine()
    without = await engine.judge(case.envelope(), Message(case.raw))
    engine.suffix_list = SuffixList()
    verdict = await engine.judge(case.envelope(), Message(case.raw))
    assert without.evidence.dmarc is not None
    assert without.evidence.dmarc.suffix_list_differs is None
    assert verdict.evidence.dmarc == replace(without.evidence.dmarc, suffix_list_differs=False)
    assert (verdict.disposition, verdict.rule) == (without.disposition, without.rule)


async def test_results_beyond_what_is_read_are_refused_in_every_mode_and_not_counted_as_a_bug() -> None:
    """They could not be taken out. The rule is one of its own: a stranger must not set off the alarm for our bugs."""
    raw = b"X-Filler: y\r\n" * 2500 + b"Authentication-Results: mx.example.net; dmarc=pass\r\n\r\nbody\r\n"
    for rules in ("default", "monitor"):
        verdict = await make_engine(rules).judge(CASES[0].envelope(), Message(raw))
        assert (verdict.disposition, verdict.rule) == (Disposition.REJECT, "gateway.unreadable")


async def test_what_leaves_keeps_what_was_found_when_it_came_in() -> None:
    """Forwarded mail carries our own inbound stamp; nothing was checked on its way out, so there is nothing to say."""
    case = next(case for case in CASES if case.name == "honest-rsa")
    envelope = case.envelope()
    session = replace(envelope.session, listener=Listener.OUTBOUND, trusted=True)
    stamped = f"Authentication-Results: {AUTHSERV_ID}; spf=pass\r\n".encode() + case.raw
    verdict = await make_engine().judge(replace(envelope, session=session), Message(stamped))
    assert verdict.disposition is Disposition.ACCEPT
    assert not verdict.edits


async def test_shadow_rules_are_judged_on_the_same_evidence_and_change_nothing() -> None:
    for case in CASES:
        alone = await make_engine().judge(case.envelope(), Message(case.raw))
        strict = await make_engine("strict").judge(case.envelope(), Message(case.raw))
        engine = make_engine()
        engine.shadow = load_rules("strict")
        both = await engine.judge(case.envelope(), Message(case.raw))
        assert replace(both, shadow=None) == alone
        if strict.disposition is alone.disposition:
            assert both.shadow is None
        else:
            assert both.shadow == Shadow(rule=strict.rule, disposition=strict.disposition)


async def test_a_bug_in_the_shadow_costs_no_mail_and_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    case = next(case for case in CASES if case.name == "honest-rsa")
    broken = load_rules("strict")
    object.__setattr__(broken, "_keys", {})
    engine = make_engine()
    engine.shadow = broken
    verdicts = [await engine.judge(case.envelope(), Message(case.raw)) for _ in range(3)]
    assert {verdict.disposition for verdict in verdicts} == {Disposition.ACCEPT}
    assert {verdict.shadow and verdict.shadow.rule for verdict in verdicts} == {"gateway.internal"}
    assert capsys.readouterr().out.count("shadow.failed") == 1


async def test_a_sender_whom_only_the_live_rules_refuse_is_undecided_in_the_shadow() -> None:
    early = (
        '[[rule]]\nid = "early"\nwhy = "w"\nstage = "mail"\nwhen = { mail_from = "evil.example" }\n'
        'action = "reject"\n[[rule]]\nid = "rest"\nwhy = "w"\naction = "accept"\n'
    )
    engine = Engine(world(), parse_rules(early), authserv_id=AUTHSERV_ID)
    evil = next(case for case in CASES if case.name == "spoofed-reject").envelope()
    engine.shadow = load_rules("default")
    verdict = await engine.screen(Stage.MAIL, evil)
    assert verdict is not None
    assert verdict.shadow == Shadow(rule="gateway.undecided", disposition=Disposition.ACCEPT)
    engine.shadow = parse_rules(early)
    agreed = await engine.screen(Stage.MAIL, evil)
    assert agreed is not None
    assert agreed.shadow is None


async def test_a_key_is_remembered_and_each_signature_is_still_its_own() -> None:
    """Good, forged and good again, by one engine that knows the key, the signer and his records."""
    engine = make_engine()
    honest = next(case for case in CASES if case.name == "honest-rsa")
    forged = honest.raw.replace(b"Subject: ", b"Subject: Re: ", 1)
    assert forged != honest.raw
    found = [
        (await engine.judge(honest.envelope(), Message(raw))).evidence.dkim[0].status
        for raw in (honest.raw, forged, honest.raw)
    ]
    assert found == ["pass", "fail", "pass"]
