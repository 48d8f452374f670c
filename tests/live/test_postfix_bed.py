import smtplib
import socket
from collections.abc import Iterator

import pytest

from tests.live.postfix import PostfixBed, open_directory

pytestmark = pytest.mark.live

MESSAGE = b"From: <a@example.org>\r\nSubject: caf\xc3\xa9\r\n\r\n.dot\r\nbody\r\n"


@pytest.fixture(scope="module")
def bed() -> Iterator[PostfixBed]:
    with open_directory() as directory:
        bed = PostfixBed.start(directory, xclient=True, local_domains=("bed.test", "other.test"))
        try:
            yield bed
        finally:
            bed.stop()


def send(bed: PostfixBed, recipient: str, content: bytes = MESSAGE) -> None:
    with smtplib.SMTP("127.0.0.1", bed.port, "client.example.org") as client:
        client.sendmail("a@example.org", [recipient], content, mail_options=["BODY=8BITMIME"])


def test_delivers_to_the_mailboxes_of_every_local_domain(bed: PostfixBed) -> None:
    send(bed, "alice@bed.test")
    delivered = bed.wait_for_message("alice")
    assert b"\nSubject: caf\xc3\xa9\n\n.dot\nbody\n" in delivered
    assert b"Return-Path: <a@example.org>\n" in delivered
    send(bed, "bob+tag@other.test")
    assert b".dot\nbody\n" in bed.wait_for_message("bob@other.test")
    assert bed.messages("bob@other.test") == []


@pytest.mark.parametrize(
    ("recipient", "code", "words"),
    [
        ("nobody@bed.test", 550, b"5.1.1"),  # no such mailbox
        ("x@elsewhere.test", 554, b"5.7.1"),  # loopback is no reason to relay
    ],
)
def test_refuses_whom_it_has_no_mailbox_for(bed: PostfixBed, recipient: str, code: int, words: bytes) -> None:
    with pytest.raises(smtplib.SMTPRecipientsRefused) as refused:
        send(bed, recipient)
    assert refused.value.recipients[recipient][0] == code
    assert refused.value.recipients[recipient][1].startswith(words)


def test_offers_xclient(bed: PostfixBed) -> None:
    with smtplib.SMTP("127.0.0.1", bed.port) as client:
        client.ehlo()
        assert client.has_extn("xclient")
        assert client.docmd("XCLIENT", "ADDR=192.0.2.1 NAME=out.example.org")[0] == 220
        client.ehlo()
        client.sendmail("a@example.org", ["alice@bed.test"], b"\r\n")
    assert b"(out.example.org [192.0.2.1])" in bed.wait_for_message("alice")


def test_bare_newlines_do_not_end_the_data(bed: PostfixBed) -> None:
    with socket.create_connection(("127.0.0.1", bed.port), 5) as client, client.makefile("rb") as answers:

        def say(line: bytes) -> bytes:
            client.sendall(line)
            return answers.readline()

        answers.readline()
        say(b"HELO c\r\n")
        say(b"MAIL FROM:<>\r\n")
        say(b"RCPT TO:<alice@bed.test>\r\n")
        assert say(b"DATA\r\n").startswith(b"354")
        assert say(b"Subject: x\r\n\r\none\n.\nMAIL FROM:<smuggled@x>\r\n.\r\n").startswith(b"250")
    assert b"smuggled" in bed.wait_for_message("alice")


def test_holds_what_a_rule_puts_on_hold_and_takes_local_submissions() -> None:
    with open_directory() as directory:
        extra = {"header_checks": f"regexp:{directory}/checks"}
        (directory / "checks").write_text("/^Subject: hold me/ HOLD\n")
        bed = PostfixBed.start(directory, extra=extra)
        try:
            send(bed, "alice@bed.test", b"Subject: hold me\r\n\r\nheld\r\n")
            (held,) = bed.held_messages()
            assert held.content.endswith(b"Subject: hold me\n\nheld\n")
            bed.submit(b"Subject: by hand\n\nlocal\n", sender="root@bed.test", recipient="bob@bed.test")
            assert b"\nSubject: by hand\n" in bed.wait_for_message("bob")
        finally:
            bed.stop()


def test_beds_stand_side_by_side_and_come_back(bed: PostfixBed) -> None:
    with open_directory() as directory:
        second = PostfixBed.start(directory)
        try:
            assert second.port != bed.port
            second.stop()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(("127.0.0.1", second.port), 5)
            send(bed, "alice@bed.test")
            bed.wait_for_message("alice")
            second.launch()
            send(second, "alice@bed.test")
            second.wait_for_message("alice")
        finally:
            second.stop()
