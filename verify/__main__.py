"""python -m verify: judge the hand-derived gradients, train with them, say what was found."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

from verify import (
    accuracy,
    architectures,
    no_autodiff,
    other_checkers,
    peers,
    rules,
    signals,
    training,
    wrong_formulas,
)
from verify.interop import stage as interop
from verify.levels import agreement, bad_input, edges, lattice, low_precision, mutation, structure
from verify.report import Report, apart
from verify.text import stage as text

SHARE_OF_MUTANTS = 0.5
"""Of the budget: mutants stop there, networks at its end."""


def main(arguments: list[str] | None = None) -> int:
    """Run the judges; the exit status is 0 only if all held."""
    parser = argparse.ArgumentParser(prog="python -m verify", description=__doc__)
    parser.add_argument("--trials", type=int, default=1000, help="random networks (1000)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (0)")
    parser.add_argument("--trial", type=int, help="one random network alone, by its number")
    parser.add_argument("--only", action="append", metavar="NAME", help="this stage; repeatable")
    parser.add_argument(
        "--budget", type=float, default=320, metavar="SECONDS", help="when to stop (320)"
    )
    parser.add_argument(
        "--mutants",
        type=int,
        metavar="N",
        help="of each rule at most (40); 0: all mutants of all rules, within the budget; some "
        "minutes: --only mutants --mutants 0 --budget 1800",
    )
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON too")
    parser.add_argument("--quick", action="store_true", help="a tenth of the work")
    parser.add_argument(
        "--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="processes (one a core, 4)"
    )
    options = parser.parse_args(arguments)
    started, seed, quick, trial = time.perf_counter(), options.seed, options.quick, options.trial
    trials = max(options.trials // 10, 1) if quick else options.trials
    report = Report()
    every = rules.of_specs()
    if quick:
        every = rules.one_of_each(every)

    per_rule = options.mutants if options.mutants is not None else 6 if quick else 40

    def numbers(count: int) -> list[int]:
        return list(range(count)) if trial is None else [trial]

    mutants: dict[str, Any] = {
        "seed": seed,
        "per_rule": per_rule or sys.maxsize,
        "compare_every": 4 if per_rule else 0,
        "every_rule": not per_rule,
    }
    stages: dict[str, Callable[[], None]] = {
        "no autodiff": lambda: no_autodiff.run(report, seed=seed, trials=3 if quick else 10),
        "structure": lambda: structure.run(report, every, seed=seed, cases=5 if quick else 25),
        "agreement": lambda: agreement.run(report, every, seed=seed),
        "signals": lambda: agreement.run(report, signals.rules(), seed=seed, stage="signals"),
        "forward": lambda: agreement.run_forward(report),
        "peers": lambda: peers.run(report, seed=seed),
        "lattice": lambda: lattice.run(
            report, every, seed=seed, programs=2 if quick else 14, draws=10 if quick else 34
        ),
        "precision": lambda: low_precision.run(
            report,
            rules.one_of_each(rules.of_specs(batch=16)),
            seed=seed,
            networks=2 if quick else 12,
        ),
        "accuracy": lambda: accuracy.run(report, seed=seed),
        "edges": lambda: edges.run(report),
        "mutants": lambda: mutation.run(report, seconds=seconds_of_mutants, **mutants),
        "bad input": lambda: bad_input.run(report),
        "compiled": lambda: architectures.run_compiled(
            report, seed=seed, numbers=numbers(3 if quick else 25)
        ),
        "differences": lambda: other_checkers.run(report, seed=seed, trials=3 if quick else 25),
        "wrong formulas": lambda: wrong_formulas.run(report),
        "digits": lambda: training.run(report, quick=quick),
        "text": lambda: text.run(report, quick=quick),
        "networks": lambda: None,  # below: they run beside all others
    }
    by_itself = {"interop": lambda: interop.run(report)}  # it starts processes for devices
    chosen = options.only or list(stages)
    stages |= by_itself
    unknown = [name for name in chosen if name not in stages]
    if unknown:
        parser.error(f"--only {unknown[0]!r} is none of {', '.join(stages)}")
    seconds_of_mutants = (SHARE_OF_MUTANTS if len(chosen) > 1 else 1) * options.budget
    with ExitStack() as stack:
        pool = None
        if options.jobs > 1 and {"networks", "mutants"} & set(chosen) and chosen != ["mutants"]:
            # Spawned, since a forked JAX may hang.
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(options.jobs - 1, context))
        beside = []
        if pool is not None and "mutants" in chosen:
            settings = {"seconds": seconds_of_mutants, **mutants}
            beside.append(pool.submit(apart, mutation.run, **settings))
            stages["mutants"] = lambda: None
        networks = architectures.Networks(
            seed, numbers(trials) if "networks" in chosen else [], pool
        )
        for name in chosen:
            stages[name]()
        if "networks" in chosen:
            networks.finish(report, started + options.budget)
        for future in beside:
            report.include(future.result())
    report.print()
    if options.json:
        report.write(options.json, trials=trials, seed=seed, quick=quick, only=chosen)
    return 0 if report.held else 1


if __name__ == "__main__":
    sys.exit(main())
