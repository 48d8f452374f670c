import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest

from gateway.listeners.http import HttpListener, Readiness
from gateway.mail.envelope import Listener
from gateway.ops.config import HostPort, HttpSettings
from gateway.ops.metrics import Metrics

ANYWHERE = HttpSettings(listen=HostPort("127.0.0.1", 0))


@asynccontextmanager
async def listening(
    *readiness: Callable[[], Readiness], metrics: Metrics | None = None
) -> AsyncIterator[str]:
    listener = HttpListener(ANYWHERE, metrics=metrics or Metrics(), readiness=readiness)
    await listener.start()
    try:
        host, port = listener.addresses[0]
        yield f"http://{host}:{port}"
    finally:
        await listener.close()


def up() -> Readiness:
    return Readiness(name="inbound", ok=True, detail="127.0.0.1:25")


def down() -> Readiness:
    return Readiness(name="dns", ok=False, detail="no answer since 12:00")


def broken() -> Readiness:
    raise RuntimeError("secret detail")


async def test_metrics_are_plain_text_unless_open_metrics_is_asked_for() -> None:
    metrics = Metrics()
    metrics.command(Listener.INBOUND, "MAIL", 250)
    async with listening(metrics=metrics) as url, aiohttp.ClientSession() as client:
        async with client.get(f"{url}/metrics") as plain:
            assert plain.content_type == "text/plain"
            text = await plain.text()
        async with client.get(
            f"{url}/metrics", headers={"Accept": "application/openmetrics-text"}
        ) as open_metrics:
            assert open_metrics.content_type == "application/openmetrics-text"
            assert (await open_metrics.text()).endswith("# EOF\n")
    assert 'gateway_commands_total{code="250",listener="inbound",verb="MAIL"} 1.0' in text


async def test_alive_even_where_not_ready() -> None:
    async with (
        listening(down) as url,
        aiohttp.ClientSession() as client,
        client.get(f"{url}/healthz") as answer,
    ):
        assert answer.status == 200
        assert await answer.json() == {"status": "alive"}


@pytest.mark.parametrize(
    ("checks", "status", "word"),
    [((up,), 200, "ready"), ((up, down), 503, "not ready"), ((), 200, "ready")],
)
async def test_ready_when_everything_is(
    checks: tuple[Callable[[], Readiness], ...], status: int, word: str
) -> None:
    async with (
        listening(*checks) as url,
        aiohttp.ClientSession() as client,
        client.get(f"{url}/readyz") as answer,
    ):
        assert answer.status == status
        said = await answer.json()
    assert said["status"] == word
    assert set(said["checks"]) == {check().name for check in checks}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/../../etc/passwd", 404),
        ("GET", "/<script>", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/readyz", 405),
    ],
)
async def test_nothing_else_is_served_and_nothing_is_echoed(method: str, path: str, status: int) -> None:
    async with (
        listening() as url,
        aiohttp.ClientSession() as client,
        client.request(method, f"{url}{path}") as answer,
    ):
        assert answer.status == status
        assert "script" not in await answer.text()


async def test_answers_say_nothing_of_the_server_and_are_not_kept() -> None:
    async with listening() as url, aiohttp.ClientSession() as client:
        for path in ("/metrics", "/healthz", "/readyz", "/nothing"):
            async with client.get(url + path) as answer:
                assert "Server" not in answer.headers
                assert answer.headers["Cache-Control"] == "no-store"
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_a_bug_is_500_without_detail() -> None:
    async with (
        listening(broken) as url,
        aiohttp.ClientSession() as client,
        client.get(f"{url}/readyz") as answer,
    ):
        assert answer.status == 500
        assert "secret" not in await answer.text()


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"EHLO mail.example\r\n\r\n", id="another protocol"),
        pytest.param(b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", id="a long line"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 10_000 + b"\r\n\r\n", id="a long header"),
    ],
)
async def test_what_is_not_http_is_refused_and_the_next_request_is_answered(request_bytes: bytes) -> None:
    async with listening() as url, aiohttp.ClientSession() as client:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request_bytes)
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()
        async with client.get(f"{url}/healthz") as answer:
            assert json.loads(await answer.text())["status"] == "alive"


async def test_a_taken_address_is_an_oserror_and_leaves_nothing_behind() -> None:
    first = HttpListener(ANYWHERE, metrics=Metrics())
    await first.start()
    second = HttpListener(HttpSettings(listen=HostPort(*first.addresses[0])), metrics=Metrics())
    with pytest.raises(OSError, match="in use"):
        await second.start()
    assert second.addresses == []
    await first.close()
    await second.start()
    await second.close()
