"""Every message of the corpus by every door: the same verdict, the same edits, the same bytes handed on."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from gateway.auth.arc.seal import Sealer
from gateway.auth.dkim.key_table import KeyTable, SigningKey
from gateway.auth.dkim.sign import Signer
from gateway.engine import Engine, EngineOptions, Judged
from gateway.mail.edits import Edits, NewField, apply_edits
from gateway.mail.message import Message
from gateway.ops.log import judged_event
from gateway.policy import load_rules
from gateway.verdict import Disposition, Verdict
from tests.auth.dkim.signing import ed25519_key, rsa_key
from tests.corpus import (
    AUTHSERV_ID,
    NOW,
    RECIPIENT,
    TRUSTED_SEALERS,
    CorpusCase,
    load_cases,
    world,
    zone_text,
)
from tests.live.doors import free_port, hand_in, open_inbox, open_proxy
from tests.live.postfix import wait_until
from tests.milter.raw_client import Answer, Mail, RawClient

CASES = load_cases()
KEYS = KeyTable(
    SigningKey(
        domain="bank.example",
        selector=selector,
        subdomains=True,
        expires_after_s=None,
        private_key=private_key,
    )
    for selector, private_key in (("rsa", rsa_key(2048)), ("ed", ed25519_key()))
)
SEAL_KEY = SigningKey(
    domain="example.net",
    selector="rsa",
    subdomains=False,
    expires_after_s=None,
    private_key=rsa_key(2048),
)
_ID = re.compile(r"\bid=\S+")
_SIGNED_AT = re.compile(rb"\bt=([0-9]+);")


def make_engine(seen: list[Judged], now: int = NOW) -> Engine:
    engine = Engine(
        world(),
        load_rules("default"),
        authserv_id=AUTHSERV_ID,
        options=EngineOptions(trusted_sealers=frozenset(TRUSTED_SEALERS)),
        observe=seen.append,
        clock=lambda: now,
    )
    engine.signer = Signer(KEYS)
    engine.sealer = Sealer(SEAL_KEY)
    return engine


async def offline(case: CorpusCase, now: int = NOW) -> Verdict:
    """What the engine says; our own user's message it signs, and those of strangers it seals, as every door must.

    All signatures are of algorithms that give the same one each time.
    """
    verdict = await make_engine([], now).judge(case.envelope(), Message(case.raw))
    assert (verdict.signing is not None) == case.trusted
    assert [field.name for field in verdict.edits.prepend].count("DKIM-Signature") == 2 * case.trusted
    closed = (
        verdict.disposition is not Disposition.ACCEPT or case.trusted or case.name == "author-after-garbage"
    )
    assert (verdict.sealed is None) == closed, case.name
    return verdict


def comparable(verdict: Verdict) -> tuple[object, ...]:
    """All of a verdict but our own id of the message, which each door gives anew."""
    edits = Edits(
        prepend=tuple(NewField(field.name, _ID.sub("id=X", field.value)) for field in verdict.edits.prepend),
        remove=verdict.edits.remove,
    )
    code = verdict.reply.code if verdict.reply else None
    return (verdict.disposition, verdict.rule, code, edits, verdict.evidence, verdict.signing)


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


# The milter door: `gateway serve` as an operator runs it, asked by a raw client in place of Postfix.

CONFIG = """\
authserv_id = "mx.example.net"
[dns]
zone_file = "zone.txt"
[milter]
listen = "unix:{folder}/milter.sock"
trusted_networks = ["198.51.100.0/24"]
[arc]
trusted_sealers = {sealers}
seal_domain = "example.net"
seal_selector = "rsa"
seal_key = "rsa.pem"
[http]
listen = "127.0.0.1:{http}"
[log]
format = "json"
[[signing]]
domain = "bank.example"
selector = "rsa"
key = "rsa.pem"
[[signing]]
domain = "bank.example"
selector = "ed"
key = "ed.pem"
"""

NO_MILTER = {"author-after-garbage": "a line that is no header field cannot be said in the milter protocol"}


@contextmanager
def serve(folder: Path) -> Iterator[Path]:
    """A gateway with its milter; its log."""
    http = free_port()
    (folder / "zone.txt").write_text(zone_text())
    (folder / "gateway.toml").write_text(
        CONFIG.format(folder=folder, http=http, sealers=list(TRUSTED_SEALERS))
    )
    for key in KEYS.keys:
        pem = key.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (folder / f"{key.selector}.pem").write_bytes(pem)
        (folder / f"{key.selector}.pem").chmod(0o600)
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(folder / "gateway.toml")],
            stderr=stream,
        )
        try:
            wait_until(
                (folder / "milter.sock").exists, f"the milter's socket; {log.read_text()}", timeout_s=20
            )
            yield log
        finally:
            process.terminate()
            process.wait(20)


def judged(log: Path) -> list[dict[str, Any]]:
    events = (json.loads(line) for line in log.read_text().splitlines())
    return [event for event in events if event["event"] == "message.judged"]


def as_mail(case: CorpusCase) -> Mail:
    """The message as the mail server says it: field by field, LF within folded ones."""
    message = Message(case.raw)
    return Mail(
        mail_from=(f"<{case.mail_from}>".encode(),),
        recipients=((f"<{RECIPIENT}>".encode(),),),
        headers=[
            (
                message.field_bytes(at).partition(b":")[0].strip(),
                message.values[at].replace(b"\r\n", b"\n"),
            )
            for at in range(len(message.keys))
        ],
        body=case.raw[message.body_start :],
    )


def with_edits(mail: Mail, answer: Answer) -> list[tuple[bytes, bytes]]:
    """The header as the mail server would hand it on."""
    headers = list(mail.headers)
    for occurrence, name in answer.deleted:
        places = [at for at, (other, _) in enumerate(headers) if other.decode().lower() == name.lower()]
        del headers[places[occurrence - 1]]
    for index, name, value in answer.inserted:
        headers.insert(index, (name.encode(), value))
    return headers


def test_milter(tmp_path: Path) -> None:
    with serve(tmp_path) as log:
        for count, case in enumerate((case for case in CASES if case.name not in NO_MILTER), start=1):
            mail = as_mail(case)
            with RawClient(tmp_path / "milter.sock") as client:
                client.connect(name=b"[" + case.ip.encode() + b"]", address=case.ip.encode())
                client.helo(case.helo.encode())
                answer = client.send(mail)
            wait_until(lambda count=count: len(judged(log)) >= count, "the log", timeout_s=10)  # type: ignore[misc]
            event = judged(log)[-1]
            # The process has a clock of its own; all else in a signature follows from keys and message.
            signed_at = next(
                (int(at[1]) for _, _, value in answer.inserted if (at := _SIGNED_AT.search(value))), NOW
            )
            expected = asyncio.run(offline(case, signed_at))
            told = judged_event(case.envelope(), Message(case.raw), None, expected, 0.0)
            for key in (
                "disposition",
                "rule",
                "spf",
                "spf_helo",
                "dkim",
                "dmarc",
                "dmarc_policy",
                "iprev",
                "arc",
                "arc_sealers",
                "sealed",
                "problems",
                "signed",
                "not_signed",
            ):
                assert event.get(key) == told.get(key), f"{case.name}: {key}"
            match expected.disposition:
                case Disposition.REJECT | Disposition.DEFER:
                    assert expected.reply is not None
                    assert answer.text.startswith(f"{expected.reply.code} {expected.reply.enhanced} "), (
                        case.name
                    )
                    continue
                case Disposition.QUARANTINE:
                    assert answer.quarantined, case.name
                case Disposition.ACCEPT:
                    assert not answer.quarantined, case.name
            wanted = Message(b"".join(apply_edits(Message(case.raw), expected.edits)))
            handed_on = with_edits(mail, answer)
            assert [
                (name, _ID.sub("id=X", value.decode("utf-8", "surrogateescape").strip()))
                for name, value in handed_on
            ] == [
                (
                    wanted.field_bytes(at).partition(b":")[0].strip(),
                    _ID.sub(
                        "id=X",
                        wanted.values[at].replace(b"\r\n", b"\n").decode("utf-8", "surrogateescape").strip(),
                    ),
                )
                for at in range(len(wanted.keys))
            ], case.name
