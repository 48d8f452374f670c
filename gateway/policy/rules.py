"""The operator's rules: the first that matches decides, and the last one always matches."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

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


MAX_DECIDED: Final = 4_096
"""Combinations of facts of which a rule set remembers what becomes of them."""


MAX_TRIED: Final = 50
"""Rules that a trace tells of."""


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


class _Steps(NamedTuple):
    """A rule with what a trace says of it where it does not take a message."""

    rule: Rule
    conditions: tuple[tuple[str, Matcher, RuleTried], ...]
    excepted: RuleTried | None

    @classmethod
    def of(cls, rule: Rule) -> "_Steps":
        excepted = None
        if rule.unless:
            wanted = " and ".join(f"{each.key} = {each.matches}" for each in rule.unless)
            excepted = RuleTried(rule.id, rule.unless[0].key, wanted, is_exception=True)
        conditions = tuple(
            (each.key, each.matches, RuleTried(rule.id, each.key, str(each.matches))) for each in rule.when
        )
        return cls(rule, conditions, excepted)

    def missed(self, facts: Mapping[str, Fact]) -> RuleTried | None:
        """Why it does not take these facts; None where it does."""
        for key, matches, step in self.conditions:
            if not matches(facts[key]):
                return step
        if self.excepted is None or self.rule.matches(facts):
            return None
        return self.excepted


class Choice(NamedTuple):
    """The rule that takes a case, and why none before it did.

    Attributes:
        rule: None only before the message stage.
        tried: what the rules before it missed: the last `MAX_TRIED`; of many rules only those that could fit.
        facts: what their conditions found, by their keys, in words.
    """

    rule: Rule | None
    tried: tuple[RuleTried, ...]
    facts: Mapping[str, str]


class _Index:
    """The rules of one stage by the addresses, domains and networks that they name, so that thousands cost no more than a few.

    A rule is filed under the first such condition of its `when`; one without any may take every case and is always tried.
    """

    def __init__(self, rules: Sequence[_Steps]) -> None:
        self._rules = rules
        self._always: list[int] = []
        self._filed: dict[tuple[str, type[Selective]], dict[Hashable, list[int]]] = {}
        for place, steps in enumerate(rules):
            for condition in steps.rule.when:
                matches = condition.matches
                if isinstance(matches, Selective):
                    by_word = self._filed.setdefault((condition.key, type(matches)), {})
                    for word in matches.words():
                        by_word.setdefault(word, []).append(place)
                    break
            else:
                self._always.append(place)

    def candidates(self, facts: Mapping[str, Fact]) -> Iterable[_Steps]:
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
        is_monitor: `mode` is MONITOR.
        asks_early: it has rules for a sender or a recipient, before the message.
    """

    name: str
    mode: Mode
    rules: tuple[Rule, ...]
    is_monitor: bool = field(init=False, repr=False, compare=False)
    asks_early: bool = field(init=False, repr=False, compare=False)
    _by_stage: Mapping[Stage, tuple[_Steps, ...]] = field(init=False, repr=False, compare=False)
    _keys: Mapping[Stage, tuple[str, ...]] = field(init=False, repr=False, compare=False)
    _indexes: Mapping[Stage, _Index] = field(init=False, repr=False, compare=False)
    _finders: Mapping[Stage, tuple[Callable[[Case], Fact], ...]] = field(
        init=False, repr=False, compare=False
    )
    _decided: Mapping[Stage, dict[tuple[Fact, ...], Choice]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_stage = {stage: tuple(rule for rule in self.rules if rule.stage is stage) for stage in Stage}
        keys = {
            stage: tuple(dict.fromkeys(c.key for rule in rules for c in (*rule.when, *rule.unless)))
            for stage, rules in by_stage.items()
        }
        object.__setattr__(self, "is_monitor", self.mode is Mode.MONITOR)
        object.__setattr__(self, "asks_early", bool(by_stage[Stage.MAIL] or by_stage[Stage.RCPT]))
        steps = {stage: tuple(map(_Steps.of, rules)) for stage, rules in by_stage.items()}
        object.__setattr__(self, "_by_stage", steps)
        object.__setattr__(self, "_keys", keys)
        indexes = {stage: _Index(rules) for stage, rules in steps.items() if len(rules) > FEW}
        object.__setattr__(self, "_indexes", indexes)
        finders = {stage: tuple(KEYS[key].find for key in asked) for stage, asked in keys.items()}
        object.__setattr__(self, "_finders", finders)
        # Only where the facts are words: addresses and sizes are different each time.
        by_words = [stage for stage, asked in keys.items() if all(KEYS[key].kind.has_few for key in asked)]
        object.__setattr__(self, "_decided", {stage: {} for stage in by_words})

    def asks(self, stage: Stage) -> bool:
        """Whether any rule is tried at this stage, so that a listener need not ask in vain."""
        return bool(self._by_stage[stage])

    def keys(self, stage: Stage) -> tuple[str, ...]:
        """What the rules of this stage ask about."""
        return self._keys[stage]

    def decide(self, stage: Stage, case: Case) -> Rule | None:
        """The first rule that takes this case; None only before the message stage."""
        if stage in self._decided:
            return self._remembered(stage, case).rule
        return self.decide_facts(stage, self.find_facts(stage, case))

    def decide_and_tell(self, stage: Stage, case: Case) -> Choice:
        """The same, and what the rules before that one missed."""
        if stage in self._decided:
            return self._remembered(stage, case)
        return self.tell_facts(stage, self.find_facts(stage, case))

    def _remembered(self, stage: Stage, case: Case) -> Choice:
        decided = self._decided[stage]
        facts = tuple([find(case) for find in self._finders[stage]])
        choice = decided.get(facts)
        if choice is None:
            if len(decided) >= MAX_DECIDED:
                decided.clear()
            choice = self.tell_facts(stage, dict(zip(self._keys[stage], facts, strict=True)))
            decided[facts] = choice
        return choice

    def find_facts(self, stage: Stage, case: Case) -> dict[str, Fact]:
        """What the rules of this stage ask about, found in the case."""
        return {key: KEYS[key].find(case) for key in self._keys[stage]}

    def decide_facts(self, stage: Stage, facts: Mapping[str, Fact]) -> Rule | None:
        """The same for facts that were found already; every key of `keys(stage)` must be there."""
        return next((each.rule for each in self._candidates(stage, facts) if each.rule.matches(facts)), None)

    def tell_facts(self, stage: Stage, facts: Mapping[str, Fact]) -> Choice:
        """`decide_and_tell` for facts that were found already."""
        missed: deque[RuleTried] = deque(maxlen=MAX_TRIED)
        taken: Rule | None = None
        for steps in self._candidates(stage, facts):
            step = steps.missed(facts)
            if step is None:
                taken = steps.rule
                break
            missed.append(step)
        return Choice(taken, tuple(missed), {step.key: fact_words(facts[step.key]) for step in missed})

    def _candidates(self, stage: Stage, facts: Mapping[str, Fact]) -> Iterable[_Steps]:
        index = self._indexes.get(stage)
        return index.candidates(facts) if index else self._by_stage[stage]

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
