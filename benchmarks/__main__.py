"""python -m benchmarks: time, memory and compile time by hand beside jax.grad and PyTorch."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import regression
from benchmarks.groups import GROUPS, chosen
from benchmarks.measuring import Result, measure
from benchmarks.plot import draw
from benchmarks.report import Findings, machine, markdown, show
from benchmarks.row import Group, Row

SHORT = (
    "mlp: 784-512",
    "stack: 64 dense blocks, n 128",
    "reversible: 64 reversible steps, n 128",
    "recurrent: GRU, T 64",
    "attention",
    "linear_cross_entropy: 1024 x 32768, 256",
    "elementwise: LayerNorm",
    "elementwise: RMSNorm",
    "elementwise: softmax",
    "per_example: MLP",
)
"""The rows that --check takes by itself: quick ones, one for each idea."""


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for, print it, and write it to the files that are given."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = _parser().parse_args(arguments)
    try:
        groups = chosen(given.rows or (list(SHORT) if given.check else []))
    except LookupError as error:
        _parser().error(str(error))
    console = Console()
    findings, complaints = _measured(groups, given, console)
    if given.json:
        found = {"measured": machine(), "groups": [each.as_dict() for each in findings]}
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    if given.plot:
        draw(findings, given.plot)
    if given.markdown:
        given.markdown.write_text(markdown(findings, arguments, given.markdown, given.plot))
    if given.record:
        regression.record(findings)
    if given.check:
        rows = sum(len(each.results) for each in findings)
        print(regression.as_text(complaints, rows))
        sys.exit(1 if complaints else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "rows",
        nargs="*",
        metavar="ROW",
        help=f"a group ({', '.join(GROUPS)}), or a part of 'group: row'; all unless given",
    )
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each time (7)")
    for name, what in (
        ("--json", "write all figures"),
        ("--plot", "draw the ratios as bars against 1 (SVG or PNG)"),
        ("--markdown", "write the page with tables, plot and notes"),
    ):
        parser.add_argument(name, type=pathlib.Path, metavar="FILE", help=what)
    parser.add_argument(
        "--check",
        action="store_true",
        help="fail where a ratio is worse than recorded; of a short list of rows unless given",
    )
    parser.add_argument("--record", action="store_true", help="record the ratios for --check")
    return parser


def _measured(
    groups: list[Group], given: argparse.Namespace, console: Console
) -> tuple[list[Findings], list[str]]:
    findings, complaints = [], []
    known = regression.recorded() if given.check else {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(len(group.rows) for group in groups))
        for group in groups:
            results = []
            for row in group.rows:
                name = regression.key(group.name, row.name)
                progress.update(task, description=name)
                result = measure(row, given.rounds)
                if given.check:
                    result, found = _judged(name, row, result, known, given.rounds)
                    complaints += found
                results.append(result)
                progress.advance(task)
            findings.append(Findings(group, results))
            show(findings[-1], progress.console)
    return findings, complaints


def _judged(
    name: str, row: Row, result: Result, known: dict[str, regression.Ratios], rounds: int
) -> tuple[Result, list[str]]:
    """The result and what is worse in it, measured again while only its time seems worse."""
    found = regression.worse(name, result, known)
    for _ in range(regression.AGAIN):
        if not regression.only_time(found):
            break
        result = measure(row, rounds)
        found = regression.worse(name, result, known)
    return result, found


if __name__ == "__main__":
    main()
