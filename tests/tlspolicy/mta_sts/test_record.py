import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tlspolicy.mta_sts.record import RecordError, is_sts_record, parse_record


@pytest.mark.parametrize(
    ("text", "identifier"),
    [
        (b"v=STSv1; id=20160831085700Z;", "20160831085700Z"),  # RFC 8461 §3.1's own
        (b"v=STSv1;id=1", "1"),
        (b"v=STSv1; id=1;  ", "1"),
        (b"v=STSv1 ; id=1 ;", "1"),  # the grammar before erratum 6285
        (b"v=STSv1;\tid=1", "1"),
        (b"v=STSv1; x=y; id=1; later_1.a-b=!~;", "1"),  # unknown fields are skipped
        (b"v=STSv1; id=1; id=2", "1"),  # the first counts
        (b"v=STSv1; id=" + b"a" * 32, "a" * 32),
    ],
)
def test_records_that_are_good(text: bytes, identifier: str) -> None:
    assert parse_record(text) == identifier


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"v=STSv1",  # no id, not even a delimiter
        b"v=STSv1;",
        b"v=STSv1; id=",
        b"v=STSv1; id=a b",
        b"v=STSv1; id=a-b",  # letters and digits only
        b"v=STSv1; id=" + b"a" * 33,
        b"v=STSv1; id=1; ; x=y",
        b"v=STSv1; id=1; x",
        b"v=STSv1; id=1; x=",
        b"v=STSv1; id=1; -x=y",
        b"v=STSv1; ID=1",  # names are case-sensitive
        b"v=STSv1; id=1; x=a=b",
        b"v=stsv1; id=1",
        b" v=STSv1; id=1",
        b"v=STSv2; id=1",
        b"v=STSv1; id=\xff",
        b"v=STSv1; id=1\r\nv=STSv1; id=2",
        b"v=STSv1; id=1;" + b" " * 3_000,
    ],
)
def test_records_that_are_not(text: bytes) -> None:
    with pytest.raises(RecordError):
        parse_record(text)


@pytest.mark.parametrize(
    ("text", "is_one"),
    [(b"v=STSv1; broken", True), (b"v=STSv1", False), (b"v=spf1 -all", False), (b"v=STSv10; id=1", False)],
)
def test_which_records_are_meant(text: bytes, *, is_one: bool) -> None:
    assert is_sts_record(text) is is_one


@given(st.one_of(st.binary(max_size=80), st.binary(max_size=60).map(lambda tail: b"v=STSv1;" + tail)))
def test_any_bytes_are_an_identifier_or_an_error(text: bytes) -> None:
    try:
        identifier = parse_record(text)
    except RecordError:
        return
    assert identifier.isalnum()
    assert parse_record(f"v=STSv1; id={identifier}".encode()) == identifier
