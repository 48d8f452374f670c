"""`gateway policy test`: on saved mail of every form, on logs good and bad."""

import asyncio
import gzip
import json
import mailbox
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from gateway.cli.app import app
from gateway.cli.judged_log import MAX_LINE_BYTES, known_facts, read_log
from gateway.cli.recalled import Passed
from gateway.cli.saved_mail import client_of
from gateway.engine import Engine, EngineOptions, Judged
from gateway.mail.message import Message
from gateway.ops.log import judged_event
from gateway.policy import load_rules, parse_rules
from gateway.policy.facts import KEYS, Case
from gateway.policy.partial import Decided, Undecided, decide_partly
from gateway.verdict import Disposition
from tests.corpus import AUTHSERV_ID, NOW, TRUSTED_SEALERS, load_cases, world, zone_text

CASES = load_cases()
GATHERED = {"client_name", "recipient"}
"""What a log never tells."""


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    path = tmp_path / "world.zone"
    path.write_text(zone_text(), encoding="utf-8")
    return path


@pytest.fixture
def config(tmp_path: Path, zone: Path) -> Path:
    path = tmp_path / "gateway.toml"
    path.write_text(
        f'authserv_id = "{AUTHSERV_ID}"\n[dns]\nzone_file = "{zone}"\n[milter]\nlisten = "unix:/run/gateway/m.sock"\n'
        f'[arc]\ntrusted_sealers = {list(TRUSTED_SEALERS)}\n[policy]\nshadow = "strict"\n'
    )
    return path


def replay(against: Path, *more: str | Path) -> Result:
    return CliRunner().invoke(app, ["policy", "test", "--against", str(against), *map(str, more)])


async def judged_all(rules: str = "default") -> list[Judged]:
    judged: list[Judged] = []
    options = EngineOptions(trusted_sealers=frozenset(TRUSTED_SEALERS))
    engine = Engine(
        world(),
        load_rules(rules),
        authserv_id=AUTHSERV_ID,
        options=options,
        observe=judged.append,
        clock=lambda: NOW,
    )
    for case in CASES:
        await engine.judge(case.envelope(), Message(case.raw))
    return judged


def event_of(judged: Judged, number: int = 0) -> dict[str, object]:
    event = judged_event(judged.envelope, judged.message, judged.author, judged.verdict, judged.seconds)
    told: dict[str, object] = json.loads(json.dumps({"event": "message.judged"} | event))
    return told | {"id": f"m{number}"}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The corpus, as the gateway logged it."""
    judged = asyncio.run(judged_all())
    path = tmp_path / "gateway.log"
    path.write_text("".join(json.dumps(event_of(one, number)) + "\n" for number, one in enumerate(judged)))
    return path


# What a log says


async def test_every_fact_of_the_log_is_the_one_that_the_rules_saw() -> None:
    for judged in await judged_all():
        case = Case(
            envelope=judged.envelope,
            evidence=judged.verdict.evidence,
            message=judged.message,
            author=judged.author,
            trusted_sealers=frozenset(TRUSTED_SEALERS),
        )
        facts = known_facts(event_of(judged), TRUSTED_SEALERS)
        if judged.verdict.rule.startswith("gateway."):
            continue
        for key, fact in facts.items():
            seen = KEYS[key].find(case)
            if key in {"author", "mail_from"}:
                assert str(fact) == str(seen), key
            else:
                assert fact == seen, (key, judged.verdict.rule)
        assert GATHERED.isdisjoint(facts)


def test_the_log_and_the_messages_change_alike(log: Path) -> None:
    result = replay(log, "--rules", "strict", "--json", "--limit", "1000")
    told = json.loads(result.stdout)
    strict = [judged.verdict for judged in asyncio.run(judged_all("strict"))]
    default = [judged.verdict for judged in asyncio.run(judged_all())]
    differ = {
        f"m{number}"
        for number, (one, other) in enumerate(zip(strict, default, strict=True))
        if one.disposition is not other.disposition
    }
    found = {example for change in told["changes"] for example in change["examples"]}
    assert found <= differ
    doubtful = sum(one["count"] for one in told["undecided"])
    assert len(differ) - len(found) <= doubtful
    assert (result.exit_code, told["messages"]) == (1, len(CASES))
    assert found


def test_the_same_rules_change_nothing(log: Path, config: Path) -> None:
    result = replay(log, "--rules", "default", "--config", config, "--json")
    told = json.loads(result.stdout)
    assert told["changes"] == []
    assert result.exit_code == (3 if told["undecided"] else 0)


def test_people_are_told_by_rule_with_examples(log: Path) -> None:
    result = replay(log, "--rules", "strict")
    assert "accept by pass" in result.stdout
    assert "reject by no-author" in result.stdout, result.stdout
    assert "such as m" in result.stdout
    assert f"of {len(CASES)} messages" in result.stdout.splitlines()[-1]
    assert "more refused" in result.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("line", "messages", "broken"),
    [
        (b"", 0, 0),
        (b"\n\n\n", 0, 0),
        (b"Jan 1 host gateway[1]: starting\n", 0, 0),
        (b'{"event":"message.judged"}\n', 0, 1),  # fields lack
        (b'{"event":"message.judged","id":1,"rule":2,"disposition":3}\n', 0, 1),
        (b'{"event":"message.judged","id":"a","rule":"pass","disposition":"lost"}\n', 0, 1),
        (b'["message.judged", {}]\n', 0, 1),
        (b'{"event":"message.judged","id":"a","rule":"pass","disposition":"acc', 0, 1),  # cut
        (b'{"x":' * 100_000 + b'"message.judged"\n', 0, 1),  # nested
        (b'{"event":"message.judged","x":"' + b"y" * 3 * MAX_LINE_BYTES + b'"}\n', 0, 1),  # giant
        (b'{"event":"other","x":"message.judged"}\n', 0, 0),
        (b'\xff\xfe{"event":"message.judged","id":"\xff"}\n', 0, 1),
        (b'host gw: {"event":"message.judged","id":"a","rule":"pass","disposition":"accept"}\n', 1, 0),
    ],
)
def test_lines_that_are_not_ours_are_passed_by(
    tmp_path: Path, line: bytes, messages: int, broken: int
) -> None:
    good = b'{"event":"message.judged","id":"ok","rule":"pass","disposition":"accept"}\n'
    path = tmp_path / "gateway.log"
    path.write_bytes(good + line.removesuffix(b"\n") + b"\n" + good)
    passed = Passed()
    assert len(list(read_log(path, None, passed))) == messages + 2
    assert passed.broken == broken


def test_a_rotated_log_is_read_and_a_cut_one_as_far_as_it_goes(tmp_path: Path) -> None:
    line = b'{"event":"message.judged","id":"ok","rule":"pass","disposition":"accept"}\n'
    packed = gzip.compress(line * 20_000)
    path = tmp_path / "gateway.log.1.gz"
    path.write_bytes(packed)
    passed = Passed()
    assert len(list(read_log(path, None, passed))) == 20_000
    assert not passed.is_cut
    path.write_bytes(packed[: len(packed) // 2])
    seen = len(list(read_log(path, None, passed)))
    assert 0 < seen < 20_000
    assert passed.is_cut


FIELDS = [
    "listener",
    "spf",
    "dkim",
    "dmarc",
    "arc",
    "arc_sealers",
    "helo",
    "mail_from",
    "author",
    "problems",
    "defects",
    "size",
    "client_ip",
    "dmarc_policy",
    "sender_domain",
    "tls",
    "login",
    "author_fault",
    "iprev",
]
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.just("pass"), st.lists)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_whatever_stands_in_an_event_is_known_or_unknown(event: Mapping[str, object]) -> None:
    facts = known_facts(event, ["sealer.example"])
    decide_partly(load_rules("strict"), facts)


def test_what_the_log_does_not_say_is_never_guessed(tmp_path: Path) -> None:
    old = '{"event":"message.judged","id":"old","rule":"pass","disposition":"accept","dmarc":"none","spf":"pass"}\n'
    path = tmp_path / "old.log"
    path.write_text(old * 7)
    result = replay(path, "--rules", "strict")
    assert result.exit_code == 3
    assert (
        '7 cannot be decided: rule "no-author" asks about author_fault, which is not in the log'
        in result.stdout
    )
    told = json.loads(replay(path, "--rules", "strict", "--json").stdout)
    assert (told["changed"], told["undecided"][0]["unknown"]) == (0, ["author_fault"])


# Three-valued rules

DOUBTFUL = """
[[rule]]
id = "early"
why = "w"
stage = "rcpt"
when = { recipient = "sales@example.net", spf = "fail" }
action = "reject"
[[rule]]
id = "late"
why = "w"
when = { dmarc = "fail" }
unless = { size_over = 100 }
action = "reject"
[[rule]]
id = "rest"
why = "w"
action = "accept"
"""


@pytest.mark.parametrize(
    ("facts", "rule", "possible"),
    [
        ({"spf": "pass", "dmarc": "pass"}, "rest", {"accept"}),  # settled by what is known
        ({"spf": "fail", "dmarc": "pass"}, None, {"accept", "reject"}),
        ({"spf": "pass", "dmarc": "fail"}, None, {"accept", "reject"}),
        ({"spf": "pass", "dmarc": "fail", "size_over": 10}, "late", {"reject"}),
        ({"spf": "pass", "dmarc": "fail", "size_over": 200}, "rest", {"accept"}),
        ({"spf": "fail", "dmarc": "fail", "size_over": 10}, None, {"reject"}),  # by one of them, surely
    ],
)
def test_only_what_is_sure_is_decided(
    facts: Mapping[str, object], rule: str | None, possible: set[str]
) -> None:
    found = decide_partly(parse_rules(DOUBTFUL), facts)
    if rule is None:
        assert isinstance(found, Undecided)
        assert found.possible == {Disposition(one) for one in possible}
    else:
        assert isinstance(found, Decided)
        assert (found.rule, {found.disposition}) == (rule, possible)


# Saved messages


def received(case_ip: str, helo: str, by: str = AUTHSERV_ID) -> bytes:
    return f"Received: from {helo} (unknown [{case_ip}])\r\n by {by} with ESMTP id x;\r\n Thu, 1 Jan 2026 00:00:00 +0000\r\n".encode()


def save(folder: Path, form: str) -> Path:
    """`spf-broken` and its like as a mail server would have stored them."""
    kept = {
        case.name: f"Return-Path: <{case.mail_from or ''}>\r\n".encode()
        + received(case.ip, case.helo)
        + case.raw
        for case in CASES
        if case.name in {"spoofed-none", "honest-rsa", "spoofed-reject"}
    }
    match form:
        case "maildir":
            maildir = mailbox.Maildir(folder / "m")
            for raw in kept.values():
                maildir.add(raw.replace(b"\r\n", b"\n"))
            return folder / "m"
        case "mbox":
            box = mailbox.mbox(folder / "m.mbox")
            for raw in kept.values():
                box.add(raw.replace(b"\r\n", b"\n"))
            box.close()
            return folder / "m.mbox"
        case _:
            (folder / "m").mkdir()
            for name, raw in kept.items():
                (folder / "m" / f"{name}.eml").write_bytes(raw)
            return folder / "m"


@pytest.mark.parametrize("form", ["maildir", "mbox", "folder"])
def test_saved_mail_is_judged_again_with_the_client_that_we_noted(
    tmp_path: Path, config: Path, form: str
) -> None:
    saved = save(tmp_path, form)
    result = replay(saved, "--config", config, "--live", "monitor", "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["messages"], told["clients_unknown"]) == (1, 3, 0)
    rules = {(one["live_rule"], one["live_disposition"], one["disposition"]) for one in told["changes"]}
    assert ("dmarc-reject", "accept", "reject") in rules
    same = json.loads(replay(saved, "--config", config, "--live", "strict", "--json").stdout)
    assert same["changes"] == []


def test_where_nothing_of_ours_names_the_client_it_is_not_judged(tmp_path: Path, config: Path) -> None:
    (tmp_path / "one.eml").write_bytes(
        received("192.0.2.1", "x.example", by="mx.stranger.example") + b"From: a@b.example\r\n\r\n"
    )
    told = json.loads(replay(tmp_path / "one.eml", "--config", config, "--json").stdout)
    assert (told["messages"], told["clients_unknown"]) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "ip"),
    [
        (received("192.0.2.1", "mail.example.com"), "192.0.2.1"),
        (received("127.0.0.1", "localhost") + received("192.0.2.1", "mail.example.com"), "192.0.2.1"),
        (received("192.0.2.9", "x.example", by="list.example") + received("192.0.2.1", "m.example"), "192.0.2.1"),
        (received("IPv6:2001:db8::1", "m.example"), "2001:db8::1"),
        (b"Received: from m.example (m.example [192.0.2.1])\r\n\t(using TLSv1.3 with cipher X (256/256 bits))\r\n\tby mx.example.net (Postfix) with ESMTPS id 1\r\n", "192.0.2.1"),
        (b"Received: from [192.0.2.1] (unknown [192.0.2.1] helo=bad name) by mx.example.net with SMTP id 1\r\n", "192.0.2.1"),
        (received("999.0.2.1", "m.example"), None),
        (b"Received: by mx.example.net id 1\r\n", None),
        (b"Received: from " + b"(" * 50_000 + b"\r\n", None),
    ],
)  # fmt: skip
def test_the_client_stands_in_our_own_trace_field(fields: bytes, ip: str | None) -> None:
    client = client_of(Message(fields + b"\r\n"), "mx.example.net")
    assert (str(client.ip) if client else None) == ip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which rules?"),
        (("--rules", "no-such.toml"), "cannot be read"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    path = tmp_path / "x.log"
    path.touch()
    result = replay(path, *arguments)
    assert result.exit_code == 2
    assert said in result.output
    assert replay(tmp_path / "absent", "--rules", "strict").exit_code == 2
