"""`gateway policy test --against store`: other rules on the traces that are kept."""

import asyncio
import json
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import update
from typer.testing import CliRunner, Result

from gateway.cli.app import app
from gateway.cli.kept_traces import known_facts, recall
from gateway.engine import Engine, EngineOptions, Judged
from gateway.mail.envelope import Recipient
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.policy import RuleSet, load_rules, parse_rules
from gateway.policy.facts import KEYS, Case
from gateway.policy.partial import Decided, decide_for_each
from gateway.policy.shadow import judge_again
from gateway.store.engine import open_engine
from gateway.store.tables import TRACE_DOCUMENTS
from gateway.store.traces import Ring, TraceRing
from gateway.trace.addresses import AddressHider
from gateway.trace.document import read_document, write_documents
from gateway.trace.model import Addressee, Trace
from gateway.trace.tell import Story, Tracer
from gateway.verdict import Disposition, Stage
from tests.corpus import AUTHSERV_ID, NOW, TRUSTED_SEALERS, load_cases, world
from tests.policy.test_shadow import RULES, case
from tests.store.databases import sqlite_url
from tests.trace.samples import AT, Told, batches, trace

CASES = load_cases()
OK = Reply.of(250, "2.1.5", "Ok")


async def judged_all(rules: str) -> list[Judged]:
    judged: list[Judged] = []
    engine = Engine(
        world(),
        load_rules(rules),
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(trusted_sealers=frozenset(TRUSTED_SEALERS)),
        observe=judged.append,
        clock=lambda: NOW,
    )
    engine.tells = True
    for each in CASES:
        await engine.judge(each.envelope(), Message(each.raw))
    return judged


def kept(judged: Judged, hider: AddressHider | None = None) -> Trace:
    """Its trace, as the store gives it back."""
    told = Told()
    Tracer(told.keep, hider).tell(
        Story(
            envelope=judged.envelope,
            stage=Stage.MESSAGE,
            received=AT,
            reply=judged.verdict.reply,
            verdict=judged.verdict,
            asked=[(recipient, OK) for recipient in judged.envelope.recipients],
            size=len(judged.message),
        )
    )
    return told[0]


def case_of(judged: Judged) -> Case:
    return Case(
        envelope=judged.envelope,
        evidence=judged.verdict.evidence,
        message=judged.message,
        author=judged.author,
        trusted_sealers=frozenset(TRUSTED_SEALERS),
    )


class Site:
    """A config and the traces in its store."""

    def __init__(self, folder: Path, more: str = "") -> None:
        self.config = folder / "gateway.toml"
        self.url = sqlite_url(folder / "gateway.db")
        self.config.write_text(
            f'authserv_id = "mx.example.net"\n[milter]\nlisten = "unix:{folder}/m.sock"\n'
            f'[store]\nurl = "{self.url}"\n[arc]\ntrusted_sealers = {list(TRUSTED_SEALERS)}\n{more}'
        )

    def write(self, *traces: Trace) -> None:
        engine = open_engine(self.url)
        with engine.begin() as connection:
            TraceRing(Ring()).write(connection, batches(traces))
        engine.dispose()

    def replay(self, *more: str | Path) -> Result:
        given = ["policy", "test", "--against", "store", "--config", str(self.config), *map(str, more)]
        return CliRunner().invoke(app, given)


async def test_every_fact_of_a_trace_is_the_one_that_the_rules_saw() -> None:
    known: set[str] = set()
    for judged in await judged_all("default"):
        if judged.verdict.rule.startswith("gateway."):
            continue
        facts = known_facts(kept(judged), TRUSTED_SEALERS)
        for key, fact in facts.items():
            seen = KEYS[key].find(case_of(judged))
            if key in {"author", "mail_from", "recipient"}:
                assert str(fact) == str(seen), key
            else:
                assert fact == seen, (key, judged.verdict.rule)
        known |= facts.keys()
    assert known == KEYS.keys()


def test_the_store_and_the_messages_change_alike(tmp_path: Path) -> None:
    site = Site(tmp_path)
    default, strict = asyncio.run(judged_all("default")), asyncio.run(judged_all("strict"))
    named = [
        read_document(json.dumps(json.loads(write_documents([kept(judged)])) | {"id": f"m{number}"}))
        for number, judged in enumerate(default)
    ]
    site.write(*named)
    result = site.replay("--rules", "strict", "--json", "--limit", "1000")
    told = json.loads(result.stdout)
    differ = {
        f"m{number}"
        for number, (one, other) in enumerate(zip(strict, default, strict=True))
        if one.verdict.disposition is not other.verdict.disposition
    }
    found = {example for change in told["changes"] for example in change["examples"]}
    assert found
    assert found <= differ
    # Unlike a log, a trace knows all that these rules ask, but whom a trusted sealer's words were about.
    assert {one["rule"] for one in told["undecided"]} <= {"arc-trusted-forwarder"}
    assert len(differ - found) <= sum(one["count"] for one in told["undecided"])
    assert result.exit_code == 1
    assert json.loads(site.replay("--rules", "default", "--json").stdout)["changes"] == []


def recipients_of(given: Case) -> list[object]:
    return [recipient.mailbox for recipient in given.envelope.recipients]


@given(
    st.sampled_from(["robot@robot.example", "ann@friend.example", "joe@other.example"]),
    st.lists(
        st.sampled_from(["sales@example.net", "boss@example.net", "bob@example.net"]),
        max_size=4,
        unique=True,
    ),
    st.permutations(RULES.strip().split("[[rule]]")[1:-1]),
)
@settings(deadline=None)
def test_several_recipients_are_asked_about_as_in_the_dialog(
    mail_from: str, recipients: list[str], rules: list[str]
) -> None:
    """The shadow acts out the whole dialog; with nothing unknown this is the same."""
    text = "[[rule]]".join(["", *rules, RULES.rpartition("[[rule]]")[2]])
    ruleset: RuleSet = parse_rules(text)
    given_case = case(mail_from, *recipients)
    facts = {name: key.find(given_case) for name, key in KEYS.items()}
    shadow = judge_again(ruleset, given_case)
    found = decide_for_each(ruleset, facts, recipients_of(given_case))
    assert found == Decided(rule=shadow.rule, disposition=shadow.disposition)


def rules_file(folder: Path, when: str, stage: str = "") -> Path:
    path = folder / "rules.toml"
    path.write_text(
        f'[[rule]]\nid = "asked"\nwhy = "w"\n{stage}\nwhen = {when}\naction = "reject"\n'
        '[[rule]]\nid = "rest"\nwhy = "w"\naction = "accept"\n'
    )
    return path


ACCEPTED = trace("a.1", disposition=Disposition.ACCEPT, intended=Disposition.ACCEPT, rule="pass", reply=OK)
TO_MANY = trace(
    "a.1",
    disposition=Disposition.ACCEPT,
    intended=Disposition.ACCEPT,
    rule="pass",
    reply=OK,
    more_recipients=7,
)
HASHED = trace(
    "a.1", disposition=Disposition.ACCEPT, intended=Disposition.ACCEPT, rule="pass", reply=OK,
    mail_from="~0123456789abcdef@example.com", author="~0123456789abcdef@bank.example",
    recipients=(Addressee("~0123456789abcdef@example.net", 250),),
)  # fmt: skip
AT_RCPT = trace(
    "a.1", stage=Stage.RCPT, disposition=Disposition.REJECT, rule="no-sales", reply=Reply.of(550, "5.7.1", "no"),
    recipients=(Addressee("sales@example.net", 550, "no"),), author=None, size=None, message_id=None,
)  # fmt: skip


@pytest.mark.parametrize(
    ("kept_trace", "when", "stage", "unknown"),
    [
        (ACCEPTED, '{ recipient = "bob@example.net" }', "", None),
        (ACCEPTED, '{ recipient = "nobody@example.net" }', "", None),  # refused by the mail server: not one of them
        (ACCEPTED, "{ size_over = 5000 }", "", None),
        (ACCEPTED, '{ defect = "nul" }', "", ["defect"]),  # nobody asked then, and the message is gone
        (TO_MANY, '{ recipient = "bob@example.net" }', "", ["recipient"]),
        (HASHED, '{ mail_from = "ann@example.com" }', "", ["mail_from"]),
        (HASHED, '{ author = "bank.example" }', "", ["author"]),
        (HASHED, '{ spf = "pass" }', "", None),
        (AT_RCPT, '{ recipient = "sales@example.net" }', 'stage = "rcpt"', None),
        (AT_RCPT, '{ dkim = "none" }', "", ["dkim"]),  # no message came
    ],
)  # fmt: skip
def test_what_a_trace_cannot_tell_is_never_guessed(
    tmp_path: Path, kept_trace: Trace, when: str, stage: str, unknown: list[str] | None
) -> None:
    site = Site(tmp_path)
    site.write(kept_trace)
    told = json.loads(site.replay("--rules", rules_file(tmp_path, when, stage), "--json").stdout)
    assert [one["unknown"] for one in told["undecided"]] == ([] if unknown is None else [unknown])


def test_people_are_told_what_is_missing_and_nothing_moves_their_cursor(tmp_path: Path) -> None:
    site = Site(tmp_path)
    hostile = "\x1b[2J\u202e<b>"
    site.write(
        ACCEPTED,
        trace(
            "b.1" + hostile, disposition=Disposition.ACCEPT, intended=Disposition.ACCEPT, rule="x" + hostile
        ),
        trace("c.1", stage=Stage.RCPT, disposition=None, rule=None),
        trace("d.1", disposition=Disposition.DEFER, rule="gateway.internal"),
    )
    result = site.replay("--rules", rules_file(tmp_path, "{ size_over = 100 }"))
    assert "2 ended without a rule" in result.stdout
    assert "of 4 messages 2 would change: 2 more refused, 0 fewer" in result.stdout
    assert result.stdout.isprintable() or set(filter(lambda one: not one.isprintable(), result.stdout)) == {
        "\n"
    }
    doubtful = site.replay("--rules", rules_file(tmp_path, '{ defect = "nul" }'))
    assert 'rule "asked" asks about defect, which is not in the trace' in doubtful.stdout
    assert doubtful.exit_code == 3


def test_a_trace_of_another_release_is_counted(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.write(ACCEPTED)
    engine = open_engine(site.url)
    with engine.begin() as connection:
        connection.execute(update(TRACE_DOCUMENTS).values(documents=zlib.compress(b"{}")))
    engine.dispose()
    result = site.replay("--rules", "strict", "--json")
    assert (json.loads(result.stdout)["broken_lines"], json.loads(result.stdout)["messages"]) == (1, 0)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (None, "/etc/gateway/gateway.toml"),
        ('authserv_id = "mx.example.net"\n[milter]\nlisten = "unix:/run/m.sock"\n', "give a --config that has a [store]"),
        ('authserv_id = "mx.example.net"\n[milter]\nlisten = "unix:/run/m.sock"\n[store]\nurl = "sqlite:////nowhere/at.all"\n', "there is no file /nowhere/at.all"),
    ],
)  # fmt: skip
def test_without_a_store_it_says_what_to_do(tmp_path: Path, config: str | None, says: str) -> None:
    arguments = ["policy", "test", "--against", "store", "--rules", "strict"]
    if config is not None:
        path = tmp_path / "gateway.toml"
        path.write_text(config)
        arguments += ["--config", str(path)]
    result = CliRunner().invoke(app, arguments)
    assert (result.exit_code, says in result.stderr) == (2, True), result.stderr


def test_a_recipient_without_a_domain_is_known_as_the_rules_know_it() -> None:
    postmaster = recall(trace(recipients=(Addressee("Postmaster", 250),)), ())
    assert postmaster.recipients == (None,)
    assert postmaster.facts["recipient"] == (Recipient(mailbox=None).mailbox,)


def test_a_fault_of_another_release_is_an_unknown_fact() -> None:
    facts = known_facts(trace("a.1", author=None, author_fault="from-in-klingon"), TRUSTED_SEALERS)
    assert not {"author", "author_fault"} & facts.keys()
    assert "mail_from" in facts
