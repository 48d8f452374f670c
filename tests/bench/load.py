"""What the load generator is to send, and what came of it. It is C, compiled here, so that it is never what limits a figure."""

import atexit
import json
import shutil
import subprocess
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

SEND_S = 240.0
_HERE = Path(__file__).parent


class Way(StrEnum):
    """How mail is handed over."""

    SMTP = "smtp"
    SMTP_TLS = "smtp-tls"
    MILTER = "milter"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """`messages` altogether, `per_session` in each session, over `connections` at a time.

    `address` is `127.0.0.1:2525` for SMTP and a path for the milter protocol; `corpus` is a file of `write_corpus`.
    """

    way: Way
    address: str
    corpus: Path
    messages: int
    per_session: int = 50
    connections: int = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """`cpu_seconds` are the sender's own; `edits` the header fields that a milter put in."""

    accepted: int
    edits: int
    seconds: float
    cpu_seconds: float
    p50_ms: float
    p99_ms: float


def compiled(source: str, *options: str) -> Path:
    """A program or library of the bench, made from its source beside this file."""
    target = _build_directory() / source.removesuffix(".c")
    done = subprocess.run(
        ["cc", "-O2", "-o", target, _HERE / source, *options], stderr=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"{source} cannot be compiled (Debian: gcc libssl-dev): {done.stderr[:300]}")
    return target


@cache
def _build_directory() -> Path:
    directory = Path(mkdtemp(prefix="gateway-bench-"))
    directory.chmod(0o755)
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return directory


@cache
def _sender() -> Path:
    return compiled("load.c", "-lssl", "-lcrypto", "-lpthread")


def send(load: Load) -> Sent:
    """Send from a process of its own; what it complains of is raised."""
    figures = (load.messages, load.per_session, load.connections)
    command: list[str | Path] = [_sender(), load.way, load.address, load.corpus, *map(str, figures)]
    done = subprocess.run(command, capture_output=True, check=False, timeout=SEND_S, text=True)
    if done.returncode:
        raise AssertionError(f"{load}: {done.stderr}")
    return Sent(**json.loads(done.stdout))
