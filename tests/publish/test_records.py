"""What is printed is what is meant: read back by our own reader of master files, and by dnspython's."""

import dns.rdatatype
import dns.zone
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dns.resolver import Answer, Mx, Record, RecordType, Tlsa
from gateway.dns.zone import ZoneResolver
from gateway.publish.master_file import format_master_file
from gateway.publish.records import Purpose, Wanted, is_of_purpose, presentation

RECORDS = st.one_of(
    st.tuples(st.just(RecordType.TXT), st.binary(max_size=700)),
    st.tuples(
        st.just(RecordType.MX),
        st.builds(Mx, st.integers(0, 65_535), st.sampled_from(["mx.example.net", "a.b.example"])),
    ),
    st.tuples(
        st.just(RecordType.TLSA),
        st.builds(
            Tlsa,
            st.integers(0, 255),
            st.integers(0, 255),
            st.just(1),
            st.binary(min_size=32, max_size=32),
        ),
    ),
)


def wanted(record_type: RecordType, record: Record, why: str = "because") -> Wanted:
    return Wanted(
        purpose=Purpose.DKIM,
        name="name.example.net",
        record_type=record_type,
        records=(record,),
        why=why,
    )


@given(RECORDS)
def test_every_record_is_read_back(case: tuple[RecordType, Record]) -> None:
    record_type, record = case
    text = format_master_file("example.net", [wanted(record_type, record)], ttl_s=300)
    outcome = ZoneResolver.from_text(text).peek("name.example.net", record_type)
    assert isinstance(outcome, Answer)
    assert outcome.records == (record,)
    zone = dns.zone.from_text(text, origin="example.net.", relativize=False, check_origin=False)
    rdataset = zone.get_rdataset("name.example.net.", dns.rdatatype.from_text(record_type))
    assert rdataset is not None
    (rdata,) = rdataset
    if isinstance(record, bytes):
        assert b"".join(rdata.strings) == record
        assert all(len(string) <= 255 for string in rdata.strings)


def test_a_long_text_is_in_strings_of_255_bytes() -> None:
    text = format_master_file("example.net", [wanted(RecordType.TXT, b"x" * 600)], ttl_s=300)
    assert [line.count("x") for line in text.splitlines() if line.startswith("    ")] == [255, 255, 90]


def test_what_only_the_operator_knows_is_a_comment() -> None:
    host = Wanted(
        purpose=Purpose.MTA_STS_HOST,
        name="mta-sts.example.net",
        record_type=RecordType.A,
        records=(),
        why="The policy host. " * 20,
    )
    text = format_master_file("example.net", [host], ttl_s=300)
    assert all(line.startswith((";", "$TTL")) for line in text.splitlines() if line)
    assert max(map(len, text.splitlines())) <= 102


@pytest.mark.parametrize(
    ("purpose", "record", "is_meant"),
    [
        (Purpose.SPF, b"v=spf1 -all", True),
        (Purpose.SPF, b"v=spf10 -all", False),
        (Purpose.SPF, b"google-site-verification=x", False),
        (Purpose.DMARC, b"v=DMARC1; p=none", True),
        (Purpose.DMARC, b"v=spf1 -all", False),  # of a wildcard
        (Purpose.MTA_STS, b"v=STSv1; id=1", True),
        (Purpose.MTA_STS, b"v=STSv2; id=1", False),
        (Purpose.TLSRPT, b"v=TLSRPTv1; rua=mailto:a@example.net", True),
        (Purpose.TLSRPT, b"v=spf1 -all", False),
        (Purpose.DKIM, b"k=rsa; p=", True),
        (Purpose.DKIM, b"v=spf1 -all", False),
        (Purpose.MX, Mx(0, ""), True),
    ],
)
def test_what_a_record_is_meant_for(purpose: Purpose, record: Record, *, is_meant: bool) -> None:
    assert is_of_purpose(purpose, record) is is_meant


def test_presentation_hides_nothing() -> None:
    assert presentation(b'a"\\\x00\xff;') == '"a\\"\\\\\\000\\255;"'
    assert presentation(Mx(0, "")) == "0 ."
