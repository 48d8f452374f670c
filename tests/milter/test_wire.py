"""The milter protocol's packets; `tests/listeners/test_milter.py` holds whole conversations against libmilter's."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.errors import ParseError
from gateway.mail.reply import Reply
from gateway.milter import wire
from gateway.milter.actions import Accept, DeleteHeader, InsertHeader, Quarantine, refuse
from gateway.milter.wire import Packet, PacketReader

PACKETS = st.lists(st.builds(Packet, st.integers(0, 255), st.binary(max_size=300)), max_size=20)


def written(packets: list[Packet]) -> bytes:
    return b"".join(wire.write_packet(bytes([packet.command]), packet.data) for packet in packets)


@given(PACKETS, st.lists(st.integers(1, 40), max_size=60))
def test_packets_are_the_same_however_they_are_cut(packets: list[Packet], cuts: list[int]) -> None:
    reader, stream, found = PacketReader(), written(packets), []
    for cut in [*cuts, len(stream)]:
        found += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert found == packets


@given(st.binary(max_size=200), st.integers(1, 200))
def test_noise_is_packets_or_an_error(noise: bytes, cut: int) -> None:
    reader = PacketReader()
    try:
        for part in (noise[:cut], noise[cut:]):
            reader.feed(part)
    except ParseError:
        pass


@pytest.mark.parametrize(
    "begin",
    [
        b"\0\0\0\0",  # empty
        struct.pack(">I", wire.MAX_PACKET_BYTES + 1),
        b"GET / HTTP/1.1\r\n\r\n",
        b"EHLO client.example\r\n",
    ],
)
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_what_is_no_packet_is_refused_before_it_is_kept(begin: bytes, cut: int) -> None:
    reader = PacketReader()

    def feed() -> None:
        for at in range(0, len(begin), cut):
            reader.feed(begin[at : at + cut])
        reader.feed(b"x")

    with pytest.raises(ParseError):
        feed()


def test_a_large_packet_in_small_pieces_takes_time_in_its_length() -> None:
    reader, packet = PacketReader(), wire.write_packet(b"B", b"x" * (wire.MAX_PACKET_BYTES - 1))
    found = [one for at in range(0, len(packet), 64) for one in reader.feed(packet[at : at + 64])]
    assert [len(one.data) for one in found] == [wire.MAX_PACKET_BYTES - 1]


@pytest.mark.parametrize(
    ("data", "client"),
    [
        (b"mail.example.org\x004\x00\x19192.0.2.1\0", ("mail.example.org", "192.0.2.1")),
        (b"unknown\x006\x00\x19IPv6:2001:db8::1\0", ("unknown", "2001:db8::1")),
        (b"h\xff\x004\x00\x19192.0.2.1\0", ("h\ufffd", "192.0.2.1")),
        (b"localhost\0L\0\0/some/socket\0", ("localhost", None)),
        (b"unknown\0U", ("unknown", None)),
    ],
)
def test_every_kind_of_client(data: bytes, client: tuple[str, str | None]) -> None:
    assert wire.parse_client(data) == client


@pytest.mark.parametrize("data", [b"", b"name", b"name\0"])
def test_a_client_that_is_cut_short(data: bytes) -> None:
    with pytest.raises(ParseError):
        wire.parse_client(data)


@pytest.mark.parametrize(
    ("data", "macros"),
    [
        (b"Mi\x004f2a\0{auth_authen}\0ann\0", (ord("M"), {"i": "4f2a", "{auth_authen}": "ann"})),
        (b"M{auth_authen}\0\xff\xfe\0", (ord("M"), {"{auth_authen}": None})),  # nobody's login
        (b"Mi\x001\0lone\0", (ord("M"), {"i": "1"})),
        (b"C", (ord("C"), {})),
    ],
)
def test_macros(data: bytes, macros: tuple[int, dict[str, str | None]]) -> None:
    assert wire.parse_macros(data) == macros


@pytest.mark.parametrize("data", [b"", b"Mi", b"Mi\x001"])
def test_macros_that_are_cut_short(data: bytes) -> None:
    with pytest.raises(ParseError):
        wire.parse_macros(data)


@pytest.mark.parametrize("data", [b"", b"a\0", b"a\0b", b"a\0b\0c", b"a\0b\0c\0"])
def test_a_header_field_is_a_name_and_a_value(data: bytes) -> None:
    assert wire.parse_header(b"Subject\0 hi\n there\0") == (b"Subject", b" hi\n there")
    with pytest.raises(ParseError):
        wire.parse_header(data)


def test_actions_in_the_protocols_words() -> None:
    said = wire.write_actions(
        (
            DeleteHeader("X-Old", 2),
            InsertHeader("A-R", " mx;\n spf=pass b\u00fc"),
            Quarantine("rule=odd"),
            Accept(),
        )
    )
    assert PacketReader().feed(said) == [
        Packet(ord("m"), b"\0\0\0\2X-Old\0\0"),
        Packet(ord("i"), b"\0\0\0\0A-R\0 mx;\n spf=pass b\xc3\xbc\0"),
        Packet(ord("q"), b"rule=odd\0"),
        Packet(ord("a"), b""),
    ]


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (Reply.of(550, "5.7.1", "50% no"), b"550 5.7.1 50%% no\0"),
        (Reply.of(451, None, "later"), b"451 later\0"),
        (Reply(550, "5.7.1", ("a", "b", "c")), b"550-5.7.1 a\r\n550-5.7.1 b\r\n550 5.7.1 c\0"),
    ],
)
def test_a_refusal_is_a_whole_reply(reply: Reply, words: bytes) -> None:
    assert PacketReader().feed(wire.write_refusal(refuse(reply))) == [Packet(ord("y"), words)]
