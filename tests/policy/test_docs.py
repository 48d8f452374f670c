"""docs/rules.md lists exactly the keys that a rule may ask about, in the words of the table in the code."""

from pathlib import Path

from gateway.policy.facts import KEYS

DOCUMENT = Path(__file__).parents[2] / "docs" / "rules.md"


def test_every_key_is_documented_and_no_other() -> None:
    rows = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    documented = {row.split("|")[1].strip().strip("`"): row for row in rows}
    assert list(documented) == list(KEYS)
    for name, key in KEYS.items():
        assert f"| {key.known_at} |" in documented[name]
        assert key.about in documented[name]
