"""Whoever sees a code finds what to do: docs/doctor.md and the codes are in step."""

import re
from pathlib import Path

import pytest

from gateway.doctor.codes import WORDS, Code, Severity

TEXT = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text("utf-8")
ENTRIES = dict(re.findall(r'^### <a id="([^"]+)"></a>`\1`\n(.*?)(?=^#|\Z)', TEXT, re.MULTILINE | re.DOTALL))


def test_every_code_has_its_words_and_one_entry_in_the_same_order() -> None:
    assert list(WORDS) == list(Code)
    assert re.findall(r"^### .*?`(.*)`$", TEXT, re.MULTILINE) == list(Code)
    assert list(ENTRIES) == list(Code)  # each with its anchor


@pytest.mark.parametrize("code", Code)
def test_an_entry_says_how_much_it_matters_why_and_what_to_do(code: Code) -> None:
    severity, why, standard = WORDS[code]
    head, *items = [block for block in re.split(r"\n(?=- )|\n\n", ENTRIES[code].strip()) if block]
    assert head == f"*{severity}.* {why}"
    assert [item.partition(":**")[0] for item in items] == ["- **What to do", "- **See"]
    assert items[0].endswith((".", "`.", ").")), items[0]
    assert (items[0] == "- **What to do:** Nothing.") <= (severity in {Severity.OK, Severity.NOTE})
    assert items[1] == f"- **See:** {standard}"


def test_only_what_our_config_wants_has_no_rfc() -> None:
    assert {code for code, words in WORDS.items() if not re.match(r"RFC \d{4} §", words.standard)} == {
        Code.OURS_OK,
        Code.OURS_MISSING,
        Code.OURS_DIFFERS,
    }
