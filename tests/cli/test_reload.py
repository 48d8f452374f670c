"""What is read again by SIGHUP, when signals come faster than files are read."""

import asyncio
import socket
import ssl
import threading
from pathlib import Path

import pytest
import trustme

from gateway.cli.runtime import Inputs, Runtime, Source

CONFIG = """
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "zone.txt"
[inbound]
listen = ["127.0.0.1:0"]
downstream = "127.0.0.1:10025"
[policy]
rules = "{rules}"
"""


class _SlowSource(Source):
    """The first reading is finished only when it is let go."""

    __slots__ = ()
    may_go = threading.Event()
    has_read = threading.Event()

    def read(self) -> Inputs:
        inputs = super().read()
        self.has_read.set()
        assert self.may_go.wait(10)
        return inputs


class _BrokenSource(Source):
    __slots__ = ()

    def read(self) -> Inputs:
        raise KeyError("a bug")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "zone.txt").write_text("example.net. 60 IN A 192.0.2.1\n")
    path = tmp_path / "gateway.toml"
    choose(path, "default")
    return path


def choose(config: Path, rules: str) -> None:
    config.write_text(CONFIG.format(rules=rules))


async def test_of_two_signals_the_second_ones_files_hold(config: Path) -> None:
    source = Source(config=config, environ={})
    slow = _SlowSource(config=config, environ={})
    runtime = Runtime(source.read())
    choose(config, "monitor")
    first = asyncio.create_task(runtime.reload(slow))
    assert await asyncio.to_thread(slow.has_read.wait, 10)
    choose(config, "default")
    second = asyncio.create_task(runtime.reload(source))
    await asyncio.wait({second}, timeout=0.3)  # it could be done by now
    slow.may_go.set()
    await asyncio.gather(first, second)
    assert runtime.engine.rules.name == "default"


async def test_a_bug_in_a_reload_is_told_and_changes_nothing(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime = Runtime(Source(config=config, environ={}).read())
    before = runtime.engine.rules
    await runtime.reload(_BrokenSource(config=config, environ={}))
    assert runtime.engine.rules is before
    assert "config.reload-failed" in capsys.readouterr().out


DOORS = """
authserv_id = "mx.example.net"
local_domains = ["example.net"]
[dns]
zone_file = "zone.txt"
[submission]
listen = []
listen_tls = ["127.0.0.1:0"]
downstream = "127.0.0.1:10587"
tls_certificate = "{folder}/submission/cert.pem"
tls_key = "{folder}/submission/key.pem"
[mta_sts]
mode = "enforce"
mx = ["mx.example.net"]
listen = ["127.0.0.1:0"]
tls_certificate = "{folder}/policy-host/cert.pem"
tls_key = "{folder}/policy-host/key.pem"
[policy]
rules = "{rules}"
"""


def open_doors(config: Path, rules: str) -> None:
    config.write_text(DOORS.format(folder=config.parent, rules=rules))


class _TornSource(Source):
    """Somebody writes the last door's certificate just after the config was found in order."""

    __slots__ = ()

    def read(self) -> Inputs:
        inputs = super().read()
        (self.config.parent / "policy-host" / "cert.pem").write_text("half a certific")
        return inputs


def certify(directory: Path) -> None:
    directory.mkdir(exist_ok=True)
    pair = trustme.CA().issue_cert("mx.example.net", "mta-sts.example.net")
    pair.private_key_pem.write_to_path(str(directory / "key.pem"))
    pair.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))


def shown_by(where: str) -> bytes:
    """The certificate that a new client sees there."""
    host, _, port = where.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection((host, int(port)), timeout=10) as sock,
        context.wrap_socket(sock) as secure,
    ):
        return secure.getpeercert(binary_form=True) or b""


async def shown(runtime: Runtime) -> dict[str, bytes]:
    """By each door."""
    return {name: await asyncio.to_thread(shown_by, where) for name, where in runtime.doors()}


async def test_a_part_that_fails_last_keeps_all_others_from_being_taken(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = config.parent
    certify(folder / "submission")
    certify(folder / "policy-host")
    open_doors(config, "default")
    runtime = Runtime(Source(config=config, environ={}).read())
    await runtime.start()
    try:
        before = await shown(runtime)
        assert before.keys() == {"submission", "policy-host"}
        certify(folder / "submission")  # a new one, and in order
        open_doors(config, "monitor")
        await runtime.reload(_TornSource(config=config, environ={}))
        assert (await shown(runtime), runtime.engine.rules.name) == (before, "default")
        said = capsys.readouterr().out
        assert "config.refused" in said
        assert "[policy-host] certificate or key" in said
        assert "config.reloaded" not in said

        certify(folder / "policy-host")
        await runtime.reload(Source(config=config, environ={}))
        after = await shown(runtime)
        assert all(after[door] != before[door] for door in before)
        assert runtime.engine.rules.name == "monitor"
    finally:
        await runtime.close()
