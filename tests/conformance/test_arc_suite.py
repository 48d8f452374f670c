"""The ARC validation suite (of the draft's time; ValiMail's, later everybody's): every chain's result is as it expects, or listed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.auth.arc import check_arc
from gateway.auth.dkim import check_dkim
from gateway.auth.results import ArcResult, ArcStatus, Problem
from gateway.dns.resolver import RecordType
from gateway.dns.zone import ZoneResolver
from gateway.mail.message import Message

FILE = Path(__file__).parents[3] / "shared" / "conformance" / "arc" / "arc-draft-validation-tests.yml"
NOW = 1_700_000_000.0

DIFFERENT = {
    "ams_fields_c_na": (
        Problem.DKIM_SIGNATURE,
        "signed as relaxed and without c=, whose default is simple/simple (RFC 8617 §4.1.2, RFC 6376 §3.5)",
    ),
    "ams_fields_h_empty": (
        Problem.DKIM_SYNTAX,
        "h= lists at least one name, From among them (RFC 6376 §3.5, §5.4)",
    ),
    "ams_fields_h_mis_hdr": (Problem.DKIM_SYNTAX, "h= with an empty name among the others (RFC 6376 §3.5)"),
}
"""The suite expects a pass; we give a fail, with this cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    message: Message
    resolver: ZoneResolver
    expected: ArcStatus


def _cases() -> list[Case]:
    if not FILE.exists():
        return []
    suites: list[Any] = [suite for suite in yaml.safe_load_all(FILE.read_text()) if suite]
    return [
        Case(
            name=name,
            message=Message((test["message"] or "").replace("\n", "\r\n").encode()),
            resolver=ZoneResolver.from_records(
                {
                    (record, RecordType.TXT): [text.encode()]
                    for record, text in (suite.get("txt-records") or {}).items()
                }
            ),
            # Empty where the last seal says cv=fail: the draft had no word for it, RFC 8617 §5.2 step 2 has.
            expected=ArcStatus((test["cv"] or "Fail").strip().lower()),
        )
        for suite in suites
        for name, test in suite["tests"].items()
    ]


CASES = _cases()

pytestmark = pytest.mark.skipif(not CASES, reason="the ARC suite is not beside the project")


async def check(case: Case) -> ArcResult:
    return await check_arc(case.message, case.resolver, now=NOW)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in DIFFERENT], ids=lambda case: case.name
)
async def test_the_chain_is_as_the_suite_says(case: Case) -> None:
    result = await check(case)

    assert result.status is case.expected, result
    assert (result.problem is not None) is (case.expected is ArcStatus.FAIL)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in DIFFERENT], ids=lambda case: case.name
)
async def test_where_we_differ(case: Case) -> None:
    cause, reason = DIFFERENT[case.name]
    result = await check(case)

    assert (result.status, result.cause) == (ArcStatus.FAIL, cause), reason


async def test_the_oldest_pass_is_found() -> None:
    cases = {case.name: case for case in CASES}

    assert (await check(cases["cv_pass_i5_1"])).oldest_pass == 0
    assert (await check(cases["cv_pass_i2_1_ams1_invalid"])).oldest_pass == 2


def test_the_suite_is_whole() -> None:
    assert len(CASES) > 150
    assert DIFFERENT.keys() <= {case.name for case in CASES if case.expected is ArcStatus.PASS}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_no_message_disturbs_the_dkim_check(case: Case) -> None:
    results = await check_dkim(case.message, case.resolver, now=NOW)

    assert len(results) == len(case.message.positions(b"dkim-signature"))
