"""`gateway doctor`: everything about a domain's mail that can be seen from outside, what is wrong with it, and the record that mends it."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from gateway.cli.errors import UsageFault
from gateway.cli.keys import read_domain
from gateway.cli.posture import own_facts
from gateway.cli.progress import progress
from gateway.cli.selector import selector_from
from gateway.cli.show import terminal
from gateway.cli.tls import Basis, basis_of, resolver_of
from gateway.cli.tls_probe import Probe, probe_all, probe_options
from gateway.cli.wiring import policy_fetcher, remote_port, validation_check
from gateway.dns.stub import StubResolver
from gateway.dns.zone import ZoneResolver
from gateway.doctor.case import Session, Tools
from gateway.doctor.codes import Code, Severity
from gateway.doctor.examine import examine
from gateway.doctor.report import Finding, Report, Section
from gateway.explain.problems import TLS_WORDS
from gateway.tlspolicy.model import Decision

EXIT_STATUS: Final = {
    Severity.OK: 0,
    Severity.NOTE: 0,
    Severity.WARNING: 10,
    Severity.UNKNOWN: 11,
    Severity.ERROR: 12,
}
"""By the worst finding."""

_STYLE: Final = {
    Severity.OK: "green",
    Severity.NOTE: "cyan",
    Severity.WARNING: "yellow",
    Severity.UNKNOWN: "magenta",
    Severity.ERROR: "bold red",
}
_MARK: Final = {
    Severity.OK: "+",
    Severity.NOTE: "·",
    Severity.WARNING: "!",
    Severity.UNKNOWN: "?",
    Severity.ERROR: "-",
}
_MAX_NAMES: Final = 3
_MAX_SELECTORS: Final = 50
_LABEL_WIDTH: Final = max(map(len, Section)) + 2
_PLURAL: Final = {
    Severity.ERROR: "errors",
    Severity.UNKNOWN: "unknown",
    Severity.WARNING: "warnings",
    Severity.NOTE: "notes",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorRequest:
    """What was asked on the command line; None: not said."""

    domain: str
    config: Path | None = None
    zone: Path | None = None
    selectors: Sequence[str] = ()
    connect: bool = False
    as_json: bool = False


def run_doctor(request: DoctorRequest) -> int:
    """Examine, print, and give the exit status.

    Raises:
        UsageFault: an argument that cannot be used.
        ConfigError: a config that cannot be.
    """
    domain = read_domain(request.domain.rpartition("@")[2])
    selectors = [selector_from(text) for text in request.selectors[:_MAX_SELECTORS]]
    basis = basis_of(request.config, request.zone)
    resolver = resolver_of(basis.dns)
    with progress(domain, len(Section), quiet=request.as_json) as tick:
        report = asyncio.run(
            _examine(domain, basis, resolver, selectors=selectors, connect=request.connect, tell=tick)
        )
    if request.as_json:
        sys.stdout.write(json.dumps(as_object(report)) + "\n")
    else:
        show(report, terminal())
    return EXIT_STATUS[report.worst]


async def _examine(
    domain: str,
    basis: Basis,
    resolver: StubResolver | ZoneResolver,
    *,
    selectors: Sequence[str],
    connect: bool,
    tell: Callable[[Section], None],
) -> Report:
    try:
        fetcher = policy_fetcher(basis.tls, resolver)
        probe = _prober(basis, resolver) if connect else None
    except OSError as error:
        raise UsageFault(f"[outbound_tls] ca_file = {basis.tls.ca_file}: {error}") from None
    try:
        return await examine(
            domain,
            Tools(
                resolver=resolver,
                validation=validation_check(resolver),
                fetcher=fetcher,
                probe=probe,
                port=remote_port(basis.outbound),
                selectors=selectors,
                facts=own_facts(basis.settings, domain, _to_stderr) if basis.settings else None,
                tell=tell,
            ),
        )
    finally:
        await fetcher.aclose()
        if isinstance(resolver, StubResolver):
            await resolver.aclose()


def _to_stderr(fault: str) -> None:
    print(fault, file=sys.stderr)


# Trying live


def _prober(
    basis: Basis, resolver: StubResolver | ZoneResolver
) -> Callable[[Decision], Awaitable[Sequence[Session]]]:
    options = probe_options(basis.tls, basis.outbound, remote_port(basis.outbound))

    async def probe(decision: Decision) -> list[Session]:
        return [_session(one) for one in await probe_all(decision, resolver, options)]

    return probe


def _session(probe: Probe) -> Session:
    facts, certificate = probe.facts, probe.certificate
    words = ""
    if certificate is not None:
        names = ", ".join(certificate.names[:_MAX_NAMES]) or "no name"
        words = f"certificate for {names}, until {certificate.expires:%Y-%m-%d}, by {certificate.issuer}"
    failure = None
    if facts.failure is not None:
        said = TLS_WORDS[facts.problem].says if facts.problem else ""
        failure = ": ".join(filter(None, (facts.detail or str(facts.failure), said)))
    return Session(
        host=probe.policy.host.name,
        address=facts.address,
        tls_version=facts.tls.version if facts.tls else None,
        cipher=facts.tls.cipher if facts.tls else "",
        expires=certificate.expires if certificate else None,
        certificate=words,
        pkix=probe.pkix,
        tlsa=probe.tlsa,
        has_tlsa=bool(probe.policy.tlsa),
        failure=failure,
        would_do=probe.would_do,
    )


# For people


def show(report: Report, console: Console) -> None:
    """The report, worst news in the first line; what is in order takes one line, and why something matters is said once."""
    console.print(_head(report))
    explained: set[Code] = set()
    for section, findings in report.sections:
        label = f"{section:<{_LABEL_WIDTH}}"
        for one in findings:
            _print(console, Text(label, "bold"), _MARK[one.severity], _line(one))
            label = " " * _LABEL_WIDTH
            if one.severity is not Severity.OK and one.code not in explained:
                explained.add(one.code)
                _print(console, Text(label), " ", Text(f"{one.why} ({one.standard})", "dim"))
            for published in one.publish:  # never broken: it is to be copied
                console.print(Text(f"{label}  {published}", "cyan"), soft_wrap=True)


def _head(report: Report) -> Text:
    counts = report.counts
    words = [
        Text(
            f"{counts[severity]} {_PLURAL[severity] if counts[severity] > 1 else severity}", _STYLE[severity]
        )
        for severity in (Severity.ERROR, Severity.UNKNOWN, Severity.WARNING, Severity.NOTE)
        if counts[severity]
    ]
    head = Text.assemble((report.domain, "bold"), ": ", Text(", ").join(words or [Text("in order", "green")]))
    return head.append(f"  ({report.questions} DNS questions, {report.seconds:.1f} s)", "dim")


def _line(one: Finding) -> Text:
    about = (f"{one.about}  ", "bold") if one.about else ""
    code = "" if one.severity is Severity.OK else f"  {one.code}"
    return Text.assemble(about, one.found, (code, _STYLE[one.severity]))


def _print(console: Console, label: Text, mark: str, text: Text) -> None:
    """A line behind label and mark; on a terminal a long one goes on under its words."""
    style = next((_STYLE[severity] for severity, each in _MARK.items() if each == mark), "")
    lines = [text] if console.soft_wrap else text.wrap(console, max(console.width - _LABEL_WIDTH - 2, 20))
    for line in lines:
        console.print(Text.assemble(label, (mark, style), " ", line), soft_wrap=True)
        label, mark = Text(" " * _LABEL_WIDTH), " "


# For programs


def as_object(report: Report) -> dict[str, object]:
    """The report for programs. Keys are only ever added."""
    return {
        "domain": report.domain,
        "worst": report.worst,
        "counts": {severity: report.counts[severity] for severity in Severity},
        "questions": report.questions,
        "seconds": round(report.seconds, 3),
        "findings": list(_findings(report)),
    }


def _findings(report: Report) -> Iterator[dict[str, object]]:
    for section, findings in report.sections:
        for one in findings:
            yield {
                "section": section.name.lower().replace("_", "-"),
                "code": one.code,
                "severity": one.severity,
                "about": one.about or None,
                "found": one.found,
                "why": one.why,
                "standard": one.standard,
                "publish": list(one.publish),
            }
