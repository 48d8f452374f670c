"""Our own MTA-STS policy, fetched as others fetch it: HTTPS, by name, from a server that many people poke at."""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
import uvloop
from aiohttp.abc import AbstractResolver, ResolveResult

from gateway.listeners import policy_host
from gateway.listeners.http import HttpListener
from gateway.listeners.policy_host import PolicyHostListener, PolicyPage
from gateway.ops.config import HostPort, HttpSettings, MtaStsSettings
from gateway.ops.metrics import Metrics
from gateway.tlspolicy.mta_sts.own import WELL_KNOWN_PATH, policy_identifier
from gateway.tlspolicy.mta_sts.policy import Policy, parse_policy

HOST = "mta-sts.example.net"
DOMAINS = ("example.net", ".example.org")
POLICY = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.net\r\nmx: *.example.org\r\nmax_age: 604800\r\n"
PATIENCE_S = 10.0


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def write_pair(folder: Path, authority: trustme.CA, *names: str) -> None:
    pair = authority.issue_cert(*names)
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in pair.cert_chain_pems))
    (folder / "key.pem").write_bytes(pair.private_key_pem.bytes())


def settings_in(folder: Path) -> MtaStsSettings:
    return MtaStsSettings(
        mode="enforce",
        mx=("mx.example.net", "*.example.org"),
        listen=(HostPort("127.0.0.1", 0),),
        tls_certificate=folder / "cert.pem",
        tls_key=folder / "key.pem",
    )


@asynccontextmanager
async def serving(
    folder: Path, authority: trustme.CA, *, lifetime_s: float = PATIENCE_S
) -> AsyncIterator[PolicyHostListener]:
    write_pair(folder, authority, HOST)
    settings = settings_in(folder)
    listener = PolicyHostListener(settings, PolicyPage(settings.policy, DOMAINS), lifetime_s=lifetime_s)
    await listener.start()
    try:
        yield listener
    finally:
        await listener.close()


class Here(AbstractResolver):
    """Every name is this host, as the test's DNS would say."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        del family
        return [ResolveResult(hostname=host, host="127.0.0.1", port=port, family=2, proto=0, flags=0)]

    async def close(self) -> None:
        return


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def raw(
    listener: PolicyHostListener, authority: trustme.CA, request: bytes, *, name: str = HOST
) -> bytes:
    """All that comes back for these bytes."""
    host, port = listener.addresses[0]
    reader, writer = await asyncio.open_connection(host, port, ssl=trusting(authority), server_hostname=name)
    try:
        writer.write(request)
        return await asyncio.wait_for(reader.read(), PATIENCE_S)
    finally:
        writer.close()


def get(target: str = WELL_KNOWN_PATH, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    lines = [f"{method} {target} HTTP/{version}", *fields, "Connection: close", "", ""]
    return "\r\n".join(lines).encode()


async def test_others_fetch_the_policy_and_understand_it(tmp_path: Path, authority: trustme.CA) -> None:
    async with serving(tmp_path, authority) as listener:
        connector = aiohttp.TCPConnector(ssl=trusting(authority), resolver=Here())
        url = f"https://{HOST}:{listener.addresses[0][1]}{WELL_KNOWN_PATH}"
        async with aiohttp.ClientSession(connector=connector) as client, client.get(url) as answer:
            body = await answer.read()
            assert answer.status == 200
            assert answer.headers["Content-Type"] == "text/plain"
            assert "Server" not in answer.headers
            assert answer.headers["Cache-Control"] == "no-store"
    assert body.decode() == POLICY
    assert parse_policy(body) == settings_in(tmp_path).policy


GOOD = [
    get(WELL_KNOWN_PATH, f"Host: {HOST}"),
    get(WELL_KNOWN_PATH, "Host: MTA-STS.Example.NET:443"),  # any case, any port
    get(WELL_KNOWN_PATH, f"Host: {HOST}."),  # a final dot names the same host
    get(WELL_KNOWN_PATH, "Host: mta-sts.mail.example.org"),  # below .example.org
    get(f"{WELL_KNOWN_PATH}?x=1", f"Host: {HOST}"),
    get(f"https://{HOST}{WELL_KNOWN_PATH}", "Host: elsewhere.example"),  # absolute-form: the target counts
    get(WELL_KNOWN_PATH, f"Host: {HOST}", version="1.0"),
]
BAD = [
    (get(WELL_KNOWN_PATH, "Host: mta-sts.elsewhere.example"), 404),  # not ours
    (get(WELL_KNOWN_PATH, "Host: example.net"), 404),  # not its policy host
    (get(WELL_KNOWN_PATH, "Host: mta-sts.www.example.net"), 404),  # example.net is not all below it
    (get(WELL_KNOWN_PATH, "Host: mta-sts.example.org"), 404),  # .example.org is not example.org
    (get(WELL_KNOWN_PATH, "Host: xmta-sts.example.net"), 404),
    (get(WELL_KNOWN_PATH, "Host: "), 404),
    (get(WELL_KNOWN_PATH, "Host: [::1]:443"), 404),
    (get(WELL_KNOWN_PATH, version="1.0"), 404),  # no Host at all
    (get(WELL_KNOWN_PATH, f"Host: {HOST}", "Host: elsewhere.example"), 400),  # which of them?
    (get(f"https://elsewhere.example{WELL_KNOWN_PATH}", f"Host: {HOST}"), 404),
    (get("/", f"Host: {HOST}"), 404),
    (get("/metrics", f"Host: {HOST}"), 404),  # nothing of ours is open to the world
    (get("/healthz", f"Host: {HOST}"), 404),
    (get("/readyz", f"Host: {HOST}"), 404),
    (get("/.well-known/../metrics", f"Host: {HOST}"), 404),
    (get(WELL_KNOWN_PATH, f"Host: {HOST}", method="POST"), 405),
    (get(WELL_KNOWN_PATH, f"Host: {HOST}", method="DELETE"), 405),
    (get(f"{HOST}:443", f"Host: {HOST}", method="CONNECT"), 404),
    (get(WELL_KNOWN_PATH, f"Host: {HOST}", "X: " + "a" * 10_000), 400),
    (get(WELL_KNOWN_PATH + "a" * 10_000, f"Host: {HOST}"), 400),
    (b"EHLO mail.example\r\n\r\n", 400),
    (b"\x00" * 100 + b"\r\n\r\n", 400),
]


@pytest.mark.parametrize("request_bytes", GOOD)
async def test_a_good_request_gets_the_policy(
    tmp_path: Path, authority: trustme.CA, request_bytes: bytes
) -> None:
    async with serving(tmp_path, authority) as listener:
        answer = await raw(listener, authority, request_bytes)
    assert b" 200 " in answer.partition(b"\r\n")[0]
    assert answer.endswith(b"\r\n\r\n" + POLICY.encode())


@pytest.mark.parametrize(("request_bytes", "status"), BAD)
async def test_a_bad_request_gets_a_short_no_and_the_next_one_the_policy(
    tmp_path: Path, authority: trustme.CA, request_bytes: bytes, status: int
) -> None:
    async with serving(tmp_path, authority) as listener:
        answer = await raw(listener, authority, request_bytes)
        assert f" {status} ".encode() in answer.partition(b"\r\n")[0]
        assert b"version:" not in answer
        assert len(answer) < 1_000
        assert (await raw(listener, authority, GOOD[0])).endswith(POLICY.encode())


async def test_head_has_the_fields_and_no_body(tmp_path: Path, authority: trustme.CA) -> None:
    async with serving(tmp_path, authority) as listener:
        answer = await raw(listener, authority, get(WELL_KNOWN_PATH, f"Host: {HOST}", method="HEAD"))
    assert b" 200 " in answer
    assert b"Content-Length: %d" % len(POLICY) in answer
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    "begin",
    [
        pytest.param(lambda writer: None, id="not a word"),
        pytest.param(lambda writer: writer.write(b"\x16\x03\x01"), id="half a handshake"),
    ],
)
async def test_who_is_slow_is_cut_off_before_and_after_the_handshake(
    tmp_path: Path, authority: trustme.CA, begin: Callable[[asyncio.StreamWriter], None]
) -> None:
    async with serving(tmp_path, authority, lifetime_s=0.2) as listener:
        host, port = listener.addresses[0]
        reader, writer = await asyncio.open_connection(host, port)
        begin(writer)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(reader.readexactly(1), PATIENCE_S)
        writer.close()
        reader, writer = await asyncio.open_connection(
            host, port, ssl=trusting(authority), server_hostname=HOST
        )
        writer.write(b"GET / HTTP/1.1\r\nHost: ")
        await writer.drain()
        assert await asyncio.wait_for(_to_the_end(reader), PATIENCE_S) == b""
        writer.close()
        assert len(listener._clients) <= 1  # the last one's end may not have been seen yet
        assert (await raw(listener, authority, GOOD[0])).endswith(POLICY.encode())


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.read()
    except (ConnectionResetError, ssl.SSLError):
        return b""


async def test_one_client_does_not_get_all_places(
    tmp_path: Path, authority: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy_host, "MAX_CONNECTIONS_PER_CLIENT", 2)
    async with serving(tmp_path, authority) as listener:
        host, port = listener.addresses[0]
        held = [await asyncio.open_connection(host, port) for _ in range(2)]
        reader, writer = await asyncio.open_connection(host, port)
        assert await asyncio.wait_for(_to_the_end(reader), PATIENCE_S) == b""
        for _, holder in [*held, (reader, writer)]:
            holder.close()
            await holder.wait_closed()
        answer = await raw(listener, authority, GOOD[0])
        assert answer.endswith(POLICY.encode())


async def test_old_tls_is_refused(tmp_path: Path, authority: trustme.CA) -> None:
    async with serving(tmp_path, authority) as listener:
        context = trusting(authority)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        host, port = listener.addresses[0]
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection(host, port, ssl=context, server_hostname=HOST)


async def test_a_new_certificate_is_taken_up_and_a_bad_one_is_not(
    tmp_path: Path, authority: trustme.CA
) -> None:
    async with serving(tmp_path, authority) as listener:
        write_pair(tmp_path, authority, HOST, "mta-sts.mail.example.org")
        listener.reload_tls()
        there = await raw(listener, authority, GOOD[3], name="mta-sts.mail.example.org")
        assert there.endswith(POLICY.encode())
        (tmp_path / "cert.pem").write_text("no certificate")
        with pytest.raises(OSError, match="PEM"):
            listener.reload_tls()
        assert (await raw(listener, authority, GOOD[0])).endswith(POLICY.encode())


async def test_a_taken_address_leaves_nothing_behind(tmp_path: Path, authority: trustme.CA) -> None:
    async with serving(tmp_path, authority) as listener:
        settings = settings_in(tmp_path).model_copy(update={"listen": (HostPort(*listener.addresses[0]),)})
        second = PolicyHostListener(settings, PolicyPage(settings.policy, DOMAINS))
        with pytest.raises(OSError, match="in use"):
            await second.start()
        assert second.addresses == []


def test_it_works_on_the_loop_of_the_running_gateway(tmp_path: Path, authority: trustme.CA) -> None:
    async def fetch() -> bytes:
        async with serving(tmp_path, authority) as listener:
            return b"".join([await raw(listener, authority, request) for request in GOOD])

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(fetch()).count(POLICY.encode()) == len(GOOD)
    assert threading.active_count() == 1


async def test_behind_a_web_server_the_page_stands_beside_the_metrics() -> None:
    page = PolicyPage(parse_policy(POLICY.encode()), DOMAINS)
    listener = HttpListener(HttpSettings(listen=HostPort("127.0.0.1", 0)), metrics=Metrics(), pages=[page])
    await listener.start()
    try:
        url = "http://{}:{}".format(*listener.addresses[0]) + WELL_KNOWN_PATH
        async with aiohttp.ClientSession() as client:
            async with client.get(url, headers={"Host": HOST}) as answer:
                assert (answer.status, await answer.text()) == (200, POLICY)
            async with client.get(url) as answer:
                assert answer.status == 404
    finally:
        await listener.close()


def test_the_identifier_is_of_the_text_and_fits_the_record() -> None:
    policy = parse_policy(POLICY.encode())
    others = [
        Policy(mode=policy.mode, mx=policy.mx, max_age_s=86_400),
        Policy(mode=policy.mode, mx=policy.mx[:1], max_age_s=policy.max_age_s),
    ]
    identifiers = {policy_identifier(one) for one in (policy, parse_policy(POLICY.encode()), *others)}
    assert len(identifiers) == 3
    assert all(one.isalnum() and len(one) <= 32 for one in identifiers)
