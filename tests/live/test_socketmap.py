"""Real Postfix asks: its `postmap` reads our answers, and its deliveries do what the answers say."""

import asyncio
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.tlspolicy.model import Decision, Demand, TlsLevel, TlsProblem
from tests.listeners.socketmap import Bed, open_bed
from tests.live.postfix import PostfixBed, open_directory
from tests.postfix.decisions import decided, enforced, host, no_route

pytestmark = pytest.mark.live

MAIL = b"From: ann@bed.test\nTo: alice@remote.test\nSubject: hello\n\nhello\n"
STS = enforced("mx.example.com", "*.mail.example.com")
DECISIONS = (
    decided(TlsLevel.MAY, domain="may.example"),
    decided(TlsLevel.MAY, domain="may-override.example", override="may"),
    decided(TlsLevel.DANE, domain="dane.example"),
    decided(TlsLevel.DANE_ONLY, host("mx.example.com", Demand.DANE), domain="dane-only.example"),
    decided(TlsLevel.SECURE, host("mx.example.com"), sts=STS),
    decided(TlsLevel.REFUSE, domain="refuse.example", override="refuse"),
)
ANSWERS = {
    "may.example": "",
    "may-override.example": "may",
    "dane.example": "dane",
    "dane-only.example": "dane-only",
    "Example.COM": "secure match=mx.example.com servername=hostname",
    "[mail.example.com]:587": "",
    ".example.com": "",
}


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def config(directory: Path) -> Path:
    """A directory with a main.cf, for postmap."""
    (directory / "etc").mkdir()
    (directory / "etc" / "main.cf").write_text("compatibility_level = 3.6\n")
    return directory / "etc"


async def postmap(config: Path, table: str, *keys: str) -> tuple[int, str, str]:
    """What `postmap -q` says of one key, or of several over one connection."""
    command = ["postmap", "-c", str(config), "-q", "-" if len(keys) > 1 else keys[0], table]
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        input="".join(f"{key}\n" for key in keys),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def table_of(bed: Bed, name: str = "postfix") -> str:
    (where,) = bed.listener.addresses
    return (
        f"socketmap:unix:{where}:{name}"
        if isinstance(where, Path)
        else f"socketmap:inet:{where[0]}:{where[1]}:{name}"
    )


@pytest.mark.parametrize("key", ANSWERS)
async def test_postmap_reads_each_answer(config: Path, key: str) -> None:
    async with open_bed(*DECISIONS) as bed:
        status, answer, trouble = await postmap(config, table_of(bed), key)
    expected = ANSWERS[key]
    assert (answer, trouble) == (f"{expected}\n" if expected else "", "")
    assert status == (0 if expected else 1)


async def test_postmap_asks_many_questions_on_one_connection(config: Path) -> None:
    async with open_bed(*DECISIONS) as bed:
        _, answers, _ = await postmap(config, table_of(bed), *ANSWERS)
    assert answers.splitlines() == [f"{key}\t{answer}" for key, answer in ANSWERS.items() if answer]


async def test_temp_is_an_error_with_our_reason(config: Path) -> None:
    async with open_bed(*DECISIONS) as bed:
        status, answer, trouble = await postmap(config, table_of(bed), "refuse.example")
    assert (status, answer) == (1, "")
    assert "refuse.example: tls.override-refuse" in trouble


async def test_over_a_unix_socket(config: Path, directory: Path) -> None:
    async with open_bed(*DECISIONS, listen=directory / "tls-policy.sock", socket_group="postfix") as bed:
        _, answer, _ = await postmap(config, table_of(bed), "dane.example")
    assert answer == "dane\n"


async def test_attributes_for_postfix_310_come_whole(config: Path) -> None:
    async with open_bed(*DECISIONS) as bed:
        _, answer, _ = await postmap(config, table_of(bed, "QUERYwithTLSRPT"), "example.com")
    assert answer.startswith("secure match=mx.example.com servername=hostname policy_type=sts policy_domain=")
    assert answer.endswith("{ policy_string = max_age: 86400 }\n")


# Deliveries


@dataclass(frozen=True, slots=True)
class Pair:
    """A Postfix that asks us before it delivers, and the one that it delivers to."""

    sender: PostfixBed
    remote: PostfixBed
    socket: Path  # not a port: while no listener is there, another program could take it

    async def send(self) -> None:
        await asyncio.to_thread(
            self.sender.submit, MAIL, sender="ann@bed.test", recipient="alice@remote.test"
        )

    async def until_logged(self, pattern: str) -> str:
        return (await asyncio.to_thread(self.sender.wait_for_log, pattern))[0]

    async def delivered(self) -> bytes:
        return await asyncio.to_thread(self.remote.wait_for_message, "alice")

    async def try_again(self) -> None:
        await asyncio.to_thread(self.sender.flush)


@pytest.fixture(scope="module")
def pair(directory: Path) -> Iterator[Pair]:
    remote = PostfixBed.start(directory / "remote", local_domains=("remote.test",))
    where = directory / "policy.sock"
    try:
        sender = PostfixBed.start(
            directory / "sender",
            extra={
                # A name that needs no DNS: Postfix asks for it as it stands here.
                "transport_maps": f"inline:{{remote.test=smtp:localhost:{remote.port}}}",
                "smtp_host_lookup": "native",
                "smtp_address_preference": "ipv4",
                "smtp_tls_security_level": "may",
                "smtp_tls_policy_maps": f"socketmap:unix:{where}:postfix",
                "minimal_backoff_time": "1s",
                "queue_run_delay": "1s",
                "smtp_destination_concurrency_failed_cohort_limit": "0",
            },
        )
        try:
            yield Pair(sender, remote, where)
        finally:
            sender.stop()
    finally:
        remote.stop()


@asynccontextmanager
async def answering(pair: Pair, decision: Decision, **options: Any) -> AsyncIterator[Bed]:
    """The listener at the socket that Postfix asks, with this decision for `localhost`."""
    async with open_bed(decision, listen=pair.socket, socket_mode=0o666, **options) as bed:
        yield bed


def local(level: TlsLevel, **more: Any) -> Decision:
    return decided(level, domain="localhost", **more)


async def test_not_found_leaves_it_to_postfix(pair: Pair) -> None:
    async with answering(pair, local(TlsLevel.MAY)) as bed:
        await pair.send()
        assert b"hello" in await pair.delivered()
        assert bed.counts.answers[0] == ("may", "not-found")


async def test_temp_defers_with_the_reason_in_the_log_and_the_mail_stays(pair: Pair) -> None:
    async with answering(pair, local(TlsLevel.REFUSE, override="refuse")) as bed:
        await pair.send()
        await pair.until_logged(r"localhost: tls\.override-refuse")
        await pair.until_logged(r"dsn=4\.7\.5, status=deferred")
        assert len(pair.sender.queue_ids("deferred")) == 1
        assert pair.remote.messages("alice") == []
        bed.decider.known["localhost"] = local(TlsLevel.MAY)
        await pair.try_again()
        assert b"hello" in await pair.delivered()


async def test_a_demand_for_tls_is_not_met_by_a_server_without(pair: Pair) -> None:
    """`secure` as we write it is understood: Postfix misses TLS, not the meaning."""
    secure = decided(TlsLevel.SECURE, host("mx.example.com"), domain="localhost", override="secure")
    async with answering(pair, secure) as bed:
        await pair.send()
        await pair.until_logged(r"status=deferred \(TLS is required, but was not offered")
        assert ("secure", "ok") in bed.counts.answers
        bed.decider.known["localhost"] = local(TlsLevel.MAY)
        await pair.try_again()
        assert b"hello" in await pair.delivered()
    assert "malformed" not in pair.sender.log()
    assert "invalid attribute" not in pair.sender.log()


async def test_dane_without_dnssec_in_postfix_is_may_and_dane_only_is_not(pair: Pair) -> None:
    """Why docs/outbound-tls-postfix.md insists on smtp_dns_support_level: this Postfix has it off."""
    async with answering(pair, local(TlsLevel.DANE)) as bed:
        await pair.send()
        assert b"hello" in await pair.delivered()
        await pair.until_logged(r"localhost.*: dane configured with dnssec lookups disabled")
        bed.decider.known["localhost"] = local(TlsLevel.DANE_ONLY, override="dane-only")
        await pair.send()
        await pair.until_logged(r"localhost.*: dane-only configured with dnssec lookups disabled")
        assert pair.remote.messages("alice") == []
        bed.decider.known["localhost"] = local(TlsLevel.MAY)
        await pair.try_again()
        assert b"hello" in await pair.delivered()


async def test_without_the_gateway_mail_waits(pair: Pair) -> None:
    await pair.send()
    await pair.until_logged(r"socketmap:unix:.*lookup error for .localhost:\d+.$(?s:.*)No such file")
    assert pair.remote.messages("alice") == []
    async with answering(pair, local(TlsLevel.MAY)):
        await pair.try_again()
        assert b"hello" in await pair.delivered()


async def test_an_answer_that_comes_too_late_is_tried_again(pair: Pair) -> None:
    decider = no_route(
        TlsLevel.REFUSE, TlsProblem.ROUTE_TIMEOUT
    )  # of another domain: `localhost` must be looked up
    async with answering(pair, decider, answer_timeout_s=0.2) as bed:
        await pair.send()
        await pair.until_logged(r"localhost: no answer in 0\.2 s")
        bed.decider.release("localhost", TlsLevel.MAY)
        await pair.try_again()
        assert b"hello" in await pair.delivered()
