"""How far a long command is: on a terminal, in a log, and for a program."""

import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.cli.progress import LINE_EVERY_S, progress
from tests.cli.test_doctor import GOOD


def clock(*times: float) -> Callable[[], float]:
    left = list(times)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("replaying", 3, now=clock(0.0, 1.0, LINE_EVERY_S, LINE_EVERY_S, 3.0)) as tick:
        tick("one")
        tick("two")
        tick("three")
    captured = capsys.readouterr()
    assert captured.err == "replaying: 2 of 3, two\n"
    assert captured.out == ""


def test_labels_of_strangers_are_harmless(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("x", 1, now=clock(0.0, 10.0)) as tick:
        tick("\x1b[2J\u202e" + "a" * 500)
    assert capsys.readouterr().err.rstrip("\n").isprintable()


def test_a_program_hears_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("x", 1, quiet=True, now=clock(0.0, 10.0)) as tick:
        tick("one")
    assert capsys.readouterr() == ("", "")


def run_on_terminal(command: list[str]) -> tuple[str, str]:
    """Standard error on a terminal, standard output in a pipe: what each shows."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 4096)
            except OSError:  # Linux says so when the last writer is gone
                break
            if not piece:
                break
            shown += piece
        assert process.stdout
        answer = process.stdout.read()
    os.close(ours)
    return answer.decode(), shown.decode()


def test_on_a_terminal_there_is_a_bar_and_the_answer_stays_clean(tmp_path: Path) -> None:
    zone = tmp_path / "zone.txt"
    zone.write_text(GOOD)
    command = [sys.executable, "-m", "gateway", "doctor", "example.net", "--zone", str(zone)]
    answer, shown = run_on_terminal(command)
    assert "11/11" in shown
    assert answer.startswith("example.net: ")
    assert "\x1b" not in answer
    answer, shown = run_on_terminal([*command, "--json"])
    assert answer.startswith("{")
    assert shown == ""
