"""The `_smtp._tls` record (RFC 8460 §3)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.tlspolicy.tlsrpt_record import TlsrptRecordError, is_tlsrpt_record, parse_tlsrpt_record

GOOD = [
    (b"v=TLSRPTv1;rua=mailto:a@example.net", ("mailto:a@example.net",)),
    (b"v=TLSRPTv1; rua = mailto:a@example.net ; ", ("mailto:a@example.net",)),
    (
        b"v=TLSRPTv1; rua=mailto:a@example.net,https://r.example/v1?x=1",
        ("mailto:a@example.net", "https://r.example/v1?x=1"),
    ),
    (b"v=TLSRPTv1; ext=1; rua=https://r.example/", ("https://r.example/",)),
]
BAD = [
    (b"", "begin"),
    (b"v=TLSRPTv2; rua=mailto:a@example.net", "begin"),
    (b" v=TLSRPTv1; rua=mailto:a@example.net", "begin"),  # the version comes first
    (b"v=TLSRPTv1;", "no rua"),
    (b"v=TLSRPTv1; rua=", "neither"),
    (b"v=TLSRPTv1; rua=a@example.net", "neither"),  # the commonest mistake
    (b"v=TLSRPTv1; rua=http://r.example/", "neither"),  # not without TLS
    (b"v=TLSRPTv1; rua=mailto:a@example.net; junk", "name=value"),
    (b"v=TLSRPTv1; rua=mailto:\xff@example.net", "ASCII"),
    (b"v=TLSRPTv1; rua=mailto:a@example.net" + b" " * 3000, "bytes"),
]


@pytest.mark.parametrize(("text", "uris"), GOOD)
def test_good(text: bytes, uris: tuple[str, ...]) -> None:
    assert parse_tlsrpt_record(text) == uris


@pytest.mark.parametrize(("text", "reason"), BAD)
def test_bad(text: bytes, reason: str) -> None:
    with pytest.raises(TlsrptRecordError, match=reason):
        parse_tlsrpt_record(text)


@given(st.one_of(st.binary(max_size=300), st.binary(max_size=200).map(lambda rest: b"v=TLSRPTv1;" + rest)))
def test_any_bytes_are_a_record_or_its_own_error(text: bytes) -> None:
    try:
        uris = parse_tlsrpt_record(text)
    except TlsrptRecordError:
        return
    assert uris
    assert is_tlsrpt_record(text)
