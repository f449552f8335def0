"""What was measured, as tables on a terminal and in Markdown."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import pathlib
import platform
import shlex
from dataclasses import dataclass
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Measured, Result, mean_ratios
from benchmarks.row import COMPILE, FLOPS, IDIOMATIC, MEMORY, OURS, SAME, TIME, TORCH, Group, Target

MEBIBYTE = 2**20
KNOWN = (OURS, SAME, IDIOMATIC, TORCH)
PACKAGES = ("jax", "jaxlib", "flax", "optax", "equinox", "torch", "numpy")


@dataclass(frozen=True)
class Findings:
    """A group and the results of its rows."""

    group: Group
    results: list[Result]

    def means(self) -> list[tuple[Target, float | None]]:
        """The targets for geometric means, with these means."""
        return mean_ratios(self.group, self.results)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "group": self.group.name,
            "rows": [each.as_dict() for each in self.results],
            "means": [{**target._asdict(), "ratio": mean} for target, mean in self.means()],
        }


HEADINGS = (
    "row",
    "time",
    "÷ jax.grad",
    "÷ idiomatic",
    "÷ PyTorch",
    "memory",
    "÷ jax.grad",
    "÷ idiomatic",
    "flops ÷",
    "compile",
    "÷ jax.grad",
    "rate",
)
EXPLAINED = """\
**time** is the median of one call, in ms. **÷ jax.grad** divides it by that of jax.grad of the same
forward pass, **÷ idiomatic** by that of jax.grad of it as people write it with jax.nn, flax or
optax, **÷ PyTorch** by that of PyTorch's eager autograd: below 1 is faster by hand. **memory** is
what the compiled program needs beside its arguments and results, in MiB. **flops ÷** compares
products and convolutions with jax.grad's, in a loop as often as it runs. **compile** is the time to
trace, lower and compile, in s. **rate** is the part of the machine's matrix-multiply rate, measured
in the same rounds, that the products by hand reach. All ways of a row run in turn in one process,
each round in another order.
"""


def cells(result: Result) -> list[str]:
    """A row of the table, without the targets."""
    ours = result.ours
    return [
        result.row.name,
        amount(ours.seconds, 1e3),
        ratio(result.ratio(TIME, SAME)),
        ratio(result.ratio(TIME, IDIOMATIC)),
        ratio(result.ratio(TIME, TORCH)),
        amount(ours.memory, 1 / MEBIBYTE),
        ratio(result.ratio(MEMORY, SAME)),
        ratio(result.ratio(MEMORY, IDIOMATIC)),
        ratio(result.ratio(FLOPS, SAME)),
        amount(ours.compile, 1),
        ratio(result.ratio(COMPILE, SAME)),
        ratio(ours.rate),
    ]


def amount(value: float | None, scale: float) -> str:
    """Three digits, or nothing where it isn't known."""
    return "" if value is None else f"{value * scale:.3g}"


def ratio(value: float | None) -> str:
    """Two decimals, more where it is small, or nothing where it isn't known."""
    if value is None:
        return ""
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def verdict(target: Target, value: float | None) -> str:
    """A target and whether it is met, in words."""
    against = "" if target.against == SAME or target.quantity == "rate" else f" of {target.against}"
    text = f"{target.quantity}{against} {target}"
    if value is None:
        return f"{text}: not measured"
    return f"{text}: {'met' if target.holds(value) else 'missed'}, {ratio(value)}"


def verdicts(result: Result) -> list[str]:
    """Of all targets of a row."""
    return [verdict(each, result.ratio(each.quantity, each.against)) for each in result.row.targets]


def others(result: Result) -> list[str]:
    """What a row shows beside the ways that have a column, and what the idiomatic way is."""
    lines = []
    for name, way in result.ways.items():
        if name in KNOWN:
            continue
        pairs = ((TIME, result.ratio(TIME, name)), (MEMORY, result.ratio(MEMORY, name)))
        found = ", ".join(f"{quantity} {ratio(each)}" for quantity, each in pairs if each)
        lines.append(f"÷ {name} ({_took(way)}): {found}")
    if result.row.against_idiomatic:
        lines.append(f"idiomatic: {result.row.against_idiomatic}")
    return lines


def _took(way: Measured) -> str:
    parts = []
    if way.seconds is not None:
        parts.append(f"{amount(way.seconds, 1e3)} ms")
    if way.memory is not None:
        parts.append(f"{amount(way.memory, 1 / MEBIBYTE)} MiB")
    return ", ".join(parts)


def show(findings: Findings, console: Console | None = None) -> None:
    """Print a group."""
    table = Table(title=f"{findings.group.name}: {findings.group.title}")
    for heading in HEADINGS:
        first = heading == "row"
        table.add_column(heading, justify="left" if first else "right", no_wrap=first)
    for result in findings.results:
        table.add_row(*cells(result))
    console = console or Console()
    if not console.is_terminal:
        console.width = 180
    console.print(table)
    for result in findings.results:
        for line in verdicts(result):
            style = "bold red" if ": missed" in line else ""
            console.print(f"  {result.row.name}: {line}", style=style, highlight=False)
        for line in others(result):
            console.print(f"  {result.row.name}: {line}", highlight=False)
    for target, mean in findings.means():
        line = f"geometric mean, {verdict(target, mean)}"
        style = "bold red" if ": missed" in line else ""
        console.print(f"  {line}", style=style, highlight=False)


def machine() -> dict[str, str]:
    """What it was measured on."""
    device = jax.devices()[0]
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "machine": f"{_processor()}, {os.cpu_count()} cores",
        "device": f"{device.platform}, {device.device_kind}",
        "date": datetime.date.today().isoformat(),
        "Python": platform.python_version(),
        **versions,
    }


def _processor() -> str:
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def markdown(
    findings: list[Findings], arguments: list[str], file: pathlib.Path, plot: pathlib.Path | None
) -> str:
    """The page: what was measured where and how, a plot, a table for each group, and notes.

    Args:
        findings: of all groups.
        arguments: of the command that made it.
        file: the page's, so that the plot is linked from where it is.
        plot: the picture's file, if one was drawn.
    """
    command = shlex.join(["python", "-m", "benchmarks", *arguments])
    facts = ", ".join(f"{name} {value}" for name, value in machine().items())
    lines = [
        "# Benchmarks",
        "",
        f"Written by `{command}`, which makes it again. Measured with: {facts}.",
        "",
        EXPLAINED,
        _tally(findings),
        "",
    ]
    if plot is not None:
        where = os.path.relpath(plot, file.parent)
        lines += [f"![time and memory beside jax.grad's, for each row]({where})", ""]
    for each in findings:
        lines += _section(each)
    return "\n".join(lines)


def _section(findings: Findings) -> list[str]:
    group = findings.group
    lines = [f"## {group.title}", ""]
    if group.note:
        lines += [group.note, ""]
    lines.append(f"`python -m benchmarks {group.name}`")
    lines += ["", _line([*HEADINGS, "targets"]), _line(["---"] * (len(HEADINGS) + 1))]
    lines += [_line([*cells(each), "; ".join(verdicts(each))]) for each in findings.results]
    lines.append("")
    lines += [f"- geometric mean, {verdict(*each)}" for each in findings.means()]
    for result in findings.results:
        said = [*others(result), *([result.row.note] if result.row.note else [])]
        lines += [f"- {result.row.name}: {line}" for line in said]
    return [*lines, ""] if lines[-1] else lines


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _tally(findings: list[Findings]) -> str:
    every = [line for each in findings for result in each.results for line in verdicts(result)]
    every += [verdict(*mean) for each in findings for mean in each.means()]
    met, missed = (sum(f": {word}" in line for line in every) for word in ("met", "missed"))
    text = f"Of {len(every)} targets {met} are met, {missed} missed"
    rest = len(every) - met - missed
    return text + (f", {rest} not measured." if rest else ".")
