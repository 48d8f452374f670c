"""A milter in a process of its own, whose judge does what each message tells it: libmilter runs but once in a process.

    python -m tests.milter.server SOCKET CAPTURES [OPTIONS-AS-JSON]

A field `X-Script:` with a JSON object says what becomes of the message (`Script`). Every message judged is written to the
CAPTURES directory. A line on standard output says `ready`, and, after SIGTERM, `drained N`.
"""

import asyncio
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

import structlog
import uvloop

from gateway.listeners.libmilter import LibmilterListener, LibmilterSocket
from gateway.listeners.milter import MilterListener, MilterSocket
from gateway.mail.edits import Edits, NewField
from gateway.mail.envelope import Envelope, Listener
from gateway.mail.message import Message
from gateway.mail.reply import Reply
from gateway.verdict import Answered, Disposition, Stage, Verdict

ROOT: Final = Path(__file__).resolve().parents[2]
ACCEPTED: Final = Verdict(disposition=Disposition.ACCEPT, rule="test")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The attributes of the `[milter]` section."""

    listen: str
    socket_mode: int = 0o666
    max_message_bytes: int = 52_428_800
    spool_threshold_bytes: int = 1_048_576
    timeout_s: float = 7_210
    judge_timeout_s: float = 60
    max_sessions: int = 1_000
    trusted_networks: tuple[Any, ...] = ()
    quarantine: str = "hold"


class ScriptedJudge:
    """Does as the message says; at MAIL and RCPT as the local part of the address says (`reject-me@…`)."""

    def __init__(self, captures: Path | None) -> None:
        self._captures = captures
        self._number = 0

    async def screen(self, stage: Stage, envelope: Envelope) -> Verdict | None:
        mailbox = envelope.mail_from if stage is Stage.MAIL else envelope.recipients[0].mailbox
        match mailbox.local_part if mailbox else "":
            case "reject-me":
                return _refusal("reject", [550, "5.7.1", [f"100% no at {stage}"]])
            case "defer-me":
                return _refusal("defer", [450, "4.7.1", [f"later at {stage}"]])
            case "crash-me":
                raise RuntimeError("a bug in the judge")
            case "slow-me":
                await asyncio.sleep(3600)
            case _:
                pass
        return None

    async def judge(self, envelope: Envelope, message: Message) -> Verdict:
        if self._captures is None:
            return ACCEPTED
        self._capture(envelope, message)
        found = message.positions(b"x-script")
        script = json.loads(message.unfolded(found[0])) if found else {}
        if script.get("crash"):
            raise RuntimeError("a bug in the judge")
        await asyncio.sleep(script.get("sleep", 0))
        if "reply" in script:
            return _refusal(script["disposition"], script["reply"])
        edits = Edits(
            prepend=tuple(NewField(name, value) for name, value in script.get("prepend", ())),
            remove=frozenset(
                position
                for key, nth in script.get("remove", ())
                for position in [message.positions(key.encode())[nth]]
            ),
        )
        return Verdict(
            disposition=Disposition(script.get("disposition", "accept")), rule="test-rule", edits=edits
        )

    def _capture(self, envelope: Envelope, message: Message) -> None:
        assert self._captures is not None
        self._number += 1
        base = self._captures / f"{self._number:04d}"
        session = envelope.session
        facts = {
            "kind": type(message.raw).__name__,
            "queue_id": envelope.queue_id,
            "mail_from": str(envelope.mail_from) if envelope.mail_from else None,
            "recipients": [str(one.mailbox) for one in envelope.recipients],
            "params": dict(envelope.params),
            "smtputf8": envelope.smtputf8,
            "client_ip": str(session.client_ip),
            "client_name": session.client_name,
            "helo": session.helo,
            "login": session.login,
            "trusted": session.trusted,
            "tls": session.tls.version if session.tls else None,
            "session": session.id,
            "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        }
        if len(message) <= 2_000_000:
            base.with_suffix(".eml").write_bytes(bytes(message.raw))
        base.with_suffix(".part").write_text(json.dumps(facts))
        base.with_suffix(".part").rename(base.with_suffix(".json"))


def _refusal(disposition: str, reply: list[Any]) -> Verdict:
    code, enhanced, lines = reply
    return Verdict(
        disposition=Disposition(disposition), rule="test-rule", reply=Reply(code, enhanced, tuple(lines))
    )


class PrintingObserver:
    """Writes what it is told to standard error, where the test finds it."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet

    def session_opened(self, listener: Listener) -> None:
        self._say(f"opened {listener}")

    def session_closed(self, listener: Listener, end: str) -> None:
        self._say(f"closed {listener} {end}")

    def command(self, listener: Listener, verb: str, code: int) -> None:
        self._say(f"command {listener} {verb} {code}")

    def message(self, listener: Listener, answered: Answered) -> None:
        assert answered.seconds >= 0
        self._say(f"message {listener} {answered.disposition} {answered.size}")

    def _say(self, text: str) -> None:
        if not self._quiet:
            os.write(2, f"observed {text}\n".encode())


async def serve(socket: str, captures: str, options: dict[str, Any]) -> None:
    structlog.configure(
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    options["trusted_networks"] = tuple(ip_network(one) for one in options.get("trusted_networks", ()))
    asks = options.pop("asks", True)
    drain_s = options.pop("drain_s", 10)
    implementation = options.pop("implementation", "own")
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, stop.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: _tell("reloaded"))
    settings = Settings(listen=f"unix:{socket}", **options)
    given: dict[str, Any] = {
        "judge": ScriptedJudge(Path(captures) if captures else None),
        "observer": PrintingObserver(quiet=not captures),
        "asks": lambda _stage: asks,
    }
    sock: MilterSocket | LibmilterSocket
    listener: MilterListener | LibmilterListener
    # The settings have the same attributes, unchecked.
    if implementation == "own":
        sock = MilterSocket(settings)  # type: ignore[arg-type]
        listener = MilterListener(settings, sock=sock, **given)  # type: ignore[arg-type]
    else:
        sock = LibmilterSocket(settings)  # type: ignore[arg-type]
        listener = LibmilterListener(settings, sock=sock, loop=loop, **given)  # type: ignore[arg-type]
    await listener.start()
    _tell("ready")
    await stop.wait()
    started = time.monotonic()
    left = await listener.drain(drain_s)
    sock.remove()
    used = resource.getrusage(resource.RUSAGE_SELF)
    _tell(f"drained {left} {time.monotonic() - started:.2f} {used.ru_utime + used.ru_stime:.3f}")


def _tell(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@dataclass(slots=True)
class MilterProcess:
    """The server as its test sees it."""

    process: subprocess.Popen[str]
    socket: Path
    captures: Path | None
    errors: list[str]

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def read_line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def captured(self, since: int = 0) -> list[tuple[dict[str, Any], bytes]]:
        """Facts and content of each judged message, oldest first."""
        assert self.captures is not None
        found = sorted(self.captures.glob("*.json"))[since:]
        return [(json.loads(path.read_text()), _read_if_there(path.with_suffix(".eml"))) for path in found]

    def count(self) -> int:
        assert self.captures is not None
        return len(list(self.captures.glob("*.json")))

    def said(self) -> str:
        """What it has written to standard error so far: the observer's notes and the log."""
        return "\n".join(self.errors)


@contextmanager
def milter_process(
    directory: Path, options: Mapping[str, Any] | None = None, *, capture: bool = True
) -> Iterator[MilterProcess]:
    """Run the server below `directory` and wait until it is ready."""
    socket, captures = directory / "milter.sock", directory / "captures"
    captures.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.milter.server",
            str(socket),
            str(captures) if capture else "",
            json.dumps(dict(options or {})),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    running = MilterProcess(process, socket, captures if capture else None, [])
    assert process.stderr is not None
    reader = threading.Thread(
        target=lambda stream: running.errors.extend(iter(stream.readline, "")), args=[process.stderr]
    )
    reader.start()
    try:
        line = running.read_line()
        assert line == "ready", running.said()
        yield running
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(5)
        reader.join(5)
        assert process.stdout is not None
        process.stdout.close()
        process.stderr.close()


def _read_if_there(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], sys.argv[2], json.loads(sys.argv[3])))
