import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.dkim.canonical import Canonicalization
from gateway.auth.dkim.signature import Signature, dkim_signature, message_signature, parse_signature
from gateway.auth.dkim.tags import DkimError, parse_tags
from gateway.auth.results import Problem

HASH = "A" * 43 + "="
TAGS = {"v": "1", "a": "rsa-sha256", "d": "example.org", "s": "sel", "h": "from:to", "bh": HASH, "b": "QUJD"}


def read(**changes: str | None) -> Signature:
    tags = {**TAGS, **changes}
    return parse_signature(
        "; ".join(f"{name}={text}" for name, text in tags.items() if text is not None).encode()
    )


def test_defaults() -> None:
    signature = read()

    assert signature.terms.header_canonicalization is Canonicalization.SIMPLE
    assert signature.terms.body_canonicalization is Canonicalization.SIMPLE
    assert signature.terms.auid == "@example.org"
    assert (signature.terms.body_length, signature.timestamp, signature.expiration) == (None, None, None)
    assert signature.terms.key_name == "sel._domainkey.example.org"
    assert signature.signature == b"ABC"


@pytest.mark.parametrize("name", ["v", "a", "d", "s", "h", "bh", "b"])
def test_each_required_tag_is_required(name: str) -> None:
    with pytest.raises(DkimError) as caught:
        read(**{name: None})
    assert caught.value.problem is Problem.DKIM_MISSING_TAG


SYNTAX = [
    ({"b": ""}, "an empty signature"),
    ({"b": "QUJ"}, "base64 without its padding"),
    ({"b": "QU-D"}, "another alphabet"),
    ({"b": "QUJD===="}, "padding after the end"),
    ({"h": ""}, "no field signed"),
    ({"h": "from:"}, "a name that is empty"),
    ({"h": "from to"}, "white space within a name"),
    ({"h": "fröm"}, "field names are ASCII"),
    ({"d": "[192.0.2.1]"}, "an address"),
    ({"d": "a..b"}, "an empty label"),
    ({"d": "a" * 64 + ".example"}, "a label over 63"),
    ({"s": ""}, "no selector"),
    ({"s": "*"}, "not a name"),
    ({"i": "joe"}, "no @"),
    ({"i": "joe=4@example.org"}, "half a quoted-printable byte"),
    ({"i": "joe=ff@example.org"}, "hexadecimal is in upper case"),
    ({"i": "joe=FF@example.org"}, "not UTF-8"),
    ({"i": "joe=00@example.org"}, "a NUL in hiding"),
    ({"i": "j" * 600 + "@example.org"}, "too long"),
    ({"t": "1" * 13}, "t= has at most 12 digits"),
    ({"t": "1.5"}, "not a whole number"),
    ({"x": ""}, "no digit"),
    ({"l": "٣"}, "a digit, but not an ASCII one"),
]


@pytest.mark.parametrize(("changes", "why"), SYNTAX)
def test_syntax(changes: dict[str, str | None], why: str) -> None:
    with pytest.raises(DkimError) as caught:
        read(**changes)
    assert caught.value.problem is Problem.DKIM_SYNTAX, why


def test_base64_may_be_folded_anywhere() -> None:
    assert read(b="Q \r\n\tUJ D").signature == b"ABC"


def test_an_arc_message_signature_is_read_by_the_same_code() -> None:
    text = f"i=2; a=rsa-sha256; d=example.org; s=sel; h=from; bh={HASH}; b=QUJD"

    assert message_signature(parse_tags(text.encode()), auid=None).terms.auid == "@example.org"


Reading = Signature | Problem


def reading(value: bytes) -> Reading:
    try:
        return parse_signature(value)
    except DkimError as error:
        return error.problem


def reading_of_the_long_way(value: bytes) -> Reading:
    try:
        return dkim_signature(parse_tags(value))
    except DkimError as error:
        return error.problem


PIECES = st.sampled_from(
    [
        *[f"{name}={value}" for name, value in TAGS.items()],
        *[
            "t=100",
            "x=200",
            "x=50",
            "t=",
            "l=3",
            "b=QUJD",
            f"bh={HASH}",
            "z=b=x",
            "i=a@example.org",
            "c=relaxed",
        ],
        *[
            ";",
            "; ",
            ";",
            ";",
            ";\r\n ",
            ";\r\n\t",
            " ",
            "\t",
            "=",
            "b",
            "\r\n",
            "\r",
            "ü",
            "\x7f",
            "\r\n \r\n ",
        ],
    ]
)


@given(st.permutations([*TAGS.items()]), st.lists(st.tuples(st.integers(0, 300), PIECES), max_size=4))
def test_a_known_signer_is_read_as_any_other(
    tags: list[tuple[str, str]], junk: list[tuple[int, str]]
) -> None:
    """The shorter way for what was seen before must never be a laxer one."""
    text = "; ".join(f"{name}={value}" for name, value in tags)
    for at, piece in junk:
        text = text[:at] + piece + text[at:]
    value = text.encode()
    for _ in range(2):  # the second time its terms are known
        assert reading(value) == reading_of_the_long_way(value)


def test_what_one_message_says_is_not_taken_for_the_next() -> None:
    first, second = read(b="QUJD", t="100"), read(b="REVG", t="200", x="300")
    assert (first.signature, first.timestamp, first.expiration) == (b"ABC", 100, None)
    assert (second.signature, second.timestamp, second.expiration) == (b"DEF", 200, 300)
    assert read(h="from:subject").terms.signed_fields == (b"from", b"subject")
    assert read(d="example.net").terms.domain == "example.net"


VALUES = st.sampled_from([*TAGS.values(), "", "simple", "relaxed/x", "0", "@", "joe@a.example.org", "ü", ":"])


@given(
    st.dictionaries(st.sampled_from("vabdhsitxlqcz") | st.just("bh"), VALUES) | st.just({}),
    st.binary(max_size=30),
)
def test_anything_is_read_or_refused(changes: dict[str, str], junk: bytes) -> None:
    text = "; ".join(f"{name}={value}" for name, value in {**TAGS, **changes}.items()).encode()
    for value in (text, text + junk, junk + text):
        signature = reading(value)
        assert signature == reading_of_the_long_way(value)
        if isinstance(signature, Problem):
            continue
        assert signature.terms.domain.isascii()
        assert signature.terms.auid.isprintable()
