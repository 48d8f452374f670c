import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.auth.dkim.tags import MAX_TAGS, DkimError, parse_tags
from gateway.auth.results import Problem

GOOD = [
    (b"a=1", {"a": "1"}, "one tag"),
    (b"a=1;", {"a": "1"}, "a semicolon at the end"),
    (
        b" a = 1 ;\r\n\tB_2= x y ; \r\n ",
        {"a": "1", "B_2": "x y"},
        "white space and folding anywhere between words",
    ),
    (b"a=;b=", {"a": "", "b": ""}, "values may be empty"),
    (b"a=b=c", {"a": "b=c"}, "a value may hold an equals sign"),
    (b"a=1;A=2", {"a": "1", "A": "2"}, "names have case"),
    ("a=bücher".encode(), {"a": "bücher"}, "UTF-8, RFC 8616"),
]
BAD = [
    (b"", "nothing"),
    (b" ; ", "no tag"),
    (b";a=1", "an empty tag at the start"),
    (b"a=1;;b=2", "an empty tag in the middle"),
    (b"a=1;;", "two semicolons at the end"),
    (b"a", "no equals sign"),
    (b"=1", "no name"),
    (b"1a=1", "a name begins with a letter"),
    (b"a b=1", "white space in a name"),
    (b"a-b=1", "a hyphen in a name"),
    (b"a=1\x00", "NUL"),
    (b"a=1\x7f", "DEL"),
    (b"a=1\r\nb=2", "a CRLF that folds nothing"),
    (b"a=1\n b", "a bare LF"),
    (b"a=\r b", "a bare CR"),
    (b"a=\xff", "not UTF-8"),
    (b";".join(b"a%d=" % number for number in range(MAX_TAGS + 1)), "too many"),
]


@pytest.mark.parametrize(("text", "tags", "why"), GOOD)
def test_good(text: bytes, tags: dict[str, str], why: str) -> None:
    assert parse_tags(text) == tags, why


@pytest.mark.parametrize(("text", "why"), BAD)
def test_bad(text: bytes, why: str) -> None:
    with pytest.raises(DkimError) as caught:
        parse_tags(text)
    assert caught.value.problem is Problem.DKIM_SYNTAX, why


def test_a_tag_twice_has_a_problem_of_its_own() -> None:
    with pytest.raises(DkimError) as caught:
        parse_tags(b"a=1; b=2; a=1")
    assert caught.value.problem is Problem.DKIM_DUPLICATE_TAG


def test_as_many_tags_as_allowed() -> None:
    assert len(parse_tags(b";".join(b"a%d=" % number for number in range(MAX_TAGS)))) == MAX_TAGS


@given(st.binary() | st.text(alphabet="ab=; \t\r\n\x00ü").map(str.encode))
def test_anything_is_read_or_refused(text: bytes) -> None:
    try:
        tags = parse_tags(text)
    except DkimError:
        return
    written = "; ".join(f"{name}={value}" for name, value in tags.items())
    assert parse_tags(written.encode()) == tags
