"""Every message of the corpus by every door: the same verdict, the same edits, the same bytes handed on."""

import asyncio
import re
from dataclasses import replace

from gateway.engine import Engine, Judged
from gateway.mail.edits import Edits, NewField, apply_edits
from gateway.mail.message import Message
from gateway.policy import load_rules
from gateway.verdict import Disposition, Verdict
from tests.corpus import AUTHSERV_ID, NOW, CorpusCase, load_cases, world
from tests.live.doors import hand_in, open_inbox, open_proxy

CASES = load_cases()
_ID = re.compile(r"\bid=\S+")


def make_engine(seen: list[Judged]) -> Engine:
    return Engine(
        world(), load_rules("default"), authserv_id=AUTHSERV_ID, observe=seen.append, clock=lambda: NOW
    )


async def offline(case: CorpusCase) -> Verdict:
    return await make_engine([]).judge(case.envelope(), Message(case.raw))


def comparable(verdict: Verdict) -> tuple[object, ...]:
    """All of a verdict but our own id of the message, which each door gives anew."""
    edits = Edits(
        prepend=tuple(NewField(field.name, _ID.sub("id=X", field.value)) for field in verdict.edits.prepend),
        remove=verdict.edits.remove,
    )
    code = verdict.reply.code if verdict.reply else None
    return (verdict.disposition, verdict.rule, code, edits, replace(verdict.evidence))


def without_received(content: bytes) -> bytes:
    """The proxy's own trace field is part of SMTP (RFC 5321 section 4.4), not of the verdict."""
    return re.sub(rb"(?m)^Received: from .*\r\n(?:[ \t].*\r\n)*", b"", content, count=1)


async def test_proxy() -> None:
    """One session per message; what reaches the mail server is the offline verdict's edits, byte for byte."""
    seen: list[Judged] = []
    with open_inbox() as (inbox, downstream_port):
        async with open_proxy(
            make_engine(seen), downstream_port, trusted_networks=["198.51.100.0/24"]
        ) as port:
            for case in CASES:
                expected = await offline(case)
                inbox.messages.clear()
                code, text = await asyncio.to_thread(
                    hand_in, port, ip=case.ip, helo=case.helo, mail_from=case.mail_from, raw=case.raw
                )
                assert seen, f"{case.name}: {code} {text}"
                verdict = seen[-1].verdict
                assert comparable(verdict) == comparable(expected), case.name
                if expected.disposition in {Disposition.ACCEPT, Disposition.QUARANTINE}:
                    assert (code, text) == (250, "2.0.0 kept"), case.name
                    handed_on = b"".join(apply_edits(Message(case.raw), verdict.edits))
                    assert without_received(inbox.messages[0]) == handed_on, case.name
                else:
                    assert expected.reply is not None
                    assert code == expected.reply.code, case.name
                    assert not inbox.messages, case.name
    assert len(seen) == len(CASES)


def test_the_trace_field_is_all_that_is_left_out() -> None:
    content = b"A-R: x\r\nReceived: from a\r\n\tby b\r\nReceived: from c\r\n\tby d\r\nFrom: e\r\n\r\nbody\r\n"
    assert without_received(content) == b"A-R: x\r\nReceived: from c\r\n\tby d\r\nFrom: e\r\n\r\nbody\r\n"
