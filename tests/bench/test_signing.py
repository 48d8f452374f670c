"""What signing adds to a message, against the bare signatures that OpenSSL makes with the same keys.

Measured through the engine, with and without a signer, so that everything counts that a signature needs: choosing the keys,
canonical forms, hashes, and writing the folded field.
"""

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from ipaddress import ip_address
from statistics import median

import pytest

from gateway.auth.dkim.key_table import KeyTable, SigningKey
from gateway.auth.dkim.sign import Signer
from gateway.dns.zone import ZoneResolver
from gateway.engine import Engine
from gateway.mail.address import parse_mailbox
from gateway.mail.envelope import Envelope, Listener, Session
from gateway.mail.message import Message
from gateway.policy import load_rules
from tests.auth.dkim.signing import ed25519_key, rsa_key
from tests.bench.mail import SENDER, signed_message

pytestmark = pytest.mark.bench

ROUNDS = 15
MESSAGES = 200
GOAL = 1.5

RSA = SigningKey(
    domain="bench.example", selector="rsa", subdomains=True, expires_after_s=None, private_key=rsa_key(2048)
)
ED25519 = replace(RSA, selector="ed", private_key=ed25519_key())
KEYS = {"RSA": (RSA,), "RSA and Ed25519": (RSA, ED25519)}
SIZES = {5_000: "5 KB", 100_000: "100 KB"}
OURS = Envelope(
    id="bench.1",
    session=Session(id="bench", listener=Listener.SUBMISSION, client_ip=ip_address("192.0.2.7"), login="ann"),
    mail_from=parse_mailbox(SENDER),
)


def unsigned(size: int) -> bytes:
    """The bench's message without the signature that it comes with."""
    raw = signed_message(size).raw
    return raw[raw.index(b"\r\nReceived:") + 2 :]


def judging(raw: bytes, keys: tuple[SigningKey, ...]) -> Callable[[], None]:
    """Judges so many messages of one of our own users, signing with these keys."""
    engine = Engine(ZoneResolver.from_text(""), load_rules("default"), authserv_id="mx.bench.example")
    engine.signer = Signer(KeyTable(keys)) if keys else None

    async def judge() -> None:
        for _ in range(MESSAGES):
            verdict = await engine.judge(OURS, Message(raw))
            assert (len(verdict.signing.made) if verdict.signing else 0) == len(keys)

    return lambda: asyncio.run(judge())


def signing(keys: tuple[SigningKey, ...]) -> Callable[[], None]:
    """What OpenSSL alone needs for the same signatures."""

    def sign() -> None:
        for _ in range(MESSAGES):
            for key in keys:
                key.sign(b"d" * 32)

    return sign


def microseconds(work: Callable[[], None]) -> float:
    """Processor time of one message."""
    started = time.process_time()
    work()
    return (time.process_time() - started) / MESSAGES * 1e6


def test_what_signing_adds() -> None:
    rows = [
        "| message | keys | bare signatures µs | signing adds µs | ratio | goal |",
        "|---|---|---|---|---|---|",
    ]
    for size, words in SIZES.items():
        raw = unsigned(size)
        for name, keys in KEYS.items():
            works = (signing(keys), judging(raw, ()), judging(raw, keys))
            for work in works:
                work()
            rounds = [tuple(map(microseconds, works)) for _ in range(ROUNDS)]
            bare = median(bare for bare, _, _ in rounds)
            added = median(signed - judged for _, judged, signed in rounds)
            rows.append(f"| {words} | {name} | {bare:.0f} | {added:.0f} | **{added / bare:.2f}** | {GOAL} |")
            assert bare < added < 4 * GOAL * bare, "far beyond what a busy machine explains"
    sys.stdout.write("\n\n" + "\n".join(rows) + "\n")
