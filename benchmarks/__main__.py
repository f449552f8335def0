"""python -m benchmarks: what manual_bp costs beside jax.grad, as tables of ratios."""

from __future__ import annotations

import argparse
import json
import pathlib

from benchmarks import (
    attention,
    clipping,
    diagnostics,
    interop,
    linear_cross_entropy,
    lstm,
    per_example,
    stack,
)
from benchmarks.measuring import show

BENCHMARKS = {
    "stack": stack,
    "lstm": lstm,
    "attention": attention,
    "linear_cross_entropy": linear_cross_entropy,
    "clipping": clipping,
    "diagnostics": diagnostics,
    "per_example": per_example,
    "interop": interop,
}


def main(arguments: list[str] | None = None) -> None:
    """Measure what was asked for, print it, and write it as JSON where a file is given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=7, help="measurements of each time (7)")
    parser.add_argument("--json", type=pathlib.Path, metavar="FILE", help="write the rows too")
    given = parser.parse_args(arguments)
    unknown = set(given.names) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no benchmark {', '.join(sorted(unknown))}: {', '.join(BENCHMARKS)}")
    found = {}
    for name in given.names or BENCHMARKS:
        rows = BENCHMARKS[name].measure(rounds=given.rounds)
        found[name] = [row.as_dict() for row in rows]
        show(f"{name}: {(BENCHMARKS[name].__doc__ or '').splitlines()[0]}", rows)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
