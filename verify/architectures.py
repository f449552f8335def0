"""Random architectures, three ways against each other, every intermediate compared.

The engine, jax.grad of the judge's own network, and where the notes cover it their literal formulas
run on the same float64 numbers, jaxpr by jaxpr, so that nothing needs compiling.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np

from verify import engine, literal
from verify.arithmetic.numpy import Float64
from verify.interpreter import trace
from verify.networks import Case, draw_case, smallest
from verify.report import Report

LIMIT = 1e-12
"""Largest norm-wise relative difference of an intermediate, in float64."""


class Difference(NamedTuple):
    """How far an intermediate is from its judge's, relative to the judge's norm."""

    name: str
    judge: str
    relative: float


def judge_case(case: Case) -> list[Difference]:
    """Every intermediate of the case against each judge, in the order of computation."""
    problem = case.problem()
    arithmetic = Float64()
    manual_program, auto_program = engine.programs(case, problem)
    manual = manual_program.run(problem, arithmetic)
    found = compare(manual, auto_program.run(problem, arithmetic), "autodiff")
    if literal.applies(case.network, case.loss, problem):
        # Traced with params and x as arguments, closed over the targets.
        program = trace(
            lambda params, x: literal.intermediates(
                case.network, case.loss, problem._replace(params=params, x=x)
            ),
            problem.params,
            problem.x,
        )
        notes = program.run((problem.params, problem.x), arithmetic)
        common = {name: manual[name] for name in notes}
        found += compare(common, notes, "the notes' literal formulas")
    return found


def compare(manual: dict[str, Any], judge: dict[str, Any], name: str) -> list[Difference]:
    """Norm-wise relative differences; a missing or extra intermediate is infinitely wrong."""
    found = [
        Difference(each, name, np.inf) for each in sorted(set(manual).symmetric_difference(judge))
    ]
    for each in engine.in_order_of_computation([key for key in manual if key in judge]):
        ours, theirs = np.asarray(manual[each]), np.asarray(judge[each])
        if ours.shape != theirs.shape:
            found.append(Difference(each, name, np.inf))
            continue
        scale, apart = np.linalg.norm(theirs), np.linalg.norm(ours - theirs)
        relative = apart / scale if scale > 0 else (0.0 if apart == 0 else np.inf)
        found.append(Difference(each, name, float(relative if np.isfinite(relative) else np.inf)))
    return found


def first_wrong(differences: list[Difference], limit: float = LIMIT) -> Difference | None:
    """The first intermediate beyond the limit."""
    return next((each for each in differences if not each.relative <= limit), None)


def explain(case: Case, seed: int, number: int) -> str:
    """One line that reproduces a failure, and the smallest network that still fails."""
    wrong = first_wrong(judge_case(case))
    least = smallest(case, lambda each: first_wrong(judge_case(each)) is not None)
    least_wrong = first_wrong(judge_case(least))
    assert wrong is not None and least_wrong is not None
    return (
        f"python -m verify --only architectures --seed {seed} --trial {number}\n"
        f"  {case}: first wrong is {wrong.name}, by {wrong.relative:.2g} from {wrong.judge}\n"
        f"  smallest that still fails: {least}: first wrong is {least_wrong.name}, by "
        f"{least_wrong.relative:.2g} from {least_wrong.judge}"
    )


def run(report: Report, *, seed: int, numbers: list[int]) -> None:
    """Judge the cases of these numbers."""
    what = "random networks, every intermediate, in float64"
    compared = notes = 0
    with report.judging("architectures", what, len(numbers), f"{LIMIT:g}") as judging:
        for number in numbers:
            case = draw_case(seed, number)
            differences = judge_case(case)
            compared += len(differences)
            notes += any(each.judge != "autodiff" for each in differences)
            worst = max(each.relative for each in differences)
            ok = first_wrong(differences) is None
            failure = "" if ok else explain(case, seed, number)
            judging.judged(ok, worst, f"worst {worst:.1e}", failure)
        judging.note(
            f"{compared} intermediates compared; {notes} networks also with the literal formulas"
        )


def run_compiled(report: Report, *, seed: int, numbers: list[int]) -> None:
    """Judge these cases compiled by XLA too, in float64 and float32.

    float64 is compared with autodiff's compiled program. In float32 both are compared with the
    float64 values, pooled over everything: the engine's error may be twice autodiff's at most, or
    twice a rounding of the whole.
    """
    what = "the same by XLA: float64 against autodiff, float32 error over autodiff's"
    ratios = []
    with report.judging("compiled", what, 2 * len(numbers), f"{LIMIT:g}") as judging:
        for number in numbers:
            case = draw_case(seed, number, most_layers=4, most_wide=32)
            failure = f"python -m verify --only compiled --seed {seed} --trial {number}: {case}"
            exact, manual, auto = _compiled(case, np.float64)
            differences = compare(manual, auto, "autodiff")
            worst = max(each.relative for each in differences)
            wrong = first_wrong(differences)
            judging.judged(wrong is None, worst, f"worst {worst:.1e}", f"{failure}: {wrong}")
            _, manual, auto = _compiled(case, np.float32)
            ours, theirs, floor = (
                _pooled(manual, exact),
                _pooled(auto, exact),
                float(np.finfo(np.float32).eps) / 2 * _pooled(exact, None),
            )
            ratio = ours / max(theirs, floor)
            ratios.append(ours / max(theirs, floor))
            judging.judged(ratio <= 2, 0.0, f"ratio {ratio:.2f}", f"{failure}: float32 {ratio:.2f}")
        if ratios:
            judging.note(
                f"float32 error over autodiff's: median {np.median(ratios):.2f}, "
                f"largest {max(ratios):.2f}, limit 2"
            )


def _compiled(case: Case, dtype: Any) -> tuple[Any, Any, Any]:
    """(float64 values on the jaxpr, the engine's compiled, autodiff's compiled)."""
    problem = case.problem()
    program, _ = engine.programs(case, problem)
    exact = program.run(problem, Float64())
    with jax.enable_x64(dtype == np.float64):
        cast = engine.dtype_of(problem, dtype)
        settings = (case.network, case.loss)
        manual = jax.jit(lambda *args: engine.intermediates(*settings, *args))(*cast)
        auto = jax.jit(lambda *args: engine.by_autodiff(*settings, *args))(*cast)
    return exact, manual, auto


def _pooled(values: dict[str, Any], origin: dict[str, Any] | None) -> float:
    """The norm of all intermediates together, or of their distance from the origin's."""
    total = 0.0
    for name, each in values.items():
        apart = np.asarray(each, np.float64)
        if origin is not None:
            apart = apart - np.asarray(origin[name], np.float64)
        total += float(np.sum(np.square(apart)))
    return float(np.sqrt(total))
