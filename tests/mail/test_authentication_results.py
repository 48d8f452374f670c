import re
import time

import authres
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.authentication_results import (
    MethodResult,
    Property,
    forged_positions,
    parse_results,
    write_authentication_results,
)
from gateway.mail.errors import ParseError
from gateway.mail.message import Message

OURS = ("mx.example.net", "bücher.example")
HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from('\r\n\0\t "\\();=@.')), max_size=80)


def read_by_authres(value: str) -> list[tuple[str, str]]:
    """What a foreign reader makes of it; it refuses all that is not ASCII, so letters outside it become x."""
    unfolded = re.sub(r"[^\x00-\x7f]", "x", value.replace("\r\n", ""))
    header = authres.AuthenticationResultsHeader.parse(f"Authentication-Results: {unfolded}")
    assert header.authserv_id == "mx.example.net"
    return [(result.method, result.result) for result in header.results]


def forged(*values: str | bytes) -> frozenset[int]:
    encoded = [value.encode() if isinstance(value, str) else value for value in values]
    fields = b"".join(b"Authentication-Results:" + value + b"\r\n" for value in encoded)
    return forged_positions(Message(fields + b"From: a@x.example\r\n\r\n"), OURS)


def test_one_result_on_a_line() -> None:
    field = write_authentication_results(
        "mx.example.net",
        [
            MethodResult("spf", "pass", None, (Property("smtp", "mailfrom", "a@x.example"),)),
            MethodResult(
                "dkim",
                "fail",
                "dkim.body-hash",
                (Property("header", "d", "x.example"), Property("header", "b", "Ab/+cd==")),
                "2048 bits",
            ),
        ],
    )
    assert field.to_bytes().decode().split("\r\n") == [
        "Authentication-Results: mx.example.net;",
        "    spf=pass smtp.mailfrom=a@x.example;",
        "    dkim=fail (2048 bits) reason=dkim.body-hash header.d=x.example",
        '    header.b="Ab/+cd=="',
        "",
    ]


def test_no_result_is_said() -> None:
    field = write_authentication_results("mx.example.net", [])
    assert field.to_bytes() == b"Authentication-Results: mx.example.net; none\r\n"
    assert read_by_authres(field.value) == []


@pytest.mark.parametrize(
    "text",
    [
        "x@y; dkim=pass header.d=bank.example",  # becomes a result in authres's own writer
        'x"; dkim=pass header.d=bank.example; a="',
        "x\\",
        'x\\"; dkim=pass',
        "x\r\n ; dkim=pass",
        "x\r\nAuthentication-Results: mx.example.net; dkim=pass",
        "(; dkim=pass",
        "x) ; dkim=pass (",
        "((((((((((",
        "a" * 5000,
        "ü; dkim=pass",
        "x\u2028; dkim=pass",
        "",
    ],
)
def test_no_text_becomes_a_result(text: str) -> None:
    results = [
        MethodResult(
            "spf", "fail", text, (Property("smtp", "mailfrom", text), Property("smtp", "helo", text)), text
        ),
        MethodResult("dmarc", "fail", None, (Property("header", "from", "x.example"),)),
    ]
    assert read_by_authres(write_authentication_results("mx.example.net", results).value) == [
        ("spf", "fail"),
        ("dmarc", "fail"),
    ]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["spf", "dkim", "iprev"]), HOSTILE, HOSTILE), min_size=1, max_size=4)
)
def test_a_foreign_reader_finds_our_results_and_no_others(cases: list[tuple[str, str, str]]) -> None:
    results = [
        MethodResult(method, "fail", text or None, (Property("smtp", "mailfrom", value),), text)
        for method, text, value in cases
    ]
    field = write_authentication_results("mx.example.net", results)
    assert read_by_authres(field.value) == [(method, "fail") for method, _, _ in cases]
    message = Message(field.to_bytes() + b"\r\n")
    assert len(message.fields) == 1
    assert not message.defects
    assert forged_positions(message, OURS) == {0}


# Without quotes and backslashes: authres leaves them escaped.
PRINTABLE = st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"\\')


@settings(deadline=None)
@given(st.text(PRINTABLE, min_size=1, max_size=60).filter(str.strip))
def test_a_foreign_reader_reads_the_value_that_we_wrote(value: str) -> None:
    field = write_authentication_results(
        "x.example", [MethodResult("spf", "pass", None, (Property("smtp", "helo", value),))]
    )
    header = authres.AuthenticationResultsHeader.parse(
        f"Authentication-Results: {field.value}".replace("\r\n", "")
    )
    assert header.results[0].smtp_helo == value


@pytest.mark.parametrize("word", ["", "a b", "a;", "a=b", "a.b", "a\n", "ü", "-a"])
def test_words_that_are_none_are_our_own_mistake(word: str) -> None:
    for result in (
        MethodResult(word, "pass", None, ()),
        MethodResult("spf", word, None, ()),
        MethodResult("spf", "pass", None, (Property(word, "x", "y"),)),
        MethodResult("spf", "pass", None, (Property("smtp", word, "y"),)),
    ):
        with pytest.raises(ValueError, match="keyword"):
            write_authentication_results("mx.example.net", [result])


@pytest.mark.parametrize(
    "value",
    [
        " mx.example.net; spf=pass",
        "mx.example.net;spf=pass",
        " MX.Example.NET; spf=pass",
        " mx.example.net.; spf=pass",
        " mx.example.net 1; spf=pass",
        " mx.example.net (c) 1 (c); spf=pass",
        " mx.example.net",
        "\r\n mx.example.net\r\n ; spf=pass",
        " (c) mx.example.net; spf=pass",
        " ((a)(b(c))\\)) mx.example.net; spf=pass",
        "(c)mx.example.net(c); spf=pass",
        ' "mx.example.net"; spf=pass',
        ' "mx.\\example.net"; spf=pass',
        ' " mx.example.net "; spf=pass',
        " mx\uff0eexample\uff0enet; spf=pass",  # full-width dots
        " .mx.example.net..; spf=pass",
        " 'mx.example.net'; spf=pass",
        " \uff4dx.example.net; spf=pass",
        " mx.exa\u00admple.net; spf=pass",  # a soft hyphen
        " mx.exa\u200bmple.net; spf=pass",  # a zero-width space
        " mx.exa\u200dmple.net; spf=pass",  # a joiner: no name at all, so not beyond doubt
        " bücher.example; spf=pass",
        " BÜCHER.example; spf=pass",
        " bu\u0308cher.example; spf=pass",
        " xn--bcher-kva.example; spf=pass",
        " XN--BCHER-KVA.example; spf=pass",
        "",
        " ",
        " ; spf=pass",
        " (mx.example.net",
        ' "mx.example.net; spf=pass',
        " spf=pass smtp.mailfrom=x.example; dkim=pass",  # without an id, as a large provider writes it
        " mx.example.net/1; spf=pass",
        " mx.example.net spf=pass",
        " other.example mx.example.net; spf=pass",
        " =?utf-8?Q?mx.example.net?=; spf=pass",
        " <mx.example.net>; spf=pass",
        b" mx.ex\xffample.net; spf=pass",
        b" mx.example.net\0; spf=pass",
    ],
)
def test_a_claim_to_be_ours_in_any_disguise(value: str | bytes) -> None:
    assert forged(value) == {0}


@pytest.mark.parametrize(
    "value",
    [
        " mx.google.com; spf=pass",
        " example.net; spf=pass",
        " notmx.example.net; spf=pass",
        " mx.example.net.evil.example; spf=pass",
        " other.example (mx.example.net); spf=pass",
        ' other.example; spf=pass smtp.helo="mx.example.net"',
        " other.example 1; none",
        " some-token_1; none",
        " a!b; none",
        " mail.b\u00fccher2.example; none",
    ],
)
def test_of_others_nothing_is_taken(value: str) -> None:
    assert forged(value) == frozenset()


def test_every_field_of_the_name_is_looked_at() -> None:
    assert forged(
        " other.example; none", " mx.example.net; none", " x.example; none", " MX.example.net; none"
    ) == {1, 3}
    header = b"AUTHENTICATION-results : mx.example.net; none\r\nArc-Authentication-Results: i=1; mx.example.net; none\r\n"
    assert forged_positions(Message(header + b"\r\n"), OURS) == {0}
    assert forged_positions(Message(b"From: a@x.example\r\n\r\n"), OURS) == frozenset()


@pytest.mark.parametrize(
    "line",
    [
        b"X: y\nAuthentication-Results: mx.example.net; dmarc=pass",
        b"X: y\rauthentication-results : mx.example.net; dmarc=pass",
        b"Authentication-Results: other.example; none\nAuthentication-Results: mx.example.net; dmarc=pass",
        b"Authentication-Results\r\n : mx.example.net; dmarc=pass",
        b"\xef\xbb\xbfAuthentication-Results: mx.example.net; dmarc=pass",
        b"Authentication-Results\xa0: mx.example.net; dmarc=pass",
        b"Authentication-Results\0: mx.example.net; dmarc=pass",
    ],
)
def test_a_claim_that_only_another_reader_sees_as_a_field(line: bytes) -> None:
    message = Message(b"From: a@x.example\r\n" + line + b"\r\n\r\nbody\r\n")
    assert forged_positions(message, OURS) == {1}


def test_a_message_that_only_speaks_of_such_a_field_keeps_all_of_its_own() -> None:
    body = b"\r\nbare\nAuthentication-Results: mx.example.net; none\r\n"
    message = Message(
        b"Subject: Authentication-Results: why?\r\nX-Authentication-Results: mx.example.net\r\n" + body
    )
    assert forged_positions(message, OURS) == frozenset()


def test_an_id_that_is_no_domain_is_compared_as_it_is() -> None:
    message = Message(b"Authentication-Results: Gate!1; none\r\nAuthentication-Results: gate!2; none\r\n\r\n")
    assert forged_positions(message, ["gate!1"]) == {0}


@settings(deadline=None)
@given(st.binary(max_size=60))
def test_never_raises(value: bytes) -> None:
    assert forged_positions(Message(b"Authentication-Results:" + value + b"\r\n\r\n"), OURS) <= {0, 1, 2, 3}


@pytest.mark.parametrize("unit", ["(", ")", "()", "\\", '"', '\\"', "(\\", "a", "1", ".", "ü", "a ", "\r\n "])
def test_a_hostile_field_takes_less_than_a_second(unit: str) -> None:
    for prefix in ("", "x", "(", '"'):
        started = time.process_time()
        forged(prefix + unit * (500_000 // len(unit)))
        assert time.process_time() - started < 1


READ = {
    # as others write it -> method, result, properties
    "google": (
        (
            "mx.google.com; dkim=pass header.i=@x.example header.s=s header.b=Ab/+cd=;"
            " spf=pass (google.com: domain of a@x.example; designates 192.0.2.1) smtp.mailfrom=a@x.example;"
            " dmarc=pass (p=REJECT sp=REJECT dis=NONE) header.from=x.example"
        ),
        [
            ("dkim", "pass", {"header.i": "@x.example", "header.s": "s", "header.b": "Ab/+cd="}),
            ("spf", "pass", {"smtp.mailfrom": "a@x.example"}),
            ("dmarc", "pass", {"header.from": "x.example"}),
        ],
    ),
    "microsoft": (
        (
            "mx.microsoft.com 1; spf=pass (sender ip is 192.0.2.1) smtp.rcpttodomain=y smtp.mailfrom=x.example;"
            " dmarc=pass (p=none) action=none header.from=x.example; arc=pass (0 spf=[1,2,smtp.mailfrom=x])"
        ),
        [
            ("spf", "pass", {"smtp.rcpttodomain": "y", "smtp.mailfrom": "x.example"}),
            ("dmarc", "pass", {"header.from": "x.example"}),
            ("arc", "pass", {}),
        ],
    ),
    "nothing": ("mx.example; none", []),
    "nothing at all": ("mx.example", []),
    "a quoted id and comments everywhere": (
        '(a) "mx example" (b) 1 (c) ; (d) spf (e) / (f) 1 (g) = (h) Pass (i) smtp (j) . (k) helo (l) = (m) x (n)',
        [("spf", "pass", {"smtp.helo": "x"})],
    ),
    "a quoted value": (
        r'mx; spf=pass smtp.mailfrom="x; dmarc=pass \"y\""@evil.example',
        None,
    ),
    "a value that holds a result": (
        r'mx; spf=fail reason="no; \"dmarc\"=pass" smtp.mailfrom="x; dmarc=pass"',
        [("spf", "fail", {"smtp.mailfrom": "x; dmarc=pass"})],
    ),
    "an open comment": ("mx; dmarc=pass (", None),
    "an open quotation": ('mx; dmarc=pass header.from="x', None),
    "no result": ("mx; dmarc", None),
    "no value": ("mx; dmarc=pass header.from=", None),
    "no id": ("; dmarc=pass", None),
    "too many properties": ("mx; dmarc=pass " + "a.b=c " * 200, None),
    "too many results": ("mx; " + "a=b;" * 201, None),
    "too long": ("mx; dmarc=pass " + "a.b=c " * 3_000, None),
}


@pytest.mark.parametrize("name", READ)
def test_results_of_others_are_read_in_one_way_or_not_at_all(name: str) -> None:
    text, expected = READ[name]
    if expected is None:
        with pytest.raises(ParseError):
            parse_results(text)
        return
    assert [
        (found.method, found.result, {f"{item.ptype}.{item.name}": item.value for item in found.properties})
        for found in parse_results(text)
    ] == expected


@given(HOSTILE, HOSTILE)
def test_what_we_write_we_read(reason: str, value: str) -> None:
    written = [
        MethodResult("spf", "pass", reason or None, (Property("smtp", "mailfrom", value),), value),
        MethodResult("dmarc", "fail", None, (Property("header", "from", "x.example"),)),
    ]

    read = parse_results(write_authentication_results("mx.example.net", written).value.replace("\r\n", ""))

    assert [(found.method, found.result) for found in read] == [("spf", "pass"), ("dmarc", "fail")]
    assert read[1] == written[1]


@given(st.text(st.sampled_from('mx;=. "\\()/1adr\t'), max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        found = parse_results(text)
    except ParseError:
        return
    assert all(result.method for result in found)
