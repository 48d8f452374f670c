"""The ARC validation suite's messages, as far as they concern DKIM.

An ARC-Message-Signature (RFC 8617 §4.1.2) is a DKIM signature under another name: wherever the suite expects the chain to pass, the one
of the highest instance must verify by the code that verifies DKIM. Where the chain is expected to fail, most often only a seal is wrong,
so nothing is asserted of the signature; but where its own hash or `b=` was tampered with, it must not verify.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.auth.dkim import check_dkim
from gateway.auth.dkim.content import SignedContent, verify_signature
from gateway.auth.dkim.key import select_key
from gateway.auth.dkim.signature import message_signature
from gateway.auth.dkim.tags import DkimError, parse_tags
from gateway.auth.results import Problem
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
    "ams_fields_h_empty": (Problem.DKIM_SYNTAX, "h= lists at least one name (RFC 6376 §3.5)"),
    "ams_fields_h_mis_hdr": (Problem.DKIM_SYNTAX, "h= with an empty name among the others (RFC 6376 §3.5)"),
}
"""The suite expects a pass; we do not give one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    message: Message
    records: dict[str, list[bytes]]
    passes: bool


def _cases() -> list[Case]:
    if not FILE.exists():
        return []
    suites: list[Any] = [suite for suite in yaml.safe_load_all(FILE.read_text()) if suite]
    return [
        Case(
            name=name,
            message=Message((test["message"] or "").replace("\n", "\r\n").encode()),
            records={name: [text.encode()] for name, text in (suite.get("txt-records") or {}).items()},
            passes=str(test["cv"]).strip() == "Pass",
        )
        for suite in suites
        for name, test in suite["tests"].items()
    ]


CASES = _cases()
PASSING = [case for case in CASES if case.passes]
TAMPERED = [
    case for case in CASES if case.name.startswith(("ams_fields_bh_", "ams_fields_b_")) and not case.passes
]

pytestmark = pytest.mark.skipif(not CASES, reason="the ARC suite is not beside the project")


def problem_of_newest(case: Case) -> Problem | None:
    message = case.message
    read = []
    for position in message.positions(b"arc-message-signature"):
        tags = parse_tags(message.value(message.fields[position]))
        read.append((int(tags["i"]), position, tags))
    _, position, tags = max(read, key=lambda item: item[0])
    signature = message_signature(tags, auid=None)
    key = select_key(case.records[signature.key_name])
    return verify_signature(SignedContent(message, [signature]), position, signature, key)


@pytest.mark.parametrize("case", PASSING, ids=lambda case: case.name)
def test_the_newest_message_signature_of_a_chain_that_passes_verifies(case: Case) -> None:
    try:
        problem = problem_of_newest(case)
    except DkimError as error:
        problem = error.problem

    expected, reason = DIFFERENT.get(case.name, (None, ""))
    assert problem is expected, reason


@pytest.mark.parametrize("case", TAMPERED, ids=lambda case: case.name)
def test_a_message_signature_that_was_tampered_with_does_not_verify(case: Case) -> None:
    problem: Problem | None
    try:
        problem = problem_of_newest(case)
    except DkimError as error:
        problem = error.problem

    assert problem is not None


def test_only_cases_of_the_suite_are_listed() -> None:
    assert DIFFERENT.keys() <= {case.name for case in PASSING}
    assert len(PASSING) > 20
    assert len(TAMPERED) > 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_no_message_makes_the_check_raise(case: Case) -> None:
    keys = {(name, RecordType.TXT): records for name, records in case.records.items()}

    results = await check_dkim(case.message, ZoneResolver.from_records(keys), now=NOW)

    assert len(results) == len(case.message.positions(b"dkim-signature"))
