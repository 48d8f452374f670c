"""Our milter protocol against libmilter's: the same conversations with both, and every packet of the answers compared."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.live.postfix import open_directory
from tests.milter.raw_client import Mail, RawClient, Reply
from tests.milter.server import milter_process

pytest.importorskip("milter", reason="pymilter, the oracle, is not installed")

Conversation = Callable[[RawClient], list[Reply]]

FOLDED: Final = (b"X-Folded", b" one\n two\n\tthree")


@pytest.fixture(scope="module")
def sockets() -> Iterator[tuple[Path, Path]]:
    with ExitStack() as stack:
        found = []
        for implementation in ("own", "pymilter"):
            directory = stack.enter_context(open_directory())
            options = {"implementation": implementation, "judge_timeout_s": 1, "max_message_bytes": 100_000}
            found.append(stack.enter_context(milter_process(directory, options)).socket)
        yield found[0], found[1]


def packets(client: RawClient, *mails: Mail) -> list[Reply]:
    said: list[Reply] = []
    for mail in mails:
        answer = client.send(mail)
        said += [*answer.edits, answer.last]
    return said


def scripted(script: str, *fields: tuple[bytes, bytes]) -> Mail:
    return Mail(headers=(*fields, (b"X-Script", b" " + script.encode()), (b"From", b" <a@example.org>")))


def _edits(client: RawClient) -> list[Reply]:
    fields = [(name, b" old") for name in (b"X-A", b"x-a", b"X-B", b"X-A")]
    script = '{"remove": [["x-a", 0], ["x-a", 2]], "prepend": [["A-R", "mx;\\r\\n\\tspf=pass"], ["X", "\u00fc %"]]}'
    return packets(client, scripted(script, *fields, FOLDED))


def _refusals(client: RawClient) -> list[Reply]:
    return packets(
        client,
        scripted('{"disposition": "reject", "reply": [550, "5.7.1", ["50% %s no"]]}'),
        scripted('{"disposition": "reject", "reply": [554, null, ["no code"]]}'),
        scripted('{"disposition": "defer", "reply": [451, "4.7.1", ["one", "two", "three"]]}'),
        scripted('{"crash": true}'),
        scripted('{"sleep": 9}'),
        Mail(body=b"x" * 100_001),
        Mail(mail_from=(b"<reject-me@x.org>",)),
        Mail(mail_from=(b"<crash-me@x.org>",)),
        Mail(recipients=((b"<b@x.org>",), (b"<defer-me@x.org>",), (b"<c@x.org>",))),
        Mail(mail_from=(b"<a b@x.org>",)),
        Mail(recipients=((b"<\xff>",),)),
        Mail(),
    )


def _quarantine(client: RawClient) -> list[Reply]:
    return packets(client, scripted('{"disposition": "quarantine", "prepend": [["X-Mark", "1"]]}'), Mail())


def _aborted(client: RawClient) -> list[Reply]:
    client.mail([b"<left@example.org>"], [(b"i", b"Q1")])
    client.rcpt([b"<left@example.net>"])
    client.content(Mail(body=b"x" * 70_000))
    client.abort()
    return packets(client, Mail(), Mail(mail_from=(b"<>",)))


def _next_session(client: RawClient) -> list[Reply]:
    said = packets(client, Mail())
    client.put(b"K", b"")
    client.connect(b"other.example.org", b"IPv6:2001:db8::1", b"6")
    client.helo(b"other.example.org")
    return said + packets(client, Mail())


CONVERSATIONS: Final = (
    _edits,
    _refusals,
    _quarantine,
    _aborted,
    _next_session,
)


@pytest.mark.parametrize("conversation", CONVERSATIONS, ids=lambda one: one.__name__.strip("_"))
def test_the_same_conversation_has_the_same_answers(
    sockets: tuple[Path, Path], conversation: Conversation
) -> None:
    heard = []
    for socket in sockets:
        with RawClient(socket) as client:
            client.connect()
            client.helo()
            heard.append(((client.actions, client.protocol, client.macro_lists), conversation(client)))
    assert heard[0] == heard[1]
