from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.edits import NO_EDITS, EditedHeader, Edits, NewField, apply_edits
from gateway.mail.message import Message

FIELDS = st.lists(
    st.sampled_from([b"A: 1\r\n", b"B: 2\r\n 3\r\n", b"no field\r\n", b"C:\r\n"]), min_size=1, max_size=6
)


def edited(message: Message, edits: Edits) -> bytes:
    return b"".join(apply_edits(message, edits))


@settings(deadline=None)
@given(FIELDS, st.sets(st.integers(0, 5)), st.binary(max_size=20), st.integers(0, 2))
def test_edited_is_what_was_put_before_and_what_was_not_taken_out(
    fields: list[bytes], remove: set[int], body: bytes, new: int
) -> None:
    message = Message(b"".join(fields) + b"\r\n" + body)
    removed = frozenset(at for at in remove if at < len(fields))
    prepend = (NewField("X-New", "1\r\n 2"),) * new
    kept = b"".join(field for at, field in enumerate(fields) if at not in removed)
    expected = b"X-New: 1\r\n 2\r\n" * new + kept + b"\r\n" + body
    assert edited(message, Edits(prepend=prepend, remove=removed)) == expected


def test_nothing_changes_without_edits() -> None:
    raw = b" a\r\nB: \xff\0\r\n\n\r"
    assert not NO_EDITS
    assert edited(Message(raw), NO_EDITS) == raw


def test_a_first_line_that_would_continue_our_own_field_is_left_out() -> None:
    message = Message(b" ; dkim=pass header.d=bank.example\r\n\tmore\r\nFrom: a@b.example\r\n\r\n")
    ours = Edits(prepend=(NewField("Authentication-Results", "mx.example.net; none"),))
    assert (
        edited(message, ours) == b"Authentication-Results: mx.example.net; none\r\nFrom: a@b.example\r\n\r\n"
    )


def test_a_message_of_nothing_but_a_body_gets_a_header() -> None:
    new = Edits(prepend=(NewField("X", "1"),))
    assert edited(Message(b"\r\nbody\r\n"), new) == b"X: 1\r\n\r\nbody\r\n"


KEYS = [b"a", b"b", b"c", b"x-new"]


@settings(deadline=None)
@given(FIELDS, st.sets(st.integers(0, 5)), st.lists(st.sampled_from(["X-New", "B", "c"]), max_size=3))
def test_the_header_as_it_will_be_is_seen_without_making_it(
    fields: list[bytes], remove: set[int], new: list[str]
) -> None:
    message = Message(b"".join(fields) + b"\r\nbody")
    removed = frozenset(at for at in remove if at < len(fields))
    edits = Edits(prepend=tuple(NewField(name, "1\r\n 2") for name in new), remove=removed)
    left = Message(edited(message, edits))
    header = EditedHeader(message, edits)
    for key in KEYS:
        assert header.named(key) == [*map(left.field_bytes, left.positions(key))]
        touched = key in {name.lower().encode() for name in new} | {message.fields[at].key for at in removed}
        assert header.touches([key]) == touched
