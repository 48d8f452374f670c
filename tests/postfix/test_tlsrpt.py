import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.postfix.tlsrpt import (
    MAX_DATAGRAM_BYTES,
    MAX_TEXT_CHARACTERS,
    DatagramError,
    parse_datagram,
)
from gateway.tlspolicy.model import FailureType, PolicyType, TlsSession
from tests.postfix.datagrams import NONE, TLSA, datagram, detail, mixed, policy, sts_policy, tlsa_policy

AT = datetime(2026, 3, 14, tzinfo=UTC)


def parsed(data: bytes) -> TlsSession:
    (session,) = parse_datagram(data, AT)
    return session


def test_a_session_that_went_well() -> None:
    assert parsed(datagram(sts_policy())) == TlsSession(
        at=AT,
        policy_domain="example.com",
        policy_type=PolicyType.STS,
        policy_string=("version: STSv1", "mode: enforce", "mx: *.example.com", "max_age: 86400"),
        mx_host=("*.example.com",),
        delivery="postfix",
    )


def test_a_session_that_failed() -> None:
    assert parsed(datagram(tlsa_policy(detail(304)))) == TlsSession(
        at=AT,
        policy_domain="example.com",
        policy_type=PolicyType.TLSA,
        tlsa_domain="mx.example.com",
        policy_string=("3 1 1 " + "00" * 32,),
        failure=FailureType.TLSA_INVALID,
        sending_mta_ip="192.0.2.25",
        receiving_mx_hostname="mx.example.com",
        receiving_mx_helo="mx.example.com",
        receiving_ip="2001:db8::25",
        reason="certificate verify failed",
        delivery="postfix",
    )


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        (201, "starttls-not-supported"),
        (202, "certificate-host-mismatch"),
        (203, "certificate-not-trusted"),
        (204, "certificate-expired"),
        (205, "validation-failure"),
        (301, "sts-policy-fetch-error"),
        (302, "sts-policy-invalid"),
        (303, "sts-webpki-invalid"),
        (304, "tlsa-invalid"),
        (305, "dnssec-invalid"),
        (306, "dane-required"),
        (999, "validation-failure"),  # one that is newer than we
    ],
)
def test_each_code_of_tlsrpt_h(code: int, failure: str) -> None:
    assert parsed(datagram(sts_policy(detail(code)))).failure == failure


@pytest.mark.parametrize(
    ("data", "failure"),
    [
        (datagram(policy(NONE)), None),
        (datagram(policy(NONE), version=None), None),  # libtlsrpt before 0.5
        (datagram(sts_policy(), more={"new": ["things"]}), None),
        (datagram(sts_policy(failed=True)), "validation-failure"),  # failed, and does not say how
        (datagram(sts_policy(detail(), failed=False)), None),  # a failure that was mended counts as a success
        (datagram(sts_policy(detail(204), detail(202))), "certificate-expired"),  # one session, counted once
        (datagram(policy(NONE, failed=True) | {"failure-details": "none"}), "validation-failure"),
    ],
)
def test_tolerated(data: bytes, failure: str | None) -> None:
    assert parsed(data).failure == failure


def test_several_policies_are_several_sessions() -> None:
    sessions = parse_datagram(datagram(sts_policy(), tlsa_policy(detail())), AT)
    assert [(one.policy_type, one.failure is None) for one in sessions] == [("sts", True), ("tlsa", False)]


@pytest.mark.parametrize("name", ["EXAMPLE.com", "example.com.", "example.com"])
def test_one_domain_has_one_name(name: str) -> None:
    assert parsed(datagram(policy(NONE), domain=name)).policy_domain == "example.com"


def test_what_the_peer_wrote_cannot_break_a_line() -> None:
    session = parsed(
        datagram(
            sts_policy(
                detail(h="250-mx\x1b[2J\u202e evil\r\n250 x", f="a\nb\x00" + "c" * 9_999, n="not a name")
            )
        )
    )
    assert session.receiving_mx_helo == "mx?[2J?"
    assert session.reason is not None
    assert session.reason.startswith("a?b?cc")
    assert len(session.reason) == MAX_TEXT_CHARACTERS
    assert session.receiving_mx_hostname is None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b'"example.com"',
        b"\xff\xfe",
        b"[" * 200_000,  # deep
        b'{"d":' + b"9" * 50_000 + b"}",  # a number that would take long
        b" " * (MAX_DATAGRAM_BYTES + 1),
        datagram(sts_policy(), version="2"),
        datagram(),
        datagram(*[policy(NONE)] * 101),
        datagram(policy(NONE), domain=""),
        datagram(policy(NONE), domain="not a domain"),
        datagram(policy(NONE), d=7),
        datagram(policy(3)),
        datagram(policy(TLSA) | {"policy-type": True}),
        datagram(policy(TLSA) | {"f": 2}),
        datagram(policy(TLSA) | {"f": "0"}),
        datagram(policy(TLSA) | {"f": None}),
        datagram(policy(TLSA) | {"policy-type": [1]}),
        datagram(sts_policy(detail()) | {"failure-details": [1]}),
        json.dumps({"d": "example.com", "policies": {"policy-type": 1}}).encode(),
        json.dumps({"d": "example.com", "policies": ["x"]}).encode(),
    ],
    ids=range(23),
)
def test_bad(data: bytes) -> None:
    with pytest.raises(DatagramError):
        parse_datagram(data, AT)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
keys = st.sampled_from(
    ["policy-type", "policy-domain", "policy-string", "mx-host", "failure-details", "t", "f"]
)


@given(st.dictionaries(keys, json_values), st.lists(json_values, max_size=2))
def test_whatever_comes_is_sessions_or_an_error(broken: dict[str, Any], details: list[Any]) -> None:
    whole = sts_policy(detail()) | {"failure-details": details} | broken
    try:
        sessions = parse_datagram(datagram(whole), AT)
    except DatagramError:
        return
    for session in sessions:
        texts = [
            *session.policy_string,
            *session.mx_host,
            session.reason or "",
            session.receiving_mx_helo or "",
        ]
        assert all(text.isprintable() and len(text) <= MAX_TEXT_CHARACTERS for text in texts)


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=200))
def test_a_damaged_datagram_is_an_error_or_still_one(noise: bytes, at: int) -> None:
    for data in mixed():
        try:
            parse_datagram(data[:at] + noise + data[at + len(noise) :], AT)
        except DatagramError:
            continue
