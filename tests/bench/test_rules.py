"""What deciding costs with 1 to 10,000 rules: flat where rules name whom they are about, as block lists do."""

import sys
import time
from statistics import median

import pytest

from gateway.policy import parse_rules
from gateway.policy.facts import KEYS
from gateway.verdict import Stage
from tests.bench.figures import keep

pytestmark = pytest.mark.bench

ROUNDS, DECISIONS = 5, 200
KINDS = {
    "sender domains": 'mail_from = "d{}.test"',
    "networks": 'client_ip = "10.{0}.0.0/16"',
    "words only": 'spf = "fail", size_over = {}',
}


def cost_us(kind: str, count: int) -> float:
    condition = KINDS[kind]
    rules = parse_rules(
        "".join(
            f'[[rule]]\nid = "r{number}"\nwhy = "w"\naction = "quarantine"\nwhen = {{ {_fill(condition, number)} }}\n'
            for number in range(count)
        )
        + '[[rule]]\nid = "rest"\nwhy = "The rest."\naction = "accept"\n'
    )
    values = {"mail_from": "ann@nobody.test", "client_ip": "192.0.2.1", "spf": "pass"}
    facts = {key: KEYS[key].kind.absent for key in rules.keys(Stage.MESSAGE)}
    facts |= {key: KEYS[key].kind.parse_fact(value) for key, value in values.items() if key in facts}
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        for _ in range(DECISIONS):
            decided = rules.decide_facts(Stage.MESSAGE, facts)
        rounds.append((time.process_time() - began) / DECISIONS * 1e6)
    assert decided is not None
    assert decided.id == "rest"
    return median(rounds)


def _fill(condition: str, number: int) -> str:
    if "client_ip" in condition:
        return f'client_ip = "10.{number // 256}.{number % 256}.0/24"'
    return condition.format(number)


def test_rules() -> None:
    counts = (1, 10, 100, 1_000, 10_000)
    lines = [
        f"| rules about | {' | '.join(f'{count:,}' for count in counts)} |",
        "|---|" + "---|" * len(counts),
    ]
    for kind in KINDS:
        found = [cost_us(kind, count) for count in counts]
        lines.append(f"| {kind} | {' | '.join(f'{one:.1f}' for one in found)} |")
        if kind != "words only":
            assert found[-1] < 10 * found[1] + 50, f"{kind}: linear in the number of rules"
    text = "\n".join(lines)
    sys.stdout.write(f"\n\nmicroseconds a decision, no rule but the last matches\n\n{text}\n")
    keep("rules", {}, text)
