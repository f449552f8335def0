"""Finite differences in float64: the one judge that knows no derivative rule at all.

(J(θ + h d) - J(θ - h d)) / 2h is ∂J/∂θ · d but for h² times a third derivative and u/h for
rounding: a V over h, whose bottom is near h = u^(1/3). The best of several h is taken. Kinks have
no third derivative, so networks with a kinked activation or loss are left to the other judges.
"""

from __future__ import annotations

import jax
import numpy as np

import manual_bp as mbp
from manual_bp.layer import Combinator, Layer
from verify import reference
from verify.arithmetic.numpy import Float64
from verify.interpreter import trace
from verify.networks import Case, draw_case
from verify.report import Report

LIMIT = 1e-7
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)


def is_smooth(layer: Layer) -> bool:
    """Whether no activation in it has a kink."""
    if isinstance(layer, Combinator):
        return all(is_smooth(child) for child in layer.children)
    activation = layer.activation if isinstance(layer, mbp.Dense) else layer
    return not isinstance(activation, type(mbp.relu) | mbp.leaky_relu)


def judge_case(case: Case) -> float:
    """The relative difference along a random direction, at the best step."""
    problem = case.problem()
    settings = {"network": case.network, "loss": case.loss}
    grads = trace(
        lambda p, x, y, w: mbp.manual_grads(p, x, y, weights=w, **settings), *problem
    ).run(problem, Float64())
    value = trace(
        lambda p, x, y, w: reference.objective(
            case.network, case.loss, p, x, y, w, lambda name, value: value
        )[0],
        *problem,
    )
    rng = np.random.default_rng(case.seed)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), problem.params)
    product = sum(
        float(np.sum(g * d))
        for g, d in zip(jax.tree.leaves(grads), jax.tree.leaves(direction), strict=True)
    )
    size = np.sqrt(sum(float(np.sum(g * g)) for g in jax.tree.leaves(grads)))

    def at(step: float) -> float:
        moved = jax.tree.map(lambda p, d: p + step * d, problem.params, direction)
        return float(value.run(problem._replace(params=moved), Float64()))

    slopes = [(at(step) - at(-step)) / (2 * step) for step in STEPS]
    return min(abs(slope - product) for slope in slopes) / max(size, 1e-30)


def run(report: Report, *, seed: int, trials: int) -> None:
    """Judge the first cases whose network is smooth."""
    what = "smooth random networks, along a random direction"
    judged, number = 0, 0
    with report.judging("differences", what, trials, f"{LIMIT:g}") as judging:
        while judged < trials:
            case = draw_case(seed, number, most_layers=4, most_wide=32)
            number += 1
            if not is_smooth(case.network):
                continue
            judged += 1
            apart = judge_case(case)
            failure = f"{case}: off by {apart:.2g} of the gradient's norm (case {number - 1})"
            judging.judged(apart <= LIMIT, apart, failure=failure)
