"""The submission door on real sockets: STARTTLS and TLS at once, log-ins by foreign clients, and how it stops."""

import asyncio
import base64
import contextlib
import io
import json
import smtplib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import pytest
import structlog
import trustme
import uvloop

from gateway.listeners import smtp_session
from gateway.listeners.observer import NoObserver
from gateway.listeners.submission import SubmissionListener
from gateway.mail.envelope import Listener
from gateway.ops.config import LogSettings
from gateway.ops.log import LogOutput, set_up_logging
from gateway.smtp.dialog import LoginOutcome
from gateway.smtp.effects import SessionEnd
from tests.listeners.proxy import Client, Config, DownstreamProtocol, FakeJudge, settle
from tests.smtp.downstream import FakeDownstream

MESSAGE = b"From: ann@example.net\r\nSubject: hello\r\n\r\n.dots\r\n"
LOCAL = (ip_network("127.0.0.0/8"),)
GOOD = base64.b64encode(b"\0ann\0secret").decode()


@dataclass(slots=True, kw_only=True)
class Settings(Config):
    """The `[submission]` section."""

    listen_tls: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),)
    hide_client: bool = False
    max_auth_failures: int = 3
    auth_window_s: float = 600
    auth_delay_s: float = 0.01


class Counting(NoObserver):
    def __init__(self) -> None:
        self.logins: Counter[tuple[str, str]] = Counter()
        self.ends: Counter[SessionEnd] = Counter()
        self.opened = 0

    def session_opened(self, listener: Listener) -> None:
        assert listener is Listener.SUBMISSION
        self.opened += 1

    def session_closed(self, listener: Listener, end: SessionEnd) -> None:
        self.ends[end] += 1

    def login(self, listener: Listener, mechanism: str, outcome: LoginOutcome) -> None:
        self.logins[mechanism, outcome] += 1


@dataclass(slots=True)
class Bed:
    listener: SubmissionListener
    downstream: FakeDownstream
    observer: Counting
    judge: FakeJudge

    @property
    def port(self) -> int:
        return self.listener.addresses[0].port

    @property
    def tls_port(self) -> int:
        return self.listener.addresses[-1].port

    async def none_left(self) -> None:
        await settle(lambda: not self.listener._sessions)


@asynccontextmanager
async def open_bed(files: tuple[Path, Path], **changes: object) -> AsyncIterator[Bed]:
    downstream = FakeDownstream(keywords=("SIZE 1000000", "8BITMIME", "AUTH PLAIN LOGIN"))
    server = await asyncio.get_running_loop().create_server(
        lambda: DownstreamProtocol(downstream), "127.0.0.1", 0
    )
    settings = Settings(
        tls_certificate=files[0],
        tls_key=files[1],
        downstream=server.sockets[0].getsockname()[:2],
        **changes,  # type: ignore[arg-type]  # a test names what it changes
    )
    observer, judge = Counting(), FakeJudge()
    listener = SubmissionListener(settings, hostname="mx.example.net", judge=judge, observer=observer)
    await listener.start()
    bed = Bed(listener, downstream, observer, judge)
    try:
        yield bed
    finally:
        listener.close()
        server.close()
        await bed.none_left()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("mx.example.net", "127.0.0.1")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


@pytest.fixture
def context(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def in_thread(work: Callable[[], None]) -> None:
    await asyncio.get_running_loop().run_in_executor(None, work)


Loop = Callable[[Coroutine[object, object, None]], None]
both_loops = pytest.mark.parametrize("on_loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])


@both_loops
@pytest.mark.parametrize("at_once", [False, True], ids=["starttls", "tls-at-once"])
def test_a_foreign_client_sends(
    files: tuple[Path, Path],
    context: ssl.SSLContext,
    on_loop: Loop,
    at_once: bool,  # noqa: FBT001
) -> None:
    async def run() -> None:
        async with open_bed(files) as bed:

            def send() -> None:
                client = (
                    smtplib.SMTP_SSL("127.0.0.1", bed.tls_port, timeout=10, context=context)
                    if at_once
                    else smtplib.SMTP("127.0.0.1", bed.port, timeout=10)
                )
                with client:
                    client.ehlo("client.example")
                    assert client.has_extn("starttls") is not at_once
                    assert client.has_extn("auth") is at_once
                    if not at_once:
                        client.starttls(context=context)
                    client.login("ann", "secret")
                    client.sendmail("ann@example.net", ["bob@elsewhere.example"], MESSAGE)

            await in_thread(send)
            ((envelope, _),) = bed.judge.seen
            assert envelope.session.login == "ann"
            assert envelope.session.tls
            assert bed.downstream.bodies() == [MESSAGE]
            assert b"with ESMTPSA id" in bed.downstream.messages[0]
            await bed.none_left()
            assert bed.observer.logins == {("PLAIN", LoginOutcome.ACCEPTED): 1}
            assert bed.observer.ends == {SessionEnd.QUIT: 1}

    on_loop(run())


@both_loops
def test_many_handshakes_at_once_are_all_made(
    files: tuple[Path, Path], context: ssl.SSLContext, on_loop: Loop
) -> None:
    """The first bytes of a handshake often come with the connection: none may be lost."""

    async def run() -> None:
        async with open_bed(files) as bed:

            def greet() -> None:
                for _ in range(20):
                    with (
                        socket.create_connection(("127.0.0.1", bed.tls_port), timeout=10) as raw,
                        context.wrap_socket(raw, server_hostname="mx.example.net") as secured,
                    ):
                        assert secured.recv(100).startswith(b"220 ")

            await asyncio.gather(*(in_thread(greet) for _ in range(4)))
            await bed.none_left()
            assert bed.observer.ends == {SessionEnd.CLIENT_CLOSED: 80}

    on_loop(run())


@both_loops
@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 203.0.113.9 192.0.2.1 1000 465\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes([203, 0, 113, 9, 192, 0, 2, 1, 0, 1, 1, 209]),
    ],
    ids=["v1", "v2"],
)
def test_a_proxy_header_stands_before_the_handshake(
    files: tuple[Path, Path],
    context: ssl.SSLContext,
    header: bytes,
    on_loop: Loop,
) -> None:
    async def run() -> None:
        async with open_bed(files, proxy_protocol_from=LOCAL) as bed:

            def greet() -> None:
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(incoming, outgoing, server_hostname="mx.example.net")
                with socket.create_connection(("127.0.0.1", bed.tls_port), timeout=10) as raw:
                    with contextlib.suppress(ssl.SSLWantReadError):
                        tls.do_handshake()
                    raw.sendall(header + outgoing.read())  # in one piece, as a balancer may

                    def hear(word: bytes) -> None:
                        heard = b""
                        while word not in heard:
                            incoming.write(raw.recv(4096))
                            with contextlib.suppress(ssl.SSLWantReadError):
                                tls.do_handshake()
                                raw.sendall(outgoing.read())
                                while True:
                                    heard += tls.read(4096)

                    hear(b"220 ")
                    tls.write(f"EHLO c\r\nAUTH PLAIN {GOOD}\r\nMAIL FROM:<ann@example.net>\r\n".encode())
                    raw.sendall(outgoing.read())
                    hear(b"250 2.1.0 ")

            await in_thread(greet)
            await bed.none_left()

    seen: list[str] = []
    original = SubmissionListener.enter

    def enter(self: SubmissionListener, address: object) -> bool:
        seen.append(str(address))
        return original(self, address)  # type: ignore[arg-type]  # an address it is

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SubmissionListener, "enter", enter)
        on_loop(run())
    assert seen == ["203.0.113.9"], "counted once, and as who it is"


@both_loops
@pytest.mark.parametrize(
    ("sent", "end"),
    [
        (b"EHLO client.example\r\n", SessionEnd.TLS_FAILED),
        (b"\x16\x03\x01\xff\xff" + b"\0" * 100, SessionEnd.TLS_FAILED),
    ],
)
def test_what_is_no_handshake_is_counted(
    files: tuple[Path, Path], sent: bytes, end: SessionEnd, on_loop: Loop
) -> None:
    async def run() -> None:
        async with open_bed(files) as bed:
            reader, writer = await asyncio.open_connection("127.0.0.1", bed.tls_port)
            writer.write(sent)
            assert b"220" not in await asyncio.wait_for(reader.read(), 10)
            writer.close()
            await bed.none_left()
            assert bed.observer.ends == {end: 1}
            assert not bed.listener._per_client

    on_loop(run())


@both_loops
def test_a_client_that_never_begins_is_not_waited_for(
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    on_loop: Loop,
) -> None:
    monkeypatch.setattr(smtp_session, "TLS_TIMEOUT_S", 0.1)
    monkeypatch.setattr(smtp_session, "BALANCER_TIMEOUT_S", 0.1)

    async def run() -> None:
        for balanced, end in ((), SessionEnd.TLS_FAILED), (LOCAL, SessionEnd.TIMEOUT):
            async with open_bed(files, proxy_protocol_from=balanced) as bed:
                reader, writer = await asyncio.open_connection("127.0.0.1", bed.tls_port)
                assert await asyncio.wait_for(reader.read(), 10) == b""
                writer.close()
                await bed.none_left()
                assert bed.observer.ends == {end: 1}

    on_loop(run())


async def test_a_bad_proxy_header_ends_it_without_a_word(files: tuple[Path, Path]) -> None:
    async with open_bed(files, proxy_protocol_from=LOCAL) as bed:
        reader, writer = await asyncio.open_connection("127.0.0.1", bed.tls_port)
        writer.write(b"\x16\x03\x01" + b"x" * 100)
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        await bed.none_left()
        assert bed.observer.ends == {SessionEnd.BAD_PROXY_HEADER: 1}


async def test_handshakes_count_against_the_clients_limit(files: tuple[Path, Path]) -> None:
    async with open_bed(files, max_sessions_per_client=2) as bed:
        writers = [(await asyncio.open_connection("127.0.0.1", bed.tls_port))[1] for _ in range(2)]
        await settle(lambda: sum(bed.listener._per_client.values()) == 2)
        reader, writer = await asyncio.open_connection("127.0.0.1", bed.tls_port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        for each in (*writers, writer):
            each.close()
        await bed.none_left()
        assert bed.observer.ends == {SessionEnd.REFUSED: 1, SessionEnd.TLS_FAILED: 2}
        assert not bed.listener._per_client


@both_loops
def test_stopping_ends_handshakes_and_idle_sessions(
    files: tuple[Path, Path], context: ssl.SSLContext, on_loop: Loop
) -> None:
    async def run() -> None:
        async with open_bed(files) as bed:
            _, silent = await asyncio.open_connection("127.0.0.1", bed.tls_port)
            client = Client(
                *await asyncio.open_connection(
                    "127.0.0.1", bed.tls_port, ssl=context, server_hostname="mx.example.net"
                )
            )
            assert (await client.reply()).startswith("220")
            await client.ask("EHLO c")
            assert (await client.ask(f"AUTH PLAIN {GOOD}")).startswith("235")
            await settle(lambda: bed.observer.opened == 2)
            await bed.listener.drain(5)
            assert (await client.reply()).startswith("421 4.3.2")
            assert await client.is_closed()
            assert bed.observer.ends == {SessionEnd.DRAINED: 2}
            with pytest.raises(OSError):  # noqa: PT011 - refused, by any name
                await asyncio.open_connection("127.0.0.1", bed.tls_port)
            silent.close()
            client.close()

    on_loop(run())


async def test_a_message_under_way_is_seen_through(files: tuple[Path, Path], context: ssl.SSLContext) -> None:
    async with open_bed(files) as bed:
        bed.judge.may_answer = asyncio.Event()
        client = Client(
            *await asyncio.open_connection(
                "127.0.0.1", bed.tls_port, ssl=context, server_hostname="mx.example.net"
            )
        )
        await client.send(f"EHLO c\r\nAUTH PLAIN {GOOD}\r\nMAIL FROM:<ann@example.net>\r\n".encode())
        await client.send(b"RCPT TO:<bob@elsewhere.example>\r\nDATA\r\n")
        assert (await client.codes(6))[2:] == ["235", "250", "250", "354"]
        await client.send(MESSAGE + b".\r\n")
        await settle(lambda: bool(bed.judge.seen))
        draining = asyncio.ensure_future(bed.listener.drain(10))
        await asyncio.sleep(0)
        bed.judge.may_answer.set()
        assert await client.codes(2) == ["250", "421"]
        await draining
        client.close()


@contextmanager
def logged() -> Iterator[io.BytesIO]:
    stream = io.BytesIO()
    set_up_logging(
        LogSettings(level="debug", format="json"), LogOutput(stream=stream, is_terminal=False, colours=False)
    )
    try:
        yield stream
    finally:
        structlog.reset_defaults()


async def test_who_tried_is_logged_and_never_with_what(
    files: tuple[Path, Path], context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    with logged() as stream:
        monkeypatch.setattr(smtp_session, "_log", structlog.get_logger())
        async with open_bed(files, max_auth_failures=2) as bed:

            def guess() -> None:
                with smtplib.SMTP_SSL("127.0.0.1", bed.tls_port, timeout=10, context=context) as client:
                    client.ehlo("c")
                    for password in ("hunter2", "hunter3"):
                        with pytest.raises(smtplib.SMTPAuthenticationError):
                            client.login("ann", password)
                    assert client.docmd("AUTH PLAIN " + GOOD)[0] == 421

            with contextlib.suppress(smtplib.SMTPServerDisconnected):
                await in_thread(guess)
            await bed.none_left()
            assert bed.observer.ends == {SessionEnd.TOO_MANY_GUESSES: 1}
    lines = stream.getvalue().decode()
    events = [json.loads(line) for line in lines.splitlines()]
    attempts = [each for each in events if each["event"] == "session.auth"]
    assert {each["login"] for each in attempts[:-1]} == {"ann"}
    assert [each["outcome"] for each in attempts][-1] == "barred"
    assert {each["client"] for each in attempts} == {"127.0.0.1"}
    for secret in ("hunter", "secret", GOOD, base64.b64encode(b"hunter2").decode()):
        assert secret not in lines


async def test_the_loop_goes_on_while_a_guess_is_punished(
    files: tuple[Path, Path], context: ssl.SSLContext
) -> None:
    async with open_bed(files, auth_delay_s=20) as bed:

        async def secured() -> Client:
            client = Client(
                *await asyncio.open_connection(
                    "127.0.0.1", bed.tls_port, ssl=context, server_hostname="mx.example.net"
                )
            )
            await client.send(b"EHLO c\r\n")
            assert await client.codes(2) == ["220", "250"]
            return client

        guesser, honest = await secured(), await secured()
        await guesser.send(b"AUTH PLAIN " + base64.b64encode(b"\0bob\0wrong") + b"\r\n")
        await settle(lambda: bed.downstream.seen["RESPONSE"] == 1)
        assert (await honest.ask(f"AUTH PLAIN {GOOD}")).startswith("235")
        guesser.close()
        honest.close()
        await bed.none_left()


async def test_a_reload_gives_new_handshakes_the_new_certificate(files: tuple[Path, Path]) -> None:
    async with open_bed(files) as bed:
        before = bed.listener.tls
        bed.listener.reload_tls()
        assert bed.listener.tls is not before


async def test_a_bug_at_the_door_does_not_close_it(
    files: tuple[Path, Path], context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_bed(files) as bed:
        monkeypatch.setattr(bed.listener, "make_driver", lambda: 1 / 0)
        reader, writer = await asyncio.open_connection("127.0.0.1", bed.tls_port)
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()
        monkeypatch.undo()
        client = Client(
            *await asyncio.open_connection(
                "127.0.0.1", bed.tls_port, ssl=context, server_hostname="mx.example.net"
            )
        )
        assert (await client.reply()).startswith("220")
        client.close()
