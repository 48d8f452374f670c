import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.postfix.answer import MAX_ANSWER_BYTES, Outcome, answer, answer_at_once, answer_for_host
from gateway.postfix.question import Kind, Question, parse_question
from gateway.tlspolicy.model import Decision, Demand, StsView, TlsLevel, TlsProblem
from tests.postfix.decisions import DOMAIN, decided, enforced, host, no_route

QUESTION = Question(kind=Kind.DOMAIN, name=DOMAIN)
OTHER_PORT = Question(kind=Kind.DOMAIN, name=DOMAIN, smtp_port=False)
MX, MX2 = host("mx.example.com"), host("mx2.example.com")
DANE, DANE2 = host("mx.example.com", Demand.DANE), host("mx2.example.com", Demand.DANE)
NOT_LISTED = host("evil.example.net", problem=TlsProblem.STS_MX_NOT_LISTED)


def text(decision: Decision, question: Question = QUESTION, *, tlsrpt: bool = False) -> str:
    return answer(question, decision, tlsrpt=tlsrpt).text.decode("ascii")


@pytest.mark.parametrize(
    ("decision", "reply"),
    [
        (decided(TlsLevel.MAY), "NOTFOUND "),
        # Postfix's own default may be `dane` or `encrypt`: the operator's word must be said aloud
        (decided(TlsLevel.MAY, override="may"), "OK may"),
        (decided(TlsLevel.ENCRYPT, override="encrypt"), "OK encrypt"),
        (decided(TlsLevel.DANE, DANE, host("mx2.example.com", Demand.NONE)), "OK dane"),
        (decided(TlsLevel.DANE_ONLY, DANE, DANE2), "OK dane-only"),
        (
            decided(TlsLevel.SECURE, MX, MX2, sts=enforced("mx.example.com", "mx2.example.com")),
            "OK secure match=mx.example.com:mx2.example.com servername=hostname",
        ),
        # a pattern is no name: `.example.com` would let in a certificate for any host below it
        (
            decided(TlsLevel.SECURE, MX, sts=enforced("*.example.com")),
            "OK secure match=mx.example.com servername=hostname",
        ),
        # a host that the policy names and DNS does not (yet) is the domain's own all the same
        (
            decided(TlsLevel.SECURE, MX, sts=enforced("mx.example.com", "new.example.com")),
            "OK secure match=mx.example.com:new.example.com servername=hostname",
        ),
        # the one that is not listed is not said
        (
            decided(TlsLevel.SECURE, NOT_LISTED, MX, sts=enforced("*.example.com")),
            "OK secure match=mx.example.com servername=hostname",
        ),
        # an operator's `secure` binds to the MX hosts, not to the domain's own policy
        (
            decided(TlsLevel.SECURE, MX, override="secure"),
            "OK secure match=mx.example.com servername=hostname",
        ),
        (
            decided(TlsLevel.REFUSE, NOT_LISTED, sts=enforced("*.example.com")),
            "TEMP example.com: mta-sts.mx-not-listed",
        ),
        (decided(TlsLevel.REFUSE, override="refuse"), "TEMP example.com: tls.override-refuse"),
        (
            no_route(TlsLevel.REFUSE, TlsProblem.ROUTE_SERVFAIL),
            "TEMP example.com: route.dns-servfail",
        ),
        # no MX for now, but the policy names hosts: DNS trouble is no reason to defer then
        (
            no_route(TlsLevel.SECURE, TlsProblem.ROUTE_TIMEOUT, enforced("mx.example.com")),
            "OK secure match=mx.example.com servername=hostname",
        ),
        # with a wildcard alone nothing exact can be said: TEMP, not something weaker
        (
            no_route(TlsLevel.SECURE, TlsProblem.ROUTE_TIMEOUT, enforced("*.example.com")),
            "TEMP example.com: route.dns-timeout",
        ),
    ],
)
def test_each_decision_in_postfix_words(decision: Decision, reply: str) -> None:
    assert text(decision) == reply


@pytest.mark.parametrize(
    ("decision", "reply"),
    [
        # TLSA records of port 25 say nothing of port 587; Postfix looks there itself
        (decided(TlsLevel.DANE_ONLY, DANE), "OK dane"),
        (
            decided(TlsLevel.DANE_ONLY, DANE, override="dane-only"),
            "OK dane-only",
        ),  # the operator's word is kept
        (
            decided(TlsLevel.DANE_ONLY, DANE, sts=enforced("mx.example.com")),
            "OK secure match=mx.example.com servername=hostname",
        ),
        # bound by DANE at port 25, not by the policy: at another port it is not one of the domain's own
        (
            decided(
                TlsLevel.DANE_ONLY, DANE, host("mx.example.net", Demand.DANE), sts=enforced("*.example.com")
            ),
            "OK secure match=mx.example.com servername=hostname",
        ),
        (
            decided(TlsLevel.SECURE, MX, sts=enforced("mx.example.com")),
            "OK secure match=mx.example.com servername=hostname",
        ),
    ],
)
def test_another_port(decision: Decision, reply: str) -> None:
    assert text(decision, OTHER_PORT) == reply


HOSTILE_NAMES = [
    "hostname",  # Postfix's strategy that believes any certificate which fits the MX record's name
    "nexthop",
    "dot-nexthop",
    ".example.com",
    "mx.example.com servername=evil.example.net",
    "mx.example.com:evil.example.net",
    "mx.example.com,protocols=sslv3",
    "mx.example.com\x00",
    "mx.example.com\n200:OK may",
    "{mx.example.com}",
    "mx..example.com",
    "-mx.example.com",
    "MX.EXAMPLE.COM",
    "mx.exämple.com",
    "a" * 64 + ".example.com",
    ".".join(["a" * 60] * 5),
    "[192.0.2.1]",
    "\\046.example.com",
    "",
]


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_name_that_is_none_enters_no_answer(name: str) -> None:
    alone = decided(TlsLevel.SECURE, host(name), sts=enforced(name))
    assert text(alone).startswith("TEMP example.com: ")
    beside = decided(TlsLevel.SECURE, MX, host(name), sts=enforced("mx.example.com", name, "mx2.example.com"))
    assert text(beside) == "OK secure match=mx.example.com:mx2.example.com servername=hostname"


SECURE = decided(TlsLevel.SECURE, MX, sts=enforced("mx.example.com", "*.mail.example.com"))


def test_tlsrpt_attributes_are_those_of_postfix_310() -> None:
    assert text(SECURE, tlsrpt=True) == (
        "OK secure match=mx.example.com servername=hostname"
        " policy_type=sts policy_domain=example.com policy_ttl=60"
        " mx_host_pattern=mx.example.com mx_host_pattern=*.mail.example.com"
        " { policy_string = version: STSv1 } { policy_string = mode: enforce }"
        " { policy_string = mx: mx.example.com } { policy_string = mx: *.mail.example.com }"
        " { policy_string = max_age: 86400 }"
    )


def test_the_maps_name_asks_for_them_too() -> None:
    question = parse_question(b"QUERYwithTLSRPT example.com")
    assert text(SECURE, question) == text(SECURE, tlsrpt=True)


@pytest.mark.parametrize(
    "decision",
    [
        decided(TlsLevel.MAY, sts=enforced("mx.example.com", mode="testing")),
        decided(TlsLevel.DANE_ONLY, DANE),
        decided(TlsLevel.SECURE, MX, override="secure"),
        decided(TlsLevel.REFUSE, NOT_LISTED),
    ],
)
def test_no_other_answer_has_them(decision: Decision) -> None:
    """TLSRPT_README: "It is an error to specify these attributes for a non-STS policy"."""
    assert "policy_" not in text(decision, tlsrpt=True)


@pytest.mark.parametrize(
    "line",
    [
        "mode: enforce } policy_failure=sts-policy-invalid { policy_string = x: y",
        "mode: {",
        "mode: enforce\nmode: none",
        "mode:\x00enforce",
        "mode: enforce, policy_ttl=999999",
        "möde: enforce",
        "x: " + "y" * 400,
    ],
)
def test_a_policy_line_that_could_end_its_attribute_is_left_out(line: str) -> None:
    sts = StsView(mode="enforce", mx=("mx.example.com",), lines=("version: STSv1", line))
    said = text(decided(TlsLevel.SECURE, MX, sts=sts), tlsrpt=True)
    assert said.endswith("mx_host_pattern=mx.example.com { policy_string = version: STSv1 }")


@pytest.mark.parametrize("lines", [(), ("{}",), ("version STSv1",)])
def test_without_lines_there_are_no_attributes(lines: tuple[str, ...]) -> None:
    """Postfix 3.10 follows lines and patterns without looking whether they are there."""
    sts = StsView(mode="enforce", mx=("mx.example.com",), lines=lines)
    said = text(decided(TlsLevel.SECURE, MX, sts=sts), tlsrpt=True)
    assert said == "OK secure match=mx.example.com servername=hostname"


def test_a_giant_policy_costs_its_attributes_and_not_its_protection() -> None:
    patterns = tuple(f"{'x' * 60}.{number}.{'y' * 60}.{'z' * 60}.example.com" for number in range(500))
    said = text(decided(TlsLevel.SECURE, MX, sts=enforced("mx.example.com", *patterns)), tlsrpt=True)
    assert said.startswith("OK secure match=mx.example.com:x")
    assert len(said) < MAX_ANSWER_BYTES
    assert "policy_type" not in said


@pytest.mark.parametrize(
    ("override", "reply"),
    [
        (None, "NOTFOUND "),
        (TlsLevel.MAY, "OK may"),
        (TlsLevel.ENCRYPT, "OK encrypt"),
        (TlsLevel.SECURE, "OK secure match=mail.example.com servername=hostname"),
        (TlsLevel.DANE_ONLY, "OK dane-only"),
        (TlsLevel.REFUSE, "TEMP mail.example.com: tls.override-refuse"),
    ],
)
def test_a_host_in_brackets_has_only_the_operators_word(override: TlsLevel | None, reply: str) -> None:
    question = parse_question(b"postfix [mail.example.com]:587")
    assert answer_for_host(question, override).text.decode() == reply


def test_an_address_cannot_have_a_certificate() -> None:
    question = parse_question(b"postfix [192.0.2.1]")
    assert answer_for_host(question, TlsLevel.SECURE).outcome is Outcome.TEMP


@pytest.mark.parametrize("key", [".example.com", ".com", "/run/lmtp", "a b"])
def test_what_needs_no_look_up(key: str) -> None:
    found = answer_at_once(parse_question(b"postfix " + key.encode()))
    assert found is not None
    assert found.text == b"NOTFOUND "


_GRAMMAR = re.compile(
    r"OK secure match=[a-z0-9.:_-]+ servername=hostname"
    r"(?: policy_type=sts policy_domain=[a-z0-9._-]+ policy_ttl=[0-9]+(?: mx_host_pattern=[*a-z0-9._-]+)+"
    r"(?: \{ policy_string = [a-z_]+: [!-z|~]+ \})+)?"
    r"|TEMP [a-z0-9 .:;,_?\[\]-]+"
)


@given(
    st.lists(st.one_of(st.text(max_size=30), st.sampled_from(HOSTILE_NAMES)), max_size=5),
    st.lists(st.text(max_size=30), max_size=5),
    st.lists(st.text(max_size=30), max_size=5),
)
def test_whatever_strangers_write_the_answer_is_one_of_ours(
    names: list[str], patterns: list[str], lines: list[str]
) -> None:
    sts = StsView(mode="enforce", mx=tuple(patterns), lines=tuple(lines))
    said = text(decided(TlsLevel.SECURE, *map(host, names), sts=sts), tlsrpt=True)
    assert _GRAMMAR.fullmatch(said), said
