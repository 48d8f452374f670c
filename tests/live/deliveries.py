"""What became of a message, each way it can leave: through the gateway's relay, or by a Postfix that asks its socketmap."""

import re
import smtplib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from typing import Final

from gateway.store.engine import open_engine
from gateway.store.results import read_results
from gateway.tlspolicy.model import Demand, FailureType, TlsLevel
from tests.live.internet import SENDER, Gateway, Internet
from tests.live.outbound_scenarios import Outcome
from tests.live.postfix import PostfixBed, wait_until

MESSAGE: Final = b"From: <sender@client.test>\nSubject: hello\n\n.body\n"
RELAYED, DELIVERED = "alice", "bob"
"""Whom the relay writes to, and whom Postfix does: each has mailboxes of its own, and a greylist its own memory."""

MAP: Final = "postfix"
"""Any name will do: the gateway has one map."""

_PATIENCE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What became of it, and the words that say so."""

    outcome: Outcome
    said: str


def _arrived(world: Internet, recipient: str, said: str, *, is_verified: bool) -> Seen:
    """How it got there: the remote Postfix's own trace field knows whether that was over TLS."""
    over_tls = Outcome.VERIFIED if is_verified else Outcome.ENCRYPTED
    if recipient in world.injecting.recipients:
        return Seen(over_tls, said)
    last_hop = message_from_bytes(world.remote.wait_for_message(recipient))["Received"]
    if "(using TLSv1." not in last_hop:
        return Seen(Outcome.CLEAR, said)
    return Seen(over_tls, said)


def deliver_by_postfix(world: Internet, sender: PostfixBed, domains: Sequence[str]) -> dict[str, Seen]:
    """Hand one message for each domain to Postfix, and read in its log what came of the first attempt."""
    already = len(sender.log())
    for domain in domains:
        sender.submit(MESSAGE, sender=SENDER, recipient=f"{DELIVERED}@{domain}")

    def attempts() -> dict[str, _Attempt] | None:
        found = {attempt.domain: attempt for attempt in _attempts(sender.log()[already:])}
        return found if found.keys() >= set(domains) else None

    def missing() -> str:
        found = {attempt.domain for attempt in _attempts(sender.log()[already:])}
        return f"nothing about {set(domains) - found}\n{sender.log()[already:]}"

    done = wait_until(attempts, "Postfix to try all", timeout_s=_PATIENCE_S, explain=missing)
    return {domain: _seen_in(world, done[domain]) for domain in domains}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attempt:
    domain: str
    status: str
    said: str
    is_verified: bool


def _attempts(log: str) -> Iterator[_Attempt]:
    """Each line with a status; the same process said before it whom it had on the other side."""
    verified: dict[str, bool] = {}
    for line in log.splitlines():
        if established := re.search(r"smtp\[(\d+)\]: (\w+) TLS connection established", line):
            verified[established[1]] = established[2] == "Verified"
        elif settled := re.search(rf"\[(\d+)\]: \w+: to=<{DELIVERED}@([^>]+)>.* status=(\w+) \((.*)\)", line):
            yield _Attempt(
                domain=settled[2],
                status=settled[3],
                said=settled[4],
                is_verified=verified.pop(settled[1], False),
            )


def _seen_in(world: Internet, attempt: _Attempt) -> Seen:
    without_delivery = {"deferred": Outcome.DEFERRED, "bounced": Outcome.REFUSED}
    if outcome := without_delivery.get(attempt.status):
        return Seen(outcome, attempt.said)
    recipient = f"{DELIVERED}@{attempt.domain}"
    return _arrived(world, recipient, attempt.said, is_verified=attempt.is_verified)


def deliver_by_relay(world: Internet, gateway: Gateway, domains: Sequence[str]) -> dict[str, Seen]:
    """Hand one message for each domain to the relay, all at once, and take its last reply."""
    with ThreadPoolExecutor(30) as clients:
        replies = clients.map(lambda domain: _hand_in(world, gateway, f"{RELAYED}@{domain}"), domains)
        done = dict(zip(domains, replies, strict=True))
    return {domain: _seen_after(world, gateway, domain, *reply) for domain, reply in done.items()}


def _hand_in(world: Internet, gateway: Gateway, recipient: str) -> tuple[int, str]:
    client = smtplib.SMTP(local_hostname="client.test", timeout=_PATIENCE_S)
    client.sock = world.network.connect("127.0.0.1", gateway.relay_port, _PATIENCE_S)
    client.getreply()
    with client:
        client.ehlo()
        for command in (f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{recipient}>", "DATA"):
            code, text = client.docmd(command)
            if code >= 400:
                return code, text.decode()
        client.send(MESSAGE.replace(b"\n", b"\r\n").replace(b"\r\n.", b"\r\n..") + b".\r\n")
        code, text = client.getreply()
        return code, text.decode()


def _seen_after(world: Internet, gateway: Gateway, domain: str, code: int, text: str) -> Seen:
    said = f"{code} {text}"
    if code >= 500:
        return Seen(Outcome.REFUSED, said)
    if code >= 400:
        return Seen(Outcome.DEFERRED, said)
    return _arrived(world, f"{RELAYED}@{domain}", said, is_verified=_was_verified(gateway, domain))


def _was_verified(gateway: Gateway, domain: str) -> bool:
    """Whether the relay demanded a certificate of the server that took it, and found it right."""
    delivered = [event for event in gateway.events() if event["event"] == "relay.delivered"]
    *_, last = [event for event in delivered if event["domain"] == domain]
    return last["demand"] in {Demand.PKIX, Demand.DANE} and last["problem"] is None


def ask(world: Internet, gateway: Gateway, domains: Sequence[str]) -> dict[str, str]:
    """What the socketmap answers (socketmap_table(5)), all questions on one connection."""
    with world.network.connect("127.0.0.1", gateway.tls_policy_port, _PATIENCE_S) as asking:
        answers = asking.makefile("rb")

        def answer(domain: str) -> str:
            question = f"{MAP} {domain}".encode()
            asking.sendall(b"%d:%b," % (len(question), question))
            length = b""
            while (byte := answers.read(1)) != b":":
                assert byte, f"the gateway hung up on {question!r}:\n{gateway.log()[-2000:]}"
                length += byte
            return answers.read(int(length) + 1)[:-1].decode()

        return {domain: answer(domain) for domain in domains}


def level_in(answer: str) -> TlsLevel:
    """The decision that an answer carries."""
    outcome, *words = answer.split()
    without_level = {"NOTFOUND": TlsLevel.MAY, "TEMP": TlsLevel.REFUSE}
    if outcome in without_level:
        return without_level[outcome]
    assert outcome == "OK", answer
    return TlsLevel(words[0])


def reported(gateway: Gateway) -> dict[str, set[FailureType]]:
    """What TLS reports will say has failed, by domain; ask it of a gateway that has ended."""
    engine = open_engine(f"sqlite:///{gateway.directory}/gateway.db")
    now = datetime.now(UTC)
    found: dict[str, set[FailureType]] = {}
    try:
        for results in read_results(engine, now - timedelta(hours=1), now):
            failures = {failure.failure for failure in results.failures}
            found.setdefault(results.policy_domain, set()).update(failures)
    finally:
        engine.dispose()
    return found
