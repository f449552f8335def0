"""Formulas broken on purpose, the mistakes that people make: the judges must see every one.

Each is put into the engine in place of the right one, and the architectures' judge runs on a few
networks that use it, square ones too, since a missing transpose has the right shape there. A module
for each kind of layer holds its mistakes, WRONG, and the networks, CASES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax

from verify import rules
from verify.judges import Verdict, bounds
from verify.networks import Case
from verify.report import Report
from verify.wrong_formulas import (
    attention,
    linear_cross_entropy,
    notes,
    recurrent,
    tokens,
    transformers,
)


class Mistake(NamedTuple):
    """A wrong formula, and the networks of which one must show it."""

    put_in: Callable[[], Any]
    """A context inside which the engine computes it."""
    cases: tuple[Case, ...]


MISTAKES: dict[str, Mistake] = {
    name: Mistake(wrong, module.CASES)
    for module in (notes, tokens, attention, linear_cross_entropy, transformers)
    for name, wrong in module.WRONG.items()
} | {
    f"{kind.__name__}: {name}": Mistake(wrong, recurrent.CASES[kind])
    for kind, wrongs in recurrent.WRONG.items()
    for name, wrong in wrongs.items()
}


def cases() -> list[Case]:
    """Every network that a mistake is looked for in, once."""
    return list(dict.fromkeys(case for each in MISTAKES.values() for case in each.cases))


@contextmanager
def put_in(name: str) -> Iterator[None]:
    """Inside, the engine computes this wrong formula."""
    jax.clear_caches()  # what was traced before holds the right one
    try:
        with MISTAKES[name].put_in():
            yield
    finally:
        jax.clear_caches()


def judge(case: Case) -> Verdict:
    """The verdict of the error bounds on a case, traced anew."""
    return bounds(rules.of_case(case), tuple(case.problem()))


def caught_by(name: str) -> str | None:
    """The first wrong intermediate in the first case that shows this mistake, None if none does."""
    with put_in(name):
        verdicts = (judge(case) for case in MISTAKES[name].cases)
        return next((verdict.first_wrong for verdict in verdicts if not verdict.ok), None)


def run(report: Report) -> None:
    """Put every wrong formula in; each must be caught, and the right ones must pass."""
    what = "formulas broken on purpose: failed is what was not caught"
    level = report.level("wrong formulas", what)
    with report.working("wrong formulas", len(MISTAKES) + 1) as advance:
        alarms = [str(case) for case in cases() if not judge(case).ok]
        level.judged(not alarms, failure=f"false alarm: {alarms}")
        advance("none")
        for name in MISTAKES:
            first = caught_by(name)
            level.judged(first is not None, failure=f"not caught: {name}")
            advance(name)
    level.note(f"{len(MISTAKES)} wrong formulas put in, and once none")
