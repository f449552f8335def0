"""python -m verify: judge the hand-derived gradients, train with them, say what was found."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from verify import architectures, differences, no_autodiff, training, wrong_formulas
from verify.report import Report


def main(arguments: list[str] | None = None) -> int:
    """Run the judges; the exit status is 0 only if all held."""
    parser = argparse.ArgumentParser(prog="python -m verify", description=__doc__)
    parser.add_argument("--trials", type=int, default=200, help="random networks (200)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--trial", type=int, help="one random network alone, by its number")
    parser.add_argument("--only", action="append", metavar="NAME", help="this judge; repeatable")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    options = parser.parse_args(arguments)

    trials = max(options.trials // 10, 1) if options.quick else options.trials
    share = max(trials // 8, 1)

    def numbers(count: int) -> list[int]:
        return list(range(count)) if options.trial is None else [options.trial]

    report, seed = Report(), options.seed
    judges: dict[str, Callable[[], None]] = {
        "no autodiff": lambda: no_autodiff.run(report, seed=seed, trials=min(share, 10)),
        "architectures": lambda: architectures.run(report, seed=seed, numbers=numbers(trials)),
        "compiled": lambda: architectures.run_compiled(report, seed=seed, numbers=numbers(share)),
        "differences": lambda: differences.run(report, seed=seed, trials=share),
        "wrong formulas": lambda: wrong_formulas.run(report),
        "digits": lambda: training.run(report, quick=options.quick),
    }
    chosen = options.only or list(judges)
    unknown = [name for name in chosen if name not in judges]
    if unknown:
        parser.error(f"--only {unknown[0]!r} is none of {', '.join(judges)}")
    for name in chosen:
        judges[name]()
    report.print()
    if options.json:
        report.write(options.json, trials=trials, seed=seed, quick=options.quick, only=chosen)
    return 0 if report.held else 1


if __name__ == "__main__":
    sys.exit(main())
