import mmap
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.message import (
    AMBIGUOUS,
    MAX_FIELDS,
    MAX_HEADER_BYTES,
    Defect,
    Message,
    has_bare_line_end,
    has_long_line,
)

ANYTHING = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b"From", b"x", b"\0", b"\xff", b"\r\n\r\n"]),
    max_size=30,
).map(b"".join)


def names_and_values(raw: bytes) -> list[tuple[bytes, bytes]]:
    message = Message(raw)
    return [(key, message.unfolded(at)) for at, key in enumerate(message.keys)]


@pytest.mark.parametrize(
    ("raw", "fields", "body"),
    [
        (b"A: 1\r\nb:2\r\n\r\nbody\r\n", [(b"a", b"1"), (b"b", b"2")], b"body\r\n"),
        (b"A: 1\r\n folded\r\n\tagain\r\n\r\n", [(b"a", b"1 folded\tagain")], b""),
        (b"A \t: 1\r\n\r\n", [(b"a", b"1")], b""),  # obsolete blank before the colon
        (b"A:\r\n\r\n", [(b"a", b"")], b""),
        (b"A:\r\n B: 1\r\n\r\n", [(b"a", b"B: 1")], b""),  # a field in a fold is no field
        (b"A: 1\r\n", [(b"a", b"1")], b""),  # header only
        (b"A: 1", [(b"a", b"1")], b""),  # cut off
        (b"", [], b""),
        (b"\r\n", [], b""),
        (b"\r\nA: 1\r\n", [], b"A: 1\r\n"),  # body only
        (b"no field\r\nA: 1\r\n\r\n", [(b"", b"no field"), (b"a", b"1")], b""),
        (b"A: 1\r\n \r\nB: 2\r\n\r\n", [(b"a", b"1"), (b"b", b"2")], b""),  # a line of blanks is a fold
        (b"A: 1\rB: 2\r\n\r\n", [(b"a", b"1\rB: 2")], b""),  # a bare CR ends nothing here
        (b"A: 1\nB: 2\r\n\r\n", [(b"a", b"1\nB: 2")], b""),
        (b"From\r\n : a@x\r\n\r\n", [(b"", b"From : a@x")], b""),  # the name is not folded
        (b": x\r\n\r\n", [(b"", b": x")], b""),
    ],
)
def test_fields_and_body(raw: bytes, fields: list[tuple[bytes, bytes]], body: bytes) -> None:
    assert names_and_values(raw) == fields
    assert raw[Message(raw).body_start :] == body


@pytest.mark.parametrize(
    "first_line",
    [
        b"From\0: a@bank.example",
        b"\xef\xbb\xbfFrom: a@bank.example",
        b" From: a@bank.example",
        b"\tFrom: a@bank.example",
        b"From a@bank.example",
        b"From\xc2\xa0: a@bank.example",
        b"\xd0\x85ubject: x",
        b"Fr om: a@bank.example",
    ],
)
def test_a_disguised_field_makes_the_message_ambiguous(first_line: bytes) -> None:
    message = Message(first_line + b"\r\nFrom: b@other.example\r\n\r\n")
    assert Defect.MALFORMED_FIELD in message.defects
    assert len(message.positions(b"from")) == 1


@pytest.mark.parametrize(
    ("raw", "defect"),
    [
        (b"A: 1\r\n\r\na\0b\r\n", Defect.NUL),
        (b"A: 1\r\n\r\na\rb\r\n", Defect.BARE_LINE_END),
        (b"A: 1\r\n\r\na\nb\r\n", Defect.BARE_LINE_END),
        (b"A: 1\r\n\r\n\r\r\n", Defect.BARE_LINE_END),
        (b"A: 1\r\n\r\n\n\r", Defect.BARE_LINE_END),
        (b"A: 1\r\n\r\n" + b"x" * 999 + b"\r\n", Defect.LONG_LINE),
        (b"A: " + b"x" * 996 + b"\r\n\r\n", Defect.LONG_LINE),
        (b"A: 1\r\n" * (MAX_FIELDS + 1), Defect.TOO_MANY_FIELDS),
        (b"A: " + b"x\r\n " * (MAX_HEADER_BYTES // 4) + b"\r\n\r\n", Defect.HEADER_TOO_LARGE),
    ],
)
def test_each_defect_alone(raw: bytes, defect: Defect) -> None:
    assert Message(raw).defects == {defect}


@pytest.mark.parametrize(
    "raw",
    [b"", b"\r\n", b"A: 1\r\n\r\nx\r\n", b"A: 1\r\n\r\n" + b"x" * 998 + b"\r\n", b"A: 1\r\n" * MAX_FIELDS],
)
def test_no_defect(raw: bytes) -> None:
    assert Message(raw).defects == frozenset()


@pytest.mark.parametrize(
    ("content", "raw"),
    [
        (b"A: 1\n\nx\n", b"A: 1\r\n\r\nx\r\n"),
        (b"A: 1\r\rx\r", b"A: 1\r\n\r\nx\r\n"),
        (b"A: 1\r\n\r\nx\r\n", b"A: 1\r\n\r\nx\r\n"),
        (b"From a@x Mon\nA: 1\n\n", b"A: 1\r\n\r\n"),
        (b"From a@x Mon\rA: 1\r\r", b"A: 1\r\n\r\n"),
        (b">From a@x Mon\r\nA: 1\r\n\r\n", b"A: 1\r\n\r\n"),
        (b"From a@x", b""),
        (b"A: 1\r\n\r\nx\ny\r\n", b"A: 1\r\n\r\nx\ny\r\n"),  # on the wire that LF was a defect: it stays one
        (b"", b""),
        (
            b"From : a@bank.example\r\n\r\n",
            b"From : a@bank.example\r\n\r\n",
        ),  # a field, not an mbox line: two readers, two authors
    ],
)
def test_line_ends_of_a_file(content: bytes, raw: bytes) -> None:
    assert Message.from_file(content).raw == raw


def test_fields_by_name() -> None:
    message = Message(b"To: a\r\nRECEIVED: 1\r\nreceived:2\r\n\r\n")
    assert message.positions(b"received") == (1, 2)
    assert [message.values[at] for at in message.positions(b"received")] == [b" 1", b"2"]
    assert message.field_bytes(1) == b"RECEIVED: 1\r\n"
    assert message.positions(b"cc") == ()
    assert len(message) == 34


@settings(deadline=None)
@given(ANYTHING)
def test_the_fields_are_the_whole_header_and_a_map_reads_the_same(raw: bytes) -> None:
    message = Message(raw)
    end = 0
    for position, field in enumerate(message.fields):
        assert field.start == end
        assert raw[field.start : field.end] == message.field_bytes(position)
        assert field.key == message.keys[position]
        end = field.end
    assert raw[end : message.body_start] in {b"", b"\r\n"}
    if not raw.startswith(b"\r\n"):
        assert raw[message.body_start :] == raw.partition(b"\r\n\r\n")[2]
    if raw:
        mapped = mmap.mmap(-1, len(raw))
        mapped[:] = raw
        other = Message(mapped)
        assert (other.fields, other.body_start, other.defects) == (
            message.fields,
            message.body_start,
            message.defects,
        )
        assert other.values == message.values


_BEFORE_A_GUARD = """
import mmap, tempfile
from gateway.mail.message import Message

with tempfile.TemporaryFile() as file:
    file.write(b"X: ".ljust(4 * mmap.PAGESIZE, b"a"))  # the search goes in fives, and reaches the last byte
    file.flush()
    kept = []
    for _ in range(32):  # one of them lies right before a page that nobody may read, as those of threads' stacks
        kept.append(mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0))
        kept.append(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        assert Message(kept[-1]).body_start == 4 * mmap.PAGESIZE
"""


def test_nothing_behind_a_map_is_read() -> None:
    """Python 3.11.2 itself does, where it searches to the last byte: a message of whole pages ended the process."""
    assert subprocess.run([sys.executable, "-c", _BEFORE_A_GUARD], check=False).returncode == 0


@pytest.mark.parametrize("at", range(-3, 4))
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n", b"\r", b"\r\r\n"])
def test_a_line_end_across_the_scan_boundary(at: int, line_end: bytes) -> None:
    size = 1024 * 1024
    raw = b"x" * (size + at) + line_end + b"y" * 10
    mapped = mmap.mmap(-1, len(raw))
    mapped[:] = raw
    assert has_bare_line_end(mapped) is has_bare_line_end(raw) is (line_end != b"\r\n")


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(990, 1005), max_size=6))
def test_long_lines_are_those_over_998(sizes: list[int]) -> None:
    raw = b"".join(b"x" * size + b"\r\n" for size in sizes)
    assert has_long_line(raw) is any(size > 998 for size in sizes)


@pytest.mark.parametrize(
    "unit",
    [
        b"A: 1\r\n",
        b"x",
        b"\r",
        b"\n",
        b"\r\n ",
        b"A",
        b"A ",
        b":",
        b"\r\n\t\r\n ",
        b"x" * 998 + b"\r\n",
        b"\0",
    ],
)
def test_ten_megabytes_of_hostile_header_take_less_than_a_second(unit: bytes) -> None:
    raw = b"A: 1" + unit * (10_000_000 // len(unit))
    started = time.process_time()
    message = Message(raw)
    assert len(message.fields) <= MAX_FIELDS + 1
    assert message.defects & (AMBIGUOUS | {Defect.LONG_LINE})
    assert time.process_time() - started < 1
