"""The relay on its sockets: what our mail server hears is what the remote one said, and nothing leaves unsafely."""

import asyncio
import hashlib
import ssl
from datetime import UTC, datetime
from ipaddress import ip_network
from pathlib import Path

import pytest
import trustme
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from gateway.dns.resolver import Tlsa
from gateway.listeners import smtp as smtp_module
from gateway.listeners.relay import Outcome
from gateway.mail.reply import Reply
from gateway.smtp.client import DownstreamFailure
from gateway.tlspolicy.model import (
    Decision,
    Demand,
    FailureType,
    NoRoute,
    PolicyType,
    StsView,
    TlsLevel,
    TlsProblem,
)
from gateway.verdict import Disposition, Verdict
from tests.listeners.proxy import FakeJudge, settle
from tests.listeners.remote import (
    MESSAGE,
    FakeDecider,
    RelayBedConfig,
    RemoteServer,
    open_relay,
    policy,
)
from tests.smtp.downstream import CLOSE, SILENCE, FakeDownstream

ONE = "127.0.0.1"
TWO = "127.0.0.2"
BOB = "bob@a.example"


def decider(*names: str, **changes: object) -> FakeDecider:
    """`a.example` with these hosts, of falling preference, all under the same demand."""
    return FakeDecider(
        {"a.example": [policy(name, 10 * (at + 1), **changes) for at, name in enumerate(names)]}
    )


@pytest.fixture
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_module, "TICK_S", 0.02)


# Messages


async def test_a_message_and_the_remote_servers_own_words() -> None:
    server = RemoteServer()
    server.mail.at["CONTENT", 0] = b"250-2.6.0 two\r\n250 2.6.0 lines\r\n"
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        assert await bed.send(BOB, "eve@a.example") == [
            "250 2.1.0 Sender ok",
            "250 2.1.5 Ok",
            "250 2.1.5 Ok",
            "354 End data with <CR><LF>.<CR><LF>",
            "250 2.6.0 two 2.6.0 lines",
        ]
        assert server.mail.bodies() == [b"Subject: x\r\n\r\n.text\r\n"]
        assert server.mail.log[0] == "EHLO out.example.net"
        assert b"by gateway.example.net with ESMTP" in server.mail.messages[0]
        assert bed.watcher.outcomes == [Outcome.DELIVERED]
        envelope, _ = bed.judge.seen[0]
        assert envelope.session.trusted
        assert envelope.session.listener == "outbound"


@pytest.mark.parametrize(
    ("step", "said", "heard"),
    [
        ("RCPT", b"550 5.1.1 No such user here\r\n", "550 5.1.1 No such user here"),
        ("RCPT", b"550-5.7.1 first\r\n550 5.7.1 second\r\n", "550 5.7.1 first 5.7.1 second"),
        ("RCPT", b"450 4.2.0 Greylisted\r\n", "450 4.2.0 Greylisted"),
        ("RCPT", b"503 5.5.1 Authenticate first\r\n", "503 5.5.1 Authenticate first"),  # theirs to say
        ("RCPT", b"550 no enhanced code\r\n", "550 5.0.0 no enhanced code"),  # RFC 2034: each reply has one
        ("RCPT", b"421 4.7.0 Too many\r\n" + CLOSE, "451 4.7.0 Too many"),  # our connection stays
        ("MAIL", b"550 5.7.1 Blocked\r\n", "550 5.7.1 Blocked"),
        ("MAIL", b"451 4.7.1 Not now\r\n", "451 4.7.1 Not now"),
        ("DATA", b"554 5.5.1 No valid recipients\r\n", "554 5.5.1 No valid recipients"),
        ("CONTENT", b"552 5.2.2 Mailbox full\r\n", "552 5.2.2 Mailbox full"),
        ("CONTENT", b"452 4.2.2 Mailbox full\r\n", "452 4.2.2 Mailbox full"),
        ("CONTENT", b"421 4.3.2 Going down\r\n" + CLOSE, "451 4.3.2 Going down"),
        ("CONTENT", CLOSE, "451 4.4.2 "),
        ("RCPT", CLOSE, "451 4.4.2 "),
        ("CONTENT", b"hello\r\n", "451 4.4.2 "),
        ("CONTENT", b"354 go on\r\n", "451 4.4.2 "),
        ("EARLY", b"250 2.0.0 taken already\r\n", "451 4.3.0 "),  # nothing of it was sent yet
    ],
)
async def test_what_the_remote_server_says_is_what_we_say(step: str, said: bytes, heard: str) -> None:
    server = RemoteServer(FakeDownstream(at={(step, 0): said}))
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        message = MESSAGE if step != "EARLY" else b"x" * 3_000_000 + b"\r\n.\r\n"
        replies = await bed.send(BOB, message=message)
        assert replies[-1].startswith(heard)
        if step != "EARLY":  # it may take what was on its way to it all the same
            assert not server.mail.messages
        wanted = Outcome.REFUSED if heard.startswith("5") else Outcome.DEFERRED
        assert bed.watcher.outcomes == [wanted]


async def test_a_large_message_is_streamed_whole() -> None:
    server = RemoteServer()
    content = b"Subject: large\r\n\r\n" + b".a line of text\r\n" * 300_000
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        replies = await bed.send(BOB, message=content.replace(b"\r\n.", b"\r\n..") + b".\r\n")
        assert replies[-1].startswith("250")
        assert server.mail.bodies() == [content]
        assert bed.listener.budget.used == 0


async def test_a_message_that_a_rule_refuses_leaves_the_connection_in_order() -> None:
    server = RemoteServer()
    reject = Verdict(disposition=Disposition.REJECT, rule="test", reply=Reply.of(550, "5.7.1", "No (test)"))
    judge = FakeJudge(reject)
    async with open_relay({ONE: server}, decider("mx1.example"), judge=judge) as bed:
        assert (await bed.send(BOB))[-1] == "550 5.7.1 No (test)"
        judge.verdict = Verdict(disposition=Disposition.ACCEPT, rule="test")
        assert (await bed.send(BOB))[-1].startswith("250")
        assert server.mail.connections == 1
        assert "RSET" in server.mail.log


async def test_quarantine_keeps_a_message_in_our_own_queue() -> None:
    judge = FakeJudge(Verdict(disposition=Disposition.QUARANTINE, rule="test"))
    server = RemoteServer()
    async with open_relay({ONE: server}, decider("mx1.example"), judge=judge) as bed:
        assert (await bed.send(BOB))[-1].startswith("451 4.7.1 Held back")
        assert not server.mail.messages


# Domains


async def test_one_recipient_domain_in_one_transaction() -> None:
    servers = {ONE: RemoteServer(), TWO: RemoteServer()}
    world = FakeDecider({"a.example": [policy("mx1.example")], "b.example": [policy("mx2.example")]})
    async with open_relay(servers, world) as bed:
        client = await bed.greeted()
        await client.ask("MAIL FROM:<a@example.net>")
        assert (await client.ask("RCPT TO:<bob@a.example>")).startswith("250")
        assert (await client.ask("RCPT TO:<eve@b.example>")).startswith("452 4.5.3 One recipient domain")
        assert (await client.ask("RCPT TO:<joe@A.EXAMPLE>")).startswith("250")
        assert (await client.ask("DATA")).startswith("354")
        await client.send(MESSAGE)
        assert (await client.reply()).startswith("250")
        await client.ask("MAIL FROM:<a@example.net>")
        assert (await client.ask("RCPT TO:<eve@b.example>")).startswith("250")
        assert [line for line in servers[ONE].mail.log if line.startswith("RCPT")] == [
            "RCPT TO:<bob@a.example>",
            "RCPT TO:<joe@A.EXAMPLE>",
        ]
        assert [line for line in servers[TWO].mail.log if line.startswith("RCPT")] == [
            "RCPT TO:<eve@b.example>"
        ]


async def test_a_domain_that_took_nobody_makes_way_for_the_next() -> None:
    servers = {ONE: RemoteServer(FakeDownstream(at={("RCPT", 1): b"550 5.1.1 no\r\n"})), TWO: RemoteServer()}
    world = FakeDecider({"a.example": [policy("mx1.example")], "b.example": [policy("mx2.example")]})
    async with open_relay(servers, world) as bed:
        client = await bed.greeted()
        await client.ask("MAIL FROM:<a@example.net>")
        assert (await client.ask("RCPT TO:<bob@a.example>")).startswith("550")
        assert (await client.ask("RCPT TO:<eve@b.example>")).startswith("250")
        assert (await client.ask("DATA")).startswith("354")
        await client.send(MESSAGE)
        assert (await client.reply()).startswith("250")
        assert not servers[ONE].mail.messages
        assert servers[TWO].mail.bodies() == [b"Subject: x\r\n\r\n.text\r\n"]
        assert servers[ONE].mail.log[-1] == "RSET"


async def test_an_unreachable_domain_is_tried_once_for_all_its_recipients() -> None:
    server = RemoteServer(FakeDownstream(at={("GREETING", 0): b"554 5.7.1 go away\r\n" + CLOSE}))
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        client = await bed.greeted()
        await client.ask("MAIL FROM:<a@example.net>")
        first = await client.ask("RCPT TO:<bob@a.example>")
        assert first.startswith("451 4.7.1 mx1.example[127.0.0.1]: greeting: 554 5.7.1 go away")
        assert await client.ask("RCPT TO:<eve@a.example>") == first
        assert server.mail.connections == 1


# Routes


@pytest.mark.parametrize(
    ("problem", "temporary", "heard"),
    [
        (TlsProblem.NULL_MX, False, "556 5.1.10 "),  # RFC 7505 §4.2
        (TlsProblem.NO_DOMAIN, False, "550 5.1.2 "),
        (TlsProblem.NO_HOST, False, "550 5.4.4 "),
        (TlsProblem.ROUTE_SERVFAIL, True, "451 4.4.3 "),
        (TlsProblem.ROUTE_TIMEOUT, True, "451 4.4.3 "),
    ],
)
async def test_no_route(problem: TlsProblem, temporary: bool, heard: str) -> None:  # noqa: FBT001 - a table
    route = NoRoute(domain="a.example", problem=problem, temporary=temporary)
    decision = Decision(domain="a.example", route=route, hosts=(), level=TlsLevel.MAY)
    async with open_relay({}, FakeDecider({}, {"a.example": decision}), RelayBedConfig(remote_port=1)) as bed:
        assert (await bed.send(BOB))[-1].startswith(heard)


async def test_the_next_host_is_asked_where_one_cannot_be_used() -> None:
    """Refused connection, 4xx greeting, a lost connection, 4xx to MAIL: RFC 5321 §5.1 has us go on."""
    servers = {
        "127.0.0.2": RemoteServer(FakeDownstream(at={("GREETING", 0): b"421 4.3.2 busy\r\n" + CLOSE})),
        "127.0.0.3": RemoteServer(FakeDownstream(at={("EHLO", 0): CLOSE})),
        "127.0.0.4": RemoteServer(FakeDownstream(at={("MAIL", 0): CLOSE})),
        "127.0.0.5": RemoteServer(FakeDownstream(at={("MAIL", 0): b"451 4.7.1 not now\r\n"})),
        "127.0.0.6": RemoteServer(),
    }
    world = decider(*(f"mx{number}.example" for number in range(1, 7)))
    async with open_relay(servers, world, RelayBedConfig(max_hosts=6)) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        assert all(server.mail.connections == 1 for server in servers.values())
        assert [failure for _, _, _, failure in bed.watcher.sessions] == [
            DownstreamFailure.CONNECT,
            DownstreamFailure.CLOSING,
            DownstreamFailure.LOST,
            None,
            None,
            None,
        ]


async def test_a_final_answer_ends_the_search() -> None:
    servers = {ONE: RemoteServer(FakeDownstream(at={("MAIL", 0): b"550 5.7.1 no\r\n"})), TWO: RemoteServer()}
    async with open_relay(servers, decider("mx1.example", "mx2.example")) as bed:
        assert (await bed.send(BOB))[-1] == "550 5.7.1 no"
        assert servers[TWO].mail.connections == 0


async def test_a_server_that_said_not_now_is_quoted_when_no_other_is_left() -> None:
    server = RemoteServer(FakeDownstream(at={("MAIL", 0): b"451 4.7.1 not now\r\n"}))
    async with open_relay({ONE: server}, decider("mx1.example", "mx2.example")) as bed:
        assert (await bed.send(BOB))[-1] == "451 4.7.1 not now"


async def test_hosts_of_equal_preference_share_the_load() -> None:
    servers = {ONE: RemoteServer(), TWO: RemoteServer()}
    world = FakeDecider({"a.example": [policy("mx1.example"), policy("mx2.example")]})
    async with open_relay(servers, world, RelayBedConfig(idle_connection_s=0)) as bed:
        for _ in range(24):  # that one of them gets nothing: once in eight million runs
            assert (await bed.send(BOB))[-1].startswith("250")
        assert all(server.mail.messages for server in servers.values())


async def test_mail_does_not_loop_through_ourselves() -> None:
    """RFC 5321 §5.1: those behind us in the list would only give it back."""
    config = RelayBedConfig(own_names=("mx2.example",))
    servers = {
        ONE: RemoteServer(FakeDownstream(at={("GREETING", 0): b"421 busy\r\n"})),
        "127.0.0.3": RemoteServer(),
    }
    async with open_relay(servers, decider("mx1.example", "mx2.example", "mx3.example"), config) as bed:
        assert (await bed.send(BOB))[-1].startswith("451")
        assert servers["127.0.0.3"].mail.connections == 0
    async with open_relay(
        {}, decider("mx2.example"), RelayBedConfig(own_names=("mx2.example",), remote_port=1)
    ) as bed:
        assert (await bed.send(BOB))[-1].startswith("554 5.4.6 ")
    config = RelayBedConfig(own_addresses=(ip_network("127.0.0.1"),))
    for host in ("mx1.example", "mapped.example"):  # the second would be reached as 127.0.0.1, too
        async with open_relay({ONE: RemoteServer()}, decider(host), config) as bed:
            assert (await bed.send(BOB))[-1].startswith("554 5.4.6 ")


async def test_hosts_without_addresses_are_final_only_where_that_is_known() -> None:
    async with open_relay({}, decider("nowhere.example"), RelayBedConfig(remote_port=1)) as bed:
        assert (await bed.send(BOB))[-1].startswith("550 5.4.4 ")
    async with open_relay(
        {}, decider("nowhere.example", "trouble.example"), RelayBedConfig(remote_port=1)
    ) as bed:
        assert (await bed.send(BOB))[-1].startswith("451 4.4.3 ")


async def test_the_other_address_family_is_not_waited_for() -> None:
    """RFC 8305: ::1 is refused at once here, and 127.0.0.1 has the message."""
    server = RemoteServer()
    async with open_relay({ONE: server}, decider("both.example")) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        assert len(server.mail.messages) == 1


async def test_strangers_are_turned_away() -> None:
    server = RemoteServer()
    config = RelayBedConfig(clients=(ip_network("192.0.2.0/24"),))
    async with open_relay({ONE: server}, decider("mx1.example"), config) as bed:
        client = await bed.connect()
        assert (await client.reply()).startswith("554 5.7.1 ")
        assert await client.is_closed()


# Silence


async def test_a_silent_server_is_given_up_within_our_clients_patience(
    quick_clock: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = {
        ONE: RemoteServer(FakeDownstream(at={("GREETING", 0): SILENCE})),
        TWO: RemoteServer(FakeDownstream(at={("MAIL", 0): SILENCE})),
        "127.0.0.3": RemoteServer(FakeDownstream(at={("CONTENT", 0): SILENCE})),
    }
    config = RelayBedConfig(downstream_timeout_s=0.2, downstream_data_timeout_s=0.3)
    async with open_relay(servers, decider("mx1.example", "mx2.example", "mx3.example"), config) as bed:
        assert (await bed.send(BOB))[-1].startswith("451 4.4.2 ")
        assert bed.watcher.outcomes == [Outcome.DEFERRED]


async def test_the_whole_search_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.listeners.remote.search.BUDGET_S", 0.2)
    server = RemoteServer(FakeDownstream(at={("GREETING", 0): SILENCE}))
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        assert (await bed.send(BOB))[-1].startswith("451 4.4.1 ")


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\n", b"2" * 10_000, b"220-x\r\n" * 1_000, b"\x00\xff\r\n"]
)
async def test_what_is_no_mail_server_is_left_alone(said: bytes) -> None:
    server = RemoteServer(FakeDownstream(at={("GREETING", 0): said}))
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        assert (await bed.send(BOB))[-1].startswith("451 4.5.0 ")


async def test_a_server_of_before_ehlo() -> None:
    server = RemoteServer(
        FakeDownstream(at={("EHLO", 0): b"502 what?\r\n", ("HELO", 0): b"250 old.example\r\n"})
    )
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        assert (await bed.send(BOB, sender="FROM:<a@example.net> SIZE=100 BODY=8BITMIME"))[-1].startswith(
            "250"
        )
        assert "MAIL FROM:<a@example.net>" in server.mail.log


# Reuse and limits


async def test_a_connection_is_used_again_for_the_same_domain_only() -> None:
    server = RemoteServer()
    world = FakeDecider({"a.example": [policy("mx1.example")], "b.example": [policy("mx1.example")]})
    async with open_relay({ONE: server}, world) as bed:
        for _ in range(3):
            assert (await bed.send(BOB))[-1].startswith("250")
        assert server.mail.connections == 1
        assert (await bed.send("bob@b.example"))[-1].startswith("250")
        assert server.mail.connections == 2


async def test_a_connection_opened_for_less_is_not_used_for_more(authority: "Authority") -> None:
    server = authority.server("mx1.example")
    world = decider("mx1.example")
    async with open_relay({ONE: server}, world, ca_file=authority.file) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        world.hosts = decider("mx1.example", demand=Demand.PKIX, names=("mx1.example",)).hosts
        assert (await bed.send(BOB))[-1].startswith("250")
        assert server.mail.connections == 2


async def test_a_reused_connection_that_has_died_costs_no_message() -> None:
    server = RemoteServer()
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        server.mail.at["MAIL", 2] = CLOSE  # on the reused one, before anything was said
        assert (await bed.send(BOB))[-1].startswith("250")
        assert server.mail.connections == 2


async def test_idle_connections_are_ended_politely(quick_clock: None) -> None:
    server = RemoteServer()
    async with open_relay(
        {ONE: server}, decider("mx1.example"), RelayBedConfig(idle_connection_s=0.1)
    ) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        await settle(lambda: server.mail.log[-1] == "QUIT")


async def test_more_deliveries_than_connections_wait_for_their_turn() -> None:
    server = RemoteServer()
    config = RelayBedConfig(max_connections_per_destination=2, max_connections=2)
    async with open_relay({ONE: server}, decider("mx1.example"), config) as bed:
        answers = await asyncio.gather(*(bed.send(BOB) for _ in range(20)))
        assert all(answer[-1].startswith("250") for answer in answers)
        assert len(server.mail.messages) == 20
        assert server.mail.connections <= 2


async def test_an_idle_connection_makes_way_for_another_domain() -> None:
    servers = {ONE: RemoteServer(), TWO: RemoteServer()}
    world = FakeDecider({"a.example": [policy("mx1.example")], "b.example": [policy("mx2.example")]})
    async with open_relay(servers, world, RelayBedConfig(max_connections=1)) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        assert (await bed.send("bob@b.example"))[-1].startswith("250")
        assert (await bed.send(BOB))[-1].startswith("250")


async def test_a_client_that_leaves_frees_its_place() -> None:
    server = RemoteServer(FakeDownstream(at={("GREETING", 1): SILENCE}))
    async with open_relay({ONE: server}, decider("mx1.example"), RelayBedConfig(max_connections=1)) as bed:
        client = await bed.greeted()
        await client.send(b"MAIL FROM:<a@example.net>\r\nRCPT TO:<bob@a.example>\r\n")
        await settle(lambda: server.mail.connections == 1)
        waiting = asyncio.ensure_future(bed.send(BOB))
        client.close()
        assert (await waiting)[-1].startswith("250")


async def test_drain_finishes_what_is_under_way() -> None:
    server = RemoteServer()
    judge = FakeJudge(may_answer=asyncio.Event())
    async with open_relay({ONE: server}, decider("mx1.example"), judge=judge) as bed:
        sending = asyncio.ensure_future(bed.send(BOB))
        await settle(lambda: bool(judge.seen))
        draining = asyncio.ensure_future(bed.listener.drain(5))
        assert judge.may_answer
        judge.may_answer.set()
        assert "250 2.0.0 Ok: queued" in await sending
        await draining
        assert len(server.mail.messages) == 1


# What the remote server cannot take


@pytest.mark.parametrize(
    ("keywords", "sender", "recipient", "message", "heard"),
    [
        (("8BITMIME",), "FROM:<a@example.net> BODY=8BITMIME", BOB, b"x\xe9\r\n.\r\n", "250"),
        ((), "FROM:<a@example.net> BODY=8BITMIME", BOB, b"x\xe9\r\n.\r\n", "554 5.6.3"),  # RFC 6152 §3
        ((), "FROM:<a@example.net> BODY=8BITMIME", BOB, b"plain\r\n.\r\n", "250"),
        ((), "FROM:<a@example.net> SMTPUTF8", BOB, b"Subject: x\r\n\r\n.\r\n", "250"),  # not needed
        ((), "FROM:<a@example.net> SMTPUTF8", BOB, "Subject: é\r\n\r\n.\r\n".encode(), "550 5.6.9"),
        ((), "FROM:<é@example.net> SMTPUTF8", BOB, b"", "550 5.6.7"),
        ((), "FROM:<a@example.net> SMTPUTF8", "é@a.example", b"", "550 5.6.7"),
        (("SMTPUTF8", "8BITMIME"), "FROM:<é@example.net> SMTPUTF8", "é@a.example", b"x\r\n.\r\n", "250"),
        (("SIZE 100",), "FROM:<a@example.net> SIZE=101", BOB, b"", "552 5.3.4"),  # before the content
        (("SIZE 100",), "FROM:<a@example.net>", BOB, b"x" * 200 + b"\r\n.\r\n", "552 5.3.4"),
        (
            (),
            "FROM:<a@example.net> RET=HDRS ENVID=x",
            f"{BOB}> NOTIFY=FAILURE,DELAY ORCPT=rfc822;x@y",
            b"\r\n.\r\n",
            "250",
        ),
        ((), "FROM:<a@example.net>", f"{BOB}> NOTIFY=SUCCESS", b"", "554 5.3.3"),
        (("DSN",), "FROM:<a@example.net> RET=HDRS", f"{BOB}> NOTIFY=SUCCESS", b"\r\n.\r\n", "250"),
    ],
)
async def test_a_parameter_is_passed_on_or_its_promise_kept(
    keywords: tuple[str, ...], sender: str, recipient: str, message: bytes, heard: str
) -> None:
    server = RemoteServer(FakeDownstream(keywords=("PIPELINING", *keywords)))
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        client = await bed.greeted()
        replies = [await client.ask(f"MAIL {sender}")]
        replies.append(await client.ask(f"RCPT TO:<{recipient}" + ("" if ">" in recipient else ">")))
        if replies[-1].startswith("250"):
            replies.append(await client.ask("DATA"))
            await client.send(message)
            replies.append(await client.reply())
        assert replies[-1].startswith(heard)
        spoken = next((line for line in server.mail.log if line.startswith("MAIL")), "")
        assert ("BODY=" in spoken) == ("8BITMIME" in keywords and "BODY=" in sender)
        assert ("SMTPUTF8" in spoken) == ("SMTPUTF8" in keywords)
        assert ("RET=" in spoken) == ("DSN" in keywords)


async def test_an_internationalised_domain_needs_no_smtputf8_there() -> None:
    server = RemoteServer(FakeDownstream(keywords=("8BITMIME",)))
    world = FakeDecider({"xn--bcher-kva.example": [policy("mx1.example")]})
    async with open_relay({ONE: server}, world) as bed:
        replies = await bed.send("bob@bücher.example", sender="FROM:<a@example.net> SMTPUTF8")
        assert replies[-1].startswith("250")
        assert "RCPT TO:<bob@xn--bcher-kva.example>" in server.mail.log


# TLS


class Authority:
    """A certificate authority, and mail servers with its certificates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.file)

    def server(self, name: str, *, expired: bool = False, ca: trustme.CA | None = None) -> RemoteServer:
        certificate = (ca or self.ca).issue_cert(
            name, not_after=datetime(2020, 1, 1, tzinfo=UTC) if expired else None
        )
        chain = self.folder / f"{name}.pem"
        chain.write_bytes(certificate.private_key_and_cert_chain_pem.bytes() + self.ca.cert_pem.bytes())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)  # RFC 7672 §3.1.2: usage 2 needs the authority's own certificate there
        server = RemoteServer(FakeDownstream(), context)
        self.leaf = x509.load_pem_x509_certificate(certificate.cert_chain_pems[0].bytes())
        return server

    def tlsa(self, usage: int) -> Tlsa:
        """3 1 1 of the last server's key, or 2 0 1 of the authority."""
        if usage == 3:
            key = self.leaf.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return Tlsa(3, 1, 1, hashlib.sha256(key).digest())
        authority = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        return Tlsa(2, 0, 1, hashlib.sha256(authority.public_bytes(Encoding.DER)).digest())


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def bad_server(authority: Authority, certificate: str) -> RemoteServer:
    match certificate:
        case "wrong-name":
            return authority.server("other.example")
        case "expired":
            return authority.server("mx1.example", expired=True)
        case "stranger":
            return authority.server("mx1.example", ca=trustme.CA())
        case "stripped":
            return RemoteServer()
        case "refused":
            server = authority.server("mx1.example")
            server.mail.at["STARTTLS", 0] = b"454 4.7.0 not now\r\n"
            return server
        case _:
            return authority.server("mx1.example")


STS = {"demand": Demand.PKIX, "names": ("mx1.example",), "policy_type": PolicyType.STS}


@pytest.mark.parametrize(
    ("certificate", "problem", "failure"),
    [
        ("good", None, None),
        ("wrong-name", TlsProblem.CERTIFICATE_NAME, FailureType.CERTIFICATE_HOST_MISMATCH),
        ("expired", TlsProblem.CERTIFICATE_EXPIRED, FailureType.CERTIFICATE_EXPIRED),
        ("stranger", TlsProblem.CERTIFICATE_UNTRUSTED, FailureType.CERTIFICATE_NOT_TRUSTED),
        ("stripped", TlsProblem.TLS_NOT_OFFERED, FailureType.STARTTLS_NOT_SUPPORTED),
        ("refused", TlsProblem.TLS_REFUSED, FailureType.STARTTLS_NOT_SUPPORTED),
    ],
)
@pytest.mark.parametrize("mode", ["enforce", "testing", "none"])
async def test_certificates(
    authority: Authority,
    mode: str,
    certificate: str,
    problem: TlsProblem | None,
    failure: FailureType | None,
) -> None:
    server = bad_server(authority, certificate)
    demand = {} if mode == "none" else STS | {"is_enforced": mode == "enforce"}
    world = decider("mx1.example", **demand)
    world.sts = StsView(mode=mode, mx=("mx1.example",), lines=("version: STSv1", f"mode: {mode}"))
    async with open_relay({ONE: server}, world, ca_file=authority.file) as bed:
        answer = (await bed.send(BOB))[-1]
        report = bed.reports[-1]
        if mode == "none":  # opportunistic: who it is does not matter
            assert answer.startswith("250")
            assert report.policy_type is PolicyType.NONE
            assert report.failure is (failure if certificate in {"stripped", "refused"} else None)
        elif mode == "testing" or problem is None:
            assert answer.startswith("250")
            assert report.failure is failure
            assert report.mx_host == ("mx1.example",)
            assert report.policy_string[1] == f"mode: {mode}"
        else:
            assert answer.startswith("451 4.7.5 ")
            assert str(problem) in answer
            assert report.failure is failure
            assert not server.mail.messages
            assert not any(line.startswith("MAIL") for line in server.mail.log)
        assert len(bed.reports) == 1
        if answer.startswith("250"):
            assert bool(server.versions) == (certificate not in {"stripped", "refused"})


@pytest.mark.parametrize(
    ("usage", "matches", "heard"),
    [(3, True, "250"), (2, True, "250"), (3, False, "451 4.7.5"), (2, False, "451 4.7.5")],
)
async def test_dane(authority: Authority, usage: int, *, matches: bool, heard: str) -> None:
    server = authority.server("mx1.example")
    record = authority.tlsa(usage) if matches else Tlsa(usage, 0 if usage == 2 else 1, 1, b"\0" * 32)
    world = decider(
        "mx1.example",
        demand=Demand.DANE,
        names=("mx1.example", "a.example"),
        tlsa=(record,),
        policy_type=PolicyType.TLSA,
    )
    async with open_relay({ONE: server}, world) as bed:  # and no authority is trusted here
        assert (await bed.send(BOB))[-1].startswith(heard)
        (report,) = bed.reports
        assert report.failure is (None if matches else FailureType.TLSA_INVALID)
        assert report.policy_string == (f"{record.usage} {record.selector} 1 {record.data.hex()}",)
        assert report.tlsa_domain == "mx1.example"
        assert server.names == ["mx1.example"]


async def test_dane_needs_no_dates_and_no_names(authority: Authority) -> None:
    server = authority.server("other.example", expired=True)
    record = authority.tlsa(3)
    world = decider("mx1.example", demand=Demand.DANE, tlsa=(record,), policy_type=PolicyType.TLSA)
    async with open_relay({ONE: server}, world) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")


async def test_a_second_host_that_is_safe_gets_what_the_first_may_not_have(authority: Authority) -> None:
    servers = {ONE: RemoteServer(), TWO: authority.server("mx2.example")}
    world = FakeDecider(
        {
            "a.example": [
                policy("mx1.example", 10, demand=Demand.PKIX, names=("mx1.example",)),
                policy("mx2.example", 20, demand=Demand.PKIX, names=("mx2.example",)),
            ]
        }
    )
    async with open_relay(servers, world, ca_file=authority.file) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        assert len(servers[TWO].mail.messages) == 1


@pytest.mark.parametrize("demand", list(Demand))
async def test_replies_put_in_before_the_handshake_end_the_connection(
    authority: Authority, demand: Demand
) -> None:
    """CVE-2021-38371 and its kin, whatever is demanded: there is somebody in between."""
    server = authority.server("mx1.example")
    server.mail.at["STARTTLS", 0] = b"220 go on\r\n250 2.0.0 all is well\r\n"
    world = decider("mx1.example", demand=demand, names=("mx1.example",))
    async with open_relay({ONE: server}, world, ca_file=authority.file) as bed:
        answer = (await bed.send(BOB))[-1]
        assert answer.startswith("451 4.7.5 ")
        assert TlsProblem.TLS_INJECTION in answer
        assert not server.mail.messages
        assert server.mail.connections == 1
        assert bed.reports[-1].failure is FailureType.VALIDATION_FAILURE


async def test_half_a_reply_before_the_handshake_is_an_injection_too(authority: Authority) -> None:
    server = authority.server("mx1.example")
    server.mail.at["STARTTLS", 0] = b"220 go on\r\n250 half"
    async with open_relay({ONE: server}, decider("mx1.example"), ca_file=authority.file) as bed:
        assert TlsProblem.TLS_INJECTION in (await bed.send(BOB))[-1]


async def test_what_was_said_before_tls_is_forgotten(authority: Authority) -> None:
    """RFC 3207 §4.2: keywords are asked for again, and only the second answer counts."""
    server = authority.server("mx1.example")
    server.mail.at["EHLO", 1] = b"250-mx1.example\r\n250-SMTPUTF8\r\n250-DSN\r\n250 STARTTLS\r\n"
    server.mail.at["EHLO", 2] = b"250-mx1.example\r\n250 8BITMIME\r\n"
    async with open_relay({ONE: server}, decider("mx1.example"), ca_file=authority.file) as bed:
        heard = await bed.send("é@a.example", sender="FROM:<a@example.net> SMTPUTF8")
        assert heard[-1].startswith("550 5.6.7")
        assert bed.reports[-1].receiving_mx_helo == "mx1.example"


async def test_where_nothing_is_demanded_a_broken_handshake_is_no_hindrance() -> None:
    server = RemoteServer(hangs_up=True)
    server.mail.keywords += ("STARTTLS",)
    server.mail.at["STARTTLS", 0] = b"220 go on\r\n"
    async with open_relay({ONE: server}, decider("mx1.example")) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")
        assert server.mail.connections == 2
        assert bed.reports[-1].failure is FailureType.VALIDATION_FAILURE


async def test_a_host_that_is_barred_is_not_even_asked() -> None:
    server = RemoteServer()
    world = decider(
        "mx1.example",
        demand=Demand.PKIX,
        policy_type=PolicyType.STS,
        problem=TlsProblem.STS_MX_NOT_LISTED,
        failure=FailureType.VALIDATION_FAILURE,
    )
    async with open_relay({ONE: server}, world) as bed:
        assert TlsProblem.STS_MX_NOT_LISTED in (await bed.send(BOB))[-1]
        assert server.mail.connections == 0
        assert bed.reports[-1].failure is FailureType.VALIDATION_FAILURE


# REQUIRETLS (RFC 8689)


@pytest.mark.parametrize(
    ("changes", "secure", "offers", "heard"),
    [
        (STS, False, True, "250"),
        (STS | {"is_enforced": False}, False, True, "250"),  # and the certificate is demanded all the same
        ({}, True, True, "250"),  # the route is vouched for: a certificate for the host's name
        ({}, False, True, "550 5.7.30"),  # anybody could have named this host
        (STS, False, False, "550 5.7.30"),  # who would not hand the demand on
    ],
)
async def test_requiretls(
    authority: Authority, changes: dict[str, object], *, secure: bool, offers: bool, heard: str
) -> None:
    server = authority.server("mx1.example")
    server.mail.keywords += ("REQUIRETLS",) if offers else ()
    world = decider("mx1.example", **changes)
    world.secure = secure
    async with open_relay({ONE: server}, world, ca_file=authority.file) as bed:
        assert (await bed.send(BOB, sender="FROM:<a@example.net> REQUIRETLS"))[-1].startswith(heard)
        if heard == "250":
            assert "MAIL FROM:<a@example.net> REQUIRETLS" in server.mail.log
        else:
            assert not any(line.startswith("MAIL") for line in server.mail.log)


async def test_requiretls_demands_the_certificate_even_in_testing(authority: Authority) -> None:
    server = authority.server("other.example")
    server.mail.keywords += ("REQUIRETLS",)
    world = decider("mx1.example", **(STS | {"is_enforced": False}))
    async with open_relay({ONE: server}, world, ca_file=authority.file) as bed:
        heard = await bed.send(BOB, sender="FROM:<a@example.net> REQUIRETLS")
        assert heard[-1].startswith("451 4.7.5")
        assert (await bed.send(BOB))[-1].startswith("250")


async def test_requiretls_waits_where_it_is_not_known_whether_there_is_a_policy(authority: Authority) -> None:
    server = authority.server("mx1.example")
    server.mail.keywords += ("REQUIRETLS",)
    world = decider("mx1.example", problem=TlsProblem.STS_DNS)
    async with open_relay({ONE: server}, world, ca_file=authority.file) as bed:
        heard = await bed.send(BOB, sender="FROM:<a@example.net> REQUIRETLS")
        assert heard[-1].startswith("451 4.7.5")


async def test_a_domain_that_was_silent_is_not_asked_for_every_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a thousand messages to one dead domain would hold all of Postfix's processes, and all other mail."""
    monkeypatch.setattr("gateway.listeners.remote.search.SLOW_S", 0.1)
    monkeypatch.setattr("gateway.listeners.remote.search.SILENT_S", 0.5)
    server = RemoteServer(FakeDownstream(at={("GREETING", 1): SILENCE}))
    async with open_relay(
        {ONE: server}, decider("mx1.example"), RelayBedConfig(downstream_timeout_s=0.2)
    ) as bed:
        first = (await bed.send(BOB))[-1]
        assert first.startswith("451 4.4.2 ")
        assert (await bed.send(BOB))[-1] == first
        assert server.mail.connections == 1
        await asyncio.sleep(0.6)  # the clock is what is tested
        assert (await bed.send(BOB))[-1].startswith("250")


async def test_one_busy_domain_does_not_keep_our_mail_servers_processes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.listeners.remote.search.PLACE_WAIT_S", 0.1)
    judge = FakeJudge(may_answer=asyncio.Event())
    async with open_relay(
        {ONE: RemoteServer()},
        decider("mx1.example", "mx2.example"),
        RelayBedConfig(max_connections_per_destination=1),
        judge=judge,
    ) as bed:
        holding = asyncio.ensure_future(bed.send(BOB))
        await settle(lambda: bool(judge.seen))
        assert (await bed.send(BOB))[-1].startswith("451 4.3.2 ")
        assert judge.may_answer
        judge.may_answer.set()
        assert (await holding)[-1].startswith("250")


async def test_a_server_that_drips_bytes_gains_no_time(quick_clock: None) -> None:
    """Our mail server may be gone long since: nobody else would end it."""
    server = RemoteServer(FakeDownstream(at={("CONTENT", 0): SILENCE}))
    config = RelayBedConfig(downstream_data_timeout_s=0.3)
    async with open_relay({ONE: server}, decider("mx1.example"), config) as bed:
        sending = asyncio.ensure_future(bed.send(BOB))
        while not sending.done():
            await asyncio.sleep(0.05)
            if server.mail.seen["CONTENT"]:
                server.protocols[0].say(b"250-")
                server.protocols[0].say(b"x\r\n")
        assert (await sending)[-1].startswith("451 4.4.2 ")


async def test_hosts_that_are_barred_do_not_count_as_tried() -> None:
    servers = {TWO: RemoteServer()}
    barred = [
        policy(f"no{number}.example", number, problem=TlsProblem.STS_MX_NOT_LISTED) for number in range(9)
    ]
    world = FakeDecider({"a.example": [*barred, policy("mx2.example", 99)]})
    async with open_relay(servers, world, RelayBedConfig(max_hosts=1)) as bed:
        assert (await bed.send(BOB))[-1].startswith("250")


async def test_what_this_site_refuses_is_no_failure_of_the_domains() -> None:
    world = decider("mx1.example", problem=TlsProblem.OVERRIDE_REFUSE)
    async with open_relay({}, world, RelayBedConfig(remote_port=1)) as bed:
        assert (await bed.send(BOB))[-1].startswith("550 5.7.1 a.example: this site sends no mail there")
        assert bed.reports == []


async def test_an_idle_connection_to_an_equal_host_is_preferred_and_its_neighbour_not_forgotten() -> None:
    servers = {ONE: RemoteServer(), TWO: RemoteServer()}
    world = FakeDecider({"a.example": [policy("mx1.example"), policy("mx2.example")]})
    async with open_relay(servers, world) as bed:
        for _ in range(10):
            assert (await bed.send(BOB))[-1].startswith("250")
        assert sum(server.mail.connections for server in servers.values()) == 1
        used, other = sorted(servers.values(), key=lambda server: -server.mail.connections)
        used.mail.at["MAIL", 0] = b"451 4.3.0 no longer\r\n"
        assert (await bed.send(BOB))[-1].startswith("250")
        assert len(other.mail.messages) == 1


def test_on_the_loop_that_the_gateway_runs_on(authority: Authority) -> None:
    """uvloop has a TLS of its own: handshake, chain, name, and what is put in before."""
    uvloop.run(test_dane(authority, 3, matches=True, heard="250"))
    uvloop.run(test_dane(authority, 2, matches=True, heard="250"))
    uvloop.run(test_dane(authority, 3, matches=False, heard="451 4.7.5"))
    for certificate, problem in (
        ("good", None),
        ("wrong-name", TlsProblem.CERTIFICATE_NAME),
        ("expired", TlsProblem.CERTIFICATE_EXPIRED),
    ):
        failure = {None: None, TlsProblem.CERTIFICATE_NAME: FailureType.CERTIFICATE_HOST_MISMATCH}.get(
            problem, FailureType.CERTIFICATE_EXPIRED
        )
        uvloop.run(test_certificates(authority, "enforce", certificate, problem, failure))
        uvloop.run(test_certificates(authority, "testing", certificate, problem, failure))
    for demand in Demand:
        uvloop.run(test_replies_put_in_before_the_handshake_end_the_connection(authority, demand))
