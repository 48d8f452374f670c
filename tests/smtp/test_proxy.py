"""What the dialogs cannot show: reuse of connections, the client's going away, time, drain, the judge's questions, chaos."""

import re
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.mail.edits import Edits, NewField
from gateway.mail.envelope import Listener
from gateway.mail.reply import Reply
from gateway.smtp.client import DownstreamFailure
from gateway.smtp.dialog import Awaiting
from gateway.smtp.effects import SessionEnd
from gateway.smtp.state import State
from gateway.verdict import Disposition, Stage, Verdict
from tests.smtp.bench import ACCEPT, Bench, settings
from tests.smtp.downstream import CLOSE, SILENCE, FakeDownstream

HELLO = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<a@sender.example>\r\nRCPT TO:<bob@example.net>\r\n"
MESSAGE = ENVELOPE + b"DATA\r\nSubject: x\r\n\r\ntext\r\n.\r\n"
NO = Reply.of(550, "5.7.1", "No")


def greeted(bench: Bench) -> Bench:
    bench.send(HELLO)
    return bench


def codes(output: bytes) -> list[int]:
    return [int(line[:3]) for line in output.splitlines() if line[3:4] == b" "]


# The judge


def test_the_judge_sees_the_session_the_envelope_and_the_message() -> None:
    bench = greeted(Bench())
    bench.send(b"MAIL FROM:<a@sender.example> RET=HDRS\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n..x\r\n.\r\n")
    ((envelope, message),) = bench.judged
    assert envelope.id == "sess.1"
    assert envelope.session.listener is Listener.INBOUND
    assert (str(envelope.session.client_ip), envelope.session.helo, envelope.session.esmtp) == (
        "192.0.2.1",
        "client.example",
        True,
    )
    assert str(envelope.mail_from) == "a@sender.example"
    assert [str(recipient.mailbox) for recipient in envelope.recipients] == ["bob@example.net"]
    assert envelope.params == {"RET": "HDRS"}
    assert message.raw == b".x\r\n"
    assert [stage for stage, _ in bench.screened] == [Stage.MAIL, Stage.RCPT]


def test_edits_are_made_with_our_received_below_what_is_put_on_top() -> None:
    verdict = Verdict(
        disposition=Disposition.QUARANTINE,
        rule="test",
        edits=Edits(
            prepend=(NewField("Authentication-Results", "mx.example.net; none"),), remove=frozenset({0})
        ),
    )
    bench = greeted(Bench(verdict=verdict))
    bench.send(
        ENVELOPE
        + b"DATA\r\nAuthentication-Results: mx.example.net; dkim=pass\r\nSubject: x\r\n\r\ntext\r\n.\r\n"
    )
    (message,) = bench.downstream.messages
    expected = (
        rb"Authentication-Results: mx\.example\.net; none\r\n"
        rb"Received: from client\.example \(unknown \[192\.0\.2\.1\]\)\s+by mx\.example\.net with ESMTP id sess\.1\s+"
        rb"for <bob@example\.net>;\s+Mon, 23 Nov 2026 12:00:00 \+0000\r\nSubject: x\r\n\r\ntext\r\n"
    )
    assert re.fullmatch(expected, message), message


def test_a_judge_without_early_rules_is_not_troubled() -> None:
    bench = greeted(Bench(is_screening=False))
    assert codes(bench.send(MESSAGE)) == [250, 250, 354, 250]
    assert bench.screened == []


@pytest.mark.parametrize("stage", [Stage.MAIL, Stage.RCPT])
def test_an_early_refusal_is_not_asked_of_downstream(stage: Stage) -> None:
    bench = greeted(Bench(screens={stage: Verdict(disposition=Disposition.REJECT, rule="test", reply=NO)}))
    output = bench.send(ENVELOPE + b"DATA\r\n")
    assert codes(output) == ([550, 503, 503] if stage is Stage.MAIL else [250, 550, 554])
    assert not [line for line in bench.downstream.log if line.startswith("RCPT")]


def test_a_balancer_and_xclient_say_who_is_trusted() -> None:
    bench = Bench(
        settings=settings(
            xclient_from=(ip_network("192.0.2.1/32"),), trusted_networks=(ip_network("203.0.113.0/24"),)
        ),
    )
    bench.send(b"EHLO a\r\nXCLIENT ADDR=203.0.113.9 NAME=own.example\r\nEHLO b\r\n" + MESSAGE)
    session = bench.judged[0][0].session
    assert (str(session.client_ip), session.client_name, session.helo, session.trusted) == (
        "203.0.113.9",
        "own.example",
        "b",
        True,
    )


def test_tls_is_in_the_session_and_the_helo_before_it_is_not() -> None:
    bench = greeted(Bench(starttls=True))
    bench.send(b"STARTTLS\r\n")
    assert bench.core.session.helo is None
    bench.finish_tls()
    bench.send(HELLO + MESSAGE)
    tls = bench.judged[0][0].session.tls
    assert tls
    assert tls.version == "TLSv1.3"


# Connections downstream


def test_a_connection_is_used_for_all_messages_of_a_session_and_given_back() -> None:
    bench = greeted(Bench())
    assert codes(bench.send(MESSAGE * 3)) == [250, 250, 354, 250] * 3
    assert bench.downstream.connections == 1
    bench.send(b"QUIT\r\n")
    assert len(bench.idle) == 1


def next_session(before: Bench, **changes: object) -> Bench:
    known = before.core._dialog.offered
    after = Bench(downstream=before.downstream, idle=before.idle, known=known, **changes)  # type: ignore[arg-type]  # by name
    after.take_output()
    return after


def holds_downstream(bench: Bench) -> bool:
    return bench.held is not None


def test_the_next_session_uses_it_without_a_word_of_introduction() -> None:
    first = greeted(Bench())
    first.send(MESSAGE + b"QUIT\r\n")
    second = next_session(first, peer=ip_address("192.0.2.2"))
    assert codes(second.send(HELLO + MESSAGE)) == [250, 250, 250, 354, 250]
    assert first.downstream.connections == 1
    assert [line for line in first.downstream.log if line.startswith("EHLO")] == ["EHLO mx.example.net"]


@pytest.mark.parametrize("is_screening", [True, False], ids=["in turn", "ahead"])
def test_a_stale_connection_costs_no_message(is_screening: bool) -> None:  # noqa: FBT001 - pytest gives it
    first = greeted(Bench())
    first.send(MESSAGE + b"QUIT\r\n")
    second = next_session(first, idle_is_dead=True, is_screening=is_screening)
    assert codes(second.send(HELLO + MESSAGE)) == [250, 250, 250, 354, 250]
    assert second.failures == [DownstreamFailure.LOST]
    assert first.downstream.connections == 2
    assert len(first.downstream.messages) == 2


def test_a_stale_connection_is_replaced_once_and_not_for_ever() -> None:
    first = greeted(Bench())
    first.send(MESSAGE + b"QUIT\r\n")
    second = next_session(first, idle_is_dead=True, is_downstream_down=True)
    assert codes(second.send(HELLO + b"MAIL FROM:<>\r\n")) == [250, 451]


def test_nothing_is_asked_again_once_a_recipient_was_taken() -> None:
    bench = greeted(Bench(downstream=FakeDownstream(at={("RCPT", 2): CLOSE})))
    bench.perform(bench.core.rest())  # from here on it is a connection that was used before
    output = bench.send(ENVELOPE + b"RCPT TO:<eve@example.net>\r\nDATA\r\n")
    assert codes(output) == [250, 250, 451, 451]
    assert bench.downstream.connections == 1


def test_an_idle_client_gives_its_connection_to_others_and_gets_one_again() -> None:
    bench = greeted(Bench())
    bench.perform(bench.core.rest())
    assert len(bench.idle) == 1
    assert codes(bench.send(MESSAGE)) == [250, 250, 354, 250]
    bench.send(b"MAIL FROM:<>\r\n")
    bench.perform(bench.core.rest())
    assert bench.held, "not within a transaction"


def test_downstream_lost_between_messages_is_noticed_by_nobody() -> None:
    bench = greeted(Bench())
    bench.send(MESSAGE)
    bench.lose_downstream()
    assert bench.take_output() == b""
    assert codes(bench.send(MESSAGE)) == [250, 250, 354, 250]
    assert bench.downstream.connections == 2


def test_downstream_lost_while_content_is_collected_is_told_at_its_end() -> None:
    bench = greeted(Bench())
    bench.send(ENVELOPE + b"DATA\r\nx\r\n")
    bench.lose_downstream()
    assert bench.take_output() == b""
    assert codes(bench.send(b".\r\nNOOP\r\n")) == [451, 250]
    assert not bench.judged


def test_downstream_that_lost_8bitmime_meanwhile_is_not_given_what_it_cannot_keep() -> None:
    bench = greeted(Bench())
    bench.perform(bench.core.rest())
    bench.idle.clear()
    bench.downstream.keywords = ()
    assert codes(bench.send(b"MAIL FROM:<a@sender.example> BODY=8BITMIME\r\n")) == [451]


# The client goes away


@pytest.mark.parametrize(
    ("sent", "at", "reset"),
    [
        (b"MAIL FROM:<a@sender.example>\r\n", {("MAIL", 0): SILENCE}, False),
        (ENVELOPE, {("RCPT", 0): SILENCE}, False),
        (ENVELOPE, {}, True),
        (ENVELOPE + b"DATA\r\nhalf", {}, True),
        (MESSAGE, {("DATA", 0): SILENCE}, False),
    ],
)
def test_a_client_that_leaves_leaves_nothing_behind(
    sent: bytes,
    at: dict[tuple[str, int], bytes],
    reset: bool,  # noqa: FBT001 - a column of the table
) -> None:
    bench = greeted(Bench(downstream=FakeDownstream(at=at)))
    bench.send(sent)
    bench.perform(bench.core.client_lost())
    assert not holds_downstream(bench)
    assert all(spool.is_discarded for spool in bench.spools)
    assert not bench.downstream.messages
    assert bool(bench.idle) == reset, "only a connection on which no answer is under way may be used again"
    assert (bench.downstream.log[-1] == "RSET") == (
        reset or (bool(at) and "DATA" not in bench.downstream.log)
    )


def test_a_message_on_its_way_is_seen_through_without_its_client() -> None:
    bench = greeted(Bench(downstream=FakeDownstream(at={("CONTENT", 0): SILENCE})))
    bench.send(MESSAGE)
    bench.perform(bench.core.client_lost())
    assert holds_downstream(bench)
    bench.perform(bench.core.downstream_received(b"250 2.0.0 Ok\r\n"))
    assert bench.answered == [("sess.1", 250)]
    assert not holds_downstream(bench)
    assert bench.idle
    assert bench.output == b""


# Time


@pytest.mark.parametrize(
    ("sent", "at", "heard", "end"),
    [
        (b"", {}, [421], SessionEnd.TIMEOUT),
        (ENVELOPE + b"DATA\r\nslow", {}, [421], SessionEnd.TIMEOUT),
        (ENVELOPE, {("RCPT", 0): SILENCE}, [451], None),
        (b"MAIL FROM:<>\r\n", {("MAIL", 0): SILENCE}, [451], None),
        (MESSAGE, {("DATA", 0): SILENCE}, [451], None),
        (MESSAGE, {("CONTENT", 0): SILENCE}, [451], None),
    ],
)
def test_whoever_takes_too_long(
    sent: bytes, at: dict[tuple[str, int], bytes], heard: list[int], end: SessionEnd | None
) -> None:
    bench = greeted(Bench(downstream=FakeDownstream(at=at)))
    bench.send(sent)
    bench.perform(bench.core.timed_out())
    assert codes(bench.take_output()) == heard
    assert bench.end is end
    if end is None:
        assert bench.failures == [DownstreamFailure.TIMEOUT]
        assert bench.idle == [], "a late answer would be taken for the next one's"


def test_content_and_chunks_make_no_progress_for_the_timer() -> None:
    bench = greeted(Bench())
    bench.send(ENVELOPE + b"BDAT 3\r\nabc")
    progress = bench.core.progress
    assert bench.core.is_receiving
    bench.send(b"BDAT 1\r\nxBDAT 100\r\nyy")
    assert bench.core.progress == progress


def test_single_bytes_of_a_command_make_no_progress() -> None:
    bench = greeted(Bench())
    progress = bench.core.progress
    bench.send(b"NOOP very slowly", cut=1)
    assert bench.core.progress == progress


# Stopping


def test_drain_ends_who_is_idle_and_lets_a_message_finish() -> None:
    idle, busy = greeted(Bench()), greeted(Bench())
    busy.send(ENVELOPE + b"DATA\r\nhalf")
    for bench in (idle, busy):
        bench.perform(bench.core.drain())
    assert (codes(idle.take_output()), idle.end) == ([421], SessionEnd.DRAINED)
    assert codes(busy.send(b"\r\n.\r\nMAIL FROM:<>\r\n")) == [250, 421]
    assert busy.end is SessionEnd.DRAINED
    assert len(busy.downstream.messages) == 1


def test_abort_ends_everybody() -> None:
    bench = greeted(Bench(downstream=FakeDownstream(at={("CONTENT", 0): SILENCE})))
    bench.send(MESSAGE)
    bench.perform(bench.core.abort())
    assert codes(bench.take_output()) == [421]
    assert bench.idle == [], "what is in the midst of content is never used again"


def test_a_bug_is_451_and_the_end_of_this_session_only() -> None:
    bench = greeted(Bench())
    bench.send(ENVELOPE)
    bench.perform(bench.core.crashed())
    assert bench.take_output() == b"451 4.3.0 Internal error, try again later\r\n"
    assert bench.end is SessionEnd.INTERNAL
    assert bench.core.received(b"NOOP\r\n") == []


def test_a_refused_session_hears_why() -> None:
    bench = Bench(refused=Reply.of(421, "4.7.0", "Too many"))
    assert codes(bench.take_output()) == [421]
    assert bench.end is SessionEnd.REFUSED
    assert bench.send(HELLO) == b""


# Promise 1: 250 for the content if and only if downstream said 2xx to it

STEPS = ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT", "RSET"]
CHUNKING = (*FakeDownstream().keywords, "CHUNKING")
ANSWERS = [
    CLOSE,
    b"250 2.0.0 Ok\r\n",
    b"354 go\r\n",
    b"451 4.0.0 no\r\n",
    b"550 5.0.0 no\r\n",
    b"421 4.0.0 bye\r\n" + CLOSE,
    b"\xff\r\n",
    b"250 a\r\n250 b\r\n",
]


@example(
    at={("DATA", 1): b"421 4.0.0 bye\r\n<close>"},
    verdict=ACCEPT,
    cut=35,
    is_screening=False,
    keywords=FakeDownstream().keywords,
)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(STEPS), st.integers(1, 2)), st.sampled_from(ANSWERS), max_size=3
    ),
    st.sampled_from([ACCEPT, Verdict(disposition=Disposition.REJECT, rule="t", reply=NO)]),
    st.integers(1, 200),
    st.booleans(),
    st.sampled_from([FakeDownstream().keywords, CHUNKING]),
)
@hypothesis_settings(max_examples=300, deadline=None)
def test_250_if_and_only_if_downstream_took_it(
    at: dict[tuple[str, int], bytes],
    verdict: Verdict,
    cut: int,
    is_screening: bool,  # noqa: FBT001 - hypothesis gives it
    keywords: tuple[str, ...],
) -> None:
    downstream = FakeDownstream(keywords, at)
    bench = Bench(downstream=downstream, verdict=verdict, is_screening=is_screening)
    bench.send(HELLO + MESSAGE + MESSAGE, cut=cut)
    taken = [code for _, code in bench.answered if code // 100 == 2]
    refused = [code for _, code in bench.answered if code // 100 == 5]
    offered = len(bench.downstream.messages)
    assert len(taken) <= offered, "never a 250 for a message that downstream did not take"
    if not any(
        answer.startswith((b"250 a", b"354", b"\xff")) or answer.endswith(CLOSE) for answer in at.values()
    ):
        assert len(taken) == offered
    assert not (refused and len(taken) + len(refused) > len(bench.answered))


# Chaos

WORDS = st.sampled_from(
    [
        b"EHLO x\r\n",
        b"HELO x\r\n",
        b"MAIL FROM:<a@b.example>\r\n",
        b"MAIL FROM:<> BODY=8BITMIME\r\n",
        b"RCPT TO:<bob@example.net>\r\n",
        b"RCPT TO:<x@y.example>\r\n",
        b"DATA\r\n",
        b"text\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"BDAT 3\r\n",
        b"BDAT 0 LAST\r\n",
        b"BDAT 5 LAST\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"STARTTLS\r\n",
        b"XCLIENT ADDR=192.0.2.9\r\n",
        b"QUIT\r\n",
        b"\0",
        b"\r",
        b"\n",
        b"\xff",
        b"A" * 3000,
    ],
)
HAPPENINGS = st.one_of(
    st.tuples(st.just("send"), WORDS),
    st.tuples(st.just("send"), st.binary(max_size=20)),
    st.tuples(st.sampled_from(["tls", "lose", "timeout", "rest", "drain"]), st.just(b"")),
)


@given(
    st.lists(HAPPENINGS, max_size=40),
    st.dictionaries(
        st.tuples(st.sampled_from(STEPS), st.integers(1, 2)), st.sampled_from([*ANSWERS, SILENCE]), max_size=3
    ),
    st.booleans(),
)
@hypothesis_settings(max_examples=400, deadline=None)
def test_whatever_happens_the_session_waits_or_ends(
    events: list[tuple[str, bytes]],
    at: dict[tuple[str, int], bytes],
    is_screening: bool,  # noqa: FBT001 - hypothesis gives it
) -> None:
    bench = Bench(
        downstream=FakeDownstream(at=at),
        is_screening=is_screening,
        starttls=True,
        settings=settings(max_errors=50, xclient_from=(ip_network("192.0.2.0/24"),)),
    )
    sent = 0
    heard = len(bench.take_output())
    for name, data in events:
        match name:
            case "send":
                sent += len(data)
                bench.send(data) if bench.end is None else None
            case "tls" if bench.is_tls_pending:
                bench.finish_tls()
            case "lose" if bench.held:
                bench.lose_downstream()
            case "timeout" if bench.end is None:
                bench.perform(bench.core.timed_out())
            case "rest" if bench.end is None:
                bench.perform(bench.core.rest())
            case "drain" if bench.end is None:
                bench.perform(bench.core.drain())
            case _:
                pass
        assert (bench.end is not None) == (bench.core.state is State.CLOSED)
    heard += len(bench.take_output())
    assert heard <= 400 + 300 * (sent + len(events))
    bench.perform(bench.core.client_lost())
    if bench.core.awaiting is not Awaiting.DELIVERY:
        assert not holds_downstream(bench)
        assert all(spool.is_discarded for spool in bench.spools)


# Content in one chunk


def test_content_goes_in_one_chunk_where_downstream_takes_it() -> None:
    bench = greeted(Bench(downstream=FakeDownstream(keywords=CHUNKING)))
    bench.told.clear()
    assert codes(bench.send(ENVELOPE + b"DATA\r\nSubject: dots\r\n\r\n..\r\n...\r\n.\r\n")) == [
        250,
        250,
        354,
        250,
    ]
    assert bench.downstream.bodies() == [b"Subject: dots\r\n\r\n.\r\n..\r\n"]
    assert [command for command in bench.downstream.log if command.startswith(("BDAT", "DATA"))] == [
        f"BDAT {len(bench.downstream.messages[0])} LAST"
    ]


@pytest.mark.parametrize(
    ("said", "heard"),
    [
        (b"552 5.3.4 too large\r\n", [552]),
        (b"451 4.3.0 later\r\n", [451]),
        (b"421 4.3.2 bye\r\n" + CLOSE, [451]),
        (CLOSE, [451]),
        (b"503 5.5.1 no chunks\r\n", [451]),  # a complaint about our own commands is never the sender's fault
        (b"354 go\r\n", [451]),
    ],
)
def test_what_is_said_to_the_chunk_is_said_of_the_message(said: bytes, heard: list[int]) -> None:
    bench = greeted(Bench(downstream=FakeDownstream(keywords=CHUNKING, at={("CONTENT", 1): said})))
    assert codes(bench.send(MESSAGE)) == [250, 250, 354, *heard]
    assert codes(bench.send(MESSAGE)) == [250, 250, 354, 250], "the next message is another matter"
    assert len(bench.downstream.messages) == 1


# Recipients asked ahead

THREE = (
    b"MAIL FROM:<a@sender.example>\r\nRCPT TO:<bob@example.net>\r\nRCPT TO:<no@elsewhere.example>\r\n"
    b"RCPT TO:<ann@example.net>\r\nDATA\r\n"
)


def test_recipients_are_asked_together_with_mail() -> None:
    bench = greeted(Bench(is_screening=False))
    bench.told.clear()
    assert codes(bench.send(MESSAGE)) == [250, 250, 354, 250]
    assert bench.told[0] == ENVELOPE


def test_a_stranger_elsewhere_is_never_said_to_downstream() -> None:
    bench = greeted(Bench(is_screening=False))
    bench.told.clear()
    assert codes(bench.send(THREE)) == [250, 250, 550, 250, 354]
    assert bench.told == [ENVELOPE, b"RCPT TO:<ann@example.net>\r\n"]


def test_what_is_said_of_recipients_of_a_refused_sender_is_not_the_next_ones() -> None:
    at = {("MAIL", 1): b"450 4.7.1 Later\r\n", ("RCPT", 1): b"503 5.5.1 MAIL first\r\n"}
    bench = greeted(Bench(downstream=FakeDownstream(at=at), is_screening=False))
    assert codes(bench.send(ENVELOPE + b"DATA\r\n" + MESSAGE)) == [450, 503, 503, 250, 250, 354, 250]


def test_a_downstream_without_pipelining_is_asked_in_turn() -> None:
    bench = greeted(Bench(downstream=FakeDownstream(keywords=("SIZE 1000000",)), is_screening=False))
    bench.told.clear()
    assert codes(bench.send(MESSAGE)) == [250, 250, 354, 250]
    assert bench.told[:2] == [b"MAIL FROM:<a@sender.example>\r\n", b"RCPT TO:<bob@example.net>\r\n"]
