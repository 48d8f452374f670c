import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.postfix.netstring import Decoder, NetstringError, encode

MAX_BYTES = 50


def decode(chunks: list[bytes]) -> tuple[list[bytes], bool]:
    """All contents, and whether the rest is refused."""
    decoder = Decoder(MAX_BYTES)
    found: list[bytes] = []
    try:
        for chunk in chunks:
            decoder.feed(chunk)
            while (content := decoder.next()) is not None:
                found.append(content)
    except NetstringError:
        return found, True
    return found, False


@pytest.mark.parametrize(
    ("data", "contents"),
    [
        (b"", []),
        (b"5:hello,", [b"hello"]),
        (b"0:,", [b""]),
        (b"3:a,b,3:c:d,", [b"a,b", b"c:d"]),  # its own delimiters inside
        (b"2:\x00\xff,", [b"\x00\xff"]),
        (b"5:hell", []),  # more is to come
        (b"5", []),
        (b"5:hello", []),
    ],
)
def test_good(data: bytes, contents: list[bytes]) -> None:
    assert decode([data]) == (contents, False)


@pytest.mark.parametrize(
    "data",
    [
        b"x",  # another protocol
        b"GET / HTTP/1.1\r\n",
        b":hello,",
        b" 5:hello,",
        b"-1:x,",
        b"+5:hello,",
        b"05:hello,",  # no leading zero
        b"00:,",
        b"5 :hello,",
        b"5:hello;",
        b"5:hello\n",
        b"51:",  # over the limit, refused before it comes
        b"999999999:",
        b"9999999999",  # a length without end
        b"\xb2:ab,",  # a digit of no ASCII
    ],
)
def test_bad(data: bytes) -> None:
    assert decode([data]) == ([], True)
    assert decode([b"1:x," + data]) == ([b"x"], True)


def test_what_is_wrong_stays_wrong() -> None:
    decoder = Decoder(MAX_BYTES)
    decoder.feed(b"x")
    for more in (b"", b"5:hello,"):
        decoder.feed(more)
        with pytest.raises(NetstringError):
            decoder.next()


@given(st.lists(st.binary(max_size=MAX_BYTES)))
def test_it_reads_what_it_writes(contents: list[bytes]) -> None:
    assert decode([b"".join(map(encode, contents))]) == (contents, False)


@given(
    st.one_of(
        st.binary(max_size=80),
        st.lists(st.sampled_from([b"0", b"5", b"51", b":", b",", b"hello"])).map(b"".join),
    )
)
def test_byte_by_byte_equals_all_at_once(data: bytes) -> None:
    assert decode([data[index : index + 1] for index in range(len(data))]) == decode([data])
