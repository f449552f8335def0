"""Measuring ways to the same gradient, in turn and in one process."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.flops import product_flops
from benchmarks.row import OURS, RATE, Eager, Group, Row, Target, Way

SHORTEST = 0.01
"""Seconds: what takes less is run several times for one measurement."""
PER_WAY = 2.0
"""Seconds that each way is measured for, at most, after as many rounds as were asked for."""
MATRIX = 1024
"""Rows and columns of the matrices by which the machine's rate is told."""


@dataclass(frozen=True)
class Measured:
    """What one way took; None where it can't be told."""

    seconds: float | None
    memory: int | None
    """Bytes beside arguments and results, by `memory_analysis`."""
    flops: int | None
    """Of matrix products and convolutions, loops by their number of turns."""
    cost_analysis: float | None
    """XLA's flops, elementwise ones too, where a loop's body counts once."""
    compile: float | None
    """Seconds to trace, lower and compile, the median of several."""
    rate: float | None
    """flops in a second, over those of a matrix product in the same rounds."""


@dataclass(frozen=True)
class Result:
    """A row and what was measured."""

    row: Row
    ways: dict[str, Measured]

    @property
    def ours(self) -> Measured:
        """The way that is judged: the first."""
        return next(iter(self.ways.values()))

    def ratio(self, quantity: str, against: str) -> float | None:
        """The first way's amount over another's; of `RATE` its own."""
        if quantity == RATE:
            return self.ours.rate
        other = self.ways.get(against)
        ours = vars(self.ours)[_FIELDS.get(quantity, quantity)]
        theirs = other and vars(other)[_FIELDS.get(quantity, quantity)]
        if ours is None or not theirs:
            return None
        return ours / theirs

    def missed(self) -> list[Target]:
        """The targets that don't hold; one that couldn't be measured isn't among them."""
        ratios = ((each, self.ratio(each.quantity, each.against)) for each in self.row.targets)
        return [each for each, ratio in ratios if ratio is not None and not each.holds(ratio)]

    def as_dict(self) -> dict[str, Any]:
        """All figures and ratios, for JSON."""
        return {
            "row": self.row.name,
            "ways": {name: asdict(each) for name, each in self.ways.items()},
            "targets": [
                {**each._asdict(), "ratio": self.ratio(each.quantity, each.against)}
                for each in self.row.targets
            ],
        }


_FIELDS = {"time": "seconds"}


def compiled(function: Callable[..., Any], *args: Any) -> Any:
    """The function traced anew, lowered and compiled for arguments of these shapes."""
    return jax.jit(lambda *each: function(*each)).lower(*args).compile()


def temporary_bytes(function: Callable[..., Any], *args: Any) -> int:
    """What the compiled function needs beside arguments and results."""
    return compiled(function, *args).memory_analysis().temp_size_in_bytes


def seconds_in_turn(rounds: int, *runs: Callable[[], Any]) -> list[float]:
    """The median time of each, one after the other in every round, each round in another order.

    Each is run once before it is timed: what ran before it may have emptied the caches or left
    threads spinning. What is short is run several times for one measurement. Rounds go on beyond
    the number asked for while all is quick.
    """
    counts = [_count(run) for run in runs]
    times: list[list[float]] = [[] for _ in runs]
    shuffled = random.Random(0)
    started = time.perf_counter()
    for number in itertools.count():
        spent = time.perf_counter() - started
        if number >= rounds and (spent > PER_WAY * len(runs) or number >= 5 * rounds):
            return [statistics.median(each) for each in times]
        turns = list(zip(times, runs, counts, strict=True))
        shuffled.shuffle(turns)
        for each, run, count in turns:
            jax.block_until_ready(run())
            each.append(_time(run, count))
    raise AssertionError


def _count(run: Callable[[], Any]) -> int:
    """How often to run it for one measurement."""
    jax.block_until_ready(run())
    return math.ceil(SHORTEST / max(_time(run, 1), 1e-6))


def _time(run: Callable[[], Any], count: int) -> float:
    started = time.perf_counter()
    for _ in range(count):
        jax.block_until_ready(run())
    return (time.perf_counter() - started) / count


def measure(row: Row, rounds: int = 7, compilations: int = 3) -> Result:
    """Compile all ways of a row, and run them in turn together with a matrix product."""
    ways = row.ways()
    compile_times: dict[str, list[float]] = {name: [] for name in ways}
    programs: dict[str, Any] = {}
    for _ in range(compilations if any(t.quantity == "compile" for t in row.targets) else 1):
        for name, way in ways.items():
            if isinstance(way, Way):
                jax.clear_caches()  # what one way traced inside, another would find traced
                started = time.perf_counter()
                programs[name] = compiled(way.function, *way.args)
                compile_times[name].append(time.perf_counter() - started)
    seconds: dict[str, float] = {}
    product_rate = math.nan
    if row.timed:
        runs = {name: _run(way, programs.get(name)) for name, way in ways.items()}
        product, flops = _product()
        *each, of_product = seconds_in_turn(rounds, *runs.values(), product)
        seconds, product_rate = dict(zip(runs, each, strict=True)), flops / of_product
    found = {}
    for name, way in ways.items():
        took = seconds.get(name)
        if isinstance(way, Eager):
            found[name] = Measured(took, None, None, None, None, None)
            continue
        flops = product_flops(way.function, *way.args)
        found[name] = Measured(
            took,
            programs[name].memory_analysis().temp_size_in_bytes,
            flops,
            (programs[name].cost_analysis() or {}).get("flops"),
            statistics.median(compile_times[name]),
            flops / took / product_rate if took else None,
        )
    return Result(row, found)


def _run(way: Way | Eager, program: Any) -> Callable[[], Any]:
    return way.run if isinstance(way, Eager) else lambda: program(*way.args)


def _product() -> tuple[Callable[[], Any], int]:
    """A matrix product, and its flops."""
    a = jax.random.normal(jax.random.key(0), (MATRIX, MATRIX))
    program = compiled(jnp.matmul, a, a)
    return lambda: program(a, a), 2 * MATRIX**3


def mean_ratios(group: Group, results: list[Result]) -> list[tuple[Target, float | None]]:
    """Each target for a geometric mean, and that mean."""
    found: list[tuple[Target, float | None]] = []
    for target in group.means:
        ratios = [each.ratio(target.quantity, target.against) for each in results]
        known = [ratio for ratio in ratios if ratio is not None]
        whole = len(known) == len(group.rows)
        found.append((target, statistics.geometric_mean(known) if whole else None))
    return found


__all__ = ["OURS", "Measured", "Result", "compiled", "mean_ratios", "measure", "seconds_in_turn"]
