"""Against a real HTTPS server on loopback."""

import asyncio
import contextlib
import gzip
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from gateway.dns.zone import ZoneResolver
from gateway.tlspolicy.model import TlsProblem
from gateway.tlspolicy.mta_sts import fetch as module
from gateway.tlspolicy.mta_sts.fetch import Fetched, FetchFailure, FetchOptions, HttpsFetcher
from gateway.tlspolicy.mta_sts.policy import MAX_POLICY_BYTES, Mode

GOOD = b"version: STSv1\r\nmode: enforce\r\nmx: mx.example.com\r\nmax_age: 86400\r\n"
ZONE = ZoneResolver.from_text(
    """
mta-sts.example.com. A 127.0.0.1
mta-sts.v6-dead.example.com. A 127.0.0.1
mta-sts.v6-dead.example.com. AAAA 100::1
mta-sts.alias.example.com. CNAME mta-sts.example.com.
$TROUBLE mta-sts.broken.example.com. ANY servfail
"""
)
NAMES = ("mta-sts.example.com", "mta-sts.v6-dead.example.com", "mta-sts.alias.example.com")
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def text(body: bytes = GOOD, content_type: str = "text/plain", status: int = 200, **headers: str) -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        answer = {
            "Content-Type": content_type,
            **{key.replace("_", "-"): value for key, value in headers.items()},
        }
        return web.Response(body=body, status=status, headers=answer)

    return handler


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return path


@contextlib.asynccontextmanager
async def server(
    handler: Handler, certificate: trustme.LeafCert, where: tuple[str, int] = ("127.0.0.1", 0)
) -> AsyncIterator[int]:
    """A policy host; its port."""
    application = web.Application()
    application.router.add_get("/.well-known/mta-sts.txt", handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    runner = web.AppRunner(application, shutdown_timeout=0.1, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, *where, ssl_context=context)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def fetch(
    port: int, ca_file: Path | None, domain: str = "example.com", timeout_s: float = 10
) -> Fetched | FetchFailure:
    fetcher = HttpsFetcher(ZONE, FetchOptions(timeout_s=timeout_s, port=port, ca_file=ca_file))
    try:
        return await fetcher.fetch(domain)
    finally:
        await fetcher.aclose()


@pytest.mark.parametrize("domain", ["example.com", "alias.example.com", "v6-dead.example.com"])
async def test_a_policy_is_fetched(authority: trustme.CA, ca_file: Path, domain: str) -> None:
    async with server(text(), authority.issue_cert(*NAMES)) as port:
        fetched = await fetch(port, ca_file, domain)
    assert isinstance(fetched, Fetched)
    assert (fetched.policy.mode, fetched.policy.mx) == (Mode.ENFORCE, ("mx.example.com",))
    assert fetched.text == GOOD.decode()


def endless() -> Handler:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"mx: a.example\n" * 1_000)
        return response

    return handler


@pytest.mark.parametrize(
    ("handler", "problem"),
    [
        (text(content_type="text/plain; charset=utf-8"), None),
        (text(content_type="Text/Plain"), None),
        (text(GOOD + b"x: " + b"y" * (MAX_POLICY_BYTES - len(GOOD) - 3)), None),
        (text(content_type="text/html"), TlsProblem.STS_FETCH_TYPE),
        (text(content_type="application/octet-stream"), TlsProblem.STS_FETCH_TYPE),
        (text(gzip.compress(GOOD), Content_Encoding="gzip"), TlsProblem.STS_FETCH_TYPE),
        (text(gzip.compress(b"\0" * 50_000_000), Content_Encoding="gzip"), TlsProblem.STS_FETCH_TYPE),
        (text(status=301, Location="https://mta-sts.example.com/other"), TlsProblem.STS_FETCH_REDIRECT),
        (text(status=302, Location="https://elsewhere.example/\r\n".strip()), TlsProblem.STS_FETCH_REDIRECT),
        (text(status=404), TlsProblem.STS_FETCH_STATUS),
        (text(status=500), TlsProblem.STS_FETCH_STATUS),
        (text(status=204), TlsProblem.STS_FETCH_STATUS),
        (text(GOOD + b"x: " + b"y" * (MAX_POLICY_BYTES - len(GOOD) - 2)), TlsProblem.STS_FETCH_TOO_LARGE),
        (endless(), TlsProblem.STS_FETCH_TOO_LARGE),
        (text(b"<html>"), TlsProblem.STS_POLICY_INVALID),
        (text(b""), TlsProblem.STS_POLICY_INVALID),
        (text(b"\xff\xfe"), TlsProblem.STS_POLICY_INVALID),
    ],
)
async def test_what_the_host_may_answer(
    authority: trustme.CA, ca_file: Path, handler: Handler, problem: TlsProblem | None
) -> None:
    async with server(handler, authority.issue_cert(*NAMES)) as port:
        found = await fetch(port, ca_file)
    assert (found.problem if isinstance(found, FetchFailure) else None) is problem


async def test_a_redirect_is_not_followed_even_to_the_same_host(authority: trustme.CA, ca_file: Path) -> None:
    asked: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        asked.append(request.headers.get("Accept-Encoding", ""))
        raise web.HTTPFound("/.well-known/mta-sts.txt?again")

    async with server(handler, authority.issue_cert(*NAMES)) as port:
        found = await fetch(port, ca_file)
    assert isinstance(found, FetchFailure)
    assert found.detail == "302 to /.well-known/mta-sts.txt?again"
    assert asked == ["identity"]


NOW = datetime.now(UTC)
DAY = timedelta(days=1)


@pytest.mark.parametrize(
    "issue",
    [
        lambda ca: ca.issue_cert("example.com"),  # not the policy host's name
        lambda ca: ca.issue_cert("mta-sts.example.org"),
        lambda ca: ca.issue_cert("192.0.2.1", common_name="mta-sts.example.com"),  # only the CN
        lambda ca: ca.issue_cert(*NAMES, not_before=NOW - 9 * DAY, not_after=NOW - DAY),
        lambda ca: ca.issue_cert(*NAMES, not_before=NOW + DAY, not_after=NOW + 9 * DAY),
        lambda _: trustme.CA().issue_cert(*NAMES),  # nobody knows that authority
    ],
)
async def test_a_certificate_that_proves_nothing(
    authority: trustme.CA, ca_file: Path, issue: Callable[[trustme.CA], trustme.LeafCert]
) -> None:
    async with server(text(), issue(authority)) as port:
        found = await fetch(port, ca_file)
    assert isinstance(found, FetchFailure)
    assert found.problem is TlsProblem.STS_FETCH_CERTIFICATE


async def test_the_systems_authorities_do_not_know_ours(authority: trustme.CA) -> None:
    async with server(text(), authority.issue_cert(*NAMES)) as port:
        found = await fetch(port, None)
    assert isinstance(found, FetchFailure)
    assert found.problem is TlsProblem.STS_FETCH_CERTIFICATE


@pytest.mark.parametrize("after_the_head", [False, True])
async def test_a_slow_host_is_left_after_the_time(
    authority: trustme.CA, ca_file: Path, *, after_the_head: bool
) -> None:
    left = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/plain"})
        try:
            if after_the_head:
                await response.prepare(request)
                await response.write(b"version: STSv1\n")
            await asyncio.Event().wait()
        finally:
            left.set()
        return response

    async with server(handler, authority.issue_cert(*NAMES)) as port:
        found = await fetch(port, ca_file, timeout_s=0.5)
        assert isinstance(found, FetchFailure)
        assert found.problem is TlsProblem.STS_FETCH_TIMEOUT
    await asyncio.wait_for(left.wait(), 5)


@contextlib.asynccontextmanager
async def without_tls(answer: bytes | None) -> AsyncIterator[int]:
    """A port that answers the first byte with this and hangs up; None: it is silent until the other side hangs up."""
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1 if answer is None else 1)
        with contextlib.suppress(ConnectionError):
            writer.write(answer or b"")
            writer.close()
            await writer.wait_closed()
        over.set()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with listener:
        yield listener.sockets[0].getsockname()[1]
        await asyncio.wait_for(over.wait(), 5)


async def test_a_host_that_never_shakes_hands_is_left_after_the_time(ca_file: Path) -> None:
    async with without_tls(None) as port:
        found = await fetch(port, ca_file, timeout_s=0.3)
    assert isinstance(found, FetchFailure)
    assert found.problem is TlsProblem.STS_FETCH_TIMEOUT


@pytest.mark.parametrize(
    "answer", [b"", b"220 mail.example.com ESMTP\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n"]
)
async def test_a_port_without_tls(ca_file: Path, answer: bytes) -> None:
    async with without_tls(answer) as port:
        found = await fetch(port, ca_file)
    assert isinstance(found, FetchFailure)
    assert found.problem is TlsProblem.STS_FETCH_CONNECT


@contextlib.asynccontextmanager
async def raw(answer: bytes, certificate: trustme.LeafCert) -> AsyncIterator[int]:
    """Says this over TLS and hangs up; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    async with listener:
        yield listener.sockets[0].getsockname()[1]


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nConnection: close\r\n"
CHUNK = b"%x\r\n%b\r\n" % (len(GOOD), GOOD)


@pytest.mark.parametrize(
    ("answer", "is_whole"),
    [
        (b"Content-Length: %d\r\n\r\n%b" % (len(GOOD), GOOD), True),
        (b"Transfer-Encoding: Chunked\r\n\r\n%b0\r\n\r\n" % CHUNK, True),
        (b"Content-Length: %d\r\n\r\n%b" % (len(GOOD) + 1, GOOD), False),
        (b"Transfer-Encoding: chunked\r\n\r\n%b" % CHUNK, False),
        (b"\r\n" + GOOD, False),  # perhaps the whole, perhaps `max_age: 864000` cut short
    ],
)
async def test_a_policy_that_may_have_been_cut_short_is_none(
    authority: trustme.CA, ca_file: Path, answer: bytes, *, is_whole: bool
) -> None:
    async with raw(HEAD + answer, authority.issue_cert(*NAMES)) as port:
        found = await fetch(port, ca_file)
    assert (found.problem if isinstance(found, FetchFailure) else None) is (
        None if is_whole else TlsProblem.STS_FETCH_CONNECT
    )


async def test_a_closed_port_is_a_connection_that_failed(ca_file: Path) -> None:
    listener = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    found = await fetch(port, ca_file)
    assert isinstance(found, FetchFailure)
    assert found.problem is TlsProblem.STS_FETCH_CONNECT


@pytest.mark.parametrize(
    ("domain", "said"),
    [
        ("absent.example.com", "no address of mta-sts.absent.example.com (AAAA: nxdomain, A: nxdomain)"),
        ("broken.example.com", "no address of mta-sts.broken.example.com (AAAA: servfail, A: servfail)"),
    ],
)
async def test_a_host_without_an_address_is_named(ca_file: Path, domain: str, said: str) -> None:
    found = await fetch(443, ca_file, domain)
    assert isinstance(found, FetchFailure)
    assert found.problem is TlsProblem.STS_FETCH_CONNECT
    assert said in found.detail


async def test_the_environments_proxy_is_not_used(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    async with server(text(), authority.issue_cert(*NAMES)) as port:
        assert isinstance(await fetch(port, ca_file), Fetched)


SLOW_AND_QUICK = ZoneResolver.from_text(
    """
mta-sts.slow.example. A 127.0.0.1
mta-sts.quick.example. A 127.0.1.1
"""
)


async def test_slow_hosts_of_one_network_keep_nobody_else_waiting(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FETCHES_PER_NETWORK", 2)
    monkeypatch.setattr(module, "PLACE_WAIT_S", 0.1)
    certificate = authority.issue_cert("mta-sts.slow.example", "mta-sts.quick.example")
    asked, let_go = asyncio.Semaphore(0), asyncio.Event()

    async def slow(request: web.Request) -> web.StreamResponse:
        asked.release()
        await let_go.wait()
        return await text()(request)

    async with server(slow, certificate) as port, server(text(), certificate, ("127.0.1.1", port)):
        fetcher = HttpsFetcher(SLOW_AND_QUICK, FetchOptions(port=port, ca_file=ca_file))
        try:
            under_way = [asyncio.create_task(fetcher.fetch("slow.example")) for _ in range(2)]
            for _ in under_way:
                await asked.acquire()
            one_more = await fetcher.fetch("slow.example")
            assert isinstance(one_more, FetchFailure)
            assert one_more.problem is TlsProblem.STS_FETCH_BUSY
            assert isinstance(await fetcher.fetch("quick.example"), Fetched)
            let_go.set()
            assert all(isinstance(each, Fetched) for each in await asyncio.gather(*under_way))
            assert isinstance(await fetcher.fetch("slow.example"), Fetched)  # the places are free again
        finally:
            await fetcher.aclose()


async def test_waiting_for_others_does_not_count_as_slow(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_FETCHES_PER_NETWORK", 1)
    monkeypatch.setattr(module, "PLACE_WAIT_S", 30.0)

    async def slow(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(0.6)
        return await text()(request)

    async with server(slow, authority.issue_cert("mta-sts.slow.example")) as port:
        fetcher = HttpsFetcher(SLOW_AND_QUICK, FetchOptions(port=port, ca_file=ca_file, timeout_s=1.5))
        try:  # the last of them waits for longer than a fetch may take
            all_of_them = await asyncio.gather(*[fetcher.fetch("slow.example") for _ in range(4)])
        finally:
            await fetcher.aclose()
    assert all(isinstance(each, Fetched) for each in all_of_them)


async def test_time_that_we_did_not_have_is_not_the_hosts_fault(
    authority: trustme.CA, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LATE_S", 0.1)

    async def held_up(request: web.Request) -> web.StreamResponse:
        time.sleep(0.8)  # noqa: ASYNC251 - as where the machine has no time for us
        return await text()(request)

    async with server(held_up, authority.issue_cert("mta-sts.slow.example")) as port:
        fetcher = HttpsFetcher(SLOW_AND_QUICK, FetchOptions(port=port, ca_file=ca_file, timeout_s=0.4))
        try:
            failure = await fetcher.fetch("slow.example")
        finally:
            await fetcher.aclose()
    assert isinstance(failure, FetchFailure)
    assert (failure.problem, failure.detail) == (
        TlsProblem.STS_FETCH_BUSY,
        "this process was held up meanwhile",
    )
