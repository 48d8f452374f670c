"""One connection of the mail server, packet by packet, without a socket."""

import asyncio
from ipaddress import IPv4Network
from typing import Any, Final, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.listeners.milter import MilterListener, MilterSocket
from gateway.listeners.milter_connection import ACTIONS, MAX_WAITING_BYTES, PROTOCOL, MilterConnection
from gateway.mail.envelope import Envelope, Listener
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.milter.wire import PacketReader, Skip, write_packet
from gateway.trace.tell import Tracer
from gateway.verdict import Answered, Disposition, Stage, Verdict
from tests.milter.server import Settings
from tests.trace.samples import Told

OFFER: Final = write_packet(b"O", b"\0\0\0\6" + (0x1FF).to_bytes(4, "big") + (0x1FFFFF).to_bytes(4, "big"))
CLIENT: Final = write_packet(b"C", b"mail.example.org\x004\0\x19192.0.2.1\0")
SENDER: Final = write_packet(b"M", b"<a@example.org>\0")
RECIPIENT: Final = write_packet(b"R", b"<b@example.net>\0")
HEADER: Final = write_packet(b"L", b"From\0 a@example.org\0")
END: Final = write_packet(b"E")


class Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[bytes] = []
        self.is_closed = False
        self.readings: list[str] = []

    def write(self, data: Any) -> None:
        self.said.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.is_closed

    def pause_reading(self) -> None:
        self.readings.append("paused")

    def resume_reading(self) -> None:
        self.readings.append("resumed")


class Judge:
    """Accepts; at MAIL and RCPT it refuses `no@…`, and it waits where it is told to."""

    def __init__(self) -> None:
        self.raw: list[bytes] = []
        self.logins: list[str | None] = []
        self.go = asyncio.Event()
        self.go.set()

    async def screen(self, stage: Stage, envelope: Envelope) -> Verdict | None:
        mailbox = envelope.mail_from if stage is Stage.MAIL else envelope.recipients[0].mailbox
        if mailbox is None or mailbox.local_part != "no":
            return None
        return Verdict(disposition=Disposition.REJECT, rule="no", reply=Reply.of(550, "5.7.1", f"at {stage}"))

    async def judge(self, envelope: Envelope, message: Message) -> Verdict:
        await self.go.wait()
        self.logins.append(envelope.session.login)
        self.raw.append(bytes(message.raw))
        return Verdict(disposition=Disposition.ACCEPT, rule="yes")


class Counts:
    def __init__(self) -> None:
        self.open = 0
        self.messages: list[Disposition] = []

    def session_opened(self, _listener: Listener) -> None:
        self.open += 1

    def session_closed(self, _listener: Listener, _end: str) -> None:
        self.open -= 1

    def command(self, _listener: Listener, verb: str, code: int) -> None:
        """Not of interest here."""

    def message(self, _listener: Listener, answered: Answered) -> None:
        self.messages.append(answered.disposition)


class Bench:
    """A connection, its judge, and what was said to it."""

    def __init__(self, *, asks: bool = False, timeout_s: float = 60.0, max_sessions: int = 1_000) -> None:
        self.judge, self.counts, self.wire = Judge(), Counts(), Wire()
        network = (IPv4Network("198.51.100.0/24"),)
        given = Settings(
            listen="unix:/nowhere", timeout_s=timeout_s, trusted_networks=network, max_sessions=max_sessions
        )
        self.listener = MilterListener(
            cast("Any", given),
            sock=cast("MilterSocket", None),
            judge=self.judge,
            observer=self.counts,
            asks=lambda _stage: asks,
        )
        self.connection = MilterConnection(self.listener)
        self.listener.opened(self.connection)
        self.connection.connection_made(self.wire)

    async def send(self, *data: bytes) -> str:
        """The letters of what was said to it, in order."""
        before = len(self.wire.said)
        for each in data:
            self.connection.data_received(each)
            await self.settle()
        said = b"".join(self.wire.said[before:])
        return "".join(chr(packet.command) for packet in PacketReader().feed(said))

    async def settle(self) -> None:
        for _ in range(5):
            await asyncio.sleep(0)


async def test_a_message_in_one_go_has_its_answers_in_one_go() -> None:
    bench = Bench()
    assert await bench.send(OFFER + CLIENT + SENDER + RECIPIENT + HEADER + END) == "Oa"
    assert len(bench.wire.said) == 2, "one write before the judge, one after him"
    assert bench.judge.raw == [b"From: a@example.org\r\n\r\n"]
    bench.connection.connection_lost(None)
    assert bench.counts.open == 0


@pytest.mark.parametrize(("asks", "heard"), [(True, "cca"), (False, "a")])
async def test_commands_are_answered_only_where_a_rule_asks(asks: bool, heard: str) -> None:  # noqa: FBT001 - pytest gives it
    bench = Bench(asks=asks)
    await bench.send(OFFER)
    (answer,) = PacketReader().feed(bench.wire.said[0])
    protocol = int.from_bytes(answer.data[8:12], "big")
    assert bool(protocol & Skip.NO_MAIL_REPLY) is not asks
    assert bool(protocol & Skip.NO_RCPT_REPLY) is not asks
    assert protocol & PROTOCOL == PROTOCOL
    assert int.from_bytes(answer.data[4:8], "big") == ACTIONS
    assert await bench.send(CLIENT + SENDER, RECIPIENT, HEADER + END) == heard


BAD_SENDER: Final = write_packet(b"M", b"<a b@example.org>\0")
BAD_RECIPIENT: Final = write_packet(b"R", b"<a b@example.net>\0")


@pytest.mark.parametrize(
    ("packets", "code"),
    [((BAD_SENDER, RECIPIENT), b"553 5.1.7"), ((SENDER, RECIPIENT, BAD_RECIPIENT, RECIPIENT), b"553 5.1.3")],
)
async def test_what_cannot_be_read_is_refused_where_somebody_waits(
    packets: tuple[bytes, ...], code: bytes
) -> None:
    bench = Bench()
    assert await bench.send(OFFER, CLIENT, *packets, HEADER) == "O"
    assert await bench.send(END) == "y"
    assert code in bench.wire.said[-1]
    assert await bench.send(write_packet(b"A"), SENDER, RECIPIENT, END) == "a", "the next is another matter"
    assert bench.judge.raw == [b"\r\n"]
    assert bench.listener.bench.load.messages == 0


async def test_a_mail_server_that_cannot_do_without_answers_gets_them() -> None:
    bench = Bench()
    offered = 0x1FFFFF & ~(Skip.NO_MAIL_REPLY | Skip.NO_RCPT_REPLY)
    offer = write_packet(b"O", b"\0\0\0\6" + (0x1FF).to_bytes(4, "big") + offered.to_bytes(4, "big"))
    assert await bench.send(offer, CLIENT, SENDER, BAD_RECIPIENT, RECIPIENT, END) == "Ocyca"


async def test_a_message_that_is_refused_for_a_recipient_is_told_of() -> None:
    bench = Bench()
    told = Told()
    bench.listener.trace_to(Tracer(told.keep))
    await bench.send(OFFER, CLIENT, SENDER, RECIPIENT, BAD_RECIPIENT, HEADER, END)
    assert bench.counts.messages == [Disposition.REJECT]
    (trace,) = told
    assert trace.reply is not None
    assert (trace.reply.code, trace.mail_from, trace.size) == (553, "a@example.org", 21)


async def test_rules_refuse_commands() -> None:
    bench = Bench(asks=True)
    no = write_packet(b"R", b"<no@example.net>\0")
    assert await bench.send(OFFER, CLIENT, SENDER, no, RECIPIENT, END) == "Ocyca"
    assert await bench.send(write_packet(b"M", b"<no@example.org>\0")) == "y"


async def test_the_body_may_come_with_its_end() -> None:
    bench = Bench()
    await bench.send(
        OFFER, CLIENT, SENDER, RECIPIENT, HEADER, write_packet(b"B", b"one\r\n"), write_packet(b"E", b"two")
    )
    assert bench.judge.raw == [b"From: a@example.org\r\n\r\none\r\ntwo"]


async def test_what_comes_while_the_judge_thinks_waits_and_is_bounded() -> None:
    bench = Bench()
    bench.judge.go.clear()
    assert await bench.send(OFFER, CLIENT, SENDER, RECIPIENT, END) == "O"
    assert await bench.send(SENDER + RECIPIENT + HEADER) == ""
    body = write_packet(b"B", b"x" * 60_000)
    assert await bench.send(body, body, body, body, body) == ""
    assert bench.wire.readings == ["paused"]
    bench.judge.go.set()
    await bench.settle()
    assert bench.wire.readings == ["paused", "resumed"]
    assert await bench.send(END) == "a"
    assert [len(raw) for raw in bench.judge.raw] == [2, 300_023]


async def test_a_mail_server_that_never_waits_gets_no_more_room_by_it() -> None:
    bench, ahead, most = Bench(), (SENDER + RECIPIENT + END) * 3_000, 0
    await bench.send(OFFER, CLIENT)
    for _ in range(20):
        bench.judge.go.clear()
        while bench.wire.readings[-1:] != ["paused"]:
            bench.connection.data_received(ahead)
        most = max(most, sum(len(packet.data) for packet in bench.connection._waiting))
        bench.judge.go.set()
        await bench.settle()
    assert 0 < most < MAX_WAITING_BYTES + 2 * len(ahead)


async def test_who_does_not_read_his_answers_is_not_read_from() -> None:
    bench = Bench()
    bench.connection.pause_writing()
    bench.connection.resume_writing()
    assert bench.wire.readings == ["paused", "resumed"]


async def test_an_answer_that_cannot_be_written_ends_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_actions: object) -> bytes:
        raise UnicodeEncodeError("utf-8", "\udc80", 0, 1, "a bug of ours")

    monkeypatch.setattr("gateway.milter.wire.write_actions", fail)
    bench = Bench()
    await bench.send(OFFER, CLIENT, SENDER, RECIPIENT, END)
    assert bench.wire.is_closed, "else the mail server waits until its own patience ends"


async def test_a_login_is_not_the_next_messages() -> None:
    bench = Bench()
    login = write_packet(b"D", b"M{auth_authen}\0ann\0")
    await bench.send(OFFER, CLIENT, login, SENDER, RECIPIENT, END)
    await bench.send(SENDER, RECIPIENT, END)
    assert bench.judge.logins == ["ann", None]


async def test_macros_that_nobody_reads_are_not_kept() -> None:
    bench = Bench()
    await bench.send(OFFER, CLIENT, *(write_packet(b"D", bytes([n]) + b"i\0Q\0") for n in b"LNBTUZ\0\xff"))
    assert not bench.connection._macros
    assert not bench.wire.is_closed


async def test_connections_have_an_end() -> None:
    bench = Bench(max_sessions=1)
    second, third, fourth = (MilterConnection(bench.listener) for _ in range(3))
    assert [bench.listener.opened(each) for each in (second, third)] == [True, False]
    second.connection_lost(None)
    assert bench.listener.opened(fourth), "there is room again"
    fourth.connection_lost(None)
    bench.connection.connection_lost(None)
    assert not bench.listener.connections


async def test_a_client_that_is_gone_is_not_judged_any_more() -> None:
    bench = Bench()
    bench.judge.go.clear()
    await bench.send(OFFER, CLIENT, SENDER, RECIPIENT, END)
    bench.connection.connection_lost(None)
    await bench.settle()
    assert (bench.counts.open, bench.counts.messages, bench.judge.raw) == (0, [Disposition.DEFER], [])
    assert not bench.listener.connections


async def test_a_silent_mail_server_is_left() -> None:
    bench = Bench(timeout_s=0.01)
    bench.connection._seen = asyncio.get_running_loop().time() - 1
    bench.connection._watch()
    assert bench.wire.is_closed


@pytest.mark.parametrize(
    "packet",
    [
        write_packet(b"Z"),
        write_packet(b"O", b"\0"),
        write_packet(b"C", b"no end"),
        write_packet(b"M", b"no end"),
        write_packet(b"L", b"lone\0"),
        write_packet(b"D"),
        write_packet(b"D", b"M" + b"x\0" * 1_000),
        write_packet(b"H", b"a\0b\0"),
        write_packet(b"M"),
        RECIPIENT,
        HEADER,
        write_packet(b"B", b"x"),
        END,
        b"\0\0\0\0",
        b"EHLO client.example\r\n",
    ],
)
async def test_what_is_not_the_protocol_ends_the_connection(packet: bytes) -> None:
    bench = Bench()
    await bench.send(OFFER, CLIENT, packet)
    assert bench.wire.is_closed


@pytest.mark.parametrize("packet", [SENDER, RECIPIENT, HEADER, END, write_packet(b"H", b"x\0")])
async def test_nothing_is_taken_before_it_is_told_who_the_client_is(packet: bytes) -> None:
    bench = Bench()
    assert await bench.send(OFFER, packet) == "O"
    assert bench.wire.is_closed
    assert bench.counts.open == 0


LETTERS: Final = b"OCHMRTLNBEAQKDUZ"
PACKETS: Final = st.one_of(
    st.sampled_from([OFFER, CLIENT, SENDER, RECIPIENT, HEADER, END, write_packet(b"A"), write_packet(b"K")]),
    st.builds(
        lambda letter, data: write_packet(bytes([letter]), data),
        st.sampled_from(LETTERS),
        st.one_of(st.binary(max_size=40), st.sampled_from([b"<a@b.example>\0", b"i\0Q\0", b"Mi\0Q\0"])),
    ),
)


@given(st.lists(PACKETS, max_size=30), st.booleans(), st.integers(1, 500))
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_whatever_comes_each_session_ends(packets: list[bytes], asks: bool, cut: int) -> None:  # noqa: FBT001 - hypothesis gives it
    async def run() -> None:
        bench = Bench(asks=asks)
        stream = b"".join(packets)
        for at in range(0, len(stream), cut):
            if not bench.wire.is_closed:
                bench.connection.data_received(stream[at : at + cut])
                await bench.settle()
        bench.connection.connection_lost(None)
        await bench.settle()
        assert bench.counts.open == 0
        assert bench.listener.bench.load.messages == 0
        PacketReader().feed(b"".join(bench.wire.said))

    asyncio.run(run())
