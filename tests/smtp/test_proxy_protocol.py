from ipaddress import ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.errors import ParseError
from gateway.smtp.proxy_protocol import MAX_V2_BYTES, ProxyHeader, bytes_to_read, parse_proxy_header

V2 = b"\r\n\r\n\0\r\nQUIT\n"
V4 = ip_address("203.0.113.9").packed + ip_address("192.0.2.1").packed + b"\x04\xd2\x00\x19"
V6 = ip_address("2001:db8::5").packed + ip_address("2001:db8::9").packed + b"\x04\xd2\x00\x19"


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 1234 25\r\n", "203.0.113.9"),
        (b"PROXY TCP6 2001:db8::5 2001:db8::9 0 65535\r\n", "2001:db8::5"),
        (b"PROXY TCP6 ::ffff:203.0.113.9 ::1 1 25\r\n", "203.0.113.9"),
        (b"PROXY UNKNOWN\r\n", None),
        (b"PROXY UNKNOWN ffff:f...f:ffff 1 2\r\n", None),
        (V2 + b"\x21\x11\x00\x0c" + V4, "203.0.113.9"),
        (V2 + b"\x21\x21\x00\x24" + V6, "2001:db8::5"),
        (V2 + b"\x21\x11\x00\x10" + V4 + b"\x04\x00\x01x", "203.0.113.9"),  # with an extension
        (V2 + b"\x20\x00\x00\x00", None),  # LOCAL
        (V2 + b"\x20\x11\x00\x0c" + V4, None),  # LOCAL, whatever else it says
        (V2 + b"\x21\x00\x00\x00", None),  # UNSPEC
    ],
)
def test_good_header(header: bytes, client: str | None) -> None:
    expected = ProxyHeader(ip_address(client) if client else None, len(header))
    assert parse_proxy_header(header + b"EHLO x\r\n") == expected
    for size in range(len(header)):
        assert parse_proxy_header(header[:size]) is None


@pytest.mark.parametrize(
    "header",
    [
        b"EHLO x\r\n",
        b"PROXY tcp4 203.0.113.9 192.0.2.1 1234 25\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1234\r\n",
        b"PROXY TCP4  203.0.113.9 192.0.2.1 1234 25\r\n",  # two blanks
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1234 25 \r\n",
        b"PROXY TCP4 203.0.113.009 192.0.2.1 1234 25\r\n",  # octal to some
        b"PROXY TCP4 203.0.113.9 192.0.2.1 01234 25\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 65536 25\r\n",
        b"PROXY TCP4 2001:db8::5 2001:db8::9 1 2\r\n",
        b"PROXY TCP6 203.0.113.9 192.0.2.1 1 2\r\n",
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\n" + b"x" * 100,
        b"PROXY TCP4 " + b"1" * 200,
        V2 + b"\x11\x11\x00\x0c" + V4,  # version 1 in a version 2 header
        V2 + b"\x22\x11\x00\x0c" + V4,  # an unknown command
        V2 + b"\x21\x12\x00\x0c" + V4,  # UDP
        V2 + b"\x21\x31\x00\xd8",  # UNIX
        V2 + b"\x21\x11\x00\x0b" + V4,  # one byte short
        V2 + b"\x21\x21\x00\x0c" + V4,
        V2 + b"\x20\x11\xff\xff",  # endless
    ],
)
def test_bad_header(header: bytes) -> None:
    with pytest.raises(ParseError):
        parse_proxy_header(header)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(lambda tail: V2 + tail),
        st.binary(max_size=200).map(lambda tail: b"PROXY " + tail),
    )
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused_and_never_wait_for_ever(data: bytes) -> None:
    try:
        header = parse_proxy_header(data)
    except ParseError:
        return
    if header is None:
        assert len(data) < MAX_V2_BYTES
    else:
        assert header.size <= len(data)


HEADERS = [
    b"PROXY UNKNOWN\r\n",
    b"PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n",
    b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n",
    b"PROXY TCP6 2001:db8::1 2001:db8::2 65535 465\r\n",
    b"\r\n\r\n\0\r\nQUIT\n\x20\x00\0\0",
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12),
    b"\r\n\r\n\0\r\nQUIT\n\x21\x21\1\x00" + bytes(256),
]


@pytest.mark.parametrize("header", HEADERS)
@given(st.integers(1, 50))
def test_reading_what_is_surely_the_headers_reads_all_of_it_and_no_more(header: bytes, most: int) -> None:
    """What follows is a TLS handshake, which cannot be put back."""
    stream = header + b"\x16\x03\x01" + b"hello" * 20
    read = b""
    while parse_proxy_header(read) is None:
        size = min(most, bytes_to_read(read))
        assert size >= 1
        read += stream[len(read) : len(read) + size]
    assert read == header
