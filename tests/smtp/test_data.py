import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.listeners.spool import Budget, MessageSpool
from gateway.smtp.data import BLOCK_BYTES, ContentFilter, DataDecoder, Fault, encode_chunk, encode_data
from gateway.smtp.transaction import Content

# What content is made of where something can go wrong.
PIECES = st.lists(
    st.sampled_from([b"\r\n", b".", b"\r", b"\n", b"a", b"\0", b"..", b"\r\n.", b"text"]), max_size=40
).map(b"".join)
LINES = st.lists(st.sampled_from([b"\r\n", b".", b"..", b"a", b".a", b"text"]), max_size=40).map(
    lambda pieces: b"".join(pieces) + b"\r\n"
)


class Kept:
    def __init__(self, *, normalize: bool = False) -> None:
        self.filter = ContentFilter(normalize=normalize)
        self.content = b""

    def push(self, block: bytes) -> None:
        self.content += self.filter.push(block)

    def finish(self) -> None:
        self.content += self.filter.finish()


def decode(
    stream: bytes, *, cut: int = 0, normalize: bool = False
) -> tuple[bytes, bytes | None, Fault | None]:
    kept = Kept(normalize=normalize)
    decoder = DataDecoder(kept)
    size = cut or len(stream) or 1
    rest = b""
    for at in range(0, len(stream), size):
        if decoder.rest is None:
            decoder.feed(stream[at : at + size])
        else:
            rest += stream[at : at + size]
    return kept.content, None if decoder.rest is None else decoder.rest + rest, kept.filter.fault


@pytest.mark.parametrize(
    ("stream", "content", "rest"),
    [
        (b".\r\n", b"", b""),
        (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
        (b"..\r\n.\r\n", b".\r\n", b""),
        (b"...\r\n.\r\n", b"..\r\n", b""),
        (b".a\r\n.\r\n", b"a\r\n", b""),  # RFC 5321 §4.5.2: deleted, doubled or not
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"\r\n\r\n..\r\n.\r\n.\r\n", b"\r\n\r\n.\r\n", b".\r\n"),
        (b"a.\r\n.\r\n", b"a.\r\n", b""),
        (b"a\r\n.", b"a", None),
        (b"a\r\n.b", b"a\r\nb", None),
    ],
)
def test_decoding(stream: bytes, content: bytes, rest: bytes | None) -> None:
    assert decode(stream) == (content, rest, None)


@given(PIECES, st.integers(1, 9), st.booleans())
@settings(max_examples=400, deadline=None)
def test_it_does_not_matter_where_the_stream_is_cut(stream: bytes, cut: int, normalize: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    stream += b"\r\n.\r\nrest"
    content, rest, fault = decode(stream, normalize=normalize)
    in_pieces = decode(stream, cut=cut, normalize=normalize)
    assert in_pieces[1:] == (rest, fault)
    if fault is None:  # with one nothing of the content is used
        assert in_pieces[0] == content


@given(PIECES)
@settings(max_examples=300, deadline=None)
def test_only_crlf_dot_crlf_ends_data(stream: bytes) -> None:
    _, rest, _ = decode(stream)
    end = (b"\r\n" + stream).find(b"\r\n.\r\n")
    assert (rest is None) == (end < 0)
    if rest is not None:
        assert rest == stream[end + 3 :]


@given(PIECES)
@settings(max_examples=300, deadline=None)
def test_what_gets_through_has_no_bare_line_end_and_no_nul(stream: bytes) -> None:
    for normalize in (False, True):
        content, _, fault = decode(stream + b"\r\n.\r\n", normalize=normalize)
        if fault is None:
            plain = content.replace(b"\r\n", b"")
            assert b"\r" not in plain
            assert b"\n" not in plain
            assert b"\0" not in plain


@given(LINES, st.integers(1, 9))
@settings(max_examples=300, deadline=None)
def test_encoding_is_undone_by_decoding(content: bytes, cut: int) -> None:
    for pieces in ([content], [content[at : at + cut] for at in range(0, len(content), cut)]):
        encoded = b"".join(encode_data(pieces))
        assert encoded == b"".join(encode_data([memoryview(content)]))
        assert decode(encoded) == (content, b"", None)


def test_a_last_line_without_its_end_gets_one() -> None:
    assert b"".join(encode_data([b"a"])) == b"a\r\n.\r\n"
    assert b"".join(encode_data([])) == b".\r\n"


def test_a_large_message_goes_in_bounded_blocks() -> None:
    blocks = list(encode_data([memoryview(b"1234567\r\n." * 300_000)]))
    assert len(blocks) > 10
    assert max(map(len, blocks)) < 3 * BLOCK_BYTES


@pytest.mark.parametrize("unit", [b"\r\n.", b".\r\n", b"\r\n", b"a\r\n..\r\n", b"x"])
def test_a_megabyte_takes_well_under_a_second(unit: bytes) -> None:
    stream = unit * (1_000_000 // len(unit))
    started = time.perf_counter()
    content, _, _ = decode(stream, cut=4096, normalize=True)
    b"".join(encode_data([content]))
    assert time.perf_counter() - started < 1


def test_a_stream_of_single_bytes_takes_linear_time() -> None:
    started = time.perf_counter()
    decode(b"\r\n.a" * 25_000, cut=1)
    assert time.perf_counter() - started < 2


@given(PIECES, st.integers(1, 9), st.booleans())
@settings(max_examples=400, deadline=None)
def test_dots_are_never_missed(stream: bytes, cut: int, normalize: bool) -> None:  # noqa: FBT001 - hypothesis gives it
    content = Content(MessageSpool(Budget(10_000), threshold=10_000), max_bytes=10_000, normalize=normalize)
    decoder = DataDecoder(content)
    stream += b"\r\n.\r\n"
    for at in range(0, len(stream), cut):
        if decoder.rest is None:
            decoder.feed(stream[at : at + cut])
    content.sent_with_dots(found=decoder.has_dots)
    if content.refusal is None and not content.is_dotted:
        assert b"\r\n." not in b"\r\n" + bytes(content.message().raw)


def test_no_dot_is_known_where_none_was_sent() -> None:
    content = Content(MessageSpool(Budget(100), threshold=100), max_bytes=100, normalize=False)
    decoder = DataDecoder(content)
    decoder.feed(b"a.b\r\nc.\r\n.\r\n")
    content.sent_with_dots(found=decoder.has_dots)
    assert not content.is_dotted


@pytest.mark.parametrize(
    ("pieces", "wire"),
    [
        ([], b"BDAT 0 LAST\r\n"),
        ([b"a\r\n", memoryview(b".\r\n..\r\n")], b"BDAT 10 LAST\r\na\r\n.\r\n..\r\n"),
        ([b"a"], b"BDAT 3 LAST\r\na\r\n"),
        ([b"a\r\n", memoryview(b"")], b"BDAT 3 LAST\r\na\r\n"),
    ],
)
def test_a_chunk_is_the_content_as_it_is(pieces: list[bytes | memoryview], wire: bytes) -> None:
    assert b"".join(encode_chunk(pieces)) == wire


def test_a_large_chunk_goes_in_blocks() -> None:
    content = b"1234567\r\n" * 300_000
    blocks = list(encode_chunk([memoryview(content)]))
    assert max(map(len, blocks)) <= BLOCK_BYTES
    assert b"".join(blocks) == f"BDAT {len(content)} LAST\r\n".encode() + content
