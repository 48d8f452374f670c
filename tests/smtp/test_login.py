"""The log-in on the bench: what is remembered, what is told, what is kept from everybody else."""

import base64

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from gateway.mail.envelope import Listener, Tls
from gateway.smtp.client import DownstreamFailure
from gateway.smtp.dialog import Awaiting, LoginOutcome
from gateway.smtp.effects import SessionEnd
from gateway.smtp.ehlo import Capabilities
from gateway.smtp.guesses import Guesses
from gateway.smtp.login import MAX_TURNS
from gateway.smtp.state import State
from tests.smtp.bench import Bench, settings
from tests.smtp.downstream import CLOSE, SILENCE, FakeDownstream

TLS = Tls(version="TLSv1.3", cipher="TLS_AES_256_GCM_SHA384")
GOOD = base64.b64encode(b"\0ann\0secret").decode()
BAD = base64.b64encode(b"\0ann\0guess").decode()


def make(guesses: Guesses | None = None, **changes: object) -> Bench:
    downstream = FakeDownstream(keywords=("AUTH PLAIN LOGIN", "8BITMIME"))
    bench = Bench(
        settings=settings(role=Listener.SUBMISSION),
        downstream=downstream,
        guesses=guesses or Guesses(max_failures=5, window_s=600, delay_s=1, clock=lambda: 0.0),
        tls=TLS,
        **changes,  # type: ignore[arg-type]  # a test names what it changes
    )
    bench.line("EHLO client.example")
    return bench


def holds_one(bench: Bench) -> bool:
    return bench.held is not None


def test_the_message_is_the_logins_and_comes_with_esmtpsa() -> None:
    bench = make()
    assert bench.line(f"AUTH PLAIN {GOOD}").startswith(b"235")
    bench.send(b"MAIL FROM:<ann@example.net>\r\nRCPT TO:<bob@elsewhere.example>\r\nDATA\r\n")
    bench.send(b"From: ann@example.net\r\n\r\nHello\r\n.\r\n")
    ((envelope, _),) = bench.judged
    assert envelope.session.login == "ann"
    assert envelope.session.listener is Listener.SUBMISSION
    assert envelope.session.is_ours
    received = bench.downstream.messages[0].partition(b"From:")[0]
    assert b"from client.example (unknown [192.0.2.1])" in received
    assert b"with ESMTPSA id" in received
    assert b"ann" not in received, "nobody outside is told the login"


def test_the_client_can_be_hidden() -> None:
    bench = make()
    bench.settings = settings(role=Listener.SUBMISSION, hide_client=True)
    bench = Bench(settings=bench.settings, downstream=bench.downstream, guesses=bench.guesses, tls=TLS)
    bench.line("EHLO [10.1.2.3]")
    bench.line(f"AUTH PLAIN {GOOD}")
    bench.send(b"MAIL FROM:<ann@example.net>\r\nRCPT TO:<bob@elsewhere.example>\r\nDATA\r\n")
    bench.send(b"From: ann@example.net\r\n\r\nHello\r\n.\r\n")
    (message,) = bench.downstream.messages
    assert message.startswith(b"Received: by mx.example.net with ESMTPSA id")
    assert b"192.0.2.1" not in message
    assert b"10.1.2.3" not in message


def test_outcomes_are_told_and_never_what_proves_them() -> None:
    bench = make(Guesses(max_failures=2, window_s=600, delay_s=1, clock=lambda: 0.0))
    for line in ("AUTH GSSAPI", "AUTH PLAIN !", "AUTH LOGIN", "*", f"AUTH PLAIN {BAD}", f"AUTH PLAIN {BAD}"):
        bench.line(line)
    bench.line(f"AUTH PLAIN {GOOD}")
    assert [(each.outcome, each.mechanism, each.login) for each in bench.logins] == [
        (LoginOutcome.MALFORMED, None, None),
        (LoginOutcome.MALFORMED, "PLAIN", None),
        (LoginOutcome.CANCELLED, "LOGIN", None),
        (LoginOutcome.REFUSED, "PLAIN", "ann"),
        (LoginOutcome.REFUSED, "PLAIN", "ann"),
        (LoginOutcome.BARRED, "PLAIN", None),
    ]
    assert bench.end is SessionEnd.TOO_MANY_GUESSES
    assert "guess" not in repr(bench.logins)
    assert BAD not in repr(bench.logins)


def test_nothing_is_read_while_a_wrong_password_is_answered_late() -> None:
    bench = make(is_pausing=True)
    assert bench.send(f"AUTH PLAIN {BAD}\r\nAUTH PLAIN {BAD}\r\nQUIT\r\n".encode()) == b""
    assert bench.core.awaiting is Awaiting.PENALTY
    assert bench.paused_s == [1.0]
    asked = len(bench.downstream.log)
    assert bench.send(b"NOOP\r\n") == b""
    assert len(bench.downstream.log) == asked, "the second guess waits for the first one's penalty"
    bench.perform(bench.core.pause_over())
    assert bench.take_output().startswith(b"535")
    assert bench.paused_s == [1.0, 2.0]
    bench.perform(bench.core.pause_over())
    assert bench.take_output().startswith(b"535")
    assert bench.end is SessionEnd.QUIT


def test_whoever_leaves_during_the_penalty_is_let_go() -> None:
    bench = make(is_pausing=True)
    bench.line(f"AUTH PLAIN {BAD}")
    bench.perform(bench.core.client_lost())
    assert bench.end is SessionEnd.CLIENT_CLOSED
    bench.perform(bench.core.pause_over())
    assert bench.take_output() == b""


def test_draining_waits_for_the_penalty_and_no_longer() -> None:
    bench = make(is_pausing=True)
    bench.line(f"AUTH PLAIN {BAD}")
    bench.perform(bench.core.drain())
    assert bench.end is None
    bench.perform(bench.core.pause_over())
    assert bench.take_output().split(b"\r\n")[0].startswith(b"535")
    assert bench.end is SessionEnd.DRAINED


def test_guesses_of_other_sessions_are_waited_for_but_not_for_ever() -> None:
    guesses = Guesses(max_failures=1, window_s=600, delay_s=1, clock=lambda: 0.0)
    elsewhere = guesses.begin(make().peer, "ann")
    bench = make(guesses, is_pausing=True)
    assert bench.line(f"AUTH PLAIN {GOOD}") == b""
    assert bench.core.awaiting is Awaiting.TURN
    assert not any(each.startswith("AUTH") for each in bench.downstream.log)
    for _ in range(MAX_TURNS):
        bench.perform(bench.core.pause_over())
    assert bench.take_output().startswith(b"454 4.7.0")
    assert not isinstance(elsewhere, str)
    guesses.withdraw(elsewhere)
    assert bench.line(f"AUTH PLAIN {GOOD}").startswith(b"235")


def test_a_dead_connection_from_the_pool_is_replaced_before_anything_secret_is_said() -> None:
    bench = make()
    bench.perform(bench.core.rest())
    assert len(bench.idle) == 1
    bench.idle_is_dead = True
    assert bench.line(f"AUTH PLAIN {GOOD}").startswith(b"235")
    assert bench.downstream.connections == 2


def test_the_connection_is_nobody_elses_from_the_first_try_on() -> None:
    bench = make()
    bench.line(f"AUTH PLAIN {BAD}")
    bench.perform(bench.core.rest())
    assert holds_one(bench), "kept while the client stays"
    bench.line("QUIT")
    assert not holds_one(bench)
    assert bench.idle == []


def test_an_idle_session_whose_connection_is_lost_ends() -> None:
    bench = make()
    bench.line(f"AUTH PLAIN {GOOD}")
    bench.lose_downstream()
    assert bench.take_output().startswith(b"421 4.3.2")
    assert bench.end is SessionEnd.DOWNSTREAM_DOWN


def test_a_silent_downstream_is_not_waited_for() -> None:
    bench = make()
    bench.downstream.at["RESPONSE", 0] = b"<silence>"
    assert bench.line(f"AUTH PLAIN {GOOD}") == b""
    assert bench.core.awaiting is Awaiting.AUTH
    bench.perform(bench.core.timed_out())
    assert bench.take_output().startswith(b"454 4.7.0")
    assert bench.failures == [DownstreamFailure.TIMEOUT]
    assert bench.core.state is State.READY


@pytest.mark.parametrize("word", ["MAIL FROM:<ceo@example.net>", "QUIT", "RSET", "EHLO x", "DATA"])
def test_within_an_exchange_nothing_is_a_command(word: str) -> None:
    bench = make()
    assert bench.line("AUTH LOGIN").startswith(b"334")
    assert bench.line(word).startswith(b"501")
    assert bench.end is None
    assert bench.core.session.login is None


def test_the_client_may_leave_in_any_state_of_the_exchange() -> None:
    for count in range(len("AUTH LOGIN\r\nYW5u\r\nc2VjcmV0\r\n")):
        bench = make()
        bench.send(b"AUTH LOGIN\r\nYW5u\r\nc2VjcmV0\r\n"[:count])
        bench.perform(bench.core.client_lost())
        assert bench.end is SessionEnd.CLIENT_CLOSED
        assert bench.held is None
        assert bench.idle == [] or not bench.idle[0].client.is_private


def test_too_many_wrong_log_ins_of_any_kind_end_the_session() -> None:
    bench = make()
    while bench.end is None:
        bench.line("AUTH PLAIN !")
    assert bench.end is SessionEnd.TOO_MANY_ERRORS
    assert len(bench.logins) == bench.settings.max_errors


def test_what_downstream_did_not_offer_once_is_asked_for_again() -> None:
    bench = make()
    bench.known = Capabilities(eight_bit=True)  # as it was when Dovecot was away
    bench.perform(bench.core.rest())
    assert b"AUTH PLAIN LOGIN" in bench.line("EHLO client.example")
    refused = make()
    refused.downstream.keywords = ("8BITMIME",)
    again = Bench(settings=refused.settings, downstream=refused.downstream, guesses=refused.guesses, tls=TLS)
    assert b"\r\n421 4.3.2" in again.line("EHLO client.example")
    assert again.end is SessionEnd.DOWNSTREAM_DOWN
    assert again.failures == [DownstreamFailure.REFUSED]
    assert again.idle == [], "its connection is not kept"


@pytest.mark.parametrize("line", ["AUTH PLAIN", f"AUTH PLAIN {GOOD}"])
def test_nobody_is_let_in_who_was_not_asked_for_a_proof(line: str) -> None:
    bench = make()
    bench.downstream.at["AUTH", 0] = b"235 2.7.0 come in\r\n"
    assert bench.line(line).startswith(b"454")
    assert bench.core.session.login is None
    assert not holds_one(bench), "whoever it was let in as"


@pytest.mark.parametrize("tls", [None, TLS])
def test_other_doors_know_nothing_of_log_ins_whatever_is_behind_them(tls: Tls | None) -> None:
    bench = Bench(downstream=FakeDownstream(keywords=("AUTH PLAIN LOGIN",)), tls=tls)
    assert b"AUTH" not in bench.line("EHLO client.example")
    assert bench.line(f"AUTH PLAIN {GOOD}").startswith(b"502")
    assert bench.line("MAIL FROM:<ann@example.net> AUTH=<>").startswith(b"555")
    assert bench.downstream.log == ["EHLO mx.example.net"]


# Chaos

STEPS = ("GREETING", "EHLO", "AUTH", "RESPONSE", "MAIL", "RCPT", "DATA", "CONTENT", "RSET")
ANSWERS = (b"235 2.7.0 ok\r\n", b"334 YQ==\r\n", b"334 \r\n", b"334 a b\r\n", b"334-YQ==\r\n334 YQ==\r\n", b"454 4.7.0 x\r\n", b"535 no\r\n", b"503 y\r\n", b"421 4.3.2 bye\r\n" + CLOSE, CLOSE, SILENCE, b"\xff\r\n", b"250 a\r\n")  # fmt: skip
LINES = ["EHLO c", "HELO c", "AUTH LOGIN", "AUTH PLAIN", f"AUTH PLAIN {GOOD}", f"AUTH PLAIN {BAD}", "AUTH CRAM-MD5", "auth xoauth2 =", "*", "YW5u", "c2VjcmV0", "", GOOD, "!", "MAIL FROM:<ann@example.net>", "RCPT TO:<bob@elsewhere.example>", "DATA", ".", "RSET", "NOOP", "STARTTLS", "QUIT"]  # fmt: skip


def happen(bench: Bench, name: str, data: bytes) -> None:
    match name:
        case "send":
            bench.send(data)
        case "pause":
            bench.perform(bench.core.pause_over())
        case "lose" if holds_one(bench):
            bench.lose_downstream()
        case "timeout":
            bench.perform(bench.core.timed_out())
        case "rest":
            bench.perform(bench.core.rest())
        case "drain":
            bench.perform(bench.core.drain())
        case "leave":
            bench.perform(bench.core.client_lost())
        case _:
            pass


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("send"), st.sampled_from(LINES).map(lambda line: line.encode() + b"\r\n")),
            st.tuples(st.just("send"), st.binary(max_size=20)),
            st.tuples(st.sampled_from(["pause", "lose", "timeout", "rest", "drain", "leave"]), st.just(b"")),
        ),
        max_size=40,
    ),
    st.dictionaries(
        st.tuples(st.sampled_from(STEPS), st.integers(1, 3)), st.sampled_from(ANSWERS), max_size=4
    ),
)
@hypothesis_settings(max_examples=400, deadline=None)
def test_whatever_happens_nobody_is_let_in_without_downstreams_word(
    events: list[tuple[str, bytes]], at: dict[tuple[str, int], bytes]
) -> None:
    bench = make(is_pausing=True)
    bench.downstream.at.update(at)
    for name, data in events:
        if bench.end is None:
            happen(bench, name, data)
    session = bench.core.session
    accepted = [each for each in bench.logins if each.outcome is LoginOutcome.ACCEPTED]
    assert len(accepted) == (session.login is not None)
    if session.login is None:
        assert not bench.downstream.messages
        assert not any(each.startswith("MAIL") for each in bench.downstream.log)
    else:
        assert any(each.startswith("AUTH") for each in bench.downstream.log)
        assert session.login == accepted[0].login
    assert not any(pooled.client.is_private for pooled in bench.idle)
    assert (bench.end is not None) == (bench.core.state is State.CLOSED)
