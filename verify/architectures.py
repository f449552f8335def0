"""Random architectures under the judges that need no tolerance, nothing compiled.

Every network is judged by error bounds (L4): the engine against jax.grad of the judge's own
network, and where the notes cover it against their literal formulas. Piecewise-polynomial ones are
judged in exact fractions too (L2), and every few of the others with growing precision (L3).
"""

from __future__ import annotations

import time
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from verify import judges, literal, rules, specs
from verify.arithmetic.rounding import Bounded
from verify.interpreter import trace
from verify.judges import BOUNDS, Verdict, within_bounds
from verify.levels.structure import differing_dtypes
from verify.networks import Case, Problem, draw_case, smallest, with_dtype
from verify.report import Report
from verify.rules import Rule

MOST_PRODUCTS = {"L2 fractions": 60_000, "L3 digits": 8_000}
"""Products in the hand-derived program that a level takes: exact arithmetic is slow arithmetic."""

CHUNK = 10
"""Networks that a process takes at a time."""


class Finding(NamedTuple):
    """What one level says of a network."""

    level: str
    verdict: Verdict


def judge_case(case: Case, *, every_intermediate: bool = True, deep: bool = False) -> list[Finding]:
    """The verdicts on a random network, at its own numbers and, if it is exact, on the lattice.

    Args:
        case: the network.
        every_intermediate: compare each Z, A, dA, dZ beside the gradient.
        deep: judge with growing precision too, where the size allows it.
    """
    rule = rules.of_case(case, every_intermediate=every_intermediate)
    problem = case.problem()
    wrong = differing_dtypes(rule, tuple(problem))
    found = [Finding("L0 dtypes", Verdict(not wrong, 0, 0, wrong, "shape or dtype"))]
    if "L4 bounds" in rule.omitted:
        every_intermediate, deep = False, True
    else:
        verdict = judges.bounds(rule, tuple(problem))
        if verdict.why == judges.UNBOUNDED:  # so growing precision has to say it
            wide_case = replace(case, dtype="float64")
            wide_rule = rules.of_case(wide_case, every_intermediate=every_intermediate)
            verdict = judges.digits(wide_rule, tuple(wide_case.problem()))
            return [*found, Finding("L3 digits", verdict)]
        found.append(Finding("L4 bounds", verdict))
    wide = case.dtype == "float64"  # else constants are rounded, and two programs' differently
    if wide and every_intermediate and literal.applies(case.network, case.loss, problem):
        found.append(Finding("L4 notes", judge_notes(case, rule, problem)))
    size = rule.programs(tuple(problem))[0].products()
    if wide and rule.exact and size <= MOST_PRODUCTS["L2 fractions"]:
        found.append(Finding("L2 fractions", judges.rational(rule, on_lattice(rule, case))))
    elif len(found) == 1 or (wide and deep and size <= MOST_PRODUCTS["L3 digits"]):
        found.append(Finding("L3 digits", judges.digits(rule, tuple(problem))))
    return found


def judge_notes(case: Case, rule: Rule, problem: Problem) -> Verdict:
    """The engine against the notes' literal formulas, within the bounds of both."""
    manual = rule.programs(tuple(problem))[0].run(tuple(problem), BOUNDS)
    # Traced with params and x as arguments, closed over the targets.
    notes = trace(
        lambda params, x: literal.intermediates(
            case.network, case.loss, problem._replace(params=params, x=x)
        ),
        problem.params,
        problem.x,
    ).run((problem.params, problem.x), BOUNDS)
    return within_bounds({name: manual[name] for name in notes}, notes)


def on_lattice(rule: Rule, case: Case) -> tuple[Any, ...]:
    """Arguments that are small integers: fractions stay short, and kinks are met."""
    return rule.draw(rules.generator(*case.seed), "lattice")


def first_wrong(findings: list[Finding]) -> Finding | None:
    """The first level that doesn't agree."""
    return next((each for each in findings if not each.verdict.ok), None)


def describe(finding: Finding) -> str:
    """The level, the first wrong intermediate and why."""
    return f"{finding.level}: first wrong is {finding.verdict.first_wrong}, {finding.verdict.why}"


def explain(seed: int, number: int) -> str:
    """One line that reproduces a failure, and the smallest network that still fails."""
    case = with_dtype(draw_case(seed, number))

    def wrong(each: Case) -> Finding | None:
        return first_wrong(judge_safely(each, deep=True))

    first = wrong(case)
    least = smallest(case, lambda each: wrong(each) is not None)
    least_wrong = wrong(least)
    assert first is not None
    assert least_wrong is not None
    return (
        f"python -m verify --only networks --seed {seed} --trial {number}\n"
        f"  {case}: {describe(first)}\n"
        f"  smallest that still fails: {least}: {describe(least_wrong)}"
    )


LEVELS = {
    "L0 dtypes": ("random networks in four dtypes: shapes and dtypes of all results", ""),
    "L2 fractions": ("rules and random networks in exact fractions: equal", "0"),
    "L3 digits": ("the same at 20 and 40 digits: share of the decades not gained", "0.5"),
    "L4 bounds": ("the same in float64 with error bounds: difference over bound", "1"),
    "L4 notes": ("random networks against the notes' literal formulas, with bounds", "1"),
}


def judge_numbers(seed: int, numbers: list[int]) -> list[tuple[int, list[Finding]]]:
    """The findings on the cases of these numbers: every third one with all intermediates, every
    fourth smooth one with growing precision, a single one with both.
    """
    alone = len(numbers) == 1
    return [
        (
            number,
            judge_safely(
                with_dtype(draw_case(seed, number)),
                every_intermediate=number % 3 == 0 or alone,
                deep=number % 4 == 1 or alone,
            ),
        )
        for number in numbers
    ]


def judge_safely(case: Case, **how: bool) -> list[Finding]:
    """As judge_case; a network that can't even be run is wrong, and doesn't end the others."""
    try:
        return judge_case(case, **how)
    except Exception as error:  # whatever it is, it is a finding
        why = f"{type(error).__name__}: {error}"
        return [Finding("L0 dtypes", Verdict(False, 0, 0, "the program", why))]


class Networks:
    """Random networks on their way through the judges, some of them in a process beside this one.

    Args:
        seed: of the run.
        numbers: of the cases.
        pool: processes that work beside this one, None for none.
    """

    def __init__(self, seed: int, numbers: list[int], pool: Executor | None) -> None:
        self.seed, self.total = seed, len(numbers)
        self._chunks = [numbers[at : at + CHUNK] for at in range(0, len(numbers), CHUNK)]
        self._handed: list[tuple[list[int], Future[Any]]] = []
        if pool is not None:  # all at once, since it works while we do others
            self._handed = [
                (chunk, pool.submit(judge_numbers, seed, chunk)) for chunk in self._chunks
            ]
            self._chunks = []

    def finish(self, report: Report, deadline: float) -> None:
        """Judge the rest, as much as the time allows, and report all that was found.

        Args:
            report: where to.
            deadline: on the clock of time.perf_counter; chunks under way are finished.
        """
        started, entries = time.perf_counter(), 0
        found: list[tuple[int, list[Finding]]] = []
        with report.working("networks", self.total) as advance:
            shown = 0
            while self._chunks or self._handed:
                late = time.perf_counter() > deadline
                for chunk, future in [each for each in self._handed if each[1].done()]:
                    self._handed.remove((chunk, future))
                    found += [] if future.cancelled() else future.result()
                # The last one that the other processes haven't begun is ours.
                for chunk, future in reversed(self._handed):
                    if future.cancel():
                        self._handed.remove((chunk, future))
                        self._chunks.append(chunk)
                        if not late:
                            break
                if late:
                    self._chunks.clear()
                if self._chunks:
                    found += judge_numbers(self.seed, self._chunks.pop())
                elif self._handed:
                    wait([future for _, future in self._handed], return_when=FIRST_COMPLETED)
                for _ in range(len(found) - shown):
                    advance()
                shown = len(found)
        for number, findings in sorted(found, key=lambda each: each[0]):
            wrong = first_wrong(findings)
            failure = "" if wrong is None else explain(self.seed, number)
            for name, verdict in findings:
                entries += verdict.entries if name == "L4 bounds" else 0
                level = report.level(name, *LEVELS[name])
                level.judged(verdict.ok, verdict.figure, failure, "networks")
        judged = len(found)
        report.level("L4 bounds", *LEVELS["L4 bounds"]).note(
            f"{judged} random networks, {entries} entries of gradients within their bounds"
            + ("" if judged == self.total else f"; the budget ended it before {self.total}")
        )
        report.seconds["networks"] = time.perf_counter() - started


def run_compiled(report: Report, *, seed: int, numbers: list[int]) -> None:
    """Judge these cases compiled by XLA, in float64: within the bounds of the traced programs.

    A bound holds for any order of summation, so for whatever order XLA chooses.
    """
    level = report.level("L4 compiled", "random networks compiled by XLA, in float64: as L4", "1")
    with report.working("compiled", len(numbers)) as advance:
        for number in numbers:
            case = draw_case(seed, number, most_layers=4, most_wide=32)
            if "L4 bounds" in specs.of_loss(case.loss).omitted:
                case = replace(case, loss=mbp.SquaredError())
            rule = rules.of_case(case)
            args = tuple(case.problem())
            bounds = [program.run(args, BOUNDS) for program in rule.programs(args)]
            with jax.enable_x64(True):
                compiled = [
                    jax.jit(function)(*jax.tree.map(jnp.asarray, args))
                    for function in (rule.manual, rule.autodiff)
                ]
            manual, autodiff = (
                {
                    name: Bounded(np.asarray(each), bound[name].bound)
                    for name, each in values.items()
                    if isinstance(bound[name], Bounded)  # tokens are the same numbers
                }
                for values, bound in zip(compiled, bounds, strict=True)
            )
            verdict = within_bounds(manual, autodiff)
            again = f"python -m verify --only compiled --seed {seed} --trial {number}"
            failure = f"{again}: {case}: first wrong is {verdict.first_wrong}, {verdict.why}"
            level.judged(verdict.ok, verdict.figure, failure, "networks")
            advance(str(case)[:60])
