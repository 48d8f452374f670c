"""The SPF project's own suite for RFC 7208: every scenario, every test."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.auth.results import SpfResult
from gateway.auth.spf import check_mail_from
from gateway.dns.resolver import Mx, Record, RecordType, Trouble
from gateway.dns.zone import ZoneResolver
from gateway.mail.address import Mailbox

SUITE = Path(__file__).parents[3] / "shared/conformance/spf/rfc7208-tests.yml"
TESTS_IN_SUITE = 203
RECEIVER = "mx.receiver.example"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    name: str
    zone: Mapping[str, list[Any]]
    helo: str
    client_ip: str
    mail_from: str
    accepted: frozenset[str]
    explanation: str | None


def _read_suite() -> Iterator[Case]:
    if not SUITE.exists():
        return
    for scenario in yaml.safe_load_all(SUITE.read_text()):
        zone = {str(name): entries for name, entries in scenario["zonedata"].items()}
        for name, test in scenario["tests"].items():
            result = test["result"]
            yield Case(
                name=name,
                zone=zone,
                helo=test["helo"],
                client_ip=test["host"],
                mail_from=test["mailfrom"],
                accepted=frozenset([result] if isinstance(result, str) else result),
                explanation=test.get("explanation"),
            )


def _resolver(zone: Mapping[str, list[Any]]) -> ZoneResolver:
    """The suite's zone data: an SPF entry stands for a TXT of the same text unless the name has TXT entries of its own."""
    records: dict[tuple[str, RecordType], list[Record]] = {}
    trouble: dict[tuple[str, RecordType], Trouble] = {}
    for name, entries in zone.items():
        pairs = [pair for entry in entries for pair in entry.items()]
        own_txt = any(kind == "TXT" for kind, _ in pairs)
        for kind, value in pairs:
            if kind in {"TIMEOUT", "CNAMELOOP"}:
                word = Trouble.TIMEOUT if kind == "TIMEOUT" else Trouble.SERVFAIL
                trouble |= dict.fromkeys(((name, record_type) for record_type in RecordType), word)
            elif kind != "SPF":
                if value != "NONE":
                    records.setdefault((name, RecordType(kind)), []).append(_record(kind, value))
            elif not own_txt:
                records.setdefault((name, RecordType.TXT), []).append(_record("TXT", value))
        for key in records:
            trouble.pop(key, None)  # what is written down is answered; the timeout is for everything else
    return ZoneResolver.from_records(records, trouble=trouble)


def _record(kind: str, value: Any) -> Record:
    match kind:
        case "A":
            return IPv4Address(value)
        case "AAAA":
            return IPv6Address(value)
        case "MX":
            return Mx(value[0], value[1].lower().removesuffix("."))
        case "TXT":
            return ("".join(value) if isinstance(value, list) else value).encode("latin-1")
        case _:
            return str(value).lower().removesuffix(".")


def _mailbox(text: str) -> Mailbox | None:
    local_part, _, domain = text.rpartition("@")
    return Mailbox(local_part, domain, text) if text else None


async def _run(case: Case) -> SpfResult:
    return await check_mail_from(
        ip_address(case.client_ip),
        _mailbox(case.mail_from),
        case.helo,
        _resolver(case.zone),
        receiver=RECEIVER,
    )


CASES = list(_read_suite())


@pytest.mark.skipif(not CASES, reason=f"the suite is not at {SUITE}")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
async def test_case(case: Case) -> None:
    result = await _run(case)
    assert result.status in case.accepted
    if case.explanation is not None:
        assert result.explanation == (None if case.explanation == "DEFAULT" else case.explanation)


@pytest.mark.skipif(not CASES, reason=f"the suite is not at {SUITE}")
def test_the_whole_suite_was_run() -> None:
    assert len({case.name for case in CASES}) == len(CASES) == TESTS_IN_SUITE
