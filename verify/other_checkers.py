"""How others check a gradient, with thresholds of their own, finite differences among them.

This is the one file in which a gradient is held against a tolerance that somebody chose. None of it
decides whether our gradients are right, but for the finite differences, which are the one judge
that knows no derivative rule at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.test_util
import numpy as np

import manual_bp as mbp
from manual_bp.layer import Combinator, Layer
from verify import reference, specs
from verify.arithmetic.numpy import Float64
from verify.interpreter import trace
from verify.networks import Case, draw_case, opened
from verify.report import Report
from verify.rules import Rule

LIMIT = 1e-7
"""Of a difference quotient's distance from the gradient's projection, in norms of the gradient."""
STEPS = (1e-3, 1e-4, 1e-5, 1e-6)


# --- finite differences ---------------------------------------------------------------------


def is_smooth(thing: Any) -> bool:
    """Whether a network or loss has no kink, which a third derivative would not survive."""
    if isinstance(thing, Combinator):
        return all(map(is_smooth, thing.children))
    if isinstance(thing, mbp.Dense):
        return is_smooth(thing.activation)
    spec = specs.of_layer(thing) if isinstance(thing, Layer) else specs.of_loss(thing)
    return spec.smooth(thing)


def difference_quotient(case: Case) -> float:
    """The distance of the difference quotient from ∂J/∂θ · d, in norms of the gradient.

    (J(θ + h d) - J(θ - h d)) / 2h is ∂J/∂θ · d but for h² times a third derivative and u/h for
    rounding: a V over h, whose bottom is near h = u^(1/3). The best of several h is taken.
    """
    problem = case.problem()
    network, loss = case.used, case.loss

    def gradient(params: Any, x: Any, y: Any, weights: Any, taken: Any) -> Any:
        settings: Any = {"network": network, "loss": loss, "weights": weights, **opened(taken)}
        return mbp.manual_grads(params, x, y, **settings)

    def objective(params: Any, x: Any, y: Any, weights: Any, taken: Any) -> Any:
        untapped: Any = lambda name, value: value  # noqa: E731
        given = opened(taken)
        return reference.objective(network, loss, params, x, y, weights, untapped, given)[0]

    grads = trace(gradient, *problem).run(problem, Float64())
    value = trace(objective, *problem)
    rng = np.random.default_rng(case.seed)
    direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), problem.params)
    leaves = jax.tree.leaves(grads)
    projected = sum(
        float(np.sum(g * d)) for g, d in zip(leaves, jax.tree.leaves(direction), strict=True)
    )
    size = np.sqrt(sum(float(np.sum(g * g)) for g in leaves))

    def at(step: float) -> float:
        moved = jax.tree.map(lambda p, d: p + step * d, problem.params, direction)
        return float(value.run(problem._replace(params=moved), Float64()))

    quotients = [(at(step) - at(-step)) / (2 * step) for step in STEPS]
    return min(abs(each - projected) for each in quotients) / max(size, 1e-30)


def run(report: Report, *, seed: int, trials: int) -> None:
    """Finite differences on the first cases that are smooth."""
    what = "finite differences in float64 on smooth random networks"
    level = report.level("differences", what, f"{LIMIT:g}")
    judged = number = 0
    with report.working("differences", trials) as advance:
        while judged < trials:
            case = draw_case(seed, number, most_layers=4, most_wide=32)
            number += 1
            if not (is_smooth(case.network) and is_smooth(case.loss)):
                continue
            judged += 1
            apart = difference_quotient(case)
            failure = f"{case}: off by {apart:.2g} of the gradient's norm (case {number - 1})"
            level.judged(apart <= LIMIT, apart, failure, "networks")
            advance(str(case)[:60])


# --- what other people's checkers make of a wrong gradient ----------------------------------

Results = dict[str, Any]


def passes_allclose(results: Results, right: Results) -> bool:
    """np.allclose with rtol = atol = 1e-5, result by result."""
    return all(np.allclose(results[name], right[name], rtol=1e-5, atol=1e-5) for name in right)


def passes_check_grads(rule: Rule, run: Callable[[tuple[Any, ...]], Results], args: Any) -> bool:
    """jax.test_util.check_vjp with its default step and tolerance, in float32.

    Args:
        rule: of a layer or a loss, whose first result is the function's value.
        run: the program to check, from arguments to results.
        args: where to check it.
    """
    place = rule.cotangent
    assert place is not None
    free, fixed = args[: rule.differentiated], args[rule.differentiated : place]
    structure = jax.tree.structure(free)
    output, *gradients = rule.names(*args)

    def narrow(value: Any) -> np.ndarray:
        return np.asarray(value, np.float32)

    def results(primals: Any, cotangent: Any) -> Results:
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (primals, cotangent))
        return run((*wide[0], *fixed, wide[1], *args[place + 1 :]))

    def value(*primals: Any) -> np.ndarray:
        return narrow(results(primals, args[place])[output])

    def value_and_vjp(*primals: Any) -> Any:
        def pull(cotangent: Any) -> Any:
            found = results(primals, cotangent)
            return jax.tree.unflatten(structure, [narrow(found[name]) for name in gradients])

        return value(*primals), pull

    primals = jax.tree.map(narrow, free)
    try:
        with np.errstate(all="ignore"):
            jax.test_util.check_vjp(value, value_and_vjp, primals)
    except AssertionError:
        return False
    return True


def compare(counts: Counter[str], rule: Rule, run: Callable[..., Results], args: Any) -> None:
    """Count what allclose and check_vjp make of a wrong program that the bounds have killed.

    Args:
        counts: "NAME of" how many it judged, "NAME killed" how many it found wrong.
        rule: whose program was changed.
        run: run(program, args, arithmetic), the wrong program in place of the rule's own.
        args: where.
    """
    manual, autodiff = rule.programs(args)
    arithmetic = Float64()

    def results(args: tuple[Any, ...]) -> Results:
        return run(manual, args, arithmetic)

    checkers: dict[str, Callable[[], bool]] = {
        "allclose": lambda: passes_allclose(results(args), autodiff.run(args, arithmetic))
    }
    if rule.cotangent is not None:
        checkers["check_vjp"] = lambda: passes_check_grads(rule, results, args)
    for name, passes in checkers.items():
        counts[f"{name} of"] += 1
        try:
            counts[f"{name} killed"] += not passes()
        except (ArithmeticError, ValueError, TypeError):
            counts[f"{name} killed"] += 1  # it doesn't even run


def in_words(counts: Counter[str]) -> str:
    """How many wrong programs each checker killed."""
    return (
        f"allclose to 1e-5 kills {counts['allclose killed']} of {counts['allclose of']}, "
        f"jax.test_util.check_vjp in float32 {counts['check_vjp killed']} of "
        f"{counts['check_vjp of']}"
    )
