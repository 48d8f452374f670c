"""Trying rules where not all is known: what is sure, and what depends on a fact that nobody wrote down.

A condition about an unknown fact is neither met nor not met, and so is the rule that it stands in, unless another condition
settles it. Nothing is guessed: where the answer depends on such a rule there is none.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gateway.policy.facts import Fact
from gateway.policy.rules import Condition, Rule, RuleSet
from gateway.verdict import Disposition, Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What the rules would have done, whatever the unknown facts were."""

    rule: str
    disposition: Disposition


@dataclass(frozen=True, slots=True, kw_only=True)
class Undecided:
    """It depends on what is not known.

    Attributes:
        rule: the first rule that may or may not take the message, and `keys`: what it asks that is not known.
        possible: all that may have become of the message.
    """

    rule: str
    keys: tuple[str, ...]
    possible: frozenset[Disposition]


@dataclass(slots=True)
class _Doubts:
    """Rules that may or may not take the message, in the order in which they are tried."""

    first: Rule | None = None
    possible: set[Disposition] = field(default_factory=set)

    def add(self, rule: Rule, disposition: Disposition | None) -> None:
        self.first = self.first or rule
        if disposition is not None:
            self.possible.add(disposition)


def decide_for_each(
    rules: RuleSet, facts: Mapping[str, Fact], recipients: Sequence[Fact]
) -> Decided | Undecided:
    """The same as `decide_partly` for a message to these, of whom rules at RCPT are asked one by one.

    As in the dialog: whom they refuse is left out, and a message without anybody left never comes.
    """
    if len(recipients) < 2 or rules.is_monitor or not rules.asks(Stage.RCPT):  # noqa: PLR2004
        return decide_partly(rules, facts)
    at_rcpt = {rule.id for rule in rules.rules if rule.stage is Stage.RCPT}
    kept, found = [], []
    for recipient in recipients:
        alone = decide_partly(rules, {**facts, "recipient": (recipient,)})
        found.append(alone)
        if alone.rule not in at_rcpt:
            kept.append(recipient)
    for alone in found:
        if isinstance(alone, Undecided):
            possible = frozenset[Disposition]().union(*map(possible_ends, found))
            return replace(alone, possible=possible)
    if not kept:
        return found[0]
    by_sender = found[0]
    if by_sender.rule in {rule.id for rule in rules.rules if rule.stage is Stage.MAIL}:
        return by_sender
    return decide_partly(rules, {**facts, "recipient": tuple(kept)}, stages=(Stage.MESSAGE,))


def possible_ends(found: Decided | Undecided) -> frozenset[Disposition]:
    """All that may have become of the message."""
    return found.possible if isinstance(found, Undecided) else frozenset({found.disposition})


def decide_partly(
    rules: RuleSet, facts: Mapping[str, Fact], *, stages: Sequence[Stage] = tuple(Stage)
) -> Decided | Undecided:
    """What these rules do with a message of which only `facts` are known; a key that is not there is unknown."""
    doubts = _Doubts()
    monitors = rules.is_monitor
    for stage in stages:
        if monitors and stage is not Stage.MESSAGE:
            continue
        for rule in rules.rules:
            if rule.stage is not stage or (taken := _takes(rule, facts)) is False:
                continue
            ends = rule.reply is not None or stage is Stage.MESSAGE
            disposition = Disposition.ACCEPT if monitors else rule.disposition
            if taken and doubts.first is None:
                if ends:
                    return Decided(rule=rule.id, disposition=disposition)
                break  # an early accept ends its stage
            if taken and ends and stage is Stage.MESSAGE:
                doubts.possible.add(disposition)
                return _undecided(doubts, facts)
            doubts.add(rule, disposition if ends else None)
    raise AssertionError("a rule set's last rule takes every message")


def _undecided(doubts: _Doubts, facts: Mapping[str, Fact]) -> Undecided:
    first = doubts.first
    if first is None:
        raise AssertionError("there is no doubt")
    asked = dict.fromkeys(condition.key for condition in (*first.when, *first.unless))
    unknown = tuple(key for key in asked if key not in facts)
    return Undecided(rule=first.id, keys=unknown, possible=frozenset(doubts.possible))


def _takes(rule: Rule, facts: Mapping[str, Fact]) -> bool | None:
    """Whether the rule takes the message; None: that depends on what is not known."""
    met = _all(rule.when, facts)
    excepted = _all(rule.unless, facts) if rule.unless else False
    if met is False or excepted is True:
        return False
    return True if met and excepted is False else None


def _all(conditions: Iterable[Condition], facts: Mapping[str, Fact]) -> bool | None:
    result: bool | None = True
    for condition in conditions:
        if condition.key not in facts:
            result = None
        elif not condition.matches(facts[condition.key]):
            return False
    return result
