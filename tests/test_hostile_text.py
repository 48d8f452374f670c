"""Whatever a stranger writes where we show it: on every page, in every command's answer, in the log, it stays text.

Each attack below goes through each way out. What comes out must print as it stands, keep to its line, be of bounded length, and, on
a page, be nothing but text.
"""

import dataclasses
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Final, TypeVar, cast
from urllib.parse import quote

import aiohttp
import msgspec
import pytest
import structlog
from msgspec import structs
from typer.testing import CliRunner
from yarl import URL

from gateway.cli.app import app
from gateway.ops.config.models import LogSettings
from gateway.ops.log import LogOutput, set_up_logging
from gateway.store.engine import open_engine
from gateway.store.traces import Ring, TraceRing
from gateway.trace.model import Trace
from tests.pages.bed import serving
from tests.store.databases import sqlite_url
from tests.trace.samples import EVERYTHING, batches

ATTACKS: Final = {
    "html": "<script>alert(1)</script><img src=x onerror=alert(2)>\"' onmouseover='alert(3)",
    "entities": "&lt;b&gt;&#x202e;&nbsp;</td></table>",
    "template": "{{ 7*7 }}{% include 'base.html' %}${7*7}",
    "terminal": "\x1b[2J\x1b]0;owned\x07\x1b[31mred",
    "one-byte-escape": "\x9b31m\x9d0;owned\x9c",
    "over-itself": "rejected\raccepted\b\b\x7f",
    "lines": "a\nFORGED b\r\nFORGED c\u2028FORGED d\u2029FORGED e\x85FORGED f\x0bFORGED g\x0cFORGED h",
    "bidirectional": "\u202emoc.knab\u2066\u2069\u200f\u061c",
    "invisible": "a\u200b\u2060\ufeff\u00ad\U000e0041b",
    "tower": "e" + "\u0301\u20dd" * 100,
    "nul": "a\0b",
    "lone-surrogates": "\udcff\ud800",
    "rich-markup": "[bold red]x[/bold red][link=https://evil.example]y[/link][/]",
    "formats": "%s%n%(x)s{0}{x!r}$(id)`id`",
    "very-long": "w" * 100_000,
    "very-long-wide": "\U0001f600\u202e" * 20_000,
}

each_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
MAX_LINE: Final = 8_000
MAX_ANSWER: Final = 200_000
_T = TypeVar("_T")


def infected(value: _T, attack: str) -> _T:
    """The same with the attack in place of every text, unless the type itself refuses it."""
    made: Any = value
    match made:
        case Enum():
            return value
        case str():
            return cast("_T", attack)
        case tuple() if hasattr(made, "_fields"):
            parts = [infected(each, attack) for each in made]
            return cast("_T", _unless_refused(made, lambda: type(made)(*parts)))
        case tuple():
            return cast("_T", tuple(infected(each, attack) for each in made))
        case dict():
            return cast("_T", {key: infected(each, attack) for key, each in made.items()})
        case msgspec.Struct():
            changes = {name: infected(getattr(made, name), attack) for name in made.__struct_fields__}
            return cast("_T", structs.replace(made, **changes))
        case _ if dataclasses.is_dataclass(made) and not isinstance(made, type):
            for field in dataclasses.fields(made):
                change = {field.name: infected(getattr(made, field.name), attack)}
                made = _unless_refused(made, lambda: dataclasses.replace(made, **change))  # noqa: B023 - called at once
            return cast("_T", made)
        case _:
            return value


def _unless_refused(value: _T, make: Callable[[], _T]) -> _T:
    try:
        return make()
    except (ValueError, TypeError):
        return value


def hostile_trace(attack: str) -> Trace:
    """One whose every word is the attack; found as `h.1`."""
    trace = infected(EVERYTHING, attack)
    return structs.replace(trace, id="h.1", rule=attack, answered=datetime.now(UTC))


def escaped(octets: bytes) -> str:
    """As a master file has them (RFC 1035 §5.1)."""
    return "".join(f"\\{octet:03d}" for octet in octets)


class Site:
    """A config, a zone, a store, a log and a message, all of them infected."""

    def __init__(self, folder: Path, attack: str) -> None:
        self.attack = attack
        self.folder = folder
        self.config, self.zone = folder / "gateway.toml", folder / "zone.txt"
        url = sqlite_url(folder / "gateway.db")
        self.config.write_text(
            'authserv_id = "mx.example.net"\nlocal_domains = ["example.net"]\n'
            f'[dns]\nzone_file = "{self.zone}"\n[milter]\nlisten = "unix:{folder}/m.sock"\n'
            f'[store]\nurl = "{url}"\n[policy]\nshadow = "strict"\n[keys]\ndirectory = "{folder}/keys"\n'
        )
        self.zone.write_text(self._zone_text())
        engine = open_engine(url)
        with engine.begin() as connection:
            for trace in (hostile_trace(attack), structs.replace(hostile_trace(attack), id="h.2")):
                TraceRing(Ring()).write(connection, batches([trace]))
        engine.dispose()

    @property
    def octets(self) -> bytes:
        return self.attack.encode("utf-8", "surrogatepass")

    def _zone_text(self) -> str:
        def quoted(before: str, room: int = 250) -> str:
            return f'"{before}{escaped(self.octets[: room - len(before)])}"'

        label = escaped(self.octets[:15])
        return f"""\
$ORIGIN example.net.
@ MX 10 {label}
@ MX 20 mx
@ MX 30 {label}.example.org.
mx A 192.0.2.25
{label} A 192.0.2.26
25.2.0.192.in-addr.arpa. PTR {label}.example.net.
@ TXT {quoted("v=spf1 include:")} {quoted(" exp=")}
_dmarc TXT {quoted("v=DMARC1; p=none; rua=")}
_dmarc.sub TXT {quoted("v=DMARC1; p=")}
_mta-sts TXT {quoted("v=STSv1; id=")}
_smtp._tls TXT {quoted("v=TLSRPTv1; rua=mailto:")}
2026a._domainkey TXT {quoted("v=DKIM1; n=")} {quoted("; p=")}
mail CNAME {label}.example.org.
"""

    def run(self, *arguments: str) -> str:
        """Both of its outputs. A command may refuse; it may not break."""
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return f"{result.stdout}\n{result.stderr}"

    # Ways out

    def trace_list(self) -> str:
        return self.run("trace", "--config", str(self.config))

    def trace_story(self) -> str:
        said = self.run("trace", "h.1", "--config", str(self.config))
        assert "h.1" in said
        return said

    def trace_json(self) -> str:
        return self.run("trace", "h.1", "--json", "--config", str(self.config))

    def trace_of_what_is_asked(self) -> str:
        return self.run("trace", self.attack, "--client", self.attack, "--config", str(self.config))

    def trace_since(self) -> str:
        return self.run("trace", "--since", self.attack, "--config", str(self.config))

    def policy_test_store(self) -> str:
        rules = self.folder / "rules.toml"
        rules.write_text('[[rule]]\nid = "all"\nwhy = "w"\naction = "accept"\n')
        said = self.run(
            "policy", "test", "--against", "store", "--config", str(self.config), "--rules", str(rules)
        )
        assert "2 would change" in said
        return said

    def policy_test_store_json(self) -> str:
        return self.run("policy", "test", "--against", "store", "--config", str(self.config), "--json")

    def policy_test_log(self) -> str:
        event = {"event": "message.judged", "id": self.attack, "rule": self.attack, "disposition": "reject"}
        log = self.folder / "gateway.log"
        log.write_text(json.dumps(event) + "\n", encoding="utf-8")
        return self.run("policy", "test", "--against", str(log), "--rules", "strict")

    def policy_test_mail(self) -> str:
        folder = self.folder / "saved"
        folder.mkdir()
        name = self.attack.encode("utf-8", "surrogatepass").replace(b"\0", b"").replace(b"/", b"")[:80]
        for file in (b"a.eml", name + b".eml"):
            (folder / os.fsdecode(file)).write_bytes(self.message())
        return self.run(
            "policy", "test", "--against", str(folder), "--rules", "strict", "--config", str(self.config)
        )

    def policy_check(self) -> str:
        rules = self.folder / "bad.toml"
        rules.write_text(
            f"[[rule]]\nid = {json.dumps(self.attack)}\nwhen = {{ {json.dumps(self.attack)} = 1 }}\n"
        )
        return self.run("policy", "check", str(rules))

    def message(self) -> bytes:
        inside = self.octets.replace(b"\r", b"").replace(b"\n", b"")[:900]
        return b"\r\n".join(
            [
                b"Received: from " + inside + b" by mx.example.net; Mon, 1 Jan 2026 00:00:00 +0000",
                b"DKIM-Signature: v=1; a=rsa-sha256; d="
                + inside
                + b"; s="
                + inside
                + b"; h=from; bh=eA==; b=eA==",
                b"ARC-Seal: i=1; a=rsa-sha256; cv=none; d=" + inside + b"; s=x; b=eA==",
                b"From: " + inside + b" <x@example.net>",
                b"Subject: " + inside,
                b"Message-ID: <" + inside + b"@example.net>",
                b"",
                self.octets[:2_000],
                b"",
            ]
        )

    def check(self) -> str:
        path = self.folder / "message.eml"
        path.write_bytes(self.message())
        sent = ("--ip", "192.0.2.1", "--helo", self.attack, "--mail-from", self.attack)
        return self.run("check", str(path), "--zone", str(self.zone), *sent) + self.run(
            "check", str(path), "--zone", str(self.zone), "--ip", "192.0.2.1"
        )

    def check_json(self) -> str:
        path = self.folder / "message.eml"
        path.write_bytes(self.message())
        return self.run("check", str(path), "--zone", str(self.zone), "--ip", "192.0.2.1", "--json")

    def doctor(self) -> str:
        said = self.run("doctor", "example.net", "--zone", str(self.zone), "--selector", "2026a")
        assert "SPF" in said
        return said

    def doctor_json(self) -> str:
        return self.run("doctor", "example.net", "--zone", str(self.zone), "--selector", "2026a", "--json")

    def doctor_of_what_is_asked(self) -> str:
        return self.run("doctor", self.attack, "--zone", str(self.zone), "--selector", self.attack)

    def tls(self) -> str:
        said = self.run("tls", "example.net", "--zone", str(self.zone))
        assert "MTA-STS" in said
        return said

    def tls_json(self) -> str:
        return self.run("tls", "example.net", "--zone", str(self.zone), "--json")

    def tls_of_what_is_asked(self) -> str:
        return self.run("tls", self.attack, "--zone", str(self.zone))

    def dns_check(self) -> str:
        said = self.run("dns", "example.net", "--check", "--config", str(self.config))
        assert "DMARC" in said.upper()
        return said

    def dns_check_json(self) -> str:
        return self.run("dns", "example.net", "--check", "--json", "--config", str(self.config))

    def dns_of_what_is_asked(self) -> str:
        return self.run("dns", self.attack, "--config", str(self.config))

    def keys_of_what_is_asked(self) -> str:
        return self.run("keys", "new", self.attack, "--selector", self.attack, "--config", str(self.config))

    def config_check(self) -> str:
        path = self.folder / "hostile.toml"
        path.write_text(
            f"authserv_id = {json.dumps(self.attack)}\n{json.dumps(self.attack)} = 1\n[dns]\nservers = [{json.dumps(self.attack)}]\n"
        )
        return self.run("config", "check", str(path))

    def log_for_a_person(self) -> str:
        return self._logged("console")

    def log_for_programs(self) -> str:
        lines = self._logged("json")
        for line in lines.splitlines():
            json.loads(line)
        return lines

    def _logged(self, form: str) -> str:
        stream = io.BytesIO()
        set_up_logging(LogSettings(format=form), LogOutput(stream=stream, is_terminal=False, colours=False))  # type: ignore[arg-type]
        try:
            log = structlog.get_logger()
            log.info(self.attack, text=self.attack, items=[self.attack])  # nothing but plain types
            log.info(self.attack, text=self.attack, items=[self.attack], table={self.attack: self.attack})
            try:
                raise ValueError(self.attack)  # noqa: TRY301
            except ValueError:
                log.exception("broken")
        finally:
            structlog.reset_defaults()
        return stream.getvalue().decode()


CLI_WAYS: Final = [
    Site.trace_list, Site.trace_story, Site.trace_json, Site.trace_of_what_is_asked, Site.trace_since,
    Site.policy_test_store, Site.policy_test_store_json, Site.policy_test_log, Site.policy_test_mail, Site.policy_check,
    Site.check, Site.check_json, Site.doctor, Site.doctor_json, Site.doctor_of_what_is_asked,
    Site.tls, Site.tls_json, Site.tls_of_what_is_asked, Site.dns_check, Site.dns_check_json, Site.dns_of_what_is_asked,
    Site.keys_of_what_is_asked, Site.config_check, Site.log_for_a_person, Site.log_for_programs,
]  # fmt: skip


def longest_tower(text: str) -> int:
    longest = marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.category(character) in {"Mn", "Me"} else 0
        longest = max(longest, marks)
    return longest


def assert_harmless(said: str, max_line: int = MAX_LINE) -> None:
    text = said.replace("\n", "")
    assert [hex(ord(one)) for one in set(text) if not one.isprintable()] == []
    assert longest_tower(text) <= 2
    assert not re.search(r"(?m)^\s*FORGED", said)
    assert max(map(len, said.splitlines()), default=0) <= max_line
    assert len(said) <= MAX_ANSWER
    said.encode()


@each_attack
@pytest.mark.parametrize("way", CLI_WAYS, ids=lambda way: way.__name__)
def test_no_command_lets_it_out(way: Callable[[Site], str], attack: str, tmp_path: Path) -> None:
    said = way(Site(tmp_path, attack))
    assert_harmless(said, MAX_ANSWER if "json" in way.__name__ else MAX_LINE)


# Pages


class _Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.loads: set[str] = set()
        self.words: list[str] = []
        self.handlers: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            if name == "src" or (name == "href" and tag == "link"):
                self.loads.add(value or "")
            if name.startswith("on") or name == "style" or (value or "").lower().startswith("javascript:"):
                self.handlers.append(f"{name}={value}")
            self.words.append(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


PATHS: Final = {
    "overview": "/",
    "list": "/traces",
    "new lines": "/traces/new?after=0",
    "story": "/traces/h.1",
    "story of what is asked": "/traces/{}",
    "search": "/traces?q={0}&rule={0}&disposition={0}&listener={0}&since={0}&before={0}",
    "new lines of a search": "/traces/new?after=0&q={0}&rule={0}",
    "doctor": "/doctor?domain={}",
    "domains": "/domains",
    "log-in": "/login?next={}",
    "no such page": "/{}",
}


def page_texts(words: list[str]) -> Iterator[str]:
    for word in words:
        yield re.sub(r"[\n\t]", " ", word)


@pytest.mark.parametrize("token", [None, "a token that is long enough"], ids=["open", "token"])
@each_attack
async def test_no_page_lets_it_out(attack: str, token: str | None, tmp_path: Path) -> None:
    asked = quote(attack[:4_000].encode("utf-8", "surrogatepass"), safe="")
    traces = [hostile_trace(attack), structs.replace(hostile_trace(attack), id="h.2")]
    async with (
        serving(tmp_path, kept=traces, token=token) as bed,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as client,
    ):
        if token is not None:
            wrong = {
                "token": attack[:1_000].encode("utf-8", "replace").decode(),
                "next": f"/{attack[:100]!a}",
            }
            async with client.post(f"{bed.url}/login", data=wrong) as answer:
                await check(answer, "wrong token")
            async with client.post(f"{bed.url}/login", data={"token": token}) as answer:
                assert answer.status == 200
        for name, path in PATHS.items():
            url = f"{bed.url}{path.format(asked)}"
            async with client.get(URL(url, encoded=True), allow_redirects=False) as answer:
                await check(answer, name)


async def check(answer: aiohttp.ClientResponse, name: str) -> None:
    assert answer.status < 500, name
    html = (await answer.read()).decode()
    if not answer.content_type.startswith("text/html"):
        return
    assert_harmless(html)
    page = _Page(html)
    assert page.loads <= {"/static/theme.js", "/static/pages.js", "/static/mark.svg", "/static/pages.css"}, (
        name
    )
    assert page.handlers == [], name
    assert not page.tags & {"iframe", "object", "embed", "base", "style", "foreignobject"}, name
    for text in page_texts(page.words):
        assert text.isprintable(), (name, text)
        assert longest_tower(text) <= 2, name
