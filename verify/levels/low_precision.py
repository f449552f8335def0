"""L5: compiled in float32, bfloat16 and float16, the error beside autodiff's.

Both programs are compared with float64 on the same inputs, inputs that the low precision holds. The
errors are pooled over the whole gradient (their L2 norm): entry by entry the ratio of two roundings
is noise. The engine's may be twice autodiff's at most, or twice a rounding of the whole.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from verify.arithmetic.numpy import Float64
from verify.arithmetic.rounding import unit_roundoff
from verify.judges import Verdict, as_numbers, is_gradient, widened
from verify.networks import draw_case
from verify.report import Report
from verify.rules import Rule, generator, of_case

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)
TOGETHER = 20
"""Rules in one compilation: fewer, larger programs take less time."""


class Ratio(NamedTuple):
    """The pooled error of a gradient over autodiff's, and both."""

    rule: Rule
    dtype: str
    ratio: float
    manual: float
    autodiff: float


def ratios(rules: list[Rule], dtype: Any, seed: int = 0) -> list[Ratio]:
    """The ratio for each rule; all are compiled together, since compiling is what costs."""
    drawn = [
        jax.tree.map(lambda leaf: _rounded(leaf, dtype), rule.draw(generator(seed), "normal"))
        for rule in rules
    ]

    def every(which: str) -> Any:
        functions = [getattr(rule, which) for rule in rules]
        run = jax.jit(lambda args: [f(*each) for f, each in zip(functions, args, strict=True)])
        return run(drawn)

    manual, autodiff = every("manual"), every("autodiff")
    found = []
    for rule, args, ours, theirs in zip(rules, drawn, manual, autodiff, strict=True):
        wide = jax.tree.map(widened, args)
        exact = rule.programs(wide)[1].run(wide, Float64())
        ours_error, theirs_error = np.sqrt([_pooled(ours, exact), _pooled(theirs, exact)])
        ratio = over(ours_error, theirs_error, np.sqrt(_pooled(exact, None)), dtype)
        # Where autodiff gives NaN, a finite error of ours is no worse.
        ratio = 0.0 if not np.isfinite(theirs_error) and np.isfinite(ours_error) else ratio
        found.append(Ratio(rule, jnp.dtype(dtype).name, ratio, ours_error, theirs_error))
    return found


def over(ours: float, theirs: float, size: float, dtype: Any) -> float:
    """L5's measure: our pooled error over the larger of autodiff's and a rounding of the whole.

    Args:
        ours: the norm of the errors of what is judged.
        theirs: of autodiff's.
        size: the norm of the exact values.
        dtype: whose unit roundoff is meant.
    """
    rounding = unit_roundoff(dtype) * size
    # Both exact, or a gradient of zeros: nothing to divide.
    return float(ours / max(theirs, rounding)) if ours else 0.0


def against_float64(rule: Rule, args: Any) -> Verdict:
    """The rule in float32 beside autodiff in float32, both against autodiff compiled in float64.

    For programs that no arithmetic of `verify.arithmetic` can run. The figure is the pooled ratio.
    """
    narrow = jax.tree.map(lambda leaf: _rounded(leaf, jnp.float32), args)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(widened(leaf)), narrow)
        exact = jax.jit(rule.autodiff)(*wide)
        manual_wide = jax.jit(rule.manual)(*wide)
    ours, theirs = jax.jit(rule.manual)(*narrow), jax.jit(rule.autodiff)(*narrow)
    for name in exact:
        if name not in ours or ours[name].shape != exact[name].shape:
            return Verdict(False, np.inf, 0, name, "has another shape or is missing")
    worst, wrong, entries = 0.0, "", 0
    for name, each in exact.items():
        size = np.sqrt(_pooled({name: each}, None, every=True))
        error = np.sqrt(_pooled({name: theirs[name]}, exact, every=True))
        found = max(
            np.sqrt(_pooled({name: ours[name]}, exact, every=True)),
            np.sqrt(_pooled({name: manual_wide[name]}, exact, every=True)),
        )
        ratio = over(found, error, size, jnp.float32)
        entries += each.size if is_gradient(name) else 0
        worst = max(worst, ratio)
        wrong = wrong or (name if not ratio <= 2 else "")
    return Verdict(not wrong, worst, entries, wrong, "errs more than twice as much as autodiff")


def run(report: Report, rules: list[Rule], *, seed: int = 0, networks: int = 25) -> None:
    """Judge every rule in every dtype, and random networks beside them."""
    limit, what = "2", "compiled in low precision: pooled error over autodiff's"
    level = report.level("L5 precision", what, limit)
    cases = [draw_case(seed, n, most_layers=4, most_wide=32) for n in range(networks)]
    whole = [of_case(case, every_intermediate=False) for case in cases]
    work = {dtype: [*rules, *whole] for dtype in DTYPES}
    work[jnp.float16] = rules  # whole networks leave float16's range
    with report.working("precision", sum(map(len, work.values()))) as advance:
        for dtype, judged in work.items():
            found = []
            for at in range(0, len(judged), TOGETHER):
                found += ratios(judged[at : at + TOGETHER], dtype, seed)
                for rule in judged[at : at + TOGETHER]:
                    advance(f"{jnp.dtype(dtype).name}: {rule.name[:50]}")
            for each in found:
                failure = f"{each.rule} in {each.dtype}: {each.ratio:.2f}"
                level.judged(each.ratio <= 2, each.ratio, failure, each.rule.family)
            level.note(f"{jnp.dtype(dtype).name}: {summary(found)}")


def summary(found: list[Ratio]) -> str:
    """Median, geometric mean and largest of the ratios; where both are exact there is none."""
    values = np.array([each.ratio for each in found if each.manual > 0 and each.ratio > 0])
    exact = sum(each.manual == 0 for each in found)
    return (
        f"{len(values)} ratios, median {np.median(values):.2f}, geometric mean "
        f"{np.exp(np.mean(np.log(values))):.2f}, largest {values.max():.2f}; {exact} more are exact"
    )


def _rounded(leaf: Any, dtype: Any) -> Any:
    return jnp.asarray(leaf).astype(dtype) if leaf.dtype.kind == "f" else jnp.asarray(leaf)


def _pooled(values: Any, exact: Any, every: bool = False) -> float:
    total = 0.0
    for name, each in values.items():
        if every or is_gradient(name):
            apart = as_numbers(each).astype(np.float64)
            if exact is not None:
                apart = apart - as_numbers(exact[name]).astype(np.float64)
            total += float(np.sum(np.square(apart)))
    return total
