"""A domain of ours: what its DNS says against what our config needs it to say (`gateway dns --check`)."""

from collections.abc import Iterator
from typing import Final

from gateway.doctor.case import Case
from gateway.doctor.codes import Code
from gateway.doctor.report import Finding, finding, master_lines
from gateway.publish.compare import Comparison, Status, compare
from gateway.publish.records import OURS, Purpose
from gateway.publish.wanted import wanted_records

_SHOWN: Final = 3
_ONLY_OURS: Final = OURS - {Purpose.DKIM, Purpose.TLSRPT}
"""Missing, too, these are told here; what else is missing the domain's own sections tell."""


async def examine_ours(case: Case) -> tuple[Finding, ...]:
    """What differs; what is missing, too, where only our config knows that it is. Nothing for the domains of others."""
    facts = case.tools.facts
    if facts is None:
        return ()
    comparisons = await compare(facts, wanted_records(facts), case.resolver)
    return tuple(_findings(comparisons)) or (
        finding(Code.OURS_OK, f"{len(comparisons)} records are as our config wants them"),
    )


def _findings(comparisons: tuple[Comparison, ...]) -> Iterator[Finding]:
    for one in comparisons:
        match one.status:
            case Status.OK:
                pass
            case Status.MISSING if one.wanted.purpose not in _ONLY_OURS:
                pass
            case Status.MISSING:
                yield _finding(Code.OURS_MISSING, one)
            case Status.DIFFERS:
                yield _finding(Code.OURS_DIFFERS, one)
            case Status.UNKNOWN:
                yield finding(Code.DNS_UNKNOWN, one.note, about=one.wanted.name)


def _finding(code: Code, one: Comparison) -> Finding:
    stands = f"; there stands {' | '.join(one.found[:_SHOWN])}" if one.found else ""
    found = f"{one.wanted.purpose}: {one.note or one.status}{stands}"
    return finding(code, found, about=one.wanted.name, publish=master_lines(one.wanted))
