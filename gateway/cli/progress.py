"""How far a long command is: a bar for a person at a terminal, a line now and then for a log, nothing for a program.

It goes to standard error, so that what the command answers stays clean.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol, TextIO

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from gateway.cli.show import terminal
from gateway.ops.text import printable

LINE_EVERY_S: Final = 2.0
"""Where there is no terminal: a command that is done sooner says nothing."""

_MAX_LABEL: Final = 60


class Tick(Protocol):
    """One more is done."""

    def __call__(self, label: str, /) -> None:
        """Say which; text of strangers is made printable here."""
        ...


@contextmanager
def progress(
    what: str, total: int, *, quiet: bool = False, now: Callable[[], float] = time.monotonic
) -> Iterator[Tick]:
    """Show how far `what` is, of `total` steps, while the block runs.

    Args:
        what: of the whole, in a word or two.
        total: steps.
        quiet: for programs (`--json`): nothing at all.
        now: a clock that never goes back, in seconds.
    """
    if quiet:
        yield _silent
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(printable(what, _MAX_LABEL), total=total, label="")

            def tick(label: str, /) -> None:
                bar.update(task, advance=1, label=printable(label, _MAX_LABEL))

            yield tick
    else:
        yield _Lines(printable(what, _MAX_LABEL), total, sys.stderr, now)


def _silent(label: str, /) -> None:
    del label


def _bar() -> Progress:
    """A bar that is gone when the answer comes."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[label]}", style="dim", markup=False),
        console=terminal(to_stderr=True),
        transient=True,
    )


class _Lines:
    """Plain lines, not more often than every two seconds."""

    def __init__(self, what: str, total: int, stream: TextIO, now: Callable[[], float]) -> None:
        self._what = what
        self._total = total
        self._stream = stream
        self._now = now
        self._done = 0
        self._last = now()

    def __call__(self, label: str, /) -> None:
        self._done += 1
        if self._now() - self._last >= LINE_EVERY_S:
            self._last = self._now()
            line = f"{self._what}: {self._done} of {self._total}, {printable(label, _MAX_LABEL)}\n"
            self._stream.write(line)
            self._stream.flush()
