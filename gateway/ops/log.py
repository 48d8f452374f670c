"""What the gateway says of itself: one event per fact and per line, JSON for machines or a line for people.

Text of strangers is escaped and cut here, in one place, whoever logs it: no peer can forge a line or move a terminal's
cursor. Of every message there is exactly one `message.judged`, from which its whole story can be told.
"""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, BinaryIO, Final

import msgspec
import structlog
from structlog.dev import ConsoleRenderer

from gateway.mail.author import Author, NoAuthor
from gateway.mail.envelope import Envelope, ip_text
from gateway.mail.message import Message
from gateway.ops.config import LogSettings
from gateway.ops.text import MAX_CHARACTERS, printable
from gateway.policy.facts import problems
from gateway.verdict import Verdict

MAX_TRACEBACK_LINES: Final = 200
MAX_ITEMS: Final = 50
"""Entries of one list in an event; more say nothing that these do not."""

MAX_PLAIN_BYTES: Final = 2_000
"""A longer line is looked at value by value."""

_LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}

Told = Callable[[str, bool], None]
"""Takes a line's level, and whether it has a traceback."""

Event = MutableMapping[str, Any]
Processor = Callable[[Any, str, Event], Event | str | bytes]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOutput:
    """Where the lines go, and whether a person is looking."""

    stream: BinaryIO
    is_terminal: bool
    colours: bool

    @classmethod
    def standard_error(cls, environ: Mapping[str, str] = os.environ) -> "LogOutput":
        """Standard error; colours only on a terminal, and not where NO_COLOR is set (no-color.org)."""
        is_terminal = sys.stderr.isatty()
        return cls(
            stream=sys.stderr.buffer,
            is_terminal=is_terminal,
            colours=is_terminal and not environ.get("NO_COLOR") and environ.get("TERM") != "dumb",
        )


def set_up_logging(settings: LogSettings, output: LogOutput | None = None) -> None:
    """Send structlog's and the standard library's events to one place, in one form.

    Loggers taken before remain valid, but keep what was in force when they were first used: call this once, at start-up.
    """
    output = output or LogOutput.standard_error()
    as_json = settings.format == "json" or (settings.format == "auto" and not output.is_terminal)
    level = _LEVELS[settings.level]
    logger = structlog.make_filtering_bound_logger(level)
    structlog.configure(
        processors=[_to_json] if as_json else [_prepare, _console(colours=output.colours)],
        wrapper_class=_straight(logger) if as_json and level <= logging.INFO else logger,
        logger_factory=structlog.BytesLoggerFactory(output.stream),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=max(level, logging.INFO), force=True)
    logging.captureWarnings(capture=True)
    # One line per scrape says nothing; its errors come by `aiohttp.server`.
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


_tell: Told | None = None


def watch_log(tell: Told | None) -> None:
    """Have every line counted. The log is the process's, and so is who counts; `tell` must not raise. None: nobody."""
    global _tell  # noqa: PLW0603 - structlog's own set-up is global, too, and its processors are fixed at the first line
    _tell = tell


def judged_event(
    envelope: Envelope,
    message: Message,
    author: Author | NoAuthor | None,
    verdict: Verdict,
    seconds: float,
) -> dict[str, object]:
    """The fields of `message.judged`: who, from where, as whom, what was found, what became of it.

    Absent is None: not asked, or not there; what the shadow rules would have done is there only where it differs. Peer text is
    as received; the log's set-up escapes it.
    """
    session, evidence, signing = envelope.session, verdict.evidence, verdict.signing
    spf, spf_helo, dmarc, iprev = evidence.spf, evidence.spf_helo, evidence.dmarc, evidence.iprev
    arc = evidence.arc
    event: dict[str, object] = {
        "id": envelope.id,
        "queue_id": envelope.queue_id,
        "listener": session.listener,
        "client_ip": ip_text(session.client_ip),
        "helo": session.helo,
        "tls": session.tls.version if session.tls else None,
        "login": session.login,
        "mail_from": envelope.mail_from.text if envelope.mail_from else "",
        "recipients": len(envelope.recipients),
        "author": author.mailbox.text if isinstance(author, Author) else None,
        "author_fault": author.fault if isinstance(author, NoAuthor) else None,
        "disposition": verdict.disposition,
        "intended": verdict.intended or verdict.disposition,
        "rule": verdict.rule,
        "spf": spf.status if spf else None,
        "spf_helo": spf_helo.status if spf_helo else None,
        "dkim": [f"{one.status}:{one.domain}" if one.domain else str(one.status) for one in evidence.dkim],
        "dmarc": dmarc.status if dmarc else None,
        "dmarc_policy": dmarc.requested if dmarc and dmarc.record else None,
        "dmarc_applied": dmarc.applied if dmarc else None,
        "sender_domain": evidence.sender_domain,
        "iprev": iprev.status if iprev else None,
        "arc": arc.status if arc else None,
        "arc_sealers": [one.sealer for one in arc.sets] if arc else [],
        "sealed": verdict.sealed,
        "signed": [str(one) for one in signing.made] if signing else [],
        "not_signed": signing.reason if signing else None,
        "problems": sorted(problems(evidence)),
        "defects": sorted(message.defects),
        "size": len(message),
        "ms": round(seconds * 1_000, 1),
    }
    if (shadow := verdict.shadow) is not None:
        event |= {"shadow_rule": shadow.rule, "shadow_disposition": shadow.disposition}
        if shadow.refused_recipients:
            event |= {
                "shadow_recipients_rule": shadow.recipients_rule,
                "shadow_refused_recipients": shadow.refused_recipients,
            }
    return event


def _prepare(_logger: object, method: str, event: Event) -> Event:
    """Time and level first, then the event, then its fields; all text fit to print."""
    prepared: Event = {
        "time": _write_time(time.time()),
        "level": "error" if method == "exception" else method,
        "event": printable(str(event.pop("event", ""))),
    }
    exc_info = event.pop("exc_info", None)
    for key, value in event.items():
        prepared[key] = _fit(value)
    if exc_info:
        prepared["exception"] = _traceback(exc_info)
    if _tell is not None:
        _tell(prepared["level"], bool(exc_info))
    return prepared


def _write_time(now: float) -> str:
    second = int(now)
    return f"{_write_second(second)}.{int((now - second) * 1_000):03}+00:00"


@lru_cache(maxsize=2)  # many lines a second
def _write_second(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _fit(value: object) -> object:
    if isinstance(value, str):  # by far the most
        plain = len(value) <= MAX_CHARACTERS and value.isascii() and value.isprintable()
        return value if plain else printable(value)
    if value is None or isinstance(value, (int, float)):
        return value
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_fit(one) for one in list(value)[:MAX_ITEMS]]
    if isinstance(value, bytes):
        return printable(value.decode("utf-8", "backslashreplace"))
    return printable(str(value))


def _traceback(exc_info: object) -> str:
    """A traceback in which no text of a peer's can pass for a line of the log."""
    error: BaseException | None = sys.exc_info()[1]
    match exc_info:
        case BaseException() as given:
            error = given
        case (_, BaseException() as given, _):
            error = given
        case _:
            pass
    if error is None:
        return ""
    lines = "".join(traceback.format_exception(error, limit=50)).splitlines()
    if len(lines) > MAX_TRACEBACK_LINES:
        lines = [*lines[: MAX_TRACEBACK_LINES // 2], "…", *lines[-MAX_TRACEBACK_LINES // 2 :]]
    return "\n".join(f"  | {printable(line)}" for line in lines)


_encode_plainly: Final = msgspec.json.Encoder().encode
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), check_circular=False).encode


def _straight(logger: type[Any]) -> type[Any]:
    """The same loggers, but a plain line at `info`, of which each message has two, does not go by way of any processors."""

    class StraightLogger(logger):  # type: ignore[misc]  # a class that is made at run time
        def info(self, event: str | None = None, *args: Any, **fields: Any) -> Any:
            line = None if args or self._context else _plain_line("info", event or "", fields)
            return super().info(event, *args, **fields) if line is None else self._logger.msg(line)

    return StraightLogger


def _to_json(logger: object, method: str, event: Event) -> bytes:
    line = _plain_line(method, event.get("event", ""), event)
    return line or _encode(_prepare(logger, method, event)).encode("utf-8", "replace")


def _plain_line(method: str, name: object, event: Event) -> bytes | None:
    """What `_prepare` and `_encode` would write, in a third of the time, where nothing has to be escaped or cut: nearly always.

    None where something may have to be; `event` is then as it was.
    """
    if "exc_info" in event or not (_plain_types.issuperset(map(type, event.values())) or _are_plain(event)):
        return None
    prepared = {"time": _write_time(time.time()), "level": method, "event": name}
    prepared.update(event)
    try:
        line = _encode_plainly(prepared)
    except (UnicodeError, OverflowError, TypeError):  # a lone surrogate; a number of more than 64 bits
        return None
    # What JSON escapes, and what is not ASCII, is the other's to write: the rest prints. Each text stands between two quotation marks.
    if b"\\" in line or b"\x7f" in line or len(line) > MAX_PLAIN_BYTES or not line.isascii():
        return None
    if len(line) > MAX_CHARACTERS and max(map(len, line.split(b'"'))) > MAX_CHARACTERS:
        return None
    if _tell is not None:
        _tell(method, False)  # noqa: FBT003 - see `Told`
    return line


_plain_types: Final[set[type]] = {str, int, float, type(None), list}


def _are_plain(event: Event) -> bool:
    """Whether these values look the same written either way; which of our enums do is remembered."""
    for value in event.values():
        if isinstance(value, str):
            _plain_types.add(type(value))
        elif type(value) not in _plain_types:
            return False
    return True


def _console(*, colours: bool) -> Processor:
    """Lines for people: the fields that are not there are left out."""
    render = ConsoleRenderer(
        colors=colours, sort_keys=False, timestamp_key="time", pad_event_to=24, pad_level=False
    )

    def to_line(logger: object, method: str, event: Event) -> bytes:
        told = {key: _plain(value) for key, value in event.items() if value is not None and value != []}
        return render(logger, method, told).encode("utf-8", "replace")

    return to_line


def _plain(value: object) -> object:
    """Enum members and lists as one plain word, which the renderer would write as Python source."""
    if isinstance(value, list):
        return ",".join(str(one) for one in value)
    return str(value) if isinstance(value, str) else value


class _ToStructlog(logging.Handler):
    """Libraries log by the standard library; their events take the same way as ours."""

    def emit(self, record: logging.LogRecord) -> None:
        """Hand on one record. Never raises: a library's bad format string is its own event."""
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        structlog.get_logger().log(
            record.levelno,
            text,
            logger=record.name,
            **({"exc_info": record.exc_info} if record.exc_info else {}),
        )
