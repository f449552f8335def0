"""L0: what must hold exactly of any gradient, whatever its formula.

Shapes, dtypes and tree; a zero cotangent gives exactly zero, twice the cotangent exactly twice, two
runs are identical; gradients are additive in the cotangent (exactly in fractions, within the error
bounds elsewhere); and each rule lowers for CPU, CUDA, ROCm and TPU.

Not judged yet: that a batch split in two adds up, and that the order of examples doesn't matter.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from verify.arithmetic.numpy import Float64
from verify.arithmetic.rational import Rational
from verify.interpreter import Program
from verify.judges import BOUNDS, is_gradient, within_bounds
from verify.report import Report
from verify.rules import Rule, generator

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")


def faults(rule: Rule) -> list[str]:
    """What doesn't hold, in words; an empty list when all does."""
    found = []
    args = rule.draw(generator(0), "normal")
    manual, autodiff = rule.programs(args)
    if _signature(manual) != _signature(autodiff):
        found.append(f"shapes or dtypes differ: {_signature(manual)} and {_signature(autodiff)}")
    run = manual.run(args, Float64())
    again = manual.run(args, Float64())
    if not all(np.array_equal(run[name], again[name], equal_nan=True) for name in run):
        found.append("two runs differ")
    if rule.cotangent is not None:
        found += _linearity(rule, manual, args)
    return found


def _linearity(rule: Rule, manual: Program, args: tuple[Any, ...]) -> list[str]:
    found = []
    place = rule.cotangent
    assert place is not None

    def at(cotangent: np.ndarray, arithmetic: Any, args: tuple[Any, ...] = args) -> Any:
        changed = (*args[:place], cotangent, *args[place + 1 :])
        results = manual.run(changed, arithmetic)
        return {name: each for name, each in results.items() if is_gradient(name)}

    cotangent, exact = args[place], Float64()
    once = at(cotangent, exact)
    if any(np.any(each != 0) for each in at(0 * cotangent, exact).values()):
        found.append("a zero cotangent gives a gradient that isn't zero")
    if any(np.any(each != 2 * once[name]) for name, each in at(2 * cotangent, exact).items()):
        found.append("twice the cotangent doesn't give exactly twice the gradient")
    other = generator(1).normal(size=cotangent.shape)
    if rule.exact:
        args = rule.draw(generator(2), "lattice")
        first, second = args[place], np.roll(args[place], 1) + 1
        parts = [at(each, Rational(), args) for each in (first, second, first + second)]
        if any(np.any(parts[0][name] + parts[1][name] != parts[2][name]) for name in parts[2]):
            found.append("not additive in the cotangent, in fractions")
    else:
        parts = [at(each, BOUNDS) for each in (cotangent, other)]
        added = {
            name: BOUNDS.primitives["add"]({}, each, parts[1][name])
            for name, each in parts[0].items()
        }
        # The sum of two cotangents is rounded: take one whose sum is exact.
        whole = cotangent + other
        both = at(whole, BOUNDS)
        slack = at(np.abs(whole) * 2.0**-53, BOUNDS)
        for name, each in both.items():
            each.bound[...] = each.bound + np.abs(slack[name].value).max(initial=0) * whole.size
        verdict = within_bounds(both, added)
        if not verdict.ok:
            found.append(f"not additive in the cotangent: {verdict.first_wrong}")
    return found


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


def run(report: Report, rules: list[Rule]) -> None:
    """Judge every rule."""
    level = report.level("L0 structure", "shapes, dtypes, linearity, determinism: exact")
    exports = report.level("L0 export", f"lowers for {', '.join(PLATFORMS)}")
    with report.working("structure", 2 * len(rules)) as advance:
        for rule in rules:
            found = faults(rule)
            level.judged(not found, failure=f"{rule}: {'; '.join(found)}", family=rule.family)
            advance(rule.name[:60])
        for rule in rules:
            failed = lowers([rule])
            exports.judged(not failed, failure="; ".join(failed), family=rule.family)
            advance(rule.name[:60])


def _signature(program: Program) -> dict[str, Any]:
    shapes = jax.tree.unflatten(program.structure, program.jaxpr.out_avals)
    return {name: (each.shape, each.dtype.name) for name, each in shapes.items()}


def _as_float32(leaf: Any) -> Any:
    return jnp.asarray(leaf, jnp.float32) if leaf.dtype.kind == "f" else jnp.asarray(leaf)
