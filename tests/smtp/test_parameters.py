from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.smtp.ehlo import Capabilities, Offer, parse_capabilities, write_ehlo_reply
from gateway.smtp.errors import RemoteProtocolError
from gateway.smtp.parameters import keeps, parse_recipient, parse_sender, write_parameters
from gateway.smtp.relay import LocalDomains
from gateway.smtp.xclient import parse_xclient
from gateway.smtp.xtext import decode_xtext, encode_xtext

ALL = Capabilities(takes_size=True, eight_bit=True, smtputf8=True, dsn=True)
ARGUMENT = st.text(alphabet=st.sampled_from('FROM:TO<>@."\\= ;,+%!abé7[]'), max_size=60)


@given(
    st.one_of(
        ARGUMENT,
        ARGUMENT.map(lambda text: "FROM:" + text),
        ARGUMENT.map(lambda text: "FROM:<a@b.example> " + text),
    )
)
@settings(max_examples=400, deadline=None)
def test_any_sender_is_read_or_refused_and_stays_one_line(argument: str) -> None:
    try:
        sender = parse_sender(argument, ALL)
    except RemoteProtocolError:
        return
    written = f"<{sender.mailbox.text if sender.mailbox else ''}>{write_parameters(sender.params)}"
    assert "\r" not in written
    assert "\n" not in written
    assert parse_sender("FROM:" + written, ALL) == sender


@given(
    st.one_of(ARGUMENT.map(lambda text: "TO:" + text), ARGUMENT.map(lambda text: "TO:<a@b.example> " + text))
)
@settings(max_examples=400, deadline=None)
def test_any_recipient_is_read_or_refused(argument: str) -> None:
    try:
        mailbox, params = parse_recipient(argument, ALL, smtputf8=True)
    except RemoteProtocolError:
        return
    written = f"TO:<{mailbox.text if mailbox else 'Postmaster'}>{write_parameters(params)}"
    assert parse_recipient(written, ALL, smtputf8=True) == (mailbox, params)


@pytest.mark.parametrize(
    ("params", "offered", "kept"),
    [
        ({"SIZE": "1"}, Capabilities(), True),  # our own
        ({"BODY": "7BIT"}, Capabilities(), False),
        ({"BODY": "7BIT"}, Capabilities(eight_bit=True), True),
        ({"RET": "FULL"}, Capabilities(), False),
        ({"ENVID": "x", "RET": "FULL"}, Capabilities(dsn=True), True),
        ({"SMTPUTF8": None}, Capabilities(dsn=True), False),
    ],
)
def test_a_parameter_that_this_server_does_not_take(
    params: dict[str, str | None],
    offered: Capabilities,
    kept: bool,  # noqa: FBT001 - a column of the table
) -> None:
    assert keeps(offered, params) == kept


@pytest.mark.parametrize(
    ("lines", "capabilities"),
    [
        (("x",), Capabilities()),
        (("x", "SIZE"), Capabilities(takes_size=True)),
        (("x", "SIZE 0"), Capabilities(takes_size=True)),
        (
            ("x", "size 99", "8bitmime", "smtputf8 ", "dsn"),
            Capabilities(takes_size=True, max_bytes=99, eight_bit=True, smtputf8=True, dsn=True),
        ),
        (("x", "SIZE lots"), Capabilities(takes_size=True)),
        (("8BITMIME",), Capabilities()),  # the first line is the name
        (("x", "XCLIENT name ADDR"), Capabilities(xclient=frozenset({"NAME", "ADDR"}))),
    ],
)
def test_capabilities(lines: tuple[str, ...], capabilities: Capabilities) -> None:
    assert parse_capabilities(Reply(250, None, lines)) == capabilities


def test_only_what_downstream_keeps_is_offered() -> None:
    offer = Offer(capabilities=Capabilities(eight_bit=True), max_bytes=10, starttls=True, xclient=False)
    assert write_ehlo_reply("mx", offer).lines == (
        "mx",
        "PIPELINING",
        "SIZE 10",
        "STARTTLS",
        "ENHANCEDSTATUSCODES",
        "8BITMIME",
        "CHUNKING",
    )


@given(st.binary(max_size=50))
@settings(max_examples=200, deadline=None)
def test_xtext_round_trip(content: bytes) -> None:
    assert decode_xtext(encode_xtext(content)) == content


@pytest.mark.parametrize("text", ["a b", "a=b", "+", "+4", "+4g", "+0d", "é", "a\r", "+41+", "a+4", "+41=a"])
def test_bad_xtext(text: str) -> None:
    with pytest.raises(ParseError):
        decode_xtext(text)


@given(st.text(max_size=80))
@settings(max_examples=200, deadline=None)
def test_any_xclient_is_read_or_refused(argument: str) -> None:
    with suppress(ParseError):
        parse_xclient(argument)


@pytest.mark.parametrize(
    "argument",
    [
        "",
        "ADDR=",
        "ADDR=[TEMPUNAVAIL]",
        "ADDR=fe80::1%25eth0",
        "ADDR=1.2.3.4 ADDR=1.2.3.5",
        "ADDR=1.2.3.4 NAME=a+0D+0Ab",
        "ADDR=1.2.3.4 PROTO=HTTP",
        "ADDR=1.2.3.4 PORT=x",
        "ADDR=1.2.3.4 HELO=" + "x" * 300,
    ],
)
def test_bad_xclient(argument: str) -> None:
    with pytest.raises(ParseError):
        parse_xclient(argument)


@pytest.mark.parametrize(
    ("domain", "ours"),
    [
        ("example.net", True),
        ("a.example.net", False),
        ("a.example.org", True),
        ("b.a.example.org", True),
        ("example.org", False),
        ("xexample.org", False),
        ("", False),
        ("[192.0.2.1]", False),
    ],
)
def test_local_domains(domain: str, ours: bool) -> None:  # noqa: FBT001 - a column of the table
    assert (domain in LocalDomains(("Example.NET", ".example.org"))) == ours
