"""The supervisor with small jobs: what becomes of children that end, are killed, are replaced, or never get ready."""

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PATIENCE_S = 15.0

PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, time
    from gateway.ops.log import set_up_logging
    from gateway.ops.config import LogSettings
    from gateway.ops.workers import RELOAD, RETIRE, STOP, Job, Supervisor, say_ready

    set_up_logging(LogSettings(format="json"))
    mode = sys.argv[1]
    generation = 0

    def say(*words):
        os.write(1, (" ".join(map(str, words)) + "\\n").encode())

    def make(name):
        born_in = generation

        def run(lifeline):
            import select
            if mode == "usage":
                return 2
            if mode == "crash" and name == "work-1":
                raise RuntimeError("a bug")
            if name == "work-1" and (mode in {"late", "hangs"} or (mode == "fewer" and born_in == 1)):
                say("starting", name, born_in)
                os.read(0, 1)
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            signal.set_wakeup_fd(writer)
            for number in (STOP, RETIRE, RELOAD):
                signal.signal(number, lambda *_: None)
            say("begin", name, os.getpid(), born_in)
            say_ready()
            while True:
                ready, _, _ = select.select([reader, lifeline], [], [])
                if lifeline in ready:
                    say("orphan", name)
                    return 0
                for number in os.read(reader, 100):
                    if number == STOP and mode == "stubborn":
                        say("stubborn", name)
                        continue
                    say({STOP: "stop", RETIRE: "retire", RELOAD: "reload"}[number], name, born_in)
                    if number != RELOAD:
                        return 0
        return Job(name=name, run=run)

    fixed = make("fixed")

    def jobs():
        return (fixed, make("work-0"), make("work-1"))

    def replace():
        global generation
        if mode == "bad-file":
            say("refused")
            return None
        if mode == "bug":
            raise KeyError("a bug")
        if mode in {"rules", "late"}:
            return ()
        generation += 1
        if generation == 2 and mode == "fewer":
            return (fixed, make("work-0"))
        return jobs()

    supervisor = Supervisor(
        jobs=jobs(),
        replace=replace,
        drain_s=1.0 if mode == "stubborn" else 10.0,
        start_s=0.2 if mode == "hangs" else 30.0,
    )
    say("supervisor", os.getpid())
    sys.exit(supervisor.run())
    """
)


@dataclass(slots=True)
class Supervised:
    process: subprocess.Popen[bytes]
    errors: Path
    said: list[str] = field(default_factory=list)
    rest: bytes = b""

    def wait_for(self, beginning: str, count: int = 1) -> list[str]:
        """The first `count` lines that begin so."""
        deadline = time.monotonic() + PATIENCE_S
        assert self.process.stdout is not None
        while len(found := [line for line in self.said if line.startswith(beginning)]) < count:
            left_s = deadline - time.monotonic()
            readable, _, _ = select.select([self.process.stdout], [], [], max(left_s, 0))
            data = os.read(self.process.stdout.fileno(), 65536) if readable else b""
            assert data, f"no {beginning}: {self.said} {self.errors.read_text()}"
            *lines, self.rest = (self.rest + data).split(b"\n")
            self.said += [line.decode() for line in lines]
        return found[:count]

    def wait_for_log(self, event: str, count: int = 1) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.errors.read_text().count(event) < count:
            assert time.monotonic() < deadline, self.errors.read_text()
            time.sleep(0.02)  # a log file has no event

    def pid_of(self, name: str) -> int:
        return int(self.wait_for(f"begin {name} ")[-1].split()[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_S)


@pytest.fixture
def supervised(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervised]:
    errors = tmp_path / "errors"
    with errors.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, request.param],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield Supervised(process, errors)
    finally:
        if process.poll() is None:
            process.kill()  # its children see the end of their lifeline
            process.wait()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        process.stdout.close()


@pytest.mark.parametrize("supervised", ["plain"], indirect=True)
def test_sigterm_ends_all_and_says_so(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    assert supervised.end() == 0
    assert {line.split()[1] for line in supervised.wait_for("stop", 3)} == {"fixed", "work-0", "work-1"}


@pytest.mark.parametrize("supervised", ["plain"], indirect=True)
def test_a_killed_child_is_started_again(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    os.kill(supervised.pid_of("work-0"), signal.SIGKILL)
    first, second = supervised.wait_for("begin work-0", 2)
    assert first.split()[2] != second.split()[2]
    assert supervised.end() == 0
    assert '"event": "worker.lost"' in supervised.errors.read_text().replace('":"', '": "')


@pytest.mark.parametrize("supervised", ["crash"], indirect=True)
def test_a_child_that_always_fails_is_tried_less_and_less_often_and_the_others_work(
    supervised: Supervised,
) -> None:
    supervised.wait_for("begin work-0")
    supervised.wait_for_log("worker.lost", 3)  # now, at once, after half a second
    assert "RuntimeError: a bug" in supervised.errors.read_text()
    assert supervised.end() == 0


@pytest.mark.parametrize("supervised", ["usage"], indirect=True)
def test_what_can_never_work_ends_at_once(supervised: Supervised) -> None:
    assert supervised.process.wait(PATIENCE_S) == 2


@pytest.mark.parametrize("supervised", ["rules"], indirect=True)
def test_sighup_is_passed_on_where_nobody_is_replaced(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    supervised.process.send_signal(signal.SIGHUP)
    assert len(supervised.wait_for("reload", 3)) == 3
    assert supervised.end() == 0


@pytest.mark.parametrize("supervised", ["plain"], indirect=True)
def test_replaced_workers_serve_until_the_new_ones_do(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for("retire", 2)
    for name in ("work-0", "work-1"):
        begun = next(
            n
            for n, line in enumerate(supervised.said)
            if line.startswith(f"begin {name}") and line.endswith(" 1")
        )
        assert supervised.said.index(f"retire {name} 0") > begun
    assert supervised.wait_for("reload") == ["reload fixed 0"]
    assert supervised.end() == 0


@pytest.mark.parametrize("supervised", ["bad-file"], indirect=True)
def test_a_bad_file_changes_nothing(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for("refused")
    assert supervised.end() == 0
    assert not [line for line in supervised.said if line.startswith(("retire", "reload"))]


@pytest.mark.parametrize("supervised", ["bug"], indirect=True)
def test_a_bug_in_reading_the_files_again_ends_nobody(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for_log("config.reload-failed")
    assert supervised.end() == 0
    assert "KeyError" in supervised.errors.read_text()


@pytest.mark.parametrize("supervised", ["late"], indirect=True)
def test_sighup_reaches_a_child_that_was_not_ready_for_it(supervised: Supervised) -> None:
    supervised.wait_for("starting work-1")
    supervised.wait_for("begin", 2)
    supervised.wait_for_log("worker.ready", 2)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for("reload", 2)
    assert supervised.process.stdin is not None
    os.write(supervised.process.stdin.fileno(), b".")
    supervised.wait_for("reload work-1")
    assert supervised.end() == 0


@pytest.mark.parametrize("supervised", ["hangs"], indirect=True)
def test_a_child_that_never_gets_ready_is_begun_again(supervised: Supervised) -> None:
    supervised.wait_for("starting work-1", 2)
    assert "worker.never-ready" in supervised.errors.read_text()
    assert supervised.end() == 0


@pytest.mark.parametrize("supervised", ["fewer"], indirect=True)
def test_who_waits_for_a_successor_that_is_no_longer_wanted_ends_as_well(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for("starting work-1 1")
    assert "retire work-1 0" not in supervised.said
    supervised.process.send_signal(signal.SIGHUP)
    supervised.wait_for("retire work-1 0")
    assert supervised.end() == 0


@pytest.mark.parametrize("supervised", ["stubborn"], indirect=True)
def test_who_does_not_end_is_killed(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    pids = [supervised.pid_of(name) for name in ("fixed", "work-0", "work-1")]
    assert supervised.end() == 1
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("supervised", ["plain"], indirect=True)
def test_children_end_with_a_supervisor_that_is_killed(supervised: Supervised) -> None:
    supervised.wait_for("begin", 3)
    supervised.process.kill()
    assert len(supervised.wait_for("orphan", 3)) == 3
