"""Postfix and our milter, with a judge that does what each message says (tests/milter/server.py)."""

import json
import signal
import smtplib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.live.postfix import PostfixBed, open_directory, wait_until
from tests.milter.server import MilterProcess, milter_process

pytestmark = pytest.mark.live

BODY: Final = b"first line\r\n\r\n.stuffed\r\nlast line  \r\n\r\n\r\n"


_OPTIONS: Final = {"judge_timeout_s": 2, "trusted_networks": ["0.0.0.0/8", "2001:db8::/32"]}


@dataclass(slots=True)
class Site:
    """A Postfix with our milter behind it."""

    bed: PostfixBed
    milter: MilterProcess
    implementation: str

    def send(
        self, content: bytes, *, recipient: str = "alice@bed.test", options: tuple[str, ...] = ()
    ) -> None:
        with smtplib.SMTP("127.0.0.1", self.bed.port, "client.example.org", timeout=60) as client:
            client.sendmail("a@example.org", [recipient], content, mail_options=list(options))

    def judged(self, content: bytes, **how: Any) -> tuple[dict[str, Any], bytes]:
        """Send it, and give what the judge saw."""
        before = self.milter.count()
        self.send(content, **how)
        ((facts, raw),) = self.milter.captured(before)
        return facts, raw


@pytest.fixture(scope="module", params=["own", "pymilter"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    implementation: str = request.param
    if implementation == "pymilter":
        pytest.importorskip("milter", reason="pymilter is not installed")
    options = _OPTIONS | {"implementation": implementation}
    with open_directory() as directory, milter_process(directory, options) as milter:
        bed = PostfixBed.start(directory / "postfix", milters=[f"unix:{milter.socket}"], xclient=True)
        try:
            yield Site(bed, milter, implementation)
        finally:
            bed.stop()


def message(script: dict[str, Any], *fields: str) -> bytes:
    lines = [*fields, f"X-Script: {json.dumps(script)}", "From: <a@example.org>", "Subject: hi"]
    return "".join(f"{line}\r\n" for line in lines).encode() + b"\r\n" + BODY


def after_received(content: bytes) -> bytes:
    """What Postfix delivered, without the fields of its own delivery agent (LF for line ends)."""
    assert content.startswith(b"Return-Path: ")
    kept = content.split(b"Delivered-To: alice@bed.test\n", 1)
    return kept[1] if len(kept) == 2 else content


def test_new_fields_stand_first_and_in_order(site: Site) -> None:
    prepend = [
        ["Authentication-Results", "mx.example.net;\r\n\tspf=pass smtp.mailfrom=b\u00fccher@example.org"],
        ["X-Second", "2"],
    ]
    site.send(message({"prepend": prepend}))
    delivered = after_received(site.bed.wait_for_message("alice"))
    assert delivered.startswith(
        "Authentication-Results: mx.example.net;\n\tspf=pass smtp.mailfrom=b\u00fccher@example.org\n"
        "X-Second: 2\nReceived: from client.example.org".encode(),
    )


FORGED: Final = (
    "authentication-results: forged 1",
    "Received: from client's own",
    "AUTHENTICATION-Results:forged 2;\r\n folded",
    "X-Other: kept",
    "Authentication-Results: \tforged 3",
    "Authentication-results:\r\n forged 4",
)


@pytest.mark.parametrize(
    ("key", "which"),
    [
        ("authentication-results", (0,)),
        ("authentication-results", (1,)),
        ("authentication-results", (3,)),
        ("authentication-results", (0, 2)),
        ("authentication-results", (1, 2)),
        ("authentication-results", (0, 1, 2, 3)),
        ("received", (0,)),  # the client's: Postfix's own stands above it and is not counted
    ],
)
def test_exactly_the_fields_that_are_named_go(site: Site, key: str, which: tuple[int, ...]) -> None:
    script = {"remove": [[key, nth] for nth in which], "prepend": [["Authentication-Results", "ours"]]}
    site.send(message(script, *FORGED))
    delivered = after_received(site.bed.wait_for_message("alice")).decode()
    of_key = [field for field in FORGED if field.partition(":")[0].lower() == key]
    gone = {of_key[nth] for nth in which}
    for field in FORGED:
        assert (field.replace("\r\n", "\n") + "\n" in delivered) == (field not in gone), field
    assert delivered.count("Authentication-Results: ours\n") == 1
    assert delivered.startswith("Authentication-Results: ours\nReceived: from client.example.org")


def test_a_rejection_reaches_the_client_word_for_word(site: Site) -> None:
    lines = ["100% of %s refused", "see https://example.net/?a=%20b", "a third line"]
    with pytest.raises(smtplib.SMTPDataError) as refused:
        site.send(message({"disposition": "reject", "reply": [550, "5.7.26", lines]}))
    assert refused.value.smtp_code == 550
    assert refused.value.smtp_error == "\n".join(f"5.7.26 {line}" for line in lines).encode()


@pytest.mark.parametrize(
    ("script", "code", "text"),
    [
        ({"disposition": "defer", "reply": [451, "4.7.5", ["DNS is down"]]}, 451, b"4.7.5 DNS is down"),
        ({"disposition": "reject", "reply": [554, None, ["no enhanced code"]]}, 554, b"no enhanced code"),
        ({"crash": True}, 451, b"4.3.0 internal error, please try again later"),
        ({"sleep": 30}, 451, b"4.3.0 checking the message took too long, please try again later"),
        ({"disposition": "reject", "reply": [550, "5.7.1", ["%" * 600]]}, 550, b"5.7.1 " + b"%" * 480),
    ],
)
def test_refusals(site: Site, script: dict[str, Any], code: int, text: bytes) -> None:
    with pytest.raises(smtplib.SMTPDataError) as refused:
        site.send(message(script))
    assert (refused.value.smtp_code, refused.value.smtp_error) == (code, text)
    assert site.bed.queue_ids("hold") == []


def test_quarantine_is_the_hold_queue_with_the_same_edits(site: Site) -> None:
    script = {
        "disposition": "quarantine",
        "remove": [["x-gone", 0]],
        "prepend": [["X-Gateway-Quarantine", "rule=r"]],
    }
    site.send(message(script, "X-Gone: 1"))
    (held,) = site.bed.held_messages()
    assert held.content.startswith(b"X-Gateway-Quarantine: rule=r\n")
    assert b"X-Gone" not in held.content
    assert site.milter.captured()[-1][0]["queue_id"] == held.queue_id
    assert site.bed.messages("alice") == []


ODD_FIELDS: Final = (
    b"Subject:no blank",
    b"X-Tab:\tafter a tab",
    b"X-Two:  two blanks ",
    b"X-Empty:",
    b"X-Blank: ",
    b"X-Folded: one\r\n\ttwo\r\n   three",
    b"X-Folded-At-Once:\r\n value",
    b"X-Latin: caf\xe9 \xff\xfe",
    b"X-Utf8: caf\xc3\xa9 \xe2\x82\xac",
    b"X-Colons: a:b: c",
    b"x-oDD-cAsE: kept",
    b"X-Percent: 100% %s %%",
    b"X-Long: " + b"x" * 900,
    b"From: <a@example.org>",
)


def test_the_judge_sees_every_byte_that_the_client_sent(site: Site) -> None:
    content = b"\r\n".join(ODD_FIELDS) + b"\r\n\r\n" + BODY + b"8-bit \xe9\xff\r\n"
    _, raw = site.judged(content)
    assert raw == content
    assert after_received(site.bed.wait_for_message("alice")).endswith(raw.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        # What Postfix makes of it before it shows it to us; it delivers just that.
        (b"Subject : blank before the colon\r\n\r\nx\r\n", b"Subject: blank before the colon\r\n\r\nx\r\n"),
        (b"Subject: a\r\nno field\r\n\r\nx\r\n", b"Subject: a\r\n\r\nno field\r\n\r\nx\r\n"),
        (b"Subject: no body at all\r\n", b"Subject: no body at all\r\n\r\n"),
        (b"\r\nno header at all\r\n", b"\r\nno header at all\r\n"),
    ],
)
def test_what_postfix_changes_is_what_it_delivers(site: Site, sent: bytes, seen: bytes) -> None:
    _, raw = site.judged(sent)
    assert raw == seen
    delivered = after_received(site.bed.wait_for_message("alice"))
    assert delivered.rstrip(b"\n").endswith(seen.replace(b"\r\n", b"\n").rstrip(b"\n"))


def test_a_very_long_field_is_cut_by_postfix_and_delivered_so(site: Site) -> None:
    """To 60,000 bytes, whatever its header_size_limit, where there is a milter: libmilter's packets have 64 KB."""
    line, rest = b" " + b"x" * 900 + b"\r\n", b"From: <a@example.org>\r\n\r\n" + BODY
    _, raw = site.judged(b"X-Long:" + line * 100 + rest)
    assert raw == b"X-Long:" + line * 66 + rest
    assert after_received(site.bed.wait_for_message("alice")).endswith(raw.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("canonicalization", [b"simple/simple", b"relaxed/relaxed"])
def test_a_signature_over_odd_fields_still_verifies(site: Site, canonicalization: bytes) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    record = b"v=DKIM1; p=" + b"".join(public.splitlines()[1:-1])
    content = b"\r\n".join(ODD_FIELDS) + b"\r\n\r\n" + BODY
    header, body = canonicalization.split(b"/")
    signature = dkim.sign(content, b"s", b"example.org", private, canonicalize=(header, body))
    _, raw = site.judged(signature + content)
    assert dkim.verify(raw, dnsfunc=lambda *_args, **_options: record)
    site.bed.wait_for_message("alice")


def test_a_large_message_leaves_memory_flat(site: Site) -> None:
    site.send(message({}))
    site.bed.wait_for_message("alice")
    before = site.milter.captured()[-1][0]["peak_kib"]
    facts, _ = site.judged(b"Subject: large\r\n\r\n" + (b"x" * 76 + b"\r\n") * 270_000)
    assert facts["kind"] == "mmap"
    assert facts["peak_kib"] - before < 8_000
    assert len(site.bed.wait_for_message("alice")) > 20_000_000


@pytest.mark.parametrize(
    ("xclient", "expected"),
    [
        (
            "ADDR=192.0.2.7 NAME=out.example.org HELO=first.example.org LOGIN=alice",
            {"client_ip": "192.0.2.7", "client_name": "out.example.org", "login": "alice", "trusted": False},
        ),
        (
            "ADDR=IPV6:2001:db8::7 NAME=[UNAVAILABLE]",
            {"client_ip": "2001:db8::7", "client_name": None, "login": None, "trusted": True},
        ),
    ],
)
def test_who_the_client_is(site: Site, xclient: str, expected: dict[str, Any]) -> None:
    before = site.milter.count()
    with smtplib.SMTP("127.0.0.1", site.bed.port, "client.example.org") as client:
        client.ehlo()
        assert client.docmd("XCLIENT", xclient)[0] == 220
        client.ehlo("second.example.org")
        client.sendmail("a@example.org", ["alice@bed.test", "bob+x@bed.test"], b"Subject: 1\r\n\r\n")
        client.sendmail(
            "", ["bob@bed.test"], b"Subject: 2\r\n\r\n", mail_options=["SMTPUTF8", "BODY=8BITMIME"]
        )
    (first, _), (second, _) = site.milter.captured(before)
    assert {name: first[name] for name in expected} == expected
    assert first["helo"] == "second.example.org"
    assert (first["mail_from"], first["recipients"]) == (
        "a@example.org",
        ["alice@bed.test", "bob+x@bed.test"],
    )
    assert (second["mail_from"], second["smtputf8"], second["params"]["BODY"]) == (None, True, "8BITMIME")
    assert second["session"] == first["session"]
    site.bed.wait_for_message("alice")


def test_a_client_without_an_address_is_nobody_and_never_trusted(site: Site) -> None:
    before = site.milter.count()
    with smtplib.SMTP("127.0.0.1", site.bed.port) as client:
        client.ehlo()
        assert client.docmd("XCLIENT", "ADDR=[UNAVAILABLE] NAME=[UNAVAILABLE]")[0] == 220
        client.ehlo()
        if site.implementation == "pymilter":
            # Postfix tells of it in a form that libmilter does not take, and drops the connection.
            assert client.mail("a@example.org")[0] == 451
            return
        client.sendmail("a@example.org", ["alice@bed.test"], b"Subject: 1\r\n\r\n")
    ((facts, _),) = site.milter.captured(before)
    assert (facts["client_ip"], facts["client_name"], facts["trusted"]) == ("0.0.0.0", None, False)
    site.bed.wait_for_message("alice")


def test_mail_from_the_sendmail_command_comes_from_loopback(site: Site) -> None:
    before = site.milter.count()
    site.bed.submit(b"Subject: by hand\n\nlocal\n", sender="root@bed.test", recipient="bob@bed.test")
    wait_until(lambda: site.milter.count() > before, "the judge to see it")
    ((facts, _),) = site.milter.captured(before)
    assert (facts["client_ip"], facts["helo"], facts["trusted"]) == ("127.0.0.1", "localhost", False)
    assert facts["mail_from"] == "root@bed.test"


@pytest.mark.parametrize(
    ("sender", "recipient", "refused_at", "reply"),
    [
        ("reject-me@example.org", "alice@bed.test", "MAIL", (550, b"5.7.1 100% no at mail")),
        ("defer-me@example.org", "alice@bed.test", "MAIL", (450, b"4.7.1 later at mail")),
        (
            "crash-me@example.org",
            "alice@bed.test",
            "MAIL",
            (451, b"4.3.0 internal error, please try again later"),
        ),
        ("a@example.org", "alice@bed.test", "nowhere", (250, b"2.1.5 Ok")),
    ],
)
def test_refusals_before_the_message(
    site: Site, sender: str, recipient: str, refused_at: str, reply: tuple[int, bytes]
) -> None:
    with smtplib.SMTP("127.0.0.1", site.bed.port) as client:
        client.ehlo()
        said = client.mail(sender)
        if refused_at != "MAIL":
            said = client.rcpt(recipient)
        assert said == reply
        # The session goes on: the next sender is taken.
        client.rset()
        assert client.mail("a@example.org")[0] == 250


def test_a_bare_local_part_is_read_as_postfix_completes_it(site: Site) -> None:
    before = site.milter.count()
    with smtplib.SMTP("127.0.0.1", site.bed.port) as client:
        client.ehlo()
        client.mail("someone")
        client.rcpt("postmaster@bed.test")
        assert client.data(b"Subject: x\r\n\r\n")[0] == 250
    assert site.milter.captured(before)[0][0]["mail_from"] == "someone@bed.test"


def test_an_end_amid_the_data_leaves_nothing(site: Site) -> None:
    before = site.milter.count()
    with (
        socket.create_connection(("127.0.0.1", site.bed.port), 5) as client,
        client.makefile("rb") as answers,
    ):
        for line in (
            b"",
            b"EHLO x\r\n",
            b"MAIL FROM:<a@x.org>\r\n",
            b"RCPT TO:<alice@bed.test>\r\n",
            b"DATA\r\n",
        ):
            client.sendall(line)
            while answers.readline()[3:4] == b"-":
                pass
        client.sendall(b"Subject: half a mess")
    site.bed.wait_for_log("lost connection after DATA")
    wait_until(
        lambda: site.milter.said().count("opened") == site.milter.said().count("closed milter"), "its end"
    )
    assert site.milter.count() == before


def test_a_dead_milter_is_a_temporary_failure_and_its_heir_takes_over() -> None:
    with open_directory() as directory:
        with milter_process(directory) as milter:
            bed = PostfixBed.start(directory / "postfix", milters=[f"unix:{milter.socket}"])
            site = Site(bed, milter, "own")
            milter.signal(signal.SIGKILL)
            milter.process.wait(10)
        try:
            with pytest.raises(smtplib.SMTPSenderRefused) as refused:
                site.send(message({}))
            assert refused.value.smtp_code == 451
            assert milter.socket.is_socket(), "killed, it could not take its name away"
            with milter_process(directory) as heir:
                Site(bed, heir, "own").send(message({}))
                bed.wait_for_message("alice")
        finally:
            bed.stop()


def test_what_is_under_way_at_sigterm_is_finished_and_nothing_new_begins() -> None:
    with open_directory() as directory, milter_process(directory) as milter:
        bed = PostfixBed.start(directory / "postfix", milters=[f"unix:{milter.socket}"])
        site = Site(bed, milter, "own")
        try:
            with smtplib.SMTP("127.0.0.1", bed.port) as idle:
                idle.ehlo()
                assert idle.mail("a@example.org")[0] == 250
                idle.rset()
                sender = threading.Thread(
                    target=site.send, args=[message({"sleep": 2, "prepend": [["X-Judged", "1"]]})]
                )
                sender.start()
                wait_until(lambda: milter.count() > 0, "the judge to have it")
                milter.signal(signal.SIGTERM)
                wait_until(
                    lambda: idle.mail("a@example.org")[0] == 451 or idle.rset() is None, "no new message"
                )
                assert milter.read_line().startswith("drained 0 ")
                sender.join(20)
            assert b"X-Judged: 1\n" in bed.wait_for_message("alice")
            assert milter.process.wait(10) == 0
            assert not milter.socket.exists()
        finally:
            bed.stop()
