import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.auth.dmarc.record import (
    MAX_CACHED_BYTES,
    MAX_REPORT_ADDRESSES,
    NotDmarcError,
    UnusablePolicyError,
    UnusableRecord,
    parse_record,
    read_record,
)
from gateway.auth.results import Alignment, DmarcPolicy, DmarcRecord

NONE, QUARANTINE, REJECT = DmarcPolicy.NONE, DmarcPolicy.QUARANTINE, DmarcPolicy.REJECT
STRICT = Alignment.STRICT


def record(**fields: object) -> DmarcRecord:
    return DmarcRecord(domain="example.org", **{"policy": REJECT, **fields})  # type: ignore[arg-type]


GOOD = [
    ("v=DMARC1;p=reject", record(), "no white space"),
    ("v=DMARC1; p=reject;", record(), "a final semicolon"),
    ("v \t= DMARC1 \t;\t p = reject ; ", record(), "WSP wherever it may stand"),
    ("V=DMARC1; P=Reject", record(), "ABNF strings ignore case (RFC 5234 §2.3)"),
    ("v=DMARC1; adkim=s; aspf=s; p=reject", record(dkim_alignment=STRICT, spf_alignment=STRICT), "p need not be second"),
    ("v=DMARC1; p=none; sp=quarantine; np=reject", record(policy=NONE, subdomain_policy=QUARANTINE, nonexistent_policy=REJECT), "all three"),
    ("v=DMARC1; p=reject; psd=y", record(public_suffix=True), "a public suffix"),
    ("v=DMARC1; p=reject; psd=n", record(public_suffix=False), "an organizational domain"),
    ("v=DMARC1; p=reject; psd=u", record(), "the default, said aloud"),
    ("v=DMARC1; p=reject; psd=maybe", record(), "a bad psd is the default"),
    ("v=DMARC1; p=reject; t=y", record(testing=True), "test mode"),
    ("v=DMARC1; p=reject; t=yes", record(), "a bad t is the default"),
    ("v=DMARC1; p=reject; adkim=strict; aspf=", record(), "bad alignment modes are the default"),
    ("v=DMARC1; p=reject; pct=0; rf=afrf; ri=3600", record(), "historic tags do nothing (§9.3)"),
    ("v=DMARC1; p=reject; x-new=1; =; ;; nonsense; \x01=\x02", record(), "what is unknown or broken is ignored (§4.8)"),
    ("v=DMARC1; p=reject; adkim=s; adkim=r", record(), "a tag said in two ways is not known"),
    ("v=DMARC1; p=reject; p=REJECT ; p=reject", None, "said in different case: not the same bytes, not known"),
    ("v=DMARC1; p=reject; p=reject", record(), "said twice alike is not in doubt"),
    ("v=DMARC1; p=reject; fo=1:d:s", record(), "fo is ignored without ruf"),
    ("v=DMARC1; p=reject; ruf=mailto:f@example.org; fo=1:D:s", record(failure_to=("f@example.org",), failure_options="1:d:s"), "fo"),
    ("v=DMARC1; p=reject; ruf=mailto:f@example.org; fo=0:1", record(failure_to=("f@example.org",)), "0 and 1 exclude each other"),
    ("v=DMARC1; p=reject; ruf=mailto:f@example.org; fo=d:d", record(failure_to=("f@example.org",)), "each at most once"),
    ("v=DMARC1; rua=mailto:r@example.org", record(policy=NONE, aggregate_to=("r@example.org",)), "no p, but reports wanted: §4.10.1"),
    ("v=DMARC1; p=rejct; rua=mailto:r@example.org", record(policy=NONE, aggregate_to=("r@example.org",)), "a bad p likewise"),
    ("v=DMARC1; p=reject; sp=bad; rua=mailto:r@example.org", record(policy=NONE, aggregate_to=("r@example.org",)), "a bad sp costs p too"),
    ("v=DMARC1; p=reject; np=; sp=none; rua=mailto:r@example.org", record(policy=NONE, aggregate_to=("r@example.org",)), "a bad np costs all"),
    ("v=DMARC1; p=bad; rua=https://example.org/reports", record(policy=NONE), "any valid URI will do, though we cannot use it"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected", "why"), GOOD)
def test_reads_records(text: str, expected: DmarcRecord | None, why: str) -> None:
    if expected is None:
        with pytest.raises(UnusablePolicyError):
            parse_record("example.org", text.encode())
    else:
        assert parse_record("example.org", text.encode()) == expected, why


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "nothing"),
        (b"v=spf1 -all", "another protocol's record"),
        (b"p=reject; v=DMARC1", "the version must be first"),
        (b" v=DMARC1; p=reject", "nothing may stand before it"),
        (b"v=dmarc1; p=reject", "the value is case-sensitive"),
        (b"v=DMARC2; p=reject", "another version"),
        (b"v=DMARC1 p=reject", "the value is then `DMARC1 p=reject`"),
        (b"v=DMARC10; p=reject", "a longer value"),
        (b"v=DMARC1\xa0; p=reject", "a no-break space is not white space"),
        (b"\xef\xbb\xbfv=DMARC1; p=reject", "a byte order mark"),
    ],
)
def test_what_does_not_begin_with_the_version_is_no_dmarc_record(text: bytes, why: str) -> None:
    with pytest.raises(NotDmarcError):
        parse_record("example.org", text)
    assert read_record("example.org", text) is None, why


@pytest.mark.parametrize(
    ("text", "psd"),
    [
        (b"v=DMARC1", None),
        (b"v=DMARC1; psd=n", False),
        (
            b"v=DMARC1; p=reject\xff; psd=y",
            True,
        ),  # a byte outside dmarc-value: the owner's intent is not known
        (b"v=DMARC1; p=reject; sp=all", None),
        (b"v=DMARC1; p=reject; p=none", None),
        (b"v=DMARC1; p=reject; np=reject; np=none; rua=not a uri", None),
        (b"v=DMARC1; p=bad; rua=mailto:", None),
        (b"v=DMARC1; p=bad; rua=mailto:nobody", None),
        (b"v=DMARC1; p=bad; rua=r@example.org", None),  # no scheme: the commonest mistake
    ],
)
def test_without_policy_and_reports_a_record_is_unusable_but_keeps_its_place_in_the_walk(
    text: bytes, *, psd: bool | None
) -> None:
    with pytest.raises(UnusablePolicyError):
        parse_record("example.org", text)
    assert read_record("example.org", text) == UnusableRecord("example.org", psd)


@pytest.mark.parametrize(
    ("rua", "expected"),
    [
        ("mailto:a@example.org", ("a@example.org",)),
        ("MAILTO:A@Example.ORG", ("A@example.org",)),  # a local part keeps its case
        ("mailto:a@example.org,mailto:b@example.org", ("a@example.org", "b@example.org")),
        ("mailto:a@example.org ,\tmailto:b@example.org", ("a@example.org", "b@example.org")),
        ("mailto:a@example.org,mailto:a@example.org", ("a@example.org",)),
        (
            "mailto:a@example.org!10m,mailto:b@example.org!5",
            ("a@example.org", "b@example.org"),
        ),  # §4.8 obsolete
        ("mailto:a@example.org!10x", ()),
        ("mailto:a%2Cb@example.org", ()),  # a comma would need quoting
        ("mailto:a%21b@example.org", ("a!b@example.org",)),
        ("mailto:a@example.org?subject=x", ("a@example.org",)),
        ("https://example.org/,mailto:a@example.org", ("a@example.org",)),
        ("mailto:a%0D%0ARCPT%20TO:<x@y.example>@example.org", ()),  # SMTP injection
        ("mailto:%3Ca@example.org", ()),
        ("mailto:a@[192.0.2.1]", ()),
        ("mailto:a@localhost", ()),
        ("mailto:.a@example.org", ()),
        ("mailto:a@exa..mple.org", ()),
        ("mailto:a@-example.org", ()),
        ("mailto:a%C3%A9@example.org", ()),
        (f"mailto:{'a' * 65}@example.org", ()),
        (f"mailto:a@{'b.' * 200}org", ()),
    ],
)
def test_report_addresses_are_such_as_a_mail_could_be_sent_to(rua: str, expected: tuple[str, ...]) -> None:
    text = f"v=DMARC1; p=none; rua={rua}; ruf={rua}".encode()
    found = parse_record("example.org", text)
    assert found.aggregate_to == expected
    assert found.failure_to == expected


def test_reports_go_to_no_more_than_a_few_places() -> None:
    uris = ",".join(f"mailto:a{number}@example.org" for number in range(100))
    found = parse_record("example.org", f"v=DMARC1; p=none; rua={uris}".encode())
    assert found.aggregate_to == tuple(f"a{number}@example.org" for number in range(MAX_REPORT_ADDRESSES))


@pytest.mark.parametrize(
    "filler",
    [
        b";",
        b"=",
        b"a=b;",
        b" ",
        b"rua=",
        b"mailto:a@",
        b",",
        b"%41",
        b"mailto:a@b.example,",
        b"\xff",
        b"a.",
        b"!1",
    ],
)
@pytest.mark.parametrize(
    "start", [b"", b"v=DMARC1;", b"v=DMARC1; p=none; rua=", b"v=DMARC1; p=none; rua=mailto:"]
)
def test_a_megabyte_of_anything_takes_no_time(start: bytes, filler: bytes) -> None:
    text = start + filler * (1_000_000 // len(filler))
    began = time.perf_counter()
    read_record("example.org", text)
    assert time.perf_counter() - began < 0.5


def test_only_short_records_are_kept_in_memory() -> None:
    short, long = b"v=DMARC1; p=none", b"v=DMARC1; p=none; x=" + b"y" * MAX_CACHED_BYTES
    assert read_record("example.org", short) is read_record("example.org", short)
    assert read_record("example.org", long) is not read_record("example.org", long)
    assert read_record("example.org", long) == read_record("example.org", short)


_TAGS = st.sampled_from(
    [b"p", b"sp", b"np", b"psd", b"t", b"adkim", b"aspf", b"rua", b"ruf", b"fo", b"pct", b"v", b"x"]
)
_VALUES = st.sampled_from(
    [b"none", b"reject", b"quarantine", b"y", b"n", b"u", b"r", b"s", b"mailto:a@example.org!1k", b"0:1", b""]
) | st.binary(max_size=20)
_PARTS = st.builds(lambda tag, value: tag + b"=" + value, _TAGS, _VALUES) | st.binary(max_size=20)


@given(
    st.one_of(
        st.binary(max_size=200), st.lists(_PARTS, max_size=20).map(lambda p: b";".join([b"v=DMARC1", *p]))
    )
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_a_record_or_a_parse_error(text: bytes) -> None:
    try:
        found = parse_record("example.org", text)
    except (NotDmarcError, UnusablePolicyError):
        return
    assert text[:1] in b"vV"
    assert found.domain == "example.org"
    assert all(address.isascii() and address.isprintable() for address in found.aggregate_to)
    assert len(found.aggregate_to) <= MAX_REPORT_ADDRESSES
