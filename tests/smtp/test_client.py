from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.envelope import Listener, Session
from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.smtp.client import Answer, DownstreamError, DownstreamFailure, ReplyReader, SmtpClient, Step
from gateway.smtp.errors import LocalProtocolError

SESSION = Session(
    id="s", listener=Listener.INBOUND, client_ip=ip_address("192.0.2.1"), helo="client.example", esmtp=True
)
OTHER = Session(
    id="t", listener=Listener.INBOUND, client_ip=ip_address("192.0.2.2"), helo="other.example", esmtp=True
)
POSTFIX = b"250-back.example\r\n250-PIPELINING\r\n250-SIZE 1000\r\n250-XCLIENT NAME ADDR PROTO HELO\r\n250 8BITMIME\r\n"


def hear(client: SmtpClient, data: bytes) -> list[Answer]:
    return list(client.receive(data))


def is_ready(client: SmtpClient) -> bool:
    return client.is_ready


def is_reusable(client: SmtpClient) -> bool:
    return client.is_reusable


def introduced(*, xclient: bool = True, ehlo: bytes = POSTFIX) -> SmtpClient:
    client = SmtpClient("mx.example.net", xclient=xclient)
    client.introduce(SESSION)
    hear(client, b"220 back.example ESMTP\r\n")
    assert client.take_output() == b"EHLO mx.example.net\r\n"
    hear(client, ehlo)
    return client


def test_xclient_stands_alone_even_where_downstream_pipelines() -> None:
    client = introduced()
    assert client.take_output() == (
        b"XCLIENT ADDR=192.0.2.1 NAME=[UNAVAILABLE] PROTO=ESMTP HELO=client.example\r\n"
    )
    assert not is_ready(client)
    hear(client, b"220 back.example ESMTP\r\n")
    assert client.take_output() == b"EHLO client.example\r\n"
    hear(client, POSTFIX)
    assert is_ready(client)
    assert client.capabilities
    assert client.capabilities.max_bytes == 1000


def test_without_pipelining_each_step_waits_for_the_one_before() -> None:
    client = introduced(ehlo=b"250-back\r\n250 XCLIENT ADDR\r\n")
    assert client.take_output() == b"XCLIENT ADDR=192.0.2.1\r\n"
    hear(client, b"220 back\r\n")
    assert client.take_output() == b"EHLO client.example\r\n"


def test_without_xclient_one_introduction_serves_all() -> None:
    client = introduced(xclient=False)
    assert is_ready(client)
    assert client.speaks_for(OTHER)
    client.introduce(OTHER)
    assert is_ready(client)
    assert client.take_output() == b""


def test_a_connection_speaks_for_the_client_that_it_was_introduced_for() -> None:
    client = introduced()
    client.take_output()
    hear(client, b"220 back\r\n")
    hear(client, POSTFIX)
    client.take_output()
    assert client.speaks_for(SESSION)
    assert not client.speaks_for(OTHER)
    client.introduce(OTHER)
    assert client.take_output().startswith(b"XCLIENT ADDR=192.0.2.2 ")
    assert not is_ready(client)


def test_a_helo_name_cannot_end_the_command() -> None:
    client = SmtpClient("mx.example.net", xclient=True)
    hostile = Session(
        id="s",
        listener=Listener.INBOUND,
        client_ip=ip_address("2001:db8::1"),
        helo="a\r\nMAIL FROM:<>",
        esmtp=False,
    )
    client.introduce(hostile)
    hear(client, b"220 x\r\n")
    client.take_output()
    hear(client, POSTFIX)
    assert client.take_output() == (
        b"XCLIENT ADDR=IPV6:2001:db8::1 NAME=[UNAVAILABLE] PROTO=SMTP HELO=a+0D+0AMAIL+20FROM:<>\r\n"
    )
    hear(client, b"220 x\r\n")
    assert client.take_output() == b"EHLO mx.example.net\r\n"


def test_no_other_session_gets_it_while_an_answer_is_under_way() -> None:
    client = introduced(xclient=False)
    client.say(Step.MAIL, b"MAIL FROM:<>\r\n")
    assert not is_reusable(client)
    hear(client, b"250 Ok\r\n")
    assert is_reusable(client)
    client.reset()
    assert is_reusable(client), "the answer to RSET is its own business"
    assert hear(client, b"250 Ok\r\n") == []


def test_a_command_before_the_introduction_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        SmtpClient("mx.example.net", xclient=False).say(Step.MAIL, b"MAIL FROM:<>\r\n")


@pytest.mark.parametrize(
    ("said", "failure"),
    [
        (b"554 no\r\n", DownstreamFailure.REFUSED),
        (b"421 later\r\n", DownstreamFailure.CLOSING),
        (b"250 what?\r\n", DownstreamFailure.PROTOCOL),
        (b"HTTP/1.1 400\r\n", DownstreamFailure.PROTOCOL),
        (b"220 a\r\n220 b\r\n220 c\r\n", DownstreamFailure.PROTOCOL),
    ],
)
def test_bad_greeting(said: bytes, failure: DownstreamFailure) -> None:
    client = SmtpClient("mx.example.net", xclient=False)
    client.introduce(SESSION)
    with pytest.raises(DownstreamError) as caught:
        hear(client, said)
    assert caught.value.failure is failure


def test_a_reset_that_is_refused_ends_the_connection() -> None:
    client = introduced(xclient=False)
    client.reset()
    with pytest.raises(DownstreamError):
        hear(client, b"550 no\r\n")


@pytest.mark.parametrize(
    ("data", "replies"),
    [
        (b"250 2.1.0 Ok\r\n", [Reply(250, "2.1.0", ("Ok",))]),
        (b"250-a\r\n250 b\r\n", [Reply(250, None, ("a", "b"))]),
        (b"250\r\n", [Reply(250, None, ("",))]),
        (b"250 a\n550 b\n", [Reply(250, None, ("a",)), Reply(550, None, ("b",))]),
        (b"250 a\x1b[2J\r\n", [Reply(250, None, ("a?[2J",))]),
        (b"250 a", []),
    ],
)
def test_replies(data: bytes, replies: list[Reply]) -> None:
    assert ReplyReader().feed(data) == replies
    reader = ReplyReader()
    assert [reply for at in range(len(data)) for reply in reader.feed(data[at : at + 1])] == replies


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n",
        b"\r\n",
        b"999 a\r\n",
        b"25 a\r\n",
        b"250a\r\n",
        b"250-a\r\n251 b\r\n",
        b"250 " + b"x" * 5000,
        b"250-a\r\n" * 200,
    ],
)
def test_bad_replies(data: bytes) -> None:
    with pytest.raises(ParseError):
        ReplyReader().feed(data)


@given(st.lists(st.binary(max_size=50), max_size=20))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_replies_or_refused(pieces: list[bytes]) -> None:
    reader = ReplyReader()
    try:
        for piece in pieces:
            reader.feed(piece)
    except ParseError:
        pass
