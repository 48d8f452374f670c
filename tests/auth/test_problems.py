"""Whoever reads a problem's token in a log finds what it means: docs/problems.md and the enums are in step."""

import re
from pathlib import Path

import pytest

from gateway.auth.results import Problem
from gateway.tlspolicy.model import TlsProblem

TEXT = (Path(__file__).parents[2] / "docs" / "problems.md").read_text("utf-8")
ENTRIES = dict(re.findall(r'^### <a id="([^"]+)"></a>`\1`\n(.*?)(?=^#|\Z)', TEXT, re.MULTILINE | re.DOTALL))


ALL = [*Problem, *TlsProblem]


def test_every_problem_has_one_entry_in_the_enums_order() -> None:
    headings = re.findall(r"^### .*?`(.*)`$", TEXT, re.MULTILINE)
    assert headings == [problem.value for problem in ALL]
    assert list(ENTRIES) == headings  # each with its anchor


@pytest.mark.parametrize("problem", ALL)
def test_an_entry_says_what_it_means_who_acts_and_what_to_do(problem: Problem | TlsProblem) -> None:
    means, *items = [block for block in re.split(r"\n(?=- )|\n\n", ENTRIES[problem.value].strip()) if block]
    assert means.endswith(".")
    assert [item.partition(":**")[0] for item in items] == ["- **Who acts", "- **What to do", "- **See"]
    assert all(item.partition(":** ")[2] for item in items)
    assert re.search(r"RFC \d{4}", items[-1])
