"""Who logs in, read from the first response of each mechanism."""

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mail.errors import ParseError
from gateway.smtp.sasl import (
    Mechanism,
    decode_response,
    encode_response,
    is_challenge,
    read_login,
    relayed_mechanisms,
)

GOOD = [
    (Mechanism.PLAIN, b"\0ann\0secret", "ann"),
    (Mechanism.PLAIN, b"ann\0ann\0secret", "ann"),
    (Mechanism.PLAIN, b"\0ann@example.net\0 ", "ann@example.net"),
    (Mechanism.PLAIN, "\0jürgen\0pässword".encode(), "jürgen"),
    (Mechanism.LOGIN, b"ann", "ann"),
    (Mechanism.CRAM_MD5, b"ann b 0123456789abcdef0123456789abcdef", "ann b"),
    (Mechanism.SCRAM_SHA_256, b"n,,n=ann,r=fyko+d2lbbFgONRv9qkxdawL", "ann"),
    (Mechanism.SCRAM_SHA_256, b"y,a=ann,n=ann,r=x", "ann"),
    (Mechanism.SCRAM_SHA_1, b"n,,n=a=2Cb=3Dc,r=x,ext=1", "a,b=c"),
    (Mechanism.OAUTHBEARER, b"n,a=ann@example.net,\x01host=h\x01port=587\x01auth=Bearer t\x01\x01", "ann@example.net"),
    (Mechanism.XOAUTH2, b"user=ann@example.net\x01auth=Bearer t\x01\x01", "ann@example.net"),
]  # fmt: skip

BAD = [
    (Mechanism.PLAIN, b"ceo\0ann\0secret"),  # acting as another
    (Mechanism.PLAIN, b"ann\0secret"),  # two parts
    (Mechanism.PLAIN, b"\0ann\0sec\0ret"),  # four
    (Mechanism.PLAIN, b"\0ann\0"),  # no password
    (Mechanism.PLAIN, b"\0\0secret"),  # nobody
    (Mechanism.PLAIN, b"\0ann\xff\0secret"),  # not UTF-8
    (Mechanism.LOGIN, b""),
    (Mechanism.LOGIN, b"ann\r\nMAIL"),
    (Mechanism.LOGIN, b"a" * 256),
    (Mechanism.LOGIN, "ann\u202e".encode()),  # turns the writing round in a log
    (Mechanism.CRAM_MD5, b"ann"),
    (Mechanism.CRAM_MD5, b"ann 0123"),
    (Mechanism.SCRAM_SHA_256, b"p=tls-unique,,n=ann,r=x"),  # bound to a channel that is not downstream's
    (Mechanism.SCRAM_SHA_256, b"n,a=ceo,n=ann,r=x"),
    (Mechanism.SCRAM_SHA_256, b"n,,m=1,n=ann,r=x"),  # an extension that must be understood
    (Mechanism.SCRAM_SHA_256, b"n,,n=a=2cb,r=x"),
    (Mechanism.SCRAM_SHA_256, b"n,,n=ann"),
    (Mechanism.OAUTHBEARER, b"n,,\x01auth=Bearer t\x01\x01"),  # nobody named
    (Mechanism.OAUTHBEARER, b"n,a=ann,\x01auth=Bearer t"),
    (Mechanism.XOAUTH2, b"auth=Bearer t\x01\x01"),
]


@pytest.mark.parametrize(("mechanism", "response", "login"), GOOD)
def test_a_response_that_names_one_user(mechanism: Mechanism, response: bytes, login: str) -> None:
    assert read_login(mechanism, response) == login


@pytest.mark.parametrize(("mechanism", "response"), BAD)
def test_a_response_that_does_not(mechanism: Mechanism, response: bytes) -> None:
    with pytest.raises(ParseError) as caught:
        read_login(mechanism, response)
    assert "secret" not in str(caught.value), "what was sent is never in an error"


@given(st.sampled_from(Mechanism), st.binary(max_size=300))
def test_any_response_names_somebody_or_is_refused(mechanism: Mechanism, response: bytes) -> None:
    try:
        login = read_login(mechanism, response)
    except ParseError:
        return
    assert login.isprintable()
    assert 0 < len(login) <= 255


@given(st.text(max_size=40), st.text(max_size=40), st.text(max_size=40))
def test_plain_is_read_as_it_was_written(acting_as: str, login: str, password: str) -> None:
    try:
        found = read_login(Mechanism.PLAIN, f"{acting_as}\0{login}\0{password}".encode())
    except ParseError:
        return
    assert found == login
    assert acting_as in {"", login}


@pytest.mark.parametrize(
    "text",
    [
        b"YQ",  # no padding
        b"YQ=",
        b"YQ===",
        b"YQ==YQ==",  # two of them
        b"Y Q==",
        b"YQ==\n",
        b"YQ-_",  # the other alphabet
        b"=",
        b"\xff",
    ],
)
def test_what_is_no_base64(text: bytes) -> None:
    with pytest.raises(ParseError):
        decode_response(text)
    assert not is_challenge(text.decode("latin-1"))


@given(st.binary(max_size=400))
def test_a_response_goes_on_as_it_came(content: bytes) -> None:
    text = base64.b64encode(content)
    assert encode_response(decode_response(text)) == text
    assert is_challenge(text.decode())


@given(st.binary(max_size=60))
def test_decoding_agrees_with_its_own_encoding(text: bytes) -> None:
    """Whatever is taken is passed on in the one form that every reader reads alike."""
    try:
        content = decode_response(text)
    except ParseError:
        return
    assert decode_response(encode_response(content)) == content


def test_only_what_can_be_read_and_relayed_is_offered() -> None:
    offered = [
        "LOGIN",
        "PLAIN",
        "GSSAPI",
        "SCRAM-SHA-256-PLUS",
        "SCRAM-SHA-256",
        "EXTERNAL",
        "ANONYMOUS",
        "NTLM",
    ]
    assert relayed_mechanisms(offered) == ("SCRAM-SHA-256", "PLAIN", "LOGIN")
