"""What the doctor found: a report is sections, a section is findings, and a finding has a code that never changes.

Text of strangers in a finding is printable and cut: it can go to a terminal as it is, and into HTML once that is escaped.
"""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.doctor.codes import WORDS, Code, Severity
from gateway.ops.text import printable
from gateway.publish.master_file import format_record
from gateway.publish.records import Wanted

MAX_FOUND_CHARACTERS: Final = 400


class Section(StrEnum):
    """The parts of a report, in their order; the words are those of the output."""

    DOMAIN = "Domain"
    MX = "Mail servers"
    SPF = "SPF"
    DKIM = "DKIM"
    DMARC = "DMARC"
    MTA_STS = "MTA-STS"
    TLSRPT = "TLS reports"
    DANE = "DANE"
    TRANSPORT = "Transport"
    CONNECT = "Live"
    OURS = "Our config"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        code: what it is, for programs and for docs/doctor.md.
        about: the host, selector or name that it concerns; empty: the domain.
        found: what stands there; printable, cut.
        publish: the lines of a master file that would mend it; none where no record would.
    """

    code: Code
    about: str = ""
    found: str
    publish: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        """How much it matters."""
        return WORDS[self.code].severity

    @property
    def why(self) -> str:
        """Why it matters, in a sentence or two."""
        return WORDS[self.code].why

    @property
    def standard(self) -> str:
        """The section of the RFC that says so."""
        return WORDS[self.code].standard


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All that was found.

    Attributes:
        domain: in A-labels.
        sections: those that were looked at, in order.
        questions: that the DNS was asked.
        seconds: that it took.
    """

    domain: str
    sections: tuple[tuple[Section, tuple[Finding, ...]], ...]
    questions: int = 0
    seconds: float = 0.0

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All of them, section by section."""
        return tuple(finding for _, findings in self.sections for finding in findings)

    @property
    def worst(self) -> Severity:
        """That of the worst finding."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in reversed(Severity) if severity in found), Severity.OK)

    @property
    def counts(self) -> Counter[Severity]:
        """How many of each."""
        return Counter(finding.severity for finding in self.findings)


def finding(code: Code, found: str, *, about: str = "", publish: tuple[str, ...] = ()) -> Finding:
    """A finding, its text made fit to be shown."""
    return Finding(
        code=code,
        about=printable(about, MAX_FOUND_CHARACTERS),
        found=printable(found, MAX_FOUND_CHARACTERS),
        publish=publish,
    )


def master_lines(wanted: Wanted) -> tuple[str, ...]:
    """What to publish, as a master file has it."""
    owner = f"{wanted.name}. IN {wanted.record_type}"
    return tuple(line for record in wanted.records for line in format_record(owner, record))
