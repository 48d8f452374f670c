"""Reading rule files: TOML in, a `RuleSet` out, or the list of all that is wrong with the file."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from importlib.resources import files
from pathlib import Path
from typing import Final

from gateway.mail.errors import ParseError
from gateway.policy.facts import KEYS
from gateway.policy.rules import PLACEHOLDERS, Condition, Example, Mode, ReplyTemplate, Rule, RuleSet
from gateway.verdict import Disposition, Stage

SHIPPED: Final = ("default", "monitor", "strict")
"""Rule files that come with the gateway and are named without a path."""

_FILE_KEYS: Final = ("mode", "based_on", "rule")
_RULE_KEYS: Final = ("id", "why", "stage", "when", "unless", "action", "reply", "match", "skip")
_ID: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,47}")
_REPLY: Final = re.compile(r"([45][0-9]{2}) ([45]\.[0-9]{1,3}\.[0-9]{1,3}) (\S.*)")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_STAGES: Final = tuple(Stage)
_DEFAULT_REPLY: Final = {
    Disposition.DEFER: ReplyTemplate(451, "4.7.1", "please try again later ({rule}, {id})"),
    Disposition.REJECT: ReplyTemplate(550, "5.7.1", "message refused ({rule}, {id})"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFault:
    """One thing wrong in a rule file: where, what stands there, and what would be right."""

    file: str
    place: str
    value: str
    remedy: str

    def __str__(self) -> str:
        value = f" = {self.value}" if self.value else ""
        return f"{self.file}: {self.place}{value}: {self.remedy}"


class RuleError(ValueError):
    """A rule file that cannot be used. `faults` names everything that is wrong with it, in file order."""

    def __init__(self, faults: list[RuleFault]) -> None:
        super().__init__("\n".join(map(str, faults)))
        self.faults: Final = tuple(faults)


def shipped_folder() -> Path:
    """Where the shipped rule files are: inside an installed package, or beside it in a checkout."""
    package = Path(str(files("gateway")))
    installed = package / "policies"
    return installed if installed.is_dir() else package.parent / "policies"


def load_rules(source: str | Path) -> RuleSet:
    """Load a shipped rule set by its name (`SHIPPED`), or a file by its path.

    Raises:
        RuleError: with every fault of the file.
    """
    return _load(str(source), ())


def parse_rules(text: str, *, name: str = "rules", folder: Path | None = None) -> RuleSet:
    """The same for the text of a rule file; `folder` is where a relative `based_on` is looked for."""
    return _Reader(name, folder or Path(), (name,)).read(text)


def _load(source: str, seen: tuple[str, ...]) -> RuleSet:
    path = shipped_folder() / f"{source}.toml" if source in SHIPPED else Path(source)
    if source in seen:
        chain = " → ".join((*seen, source))
        raise RuleError(
            [RuleFault(file=source, place="based_on", value=source, remedy=f"goes in a circle: {chain}")]
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fault = RuleFault(
            file=source,
            place="file",
            value=str(path),
            remedy=f"cannot be read ({error}); give a path to a UTF-8 TOML file, or one of: {', '.join(SHIPPED)}",
        )
        raise RuleError([fault]) from error
    return _Reader(source, path.parent, (*seen, source)).read(text)


class _Reader:
    """Reads one file, and collects its faults instead of stopping at the first."""

    def __init__(self, file: str, folder: Path, seen: tuple[str, ...]) -> None:
        self.file = file
        self.folder = folder
        self.seen = seen
        self.faults: list[RuleFault] = []

    def fault(self, place: str, value: object, remedy: str) -> None:
        shown = "" if value is None else repr(value)[:120]
        self.faults.append(RuleFault(file=self.file, place=place, value=shown, remedy=remedy))

    def read(self, text: str) -> RuleSet:
        try:
            document = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            self.fault("TOML", None, str(error))
            raise RuleError(self.faults) from error
        self._only("file", document, _FILE_KEYS)
        mode = self._mode(document.get("mode", "enforce"))
        own = self._rules(document.get("rule", []))
        base = self._base(document.get("based_on"))
        self._check_catch_all((*own, *base))
        if self.faults:
            raise RuleError(self.faults)
        names = {rule.id for rule in own}
        rules = RuleSet(
            name=self.file, mode=mode, rules=(*own, *(rule for rule in base if rule.id not in names))
        )
        for failure in rules.failed_examples():
            self.fault("example", None, failure)
        if self.faults:
            raise RuleError(self.faults)
        return rules

    def _only(self, place: str, table: Mapping[str, object], allowed: tuple[str, ...]) -> None:
        for key in table:
            if key not in allowed:
                near = get_close_matches(key, allowed, n=1)
                hint = f'did you mean "{near[0]}"?' if near else f"known here: {', '.join(allowed)}"
                shown = key if key.isprintable() else ascii(key)
                self.fault(f"{place}: {shown[:120]}", None, f"unknown key; {hint}")

    def _mode(self, value: object) -> Mode:
        if value in list(Mode):
            return Mode(str(value))
        self.fault("mode", value, f"one of: {', '.join(Mode)}")
        return Mode.ENFORCE

    def _base(self, value: object) -> tuple[Rule, ...]:
        """The rules tried after this file's own; their examples were checked where they stand."""
        if value is None:
            return ()
        if not isinstance(value, str):
            self.fault("based_on", value, "the name of a shipped rule set or the path of a rule file")
            return ()
        try:
            base = _load(value if value in SHIPPED else str(self.folder / value), self.seen)
        except RuleError as error:
            self.faults.extend(error.faults)
            return ()
        return tuple(replace(rule, examples=()) for rule in base.rules)

    def _check_catch_all(self, rules: tuple[Rule, ...]) -> None:
        at_the_end = [rule for rule in rules if rule.stage is Stage.MESSAGE]
        if not at_the_end or at_the_end[-1].when or at_the_end[-1].unless:
            remedy = 'the last rule must match everything: end the file with a rule that has no "when", such as accept'
            self.fault("rule", at_the_end[-1].id if at_the_end else None, remedy)
        if self.faults:
            return  # a condition that could not be read is not a rule without conditions
        for rule in at_the_end[:-1]:
            if not rule.when and not rule.unless:
                self.fault(
                    f'rule "{rule.id}"', None, "matches everything, so that no rule after it is ever tried"
                )

    def _rules(self, tables: object) -> tuple[Rule, ...]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.fault("rule", None, "rules are written as [[rule]] tables")
            return ()
        rules: list[Rule] = []
        for number, table in enumerate(tables, start=1):
            rule = self._rule(number, table)
            if any(rule.id == other.id for other in rules):
                self.fault(f"rule {number}: id", rule.id, "every rule has an id of its own")
            rules.append(rule)
        return tuple(rules)

    def _rule(self, number: int, table: Mapping[str, object]) -> Rule:
        rule_id = table.get("id")
        if not isinstance(rule_id, str) or not _ID.fullmatch(rule_id):
            remedy = "needed: lower-case letters, digits and hyphens, at most 48; it goes into replies, logs and metrics"
            self.fault(f"rule {number}: id", rule_id, remedy)
            rule_id = f"rule-{number}"
        place = f'rule "{rule_id}"'
        self._only(place, table, _RULE_KEYS)
        why = table.get("why")
        if not isinstance(why, str) or not why.strip():
            self.fault(f"{place}: why", why, "needed: one sentence that says what the rule is for")
        stage = self._stage(place, table.get("stage", Stage.MESSAGE))
        disposition = self._disposition(place, stage, table.get("action"))
        return Rule(
            id=rule_id,
            why=str(why),
            stage=stage,
            when=self._conditions(f"{place}: when", stage, table.get("when", {})),
            unless=self._conditions(f"{place}: unless", stage, table.get("unless", {})),
            disposition=disposition,
            reply=self._reply(place, disposition, table.get("reply")),
            examples=(
                *self._examples(place, "match", table.get("match", [])),
                *self._examples(place, "skip", table.get("skip", [])),
            ),
        )

    def _stage(self, place: str, value: object) -> Stage:
        if value in _STAGES:
            return Stage(str(value))
        self.fault(f"{place}: stage", value, f"one of: {', '.join(Stage)}")
        return Stage.MESSAGE

    def _disposition(self, place: str, stage: Stage, value: object) -> Disposition:
        if value not in list(Disposition):
            near = get_close_matches(str(value), list(Disposition), n=1)
            hint = f'; did you mean "{near[0]}"?' if near else ""
            self.fault(f"{place}: action", value, f"one of: {', '.join(Disposition)}{hint}")
            return Disposition.ACCEPT
        disposition = Disposition(str(value))
        if stage is not Stage.MESSAGE and disposition is Disposition.QUARANTINE:
            self.fault(
                f"{place}: action", value, "there is no message yet at this stage: defer, reject or accept"
            )
        return disposition

    def _conditions(self, place: str, stage: Stage, table: object) -> tuple[Condition, ...]:
        if not isinstance(table, dict):
            self.fault(place, table, 'a table such as { dmarc = "fail" }')
            return ()
        conditions: list[Condition] = []
        for name, value in table.items():
            if not self._known_key(place, name):
                continue
            key = KEYS[name]
            if _STAGES.index(key.known_at) > _STAGES.index(stage):
                remedy = (
                    f'is known only from the stage "{key.known_at}" on, and this rule is tried at "{stage}"'
                )
                self.fault(f"{place}.{name}", value, remedy)
                continue
            try:
                conditions.append(Condition(name, key.kind.parse_condition(value)))
            except ParseError as error:
                self.fault(f"{place}.{name}", value, _with_hint(str(error), value))
        return tuple(conditions)

    def _known_key(self, place: str, name: str) -> bool:
        if name not in KEYS:
            self._only(place, {name: None}, tuple(KEYS))
        return name in KEYS

    def _reply(self, place: str, disposition: Disposition, value: object) -> ReplyTemplate | None:
        match disposition:
            case Disposition.ACCEPT | Disposition.QUARANTINE:
                if value is not None:
                    self.fault(
                        f"{place}: reply",
                        value,
                        "goes only with defer and reject: else the mail server answers",
                    )
                return None
            case Disposition.DEFER | Disposition.REJECT:
                pass
        if value is None:
            return _DEFAULT_REPLY[disposition]
        digit = "4" if disposition is Disposition.DEFER else "5"
        match = _REPLY.fullmatch(value) if isinstance(value, str) else None
        if not match or match[1][0] != digit or match[2][0] != digit or not match[3].isascii():
            remedy = f'"{digit}50 {digit}.7.1 text" in plain ASCII is the form for {disposition}'
            self.fault(f"{place}: reply", value, remedy)
            return None
        unknown = [name for name in _PLACEHOLDER.findall(match[3]) if name not in PLACEHOLDERS]
        if unknown or _PLACEHOLDER.sub("", match[3]).count("{") or _PLACEHOLDER.sub("", match[3]).count("}"):
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            self.fault(f"{place}: reply", value, f"in braces may stand: {known}")
            return None
        return ReplyTemplate(int(match[1]), match[2], match[3])

    def _examples(self, place: str, kind: str, tables: object) -> tuple[Example, ...]:
        if not isinstance(tables, list) or not all(isinstance(table, dict) for table in tables):
            self.fault(f"{place}: {kind}", tables, 'a list of facts such as [{ dmarc = "fail" }]')
            return ()
        examples: list[Example] = []
        for at, table in enumerate(tables):
            where = f"{place}: {kind}[{at}]"
            facts: dict[str, object] = {}
            for name, value in table.items():
                if not self._known_key(where, name):
                    continue
                try:
                    facts[name] = KEYS[name].kind.parse_fact(value)
                except ParseError as error:
                    self.fault(f"{where}.{name}", value, _with_hint(str(error), value))
            examples.append(Example(facts=facts, decided_here=kind == "match", place=where))
        return tuple(examples)


def _with_hint(message: str, value: object) -> str:
    """Add the word that was probably meant."""
    _, _, words = message.partition(": ")
    near = get_close_matches(str(value), words.split(", "), n=1) if words else []
    return f'{message}; did you mean "{near[0]}"?' if near else message
