"""`gateway trace` as an operator runs it: a word out of a refusal, a log line or a header, and the story comes out."""

import json
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from gateway.cli.app import app
from gateway.mail.reply import Reply
from gateway.mail.value import replace
from gateway.store.engine import open_engine
from gateway.store.tables import TRACE_DOCUMENTS
from gateway.store.traces import Ring, TraceRing
from gateway.trace.addresses import AddressHider
from gateway.trace.document import read_document, spell_out, write_documents
from gateway.trace.model import Addressee, Trace
from gateway.verdict import Disposition, Stage
from tests.store.databases import sqlite_url
from tests.trace.samples import EVERYTHING, SESSION, batches, trace

KEY = "0123456789abcdef0123456789abcdef"


class Site:
    """A config and its store."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.config = folder / "gateway.toml"
        self.url = sqlite_url(folder / "gateway.db")
        self.config.write_text(
            f'authserv_id = "mx.example.net"\n[milter]\nlisten = "unix:{folder}/m.sock"\n'
            f'[store]\nurl = "{self.url}"\n{more}'
        )

    def write(self, *traces: Trace) -> None:
        engine = open_engine(self.url)
        with engine.begin() as connection:
            TraceRing(Ring()).write(connection, batches(traces))
        engine.dispose()

    def ask(self, *arguments: str, status: int = 0) -> str:
        result = CliRunner().invoke(app, ["trace", "--config", str(self.config), *arguments])
        assert result.exit_code == status, result.output
        return result.output


@pytest.fixture
def site(tmp_path: Path) -> Site:
    site = Site(tmp_path)
    site.write(
        trace("first.1", mail_from="carol@other.example", disposition=Disposition.ACCEPT, rule="pass", reply=Reply.of(250, "2.0.0", "ok")),
        EVERYTHING,
    )  # fmt: skip
    return site


@pytest.mark.parametrize(
    "words",
    [
        ["0f1e2d3c4b5a.1"],
        ["(0f1e2d3c4b5a.1)"],  # as it stands in a reply
        ["4VxYz12345:"],  # as it stands in Postfix's log
        ["4VxYz12345", "0f1e2d3c4b5a.1"],
        ["ann@example.com"],
        ["<Ann@Example.com>,"],
    ],
)
def test_one_message_is_told_whole(site: Site, words: list[str]) -> None:
    told = site.ask(*words)
    for line in (
        "0f1e2d3c4b5a.1: REFUSED at 2026-03-14 12:00:00 UTC",
        'Refused by the rule "dmarc-reject".',
        "The client heard: 550 5.7.1 refused by the policy of bank.example (0f1e2d3c4b5a.1)",
        "<bob@example.net>",
        "<nobody@example.net> — 550 5.1.1 no such user",
        "and 3 more",
        "the SPF record needs more than ten DNS lookups. (RFC 7208 §4.6.4, spf.too-many-lookups)",
        "(RFC 9989 §5.3)",
        "ours is false; it asks for true",
        "its exception holds: arc_trusted = true",
        "_dmarc.bank.example",
        "20.5 ms",
        "mx.example.org [2001:db8::25]",
        "250 2.0.0 Ok: queued as 4VxYz12345",
    ):
        assert line in told, told


def test_several_are_listed_newest_first(site: Site) -> None:
    first, second = site.ask().splitlines()
    assert first == (
        "2026-03-14 12:00:00Z refused     550 0f1e2d3c4b5a.1 4VxYz12345 inbound 192.0.2.1 "
        "<ann@example.com> → <bob@example.net> +1 dmarc-reject"
    )
    assert " accepted    250 first.1 " in second
    assert site.ask("bank.example", "--limit", "1").splitlines()[0].startswith("0f1e2d3c4b5a.1: ")


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (["--sender", "other.example"], ["first.1"]),
        (["--sender", "example.com", "--disposition", "REJECT"], ["0f1e2d3c4b5a.1"]),
        (["--recipient", "bob@example.net"], ["0f1e2d3c4b5a.1", "first.1"]),
        (["--author", "bank.example", "--rule", "pass"], ["first.1"]),
        (["--client", "192.0.2.1"], ["0f1e2d3c4b5a.1", "first.1"]),
        (["--since", "2026-03-14T12:00:00"], ["0f1e2d3c4b5a.1", "first.1"]),
        (["--since", "2026-03-14T12:00:00+02:00", "--until", "2026-03-14T12:00:01Z"], ["0f1e2d3c4b5a.1", "first.1"]),
        (["--until", "2h"], ["0f1e2d3c4b5a.1", "first.1"]),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_listed(site: Site, options: list[str], found: list[str]) -> None:
    documents = [json.loads(line) for line in site.ask(*options, "--json").splitlines()]
    assert [document["id"] for document in documents] == found


@pytest.mark.parametrize(
    "options",
    [["nobody@example.org"], ["--since", "1h"], ["--since", "999999d", "--rule", "x"], ["--sender", "<>"]],
)
def test_nothing_found_is_status_1(site: Site, options: list[str]) -> None:
    assert site.ask(*options, status=1) == "Nothing was found.\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--since", "yesterday"], "--since yesterday: write 15m, 2h, 3d, or 2026-05-01T12:00:00Z"),
        (["--client", "mail.example.com"], "is not an address; write 192.0.2.1"),
        (["--disposition", "burn"], "--disposition burn: is none of accept, quarantine, defer, reject"),
        (["--limit", "0"], "--limit"),
    ],
)
def test_what_cannot_be_used_is_status_2(site: Site, options: list[str], says: str) -> None:
    assert says in site.ask(*options, status=2)


def test_programs_get_every_field_of_what_is_kept(site: Site) -> None:
    text = site.ask("4VxYz12345", "--json")
    assert read_document(text) == EVERYTHING
    document = json.loads(text)
    assert list(document) == list(Trace.__struct_fields__)
    assert document["session"]["trusted"] is False  # which is not written where it is kept
    assert document["evidence"]["dkim"][0]["covers_whole_body"] is True
    assert document["recipients"][0] == list(EVERYTHING.recipients[0])


def test_programs_get_what_another_release_kept_as_it_is() -> None:
    assert spell_out('{"id": "1", "verdict": "burn"}') == '{"id": "1", "verdict": "burn"}'
    later = json.loads(write_documents([EVERYTHING])) | {"later": [1]}
    assert json.loads(spell_out(json.dumps(later)))["later"] == [1]


def test_no_store_says_what_to_do(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert "start the gateway once" in site.ask(status=2)
    assert not (tmp_path / "gateway.db").exists()
    site.config.write_text(f'authserv_id = "mx.example.net"\n[milter]\nlisten = "unix:{tmp_path}/m.sock"\n')
    assert "has no [store]" in site.ask(status=2)


HOSTILE = "\x1b[2J\u202e<b>\x07\r\nfake: line"


def test_hostile_text_moves_no_cursor(tmp_path: Path) -> None:
    site = Site(tmp_path)
    hostile = replace(
        EVERYTHING,
        queue_id=HOSTILE,
        message_id=f"<{HOSTILE}>",
        mail_from=f"{HOSTILE}@example.com",
        recipients=(Addressee(HOSTILE, 550, HOSTILE), Addressee(HOSTILE, 250)),
        author=HOSTILE,
        session=replace(SESSION, helo=HOSTILE, client_name=HOSTILE, login=HOSTILE),
        questions=tuple(each._replace(name=HOSTILE) for each in EVERYTHING.questions),
        facts={"ours": HOSTILE},
        rule=HOSTILE,
        removed=(HOSTILE,),
        downstream_failure=HOSTILE,
        attempts=tuple(replace(each, host=HOSTILE, detail=HOSTILE) for each in EVERYTHING.attempts),
    )
    site.write(hostile)
    for said in (site.ask(), site.ask("0f1e2d3c4b5a.1")):
        assert not any(character in said for character in "\x1b\u202e\x07\r")
        assert "\nfake" not in said
        assert "\\x1b[2J\\u202e<b>" in said


def test_a_trace_of_another_release_is_shown_as_it_is(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write(trace("old.1"))
    engine = open_engine(site.url)
    with engine.begin() as connection:
        document = b'{"stage": "elsewhere"}'
        connection.execute(update(TRACE_DOCUMENTS).values(documents=zlib.compress(document)))
    engine.dispose()
    assert '{"stage": "elsewhere"}' in site.ask("old.1")


def test_hashed_addresses_are_found_by_their_address(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    site = Site(tmp_path, '[trace]\naddresses = "hashed"\nhash_key_file = "key"\n')
    hider = AddressHider(KEY.encode())
    site.write(trace("hashed.1", mail_from=hider.address("ann@example.com")))
    assert "hashed.1" in site.ask("--sender", "Ann@example.com")
    assert "ann@" not in site.ask("--sender", "Ann@example.com")
    assert "hashed.1: " in site.ask("ann@example.com")


def test_refused_early_and_not_judged_are_told_too(tmp_path: Path) -> None:
    site = Site(tmp_path)
    early = Trace(
        id="early.1", session=SESSION, stage=Stage.RCPT, received=EVERYTHING.received,
        answered=EVERYTHING.answered, reply=Reply.of(550, "5.1.1", "no such user"), mail_from="ann@example.com",
        recipients=(Addressee("nobody@example.net", 550, "5.1.1 no such user"),),
    )  # fmt: skip
    site.write(early)
    told = site.ask("early.1")
    assert "REFUSED" in told
    assert "550 5.1.1 no such user" in told
    assert "Message  not reached" in told


@pytest.fixture
def following(site: Site) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "gateway", "trace", "--follow", "--config", str(site.config)]
    environ = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        yield process
        process.kill()


def test_following_tells_what_comes(site: Site, following: "subprocess.Popen[str]") -> None:
    assert following.stdout is not None
    assert "first.1" in following.stdout.readline()
    assert "0f1e2d3c4b5a.1" in following.stdout.readline()
    site.write(trace("later.1"), trace("later.2", answered=datetime.now(UTC) - timedelta(days=1)))
    assert "later.1" in following.stdout.readline()
    assert "later.2" in following.stdout.readline()
    following.send_signal(signal.SIGINT)
    assert following.wait(15) == 0
