"""The milter over its socket, without a mail server; `tests/live/test_milter.py` has Postfix speak to it."""

import json
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from gateway.listeners.libmilter import MilterUnavailableError, load_pymilter
from tests.live.postfix import open_directory, wait_until
from tests.milter.raw_client import ALL_PROTOCOL, LEADING_SPACE, NO_HEADER_REPLY, Mail, RawClient
from tests.milter.server import ROOT, MilterProcess, milter_process

IMPLEMENTATIONS = ("own", "pymilter")


def options_for(implementation: str) -> dict[str, Any]:
    if implementation == "pymilter":
        pytest.importorskip("milter", reason="pymilter is not installed")
    return {"implementation": implementation}


@pytest.fixture(scope="module", params=IMPLEMENTATIONS)
def milter(request: pytest.FixtureRequest) -> Iterator[MilterProcess]:
    options = options_for(request.param) | {
        "judge_timeout_s": 1,
        "max_message_bytes": 3_000_000,
        "max_sessions": 30,
        "socket_mode": 0o640,
    }
    with open_directory() as directory, milter_process(directory, options) as milter:
        yield milter


@pytest.fixture
def client(milter: MilterProcess) -> Iterator[RawClient]:
    with RawClient(milter.socket) as client:
        client.connect()
        client.helo()
        yield client
        client.quit()
    wait_until(
        lambda: milter.said().count("opened") == milter.said().count("closed milter"), "its session to end"
    )


def scripted(script: dict[str, Any], *fields: tuple[bytes, bytes]) -> Mail:
    return Mail(
        headers=(*fields, (b"X-Script", b" " + json.dumps(script).encode()), (b"From", b" <a@example.org>"))
    )


def test_the_socket_has_its_mode(milter: MilterProcess) -> None:
    assert stat.S_IMODE(milter.socket.stat().st_mode) == 0o640


def test_asks_for_what_it_needs_and_nothing_more(client: RawClient) -> None:
    assert client.actions == 0x131  # add, change, quarantine, list of macros
    assert client.protocol & LEADING_SPACE
    assert client.protocol & NO_HEADER_REPLY


def test_a_mail_server_that_cannot_do_it_is_told_no(milter: MilterProcess) -> None:
    with pytest.raises((ConnectionError, AssertionError)):
        RawClient(milter.socket, protocol=ALL_PROTOCOL & ~LEADING_SPACE)
    wait_until(lambda: "milter.protocol-too-old" in milter.said(), "the operator to be told")


def test_a_verdict_in_the_protocols_words(client: RawClient) -> None:
    script = {
        "disposition": "quarantine",
        "remove": [["x-forged", 0], ["x-forged", 2]],
        "prepend": [["A-R", "mx;\r\n\tspf=pass smtp.mailfrom=b\u00fc@x"], ["X-Mark", "1"]],
    }
    forged = [(name, b" forged") for name in (b"X-Forged", b"x-forged", b"X-FORGED")]
    answer = client.send(scripted(script, *forged))
    assert answer.deleted == [(3, "x-forged"), (1, "x-forged")]
    assert answer.inserted == [
        (0, "X-Mark", b" 1"),
        (0, "A-R", " mx;\n\tspf=pass smtp.mailfrom=b\u00fc@x".encode()),
    ]
    assert answer.quarantined == ["rule=test-rule"]
    assert answer.last.command == "a"


@pytest.mark.parametrize(
    ("mail", "text"),
    [
        (scripted({"disposition": "reject", "reply": [550, "5.7.1", ["50%"]]}), "550 5.7.1 50%%"),
        (
            scripted({"disposition": "defer", "reply": [451, "4.7.1", ["a", "b"]]}),
            "451-4.7.1 a\r\n451 4.7.1 b",
        ),
        (scripted({"crash": True}), "451 4.3.0 internal error, please try again later"),
        (scripted({"remove": [["absent", 0]]}), "451 4.3.0 internal error, please try again later"),
        (scripted({"sleep": 9}), "451 4.3.0 checking the message took too long, please try again later"),
        (Mail(body=b"x" * 3_000_001), "552 5.3.4 the message is larger than we take"),
        (Mail(mail_from=(b"<reject-me@x.org>",)), "550 5.7.1 100%% no at mail"),
        (
            Mail(mail_from=(b"<slow-me@x.org>",)),
            "451 4.3.0 checking the message took too long, please try again later",
        ),
        (Mail(recipients=((b"<b@x.org>",), (b"<defer-me@x.org>",))), "450 4.7.1 later at rcpt"),
        (
            Mail(mail_from=(b"<a b@x.org>",)),
            "553 5.1.7 the sender address has a form that can be read in more than one way, or in none",
        ),
        (
            Mail(recipients=((b"<\xff>",),)),
            "553 5.1.3 the recipient address has a form that can be read in more than one way, or in none",
        ),
    ],
)
def test_refusals_and_the_session_goes_on(client: RawClient, mail: Mail, text: str) -> None:
    answer = client.send(mail)
    assert (answer.text, answer.edits) == (text, [])
    assert client.send(Mail()).last.command == "a"


def test_a_bug_is_told_once_with_its_traceback(milter: MilterProcess, client: RawClient) -> None:
    told = "RuntimeError: a bug in the judge"
    before, answered = milter.said().count(told), milter.said().count("observed message")
    client.send(scripted({"crash": True}))
    client.send(Mail())
    wait_until(lambda: milter.said().count("observed message") >= answered + 2, "both to be told of")
    assert milter.said().count(told) == before + 1


@pytest.mark.parametrize(
    ("address", "family", "client_ip"),
    [
        (b"192.0.2.9", b"4", "192.0.2.9"),
        (b"IPv6:2001:db8::9", b"6", "2001:db8::9"),
        (b"IPv6:::ffff:192.0.2.9", b"6", "192.0.2.9"),
        (b"/some/socket", b"L", "0.0.0.0"),
        (b"", b"U", "0.0.0.0"),
    ],
)
def test_every_kind_of_client(milter: MilterProcess, address: bytes, family: bytes, client_ip: str) -> None:
    before = milter.count()
    with RawClient(milter.socket) as client:
        client.connect(address=address, family=family)
        client.helo(b"h\xff")  # not UTF-8: nobody's name
        assert client.send(Mail()).last.command == "a"
        client.quit()
    ((facts, _),) = milter.captured(before)
    assert (facts["client_ip"], facts["trusted"], facts["helo"]) == (client_ip, False, None)


def test_a_login_and_tls_are_taken_from_macros_of_their_own_message(
    milter: MilterProcess, client: RawClient
) -> None:
    before = milter.count()
    client.send(Mail(macros=((b"{auth_authen}", b"alice"), (b"{tls_version}", b"TLSv1.3"), (b"i", b"Q1"))))
    client.send(Mail(macros=((b"i", b"Q2"),)))
    client.send(Mail(macros=((b"{auth_authen}", b"\xff\xfe"),)))
    facts = [facts for facts, _ in milter.captured(before)]
    assert [(one["login"], one["tls"]) for one in facts] == [("alice", "TLSv1.3"), (None, None), (None, None)]
    assert [one["queue_id"] for one in facts] == ["Q1", "Q2", None]


def test_an_abandoned_message_leaves_nothing_for_the_next(milter: MilterProcess, client: RawClient) -> None:
    before = milter.count()
    client.mail([b"<left@example.org>"])
    client.rcpt([b"<left@example.net>"])
    client.content(Mail(body=b"x" * 2_000_000))
    client.abort()
    client.send(Mail(body=b"second\r\n"))
    ((facts, raw),) = milter.captured(before)
    assert facts["recipients"] == ["b@example.net"]
    assert raw.endswith(b"\r\n\r\nsecond\r\n")


@pytest.mark.parametrize("junk", [b"\xff\xff\xff\xffO", b"\0\0\0\1Z", b"\0\0\0\0", b"GET / HTTP/1.1\r\n\r\n"])
def test_what_is_no_milter_protocol_ends_that_connection_only(milter: MilterProcess, junk: bytes) -> None:
    with RawClient(milter.socket) as client:
        client._socket.sendall(junk)
    with RawClient(milter.socket) as client:
        client.connect()
        assert client.send(Mail()).last.command == "a"


def test_sessions_over_the_limit_are_deferred(milter: MilterProcess) -> None:
    clients = [RawClient(milter.socket) for _ in range(30)]
    try:
        for one in clients:
            one.connect()
            assert one.send(Mail()).last.command == "a"
        with RawClient(milter.socket) as over:
            over.connect()
            assert over.send(Mail()).text == "451 4.3.2 too many sessions, please try again later"
    finally:
        for one in clients:
            one.close()
    wait_until(lambda: milter.said().count("opened") == milter.said().count("closed milter"), "them to end")


def test_slow_judgements_do_not_wait_for_each_other(milter: MilterProcess) -> None:
    def send(_: int) -> str:
        with RawClient(milter.socket) as client:
            client.connect()
            return client.send(scripted({"sleep": 0.5})).last.command

    started = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(send, range(20))) == {"a"}
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_the_main_programs_and_drain(number: signal.Signals, implementation: str) -> None:
    with open_directory() as directory, milter_process(directory, options_for(implementation)) as milter:
        milter.signal(signal.SIGHUP)
        assert milter.read_line() == "reloaded", "libmilter would have stopped"
        with RawClient(milter.socket) as busy, RawClient(milter.socket) as idle:
            busy.connect()
            idle.connect()
            answers: list[str] = []
            mail = scripted({"sleep": 1, "prepend": [["X-Judged", "1"]]})
            sender = threading.Thread(target=lambda: answers.append(busy.send(mail).inserted[0][1]))
            sender.start()
            wait_until(lambda: milter.count() > 0, "the judge to have it")
            milter.signal(number)
            wait_until(
                lambda: idle.send(Mail()).text == "451 4.3.2 shutting down, please try again later",
                "no new message",
            )
            sender.join(10)
            assert answers == ["X-Judged"]
            assert milter.read_line().startswith("drained 0 ")
        assert milter.process.wait(10) == 0
        assert not milter.socket.exists()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_draining_does_not_wait_for_ever(implementation: str) -> None:
    options = options_for(implementation) | {"drain_s": 0.3}
    with open_directory() as directory, milter_process(directory, options) as milter:
        with RawClient(milter.socket) as stuck:
            stuck.connect()
            stuck.mail([b"<a@example.org>"])
            milter.signal(signal.SIGTERM)
            assert milter.read_line().startswith("drained 1 ")
        assert milter.process.wait(10) == 0


def test_without_pymilter_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "milter", None)
    with pytest.raises(
        MilterUnavailableError, match=r"pip install 'mailflow-gateway\[milter\]'.*libmilter-dev"
    ):
        load_pymilter()


def test_importing_the_module_needs_no_pymilter() -> None:
    code = "import sys; sys.modules['milter'] = None; import gateway.listeners.milter, gateway.listeners.libmilter"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_second_one_on_the_same_socket_is_refused(milter: MilterProcess, tmp_path: Path) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "tests.milter.server", str(milter.socket), str(tmp_path), "{}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
    )
    assert second.returncode != 0
    assert "another process is listening there" in second.stderr
    with RawClient(milter.socket) as client:
        client.connect()
        assert client.send(Mail()).last.command == "a"
