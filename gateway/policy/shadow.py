"""A second rule file beside the live one: what would it have done with the same messages, on the same evidence?

It never acts. A message that comes as far as its end is taken through all of the file's stages there, as the dialog would have
gone under it: its sender, each of its recipients, the message. A sender or recipient that the live rules refuse is put to the
file's rules for the same stage, and what the file would have said of the message then nobody can know.
"""

from typing import Final

from gateway.mail.value import replace
from gateway.policy.facts import Case
from gateway.policy.rules import Rule, RuleSet
from gateway.verdict import Disposition, Shadow, Stage

UNDECIDED_RULE: Final = "gateway.undecided"
"""The live rules refused the sender or a recipient, and no rule of the shadow would have: the message was never seen."""

_MESSAGE: Final = (
    Stage.MESSAGE
)  # asked of every message, and a name costs a tenth of looking into an enum in Python 3.11


def judge_again(rules: RuleSet, case: Case) -> Shadow:
    """What these rules would have done with a whole message."""
    if rules.asks_early and not rules.is_monitor:
        refused = _refuses(rules, Stage.MAIL, case)
        if refused is not None:
            return Shadow(rule=refused.id, disposition=refused.disposition)
        if rules.asks(Stage.RCPT) and case.envelope.recipients:
            return _judge_by_recipients(rules, case)
    return _judge_message(rules, case)


def screen_again(rules: RuleSet, stage: Stage, case: Case) -> Shadow:
    """What they would have done with a sender (MAIL), or with one recipient (RCPT), that the live rules refuse."""
    if not rules.is_monitor:
        for asked in (Stage.MAIL, Stage.RCPT) if stage is Stage.RCPT else (Stage.MAIL,):
            refused = _refuses(rules, asked, case)
            if refused is not None:
                return Shadow(rule=refused.id, disposition=refused.disposition)
    return Shadow(rule=UNDECIDED_RULE, disposition=Disposition.ACCEPT)


def _judge_by_recipients(rules: RuleSet, case: Case) -> Shadow:
    """A message whose last recipient is refused never comes; else it comes, for those who are left."""
    kept, refusals = [], []
    for recipient in case.envelope.recipients:
        alone = replace(case, envelope=replace(case.envelope, recipients=(recipient,)))
        refused = _refuses(rules, Stage.RCPT, alone)
        if refused is None:
            kept.append(recipient)
        else:
            refusals.append(refused)
    if not refusals:
        return _judge_message(rules, case)
    first = Shadow(rule=refusals[0].id, disposition=refusals[0].disposition)
    if not kept:
        return first
    judged = _judge_message(rules, replace(case, envelope=replace(case.envelope, recipients=tuple(kept))))
    return replace(judged, refused_recipients=len(refusals), recipients_rule=first.rule)


def _judge_message(rules: RuleSet, case: Case) -> Shadow:
    rule = rules.decide(_MESSAGE, case)
    if rule is None:
        raise AssertionError("a rule set's last rule takes every message")
    disposition = Disposition.ACCEPT if rules.is_monitor else rule.disposition
    return Shadow(rule=rule.id, disposition=disposition)


def _refuses(rules: RuleSet, stage: Stage, case: Case) -> Rule | None:
    """The rule of an early stage that refuses, if one does; an accept there only ends the stage."""
    if not rules.asks(stage):
        return None
    rule = rules.decide(stage, case)
    return rule if rule is not None and rule.reply is not None else None
