import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.postfix.question import (
    MAX_QUESTION_BYTES,
    Kind,
    Question,
    QuestionError,
    parse_question,
)


def parsed(key: str) -> Question:
    return parse_question(f"postfix {key}".encode())


@pytest.mark.parametrize(
    ("key", "kind", "name"),
    [
        ("example.com", Kind.DOMAIN, "example.com"),
        ("Example.COM", Kind.DOMAIN, "example.com"),
        ("example.com.", Kind.DOMAIN, "example.com"),
        ("bücher.example", Kind.DOMAIN, "xn--bcher-kva.example"),
        ("BÜCHER.example", Kind.DOMAIN, "xn--bcher-kva.example"),
        ("xn--bcher-kva.example", Kind.DOMAIN, "xn--bcher-kva.example"),
        ("i❤.example", Kind.DOMAIN, "xn--i-7iq.example"),  # IDNA 2008 forbids it, Postfix delivers to it
        ("[mail.example.com]", Kind.HOST, "mail.example.com"),
        ("[Mail.Example.Com]", Kind.HOST, "mail.example.com"),
        ("[192.0.2.1]", Kind.HOST, "[192.0.2.1]"),
        ("[2001:db8::1]", Kind.HOST, "[IPv6:2001:db8::1]"),
        ("[ipv6:2001:DB8::1]", Kind.HOST, "[IPv6:2001:db8::1]"),
        (".example.com", Kind.PARENT, ".example.com"),
        (".com", Kind.PARENT, ".com"),
        ("/var/run/lmtp", Kind.OTHER, "/var/run/lmtp"),
        ("private/dovecot", Kind.OTHER, "private/dovecot"),
        ("exa mple.com", Kind.OTHER, "exa mple.com"),
        ("example..com", Kind.OTHER, "example..com"),
        ("[]", Kind.OTHER, "[]"),
        ("[example.com", Kind.OTHER, "[example.com"),
        ("example.com]", Kind.OTHER, "example.com]"),
        ("[[example.com]]", Kind.OTHER, "[[example.com]]"),
        ("example.com:25:25", Kind.OTHER, "example.com:25:25"),
        ("example.com:", Kind.OTHER, "example.com:"),
        ("a\nb.example.com", Kind.OTHER, "a\nb.example.com"),
        ("a" * 64 + ".example", Kind.OTHER, "a" * 64 + ".example"),
        ("2001:db8::1", Kind.OTHER, "2001:db8::1"),
    ],
)
def test_next_hops(key: str, kind: Kind, name: str) -> None:
    question = parsed(key)
    assert (question.kind, question.name) == (kind, name)


@pytest.mark.parametrize(
    ("key", "smtp_port"),
    [
        ("example.com", True),
        ("example.com:25", True),
        ("example.com:smtp", True),
        ("example.com:587", False),
        ("[mail.example.com]:submission", False),
        ("[mail.example.com]:25", True),
    ],
)
def test_ports(key: str, *, smtp_port: bool) -> None:
    question = parsed(key)
    assert question.kind in {Kind.DOMAIN, Kind.HOST}
    assert question.smtp_port is smtp_port


@pytest.mark.parametrize("name", ["postfix", "x", "QUERY", "query-with-tlsrpt"])
def test_the_maps_name_is_of_no_matter(name: str) -> None:
    assert not parse_question(f"{name} example.com".encode()).with_tlsrpt


@pytest.mark.parametrize("name", ["QUERYwithTLSRPT", "querywithtlsrpt"])
def test_but_for_the_one_that_asks_for_tlsrpt(name: str) -> None:
    assert parse_question(f"{name} example.com".encode()).with_tlsrpt


@pytest.mark.parametrize(
    "request_",
    [b"", b" ", b"postfix", b"postfix ", b" example.com", b"x " + b"a" * MAX_QUESTION_BYTES],
)
def test_bad(request_: bytes) -> None:
    with pytest.raises(QuestionError):
        parse_question(request_)


@given(st.one_of(st.binary(max_size=300), st.text(max_size=300).map(lambda text: b"m " + text.encode())))
def test_anything_is_a_question_or_an_error(data: bytes) -> None:
    try:
        question = parse_question(data)
    except QuestionError:
        return
    if question.kind is Kind.DOMAIN:
        assert question.name.isascii()
        assert parse_question(b"m " + question.name.encode()).name == question.name
