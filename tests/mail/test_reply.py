import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.errors import ParseError
from gateway.mail.reply import MAX_REPLY_LINE_BYTES, Reply, parse_reply

LINES = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(
            lambda code, mark, text: code + mark + text,
            st.sampled_from([b"250", b"550", b"451", b"199", b"600"]),
            st.sampled_from([b" ", b"-", b""]),
            st.one_of(
                st.binary(max_size=30), st.sampled_from([b"2.0.0 ok", b"5.7.1 no", b"5.7.1", b"5.7.1 \t"])
            ),
        ),
    ),
    max_size=4,
)


@pytest.mark.parametrize(
    ("lines", "reply"),
    [
        ([b"250 2.1.0 Ok"], Reply(250, "2.1.0", ("Ok",))),
        ([b"250"], Reply(250, None, ("",))),  # RFC 5321 §4.2: a code alone is taken
        ([b"250-mx", b"250 SIZE"], Reply(250, None, ("mx", "SIZE"))),
        ([b"550-5.7.1 a", b"550 5.7.1 b"], Reply(550, "5.7.1", ("a", "b"))),
        ([b"550-5.7.1 a", b"550 5.7.2 b"], Reply(550, None, ("5.7.1 a", "5.7.2 b"))),  # no common one
        ([b"550 4.7.1 a"], Reply(550, None, ("4.7.1 a",))),  # of another class
        ([b"250 \x1b[2Jx"], Reply(250, None, ("?[2Jx",))),
        ([b"250 J\xc3\xb6rg"], Reply(250, None, ("J?rg",))),
    ],
)
def test_read(lines: list[bytes], reply: Reply) -> None:
    assert parse_reply(lines) == reply


@pytest.mark.parametrize(
    "lines",
    [
        [],
        [b""],
        [b"25"],
        [b"2500 x"],
        [b"199 x"],
        [b"650 x"],
        [b"250-a"],  # not ended
        [b"250 a", b"250 b"],  # two replies
        [b"250-a", b"251 b"],  # two codes
        [b" 250 a"],
        ["٢٥٠ x".encode()],
    ],
)
def test_refused(lines: list[bytes]) -> None:
    with pytest.raises(ParseError):
        parse_reply(lines)


@pytest.mark.parametrize(
    ("code", "enhanced"),
    [
        (550, "4.7.1"),
        (250, "5.0.0"),
        (199, None),
        (600, None),
        (550, "5.7.1\r\n250 ok"),
        (550, "5.7"),
        (550, ""),
    ],
)
def test_our_own_mistakes_are_refused(code: int, enhanced: str | None) -> None:
    with pytest.raises(ValueError, match="reply"):
        Reply(code, enhanced, ("x",))


def test_the_class_of_a_reply() -> None:
    kinds = [
        (reply.is_positive, reply.is_transient, reply.is_permanent)
        for reply in (
            Reply.of(250, None, ""),
            Reply.of(354, None, ""),
            Reply.of(451, None, ""),
            Reply.of(550, None, ""),
        )
    ]
    assert kinds == [(True, False, False), (True, False, False), (False, True, False), (False, False, True)]


def test_as_one_line() -> None:
    assert str(Reply(550, "5.7.1", ("a", "b"))) == "550 5.7.1 a b"
    assert Reply(550, "5.7.1", ("a", "b")).to_bytes() == b"550-5.7.1 a\r\n550 5.7.1 b\r\n"


@settings(deadline=None)
@given(st.lists(st.text(max_size=600), max_size=4))
def test_no_text_can_begin_a_line(texts: list[str]) -> None:
    written = Reply(550, "5.7.1", tuple(texts)).to_bytes()
    lines = written.split(b"\r\n")
    assert lines.pop() == b""
    assert len(lines) == max(len(texts), 1)
    for line in lines:
        assert line.startswith((b"550-5.7.1 ", b"550 5.7.1 "))
        assert line.isascii()
        assert not {b"\r", b"\n", b"\0"} & {line[at : at + 1] for at in range(len(line))}
        assert len(line) + 2 <= MAX_REPLY_LINE_BYTES


@settings(deadline=None)
@given(LINES)
def test_reads_or_refuses_and_reads_back_what_it_writes(lines: list[bytes]) -> None:
    try:
        reply = parse_reply(lines)
    except ParseError:
        return
    assert parse_reply(reply.to_bytes().split(b"\r\n")[:-1]) == reply
