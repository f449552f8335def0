"""What the judges found: counted, shown as it grows, and kept for a machine to read."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


@dataclass
class Row:
    """One line of the report: what was judged, how often, and the worst that was seen."""

    name: str
    what: str
    count: int = 0
    failures: int = 0
    worst: float = 0.0
    limit: str = ""
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)


class Report:
    """Collects what the judges find.

    Args:
        console: where to print; a new one for standard output by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console()
        if not self.console.is_terminal:
            self.console.width = 130
        self.rows: dict[str, Row] = {}
        self.failures: list[str] = []

    @contextmanager
    def judging(self, name: str, what: str, total: int, limit: str = "") -> Iterator[Judging]:
        """Count and show the work of one judge: `with report.judging(...) as judging: ...`."""
        row = self.rows.setdefault(name, Row(name, what, limit=limit))
        started = time.perf_counter()
        columns = (
            TextColumn("{task.description:14}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(name, total=total, note="")
            yield Judging(self, row, lambda note: progress.update(task, advance=1, note=note))
        row.seconds += time.perf_counter() - started

    def print(self) -> None:
        """The table, the notes and the failures."""
        table = Table(title="manual_bp: hand-derived gradients against their judges")
        for column in ("judge", "what is judged"):
            table.add_column(column, overflow="fold")
        for column in ("judged", "failed", "worst", "limit", "seconds"):
            table.add_column(column, justify="right")
        for row in self.rows.values():
            style = "red" if row.failures else None
            worst = f"{row.worst:.2g}" if row.limit else ""
            cells = (str(row.count), str(row.failures), worst, row.limit, f"{row.seconds:.1f}")
            table.add_row(row.name, row.what, *cells, style=style)
        self.console.print(table)
        for row in self.rows.values():
            for note in row.notes:
                self.console.print(f"{row.name}: {note}", highlight=False, soft_wrap=True)
        for failure in self.failures:
            self.console.print(failure, style="red", highlight=False, soft_wrap=True)
        verdict = "all held" if self.held else f"{len(self.failures)} failed"
        judged = sum(row.count for row in self.rows.values())
        self.console.print(f"{judged} judgements: {verdict}.", highlight=False)

    def write(self, path: str, **settings: Any) -> None:
        """The same as JSON, with the machine's and the packages' names."""
        packages = ("jax", "jaxlib", "optax", "numpy")
        Path(path).write_text(
            json.dumps(
                {
                    "held": self.held,
                    "settings": settings,
                    "python": platform.python_version(),
                    "machine": platform.machine(),
                    "device": jax.devices()[0].platform,
                    "versions": {name: version(name) for name in packages},
                    "rows": [vars(row) for row in self.rows.values()],
                    "failures": self.failures,
                },
                indent=1,
            )
        )

    @property
    def held(self) -> bool:
        """Whether something was judged and nothing failed."""
        return not self.failures and any(row.count for row in self.rows.values())


class Judging:
    """The work of one judge while it is going on."""

    def __init__(self, report: Report, row: Row, advance: Any) -> None:
        self.report, self.row, self._advance = report, row, advance

    def judged(self, ok: bool, worst: float = 0.0, note: str = "", failure: str = "") -> None:
        """Count one judgement; `failure` is the line that reproduces it when it isn't ok."""
        self.row.count += 1
        self.row.worst = max(self.row.worst, float(worst))
        if not ok:
            self.row.failures += 1
            self.report.failures.append(f"{self.row.name} FAILED: {failure}")
        self._advance(note)

    def step(self, note: str = "") -> None:
        """Show that work goes on, without a judgement."""
        self._advance(note)

    def note(self, text: str) -> None:
        """A line to print under the table."""
        self.row.notes.append(text)
