"""The pages on the http listener: who may see them, which there are, and what is said where one cannot be had."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final, Protocol

import structlog
from aiohttp import web

from gateway import __version__
from gateway.doctor.codes import Severity
from gateway.explain.story import outcome_tone, outcome_word, tell
from gateway.listeners.http import Readiness
from gateway.mail.address import parse_domain
from gateway.mail.envelope import Listener
from gateway.mail.errors import ParseError
from gateway.pages.access import COOKIE, COOKIE_S, Access, Answer, safe_path
from gateway.pages.examinations import Examinations, TooManyError
from gateway.pages.overview import OUTCOMES, SPAN, Flow, flow_of
from gateway.pages.render import render
from gateway.pages.search import SINCE, parse_key, parse_search
from gateway.store.errors import StoreError
from gateway.trace.line import TraceLine
from gateway.trace.search import TraceFilter
from gateway.trace.tally import Tally
from gateway.verdict import Disposition

if TYPE_CHECKING:
    from gateway.trace.model import Trace

PAGE_LINES: Final = 50
MAX_NEW_LINES: Final = 100
MAX_FORM_BYTES: Final = 4_096
FLOW_IS_FRESH_S: Final = 2.0

MACHINES: Final = ("/metrics", "/healthz", "/readyz", "/.well-known/")
"""Paths of this listener that are none of ours."""

_CONTENT_TYPES: Final = {
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

_log: Final = structlog.get_logger()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Finder(Protocol):
    """The traces; see `gateway.store.traces.Traces`. Every method may block."""

    def find(  # noqa: D102 - the class says it; likewise below
        self, wanted: TraceFilter = ..., *, before: int | None = ..., limit: int = ...
    ) -> list[TraceLine]: ...
    def after(self, key: int, wanted: TraceFilter = ..., *, limit: int = ...) -> list[TraceLine]: ...  # noqa: D102
    def last_key(self) -> int: ...  # noqa: D102
    def tally(self, now: datetime, span: timedelta) -> Tally: ...  # noqa: D102
    def get_by_id(self, identifier: str) -> "Trace | None": ...  # noqa: D102


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process that does the work, and how things stand with it."""

    name: str
    pid: int
    checks: tuple[Readiness, ...]

    @property
    def is_ready(self) -> bool:
        """Whether mail should be sent to it."""
        return all(check.ok for check in self.checks)


def nobody() -> Sequence[Process]:
    """No process is known."""
    return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the pages get what they show.

    Attributes:
        traces: None: none are kept, and `why_none` says how to have them.
        processes: asked at each overview; must answer at once.
        refresh: awaited before that.
        doctor: examines domains; None: there is none.
        read: runs what may block in a thread.
    """

    traces: Finder | None = None
    why_none: str = ""
    processes: Callable[[], Sequence[Process]] = nobody
    refresh: Callable[[], Awaitable[None]] | None = None
    doctor: Examinations | None = None
    read: Callable[[Callable[[], Any]], Awaitable[Any]] = asyncio.to_thread
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))


class Site:
    """All pages; a `gateway.listeners.http.Page`."""

    def __init__(self, access: Access, sources: Sources, *, name: str = "") -> None:
        self._access = access
        self._sources = sources
        self._name = name
        self._flow: tuple[float, Flow] | None = None
        self._static = {
            file.name: file.read_bytes()
            for file in (files("gateway.pages") / "static").iterdir()
            if file.name.rpartition(".")[2] in _CONTENT_TYPES
        }

    def mount(self, application: web.Application) -> None:
        """Add the routes, and the door in front of them."""
        application.middlewares.append(self._door)
        add = application.router.add_get
        add("/", self._show_overview)
        add("/traces", self._show_list)
        add("/traces/new", self._show_new)
        add("/traces/{id}", self._show_story)
        add("/domains", self._show_domains)
        add("/doctor", self._show_doctor)
        add("/login", self._show_login)
        application.router.add_post("/login", self._log_in)
        application.router.add_post("/logout", self._log_out)
        add("/static/{name}", self._show_static)

    @web.middleware
    async def _door(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path.startswith(MACHINES):
            return await handler(request)
        response = await self._let_in(request, handler)
        response.headers.update(_HEADERS)
        return response

    async def _let_in(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Judge the request, answer it, and let whatever goes wrong be a page."""
        answer = self._access.judge(
            request.method, request.headers, request.cookies.get(COOKIE, ""), request.remote or ""
        )
        try:
            if answer in {Answer.LET_IN, Answer.LOG_IN} and request.path.startswith(("/static/", "/login")):
                return await handler(request)
            if answer is Answer.LOG_IN:
                return self._ask_for_token(request)
            if answer is not Answer.LET_IN:
                return self._fault(request, 403, *_REFUSALS[answer])
            return await handler(request)
        except web.HTTPNotFound:
            return self._fault(
                request,
                404,
                "There is no such page",
                "Look at the address, or begin at the overview.",
            )
        except web.HTTPRedirection:
            raise
        except web.HTTPException as error:
            return self._fault(request, error.status, error.reason, "Begin again at the overview.")
        except StoreError as error:
            return self._fault(request, 503, "The store cannot be read now", str(error))
        except Exception:  # noqa: BLE001 - the one place of the pages where a bug ends
            _log.exception("http.failed", path=request.path)
            return self._fault(
                request,
                500,
                "Something went wrong here",
                "Mail is not touched by this. The log has it under http.failed: please report it with the lines that follow.",
            )

    # Pages

    async def _show_overview(self, request: web.Request) -> web.Response:
        if self._sources.refresh is not None:
            await self._sources.refresh()
        flow = await self._count() if self._sources.traces is not None else None
        processes = tuple(self._sources.processes())
        return self._page(
            request,
            "overview.html",
            flow=flow,
            outcomes=OUTCOMES,
            processes=processes,
            is_ready=bool(processes) and all(process.is_ready for process in processes),
        )

    async def _count(self) -> Flow:
        """Counted once for all who look within two seconds."""
        if self._flow is None or time.monotonic() - self._flow[0] > FLOW_IS_FRESH_S:
            now = self._sources.now()
            traces = self._finder()
            tally = await self._sources.read(lambda: traces.tally(now, SPAN))
            self._flow = time.monotonic(), flow_of(tally, now)
        return self._flow[1]

    async def _show_list(self, request: web.Request) -> web.Response:
        if self._sources.traces is None:
            return self._page(request, "no_traces.html", status=503)
        traces = self._finder()
        search = parse_search(request.query, self._sources.now())
        newest = await self._sources.read(traces.last_key)
        lines = await self._sources.read(
            lambda: traces.find(search.wanted, before=search.before, limit=PAGE_LINES + 1)
        )
        return self._page(
            request,
            "list.html",
            search=search,
            lines=lines[:PAGE_LINES],
            newest=max([newest, *(line.key for line in lines[:1])]) if search.before is None else None,
            older=lines[PAGE_LINES - 1].key if len(lines) > PAGE_LINES else None,
            dispositions=tuple(Disposition),
            listeners=tuple(listener for listener in Listener if listener is not Listener.CHECK),
            spans=tuple(SINCE),
        )

    async def _show_new(self, request: web.Request) -> web.Response:
        """What has come since the line with that key: rows for the list, and nothing around them."""
        traces = self._finder()
        key = parse_key(request.query.get("after", ""))
        if key is None:
            raise web.HTTPBadRequest(reason="after must be a key")
        search = parse_search(request.query, self._sources.now())
        lines = await self._sources.read(lambda: traces.after(key, search.wanted, limit=MAX_NEW_LINES))
        body = render("rows.html", lines=lines[::-1], word=outcome_word, tone=outcome_tone)
        newest = lines[-1].key if lines else key
        return _html(body, headers={"X-Newest-Key": str(newest), "X-Count": str(len(lines))})

    async def _show_story(self, request: web.Request) -> web.Response:
        if self._sources.traces is None:
            return self._page(request, "no_traces.html", status=503)
        traces = self._finder()
        identifier = request.match_info["id"]
        try:
            trace = await self._sources.read(lambda: traces.get_by_id(identifier))
        except ParseError as error:
            return self._fault(
                request, 410, "This trace is of another release", f"It cannot be told any more: {error}"
            )
        if trace is None:
            return self._fault(
                request,
                404,
                "There is no trace with this id",
                "Traces are kept for a while only ([trace] keep, keep_days), and take a second to be written.",
            )
        return self._page(request, "story.html", story=tell(trace))

    async def _show_domains(self, request: web.Request) -> web.Response:
        reports = await self._doctor().ours()
        return self._page(request, "domains.html", reports=reports, severities=tuple(Severity))

    async def _show_doctor(self, request: web.Request) -> web.Response:
        doctor = self._doctor()
        given = request.query.get("domain", "").strip()
        report, fault = None, ""
        try:
            report = await doctor.of(parse_domain(given.removesuffix(".").lower())) if given else None
        except ParseError as error:
            fault = f"That is no domain: {error}"
        except TooManyError:
            fault = "Too many are being looked at: ask again in a minute."
        except TimeoutError:
            fault = "The DNS was too slow: ask again in a minute."
        return self._page(
            request, "doctor.html", given=given, report=report, fault=fault, status=400 if fault else 200
        )

    # Log-in

    async def _show_login(self, request: web.Request) -> web.Response:
        return self._ask_for_token(request, status=200, path=safe_path(request.query.get("next", "/")))

    async def _log_in(self, request: web.Request) -> web.Response:
        form = await request.clone(client_max_size=MAX_FORM_BYTES).post()
        path = safe_path(str(form.get("next", "/")))
        if not self._access.is_token(str(form.get("token", ""))):
            _log.warning("http.login-refused", client=request.remote)
            return self._ask_for_token(request, status=403, path=path, is_wrong=True)
        response = web.Response(status=303, headers={"Location": path})
        is_secure = request.secure or request.headers.get("X-Forwarded-Proto") == "https"
        response.set_cookie(
            COOKIE,
            self._access.make_cookie(),
            max_age=COOKIE_S,
            path="/",
            httponly=True,
            samesite="Strict",
            secure=is_secure,
        )
        return response

    async def _log_out(self, _request: web.Request) -> web.Response:
        response = web.Response(status=303, headers={"Location": "/login"})
        response.del_cookie(COOKIE, path="/", httponly=True, samesite="Strict")
        return response

    def _ask_for_token(
        self, request: web.Request, *, status: int = 401, path: str = "", is_wrong: bool = False
    ) -> web.Response:
        if not self._access.has_token:
            return web.Response(status=303, headers={"Location": "/"})
        # A link from elsewhere comes without our cookie (SameSite=Strict); asked for by our own page, it comes with it.
        again = status == 401 and request.headers.get("Sec-Fetch-Site") == "cross-site"  # noqa: PLR2004
        return self._page(
            request,
            "login.html",
            status=status,
            path=path or safe_path(request.path_qs),
            is_wrong=is_wrong,
            again=again,
        )

    # Parts

    async def _show_static(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = self._static.get(name)
        if body is None:
            raise web.HTTPNotFound
        return web.Response(
            body=body,
            content_type=_CONTENT_TYPES[name.rpartition(".")[2]],
            charset="utf-8",
            headers={"Cache-Control": "max-age=300"},
        )

    def _finder(self) -> Finder:
        if self._sources.traces is None:
            raise web.HTTPNotFound
        return self._sources.traces

    def _doctor(self) -> Examinations:
        if self._sources.doctor is None:
            raise web.HTTPNotFound
        return self._sources.doctor

    def _page(
        self, request: web.Request, template: str, *, status: int = 200, **values: object
    ) -> web.Response:
        body = render(
            template,
            here=request.path,
            site=self._name,
            version=__version__,
            has_token=self._access.has_token,
            is_inside=template != "login.html",
            why_none=self._sources.why_none,
            word=outcome_word,
            tone=outcome_tone,
            now=self._sources.now(),
            **values,
        )
        return _html(body, status=status)

    def _fault(self, request: web.Request, status: int, what: str, remedy: str) -> web.Response:
        return self._page(request, "fault.html", status=status, code=status, what=what, remedy=remedy)


_REFUSALS: Final[Mapping[Answer, tuple[str, str]]] = {
    Answer.NOT_HERE: (
        "These pages need a token here",
        "[http] listens where others can reach it. Set token_file in [http], or listen on 127.0.0.1 and come through ssh -L.",
    ),
    Answer.NOT_LOCAL: (
        "These pages are for this host only",
        "Without a token they answer this host's own browser. Set token_file in [http], or come through ssh -L.",
    ),
    Answer.NOT_BY_NAME: (
        "Ask for an address",
        "Without a token these pages answer to 127.0.0.1 and localhost, and to no name: any name could be made to point here.",
    ),
    Answer.FROM_ELSEWHERE: (
        "Another site asked for this",
        "Open the page by its own address.",
    ),
}


def _html(body: str, *, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(
        text=body, status=status, content_type="text/html", charset="utf-8", headers=dict(headers or {})
    )
