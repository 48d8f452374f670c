"""Figures of the benches: one measurement, medians over rounds, a table for the terminal and the documentation, a plot."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import median
from typing import Final, Self

from tests.bench.load import Load, send
from tests.bench.processes import resident_mb, tree, tree_cpu
from tests.bench.stacks import Stack

OUTPUT: Final = "GATEWAY_BENCH_OUTPUT"
"""The directory that tables and plots are written to as well; unset: none is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one load.

    Attributes:
        cpu: component → processor seconds for 1,000 messages.
        rate: messages a second.
        sender: the sender's own processor seconds for 1,000, to show that it is not what limits the rate.
        memory_mb: of the largest process of the last component.
    """

    cpu: Mapping[str, float]
    rate: float
    p50_ms: float
    p99_ms: float
    sender: float
    memory_mb: float

    @property
    def whole(self) -> float:
        return sum(self.cpu.values())

    @classmethod
    def middle(cls, rounds: Sequence[Self]) -> Self:
        """Each figure's median by itself."""
        return cls(
            cpu={name: median(one.cpu[name] for one in rounds) for name in rounds[0].cpu},
            rate=median(one.rate for one in rounds),
            p50_ms=median(one.p50_ms for one in rounds),
            p99_ms=median(one.p99_ms for one in rounds),
            sender=median(one.sender for one in rounds),
            memory_mb=median(one.memory_mb for one in rounds),
        )


def measure(stack: Stack, load: Load) -> Figures:
    """Send one load. Fails unless each message was accepted and, where the stack's log says so, found good."""
    judged = stack.judged() if stack.judged else 0
    before = {name: tree_cpu(pid) for name, pid in stack.components.items()}
    sent = send(load)
    stack.settle()
    share = 1_000 / load.messages
    cpu = {name: (tree_cpu(pid) - before[name]).whole * share for name, pid in stack.components.items()}
    assert sent.accepted == load.messages
    if stack.judged:
        assert stack.judged() - judged == load.messages, f"{stack.name}: not every message passed its checks"
    last = list(stack.components.values())[-1]
    return Figures(
        cpu=cpu,
        rate=load.messages / sent.seconds,
        p50_ms=sent.p50_ms,
        p99_ms=sent.p99_ms,
        sender=sent.cpu_seconds * share,
        memory_mb=max(resident_mb(pid) for pid in tree(last)),
    )


def table(figures: Mapping[tuple[str, str], Figures], bare: str) -> str:
    """As Markdown; added latency is against the row `bare` with the same kind of session."""
    lines = [
        "| way | sessions | CPU s | of which | msgs/s | p50 ms added | p99 ms added | MB | sender CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (name, sessions), one in figures.items():
        floor = figures.get((bare, sessions), one)
        parts = ", ".join(f"{part} {cpu:.2f}" for part, cpu in one.cpu.items())
        lines.append(
            f"| {name} | {sessions} | **{one.whole:.2f}** | {parts} | {one.rate:,.0f} | {one.p50_ms - floor.p50_ms:.1f} "
            f"| {one.p99_ms - floor.p99_ms:.1f} | {one.memory_mb:.0f} | {one.sender:.2f} |"
        )
    return "\n".join(lines)


def keep(name: str, figures: Mapping[tuple[str, str], Figures], text: str) -> None:
    """Write the table, and the figures for whoever wants to reckon with them, where the environment says."""
    output = os.environ.get(OUTPUT)
    if output:
        directory = Path(output)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{name}.md").write_text(text + "\n")
        if not figures:
            return
        rows = [{"way": way, "sessions": sessions, **asdict(one)} for (way, sessions), one in figures.items()]
        (directory / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n")


_COLOURS: Final = ("#3b6ea5", "#c8553d", "#6a994e", "#8d6a9f")
_BAR, _GAP, _LEFT, _WIDTH = 16, 8, 250, 520


def plot(title: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> str:
    """Horizontal bars, stacked by component, as an SVG document."""
    names = list(dict.fromkeys(part for _, parts in rows for part in parts))
    scale = _WIDTH / max(sum(parts.values()) for _, parts in rows)
    height = 70 + len(rows) * (_BAR + _GAP)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_LEFT + _WIDTH + 70}" height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="10" y="20" font-size="14">{escape(title)}</text>',
    ]
    colours = {name: _COLOURS[number % len(_COLOURS)] for number, name in enumerate(names)}
    for number, name in enumerate(names):
        x = 10 + number * 110
        out.append(f'<rect x="{x}" y="32" width="10" height="10" fill="{colours[name]}"/>')
        out.append(f'<text x="{x + 14}" y="41">{escape(name)}</text>')
    for number, (label, parts) in enumerate(rows):
        y, at = 56 + number * (_BAR + _GAP), float(_LEFT)
        out.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>')
        for name, value in parts.items():
            width = value * scale
            out.append(
                f'<rect x="{at:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colours[name]}"/>'
            )
            at += width
        out.append(f'<text x="{at + 6:.1f}" y="{y + 12}">{sum(parts.values()):.2f}</text>')
    return "\n".join([*out, "</svg>", ""])


def keep_plot(name: str, title: str, rows: Sequence[tuple[str, Mapping[str, float]]]) -> None:
    output = os.environ.get(OUTPUT)
    if output:
        (Path(output) / f"{name}.svg").write_text(plot(title, rows))
