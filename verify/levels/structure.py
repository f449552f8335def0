"""L0: what must hold exactly of any gradient, whatever its formula.

Shapes, dtypes and tree; a zero cotangent gives exactly zero, twice the cotangent exactly twice, two
runs are identical; gradients are additive in the cotangent; the two halves of a batch add up to the
whole, unless its examples share statistics; the order of examples doesn't matter. Sums are compared
in exact fractions where the rule is exact, within the error bounds elsewhere. And each rule lowers
for CPU, CUDA, ROCm and TPU.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from verify import specs
from verify.arithmetic import Arithmetic
from verify.arithmetic.numpy import Float64
from verify.arithmetic.rational import Rational
from verify.interpreter import Program
from verify.judges import BOUNDS, is_gradient, within_bounds
from verify.networks import draw_case, with_dtype
from verify.report import Report
from verify.rules import Rule, generator, of_case

GRID = 2.0**20
"""Cotangents are multiples of 1/GRID where they are added."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def faults(rule: Rule) -> list[str]:
    """What doesn't hold, in words; an empty list when all does."""
    found = []
    args = rule.draw(generator(0), "normal")
    manual, _ = rule.programs(args)
    wrong = differing_dtypes(rule, args)
    if wrong:
        found.append(f"shapes or dtypes differ: {wrong}")
    run = manual.run(args, Float64())
    again = manual.run(args, Float64())
    if not all(np.array_equal(run[name], again[name], equal_nan=True) for name in run):
        found.append("two runs differ")
    if rule.cotangent is not None:
        found += _linearity(rule, manual, args)
    if rule.part is not None:
        found += _examples(rule)
    return found


def differing_dtypes(rule: Rule, args: tuple[Any, ...]) -> str:
    """The first result whose shape or dtype isn't autodiff's, and both; "" where there is none.

    J is left out: a sum over examples, it is in at least float32.
    """
    ours, theirs = (program.signature() for program in rule.programs(args))
    return next(
        (
            f"{name}, {ours.get(name)} against {theirs.get(name)}"
            for name in sorted({*ours, *theirs} - {"J"})
            if ours.get(name) != theirs.get(name)
        ),
        "",
    )


def _linearity(rule: Rule, manual: Program, args: tuple[Any, ...]) -> list[str]:
    found = []
    place = rule.cotangent
    assert place is not None

    def at(cotangent: np.ndarray, arithmetic: Any, args: tuple[Any, ...] = args) -> Any:
        changed = (*args[:place], cotangent, *args[place + 1 :])
        results = manual.run(changed, arithmetic)
        return {name: each for name, each in results.items() if is_gradient(name)}

    cotangent, float64 = args[place], Float64()
    once = at(cotangent, float64)
    if any(np.any(each != 0) for each in at(0 * cotangent, float64).values()):
        found.append("a zero cotangent gives a gradient that isn't zero")
    if any(np.any(each != 2 * once[name]) for name, each in at(2 * cotangent, float64).items()):
        found.append("twice the cotangent doesn't give exactly twice the gradient")
    arithmetic, args = _exactly(rule, args)
    # On a grid, so that the sum of the two is not rounded.
    first = np.round(args[place] * GRID) / GRID
    second = np.round(np.roll(first, 1) * GRID / 3 + 1) / GRID
    parts = [at(each, arithmetic, args) for each in (first, second, first + second)]
    wrong = _first_unequal(arithmetic, parts[2], _sum(arithmetic, *parts[:2]))
    if wrong:
        found.append(f"not additive in the cotangent: {wrong}")
    return found


def _examples(rule: Rule) -> list[str]:
    """Whether batches add up, and whether the order of examples matters."""
    found = []
    arithmetic, args = _exactly(rule, rule.draw(generator(2), "normal"))
    whole = rule.program(args).run(args, arithmetic)
    m = len(args[1])  # x of a layer or a network, targets of a loss

    rows = [name for name in whole if name.split(".")[0] in rule.rows]

    def of_examples(which: Any) -> dict[str, Any]:
        assert rule.part is not None
        part = rule.part(args, which)
        return rule.program(part).run(part, arithmetic)

    if m > 1 and not rule.mixes:
        first, second = of_examples(slice(0, m // 2)), of_examples(slice(m // 2, m))
        joined = {
            name: arithmetic.move(lambda *rows: np.concatenate(rows), first[name], second[name])
            for name in rows
        }
        sums = [
            {n: each for n, each in half.items() if n not in joined} for half in (first, second)
        ]
        joined |= _sum(arithmetic, *sums)
        wrong = _first_unequal(arithmetic, joined, whole)
        if wrong:
            found.append(f"the halves of a batch don't add up to the whole: {wrong}")
    if m > 1:
        order = np.roll(np.arange(m)[::-1], 1)
        shuffled = of_examples(order)
        expected = whole | {
            name: arithmetic.move(lambda rows: rows[order], whole[name]) for name in rows
        }
        wrong = _first_unequal(arithmetic, shuffled, expected)
        if wrong:
            found.append(f"the order of examples matters: {wrong}")
    return found


def _exactly(rule: Rule, args: tuple[Any, ...]) -> tuple[Arithmetic, tuple[Any, ...]]:
    """Fractions on the lattice for an exact rule; float64 with error bounds for any other."""
    if rule.exact:
        return Rational(), rule.draw(generator(2), "lattice")
    return BOUNDS, args


def _sum(arithmetic: Arithmetic, first: Any, second: Any) -> dict[str, Any]:
    add = arithmetic.primitives["add"]
    return {name: add({}, each, second[name]) for name, each in first.items()}


def _first_unequal(arithmetic: Arithmetic, ours: Any, theirs: Any) -> str:
    """The first result that isn't the same: in fractions equal, else within the bounds of both."""
    if arithmetic is BOUNDS:
        return within_bounds(ours, theirs).first_wrong
    return next((name for name in theirs if not np.array_equal(ours[name], theirs[name])), "")


def lowers(rules: list[Rule]) -> list[str]:
    """The rules whose gradient `jax.export` doesn't lower for every platform."""
    failed = []
    for rule in rules:
        args = jax.tree.map(_as_float32, rule.draw(generator(0), "normal"))
        try:
            exported = jax.export.export(jax.jit(rule.manual), platforms=PLATFORMS)(*args)
            if tuple(exported.platforms) != PLATFORMS:
                failed.append(f"{rule}: lowered for {exported.platforms}")
        except Exception as error:
            failed.append(f"{rule}: {type(error).__name__}: {error}")
    return failed


def networks(count: int, seed: int) -> list[Rule]:
    """Random networks with weights given, so that their gradients are sums over examples."""
    cases = [draw_case(seed, number, most_layers=6, most_wide=16) for number in range(count)]
    return [
        of_case(replace(with_dtype(case), weighting="given"), every_intermediate=False)
        for case in cases
        if "L4 bounds" not in specs.of_loss(case.loss).omitted
    ]


def run(report: Report, rules: list[Rule], *, seed: int = 0, cases: int = 25) -> None:
    """Judge every rule, and this many random networks; lower the rules."""
    level = report.level("L0 structure", "shapes, dtypes, linearity, batches: exact or in bounds")
    exports = report.level("L0 export", f"lowers for {', '.join(PLATFORMS)}")
    with report.working("structure", 2 * len(rules) + cases) as advance:
        for rule in [*rules, *networks(cases, seed)]:
            found = faults(rule)
            level.judged(not found, failure=f"{rule}: {'; '.join(found)}", family=rule.family)
            advance(rule.name[:60])
        for rule in rules:
            failed = lowers([rule])
            exports.judged(not failed, failure="; ".join(failed), family=rule.family)
            advance(rule.name[:60])


def _as_float32(leaf: Any) -> Any:
    return jnp.asarray(leaf, jnp.float32) if leaf.dtype.kind == "f" else jnp.asarray(leaf)
