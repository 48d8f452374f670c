"""The door that Postfix asks: order, limits, clocks, and what happens when something is wrong."""

import asyncio
import stat
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop
from structlog.testing import capture_logs

import gateway.listeners.socketmap as module
from gateway.listeners.socketmap import MAX_PENDING
from gateway.postfix.netstring import encode
from gateway.tlspolicy.model import FailureType, PolicyType, StsView, TlsLevel, TlsProblem
from tests.listeners.socketmap import Client, open_bed, until
from tests.live.postfix import open_directory
from tests.postfix.decisions import decided, enforced, host, no_route

MAY = decided(TlsLevel.MAY)
ENCRYPT = decided(TlsLevel.ENCRYPT, domain="encrypt.example")
REFUSED = decided(TlsLevel.REFUSE, domain="refuse.example", override="refuse")


@pytest.fixture
def directory() -> Iterator[Path]:
    with open_directory() as directory:
        yield directory


async def test_many_questions_on_one_connection() -> None:
    async with open_bed(MAY, ENCRYPT, REFUSED) as bed:
        client = await bed.connect()
        assert await client.ask("example.com") == "NOTFOUND "
        assert await client.ask("Encrypt.Example") == "OK encrypt"
        assert await client.ask("refuse.example") == "TEMP refuse.example: tls.override-refuse"
        assert await client.ask(".example.com") == "NOTFOUND "
        assert await client.ask("[mail.example.com]:587") == "NOTFOUND "
        assert bed.decider.asked == []
        assert bed.counts.answers == [
            ("may", "not-found"),
            ("encrypt", "ok"),
            ("refuse", "temp"),
            ("", "parent"),
            ("", "not-found"),
        ]


def test_on_uvloop_as_the_gateway_runs_it() -> None:
    async def ask() -> str:
        async with open_bed(ENCRYPT) as bed:
            return await (await bed.connect()).ask("encrypt.example")

    assert uvloop.run(ask()) == "OK encrypt"


async def test_cut_anywhere() -> None:
    async with open_bed(ENCRYPT) as bed:
        client = await bed.connect()
        for byte in encode(b"postfix encrypt.example") * 2:
            client.writer.write(bytes([byte]))
            await client.writer.drain()
        assert [await client.reply(), await client.reply()] == ["OK encrypt"] * 2


async def test_answers_keep_the_order_of_the_questions() -> None:
    async with open_bed(ENCRYPT, REFUSED) as bed:
        client = await bed.connect()
        client.send("slow.example", "encrypt.example", "slower.example", "refuse.example")
        await bed.until_asked(2)
        bed.decider.release("slower.example", TlsLevel.DANE)
        bed.decider.release("slow.example", TlsLevel.DANE_ONLY)
        assert [await client.reply() for _ in range(4)] == [
            "OK dane-only",
            "OK encrypt",
            "OK dane",
            "TEMP refuse.example: tls.override-refuse",
        ]


async def test_one_look_up_for_all_who_ask() -> None:
    async with open_bed() as bed:
        clients = [await bed.connect() for _ in range(5)]
        for client in clients:
            client.send("slow.example", "slow.example")
        await bed.until_asked(1)
        bed.decider.release("slow.example")
        for client in clients:
            assert [await client.reply(), await client.reply()] == ["OK encrypt"] * 2
        assert bed.decider.asked == ["slow.example"]


async def test_an_answer_that_takes_too_long_is_temp_and_its_look_up_goes_on() -> None:
    async with open_bed(answer_timeout_s=0.05) as bed:
        client = await bed.connect()
        assert await client.ask("slow.example") == "TEMP slow.example: no answer in 0.05 s"
        assert bed.counts.answers == [("", "timeout")]
        client.send("slow.example")
        bed.decider.release("slow.example")
        assert await client.reply() == "OK encrypt"
        assert bed.decider.asked == ["slow.example"]


async def test_a_bug_is_temp_and_told_with_its_traceback() -> None:
    async with open_bed() as bed:
        client = await bed.connect()
        client.send("slow.example")
        await bed.until_asked(1)
        with capture_logs() as logs:
            bed.decider.slow["slow.example"].set_exception(ZeroDivisionError())
            assert (await client.reply()).startswith("TEMP internal error")
        assert [(one["event"], one["domain"]) for one in logs] == [("tls-policy.failed", "slow.example")]
        assert bed.counts.answers == [("", "failed")]


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00",  # TLS
        b"7:postfix,",  # no key
        b"5000:",  # too long
        b"23:postfix encrypt.example;",
    ],
)
async def test_another_protocol_ends_the_connection_after_what_was_right(data: bytes) -> None:
    async with open_bed(ENCRYPT) as bed:
        client = await bed.connect()
        client.writer.write(encode(b"postfix encrypt.example") + data)
        assert await client.reply() == "OK encrypt"
        assert await client.end() == b""
        assert await (await bed.connect()).ask("encrypt.example") == "OK encrypt"


async def test_a_crowd_finds_the_door_closed() -> None:
    async with open_bed(ENCRYPT, max_connections=2) as bed:
        first, second = await bed.connect(), await bed.connect()
        for client in (first, second):
            assert await client.ask("encrypt.example") == "OK encrypt"
        with capture_logs() as logs:
            for _ in range(3):
                assert await (await bed.connect()).end() == b""
        assert [one["event"] for one in logs] == ["tls-policy.full"]
        first.writer.close()
        await until(lambda: len(bed.listener._connections) == 1)
        assert await (await bed.connect()).ask("encrypt.example") == "OK encrypt"


async def test_a_flood_of_questions_waits_its_turn() -> None:
    async with open_bed(ENCRYPT) as bed:
        client = await bed.connect()
        client.send(*(f"d{number}.example" for number in range(1_000)))
        await bed.until_asked(MAX_PENDING)
        await asyncio.sleep(0.05)
        assert len(bed.decider.asked) == MAX_PENDING
        for number in range(1_000):
            name = f"d{number}.example"
            await bed.until_asked(number + 1)
            bed.decider.release(name)
            assert await client.reply() == "OK encrypt"


async def flood(client: Client) -> None:
    """Questions, as many as the other side takes, up to 400 MB."""
    block = encode(b"postfix encrypt.example") * 10_000
    for _ in range(1_500):
        client.writer.write(block)
        await asyncio.wait_for(client.writer.drain(), 0.5)


async def test_a_client_that_takes_no_answers_gets_no_more(directory: Path) -> None:
    async with open_bed(ENCRYPT, listen=directory / "x.sock") as bed:  # its buffers are smaller than TCP's
        client = await bed.connect()
        with pytest.raises(TimeoutError):  # it is not read from for ever
            await flood(client)
        answered = len(bed.counts.answers)
        await asyncio.sleep(0.1)
        assert len(bed.counts.answers) == answered
        client.writer.transport.abort()


async def test_an_idle_connection_is_ended_however_slowly_it_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_S", 0.1)
    monkeypatch.setattr(module, "TICK_S", 0.02)
    async with open_bed(ENCRYPT) as bed:
        client = await bed.connect()
        assert await client.ask("encrypt.example") == "OK encrypt"
        client.writer.write(b"2")  # no question yet
        assert await client.end() == b""


async def test_a_connection_that_ends_leaves_nothing_behind() -> None:
    async with open_bed() as bed:
        client = await bed.connect()
        client.send("slow.example", "slower.example")
        await bed.until_asked(2)
        client.writer.close()
        await until(lambda: not bed.listener._connections)
        bed.decider.release("slow.example")
        bed.decider.release("slower.example")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not bed.listener._deciding


async def test_draining_answers_what_has_come_and_takes_nothing_new() -> None:
    async with open_bed(ENCRYPT) as bed:
        asking, idle = await bed.connect(), await bed.connect()
        assert await idle.ask("encrypt.example") == "OK encrypt"
        asking.send("slow.example")
        await bed.until_asked(1)
        drained = asyncio.create_task(bed.listener.drain(5.0))
        assert await idle.end() == b""
        assert not bed.listener.addresses
        bed.decider.release("slow.example")
        assert await asking.reply() == "OK encrypt"
        assert await asking.end() == b""
        await drained


async def test_the_deadline_ends_the_draining() -> None:
    async with open_bed() as bed:
        client = await bed.connect()
        client.send("slow.example")
        await bed.until_asked(1)
        await bed.listener.drain(0.05)
        assert await client.end() == b""


async def test_retiring_serves_those_who_are_there() -> None:
    async with open_bed(ENCRYPT) as bed:
        client = await bed.connect()
        assert await client.ask("encrypt.example") == "OK encrypt"
        retired = asyncio.create_task(bed.listener.retire(5.0))
        await asyncio.sleep(0)
        assert not bed.listener.addresses
        assert await client.ask("encrypt.example") == "OK encrypt"
        client.writer.close()
        await retired


def names(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_over_a_unix_socket(directory: Path) -> None:
    path = directory / "tls-policy.sock"
    async with open_bed(ENCRYPT, listen=path, socket_mode=0o600) as bed:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await (await bed.connect()).ask("encrypt.example") == "OK encrypt"
        async with open_bed(REFUSED, listen=directory / "other.sock", socket_mode=0o666):
            pass
    assert names(directory) == []


async def test_a_successor_takes_the_path_over(directory: Path) -> None:
    path = directory / "tls-policy.sock"
    async with open_bed(ENCRYPT, listen=path) as old:
        client = await old.connect()
        async with open_bed(ENCRYPT, listen=directory / "first.sock") as new:
            new.listener._options = new.listener._options.__class__(listen=path, overrides={})  # type: ignore[misc]
            new.listener._stop_listening()
            await new.listener.start(shared=True)
            await old.listener.retire(0.01)
            assert path.is_socket(), "the successor's"
            assert await client.ask("encrypt.example") == "OK encrypt"
            assert await (await new.connect()).ask("encrypt.example") == "OK encrypt"


async def test_a_group_that_is_not_there_is_named(directory: Path) -> None:
    with pytest.raises(OSError, match="there is no group 'nobodys'"):
        async with open_bed(listen=directory / "x.sock", socket_group="nobodys"):
            pass


async def test_a_decision_is_told_once_and_again_when_it_changes() -> None:
    async with open_bed(ENCRYPT) as bed:
        client = await bed.connect()
        with capture_logs() as logs:
            for _ in range(3):
                await client.ask("encrypt.example")
            bed.decider.known["encrypt.example"] = decided(TlsLevel.ENCRYPT, domain="encrypt.example")
            await client.ask("encrypt.example")
            servfail = no_route(TlsLevel.REFUSE, TlsProblem.ROUTE_SERVFAIL)
            bed.decider.known["encrypt.example"] = servfail
            await client.ask("encrypt.example")
        told = [one for one in logs if one["log_level"] == "info"]
        assert [(one["event"], one["tls"], one["problems"]) for one in told] == [
            ("tls-policy.decided", "encrypt", []),
            ("tls-policy.changed", "refuse", ["route.dns-servfail"]),
        ]
        assert told[1]["before"] == "encrypt"
        answered = [one for one in logs if one["event"] == "tls-policy.answered"]
        assert len(answered) == 5


async def test_the_operators_word_for_a_host_in_brackets() -> None:
    overrides = {"smart.example.net": "secure", ".example.org": "encrypt"}
    async with open_bed(overrides=overrides) as bed:
        client = await bed.connect()
        assert await client.ask("[smart.example.net]:587") == (
            "OK secure match=smart.example.net servername=hostname"
        )
        assert await client.ask("[mail.example.org]") == "OK encrypt"
        assert bed.decider.asked == []


async def test_a_refusal_is_a_failed_session_for_the_report_once_a_decision() -> None:
    not_listed = replace(
        host("mx.evil.example", problem=TlsProblem.STS_MX_NOT_LISTED),
        policy_type=PolicyType.STS,
        failure=FailureType.VALIDATION_FAILURE,
    )
    refused = decided(TlsLevel.REFUSE, not_listed, sts=enforced("mx.example.com"))
    async with open_bed(refused, ENCRYPT) as bed:
        client = await bed.connect()
        for _ in range(3):
            assert await client.ask("example.com") == "TEMP example.com: mta-sts.mx-not-listed"
        await client.ask("encrypt.example")
        (session,) = bed.counts.sessions
    assert (session.policy_domain, session.failure, session.reason) == (
        "example.com",
        "validation-failure",
        "mta-sts.mx-not-listed",
    )
    assert session.receiving_mx_hostname == "mx.evil.example"
    assert session.mx_host == ("mx.example.com",)


async def test_a_policy_that_could_not_be_fetched_is_for_the_report_and_stops_nothing() -> None:
    sts = StsView(identifier="1", problem=TlsProblem.STS_FETCH_CERTIFICATE)
    stands = StsView(mode="testing", problem=TlsProblem.STS_FETCH_TIMEOUT)  # an older one does
    unfetched = decided(TlsLevel.MAY, sts=sts)
    async with open_bed(unfetched, decided(TlsLevel.MAY, sts=stands, domain="stands.example")) as bed:
        client = await bed.connect()
        assert await client.ask("example.com") == "NOTFOUND "
        assert await client.ask("stands.example") == "NOTFOUND "
        (session,) = bed.counts.sessions
    assert (session.failure, session.reason) == ("sts-webpki-invalid", "mta-sts.fetch-certificate")


async def test_a_giant_answer_comes_whole_each_time() -> None:
    mx = tuple(f"mx{number}.mail.example.com" for number in range(300))
    giant = decided(TlsLevel.SECURE, host(mx[0]), sts=enforced(*mx))
    async with open_bed(giant, tlsrpt=True) as bed:
        client = await bed.connect()
        first = await client.ask("example.com")
        assert len(first) > 20_000
        assert first.endswith("{ policy_string = max_age: 86400 }")
        assert await client.ask("example.com") == first


async def test_a_bug_in_an_answer_is_temp_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "answer", lambda *_args, **_more: 1 / 0)
    async with open_bed(ENCRYPT) as bed:
        client = await bed.connect()
        with capture_logs() as logs:
            assert (await client.ask("encrypt.example")).startswith("TEMP internal error")
        assert "tls-policy.failed" in [one["event"] for one in logs]


@pytest.mark.parametrize(
    "conversation",
    [
        test_many_questions_on_one_connection,
        test_cut_anywhere,
        test_answers_keep_the_order_of_the_questions,
        test_one_look_up_for_all_who_ask,
        test_an_answer_that_takes_too_long_is_temp_and_its_look_up_goes_on,
        test_a_crowd_finds_the_door_closed,
        test_a_flood_of_questions_waits_its_turn,
        test_draining_answers_what_has_come_and_takes_nothing_new,
        test_the_deadline_ends_the_draining,
        test_retiring_serves_those_who_are_there,
    ],
    ids=lambda conversation: conversation.__name__,
)
def test_likewise_on_the_loop_of_gateway_serve(conversation: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """uvloop's transports differ from asyncio's in small things."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(conversation())
