"""What the judges found: counted by rule and level, shown as it grows, kept for machines."""

from __future__ import annotations

import json
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

COLUMNS = 12
"""Levels side by side in a matrix; more make another one below."""


@dataclass
class Level:
    """One judge's findings: what was judged, how often, and the worst that was seen."""

    name: str
    what: str
    limit: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    """Judgements for each family of rules; "" for what isn't about one rule."""
    failures: Counter[str] = field(default_factory=Counter)
    worst: float = 0.0
    notes: list[str] = field(default_factory=list)
    reproducers: list[str] = field(default_factory=list)

    def judged(self, ok: bool, worst: float = 0.0, failure: str = "", family: str = "") -> None:
        """Count one judgement.

        Args:
            ok: whether it held.
            worst: the level's figure.
            failure: the line that reproduces it when it didn't hold.
            family: of the rule, a row of the matrix.
        """
        self.counts[family] += 1
        self.worst = max(self.worst, float(worst))
        if not ok:
            self.failures[family] += 1
            self.reproducers.append(f"{self.name} FAILED: {failure}")

    def note(self, text: str) -> None:
        """A line to print under the tables."""
        self.notes.append(text)


class Findings(NamedTuple):
    """What a stage has found in a process of its own."""

    levels: dict[str, Level]
    seconds: dict[str, float]


def apart(stage: Callable[..., None], **settings: Any) -> Findings:
    """Run a stage on a report of its own that shows nothing."""
    report = Report(Console(quiet=True))
    stage(report, **settings)
    return Findings(report.levels, report.seconds)


class Report:
    """Collects what the judges find.

    Args:
        console: where to print; a new one for standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = 150
        self.levels: dict[str, Level] = {}
        self.omitted: dict[tuple[str, str], str] = {}
        """(family, level) -> why the level doesn't apply."""
        self.seconds: dict[str, float] = {}
        """How long each stage of the work took."""

    def level(self, name: str, what: str, limit: str = "") -> Level:
        """The level of this name, made at the first call.

        Args:
            name: a column of the matrix.
            what: it judges, in a few words.
            limit: what the worst figure is held against, "" where there is no figure.
        """
        return self.levels.setdefault(name, Level(name, what, limit))

    @contextmanager
    def working(self, stage: str, total: int) -> Iterator[Callable[..., None]]:
        """Show a progress bar: `with report.working(stage, n) as advance: ... advance(note)`."""
        started = time.perf_counter()
        columns = (
            TextColumn("{task.description:16}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(stage, total=total, note="")
            yield lambda note="": progress.update(task, advance=1, note=note)
        self.seconds[stage] = self.seconds.get(stage, 0) + time.perf_counter() - started

    @property
    def failures(self) -> list[str]:
        """A line for each judgement that didn't hold."""
        return [line for level in self.levels.values() for line in level.reproducers]

    def include(self, other: Findings) -> None:
        """What another process has found."""
        self.levels |= other.levels
        self.seconds |= other.seconds

    def omit(self, family: str, level: str, why: str) -> None:
        """Say that a level doesn't apply to a family, and why."""
        self.omitted[family, level] = why

    def print(self) -> None:
        """The levels, the matrix, the notes and the failures."""
        self.console.print(self._level_table())
        for matrix in self._matrices():
            self.console.print(matrix)
        self._lines(sorted({f"{level}: {why}" for (_, level), why in self.omitted.items()}))
        self._lines(
            f"{level.name}: {note}" for level in self.levels.values() for note in level.notes
        )
        stages = ", ".join(f"{name} {seconds:.0f}" for name, seconds in self.seconds.items())
        self._lines([f"seconds: {stages}"])
        self._lines(self.failures, style="red")
        verdict = "all held" if self.held else f"{len(self.failures)} failed"
        self._lines([f"{self.count} judgements: {verdict}."])

    def write(self, path: str, **settings: Any) -> None:
        """The same as JSON, with the names of the machine and the packages."""
        packages = ("jax", "jaxlib", "optax", "numpy", "mpmath")
        Path(path).write_text(
            json.dumps(
                {
                    "held": self.held,
                    "settings": settings,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "device": jax.devices()[0].platform,
                    "versions": {name: version(name) for name in packages},
                    "seconds": self.seconds,
                    "levels": [vars(level) for level in self.levels.values()],
                    "omitted": {" ".join(key): why for key, why in self.omitted.items()},
                    "failures": self.failures,
                },
                indent=1,
            )
        )

    @property
    def count(self) -> int:
        """How many judgements there were."""
        return sum(sum(level.counts.values()) for level in self.levels.values())

    @property
    def held(self) -> bool:
        """Whether something was judged and nothing failed."""
        return not self.failures and self.count > 0

    def _level_table(self) -> Table:
        table = Table(title="manual_bp: hand-derived gradients and their judges")
        for column in ("level", "what is judged"):
            table.add_column(column, overflow="fold")
        for column in ("judged", "failed", "worst", "limit"):
            table.add_column(column, justify="right")
        for level in self.levels.values():
            failed = sum(level.failures.values())
            table.add_row(
                level.name,
                level.what,
                str(sum(level.counts.values())),
                str(failed),
                f"{level.worst:.2g}" if level.limit else "",
                level.limit,
                style="red" if failed else None,
            )
        return table

    def _matrices(self) -> list[Table]:
        """Rules against levels: judgements in each cell, in red how many failed."""
        levels = [  # those that judge single rules; the others are in the table above
            level for level in self.levels.values() if set(level.counts) - {"", "networks"}
        ]
        families = sorted(
            {family for level in levels for family in level.counts if family}, key=str.lower
        )
        parts = range(0, len(levels), COLUMNS)
        return [self._matrix(levels[first : first + COLUMNS], families) for first in parts]

    def _matrix(self, levels: list[Level], families: list[str]) -> Table:
        table = Table(title="judgements by rule and level (– where a level doesn't apply)")
        table.add_column("rule", no_wrap=True)
        for level in levels:
            table.add_column(level.name.replace(" ", "\n"), justify="right", no_wrap=True)
        for family in families:
            cells = []
            for level in levels:
                count, failed = level.counts[family], level.failures[family]
                shown = str(count) if count else "–"
                cells.append(f"[red]{failed} of {count}[/red]" if failed else shown)
            table.add_row(family, *cells)
        return table

    def _lines(self, lines: Any, style: str | None = None) -> None:
        for line in lines:
            self.console.print(line, style=style, highlight=False, soft_wrap=True, markup=False)
