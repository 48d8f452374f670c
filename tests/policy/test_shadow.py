"""What a second rule file would have done: at the message's end, and where the live rules refuse before it."""

from collections.abc import Sequence
from ipaddress import IPv4Address

import pytest

from gateway.auth.results import Evidence
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Envelope, Listener, Recipient, Session
from gateway.policy import parse_rules
from gateway.policy.facts import Case
from gateway.policy.shadow import UNDECIDED_RULE, judge_again, screen_again
from gateway.verdict import Disposition, Shadow, Stage

RULES = """
[[rule]]
id = "no-robots"
why = "w"
stage = "mail"
when = { mail_from = "robot.example" }
action = "reject"
[[rule]]
id = "known"
why = "w"
stage = "rcpt"
when = { mail_from = "friend.example" }
action = "accept"
[[rule]]
id = "no-sales"
why = "w"
stage = "rcpt"
when = { recipient = "sales@example.net" }
action = "defer"
[[rule]]
id = "boss-only"
why = "w"
when = { recipient = "boss@example.net" }
action = "quarantine"
[[rule]]
id = "rest"
why = "w"
action = "accept"
"""


def case(mail_from: str, *recipients: str) -> Case:
    session = Session(
        id="s", listener=Listener.INBOUND, client_ip=IPv4Address("192.0.2.1"), helo="mail.example.com"
    )
    envelope = Envelope(
        id="s.1",
        session=session,
        mail_from=parse_mailbox(mail_from),
        recipients=tuple(Recipient(mailbox=parse_mailbox(each)) for each in recipients),
    )
    return Case(envelope=envelope, evidence=Evidence())


@pytest.mark.parametrize(
    ("mail_from", "recipients", "expected"),
    [
        ("a@b.example", ["ann@example.net"], Shadow(rule="rest", disposition=Disposition.ACCEPT)),
        ("a@robot.example", ["ann@example.net"], Shadow(rule="no-robots", disposition=Disposition.REJECT)),
        ("a@b.example", ["sales@example.net"], Shadow(rule="no-sales", disposition=Disposition.DEFER)),
        (  # an early accept ends the early rules
            "a@friend.example",
            ["sales@example.net"],
            Shadow(rule="rest", disposition=Disposition.ACCEPT),
        ),
        (  # the others get it
            "a@b.example",
            ["sales@example.net", "ann@example.net"],
            Shadow(
                rule="rest",
                disposition=Disposition.ACCEPT,
                refused_recipients=1,
                recipients_rule="no-sales",
            ),
        ),
        (
            "a@b.example",
            ["boss@example.net", "sales@example.net"],
            Shadow(
                rule="boss-only",
                disposition=Disposition.QUARANTINE,
                refused_recipients=1,
                recipients_rule="no-sales",
            ),
        ),
    ],
)
def test_a_message_is_taken_through_every_stage(
    mail_from: str, recipients: Sequence[str], expected: Shadow
) -> None:
    assert judge_again(parse_rules(RULES), case(mail_from, *recipients)) == expected


def test_whoever_is_refused_at_rcpt_is_no_reason_to_judge_the_message_otherwise() -> None:
    rules = parse_rules(RULES.replace('"boss@example.net"', '"sales@example.net"'))
    shadow = judge_again(rules, case("a@b.example", "sales@example.net", "ann@example.net"))
    assert (shadow.rule, shadow.disposition) == ("rest", Disposition.ACCEPT)


def test_a_monitor_refuses_nothing() -> None:
    rules = parse_rules('mode = "monitor"\n' + RULES)
    refused = case("a@robot.example", "boss@example.net")
    assert judge_again(rules, refused) == Shadow(rule="boss-only", disposition=Disposition.ACCEPT)
    assert screen_again(rules, Stage.MAIL, refused).rule == UNDECIDED_RULE


@pytest.mark.parametrize(
    ("stage", "mail_from", "rule", "disposition"),
    [
        (Stage.MAIL, "a@robot.example", "no-robots", Disposition.REJECT),
        (Stage.MAIL, "a@b.example", UNDECIDED_RULE, Disposition.ACCEPT),
        (Stage.RCPT, "a@robot.example", "no-robots", Disposition.REJECT),  # it would not have come so far
        (Stage.RCPT, "a@b.example", "no-sales", Disposition.DEFER),
        (Stage.RCPT, "a@friend.example", UNDECIDED_RULE, Disposition.ACCEPT),
    ],
)
def test_where_the_live_rules_refuse_early_the_stage_is_tried(
    stage: Stage, mail_from: str, rule: str, disposition: Disposition
) -> None:
    shadow = screen_again(parse_rules(RULES), stage, case(mail_from, "sales@example.net"))
    assert shadow == Shadow(rule=rule, disposition=disposition)


def test_what_counts_as_a_difference() -> None:
    accepted = Shadow(rule="a", disposition=Disposition.ACCEPT)
    assert not accepted.differs(Disposition.ACCEPT)
    assert accepted.differs(Disposition.REJECT)
    some = Shadow(rule="a", disposition=Disposition.ACCEPT, refused_recipients=1, recipients_rule="b")
    assert some.differs(Disposition.ACCEPT)
