"""What the SMTP proxy tells of each transaction: every refusal leaves a trace, and who changes his mind leaves none."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import pytest

from gateway.mail.envelope import Envelope
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.trace.tell import Tracer
from gateway.verdict import Disposition, Stage, Verdict
from tests.listeners.proxy import ACCEPT, Bed, Client, Config, FakeJudge, open_bed, settle
from tests.smtp.downstream import CLOSE, FakeDownstream
from tests.trace.samples import Told

REFUSED = Verdict(disposition=Disposition.REJECT, rule="no", reply=Reply.of(550, "5.7.1", "no"))


class Screening(FakeJudge):
    """Refuses one stage."""

    def __init__(self, stage: Stage | None = None) -> None:
        super().__init__()
        self.stage = stage

    async def screen(self, stage: Stage, envelope: Envelope) -> Verdict | None:
        return REFUSED if stage is self.stage else None

    async def judge(self, envelope: Envelope, message: Message) -> Verdict:
        return REFUSED if self.stage is Stage.MESSAGE else ACCEPT


@asynccontextmanager
async def traced(
    stage: Stage | None = None, *, config: Config | None = None, says: Mapping[str, bytes] | None = None
) -> AsyncIterator[tuple[Client, Told, Bed]]:
    """A session that has said EHLO; `says` is what downstream says at each step, every time."""
    downstream = FakeDownstream(at={(step, 0): said for step, said in (says or {}).items()})
    kept = Told()
    async with open_bed(config, downstream=downstream, judge=Screening(stage)) as bed:
        bed.listener.tracer = Tracer(kept.keep)
        client = await bed.connect()
        await client.reply()
        await client.ask("EHLO client.example")
        yield client, kept, bed


CONTENT = b"Subject: x\r\n\r\nhello\r\n.\r\n"


async def send(client: Client, recipient: str = "bob@example.net") -> str:
    await client.ask("MAIL FROM:<Ann@sender.example>")
    await client.ask(f"RCPT TO:<{recipient}>")
    said = await client.ask("DATA")
    if not said.startswith("354"):
        return said
    await client.send(CONTENT)
    return await client.reply()


async def test_a_message_that_was_taken() -> None:
    async with traced() as (client, kept, _):
        assert (await send(client)).startswith("250")
        (trace,) = kept
        assert (trace.stage, trace.disposition, trace.rule) == (Stage.MESSAGE, Disposition.ACCEPT, "test")
        assert trace.mail_from == "Ann@sender.example"
        assert [(each.address, each.code) for each in trace.recipients] == [("bob@example.net", 250)]
        assert trace.session.helo == "client.example"
        assert trace.reply is not None
        assert trace.downstream is not None
        assert trace.downstream.reply.code == trace.reply.code == 250
        assert trace.downstream.ms > 0
        assert trace.size == len(b"Subject: x\r\n\r\nhello\r\n")
        assert trace.received <= trace.answered


async def test_a_message_that_we_refused() -> None:
    async with traced(Stage.MESSAGE) as (client, kept, _):
        assert await send(client) == "550 5.7.1 no"
        (trace,) = kept
        assert (trace.stage, trace.rule, trace.reply) == (Stage.MESSAGE, "no", REFUSED.reply)
        assert trace.downstream is None


@pytest.mark.parametrize(
    ("step", "said", "code"),
    [
        ("DATA", b"452 4.3.1 no room\r\n", 452),
        ("CONTENT", b"554 5.7.1 spam\r\n", 554),
        ("CONTENT", b"250 ok\r\n", 250),
    ],
)
async def test_downstream_has_the_last_word(step: str, said: bytes, code: int) -> None:
    async with traced(says={step: said}) as (client, kept, _):
        await send(client)
        (trace,) = kept
        assert trace.disposition is Disposition.ACCEPT
        assert trace.reply is not None
        assert trace.downstream is not None
        assert trace.downstream.reply.code == trace.reply.code == code
        assert trace.downstream_failure is None


async def test_downstream_that_dies_is_no_answer_of_its() -> None:
    async with traced(says={"CONTENT": CLOSE}) as (client, kept, _):
        assert (await send(client)).startswith("451")
        (trace,) = kept
        assert trace.downstream is None
        assert trace.downstream_failure is not None
        assert "lost" in trace.downstream_failure
        await client.ask("RSET")
        assert len(kept) == 1


async def test_refused_at_mail_by_a_rule() -> None:
    async with traced(Stage.MAIL) as (client, kept, _):
        assert (await client.ask("MAIL FROM:<ann@sender.example>")).startswith("550")
        (trace,) = kept
        assert (trace.stage, trace.rule, trace.recipients, trace.size) == (Stage.MAIL, "no", (), None)


async def test_refused_at_mail_by_downstream() -> None:
    async with traced(says={"MAIL": b"553 5.1.8 no such domain\r\n"}) as (client, kept, _):
        assert (await client.ask("MAIL FROM:<ann@sender.example>")).startswith("553")
        (trace,) = kept
        assert (trace.stage, trace.rule, trace.disposition) == (Stage.MAIL, None, None)
        assert trace.reply is not None
        assert trace.reply.text == "no such domain"


@pytest.mark.parametrize("end", ["RSET", "QUIT", "EHLO again.example", ""])
async def test_refused_at_rcpt_by_a_rule_and_given_up(end: str) -> None:
    async with traced(Stage.RCPT) as (client, kept, _):
        await client.ask("MAIL FROM:<ann@sender.example>")
        await client.ask("RCPT TO:<bob@example.net>")
        await client.ask("RCPT TO:<carol@example.net>")
        assert not kept
        if end:
            await client.ask(end)
        else:
            client.close()
            await settle(lambda: bool(kept))
        (trace,) = kept
        assert (trace.stage, trace.rule) == (Stage.RCPT, "no")
        assert [(each.address, each.code, each.text) for each in trace.recipients] == [
            ("bob@example.net", 550, "5.7.1 no"),
            ("carol@example.net", 550, "5.7.1 no"),
        ]


@pytest.mark.parametrize(
    ("recipient", "text"),
    [("bob@example.net", "5.1.1 no such user"), ("bob@elsewhere.example", "5.7.1 relaying denied")],
)
async def test_refused_at_rcpt_by_downstream_and_for_a_foreign_domain(recipient: str, text: str) -> None:
    async with traced(says={"RCPT": b"550 5.1.1 no such user\r\n"}) as (client, kept, _):
        await client.ask("MAIL FROM:<ann@sender.example>")
        assert (await client.ask(f"RCPT TO:<{recipient}>")).startswith("55")
        await client.ask("RSET")
        (trace,) = kept
        assert trace.stage is Stage.RCPT
        assert trace.rule is None
        assert text.lower() in trace.recipients[0].text.lower()


async def test_one_recipient_of_two_is_refused_and_the_message_goes_on() -> None:
    async with traced() as (client, kept, bed):
        bed.downstream.at = {("RCPT", 1): b"550 5.1.1 no such user\r\n"}
        await client.ask("MAIL FROM:<ann@sender.example>")
        await client.ask("RCPT TO:<nobody@example.net>")
        await client.ask("RCPT TO:<bob@example.net>")
        await client.ask("DATA")
        await client.send(CONTENT)
        assert (await client.reply()).startswith("250")
        (trace,) = kept
        assert trace.stage is Stage.MESSAGE
        assert [(each.address, each.is_refused) for each in trace.recipients] == [
            ("nobody@example.net", True),
            ("bob@example.net", False),
        ]


async def test_who_changes_his_mind_leaves_no_trace() -> None:
    async with traced() as (client, kept, _):
        await client.ask("MAIL FROM:<ann@sender.example>")
        await client.ask("RCPT TO:<bob@example.net>")
        await client.ask("RSET")
        await client.ask("MAIL FROM:<ann@sender.example>")
        await client.ask("QUIT")
        assert not kept


async def test_a_message_whose_form_is_refused_is_told_without_a_verdict() -> None:
    async with traced(config=Config(max_message_bytes=100)) as (client, kept, _):
        await client.ask("MAIL FROM:<ann@sender.example>")
        await client.ask("RCPT TO:<bob@example.net>")
        await client.ask("DATA")
        await client.send(b"x" * 200 + b"\r\n.\r\n")
        assert (await client.reply()).startswith("552")
        (trace,) = kept
        assert (trace.stage, trace.disposition) == (Stage.MESSAGE, None)
        assert trace.reply is not None
        assert trace.reply.code == 552


async def test_pipelined_messages_each_have_their_own() -> None:
    async with traced() as (client, kept, _):
        one = b"MAIL FROM:<a%d@sender.example>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
        for n in range(3):
            await client.send(one % n)
            assert await client.codes(3) == ["250", "250", "354"]
            await client.send(CONTENT)
            assert (await client.reply()).startswith("250")
        assert [trace.mail_from for trace in kept] == [f"a{n}@sender.example" for n in range(3)]
        assert len({trace.id for trace in kept}) == 3
