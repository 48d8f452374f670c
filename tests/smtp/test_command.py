import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.smtp.command import Verb, parse_chunk, parse_command, parse_helo_name
from gateway.smtp.errors import RemoteProtocolError


@pytest.mark.parametrize(
    ("line", "verb", "argument"),
    [
        (b"EHLO client.example", Verb.EHLO, "client.example"),
        (b"mail FROM:<a@b.example> SIZE=1", Verb.MAIL, "FROM:<a@b.example> SIZE=1"),
        (b"DATA", Verb.DATA, ""),
        (b"QUIT  ", Verb.QUIT, ""),
        (b"NOOP  a b ", Verb.NOOP, "a b"),
        ("RCPT TO:<zoë@example.net>".encode(), Verb.RCPT, "TO:<zoë@example.net>"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2", Verb.OTHER, "TCP4 1.2.3.4 1.2.3.4 1 2"),
        (b"DATAX", Verb.OTHER, ""),
        (b"", Verb.OTHER, ""),
        (b" DATA", Verb.OTHER, ""),  # RFC 5321 §4.1.1: a command begins its line
        (b"DATA<", Verb.OTHER, ""),
    ],
)
def test_command(line: bytes, verb: Verb, argument: str) -> None:
    assert parse_command(line) == (verb, argument)


@pytest.mark.parametrize(
    ("line", "code", "closes"),
    [
        (b"NO\0OP", 500, False),  # cut off at the NUL by readers written in C
        (b"NOOP\rQUIT", 500, False),
        (b"NOOP\nQUIT", 500, False),
        (b"NOOP\t", 500, False),
        (b"NOOP \x7f", 500, False),
        (b"EHLO \xc3\xa9", 500, False),  # 8-bit only in addresses
        (b"MAIL FROM:<\xff@b>", 500, False),  # not UTF-8
        (b"GET / HTTP/1.1", 421, True),
        (b"post /x HTTP/1.1", 421, True),
        (b"Host: mx.example.net", 421, True),
        (b"PRI * HTTP/2.0", 421, True),
    ],
)
def test_refused_line(line: bytes, code: int, closes: bool) -> None:  # noqa: FBT001 - a column of the table
    with pytest.raises(RemoteProtocolError) as caught:
        parse_command(line)
    assert (caught.value.reply.code, caught.value.closes) == (code, closes)


@given(st.binary(max_size=300))
@settings(max_examples=300, deadline=None)
def test_any_line_is_a_command_or_refused(line: bytes) -> None:
    try:
        command = parse_command(line)
    except RemoteProtocolError:
        return
    assert command.argument.isprintable() or not command.argument.isascii()


@pytest.mark.parametrize("text", ["client.example", "[192.0.2.1]", "[IPv6:2001:db8::1]", "x" * 255, "_!_"])
def test_helo_name(text: str) -> None:
    assert parse_helo_name(text) == text


@pytest.mark.parametrize("text", ["", "a b", "x" * 256])
def test_bad_helo_name(text: str) -> None:
    with pytest.raises(RemoteProtocolError):
        parse_helo_name(text)


@pytest.mark.parametrize(
    ("text", "size", "last"),
    [
        ("0", 0, False),
        ("0 LAST", 0, True),
        ("5 last", 5, True),
        ("0005", 5, False),
        ("9" * 19, 10**19 - 1, False),
    ],
)
def test_chunk(text: str, size: int, last: bool) -> None:  # noqa: FBT001 - a column of the table
    assert parse_chunk(text) == (size, last)


@pytest.mark.parametrize("text", ["", "-1", "+1", "1.0", "0x1", "1 FIRST", "1  LAST", "LAST", "٣", "9" * 20])
def test_bad_chunk_closes(text: str) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        parse_chunk(text)
    assert caught.value.closes
