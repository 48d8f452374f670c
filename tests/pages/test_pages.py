"""The pages over HTTP: who gets them, what they say, and that a stranger's words stay words."""

import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path

import aiohttp
import pytest

from gateway.listeners.http import HttpListener
from gateway.ops.config import HostPort, HttpSettings
from gateway.ops.metrics import Metrics
from gateway.pages import Access, Site, Sources
from gateway.store import StoreError
from gateway.trace.line import TraceLine
from gateway.trace.search import EVERYTHING, TraceFilter
from gateway.trace.tally import Tally
from tests.pages.bed import ACCEPTED, HOSTILE, REFUSED, Bed, accepted, serving
from tests.store.databases import database, postgresql

__all__ = ["database", "postgresql"]

TOKEN = "0123456789abcdef0123"
PAGES = (
    "/",
    "/traces",
    f"/traces/{REFUSED}",
    f"/traces/{ACCEPTED}",
    f"/traces/{HOSTILE}",
    "/domains",
    "/doctor",
)
_VOID = {"meta", "link", "img", "input", "br"}


@pytest.fixture
async def bed(database: str) -> AsyncIterator[Bed]:
    """Over each kind of database."""
    async with serving(database) as bed:
        yield bed


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client:
        yield client


async def read(client: aiohttp.ClientSession, url: str, *, status: int = 200, **headers: str) -> str:
    async with client.get(url, headers=headers) as answer:
        text = await answer.text()
        assert answer.status == status, text
        return text


class _Tags(HTMLParser):
    """Every tag and attribute of a page; a page that is not well nested fails."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def tags(html: str) -> _Tags:
    parser = _Tags()
    parser.feed(html)
    parser.close()
    return parser


def words(html: str) -> str:
    return " ".join(" ".join(tags(html).text).split())


# What they say


async def test_the_overview_says_whether_mail_flows_and_what_is_refused(
    bed: Bed, client: aiohttp.ClientSession
) -> None:
    said = words(await read(client, f"{bed.url}/"))
    assert "Is mail flowing? Yes, but not everything is ready" in said
    assert "77 messages 71 accepted 1 quarantined 1 deferred 4 refused" in said
    assert "dmarc-reject refused 3" in said
    assert "the mail server deferred 1" in said
    assert "worker 0 pid 4711 listeners ready" in said
    assert "downstream not ready failed: refused" in said


async def test_a_refused_message_says_why(bed: Bed, client: aiohttp.ClientSession) -> None:
    html = await read(client, f"{bed.url}/traces/{REFUSED}")
    said = words(html)
    assert 'Refused Refused by the rule "dmarc-reject".' in said
    assert "550 5.7.1 refused by the policy of bank.example" in said
    assert "Nothing shows that bank.example sent the message" in said
    assert "Tree walk, step 1 _dmarc.bank.example — answer" in said
    assert "Not own-users ours is false; it asks for true" in said
    assert "Mail server not reached" in said
    assert 'href="https://www.rfc-editor.org/rfc/rfc9989#section-5.3"' in html


async def test_an_accepted_message_is_followed_to_the_mail_server(
    bed: Bed, client: aiohttp.ClientSession
) -> None:
    said = words(await read(client, f"{bed.url}/traces/{ACCEPTED}"))
    assert 'Accepted Handed on by the rule "accept".' in said
    assert "Put in Authentication-Results" in said
    assert "It said 250 2.0.0 Ok: queued as 4VxYz12345" in said


@pytest.mark.parametrize(
    ("query", "count", "note"),
    [
        ("q=ceo@bank.example", 2, ""),
        ("q=<20260314.1@bank.example>", 2, ""),
        ("q=4VxYz12345", 50, ""),
        (f"q={ACCEPTED}", 1, ""),
        ("q=nobody.example", 0, "No message fits"),
        ("disposition=quarantine", 1, ""),
        ("disposition=reject&listener=outbound", 1, ""),
        ("rule=dmarc-reject", 3, ""),
        ("since=15m&rule=dmarc-quarantine", 1, ""),
        ("disposition=explode", 50, "There is no verdict 'explode'"),
        ("since=yesterday", 50, "Nothing is known of the time 'yesterday'"),
        ("before=-1", 50, ""),
        ("before=99999999999999999999", 50, ""),
        ("q=%00%1b%F0", 0, "No message fits"),
    ],
)
async def test_filters(bed: Bed, client: aiohttp.ClientSession, query: str, count: int, note: str) -> None:
    html = await read(client, f"{bed.url}/traces?{query}")
    assert html.count("<tr data-key=") == count
    assert note in words(html)


async def test_pages_of_the_list_follow_one_another_without_a_gap(
    bed: Bed, client: aiohttp.ClientSession
) -> None:
    keys: list[int] = []
    path = "/traces"
    while path:
        html = await read(client, bed.url + path)
        keys += map(int, re.findall(r'<tr data-key="(\d+)"', html))
        older = re.search(r'rel="next" href="([^"]+)"', html)
        path = older.group(1).replace("&amp;", "&") if older else ""
    assert keys == list(range(77, 0, -1))


async def test_what_is_new_comes_as_rows(bed: Bed, client: aiohttp.ClientSession) -> None:
    bed.add(accepted("new.1"), accepted("new.2", rule="other"))
    async with client.get(f"{bed.url}/traces/new?after=77&rule=accept") as answer:
        assert answer.headers["X-Newest-Key"] == "78"
        assert (await answer.text()).count("<tr data-key=") == 1
    await read(client, f"{bed.url}/traces/new?after=x", status=400)


async def test_the_doctor_examines_and_says_what_to_publish(bed: Bed, client: aiohttp.ClientSession) -> None:
    said = words(await read(client, f"{bed.url}/doctor?domain=Example.NET."))
    assert "dmarc.policy-none" in said
    assert "p=none asks only for reports" in said
    assert "_smtp._tls.example.net. IN TXT" in said
    assert "DMARC warning" in words(await read(client, f"{bed.url}/domains"))
    assert "That is no domain" in words(await read(client, f"{bed.url}/doctor?domain=<b>x</b>", status=400))


# A stranger's words


@pytest.mark.parametrize(
    "path", ["/", "/traces", f"/traces/{HOSTILE}", "/traces?q=%3Cscript%3Ealert(1)%3C/script%3E%00%E2%80%AE"]
)
async def test_hostile_words_stay_words(bed: Bed, client: aiohttp.ClientSession, path: str) -> None:
    html = await read(client, bed.url + path)
    page = tags(html)
    assert [attributes["src"] for tag, attributes in page.tags if tag == "script"] == [
        "/static/theme.js",
        "/static/pages.js",
    ]
    assert not [tag for tag, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert not [tag for tag, attributes in page.tags if "style" in attributes]
    assert {attributes["src"] for tag, attributes in page.tags if tag == "img"} == {"/static/mark.svg"}
    assert html.replace("\n", "").isprintable()


async def test_every_field_that_a_stranger_chooses_is_shown_escaped_and_cut(
    bed: Bed, client: aiohttp.ClientSession
) -> None:
    html = await read(client, f"{bed.url}/traces/{HOSTILE}")
    said = words(html)
    assert "<script>alert(1)</script>" in said
    assert r"\x1b[2J\x07\x00\u202eliame\u2066\r\nX: y" in said
    assert "e\u0301\u0301" in said
    assert "\u0301\u0301\u0301" not in said
    assert len(html) < 100_000


async def test_nothing_of_a_request_is_sent_back_in_an_error(bed: Bed, client: aiohttp.ClientSession) -> None:
    html = await read(client, f"{bed.url}/%3Cscript%3Enothing", status=404)
    assert "nothing" not in html.replace("nothing of a message", "")
    assert "There is no such page" in words(html)


# Who gets them


@pytest.mark.parametrize("path", PAGES)
async def test_headers_of_every_page(bed: Bed, client: aiohttp.ClientSession, path: str) -> None:
    async with client.get(bed.url + path) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'; style-src 'self'; script-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Referrer-Policy"] == "no-referrer"
        assert "Server" not in answer.headers
        page = tags(await answer.text())
    for tag, attributes in page.tags:
        for name in ("src", "href", "action"):
            if (value := attributes.get(name)) and tag != "a":
                assert value.startswith(("/", "#")), value


@pytest.mark.parametrize("path", [*PAGES, "/traces/new?after=1", "/nothing"])
async def test_another_name_is_refused_without_a_token(
    bed: Bed, client: aiohttp.ClientSession, path: str
) -> None:
    html = await read(client, bed.url + path, status=403, Host="rebound.example")
    assert "bank.example" not in html
    assert "Ask for an address" in html


async def test_machines_need_no_token_and_get_no_pages(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, token=TOKEN) as bed:
        assert "gateway_" in await read(client, f"{bed.url}/metrics", Host="any.example")
        assert await read(client, f"{bed.url}/healthz") == '{"status": "alive"}\n'
        assert '"ready"' in await read(client, f"{bed.url}/readyz")


@pytest.mark.parametrize("path", [*PAGES, "/traces/new?after=1", "/nothing"])
async def test_the_token_is_asked_for_everywhere(
    tmp_path: Path, client: aiohttp.ClientSession, path: str
) -> None:
    async with serving(tmp_path, token=TOKEN, kept=[accepted()]) as bed:
        html = await read(client, bed.url + path, status=401)
        assert 'name="token"' in html
        assert "example.com" not in html
        if "new" not in path and path in {"/", "/traces"}:
            await read(client, bed.url + path, Authorization=f"Bearer {TOKEN}")


async def test_logging_in_and_out(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    async with serving(tmp_path, token=TOKEN) as bed:
        form = {"token": TOKEN, "next": f"/traces/{REFUSED}"}
        async with client.post(f"{bed.url}/login", data={**form, "token": "wrong"}) as answer:
            assert answer.status == 403
            assert "That is not the token." in await answer.text()
        async with client.post(f"{bed.url}/login", data=form, allow_redirects=False) as answer:
            assert answer.status == 303
            assert answer.headers["Location"] == f"/traces/{REFUSED}"
            cookie = answer.headers["Set-Cookie"]
        for attribute in ("HttpOnly", "SameSite=Strict", "Path=/", "Max-Age=43200"):
            assert attribute in cookie
        assert TOKEN not in cookie
        await read(client, f"{bed.url}/traces")
        async with client.post(f"{bed.url}/logout", allow_redirects=False) as answer:
            assert answer.status == 303
        await read(client, f"{bed.url}/traces", status=401)


async def test_a_huge_log_in_is_not_read(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    form = {"token": "x" * 100_000}
    async with serving(tmp_path, token=TOKEN) as bed, client.post(f"{bed.url}/login", data=form) as answer:
        assert answer.status == 413


async def test_a_link_from_elsewhere_is_asked_for_again_with_the_cookie(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    headers = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    async with (
        serving(tmp_path, token=TOKEN) as bed,
        client.get(f"{bed.url}/traces", headers=headers) as answer,
    ):
        assert answer.status == 401
        assert '<meta http-equiv="refresh" content="0">' in await answer.text()


# What is missing


class _Broken:
    """A store that has gone away, or a bug."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def find(
        self, wanted: TraceFilter = EVERYTHING, *, before: int | None = None, limit: int = 50
    ) -> list[TraceLine]:
        raise self._error

    def after(self, key: int, wanted: TraceFilter = EVERYTHING, *, limit: int = 50) -> list[TraceLine]:
        raise self._error

    def last_key(self) -> int:
        raise self._error

    def tally(self, now: datetime, span: timedelta) -> Tally:
        raise self._error

    def get_by_id(self, identifier: str) -> None:
        raise self._error


@pytest.mark.parametrize(
    ("traces", "path", "status", "said"),
    [
        (None, "/", 200, "There is no [store]"),
        (None, "/traces", 503, "There is no [store]"),
        (None, f"/traces/{REFUSED}", 503, "There is no [store]"),
        (None, "/doctor", 404, "There is no such page"),
        (_Broken(StoreError("database is locked", "end the program")), "/traces", 503, "end the program"),
        (_Broken(StoreError("database is locked", "end the program")), "/", 503, "end the program"),
        (_Broken(RuntimeError("secret detail")), "/traces", 500, "Something went wrong here"),
    ],
)
async def test_what_is_missing_is_said_with_a_way_on(
    client: aiohttp.ClientSession, traces: _Broken | None, path: str, status: int, said: str
) -> None:
    site = Site(Access("127.0.0.1"), Sources(traces=traces, why_none="There is no [store]"))
    listener = HttpListener(HttpSettings(listen=HostPort("127.0.0.1", 0)), metrics=Metrics(), pages=[site])
    await listener.start()
    try:
        host, port = listener.addresses[0]
        html = await read(client, f"http://{host}:{port}{path}", status=status)
    finally:
        await listener.close()
    assert said in words(html)
    assert "secret detail" not in html


async def test_a_trace_that_is_gone_is_said_to_be(bed: Bed, client: aiohttp.ClientSession) -> None:
    assert "There is no trace with this id" in await read(client, f"{bed.url}/traces/none", status=404)
