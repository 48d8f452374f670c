import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.headers import (
    FOLD_AT,
    INDENT,
    MAX_TEXT_BYTES,
    break_text,
    clean,
    comment,
    fold_field,
    quote_pvalue,
    quote_value,
)
from gateway.mail.message import Message

HOSTILE = st.text(st.one_of(st.characters(), st.sampled_from('\r\n\0\t "\\();=@')), max_size=500)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("pass", "pass"),
        ("a-b_c.d+e", "a-b_c.d+e"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a;b", '"a;b"'),
        ("a=b", '"a=b"'),
        ("a/b", '"a/b"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("a\r\nB: c\0", '"a??B: c?"'),
        ("a@x.example", '"a@x.example"'),
        ("2001:db8::1", '"2001:db8::1"'),
        ("jörg", '"jörg"'),
        ("a\u202eb\u2028c\u00adÿ", '"a?b?c?ÿ"'),  # turns the writing, ends a line, shows as nothing
        ("\ud800", '"?"'),
    ],
)
def test_value(text: str, value: str) -> None:
    assert quote_value(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a@x.example", "a@x.example"),
        ("bounce+a=b.example/c@x.example", "bounce+a=b.example/c@x.example"),
        ("@x.example", "@x.example"),  # DKIM's i= without a local part
        ("x.example", "x.example"),
        ("x@y; dkim=pass", '"x@y; dkim=pass"'),
        ("x@y dkim=pass", '"x@y dkim=pass"'),
        ('"a b"@x.example', '"\\"a b\\"@x.example"'),
        ("a@b@x.example", '"a@b@x.example"'),
        ("a..b@x.example", '"a..b@x.example"'),
        ("a@[192.0.2.1]", '"a@[192.0.2.1]"'),
        ("a@x.example\n", '"a@x.example?"'),
    ],
)
def test_pvalue(text: str, value: str) -> None:
    assert quote_pvalue(text) == value


def test_comment_is_of_one_level() -> None:
    assert comment("a (b) \\) c") == "(a [b] /] c)"


@settings(deadline=None)
@given(HOSTILE)
def test_cleaned_text_is_one_printable_line_of_bounded_size(text: str) -> None:
    cleaned = clean(text)
    assert cleaned.isprintable()
    assert len(cleaned.encode()) <= MAX_TEXT_BYTES
    assert clean(cleaned) == cleaned


@settings(deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=6))
def test_no_text_ends_the_field_or_its_own_value(texts: list[str]) -> None:
    field = fold_field(
        "X-Test", [f"a={quote_value(text)};" for text in texts], [comment(text) for text in texts]
    )
    message = Message(field.to_bytes() + b"\r\n")
    assert [found.key for found in message.fields] == [b"x-test"]
    assert not message.defects
    unquoted = re.sub(r'"(?:[^"\\]|\\.)*"|\([^()\\]*\)', "", field.value.replace("\r\n", ""))
    assert unquoted.count(";") == len(texts)
    assert not set(unquoted) & set('"()\\')


@settings(deadline=None)
@given(st.lists(st.text("abc", min_size=1, max_size=100), min_size=1, max_size=20))
def test_lines_fold_at_78_unless_one_word_is_longer(words: list[str]) -> None:
    field = fold_field("X-Test", words)
    assert field.value.split() == words
    for line in field.to_bytes().decode().removesuffix("\r\n").split("\r\n"):
        assert len(line) <= FOLD_AT or len(line.removeprefix("X-Test:").split()) == 1


@settings(deadline=None)
@given(st.text("ab:", max_size=600), st.sampled_from(["", ":"]))
def test_a_long_word_is_cut_only_where_it_may_be(text: str, after: str) -> None:
    pieces = break_text(text, after=after)
    assert "".join(pieces) == text
    assert all(pieces) or not text
    width = FOLD_AT - len(INDENT)
    for piece in pieces:
        assert len(piece) <= width or (after and after not in piece[:-1])
    for piece in pieces[:-1]:
        assert not after or piece.endswith(after)


def test_each_line_of_pieces_starts_a_line() -> None:
    assert fold_field("X", ["a", "b"], ["c"]).to_bytes() == b"X: a b\r\n    c\r\n"


def test_pieces_of_any_maker_cannot_end_the_field() -> None:
    assert fold_field("X", ["a\r\nBcc: b"]).to_bytes() == b"X: a??Bcc: b\r\n"


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("X Y", ["a"]),
        ("", ["a"]),
        ("X:", ["a"]),
        ("X\r\n", ["a"]),
        ("X", []),
        ("X", [""]),
        ("X", [" "]),
        ("X", ["a" * 999]),
    ],
)
def test_our_own_mistakes_are_refused(name: str, pieces: list[str]) -> None:
    with pytest.raises(ValueError, match=r"name|piece|nothing"):
        fold_field(name, pieces)
