"""The door for machines of ours: `/metrics` for Prometheus, `/healthz` and `/readyz` for whoever restarts and routes.

Alive and ready are two questions: `/healthz` answers as long as the loop turns (restart it if not), `/readyz` says whether
mail should be sent here now. A web server in front may pass on requests for our MTA-STS policy. The operator's pages are
mounted here (`gateway.pages`), behind a door of their own; here nothing that a mail peer says is ever shown.
"""

import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final, NamedTuple, Protocol

import structlog
from aiohttp import web

from gateway.ops.config import HttpSettings

MAX_HEADER_BYTES: Final = 4_096
SHUTDOWN_S: Final = 2.0
KEEP_ALIVE_S: Final = 75.0

_log: Final = structlog.get_logger()

# aiohttp logs each malformed request with a traceback, at the will of whoever connects; our own faults are logged below.
aiohttp_log: Final = logging.getLogger("gateway.http.aiohttp")
aiohttp_log.setLevel(logging.CRITICAL)

_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


class Readiness(NamedTuple):
    """One thing that must be in order before mail should come: `("inbound", True, "0.0.0.0:25")`."""

    name: str
    ok: bool
    detail: str


class Exposition(Protocol):
    """What this listener needs of the metrics."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """The scrape's body and its content type, chosen by the `Accept` header."""
        ...


class Page(Protocol):
    """Something else that is served here."""

    def mount(self, application: web.Application) -> None:
        """Add its routes."""
        ...


class HttpListener:
    """The HTTP server.

    Args:
        settings: where to listen.
        metrics: what `/metrics` shows.
        readiness: asked at each `/readyz`; each must answer at once.
        refresh: awaited before each scrape and each `/readyz`.
        pages: what else is served.
    """

    def __init__(
        self,
        settings: HttpSettings,
        *,
        metrics: Exposition,
        readiness: Iterable[Callable[[], Readiness]] = (),
        refresh: Callable[[], Awaitable[None]] | None = None,
        pages: Sequence[Page] = (),
    ) -> None:
        self._pages = pages
        self._refresh = refresh
        self._settings = settings
        self._metrics = metrics
        self._readiness = tuple(readiness)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            OSError: the address cannot be had.
        """
        application = web.Application(middlewares=[plain_errors], client_max_size=1)
        application.router.add_get("/metrics", self._show_metrics)
        application.router.add_get("/healthz", self._show_health)
        application.router.add_get("/readyz", self._show_readiness)
        for page in self._pages:
            page.mount(application)
        application.on_response_prepare.append(set_headers)
        runner = web.AppRunner(
            application,
            access_log=None,
            logger=aiohttp_log,
            handle_signals=False,
            max_line_size=MAX_HEADER_BYTES,
            max_field_size=MAX_HEADER_BYTES,
            keepalive_timeout=KEEP_ALIVE_S,
            shutdown_timeout=SHUTDOWN_S,
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, self._settings.listen.host, self._settings.listen.port).start()
        except OSError:
            await runner.cleanup()
            raise
        self._runner = runner

    async def close(self) -> None:
        """Stop, letting an answer under way be finished."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            await runner.cleanup()

    @property
    def addresses(self) -> Sequence[tuple[str, int]]:
        """Where it listens; nowhere before `start` and after `close`."""
        return (
            [] if self._runner is None else [(address[0], address[1]) for address in self._runner.addresses]
        )

    async def _show_metrics(self, request: web.Request) -> web.Response:
        if self._refresh is not None:
            await self._refresh()
        body, content_type = self._metrics.exposition(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _show_health(self, _request: web.Request) -> web.Response:
        return _json({"status": "alive"})

    async def _show_readiness(self, _request: web.Request) -> web.Response:
        if self._refresh is not None:
            await self._refresh()
        found = [ask() for ask in self._readiness]
        ready = all(one.ok for one in found)
        body = {
            "status": "ready" if ready else "not ready",
            "checks": {one.name: {"ok": one.ok, "detail": one.detail} for one in found},
        }
        return _json(body, status=200 if ready else 503)


def _json(body: object, *, status: int = 200) -> web.Response:
    return web.Response(status=status, text=f"{json.dumps(body)}\n", content_type="application/json")


@web.middleware
async def plain_errors(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Let every error be one short JSON line; nothing of the request is sent back.

    What is not HTTP at all never comes this far: aiohttp answers it with 400 by itself.
    """
    try:
        return await handler(request)
    except web.HTTPException as error:
        refusal = _json({"error": error.reason}, status=error.status)
        if "Allow" in error.headers:
            refusal.headers["Allow"] = error.headers["Allow"]
        return refusal
    except Exception:  # noqa: BLE001 - the one place of this listener where a bug ends
        _log.exception("http.failed", path=request.path)
        return _json({"error": "Internal Server Error"}, status=500)


async def set_headers(_request: web.Request, response: web.StreamResponse) -> None:
    """Nothing is kept by anybody unless a page says so, nothing is told of the server."""
    for name, value in _HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.pop("Server", None)
