import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.ops.text import printable, printable_json


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("mail.example", "mail.example"),
        ("a\nlevel=info", "a\\nlevel=info"),  # would be a line of its own
        ("a\r\x1b[2K", "a\\r\\x1b[2K"),  # would take its line away
        ("\u202emoc.knab", "\\u202emoc.knab"),  # would be read backwards
        ("a\u200bb", "a\\u200bb"),  # cannot be seen
        ("a\u2028b", "a\\u2028b"),  # a line end to some readers
        ("\x9b31m", "\\x9b31m"),  # an ANSI sequence in one byte
        ("\udcff", "\\udcff"),  # would fail to be encoded
        ("grüße@例え.jp", "grüße@例え.jp"),  # honest, and stays
        (
            "e\u0301\u0323 \u0e01\u0e35\u0e49",
            "e\u0301\u0323 \u0e01\u0e35\u0e49",
        ),  # languages do this, and it stays
        ("e" + "\u0301" * 4, "e\u0301\u0301\\u0301\\u0301"),  # would paint over the lines above
        ("x" * 600, "x" * 511 + "…"),
        ("\0" * 600, "\\x00" * 127 + "\\x0" + "…"),
    ],
)
def test_peer_text_cannot_leave_its_place(hostile: str, shown: str) -> None:
    assert printable(hostile) == shown


@given(st.text(st.characters(), max_size=200), st.integers(min_value=1, max_value=100))
def test_always_printable_encodable_and_short(text: str, limit: int) -> None:
    shown = printable(text, limit)
    assert shown.isprintable()
    assert len(shown) <= limit
    shown.encode()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_json_that_prints_means_what_it_meant(text: str) -> None:
    document = json.dumps({text: [text]}, ensure_ascii=False)
    shown = printable_json(document)
    assert shown.isprintable()
    assert json.loads(shown) == {text: [text]}
