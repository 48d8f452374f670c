import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.mail.edits import Edits, NewField, apply_edits
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.milter.actions import (
    Accept,
    Action,
    DeleteHeader,
    InsertHeader,
    Quarantine,
    Refuse,
    plan,
    refuse,
)
from gateway.verdict import Disposition, Verdict

MESSAGE = Message(b"A: 1\r\nB: 2\r\na: 3\r\n folded\r\nC : 4\r\nA: 5\r\n\r\nbody")


def verdict(disposition: Disposition, *, edits: Edits | None = None, reply: Reply | None = None) -> Verdict:
    return Verdict(disposition=disposition, rule="some-rule", reply=reply, edits=edits or Edits())


def test_deletions_come_first_from_the_last_up_and_insertions_end_in_their_order() -> None:
    edits = Edits(
        prepend=(NewField("X-One", "1;\r\n\tfolded"), NewField("X-Two", "2")), remove=frozenset({0, 2, 3, 4})
    )
    assert plan(verdict(Disposition.ACCEPT, edits=edits), MESSAGE, hold=True) == (
        DeleteHeader("a", 3),
        DeleteHeader("c", 1),
        DeleteHeader("a", 2),
        DeleteHeader("a", 1),
        InsertHeader("X-Two", " 2"),
        InsertHeader("X-One", " 1;\n\tfolded"),
        Accept(),
    )


def test_quarantine_holds_or_only_marks() -> None:
    edits = Edits(prepend=(NewField("X-Mark", "1"),))
    marked = (InsertHeader("X-Mark", " 1"),)
    quarantine = verdict(Disposition.QUARANTINE, edits=edits)
    assert plan(quarantine, MESSAGE, hold=True) == (*marked, Quarantine("rule=some-rule"), Accept())
    assert plan(quarantine, MESSAGE, hold=False) == (*marked, Accept())


def test_a_refusal_edits_nothing() -> None:
    edits = Edits(prepend=(NewField("X-Mark", "1"),), remove=frozenset({0}))
    refused = verdict(Disposition.REJECT, edits=edits, reply=Reply.of(550, "5.7.1", "no"))
    assert plan(refused, MESSAGE, hold=True) == (Refuse("550", "5.7.1", ("no",)),)
    deferred = verdict(Disposition.DEFER, reply=Reply.of(451, "4.7.1", "later"))
    assert plan(deferred, MESSAGE, hold=True) == (Refuse("451", "4.7.1", ("later",)),)


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (Reply.of(550, "5.7.1", "100% %s"), Refuse("550", "5.7.1", ("100%% %%s",))),
        (Reply.of(451, None, "a\tb"), Refuse("451", None, ("a b",))),
        (Reply.of(550, "5.1.1", "a\r\n250 ok\0\u20ac"), Refuse("550", "5.1.1", ("a??250 ok??",))),
        (Reply(550, "5.1.1", ("a", "", "c")), Refuse("550", "5.1.1", ("a", "", "c"))),
        (Reply.of(550, "5.1.1", ""), Refuse("550", "5.1.1", ("",))),
    ],
)
def test_replies_are_what_libmilter_takes(reply: Reply, expected: Refuse) -> None:
    assert refuse(reply) == expected


def test_long_replies_are_cut_to_what_libmilter_takes() -> None:
    refusal = refuse(Reply(550, "5.7.1", ("%" * 2_000,) * 100))
    assert len(refusal.lines) == 32
    assert max(map(len, refusal.lines)) <= 980
    assert {len(line) % 2 for line in refusal.lines} == {0}, "no % without its double"


def test_only_a_refusal_is_one() -> None:
    with pytest.raises(ValueError, match="refuses nothing"):
        refuse(Reply.of(250, "2.0.0", "ok"))


NAMES = st.sampled_from(["A", "a", "B", "Authentication-Results", "AUTHENTICATION-results"])


@settings(max_examples=100, deadline=None)
@given(st.lists(NAMES, max_size=12), st.data())
def test_the_mail_server_ends_with_what_the_proxy_would_send(names: list[str], data: st.DataObject) -> None:
    fields = [f"{name}: {at}\r\n" for at, name in enumerate(names)]
    message = Message("".join(fields).encode() + b"\r\nbody\r\n")
    remove = data.draw(st.frozensets(st.integers(0, len(names) - 1)) if names else st.just(frozenset[int]()))
    prepend = tuple(
        NewField(name, f"new {at}") for at, name in enumerate(data.draw(st.lists(NAMES, max_size=3)))
    )
    edits = Edits(prepend=prepend, remove=remove)
    header = carried_out(fields, plan(verdict(Disposition.ACCEPT, edits=edits), message, hold=True))
    assert header.encode() + b"\r\nbody\r\n" == b"".join(apply_edits(message, edits))


def carried_out(fields: list[str], actions: tuple[Action, ...]) -> str:
    """What a mail server does: counts fields of a name, case aside, one action after the other."""
    now = list(fields)
    for action in actions:
        match action:
            case DeleteHeader(name, occurrence):
                places = [
                    at for at, field in enumerate(now) if field.partition(":")[0].lower() == name.lower()
                ]
                del now[places[occurrence - 1]]
            case InsertHeader(name, value):
                now.insert(0, f"{name}:{value}\r\n")
            case Quarantine() | Accept() | Refuse():
                pass
    return "".join(now)
