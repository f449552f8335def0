"""Measuring compiled programs: memory, and times of two of them in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """Two measurements and the target for their ratio."""

    what: str
    block: str
    measured: float
    against: float
    unit: str
    target: float | None = None
    """The ratio that is aimed at, at most; None where there is no target."""

    @property
    def ratio(self) -> float:
        """What was measured over what it is held against."""
        return self.measured / self.against

    def as_dict(self) -> dict[str, Any]:
        """The row and its ratio, for JSON."""
        return {**asdict(self), "ratio": self.ratio}


def compiled(function: Callable[..., Any], *args: Any) -> Any:
    """The function traced anew, lowered and compiled for arguments of these shapes."""
    return jax.jit(lambda *each: function(*each)).lower(*args).compile()


def temporary_bytes(function: Callable[..., Any], *args: Any) -> int:
    """What the compiled function needs beside arguments and results."""
    return compiled(function, *args).memory_analysis().temp_size_in_bytes


def seconds_in_turn(rounds: int, *runs: Callable[[], Any]) -> list[float]:
    """The median time of each, measured one after the other, after one round that isn't counted."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds + 1):
        for each, run in zip(times, runs, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(run())
            if number:
                each.append(time.perf_counter() - started)
    return [statistics.median(each) for each in times]


def show(title: str, rows: list[Row]) -> None:
    """Print the rows as a table."""
    table = Table(title=title)
    for name in ("", "block", "measured", "against", "ratio", "target"):
        table.add_column(name, justify="left" if name in ("", "block") else "right")
    for row in rows:
        target = "" if row.target is None else f"≤ {row.target:g}"
        missed = row.target is not None and row.ratio > row.target
        ratio = f"{row.ratio:.2f}"
        amounts = (f"{each:.4g} {row.unit}" for each in (row.measured, row.against))
        table.add_row(
            row.what, row.block, *amounts, f"[bold red]{ratio}[/]" if missed else ratio, target
        )
    console = Console()
    if not console.is_terminal:
        console.width = 120
    console.print(table)
