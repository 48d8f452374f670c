from collections.abc import Callable, Mapping
from ipaddress import ip_address, ip_network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.errors import ParseError
from gateway.milter.collect import NO_ADDRESS, CollectOptions, Conversation

OPTIONS = CollectOptions(
    max_message_bytes=10_000,
    spool_threshold_bytes=5_000,
    trusted_networks=(ip_network("192.0.2.0/28"), ip_network("2001:db8::/32"), ip_network("0.0.0.0/0")),
)
NO_LOCAL_TRUST = CollectOptions(trusted_networks=(ip_network("192.0.2.0/28"), ip_network("2001:db8::/32")))


def macros(values: Mapping[str, str] | None = None) -> Callable[[str], str | None]:
    return (values or {}).get


def conversation(options: CollectOptions = NO_LOCAL_TRUST) -> Conversation:
    ids = iter(f"id{number}" for number in range(100))
    talk = Conversation(options, lambda: next(ids))
    talk.connect("out.example.org", "198.51.100.7")
    talk.helo("helo.example.org")
    return talk


def raw_of(headers: list[tuple[str, bytes]], chunks: list[bytes], options: CollectOptions = OPTIONS) -> bytes:
    talk = conversation(options)
    talk.mail([b"<a@example.org>"], macros())
    for name, value in headers:
        talk.header(name.encode(), value)
    for chunk in chunks:
        talk.body(chunk)
    whole = talk.end(macros())
    assert whole is not None
    return whole[1].raw[:]


@pytest.mark.parametrize(
    ("headers", "chunks", "raw"),
    [
        ([("From", b" a")], [b"x\r\n"], b"From: a\r\n\r\nx\r\n"),
        ([("A", b"no blank"), ("B", b""), ("C", b"\t tab ")], [], b"A:no blank\r\nB:\r\nC:\t tab \r\n\r\n"),
        ([("A", b" one\n\ttwo\n three")], [], b"A: one\r\n\ttwo\r\n three\r\n\r\n"),
        ([("A", b" \xff\xe9 caf\xc3\xa9")], [b"\xff"], b"A: \xff\xe9 caf\xc3\xa9\r\n\r\n\xff"),
        (
            [("A", b" bare\rCR\r\n x")],
            [b"y\rz"],
            b"A: bare\rCR\r\r\n x\r\n\r\ny\rz",
        ),  # what was sent: CR CR LF
        ([], [b"no ", b"header"], b"\r\nno header"),
        ([], [], b"\r\n"),
    ],
)
def test_the_message_is_what_was_sent_byte_for_byte(
    headers: list[tuple[str, bytes]], chunks: list[bytes], raw: bytes
) -> None:
    assert raw_of(headers, chunks) == raw


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=12_000), st.lists(st.integers(0, 12_000), max_size=6))
def test_how_a_body_is_cut_changes_nothing(body: bytes, cuts: list[int]) -> None:
    edges = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[start:end] for start, end in pairwise(edges)]
    options = CollectOptions(max_message_bytes=20_000, spool_threshold_bytes=3_000)
    assert raw_of([("A", b" b")], chunks, options) == b"A: b\r\n\r\n" + body


@pytest.mark.parametrize("path", [b"<>", b""])  # a client's, and that of Postfix's own bounces
def test_a_bounce_has_the_null_path(path: bytes) -> None:
    assert conversation(OPTIONS).mail([path], macros()).mail_from is None


def test_a_message_over_the_limit_is_no_message() -> None:
    talk = conversation(OPTIONS)
    talk.mail([b"<>"], macros())
    talk.body(b"x" * 10_001)
    assert talk.end(macros()) is None
    assert talk.mail([b"<>"], macros()).mail_from is None  # the next one is


def test_the_envelope_says_what_the_mail_server_said() -> None:
    talk = conversation()
    started = talk.mail(
        [b"<a@Example.org>", b"SIZE=100", b"body=8BITMIME", b"SMTPUTF8"],
        macros({"{auth_authen}": "alice", "{tls_version}": "TLSv1.3", "{cipher}": "TLS_AES_256_GCM_SHA384"}),
    )
    assert started.mail_from is not None
    assert started.mail_from.domain == "example.org"
    assert started.params == {"SIZE": "100", "BODY": "8BITMIME", "SMTPUTF8": None}
    assert started.smtputf8
    session = started.session
    assert (str(session.client_ip), session.client_name, session.helo) == (
        "198.51.100.7",
        "out.example.org",
        "helo.example.org",
    )
    assert session.login == "alice"
    assert session.tls is not None
    assert (session.tls.version, session.tls.cipher) == ("TLSv1.3", "TLS_AES_256_GCM_SHA384")
    talk.add(talk.recipient([b"<b@example.net>", b"NOTIFY=NEVER"], macros()))
    asked = talk.recipient([b"<refused@example.net>"], macros())
    assert [str(one.mailbox) for one in asked.recipients] == ["refused@example.net"]
    talk.add(talk.recipient([b"<Postmaster>"], macros()))
    whole = talk.end(macros({"i": "4fQ2Z1"}))
    assert whole is not None
    envelope = whole[0]
    assert envelope.queue_id == "4fQ2Z1"
    assert [one.mailbox and str(one.mailbox) for one in envelope.recipients] == ["b@example.net", None]
    assert envelope.recipients[0].params == {"NOTIFY": "NEVER"}


def test_each_message_of_a_session_has_its_own_id_and_recipients() -> None:
    talk = conversation()
    first = talk.mail([b"<a@example.org>"], macros())
    talk.add(talk.recipient([b"<b@example.net>"], macros()))
    talk.header(b"Subject", b" left behind")
    talk.abort()
    second = talk.mail([b"<c@example.org>"], macros())
    whole = talk.end(macros())
    assert whole is not None
    assert first.session.id == second.session.id
    assert first.id != second.id
    assert whole[0].recipients == ()
    assert whole[1].raw == b"\r\n"


@pytest.mark.parametrize(
    ("name", "address", "client_ip", "client_name", "trusted"),
    [
        ("mx.example.org", "192.0.2.3", "192.0.2.3", "mx.example.org", True),
        ("unknown", "198.51.100.1", "198.51.100.1", None, False),  # Postfix's word for no verified name
        ("[198.51.100.1]", "198.51.100.1", "198.51.100.1", None, False),  # Sendmail's
        ("x", "::ffff:192.0.2.3", "192.0.2.3", "x", True),
        ("x", "2001:db8::1", "2001:db8::1", "x", True),
        ("localhost", "127.0.0.1", "127.0.0.1", "localhost", False),  # loopback is not trusted by itself
        ("localhost", None, "0.0.0.0", "localhost", False),
        ("x", "inet6:unknown", "0.0.0.0", "x", False),
    ],
)
def test_who_the_client_is(
    name: str, address: str | None, client_ip: str, client_name: str | None, *, trusted: bool
) -> None:
    talk = conversation()
    talk.connect(name, address)
    session = talk.mail([b"<>"], macros()).session
    assert session.client_ip == ip_address(client_ip)
    assert session.client_name == client_name
    assert session.trusted is trusted
    assert session.helo is None, "a new client has not said HELO yet"


def test_a_client_without_an_address_is_never_trusted() -> None:
    talk = conversation(OPTIONS)  # trusts 0.0.0.0/0
    talk.connect("localhost", None)
    session = talk.mail([b"<>"], macros()).session
    assert session.client_ip == NO_ADDRESS
    assert not session.trusted


@pytest.mark.parametrize(
    ("path", "canonical", "expected"),
    [
        (b"<root>", "root@mail.example.net", "root@mail.example.net"),
        (b"root", "root@mail.example.net", "root@mail.example.net"),
        (
            b"<a@example.org>",
            "other@example.net",
            "a@example.org",
        ),  # what the client said wins where it can be read
        (b"<a b@example.org>", "", None),
        (b"<a@b@example.org>", "a@b@example.org", None),
        (b"<\xff@example.org>", None, None),
        (b"<", None, None),
    ],
)
def test_a_path_that_cannot_be_read_is_what_the_mail_server_makes_of_it_or_an_error(
    path: bytes, canonical: str | None, expected: str | None
) -> None:
    values = {"{mail_addr}": canonical, "{rcpt_addr}": canonical} if canonical is not None else {}
    talk = conversation()
    if expected is None:
        with pytest.raises(ParseError):
            talk.mail([path], macros(values))
        talk.mail([b"<>"], macros())
        with pytest.raises(ParseError):
            talk.recipient([path], macros(values))
    else:
        assert str(talk.mail([path], macros(values)).mail_from) == expected


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=60).filter(lambda one: b"\0" not in one), min_size=1, max_size=4))
def test_nothing_but_a_parse_error_comes_of_an_odd_path(arguments: list[bytes]) -> None:
    talk = conversation()
    try:
        talk.mail(arguments, macros())
        talk.recipient(arguments, macros())
    except ParseError:
        pass


def test_a_message_needs_a_sender_first() -> None:
    talk = conversation()
    with pytest.raises(ParseError):
        talk.recipient([b"<b@example.net>"], macros())
    with pytest.raises(ParseError):
        talk.end(macros())
