import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.dkim.canonical import Canonicalization
from gateway.auth.dkim.signature import Signature, message_signature, parse_signature
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

    assert signature.header_canonicalization is Canonicalization.SIMPLE
    assert signature.body_canonicalization is Canonicalization.SIMPLE
    assert signature.auid == "@example.org"
    assert (signature.body_length, signature.timestamp, signature.expiration) == (None, None, None)
    assert signature.key_name == "sel._domainkey.example.org"
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

    assert message_signature(parse_tags(text.encode()), auid=None).auid == "@example.org"


VALUES = st.sampled_from([*TAGS.values(), "", "simple", "relaxed/x", "0", "@", "joe@a.example.org", "ü", ":"])


@given(
    st.dictionaries(st.sampled_from("vabdhsitxlqcz") | st.just("bh"), VALUES) | st.just({}),
    st.binary(max_size=30),
)
def test_anything_is_read_or_refused(changes: dict[str, str], junk: bytes) -> None:
    text = "; ".join(f"{name}={value}" for name, value in {**TAGS, **changes}.items()).encode()
    for value in (text, text + junk, junk + text):
        try:
            signature = parse_signature(value)
        except DkimError:
            continue
        assert signature.domain.isascii()
        assert signature.auid.isprintable()
