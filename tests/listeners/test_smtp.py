"""The proxy on its sockets: limits, clocks, TLS, large messages, stopping; and foreign programs on either side."""

import asyncio
import re
import shutil
import smtplib
import socket
import ssl
import subprocess
from collections import Counter
from ipaddress import ip_network
from pathlib import Path

import aiosmtplib
import pytest
import trustme
import uvloop
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP
from aiosmtpd.smtp import Envelope as AiosmtpdEnvelope
from aiosmtpd.smtp import Session as AiosmtpdSession

from gateway.listeners import downstream as downstream_module
from gateway.listeners import smtp as smtp_module
from gateway.mail.envelope import Listener, Tls
from gateway.mail.reply import Reply
from gateway.smtp.client import DownstreamFailure, Step
from gateway.smtp.command import Verb
from gateway.smtp.dialog import LoginOutcome
from gateway.smtp.effects import SessionEnd
from gateway.verdict import Answered, Disposition, Verdict
from tests.listeners.proxy import Client, Config, FakeJudge, open_bed, settle
from tests.smtp.downstream import CLOSE, SILENCE, FakeDownstream

HELLO = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<a@sender.example>\r\nRCPT TO:<bob@example.net>\r\n"
CONTENT = b"Subject: x\r\n\r\n..text\r\n.\r\n"


@pytest.fixture
def quick_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_module, "TICK_S", 0.02)


# Messages


async def test_a_message_and_the_one_after_it() -> None:
    async with open_bed() as bed:
        client = await bed.connect()
        await client.begin()
        await client.send(CONTENT)
        assert await client.reply() == "250 2.0.0 Ok: queued"
        await client.begin_message()
        await client.send(CONTENT)
        assert await client.codes(1) == ["250"]
        assert (await client.ask("QUIT")).startswith("221")
        assert await client.is_closed()
        assert bed.downstream.bodies() == [b"Subject: x\r\n\r\n.text\r\n"] * 2
        assert bed.downstream.connections == 1
        assert bed.listener.budget.used == 0


async def test_the_next_client_uses_the_connection_of_the_last() -> None:
    async with open_bed() as bed:
        for _ in range(3):
            client = await bed.connect()
            await client.begin()
            await client.send(CONTENT + b"QUIT\r\n")
            assert await client.codes(2) == ["250", "221"]
            assert await client.is_closed()
        assert bed.downstream.connections == 1


async def test_a_connection_that_downstream_closed_meanwhile_costs_no_message() -> None:
    async with open_bed() as bed:
        first = await bed.connect()
        await first.begin()
        await first.send(CONTENT + b"QUIT\r\n")
        assert await first.codes(2) == ["250", "221"]
        bed.protocols[0].close()
        second = await bed.connect()
        await second.begin()
        await second.send(CONTENT)
        assert await second.codes(1) == ["250"]
        assert len(bed.downstream.messages) == 2


async def test_idle_connections_are_few(monkeypatch: pytest.MonkeyPatch, quick_clock: None) -> None:
    async with open_bed(Config(downstream_idle_connections=1)) as bed:
        clients = [await bed.connect() for _ in range(3)]
        for client in clients:
            await client.begin()
        for client in clients:
            await client.send(CONTENT + b"QUIT\r\n")
            assert await client.codes(2) == ["250", "221"]
        await settle(lambda: bed.downstream.log.count("QUIT") == 2)
        monkeypatch.setattr(downstream_module, "MAX_IDLE_S", 0.0)
        await settle(lambda: bed.downstream.log.count("QUIT") == 3)


@pytest.mark.parametrize("size", [900_000, 8_000_000])
def test_a_large_message_goes_through_a_file_and_back_as_it_came(size: int) -> None:
    async def run() -> None:
        content = b"".join(b"%07d .....\r\n" % number for number in range(size // 15))
        async with open_bed(Config(spool_threshold_bytes=500_000)) as bed:
            client = await bed.connect()
            await client.begin()
            await client.send(content + b".\r\n")
            assert await client.codes(1) == ["250"]
            assert bed.judge.kinds == ["mmap"]
            assert bed.downstream.bodies() == [content]
            assert bed.listener.budget.used == 0

    uvloop.run(run())


def test_downstream_that_reads_slowly_holds_the_message_back() -> None:
    async def run() -> None:
        got = bytearray()
        served = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 slow\r\n")
            for answer in (b"250 slow\r\n", b"250 Ok\r\n", b"250 Ok\r\n", b"354 go\r\n"):
                await reader.readline()
                writer.write(answer)
            while not got.endswith(b"\r\n.\r\n"):
                got.extend(await reader.read(200_000))
                await asyncio.sleep(0)
            writer.write(b"250 Ok\r\n")
            await reader.read()
            writer.close()
            served.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1000)
        async with open_bed(Config(downstream=server.sockets[0].getsockname()[:2])) as bed:
            client = await bed.connect()
            await client.begin()
            await client.send(b"0123456789abcde\r\n" * 400_000 + b".\r\n")
            assert await client.codes(1) == ["250"]
            client.close()
            bed.listener.pool.close()
            await asyncio.wait_for(served.wait(), 10)
        server.close()
        assert got.count(b"0123456789abcde\r\n") == 400_000

    uvloop.run(run())


async def test_the_budget_is_for_all_sessions_together() -> None:
    async with open_bed(Config(max_bytes_in_flight=1_000_000, max_message_bytes=900_000)) as bed:
        first, second = await bed.connect(), await bed.connect()
        await first.begin()
        await second.begin()
        await first.send(b"x" * 600_000)
        await settle(lambda: bed.listener.budget.used > 500_000)
        await second.send(b"y" * 600_000 + b"\r\n.\r\n")
        assert (await second.reply()).startswith("452 4.3.1")
        await first.send(b"\r\n.\r\n")
        assert await first.codes(1) == ["250"]
        assert bed.listener.budget.used == 0


async def test_a_client_that_leaves_in_the_midst_gives_its_room_back() -> None:
    async with open_bed() as bed:
        client = await bed.connect()
        await client.begin()
        await client.send(b"x" * 100_000)
        await settle(lambda: bed.listener.budget.used > 90_000)
        client.close()
        await settle(lambda: bed.listener.budget.used == 0)
        assert not bed.downstream.messages


# The judge


async def test_a_bug_in_the_judge_is_451_and_the_session_goes_on() -> None:
    async with open_bed(judge=FakeJudge(fault=RuntimeError("bug"))) as bed:
        client = await bed.connect()
        await client.begin()
        await client.send(CONTENT)
        assert (await client.reply()).startswith("451 4.3.0")
        assert (await client.ask("NOOP")).startswith("250")
        assert not bed.downstream.messages


async def test_a_bug_in_a_session_is_451_and_ends_only_that(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_bed() as bed:
        other, client = await bed.connect(), await bed.connect()
        assert await other.codes(1) == await client.codes(1) == ["220"]
        with monkeypatch.context() as patch:
            patch.setattr("gateway.smtp.proxy.parse_command", lambda _: 1 / 0)
            assert (await client.ask("NOOP")).startswith("451 4.3.0")
            assert await client.is_closed()
        assert (await other.ask("NOOP")).startswith("250")


async def test_a_client_that_leaves_while_it_is_judged_gets_nothing_delivered() -> None:
    judge = FakeJudge(may_answer=asyncio.Event())
    async with open_bed(judge=judge) as bed:
        client = await bed.connect()
        await client.begin()
        await client.send(CONTENT)
        await settle(lambda: bool(judge.seen))
        client.close()
        await settle(lambda: not bed.listener._sessions)
        assert judge.may_answer
        judge.may_answer.set()
        await settle(lambda: "RSET" in bed.downstream.log)
        assert "DATA" not in bed.downstream.log


# Limits and clocks


async def test_too_many_sessions_of_one_client_and_of_all() -> None:
    async with open_bed(Config(max_sessions_per_client=2, max_sessions=3)) as bed:
        clients = [await bed.connect() for _ in range(3)]
        assert [await client.codes(1) for client in clients] == [["220"], ["220"], ["421"]]
        assert await clients[2].is_closed()
        clients[0].close()
        await settle(lambda: len(bed.listener._sessions) == 1)
        again = await bed.connect()
        assert await again.codes(1) == ["220"]
    async with open_bed(Config(max_sessions=1)) as bed:
        clients = [await bed.connect() for _ in range(2)]
        assert [await client.codes(1) for client in clients] == [["220"], ["421"]]


@pytest.mark.parametrize(
    ("config", "begin", "trickle"),
    [
        (Config(command_timeout_s=0.1), False, b""),
        (Config(command_timeout_s=0.1), False, b"N"),  # slowloris: a byte now and then is no command
        (Config(data_timeout_s=0.1), True, b"x"),
        (Config(data_timeout_s=0.1), True, b""),
    ],
)
async def test_a_slow_client(config: Config, begin: bool, trickle: bytes, quick_clock: None) -> None:  # noqa: FBT001 - a column of the table
    async with open_bed(config) as bed:
        client = await bed.connect()
        if begin:
            await client.begin()
        else:
            await client.codes(1)
        reply = asyncio.ensure_future(client.reply())
        while not reply.done():
            await client.send(trickle)
            await asyncio.sleep(0.02)
        assert (await reply).startswith("421 4.4.2")


@pytest.mark.parametrize("step", ["GREETING", "EHLO", "MAIL", "RCPT", "DATA", "CONTENT"])
async def test_a_silent_downstream(step: str, quick_clock: None) -> None:
    config = Config(downstream_timeout_s=0.1, downstream_data_timeout_s=0.1)
    async with open_bed(config, downstream=FakeDownstream(at={(step, 0): SILENCE})) as bed:
        client = await bed.connect()
        await client.send(b"EHLO x\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n")
        count = {"GREETING": 2, "EHLO": 2, "MAIL": 5, "RCPT": 5}.get(step, 5)
        codes = await client.codes(count)
        if step in {"DATA", "CONTENT"}:
            assert codes[-1] == "354"
            await client.send(CONTENT)
            codes = await client.codes(1)
        expected = {"GREETING": "421", "EHLO": "421", "MAIL": "451", "RCPT": "451"}.get(step, "451")
        assert expected in codes
        assert not bed.downstream.messages


def test_downstream_that_refuses_the_connection() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            port = unused.getsockname()[1]
        async with open_bed(Config(downstream=("127.0.0.1", port))) as bed:
            client = await bed.connect()
            await client.codes(1)
            assert (await client.ask("HELO x")).startswith("250")
            assert (await client.ask("MAIL FROM:<>")).startswith("451")
            assert (await client.ask("EHLO x")).startswith("421 4.3.2")

    uvloop.run(run())


async def send_until_it_is_held_back(client: Client, line: bytes) -> bool:
    """Whether the other side stops reading before 100 MB."""
    for _ in range(1_600):
        client.writer.write(line * (60_000 // len(line)))
        try:
            await asyncio.wait_for(client.writer.drain(), 0.3)
        except TimeoutError:
            return True
    return False


async def test_a_client_that_does_not_read_is_not_read_from() -> None:
    async with open_bed() as bed:
        client = await bed.connect()
        await client.codes(1)
        await client.send(b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<bob@example.net>\r\n")
        await client.codes(3)
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]  # as a client that has hung itself up
        assert await send_until_it_is_held_back(client, b"BDAT 0\r\n")


@pytest.mark.parametrize("at", ["MAIL", "RCPT", "DATA", "CONTENT"])
async def test_a_client_that_sends_ahead_without_end_is_held_back(at: str) -> None:
    async with open_bed(downstream=FakeDownstream(at={(at, 0): SILENCE})) as bed:
        client = await bed.connect()
        await client.send(HELLO + ENVELOPE + b"DATA\r\nx\r\n.\r\n")
        assert await send_until_it_is_held_back(client, b"NOOP\r\n")
        (session,) = bed.listener._sessions
        assert session._core
        assert session._core.buffered < 1_000_000


# Stopping


async def test_drain_finishes_the_message_that_is_under_way() -> None:
    judge = FakeJudge(may_answer=asyncio.Event())
    async with open_bed(judge=judge) as bed:
        idle, busy = await bed.connect(), await bed.connect()
        await idle.codes(1)
        await busy.begin()
        await busy.send(CONTENT)
        await settle(lambda: bool(judge.seen))
        port = bed.port
        draining = asyncio.ensure_future(bed.listener.drain(10))
        assert (await idle.reply()).startswith("421 4.3.2")
        with pytest.raises(ConnectionError):
            await asyncio.open_connection("127.0.0.1", port)
        assert judge.may_answer
        judge.may_answer.set()
        assert await busy.codes(2) == ["250", "421"]
        await asyncio.wait_for(draining, 5)
        assert len(bed.downstream.messages) == 1


async def test_drain_ends_at_its_deadline() -> None:
    async with open_bed(judge=FakeJudge(may_answer=asyncio.Event())) as bed:
        client = await bed.connect()
        await client.begin()
        await client.send(CONTENT)
        await asyncio.wait_for(bed.listener.drain(0.05), 5)
        assert (await client.reply()).startswith("421")
        assert not bed.downstream.messages


# What is counted


class Counting:
    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def session_opened(self, listener: Listener) -> None:
        self.counts[f"opened {listener}"] += 1

    def session_closed(self, listener: Listener, end: SessionEnd) -> None:
        self.counts[f"closed {end}"] += 1

    def tls_started(self, listener: Listener, tls: Tls) -> None:
        self.counts[f"tls {listener} {tls.version}"] += 1

    def command(self, listener: Listener, verb: Verb, code: int) -> None:
        self.counts[f"{verb} {code}"] += 1

    def login(self, listener: Listener, mechanism: str, outcome: LoginOutcome) -> None:
        self.counts[f"login {listener} {mechanism} {outcome}"] += 1

    def downstream_reply(self, command: Step, code: int, seconds: float) -> None:
        assert 0 <= seconds < 10
        self.counts[f"down {command} {code}"] += 1

    def downstream_failed(self, failure: DownstreamFailure) -> None:
        self.counts[f"failed {failure}"] += 1

    def message(self, listener: Listener, answered: Answered) -> None:
        assert 0 <= answered.seconds < 10
        self.counts[f"message {answered.disposition} {answered.size}"] += 1


async def test_everything_is_counted_once() -> None:
    observer = Counting()
    downstream = FakeDownstream(at={("CONTENT", 2): CLOSE})
    async with open_bed(observer=observer, downstream=downstream) as bed:
        client = await bed.connect()
        await client.begin()
        await client.send(CONTENT)
        await client.codes(1)
        await client.begin_message()
        await client.send(CONTENT + b"WHAT\r\nQUIT\r\n")
        assert await client.codes(3) == ["451", "500", "221"]
        assert await client.is_closed()
        await settle(lambda: not bed.listener._sessions)
    assert observer.counts == {
        "opened inbound": 1,
        "closed quit": 1,
        "EHLO 250": 1,
        "MAIL 250": 2,
        "RCPT 250": 2,
        "DATA 354": 2,
        "DATA 250": 1,
        "DATA 451": 1,
        "other 500": 1,
        "QUIT 221": 1,
        "down mail 250": 2,
        "down rcpt 250": 2,
        "down data 354": 2,
        "down message 250": 1,
        "failed lost": 1,
        "message accept 21": 2,
    }


# TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls_files(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tls")
    issued = authority.issue_cert("mx.example.net", "127.0.0.1")
    certificate, key = directory / "cert.pem", directory / "key.pem"
    certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return certificate, key


def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


async def in_thread(work: "asyncio.Future[None] | object") -> None:
    await asyncio.get_running_loop().run_in_executor(None, work)  # type: ignore[arg-type]  # a plain function


@pytest.mark.parametrize("uv", [False, True])
def test_smtplib_over_starttls(authority: trustme.CA, tls_files: tuple[Path, Path], uv: bool) -> None:  # noqa: FBT001 - which loop
    async def run() -> None:
        certificate, key = tls_files
        async with open_bed(Config(tls_certificate=certificate, tls_key=key)) as bed:

            def send() -> None:
                with smtplib.SMTP(
                    "127.0.0.1", bed.port, local_hostname="client.example", timeout=10
                ) as client:
                    client.starttls(context=trusting(authority))
                    client.sendmail(
                        "a@sender.example", ["bob@example.net"], b"Subject: tls\r\n\r\n.x\r\n" * 1000
                    )

            await in_thread(send)
            ((envelope, _),) = bed.judge.seen
            assert envelope.session.tls
            assert envelope.session.tls.version == "TLSv1.3"
            assert bed.downstream.bodies() == [b"Subject: tls\r\n\r\n.x\r\n" * 1000]
            assert b"with ESMTPS id" in bed.downstream.messages[0]
            assert b"using TLSv1.3" in bed.downstream.messages[0]

    (uvloop.run if uv else asyncio.run)(run())


def test_old_tls_is_refused(authority: trustme.CA, tls_files: tuple[Path, Path]) -> None:
    async def run() -> None:
        certificate, key = tls_files
        async with open_bed(Config(tls_certificate=certificate, tls_key=key)) as bed:
            old = trusting(authority)
            with pytest.warns(DeprecationWarning, match="TLSv1"):
                old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1

            def send() -> None:
                with (
                    smtplib.SMTP("127.0.0.1", bed.port, timeout=10) as client,
                    pytest.raises((ssl.SSLError, OSError)),
                ):
                    client.starttls(context=old)

            await in_thread(send)
            await settle(lambda: not bed.listener._sessions)

    uvloop.run(run())


@pytest.mark.parametrize("uv", [False, True])
def test_what_is_injected_before_tls_is_not_obeyed_inside(
    authority: trustme.CA,
    tls_files: tuple[Path, Path],
    uv: bool,  # noqa: FBT001 - which loop
) -> None:
    """CVE-2011-0411, with real TLS: one segment with STARTTLS and commands of the attacker's."""

    async def run() -> None:
        certificate, key = tls_files
        async with open_bed(Config(tls_certificate=certificate, tls_key=key)) as bed:

            def send() -> None:
                with socket.create_connection(("127.0.0.1", bed.port), timeout=10) as raw:
                    assert raw.recv(1000).startswith(b"220")
                    raw.sendall(b"STARTTLS\r\nEHLO attacker.example\r\nMAIL FROM:<ceo@example.net>\r\n")
                    assert raw.recv(1000) == b"220 2.0.0 Ready to start TLS\r\n"
                    with trusting(authority).wrap_socket(raw, server_hostname="mx.example.net") as secured:
                        secured.sendall(b"NOOP\r\nMAIL FROM:<a@b.example>\r\n")
                        heard = b""
                        while heard.count(b"\r\n") < 2:
                            heard += secured.recv(1000)
                        assert re.fullmatch(rb"250 [^\r]*\r\n503 [^\r]*\r\n", heard)

            await in_thread(send)
            assert bed.downstream.log == []

    (uvloop.run if uv else asyncio.run)(run())


async def test_garbage_instead_of_a_handshake(tls_files: tuple[Path, Path]) -> None:
    certificate, key = tls_files
    async with open_bed(Config(tls_certificate=certificate, tls_key=key)) as bed:
        client = await bed.connect()
        await client.codes(1)
        assert (await client.ask("STARTTLS")).startswith("220")
        await client.send(b"EHLO not.tls.example\r\n" * 10)
        await settle(lambda: not bed.listener._sessions)


def test_a_bad_new_certificate_leaves_the_old_in_force(tls_files: tuple[Path, Path], tmp_path: Path) -> None:
    async def run() -> None:
        certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
        shutil.copy(tls_files[0], certificate)
        shutil.copy(tls_files[1], key)
        async with open_bed(Config(tls_certificate=certificate, tls_key=key)) as bed:
            before = bed.listener.tls
            certificate.write_text("not a certificate")
            with pytest.raises(OSError):  # noqa: PT011 - ssl's messages are OpenSSL's business
                bed.listener.reload_tls()
            assert bed.listener.tls is before
            shutil.copy(tls_files[0], certificate)
            bed.listener.reload_tls()
            assert bed.listener.tls is not before

    asyncio.run(run())


# Peers


async def test_xclient_and_proxy_header_from_configured_peers() -> None:
    local = (ip_network("127.0.0.0/8"),)
    async with open_bed(Config(xclient_from=local)) as bed:
        client = await bed.connect()
        await client.codes(1)
        assert (await client.ask("XCLIENT ADDR=203.0.113.9")).startswith("220")
        await client.send(b"EHLO c\r\n")
        assert await client.codes(1) == ["250"]
        await client.begin_message()
        await client.send(CONTENT)
        await client.codes(1)
        assert str(bed.judge.seen[0][0].session.client_ip) == "203.0.113.9"
    async with open_bed(Config(proxy_protocol_from=local, max_sessions_per_client=1)) as bed:
        clients = [await bed.connect() for _ in range(2)]
        for number, client in enumerate(clients):
            await client.send(f"PROXY TCP4 203.0.113.{number} 192.0.2.1 1 25\r\n".encode())
            assert await client.codes(1) == ["220"], "each is a client of its own"


def test_aiosmtplib_into_aiosmtpd() -> None:
    """Two programs of other authors, one on either side."""
    got: list[AiosmtpdEnvelope] = []

    class Handler:
        async def handle_DATA(  # noqa: N802 - aiosmtpd wants this name
            self, server: SMTP, session: AiosmtpdSession, envelope: AiosmtpdEnvelope
        ) -> str:
            got.append(envelope)
            return "250 2.0.0 Taken by aiosmtpd"

    controller = Controller(Handler(), hostname="127.0.0.1", port=_free_port(), enable_SMTPUTF8=True)
    controller.start()

    async def run() -> None:
        async with open_bed(Config(downstream=("127.0.0.1", controller.port))) as bed:
            client = aiosmtplib.SMTP(hostname="127.0.0.1", port=bed.port, start_tls=False)
            await client.connect()
            for number in range(3):
                _, text = await client.sendmail(
                    "a@sender.example",
                    ["bob@example.net", "eve@example.net"],
                    f"Subject: {number}\r\n\r\n.\r\n..\r\n",
                )
                assert "Taken by aiosmtpd" in text
            with pytest.raises(aiosmtplib.SMTPRecipientsRefused):
                await client.sendmail("a@sender.example", ["x@elsewhere.example"], "Subject: x\r\n\r\n")
            await client.quit()

    try:
        uvloop.run(run())
    finally:
        controller.stop()
    assert [envelope.rcpt_tos for envelope in got] == [["bob@example.net", "eve@example.net"]] * 3
    content = got[0].content
    assert isinstance(content, bytes)
    assert content.endswith(b"Subject: 0\r\n\r\n.\r\n..\r\n")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert isinstance(port, int)
    return port


@pytest.mark.skipif(not shutil.which("swaks"), reason="needs swaks")
def test_swaks() -> None:
    async def run() -> None:
        async with open_bed(
            judge=FakeJudge(
                Verdict(disposition=Disposition.REJECT, rule="t", reply=Reply.of(550, "5.7.1", "No (t)"))
            )
        ) as bed:
            program = await asyncio.create_subprocess_exec(
                "swaks", "--server", f"127.0.0.1:{bed.port}", "--from", "a@sender.example", "--to", "bob@example.net",
                "--helo", "client.example", "--pipeline",
                stdout=subprocess.PIPE,
            )  # fmt: skip
            output, _ = await asyncio.wait_for(program.communicate(), 20)
            assert b"<** 550 5.7.1 No (t)" in output
            assert bed.judge.seen[0][0].session.helo == "client.example"

    asyncio.run(run())


@pytest.mark.skipif(
    not shutil.which("smtp-source") or not shutil.which("smtp-sink"),
    reason="needs Postfix's smtp-source and smtp-sink",
)
@pytest.mark.parametrize("options", [["-d"], []], ids=["many-per-session", "one-per-session"])
def test_volume_between_smtp_source_and_smtp_sink(options: list[str]) -> None:
    """Nothing is lost and nothing is doubled in a crowd."""
    sink_port = _free_port()
    sink = subprocess.Popen(
        ["smtp-sink", "-u", "nobody", f"127.0.0.1:{sink_port}", "100"], stdout=subprocess.DEVNULL
    )

    async def run() -> None:
        observer = Counting()
        async with open_bed(Config(downstream=("127.0.0.1", sink_port)), observer=observer) as bed:
            await settle(lambda: _answers(sink_port))
            source = await asyncio.create_subprocess_exec(
                "smtp-source", "-s", "10", "-m", "300", "-l", "5120", *options, "-f", "a@sender.example",
                "-t", "bob@example.net", f"127.0.0.1:{bed.port}",
            )  # fmt: skip
            assert await asyncio.wait_for(source.wait(), 30) == 0
        assert observer.counts["DATA 250"] == observer.counts["down message 250"] == 300

    try:
        uvloop.run(run())
    finally:
        sink.terminate()
        sink.wait(10)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
