"""Has a ratio become worse than the one that was recorded?

Ratios to jax.grad of the same forward pass in the same run are compared, never times. Memory and
flops are the same in every run with one version of XLA; a time's ratio is noisy, so it may be
larger by `ALLOWED`, and is measured again before it is called worse. Compile times and PyTorch's
aren't watched.
"""

from __future__ import annotations

import json
import pathlib

from benchmarks.measuring import Result
from benchmarks.report import Findings, machine
from benchmarks.row import FLOPS, MEMORY, SAME, TIME

ALLOWED = {TIME: 1.3, MEMORY: 1.1, FLOPS: 1.02}
"""What a ratio may grow by."""
AGAIN = 2
"""How often a row is measured anew whose time seems worse."""
RECORD = pathlib.Path(__file__).parent / "ratios.json"

Ratios = dict[str, float]


def ratios(result: Result) -> Ratios:
    """What is recorded of a row."""
    found = ((quantity, result.ratio(quantity, SAME)) for quantity in ALLOWED)
    return {quantity: round(value, 4) for quantity, value in found if value is not None}


def key(group: str, row: str) -> str:
    """The name under which a row is recorded."""
    return f"{group}: {row}"


def record(findings: list[Findings], file: pathlib.Path | None = None) -> None:
    """Write the ratios of these rows, keeping what is recorded of others."""
    file = file or RECORD
    kept = recorded(file) if file.exists() else {}
    new = {
        key(each.group.name, result.row.name): ratios(result)
        for each in findings
        for result in each.results
    }
    file.write_text(json.dumps({"measured": machine(), "ratios": kept | new}, indent=1) + "\n")


def recorded(file: pathlib.Path | None = None) -> dict[str, Ratios]:
    """What is recorded of all rows."""
    return json.loads((file or RECORD).read_text())["ratios"]


def worse(name: str, result: Result, known: dict[str, Ratios]) -> list[str]:
    """In what this row has become worse, in words.

    Args:
        name: the row's key.
        result: what was measured now.
        known: what is recorded.
    """
    if name not in known:
        return [f"{name}: nothing is recorded of it; record it with --record"]
    now, found = ratios(result), []
    for quantity, before in known[name].items():
        if quantity not in now:
            found.append(f"{name}: {quantity} isn't measured any more")
        elif not now[quantity] <= before * ALLOWED[quantity]:
            found.append(
                f"{name}: {quantity} is {now[quantity]:.3g} of jax.grad's, was {before:.3g} "
                f"(allowed: {ALLOWED[quantity]} times that)"
            )
    return found


def only_time(complaints: list[str]) -> bool:
    """Whether nothing but time is worse, which another measurement may refute."""
    return bool(complaints) and all(f": {TIME} is " in each for each in complaints)


def as_text(complaints: list[str], rows: int) -> str:
    """The outcome in a line, or a line for each complaint."""
    if complaints:
        return "\n".join(complaints)
    return f"{rows} rows: no ratio is worse than recorded"
