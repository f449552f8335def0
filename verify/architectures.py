"""Random architectures under the judges that need no tolerance, nothing compiled.

Every network is judged by error bounds (L4): the engine against jax.grad of the judge's own
network, and where the notes cover it against their literal formulas. Piecewise-polynomial ones are
judged in exact fractions too (L2), and every few of the others with growing precision (L3).
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax

from verify import judges, literal, rules
from verify.interpreter import trace
from verify.judges import BOUNDS, Verdict, within_bounds
from verify.networks import Case, Problem, draw_case, smallest
from verify.report import Report
from verify.rules import Rule

MOST_PRODUCTS = {"L2 fractions": 20_000, "L3 digits": 5_000}
"""Products in a forward pass that a level still takes: exact arithmetic is slow arithmetic."""


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
    found = [Finding("L4 bounds", judges.bounds(rule, tuple(problem)))]
    if every_intermediate and literal.applies(case.network, case.loss, problem):
        found.append(Finding("L4 notes", judge_notes(case, rule, problem)))
    size = products(case, problem)
    if rule.exact and size <= MOST_PRODUCTS["L2 fractions"]:
        found.append(Finding("L2 fractions", judges.rational(rule, on_lattice(rule, case))))
    if not rule.exact and deep and size <= MOST_PRODUCTS["L3 digits"]:
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


def products(case: Case, problem: Problem) -> int:
    """How many products a forward pass takes, roughly: the size that exact arithmetic feels."""
    rows = problem.x.size // problem.x.shape[-1]
    return rows * sum(leaf.size for leaf in jax.tree.leaves(problem.params))


def first_wrong(findings: list[Finding]) -> Finding | None:
    """The first level that doesn't agree."""
    return next((each for each in findings if not each.verdict.ok), None)


def describe(finding: Finding) -> str:
    """The level, the first wrong intermediate and why."""
    return f"{finding.level}: first wrong is {finding.verdict.first_wrong}, {finding.verdict.why}"


def explain(case: Case, seed: int, number: int) -> str:
    """One line that reproduces a failure, and the smallest network that still fails."""

    def wrong(each: Case) -> Finding | None:
        return first_wrong(judge_case(each, deep=True))

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
    "L2 fractions": ("rules and random networks in exact fractions: equal", "0"),
    "L3 digits": ("the same at 20 and 40 digits: share of the decades not gained", "0.5"),
    "L4 bounds": ("the same in float64 with error bounds: difference over bound", "1"),
    "L4 notes": ("random networks against the notes' literal formulas, with bounds", "1"),
}


def run(report: Report, *, seed: int, numbers: list[int], seconds: float = 1e9) -> None:
    """Judge the cases of these numbers, as many as the seconds allow.

    Every second one with all intermediates, every fourth smooth one with growing precision.
    """
    started, judged, entries = time.perf_counter(), 0, 0
    with report.working("networks", len(numbers)) as advance:
        for number in numbers:
            if time.perf_counter() - started > seconds:
                break
            case = draw_case(seed, number)
            alone = len(numbers) == 1
            findings = judge_case(
                case,
                every_intermediate=number % 2 == 0 or alone,
                deep=number % 4 == 1 or alone,
            )
            judged += 1
            wrong = first_wrong(findings)
            for name, verdict in findings:
                entries += verdict.entries if name == "L4 bounds" else 0
                failure = "" if verdict.ok or wrong is None else explain(case, seed, number)
                level = report.level(name, *LEVELS[name])
                level.judged(verdict.ok, verdict.figure, failure, "networks")
            advance(str(case)[:60])
    taken = time.perf_counter() - started
    report.level("L4 bounds", *LEVELS["L4 bounds"]).note(
        f"{judged} random networks in {taken:.0f} s, {entries} entries of gradients"
        + ("" if judged == len(numbers) else f"; the budget ended it before {len(numbers)}")
    )
