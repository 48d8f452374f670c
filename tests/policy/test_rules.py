"""Rule files: what is decided, and what an operator is told about a file that cannot be used."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policy import SHIPPED, Mode, RuleError, load_rules, parse_rules
from gateway.policy.facts import KEYS
from gateway.verdict import Disposition, Stage

CATCH_ALL = '[[rule]]\nid = "rest"\nwhy = "The rest."\naction = "accept"\n'


def decide(text: str, **facts: object) -> str | None:
    rules = parse_rules(text)
    found = {key: KEYS[key].kind.absent for key in rules.keys(Stage.MESSAGE)}
    found |= {key: KEYS[key].kind.parse_fact(value) for key, value in facts.items()}
    rule = rules.decide_facts(Stage.MESSAGE, found)
    return rule.id if rule else None


def faults(text: str) -> list[str]:
    with pytest.raises(RuleError) as caught:
        parse_rules(text, name="r.toml")
    return [str(fault) for fault in caught.value.faults]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rules_load_and_their_examples_hold(name: str) -> None:
    rules = load_rules(name)
    assert rules.rules[-1].disposition is Disposition.ACCEPT
    assert rules.mode is (Mode.MONITOR if name == "monitor" else Mode.ENFORCE)


def test_first_match_decides() -> None:
    text = (
        '[[rule]]\nid = "a"\nwhy = "w"\nwhen = { spf = "fail" }\naction = "reject"\n'
        '[[rule]]\nid = "b"\nwhy = "w"\nwhen = { spf = ["fail", "softfail"] }\naction = "quarantine"\n'
        + CATCH_ALL
    )
    assert decide(text, spf="fail") == "a"
    assert decide(text, spf="softfail") == "b"
    assert decide(text, spf="pass") == "rest"


@pytest.mark.parametrize(
    ("when", "fact", "matches"),
    [
        ('mail_from = "bank.example"', {"mail_from": "x@bank.example"}, True),
        ('mail_from = "bank.example"', {"mail_from": "x@sub.bank.example"}, False),
        ('mail_from = ".bank.example"', {"mail_from": "x@sub.bank.example"}, True),
        ('mail_from = ".bank.example"', {"mail_from": "x@evilbank.example"}, False),
        ('mail_from = "ceo@bank.example"', {"mail_from": "CEO@bank.example"}, True),
        ('mail_from = "<>"', {"mail_from": "<>"}, True),
        ('mail_from = "bank.example"', {"mail_from": "<>"}, False),
        ('mail_from = "bücher.example"', {"mail_from": "x@xn--bcher-kva.example"}, True),
        ('client_ip = "192.0.2.0/24"', {"client_ip": "192.0.2.77"}, True),
        ('client_ip = ["192.0.2.0/24", "2001:db8::/32"]', {"client_ip": "2001:db8::1"}, True),
        ('client_ip = "192.0.2.0/24"', {"client_ip": "2001:db8::1"}, False),
        ("size_over = 1000", {"size_over": 1001}, True),
        ("size_over = 1000", {"size_over": 1000}, False),
        ('recipient = "abuse@example.net"', {"recipient": ["x@example.net", "abuse@example.net"]}, True),
        ('problem = "dkim.sha1"', {"problem": ["dkim.sha1", "spf.syntax"]}, True),
        ('defect = "nul"', {}, False),
        ("ours = false", {}, True),
    ],
)
def test_conditions(when: str, fact: dict[str, object], matches: bool) -> None:  # noqa: FBT001 - a table's column
    text = f'[[rule]]\nid = "hit"\nwhy = "w"\nwhen = {{ {when} }}\naction = "quarantine"\n' + CATCH_ALL
    assert (decide(text, **fact) == "hit") is matches


def test_unless_takes_back_only_when_all_of_it_holds() -> None:
    text = (
        '[[rule]]\nid = "hit"\nwhy = "w"\nwhen = { spf = "fail" }\nunless = { dkim = "pass", tls = true }\n'
        'action = "quarantine"\n' + CATCH_ALL
    )
    assert decide(text, spf="fail", dkim="pass") == "hit"
    assert decide(text, spf="fail", dkim="pass", tls=True) == "rest"


def test_all_faults_are_told_at_once_with_place_value_and_remedy() -> None:
    told = faults(
        '[[rule]]\nid = "Bad Id"\naction = "rejct"\nwhen = { dmrc = "fail" }\n'
        '[[rule]]\nid = "two"\nwhy = "w"\naction = "reject"\nwhen = { dmarc = "fial" }\nreply = "250 2.0.0 no"\n'
    )
    assert told == [
        f"r.toml: {line}"
        for line in (
            "rule 1: id = 'Bad Id': needed: lower-case letters, digits and hyphens, at most 48; it goes into replies, logs and metrics",
            'rule "rule-1": why: needed: one sentence that says what the rule is for',
            """rule "rule-1": action = 'rejct': one of: accept, quarantine, defer, reject; did you mean "reject"?""",
            'rule "rule-1": when: dmrc: unknown key; did you mean "dmarc"?',
            """rule "two": when.dmarc = 'fial': one of these is needed here: none, pass, fail, temperror, permerror; did you mean "fail"?""",
            """rule "two": reply = '250 2.0.0 no': "550 5.7.1 text" in plain ASCII is the form for reject""",
        )
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[[rule]", "TOML"),
        ("rule = 3", "[[rule]] tables"),
        ("", "must match everything"),
        (CATCH_ALL + CATCH_ALL, "an id of its own"),
        (CATCH_ALL + CATCH_ALL.replace('"rest"', '"x"'), "matches everything"),
        (
            CATCH_ALL + 'match = [{ spf = "pass" }]\n[[rule]]\nid = "z"\nwhy = "w"\naction = "accept"\n',
            "matches everything",
        ),
        ('based_on = "nowhere.toml"', "cannot be read"),
        ('mode = "loud"\n' + CATCH_ALL, "one of: enforce, monitor"),
        (
            '[[rule]]\nid = "m"\nwhy = "w"\nstage = "mail"\naction = "reject"\nwhen = { dkim = "fail" }\n'
            + CATCH_ALL,
            'is known only from the stage "message" on',
        ),
        (
            '[[rule]]\nid = "m"\nwhy = "w"\nstage = "mail"\naction = "quarantine"\n' + CATCH_ALL,
            "no message yet",
        ),
        (
            '[[rule]]\nid = "m"\nwhy = "w"\naction = "reject"\nwhen = { spf = "fail" }\nreply = "550 5.7.1 {password}"\n'
            + CATCH_ALL,
            "in braces may stand",
        ),
        (
            '[[rule]]\nid = "a"\nwhy = "w"\naction = "reject"\nwhen = { spf = "fail" }\n'
            '[[rule]]\nid = "b"\nwhy = "w"\naction = "defer"\nwhen = { spf = "fail" }\nmatch = [{ spf = "fail" }]\n'
            + CATCH_ALL,
            'rule "b": match[0]: is to be decided by this rule, but rule "a" decides it',
        ),
    ],
)
def test_faults_name_the_remedy(text: str, words: str) -> None:
    assert any(words in line for line in faults(text))


@given(st.text(max_size=400))
@settings(max_examples=150, deadline=None)
def test_any_text_is_rules_or_a_list_of_faults(text: str) -> None:
    with pytest.raises(RuleError) as caught:  # no text this short has a complete rule in it
        parse_rules(text)
    assert caught.value.faults
