"""`gateway trace`: what became of a message, and why; while the gateway runs, and after it."""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from rich.text import Text

from gateway.cli.errors import UsageFault
from gateway.cli.show import finding_line, terminal
from gateway.cli.wiring import build_hider
from gateway.explain import Tone
from gateway.explain.story import Fact, Station, outcome_tone, outcome_word, tell
from gateway.mail.errors import ParseError
from gateway.ops.config.faults import shown
from gateway.ops.config.load import load_config
from gateway.ops.text import printable, printable_json
from gateway.store import StoreError
from gateway.store.engine import open_to_read
from gateway.store.traces import Traces
from gateway.trace.document import spell_out
from gateway.trace.line import TraceLine
from gateway.trace.model import Trace
from gateway.trace.search import TraceFilter
from gateway.verdict import Disposition

FOUND_NOTHING: Final = 1
LOOK_AGAIN_S: Final = 0.5
MAX_FOLLOWED: Final = 500
"""Lines of one look; the next follows at once where there were as many."""

_STYLE: Final = {Tone.GOOD: "green", Tone.BAD: "red", Tone.DOUBT: "yellow", Tone.NEUTRAL: "dim"}
_AGO: Final = re.compile(r"([0-9]{1,6})([smhd])")
_UNITS: Final = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_AROUND: Final = "()[]{},;:.'\"\u201c\u201d"
"""Sticks to what is taken out of a sentence."""
_MAX_ADDRESS: Final = 60
_MAX_SAYS: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRequest:
    """What was asked on the command line; None: not said."""

    words: Sequence[str] = ()
    sender: str | None = None
    recipient: str | None = None
    author: str | None = None
    client: str | None = None
    disposition: str | None = None
    rule: str | None = None
    since: str | None = None
    until: str | None = None
    limit: int = 20
    follow: bool = False
    config: Path
    as_json: bool = False


def run_trace(request: TraceRequest) -> int:
    """Look, print, and give the exit status.

    Raises:
        UsageFault: an argument or the store cannot be used.
        ConfigError: the config cannot be.
    """
    wanted = _filter(request, datetime.now(UTC))
    settings = load_config(request.config, os.environ, look_at_files=False).settings
    if settings.store is None:
        raise UsageFault(f"{request.config}: has no [store], so that no traces are kept; add one")
    url = settings.store.url
    try:
        engine = open_to_read(url)
        try:
            traces = Traces(engine, build_hider(settings.trace))
            show = _show_document if request.as_json else _show_line
            if request.follow:
                return _follow(traces, wanted, request.limit, show)
            return _find(traces, wanted, request, show)
        finally:
            engine.dispose()
    except StoreError as error:
        raise UsageFault(printable(f"[store] url = {shown('url', url)}: {error}", _MAX_SAYS)) from error


_Show = Callable[[Traces, TraceLine], None]


def _find(traces: Traces, wanted: TraceFilter, request: TraceRequest, show: _Show) -> int:
    lines = traces.find(wanted, limit=request.limit)
    if not lines:
        print("Nothing was found.", file=sys.stderr)
        return FOUND_NOTHING
    if len(lines) == 1 and request.words and not request.as_json:
        _show_story(traces, lines[0])
        return 0
    for line in lines:
        show(traces, line)
    return 0


def _follow(traces: Traces, wanted: TraceFilter, limit: int, show: _Show) -> int:
    """What there is, oldest first, and then what comes."""
    last = traces.last_key()
    try:
        for line in reversed(traces.find(wanted, before=last + 1, limit=limit)):
            show(traces, line)
        while True:
            lines = traces.after(last, wanted, limit=MAX_FOLLOWED)
            for line in lines:
                show(traces, line)
                last = line.key
            sys.stdout.flush()
            if len(lines) < MAX_FOLLOWED:
                time.sleep(LOOK_AGAIN_S)
    except KeyboardInterrupt:
        return 0


# The question


def _filter(request: TraceRequest, now: datetime) -> TraceFilter:
    return TraceFilter(
        words=tuple(filter(None, (word.strip().strip(_AROUND) for word in request.words))),
        sender=request.sender,
        recipient=request.recipient,
        author=request.author,
        client=None if request.client is None else _address(request.client),
        disposition=None if request.disposition is None else _disposition(request.disposition),
        rule=request.rule,
        since=None if request.since is None else _moment("--since", request.since, now),
        until=None if request.until is None else _moment("--until", request.until, now),
    )


def _address(text: str) -> str:
    """As it is kept: `2001:DB8::0:1` is `2001:db8::1`."""
    try:
        return str(ip_address(text))
    except ValueError:
        raise UsageFault(f"--client {printable(text)}: is not an address; write 192.0.2.1") from None


def _disposition(text: str) -> Disposition:
    try:
        return Disposition(text.lower())
    except ValueError:
        raise UsageFault(f"--disposition {printable(text)}: is none of {', '.join(Disposition)}") from None


def _moment(option: str, text: str, now: datetime) -> datetime:
    """So long ago, or then; a time without a zone is UTC."""
    if ago := _AGO.fullmatch(text.strip()):
        try:
            return now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        except OverflowError:
            return datetime.min.replace(tzinfo=UTC)
    try:
        moment = datetime.fromisoformat(text.strip())
    except ValueError:
        raise UsageFault(f"{option} {printable(text)}: write 15m, 2h, 3d, or 2026-05-01T12:00:00Z") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


# The answer


def _show_document(traces: Traces, line: TraceLine) -> None:
    document = traces.document(line.key)
    if document is not None:  # else it went meanwhile
        sys.stdout.write(f"{printable_json(spell_out(document))}\n")


def _show_line(_traces: Traces, line: TraceLine) -> None:
    terminal().print(summary(line), soft_wrap=True)


def summary(line: TraceLine) -> Text:
    """One message in one line: when, what became of it, by which rule, its names, from whom, to whom."""
    word, tone = outcome_word(line.disposition, line.code), outcome_tone(line.disposition, line.code)
    more = f" +{len(line.recipients) - 1}" if len(line.recipients) > 1 else ""
    recipient = line.recipients[0] if line.recipients else "nobody"
    names = line.id if line.queue_id is None else f"{line.id} {line.queue_id}"
    return Text.assemble(
        (f"{line.at:%Y-%m-%d %H:%M:%S}Z ", "dim"),
        (f"{word:<11}", _STYLE[tone]),
        (f" {line.code or '   '}", _STYLE[tone]),
        f" {printable(names)} {line.listener} {line.client}"
        f" <{printable(line.sender, _MAX_ADDRESS)}> → <{printable(recipient, _MAX_ADDRESS)}>{more}",
        (f" {printable(line.rule or 'not judged')}", "dim"),
    )


def _show_story(traces: Traces, line: TraceLine) -> None:
    try:
        trace = traces.get(line.key)
    except ParseError:
        print(
            "It was kept by another release, in words that this one does not know; as it is:", file=sys.stderr
        )
        _show_document(traces, line)
        return
    if trace is None:
        raise UsageFault("It has just been deleted to make room.")
    console = terminal()
    for text in story(trace):
        console.print(text)


def story(trace: Trace) -> list[Text]:
    """The whole of it, for people."""
    told = tell(trace)
    answered = f"{trace.answered:%Y-%m-%d %H:%M:%S} UTC, {told.total_ms:,.0f} ms after MAIL"
    lines = [
        Text.assemble(
            f"{printable(trace.id)}: ",
            (told.outcome.upper(), f"bold {_STYLE[told.tone]}"),
            f" at {answered}",
        ),
        Text(f"  {printable(told.headline, _MAX_SAYS)}"),
    ]
    if trace.reply is not None:
        lines.append(Text(f"  The client heard: {printable(str(trace.reply), _MAX_SAYS)}"))
    for station in told.stations:
        lines += _station(station)
    lines += _dns(trace, told.dns_ms)
    return lines


def _station(station: Station) -> Iterable[Text]:
    head = Text.assemble("\n", (station.title, "bold"), "  ", (station.word, _STYLE[station.tone]))
    if not station.is_reached:
        return [head]
    width = max((len(fact.name) for fact in station.facts), default=0)
    return [
        head,
        *(_fact(fact, width) for fact in station.facts),
        *map(finding_line, station.findings),
        *(Text(f"    {printable(note, _MAX_SAYS)}") for note in station.notes),
    ]


def _fact(fact: Fact, width: int) -> Text:
    name = printable(fact.name)
    return Text.assemble((f"    {name:<{width}}  ", "dim"), printable(fact.value, _MAX_SAYS))


def _dns(trace: Trace, total_ms: float) -> Iterable[Text]:
    if not trace.questions and not trace.is_remembered:
        return
    count = len(trace.questions)
    word = f"{count} question{'' if count == 1 else 's'}, {total_ms:.1f} ms together"
    yield Text.assemble("\n", ("DNS", "bold"), "  ", (word, "dim"))
    if trace.is_remembered:
        yield Text(
            "    Client and sender's domain were known from an earlier message: nothing was asked for them."
        )
    width = max((len(printable(each.name)) for each in trace.questions), default=0)
    for each in trace.questions:
        name = printable(each.name)
        yield Text(
            f"    {name:<{width}}  {each.record_type:<5}  {printable(each.outcome):<8}  {each.ms:6.1f} ms"
        )
