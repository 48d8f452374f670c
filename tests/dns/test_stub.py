import asyncio
import contextlib
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import dns.message
import pytest
import uvloop

from gateway.dns.cache import CacheLimits
from gateway.dns.exchange import Server
from gateway.dns.resolver import Answer, Missing, NotFound, Outcome, RecordType, Temporary, Trouble
from gateway.dns.stub import DnsObservation, StubOptions, StubResolver, Validation
from tests.dns.fake_server import FakeServer, Handler, reply, serving

A, CNAME, MX, TXT = RecordType.A, RecordType.CNAME, RecordType.MX, RecordType.TXT
SOA = "example.com. 300 SOA ns.example.com. h.example.com. 1 3600 600 86400 60"
QUICK = StubOptions(attempt_timeout_s=0.1, timeout_s=0.25)

MALFORMED = Temporary(Trouble.MALFORMED)
TIMEOUT = Temporary(Trouble.TIMEOUT)


@asynccontextmanager
async def asking(
    handler: Handler, *, options: StubOptions = QUICK, tcp: bool = False
) -> AsyncIterator[tuple[StubResolver, FakeServer]]:
    async with serving(handler, tcp=tcp) as server:
        resolver = StubResolver([f"127.0.0.1:{server.port}"], options=options)
        try:
            yield resolver, server
        finally:
            await resolver.aclose()


def txt(name: str, data: bytes = b"v=spf1 -all", ttl: int = 300) -> Answer:
    return Answer((data,), ttl, secure=False, name=name)


def with_other_id(query: dns.message.Message) -> bytes:
    wire = bytearray(reply(query, "x.example.com. 300 TXT forged"))
    wire[0] ^= 0xFF
    return bytes(wire)


def with_other_question(query: dns.message.Message) -> bytes:
    other = dns.message.make_query("y.example.com", "TXT")
    other.id = query.id
    return reply(other, "y.example.com. 300 TXT forged")


GOOD = "x.example.com. 300 TXT 'v=spf1 -all'".replace("'", '"')


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (lambda q: [reply(q, GOOD)], txt("x.example.com")),
        (lambda q: [reply(q, GOOD, flags="QR RD RA AD")], Answer((b"v=spf1 -all",), 300, secure=True, name="x.example.com")),
        (lambda q: [reply(q, "x.example.com. 300 CNAME y.example.org.", 'y.example.org. 20 TXT "a" "b"')], txt("y.example.org", b"ab", 20)),
        (lambda q: [reply(q, "x.example.com. 10 CNAME y.example.org.", "y.example.org. 20 TXT a")], txt("y.example.org", b"a", 10)),
        (lambda q: [reply(q, authority=SOA)], NotFound(Missing.NODATA, 60, secure=False)),
        (lambda q: [reply(q, authority=SOA.replace("300", "30"))], NotFound(Missing.NODATA, 30, secure=False)),
        (lambda q: [reply(q)], NotFound(Missing.NODATA, 0, secure=False)),
        (lambda q: [reply(q, "x.example.com. 40 CNAME y.example.org.", authority=SOA)], NotFound(Missing.NODATA, 40, secure=False)),
        (lambda q: [reply(q, rcode=3, authority=SOA, flags="QR RD RA AD")], NotFound(Missing.NXDOMAIN, 60, secure=True)),
        (lambda q: [reply(q, rcode=2)], Temporary(Trouble.SERVFAIL)),
        (lambda q: [reply(q, rcode=5)], Temporary(Trouble.REFUSED)),
        (lambda q: [reply(q, rcode=1)], MALFORMED),
        # an authoritative server taken for a resolver sends us away: that is no "no"
        (lambda q: [reply(q, authority="com. 300 NS a.gtld-servers.net.", flags="QR")], Temporary(Trouble.REFUSED)),
        # a record of another name, class or type answers nothing
        (lambda q: [reply(q, "z.example.com. 300 TXT other", "x.example.com. 300 A 192.0.2.1")], NotFound(Missing.NODATA, 0, secure=False)),
        # forgers' and strangers' packets are passed over, and the true answer behind them is taken
        (lambda q: [b"", b"garbage", b"\0" * 12, q.to_wire(), with_other_id(q), with_other_question(q), reply(q, GOOD)], txt("x.example.com")),
        (lambda q: [with_other_id(q)], TIMEOUT),
        (lambda q: [with_other_question(q)], TIMEOUT),
        (lambda q: [q.to_wire()], TIMEOUT),
        (lambda q: [b"garbage"] * 150, TIMEOUT),
        (lambda q: [], TIMEOUT),
        # nonsense that does answer us
        (lambda q: [reply(q, GOOD)[:-12]], MALFORMED),
        (lambda q: [reply(q, GOOD)[:40]], MALFORMED),
        (lambda q: [reply(q, "x.example.com. 9 CNAME y.example.com.", "y.example.com. 9 CNAME x.example.com.")], MALFORMED),
        (lambda q: [reply(q, "x.example.com. 9 CNAME x.example.com.")], MALFORMED),
        (lambda q: [reply(q, GOOD, rcode=3)], MALFORMED),
        # truncated, and nobody listens on TCP
        (lambda q: [reply(q, flags="QR RD RA TC")], TIMEOUT),
    ],
)  # fmt: skip
async def test_what_a_server_says(
    answer: Callable[[dns.message.Message], list[bytes]], expected: Outcome
) -> None:
    async with asking(lambda query, _: answer(query)) as (resolver, _):
        assert await resolver.query("x.example.com", TXT) == expected


async def test_a_header_only_error_is_an_error_and_not_silence() -> None:
    async with asking(lambda q, _: [q.to_wire()[:2] + struct.pack("!HHHHH", 0x8182, 0, 0, 0, 0)]) as (
        resolver,
        _,
    ):
        assert await resolver.query("x.example.com", TXT) == Temporary(Trouble.SERVFAIL)


async def test_a_question_is_asked_as_a_validating_stub_should() -> None:
    async with asking(lambda q, _: [reply(q, GOOD)]) as (resolver, server):
        await resolver.query("X.Example.COM.", TXT)
    query = dns.message.from_wire(server.queries[0])
    assert dns.flags.to_text(query.flags) == "RD AD"
    assert (query.edns, query.payload) == (0, 1232)
    assert server.questions == [("x.example.com", "TXT")]


async def test_what_does_not_fit_is_fetched_by_tcp() -> None:
    records = [f"x.example.com. 300 TXT {number:0200}" for number in range(200)]

    def handler(query: dns.message.Message, server: FakeServer) -> list[bytes]:
        return [reply(query, *records)] if server.by_tcp else [reply(query, flags="QR RD RA TC")]

    async with asking(handler, tcp=True) as (resolver, _):
        outcome = await resolver.query("x.example.com", TXT)
    assert isinstance(outcome, Answer)
    assert outcome.records[199] == b"199".rjust(200, b"0")


@pytest.mark.parametrize(
    ("packet", "reason"),
    [
        (lambda q: reply(q, flags="QR RD RA TC"), "truncated by TCP too"),
        (with_other_id, "another identifier"),
        (with_other_question, "another question"),
        (lambda _: b"", "nothing"),
    ],
)
async def test_nonsense_by_tcp_is_no_answer(
    packet: Callable[[dns.message.Message], bytes], reason: str
) -> None:
    def handler(query: dns.message.Message, server: FakeServer) -> list[bytes]:
        return [packet(query)] if server.by_tcp else [reply(query, flags="QR RD RA TC")]

    async with asking(handler, tcp=True) as (resolver, _):
        assert await resolver.query("x.example.com", TXT) == TIMEOUT, reason


async def test_a_thousand_records_are_read_and_more_than_two_thousand_are_not() -> None:
    def handler(query: dns.message.Message, server: FakeServer) -> list[bytes]:
        count = int(query.question[0].name.labels[0])
        name = query.question[0].name
        records = [f"{name} 300 A 10.0.{number >> 8}.{number & 255}" for number in range(count)]
        return [reply(query, *records)] if server.by_tcp else [reply(query, flags="QR RD RA TC")]

    async with asking(handler, tcp=True, options=StubOptions()) as (resolver, _):
        thousand = await resolver.query("1000.example.com", A)
        assert isinstance(thousand, Answer)
        assert len(thousand.records) == 1000
        assert await resolver.query("2001.example.com", A) == MALFORMED


async def test_an_answer_that_comes_too_late_is_not_taken_for_the_next_one() -> None:
    async with asking(lambda _q, _s: []) as (resolver, server):
        assert await resolver.query("slow.example.com", TXT) == TIMEOUT
        late = server.answer_later
        next_one = asyncio.ensure_future(resolver.query("next.example.com", TXT))
        server.asked.clear()
        await server.asked.wait()
        late()
        server.answer_later()
        assert await next_one == txt("next.example.com", b"late", 60)


async def test_a_silent_server_is_asked_again_within_the_time() -> None:
    async with asking(lambda q, s: [reply(q, GOOD)] if len(s.queries) > 1 else []) as (resolver, server):
        assert await resolver.query("x.example.com", TXT) == txt("x.example.com")
    assert len(server.queries) == 2
    assert len(server.source_ports) == 2, "each question comes from a port of its own"


@pytest.mark.parametrize("first", [[], [b"refuse"]])
async def test_another_server_steps_in_and_is_preferred_from_then_on(first: list[bytes]) -> None:
    def failing(query: dns.message.Message, _: FakeServer) -> list[bytes]:
        return [reply(query, rcode=2)] if first else []

    async with serving(failing) as bad, serving(lambda q, _: [reply(q, GOOD)]) as good:
        resolver = StubResolver([f"127.0.0.1:{bad.port}", f"127.0.0.1:{good.port}"], options=QUICK)
        assert await resolver.query("x.example.com", TXT) == txt("x.example.com")
        await resolver.query("other.example.com", TXT)
        assert len(bad.queries) == 1
        assert len(good.queries) == 2
        await resolver.aclose()


async def test_a_failure_that_was_heard_says_more_than_silence() -> None:
    async with serving(lambda _q, _s: []) as silent, serving(lambda q, _: [reply(q, rcode=5)]) as refusing:
        resolver = StubResolver([f"127.0.0.1:{silent.port}", f"127.0.0.1:{refusing.port}"], options=QUICK)
        assert await resolver.query("x.example.com", TXT) == Temporary(Trouble.REFUSED)
        await resolver.aclose()


async def test_nobody_listening_is_told_at_once() -> None:
    async with serving(lambda _q, _s: []) as gone:
        port = gone.port
    resolver = StubResolver([f"127.0.0.1:{port}"])
    start = time.monotonic()
    assert await resolver.query("x.example.com", TXT) == TIMEOUT
    assert time.monotonic() - start < 1


@pytest.mark.parametrize(
    "name",
    ["", "a..b", "x" * 64, ".".join(["x" * 49] * 6), "café.example", "\u212a.example", "..", "a b\u00a0"],
)
async def test_a_name_that_cannot_exist_is_not_asked_for(name: str) -> None:
    async with asking(lambda q, _: [reply(q, GOOD)]) as (resolver, server):
        outcome = await resolver.query(name, TXT)
    assert isinstance(outcome, NotFound)
    assert outcome.missing is Missing.NXDOMAIN
    assert not server.queries


async def test_odd_bytes_in_a_name_are_asked_for_as_they_are() -> None:
    async with asking(lambda q, _: [reply(q, rcode=3)]) as (resolver, server):
        await resolver.query(r"a\046b. c.example", TXT)
    assert list(dns.message.from_wire(server.queries[0]).question[0].name.labels) == [
        rb"a\046b", b" c", b"example", b"",
    ]  # fmt: skip


async def test_an_answer_is_remembered_and_reported() -> None:
    seen: list[DnsObservation] = []
    async with serving(lambda q, _: [reply(q, GOOD)]) as server:
        resolver = StubResolver([f"127.0.0.1:{server.port}"], observe=seen.append)
        first = await resolver.query("x.example.com", TXT)
        assert await resolver.query("X.EXAMPLE.com", TXT) is first
        assert resolver.peek("x.example.com", TXT) is first
        assert resolver.peek("x.example.com", A) is None
        await resolver.aclose()
    assert len(server.queries) == 1
    assert [(one.record_type, one.outcome, one.cached) for one in seen] == [
        (TXT, "answer", False), (TXT, "answer", True), (TXT, "answer", True),
    ]  # fmt: skip
    assert seen[0].seconds > 0


async def test_a_remembered_answer_does_not_suspend() -> None:
    async with asking(lambda q, _: [reply(q, GOOD)]) as (resolver, _):
        await resolver.query("x.example.com", TXT)
        with pytest.raises(StopIteration) as done:
            resolver.query("x.example.com", TXT).send(None)
        assert done.value.value == txt("x.example.com")


async def test_failures_are_remembered_only_briefly() -> None:
    clock = [0.0]
    async with serving(lambda q, _: [reply(q, rcode=2)]) as server:
        resolver = StubResolver([f"127.0.0.1:{server.port}"], options=QUICK, now=lambda: clock[0])
        for moment, asked in [(0, 1), (4.9, 1), (5, 2)]:
            clock[0] = moment
            assert await resolver.query("x.example.com", TXT) == Temporary(Trouble.SERVFAIL)
            assert len(server.queries) == asked, moment
        await resolver.aclose()


async def test_identical_questions_are_asked_once_and_one_asker_may_leave() -> None:
    async with asking(lambda _q, _s: [], options=StubOptions()) as (resolver, server):
        waiters = [asyncio.ensure_future(resolver.query("x.example.com", TXT)) for _ in range(20)]
        await server.asked.wait()
        waiters[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        server.answer_later()
        outcomes = await asyncio.gather(*waiters[1:])
    assert set(outcomes) == {txt("x.example.com", b"late", 60)}
    assert len(server.queries) == 1


async def test_an_answer_that_nobody_waits_for_any_more_is_still_remembered() -> None:
    async with asking(lambda _q, _s: [], options=StubOptions()) as (resolver, server):
        waiter = asyncio.ensure_future(resolver.query("x.example.com", TXT))
        await server.asked.wait()
        waiter.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await waiter
        joining = asyncio.ensure_future(resolver.query("x.example.com", TXT))
        await asyncio.sleep(0)
        server.answer_later()
        assert await joining == txt("x.example.com", b"late", 60)
    assert len(server.queries) == 1


async def test_questions_on_their_way_are_bounded_and_who_waits_for_a_turn_times_out() -> None:
    options = StubOptions(attempt_timeout_s=0.2, timeout_s=0.2, max_in_flight=3)
    async with asking(lambda _q, _s: [], options=options) as (resolver, server):
        outcomes = await asyncio.gather(
            *[resolver.query(f"x{number}.example.com", TXT) for number in range(10)]
        )
    assert outcomes == [TIMEOUT] * 10
    assert len(set(server.questions)) == 3


@pytest.mark.parametrize("moment", ["asked", "before the first step"])
async def test_closing_answers_those_who_wait(moment: str) -> None:
    async with asking(lambda _q, _s: [], options=StubOptions()) as (resolver, server):
        waiter = asyncio.ensure_future(resolver.query("x.example.com", TXT))
        if moment == "asked":
            await server.asked.wait()
        else:
            await asyncio.sleep(0)
        await resolver.aclose()
        assert await asyncio.wait_for(waiter, 1) == TIMEOUT
        assert await resolver.query("y.example.com", TXT) == TIMEOUT


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("QR RD RA AD", Validation.YES), ("QR RD RA", Validation.NO), ("", Validation.UNKNOWN)],
)
async def test_check_validating(flags: str, expected: Validation) -> None:
    root = ". 60 SOA a. b. 1 2 3 4 5"
    async with asking(lambda q, _: [reply(q, root, flags=flags)] if flags else []) as (resolver, server):
        assert await resolver.check_validating() is expected
    assert set(server.questions) == {(".", "SOA")}


async def test_a_mixture_of_validating_and_other_servers_does_not_validate() -> None:
    root = ". 60 SOA a. b. 1 2 3 4 5"
    async with (
        serving(lambda q, _: [reply(q, root, flags="QR RD RA AD")]) as one,
        serving(lambda q, _: [reply(q, root)]) as other,
    ):
        resolver = StubResolver([f"127.0.0.1:{one.port}", f"127.0.0.1:{other.port}"], options=QUICK)
        assert await resolver.check_validating() is Validation.NO


def test_under_uvloop_and_made_before_any_loop() -> None:
    resolver = StubResolver(["127.0.0.1:1"], options=StubOptions(attempt_timeout_s=0.1, timeout_s=0.2))
    large = [f"x.example.com. 300 A 10.0.0.{number}" for number in range(250)]

    def handler(query: dns.message.Message, server: FakeServer) -> list[bytes]:
        if query.question[0].name.labels[0] == b"silent":
            return []
        return [reply(query, *large)] if server.by_tcp else [reply(query, flags="QR RD RA TC")]

    async def main() -> tuple[Outcome, Outcome]:
        async with serving(handler, tcp=True) as server:
            resolver._servers = [Server("127.0.0.1", server.port)]
            outcomes = await resolver.query("x.example.com", A), await resolver.query("silent.example.com", A)
            await resolver.aclose()
            return outcomes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found, silent = runner.run(main())
    assert isinstance(found, Answer)
    assert found.records[7] == IPv4Address("10.0.0.7")
    assert silent == TIMEOUT


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1", Server("127.0.0.1", 53)),
        ("127.0.0.1:5353", Server("127.0.0.1", 5353)),
        ("::1", Server("::1", 53)),
        ("[::1]", Server("::1", 53)),
        ("[::1]:5353", Server("::1", 5353)),
    ],
)
def test_server_addresses(text: str, expected: Server) -> None:
    assert Server.parse(text) == expected


@pytest.mark.parametrize("text", ["", "localhost", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "[::1]x", "[::1", "1.2.3.4:²", "1.2.3.4:9999999999"])  # fmt: skip
def test_a_server_is_given_by_its_address(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        StubResolver([text])


def test_a_resolver_needs_a_server() -> None:
    with pytest.raises(ValueError, match="needs a server"):
        StubResolver([], options=StubOptions(cache=CacheLimits(max_entries=1)))
