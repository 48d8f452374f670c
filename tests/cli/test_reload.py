"""What is read again by SIGHUP, when signals come faster than files are read."""

import asyncio
import threading
from pathlib import Path

import pytest

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
