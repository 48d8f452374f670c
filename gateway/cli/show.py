"""Putting verdicts on a terminal, for people, or as JSON lines, for programs.

Text of strangers passes `printable` before it is shown: a message being looked at must not move the cursor.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.text import Text

from gateway.explain import Explanation, Finding, Tone
from gateway.mail.author import Author, NoAuthor
from gateway.mail.envelope import Envelope
from gateway.mail.message import Message
from gateway.ops.log import judged_event
from gateway.ops.text import printable
from gateway.verdict import Disposition, Verdict

_STYLE: Final = {Tone.GOOD: "green", Tone.BAD: "red", Tone.DOUBT: "yellow", Tone.NEUTRAL: "dim"}
_DISPOSITION_STYLE: Final = {
    Disposition.ACCEPT: "bold green",
    Disposition.QUARANTINE: "bold yellow",
    Disposition.DEFER: "bold yellow",
    Disposition.REJECT: "bold red",
}
_MARK: Final = {Tone.GOOD: "+", Tone.BAD: "-", Tone.DOUBT: "?", Tone.NEUTRAL: " "}
_CHECK_WIDTH: Final = 18
_MAX_FIELD_CHARACTERS: Final = 4_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One message that was judged, and everything to be told of it."""

    name: str
    client_known: bool
    envelope: Envelope
    message: Message
    author: Author | NoAuthor
    verdict: Verdict
    explanation: Explanation
    seconds: float

    @property
    def author_text(self) -> str | None:
        """The author's address, where there is exactly one."""
        return self.author.mailbox.text if isinstance(self.author, Author) else None


def terminal(*, to_stderr: bool = False) -> Console:
    """A console that writes what it is given: no markup, no guessing of colours; colours only for a person (NO_COLOR)."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(stderr=to_stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.soft_wrap = True
    return console


def show_for_people(cases: Sequence[Case], *, with_reasons: bool) -> None:
    """Print each verdict, with the findings that it rests on."""
    console = terminal()
    for case in cases:
        for line in _lines(case, with_reasons=with_reasons):
            console.print(line)


def _lines(case: Case, *, with_reasons: bool) -> list[Text]:
    verdict = case.verdict
    head = Text.assemble(
        f"{printable(case.name)}: ",
        (verdict.disposition.upper(), _DISPOSITION_STYLE[verdict.disposition]),
        f" by rule {verdict.rule}",
    )
    if not with_reasons:
        return [head]
    author = case.author_text or "nobody beyond doubt"
    mail_from = case.envelope.mail_from.text if case.envelope.mail_from else ""
    return [
        head,
        Text(f"  from {printable(author)}, MAIL FROM:<{printable(mail_from)}>", "dim"),
        *map(finding_line, case.explanation.findings),
        Text(f"  = {printable(case.explanation.conclusion)}"),
        *_edits(case),
        Text(),
    ]


def finding_line(finding: Finding, check_width: int = _CHECK_WIDTH) -> Text:
    """One line: what was looked at, what was found, and why."""
    style = _STYLE[finding.tone]
    cause = f", {finding.problem}" if finding.problem else ""
    return Text.assemble(
        (f"  {_MARK[finding.tone]} {finding.check:<{check_width}}", "bold"),
        (f"{finding.status:<12}", style),
        f"{printable(finding.says, 1_000)} ",
        (f"({finding.section}{cause})", "dim"),
    )


def _edits(case: Case) -> list[Text]:
    edits, message = case.verdict.edits, case.message
    lines = [
        Text(f"  > {printable(line)}", "cyan")
        for field in edits.prepend
        for line in f"{field.name}: {field.value}"[:_MAX_FIELD_CHARACTERS].split("\r\n")
    ]
    for position in sorted(edits.remove):
        removed = message.field_bytes(position).decode("utf-8", "backslashreplace")
        lines.append(Text(f"  < {printable(' '.join(removed.split()), 200)}", "red"))
    return lines


def show_for_programs(cases: Sequence[Case]) -> None:
    """Print one JSON object per line and message. Keys are only ever added; absent is null."""
    for case in cases:
        sys.stdout.write(json.dumps(as_object(case), default=str) + "\n")


def as_object(case: Case) -> dict[str, object]:
    """`file`, `disposition`, `intended`, `rule`, `reply`, `client_known`, `findings`, `edits`, and `event` as it is logged."""
    verdict, message = case.verdict, case.message
    event = judged_event(case.envelope, message, case.author, verdict, case.seconds)
    return {
        "file": case.name,
        "disposition": verdict.disposition,
        "intended": verdict.intended or verdict.disposition,
        "rule": verdict.rule,
        "reply": str(verdict.reply) if verdict.reply else None,
        "client_known": case.client_known,
        "findings": [finding_object(finding) for finding in case.explanation.findings],
        "edits": {
            "prepend": [{"name": field.name, "value": field.value} for field in verdict.edits.prepend],
            "remove": [
                {"position": at, "name": message.fields[at].key.decode("ascii", "replace")}
                for at in sorted(verdict.edits.remove)
            ],
        },
        "event": event | {"client_ip": event["client_ip"] if case.client_known else None},
    }


def finding_object(finding: Finding) -> dict[str, object]:
    """`check`, `status`, `problem`, `says`, `section`."""
    return {
        "check": finding.check,
        "status": finding.status,
        "problem": finding.problem,
        "says": finding.says,
        "section": finding.section,
    }
