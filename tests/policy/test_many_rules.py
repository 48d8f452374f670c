"""Thousands of rules: found by the names and networks that they are about, and decided as if they were tried one by one."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.policy import RuleSet, parse_rules
from gateway.policy.facts import KEYS
from gateway.policy.rules import FEW, Rule
from gateway.verdict import Stage

CATCH_ALL = '[[rule]]\nid = "rest"\nwhy = "The rest."\naction = "accept"\n'

_NAMES = st.sampled_from(["a.test", "b.test", "x.a.test", "y.x.a.test", "c.b.test"])
_PATTERNS = st.one_of(
    _NAMES,
    _NAMES.map(lambda name: f".{name}"),
    _NAMES.map(lambda name: f"Ann@{name}"),
    st.just("<>"),
)
_SENDERS = st.one_of(
    _NAMES.map(lambda name: f"ann@{name}"), _NAMES.map(lambda name: f"bob@{name}"), st.just("<>")
)
_NETWORKS = st.sampled_from(
    ["192.0.2.0/24", "192.0.2.7", "0.0.0.0/0", "2001:db8::/32", "2001:db8::7", "::/0"]
)
_ADDRESSES = st.sampled_from(["192.0.2.7", "192.0.2.8", "198.51.100.1", "2001:db8::7", "2001:db9::1"])


def toml(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def some(words: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.lists(words, min_size=1, max_size=3).map(toml)


_CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "mail_from": some(_PATTERNS),
        "client_ip": some(_NETWORKS),
        "recipient": some(_NAMES),
        "spf": some(st.sampled_from(["fail", "pass"])),
    },
).filter(bool)


def write(number: int, when: dict[str, str], unless: dict[str, str]) -> str:
    def inline(conditions: dict[str, str]) -> str:
        return "{ " + ", ".join(f"{key} = {value}" for key, value in conditions.items()) + " }"

    more = f"unless = {inline(unless)}\n" if unless else ""
    return f'[[rule]]\nid = "r{number}"\nwhy = "w"\nwhen = {inline(when)}\n{more}action = "quarantine"\n'


def one_by_one(rules: RuleSet, facts: dict[str, object]) -> Rule | None:
    return next((rule for rule in rules.rules if rule.matches(facts)), None)


@given(
    rules=st.lists(st.tuples(_CONDITIONS, st.one_of(st.just({}), _CONDITIONS)), min_size=1, max_size=6),
    sender=_SENDERS,
    recipient=_NAMES,
    address=_ADDRESSES,
    spf=st.sampled_from(["fail", "pass"]),
)
def test_many_rules_decide_as_if_tried_one_by_one(
    rules: list[tuple[dict[str, str], dict[str, str]]], sender: str, recipient: str, address: str, spf: str
) -> None:
    nobody: list[tuple[dict[str, str], dict[str, str]]] = [
        ({"mail_from": f'"n{number}.invalid"'}, {}) for number in range(FEW)
    ]
    given_rules = [*nobody[: FEW // 2], *rules, *nobody[FEW // 2 :]]
    text = "".join(write(number, *rule) for number, rule in enumerate(given_rules)) + CATCH_ALL
    loaded = parse_rules(text)
    values = {"mail_from": sender, "recipient": f"bob@{recipient}", "client_ip": address, "spf": spf}
    facts = {key: KEYS[key].kind.absent for key in loaded.keys(Stage.MESSAGE)}
    facts |= {key: KEYS[key].kind.parse_fact(value) for key, value in values.items()}
    assert loaded.decide_facts(Stage.MESSAGE, facts) is one_by_one(loaded, facts)


def test_of_thousands_of_rules_only_those_about_this_sender_are_tried() -> None:
    text = "".join(write(number, {"mail_from": f'"d{number}.test"'}, {}) for number in range(1_000))
    loaded = parse_rules(text + CATCH_ALL)
    facts = {"mail_from": KEYS["mail_from"].kind.parse_fact("ann@d777.test")}
    tried = [each.rule.id for each in loaded._indexes[Stage.MESSAGE].candidates(facts)]
    assert tried == ["r777", "rest"]
    facts |= {"mail_from": KEYS["mail_from"].kind.parse_fact("ann@d1000.test")}
    choice = loaded.tell_facts(Stage.MESSAGE, facts)
    assert choice.rule is not None
    assert (choice.rule.id, choice.tried, choice.facts) == ("rest", (), {})
