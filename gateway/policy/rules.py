"""The operator's rules: the first that matches decides, and the last one always matches."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from gateway.mail.reply import Reply
from gateway.policy.facts import KEYS, Case, Fact, Matcher, Selective, fact_words
from gateway.verdict import Disposition, RuleTried, Stage

PLACEHOLDERS: Final = (
    "id",
    "rule",
    "author_domain",
    "mail_from_domain",
    "client_ip",
    "helo",
    "spf",
    "dkim",
    "dmarc",
)
"""What a rule's reply may name in braces."""


FEW: Final = 32
"""So many rules are tried one by one; where more of a stage name addresses or networks, those are looked up."""


class Mode(StrEnum):
    """What a rule file is for."""

    ENFORCE = "enforce"  # what the rules say is done
    MONITOR = (
        "monitor"  # everything is computed, stamped and counted; nothing is refused, deferred or set aside
    )


@dataclass(frozen=True, slots=True)
class ReplyTemplate:
    """A reply with placeholders; whatever is filled in, it stays one printable line (`Reply` sees to that)."""

    code: int
    enhanced: str
    text: str

    def fill(self, values: Mapping[str, str]) -> Reply:
        """The reply for one message. `values` has an entry for each of `PLACEHOLDERS`."""
        return Reply.of(self.code, self.enhanced, self.text.format_map(values))


@dataclass(frozen=True, slots=True)
class Condition:
    """One key's demand on a case."""

    key: str
    matches: Matcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Facts that a rule must, or must not, be the one to decide. Part of the rule file, run by `gateway policy check`."""

    facts: Mapping[str, Fact]
    decided_here: bool
    place: str
    """Where it stands: `policies/default.toml: rule "dmarc-reject", match[0]`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        id: short and stable: it is in the reply, the log and the metrics.
        why: the reason, for whoever reads the file or the trace.
        stage: when in the dialog it is tried.
        when: all of these must hold; none at all holds always.
        unless: and not all of these; an empty one is not asked.
        reply: for DEFER and REJECT.
    """

    id: str
    why: str
    stage: Stage
    when: tuple[Condition, ...]
    unless: tuple[Condition, ...]
    disposition: Disposition
    reply: ReplyTemplate | None
    examples: tuple[Example, ...] = ()

    def matches(self, facts: Mapping[str, Fact]) -> bool:
        """Whether the rule takes a case with these facts."""
        for condition in self.when:
            if not condition.matches(facts[condition.key]):
                return False
        return not self.unless or not all(
            condition.matches(facts[condition.key]) for condition in self.unless
        )


@dataclass(frozen=True, slots=True)
class _Steps:
    """What a trace says of a rule that did not take a message: one for each condition that may not be met, one for its exception."""

    rule: Rule
    unmet: tuple[RuleTried, ...]
    excepted: RuleTried | None

    @classmethod
    def of(cls, rule: Rule) -> "_Steps":
        exception = None
        if rule.unless:
            wanted = " and ".join(f"{each.key} = {each.matches}" for each in rule.unless)
            exception = RuleTried(rule.id, rule.unless[0].key, wanted, is_exception=True)
        return cls(
            rule, tuple(RuleTried(rule.id, each.key, str(each.matches)) for each in rule.when), exception
        )

    def missed(self, facts: Mapping[str, Fact]) -> RuleTried | None:
        """Why it did not take it; None where it did."""
        for condition, step in zip(self.rule.when, self.unmet, strict=True):
            if not condition.matches(facts[condition.key]):
                return step
        return None if self.rule.matches(facts) else self.excepted


class _Index:
    """The rules of one stage by the addresses, domains and networks that they name, so that thousands cost no more than a few.

    A rule is filed under the first such condition of its `when`; one without any may take every case and is always tried.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = rules
        self._always: list[int] = []
        self._filed: dict[tuple[str, type[Selective]], dict[Hashable, list[int]]] = {}
        for place, rule in enumerate(rules):
            for condition in rule.when:
                matches = condition.matches
                if isinstance(matches, Selective):
                    by_word = self._filed.setdefault((condition.key, type(matches)), {})
                    for word in matches.words():
                        by_word.setdefault(word, []).append(place)
                    break
            else:
                self._always.append(place)

    def candidates(self, facts: Mapping[str, Fact]) -> Iterable[Rule]:
        """In their order, all rules that can take a case with these facts, and some that will not."""
        places = set(self._always)
        for (key, kind), by_word in self._filed.items():
            for word in kind.words_of(facts[key]):
                places.update(by_word.get(word, ()))
        return (self._rules[place] for place in sorted(places))


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSet:
    """A rule file, loaded and checked; for the message stage its last rule always matches.

    Attributes:
        name: the file's name or path, as the operator gave it.
        rules: in the order in which they are tried.
    """

    name: str
    mode: Mode
    rules: tuple[Rule, ...]
    _by_stage: Mapping[Stage, tuple[Rule, ...]] = field(init=False, repr=False, compare=False)
    _keys: Mapping[Stage, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    _steps: Mapping[Stage, tuple[_Steps, ...]] = field(init=False, repr=False, compare=False)
    _indexes: Mapping[Stage, _Index] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_stage = {stage: tuple(rule for rule in self.rules if rule.stage is stage) for stage in Stage}
        keys = {
            stage: tuple(dict.fromkeys(c.key for rule in rules for c in (*rule.when, *rule.unless)))
            for stage, rules in by_stage.items()
        }
        object.__setattr__(self, "_by_stage", by_stage)
        object.__setattr__(self, "_keys", keys)
        steps = {stage: tuple(map(_Steps.of, rules)) for stage, rules in by_stage.items()}
        object.__setattr__(self, "_steps", steps)
        indexes = {stage: _Index(rules) for stage, rules in by_stage.items() if len(rules) > FEW}
        object.__setattr__(self, "_indexes", indexes)

    def asks(self, stage: Stage) -> bool:
        """Whether any rule is tried at this stage, so that a listener need not ask in vain."""
        return bool(self._by_stage[stage])

    def keys(self, stage: Stage) -> tuple[str, ...]:
        """What the rules of this stage ask about."""
        return self._keys[stage]

    def decide(self, stage: Stage, case: Case) -> Rule | None:
        """The first rule that takes this case; None only before the message stage."""
        return self.decide_facts(stage, self.find_facts(stage, case))

    def find_facts(self, stage: Stage, case: Case) -> dict[str, Fact]:
        """What the rules of this stage ask about, found in the case."""
        return {key: KEYS[key].find(case) for key in self._keys[stage]}

    def decide_facts(self, stage: Stage, facts: Mapping[str, Fact]) -> Rule | None:
        """The same for facts that were found already; every key of `keys(stage)` must be there."""
        index = self._indexes.get(stage)
        rules = index.candidates(facts) if index else self._by_stage[stage]
        return next((rule for rule in rules if rule.matches(facts)), None)

    def tried(self, stage: Stage, facts: Mapping[str, Fact]) -> tuple[tuple[RuleTried, ...], dict[str, str]]:
        """The rules before the one that takes these facts, each with what it missed; and what was found there, in words."""
        steps: list[RuleTried] = []
        for each in self._steps[stage]:
            step = each.missed(facts)
            if step is None:
                break
            steps.append(step)
        return tuple(steps), {key: fact_words(facts[key]) for key in {step.key for step in steps}}

    def failed_examples(self) -> list[str]:
        """Each example that does not hold, in words."""
        failures: list[str] = []
        for rule in self.rules:
            for example in rule.examples:
                facts = {key: KEYS[key].kind.absent for key in self._keys[rule.stage]} | dict(example.facts)
                decided = self.decide_facts(rule.stage, facts)
                if (decided is rule) == example.decided_here:
                    continue
                by = (
                    f'rule "{decided.id}" decides it'
                    if decided and decided is not rule
                    else ("this rule decides it" if decided else "no rule decides it")
                )
                wanted = "is to be decided by this rule" if example.decided_here else "is not for this rule"
                failures.append(f"{example.place}: {wanted}, but {by}")
        return failures
