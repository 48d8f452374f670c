import struct
import time
from itertools import pairwise

import dns.message
import dns.name
import dns.rcode
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway.dns.resolver import Answer, Missing, Mx, NotFound, RecordType, Temporary, Tlsa, Trouble
from gateway.dns.wire import (
    decode_reply,
    encode_query,
    encode_root_query,
    is_reply,
    is_truncated,
    is_vouched_for,
)
from tests.dns.fake_server import reply

MALFORMED = Temporary(Trouble.MALFORMED)
QUERY = encode_query(0x1234, "x.example.com", RecordType.TXT)
TAIL = struct.pack("!HH", 16, 1)
TO_QUESTION = b"\xc0\x0c"


def wire_of(answers: list[bytes], *, count: int | None = None, flags: int = 0x8180) -> bytes:
    counts = (1, len(answers) if count is None else count, 0, 0)
    return struct.pack("!HHHHHH", 0x1234, flags, *counts) + QUERY.question + b"".join(answers)


def record(owner: bytes, data: bytes, *, number: int = 16, ttl: int = 60, length: int | None = None) -> bytes:
    return owner + struct.pack("!HHIH", number, 1, ttl, len(data) if length is None else length) + data


@pytest.mark.parametrize("record_type", list(RecordType))
def test_dnspython_reads_what_we_ask(record_type: RecordType) -> None:
    query = dns.message.from_wire(encode_query(7, "_dmarc.example.com", record_type).wire)
    assert query.question[0].to_text() == f"_dmarc.example.com. IN {record_type}"
    assert (query.id, query.edns, query.payload) == (7, 0, 1232)


def test_dnspython_reads_the_question_for_the_root() -> None:
    assert dns.message.from_wire(encode_root_query(7).wire).question[0].to_text() == ". IN SOA"


@pytest.mark.parametrize(
    ("record_type", "texts", "expected"),
    [
        (RecordType.MX, ["10 MAIL.Example.com.", "0 ."], (Mx(10, "mail.example.com"), Mx(0, ""))),
        (RecordType.TXT, ['"a" "b\\195\\169"', '""'], (b"ab\xc3\xa9", b"")),
        (
            RecordType.PTR,
            [r"a\.b.example.net.", r"a\000b.example.net."],
            (r"a\046b.example.net", r"a\000b.example.net"),
        ),
        (RecordType.TLSA, ["3 1 0 00ff"], (Tlsa(3, 1, 0, b"\x00\xff"),)),
        (RecordType.CNAME, ["other.example.net."], ("other.example.net",)),
    ],
)
def test_what_dnspython_writes_is_read(
    record_type: RecordType, texts: list[str], expected: tuple[object, ...]
) -> None:
    query = encode_query(1, "x.example.com", record_type)
    wire = reply(
        dns.message.from_wire(query.wire), *[f"x.example.com. 60 {record_type} {text}" for text in texts]
    )
    assert is_reply(wire, query)
    outcome = decode_reply(wire, query, record_type)
    assert isinstance(outcome, Answer)
    assert set(outcome.records) == set(expected)


@pytest.mark.parametrize(
    ("answers", "reason"),
    [
        ([record(TO_QUESTION, b"\x05abc")], "the string runs past its record"),
        ([record(TO_QUESTION, b"")], "TXT without a string"),
        ([record(TO_QUESTION, b"\x01a", length=200)], "the record runs past the message"),
        ([record(b"\xc0\xff", b"\x01a")], "a pointer forward"),
        ([record(b"\xc0" + bytes([12 + len(QUERY.question)]), b"\x01a")], "a pointer to itself"),
        ([record(b"\x80abc", b"\x01a")], "an unknown kind of label"),
        ([record(b"\x3fa" * 10, b"\x01a")], "a label past the end"),
        ([record(b"\x01a" * 128 + b"\0", b"\x01a")], "a name over 255 bytes"),
        ([record(TO_QUESTION, b"\x01a\0xx", number=5)], "data behind the CNAME"),
        ([record(TO_QUESTION, b"\x01a\0", number=5), record(TO_QUESTION, b"\x01b\0", number=5)], "two CNAMEs"),
        ([b"\xc0"], "ends within a pointer"),
    ],
)  # fmt: skip
def test_nonsense_is_malformed(answers: list[bytes], reason: str) -> None:
    assert decode_reply(wire_of(answers), QUERY, RecordType.TXT) == MALFORMED, reason


def test_fewer_records_than_promised_is_malformed() -> None:
    assert decode_reply(wire_of([record(TO_QUESTION, b"\x01a")], count=2), QUERY, RecordType.TXT) == MALFORMED


@pytest.mark.parametrize(("record_type", "number", "size"), [(RecordType.A, 1, 5), (RecordType.AAAA, 28, 4), (RecordType.TLSA, 52, 3), (RecordType.MX, 15, 1)])  # fmt: skip
def test_data_of_the_wrong_length_is_malformed(record_type: RecordType, number: int, size: int) -> None:
    query = encode_query(0x1234, "x.example.com", record_type)
    wire = struct.pack("!HHHHHH", 0x1234, 0x8180, 1, 1, 0, 0) + query.question
    assert (
        decode_reply(wire + record(TO_QUESTION, b"\x07" * size, number=number), query, record_type)
        == MALFORMED
    )


def test_a_ttl_with_its_top_bit_set_is_zero() -> None:
    outcome = decode_reply(wire_of([record(TO_QUESTION, b"\x01a", ttl=0x8000_0000)]), QUERY, RecordType.TXT)
    assert outcome == Answer((b"a",), 0, secure=False, name="x.example.com")


def test_ten_cnames_are_followed_and_eleven_are_not() -> None:
    def chain(length: int) -> bytes:
        names = ["x.example.com.", *(f"y{number}.example.com." for number in range(length))]
        links = [f"{one} 60 CNAME {other}" for one, other in pairwise(names)]
        return reply(dns.message.from_wire(QUERY.wire), *links, f"{names[-1]} 60 TXT end")

    assert decode_reply(chain(10), QUERY, RecordType.TXT) == Answer(
        (b"end",), 60, secure=False, name="y9.example.com"
    )
    assert decode_reply(chain(11), QUERY, RecordType.TXT) == MALFORMED


@pytest.mark.parametrize(
    ("flags", "truncated", "vouched"), [(0x8180, False, False), (0x81A0, False, True), (0x8380, True, False), (0x81A2, False, False)]
)  # fmt: skip
def test_flags(flags: int, truncated: bool, vouched: bool) -> None:  # noqa: FBT001  # columns of the table
    wire = wire_of([record(TO_QUESTION, b"\x01a")], flags=flags)
    assert (is_truncated(wire), is_vouched_for(wire)) == (truncated, vouched)


def test_names_made_of_pointers_cost_little() -> None:
    pointers = b"".join(struct.pack("!H", 0xC000 | (44 + 2 * max(number - 1, 0))) for number in range(8000))
    padding = record(TO_QUESTION, pointers, number=99)
    owners = [
        record(struct.pack("!H", 0xC000 | (44 + 2 * (number % 8000))), b"\x01a") for number in range(1900)
    ]
    start = time.process_time()
    decode_reply(wire_of([padding, *owners]), QUERY, RecordType.TXT)
    decode_reply(wire_of([record(b"\x01a" * 120 + TO_QUESTION, b"\x01a")] * 250), QUERY, RecordType.TXT)
    assert time.process_time() - start < 0.5


GOOD_WIRE = reply(
    dns.message.from_wire(QUERY.wire),
    "x.example.com. 60 CNAME y.example.net.",
    "y.example.net. 60 TXT hello",
    authority="example.net. 60 SOA a. b. 1 2 3 4 5",
)


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(RecordType), st.integers(0, 4))
@example(b"", RecordType.A, 0)
def test_any_bytes_are_an_outcome(tail: bytes, record_type: RecordType, answers: int) -> None:
    query = encode_query(0x1234, "x.example.com", record_type)
    wire = struct.pack("!HHHHHH", 0x1234, 0x8180, 1, answers, 1, 0) + query.question + tail
    outcome = decode_reply(wire, query, record_type)
    assert isinstance(outcome, Answer | NotFound | Temporary)
    is_reply(tail, query)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(st.integers(12, len(GOOD_WIRE) - 1), st.integers(0, 255)), max_size=4))
def test_a_damaged_reply_is_an_outcome_and_never_another_answer_than_dnspython_reads(
    damage: list[tuple[int, int]],
) -> None:
    wire = bytearray(GOOD_WIRE)
    for position, value in damage:
        wire[position] = value
    if not is_reply(bytes(wire), QUERY):
        return
    outcome = decode_reply(bytes(wire), QUERY, RecordType.TXT)
    assert isinstance(outcome, Answer | NotFound | Temporary)
    try:
        message = dns.message.from_wire(bytes(wire))
        assert isinstance(message, dns.message.QueryMessage)
        oracle = message.resolve_chaining()
    except Exception:  # noqa: BLE001  # dnspython refuses more: sections that we do not read, other classes, ...
        return
    if isinstance(outcome, Answer):
        assert oracle.answer is not None
        assert {b"".join(rdata.strings) for rdata in oracle.answer} == set(outcome.records)
    elif isinstance(outcome, NotFound):
        assert outcome.missing is Missing.NODATA
        assert oracle.answer is None


@settings(deadline=None, max_examples=200)
@given(st.lists(st.binary(min_size=1, max_size=63), min_size=1, max_size=3))
def test_any_label_in_a_name_gives_text_that_is_safe_and_says_where_labels_end(labels: list[bytes]) -> None:
    target = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    query = encode_query(0x1234, "x.example.com", RecordType.PTR)
    wire = (
        struct.pack("!HHHHHH", 0x1234, 0x8180, 1, 1, 0, 0)
        + query.question
        + record(TO_QUESTION, target, number=12)
    )
    outcome = decode_reply(wire, query, RecordType.PTR)
    assert isinstance(outcome, Answer)
    (name,) = outcome.records
    assert isinstance(name, str)
    assert name.count(".") == len(labels) - 1
    assert all("!" <= character <= "~" for character in name)
