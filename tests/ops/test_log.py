import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.results import Evidence
from gateway.mail.author import find_author
from gateway.mail.message import Message
from gateway.mail.value import replace
from gateway.ops.config import LogSettings
from gateway.ops.log import LogOutput, judged_event, set_up_logging, watch_log
from gateway.verdict import Disposition, Shadow, Verdict
from tests.ops.evidence import REJECTED, envelope

MESSAGE = Message(b"From: boss@bank.example\r\nSubject: hello\r\n\r\na line end of its own\n\r\n")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    handlers, level = logging.root.handlers[:], logging.root.level
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def set_up(
    style: Literal["json", "console", "auto"] = "json",
    *,
    level: Literal["debug", "info", "warning", "error"] = "info",
    terminal: bool = False,
    colours: bool = False,
) -> io.BytesIO:
    stream = io.BytesIO()
    output = LogOutput(stream=stream, is_terminal=terminal, colours=colours)
    set_up_logging(LogSettings(level=level, format=style), output)
    return stream


def lines(stream: io.BytesIO) -> list[str]:
    return stream.getvalue().decode().splitlines()


def events(stream: io.BytesIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in lines(stream)]


def test_one_event_tells_the_whole_story_of_a_message() -> None:
    assert judged_event(envelope(), MESSAGE, find_author(MESSAGE), REJECTED, 0.0384) == {
        "id": "4f2a",
        "queue_id": None,
        "listener": "inbound",
        "client_ip": "192.0.2.1",
        "helo": "mail.example.com",
        "tls": None,
        "login": None,
        "mail_from": "ann@example.com",
        "recipients": 1,
        "author": "boss@bank.example",
        "author_fault": None,
        "disposition": "reject",
        "intended": "reject",
        "rule": "dmarc-reject",
        "spf": "permerror",
        "spf_helo": "none",
        "dkim": ["pass:list.example", "fail:bank.example", "neutral"],
        "dmarc": "fail",
        "dmarc_policy": "reject",
        "dmarc_applied": "reject",
        "sender_domain": "mx",
        "iprev": "permerror",
        "arc": None,
        "arc_sealers": [],
        "sealed": None,
        "signed": [],
        "not_signed": None,
        "problems": ["dkim.body-hash", "dkim.syntax", "iprev.no-name", "spf.too-many-lookups"],
        "defects": ["bare-line-end"],
        "size": len(MESSAGE),
        "ms": 38.4,
    }


def test_what_the_shadow_rules_would_have_done_is_told_only_where_it_differs() -> None:
    shadowed = replace(REJECTED, shadow=Shadow(rule="pass", disposition=Disposition.ACCEPT))
    event = judged_event(envelope(), MESSAGE, None, shadowed, 1)
    assert (event["shadow_rule"], event["shadow_disposition"]) == ("pass", "accept")
    some = Shadow(
        rule="pass", disposition=Disposition.ACCEPT, refused_recipients=2, recipients_rule="no-robots"
    )
    event = judged_event(envelope(), MESSAGE, None, replace(REJECTED, shadow=some), 1)
    assert (event["shadow_recipients_rule"], event["shadow_refused_recipients"]) == ("no-robots", 2)
    agreed = judged_event(envelope(), MESSAGE, None, REJECTED, 1)
    assert not [key for key in agreed if key.startswith("shadow")]


def test_what_was_not_asked_is_null_and_not_a_result() -> None:
    event = judged_event(
        envelope(trusted=True), MESSAGE, None, Verdict(disposition=Disposition.ACCEPT, rule="own-users"), 0
    )
    assert Evidence() == Verdict(disposition=Disposition.ACCEPT, rule="x").evidence
    assert [event[key] for key in ("author", "spf", "spf_helo", "dmarc", "dmarc_policy", "iprev")] == [
        None
    ] * 6
    assert (event["dkim"], event["problems"]) == ([], [])


def test_json_is_one_object_per_line_time_level_and_event_first() -> None:
    stream = set_up()
    structlog.get_logger().info("message.judged", **judged_event(envelope(), MESSAGE, None, REJECTED, 1))
    (event,) = events(stream)
    assert list(event)[:4] == ["time", "level", "event", "id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", str(event["time"]))
    assert (event["level"], event["event"], event["disposition"]) == ("info", "message.judged", "reject")


HOSTILE = 'x\r\n{"event":"message.judged","disposition":"accept"}\x1b[2J\u202e'


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_client_cannot_write_a_line_of_the_log(style: Literal["json", "console"]) -> None:
    stream = set_up(style)
    structlog.get_logger().info("session.refused", helo=HOSTILE, names=[HOSTILE], raw=HOSTILE.encode())
    assert len(lines(stream)) == 1
    assert lines(stream)[0].isprintable()


@pytest.mark.parametrize("style", ["json", "console"])
def test_nor_by_way_of_an_exception(style: Literal["json", "console"]) -> None:
    stream = set_up(style)
    try:
        raise ValueError(HOSTILE)  # noqa: TRY301 - a bug, as a listener would see it
    except ValueError:
        structlog.get_logger().exception("engine.failed", id="4f2a")
    said = lines(stream)
    traceback = said[1:] if style == "console" else str(json.loads(said[0])["exception"]).splitlines()
    assert all(line.startswith("  | ") and line.isprintable() for line in traceback)
    assert any("ValueError" in line for line in traceback)


def test_libraries_take_the_same_way() -> None:
    stream = set_up()
    logging.getLogger("asyncio").error("task %s failed", HOSTILE)
    logging.getLogger("aiohttp.access").info("GET /metrics")  # says nothing: not written
    logging.getLogger("asyncio").debug("using selector")
    logging.getLogger("x").error("wrong %d", "not a number")
    first, second = events(stream)
    assert (first["logger"], first["level"]) == ("asyncio", "error")
    assert second["event"] == "wrong %d"


def test_warnings_of_python_are_events() -> None:
    stream = set_up()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)
        warnings.warn("old way", DeprecationWarning, stacklevel=1)
    assert events(stream)[0]["logger"] == "py.warnings"


def test_what_is_below_the_level_is_not_written() -> None:
    stream = set_up(level="warning")
    log = structlog.get_logger()
    log.debug("no")
    log.info("no")
    log.warning("yes")
    assert [event["event"] for event in events(stream)] == ["yes"]


@pytest.mark.parametrize(("terminal", "as_json"), [(True, False), (False, True)])
def test_auto_is_for_whoever_reads(terminal: bool, as_json: bool) -> None:  # noqa: FBT001 - a table
    stream = set_up("auto", terminal=terminal)
    structlog.get_logger().info("gateway.started")
    assert lines(stream)[0].startswith("{") is as_json


def test_colours_only_where_wanted() -> None:
    plain, coloured = set_up("console"), set_up("console", colours=True)
    structlog.get_logger().info("gateway.started", listener="inbound")
    assert plain.getvalue() == b""
    assert b"\x1b[" in coloured.getvalue()
    third = set_up("console")
    structlog.get_logger().info("gateway.started", listener="inbound")
    assert b"\x1b" not in third.getvalue()


@pytest.mark.parametrize(
    ("environ", "is_terminal"),
    [({"NO_COLOR": "1"}, True), ({"TERM": "dumb"}, True), ({}, False)],
)
def test_no_colours(monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], is_terminal: bool) -> None:  # noqa: FBT001 - a table
    monkeypatch.setattr("sys.stderr.isatty", lambda: is_terminal, raising=False)
    assert not LogOutput.standard_error(environ).colours


def test_console_leaves_out_what_is_not_there() -> None:
    stream = set_up("console")
    structlog.get_logger().info("message.judged", **judged_event(envelope(), MESSAGE, None, REJECTED, 1))
    line = lines(stream)[0]
    assert "queue_id" not in line
    assert "disposition=reject" in line
    assert "dkim=pass:list.example,fail:bank.example,neutral" in line


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.one_of(st.text(), st.binary(), st.lists(st.text(), max_size=3))
    )
)
def test_any_text_is_one_line_that_reads_as_json(fields: dict[str, object]) -> None:
    stream = set_up()
    structlog.get_logger().info("event", **fields)
    assert stream.getvalue().count(b"\n") == 1
    assert set(events(stream)[0]) == {"time", "level", "event", *fields}


def test_every_line_is_counted_and_every_traceback() -> None:
    told: list[tuple[str, bool]] = []
    stream = set_up()
    watch_log(lambda level, is_bug: told.append((level, is_bug)))
    try:
        log = structlog.get_logger("test")
        log.info("message.judged")
        log.debug("not.written")
        log.warning("downstream.failed")
        logging.getLogger("library").error("by another way")
        log.error("engine.failed", exc_info=ValueError("x"))
    finally:
        watch_log(None)
    assert told == [("info", False), ("warning", False), ("error", False), ("error", True)]
    assert len(stream.getvalue().splitlines()) == len(told)
