"""Where a change to a program vanishes: the equations that swallow it, and what they do to it.

A mutant that computes the same function changes some values, yet no result. So on every way from
the changed equation to a result there is an equation that is given something else and returns the
same: a selection of the other case, a product with 0, a square of what only changed sign. These
equations, and the values in them, are the evidence for why the mutant is equivalent.

To find them, the program runs once in exact arithmetic and its values are kept. The mutant then
computes only what depends on the change: so many draws are cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from verify.arithmetic import Arithmetic
from verify.interpreter import INNER, Program

Place = tuple[int, ...]
Change = Callable[[Any, list[Any], Callable[..., list[Any]]], list[Any]]


class Step(NamedTuple):
    """One equation as it was computed."""

    inputs: list[Any]
    outputs: list[Any]


class Vanishing(NamedTuple):
    """An equation that was given something else and returned the same."""

    place: Place
    equation: Any
    before: list[Any]
    after: list[Any]
    """Its inputs in the program and in the mutant."""
    outputs: list[Any]


class Recording:
    """A program's run in exact arithmetic, with every value.

    Args:
        program: what is run.
        args: what it is run at.
        arithmetic: an exact one.
        unit: relative difference that passes for rounding, 0 where there is none.
    """

    def __init__(self, program: Program, args: Any, arithmetic: Arithmetic, unit: float) -> None:
        self.program, self.args, self.arithmetic, self.unit = program, args, arithmetic, unit
        self.steps: dict[tuple[Place, int], Step] = {}
        """By place, and by how often it was passed before: loops pass again."""
        self.inside: dict[tuple[Place, int], Counter[Place]] = {}
        """How often what is inside an equation has been passed when it is done."""
        passed: Counter[Place] = Counter()

        def hook(place: Place, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
            outputs = run(*inputs)
            self.steps[place, passed[place]] = Step(list(inputs), list(outputs))
            if equation.primitive.name in INNER:
                inside = {each: n for each, n in passed.items() if each[: len(place)] == place}
                self.inside[place, passed[place]] = Counter(inside)
            passed[place] += 1
            return outputs

        with np.errstate(all="ignore"):
            self.results = program.run(args, arithmetic, hook)

    def at(self, place: Place) -> list[Step]:
        """The equation's runs: one, or one for each time round a loop."""
        return [step for (where, _), step in self.steps.items() if where == place]

    def follow(self, changes: Mapping[Place, Change]) -> tuple[Any, list[Vanishing]]:
        """The results with equations changed, and where the changes vanish.

        Args:
            changes: change(equation, inputs, run) -> outputs, by the equation's place.
        """
        passed: Counter[Place] = Counter()
        found: list[Vanishing] = []

        def hook(place: Place, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
            known = self.steps.get((place, passed[place]))
            inside = self.inside.get((place, passed[place]), Counter())
            passed[place] += 1
            change = changes.get(place)
            if known is None or len(known.inputs) != len(inputs):
                return change(equation, inputs, run) if change else run(*inputs)
            pairs = list(zip(inputs, known.inputs, strict=True))
            same = all(self.same(*pair) for pair in pairs)
            around = any(changed[: len(place)] == place for changed in changes)
            if same and not around:
                passed.update(inside - passed)  # it need not run, so that nothing in it is passed
                return known.outputs
            made = change(equation, inputs, run) if change else run(*inputs)
            outputs = [self.settled(*pair) for pair in zip(made, known.outputs, strict=True)]
            leaf = equation.primitive.name not in INNER
            if leaf and all(a is b for a, b in zip(outputs, known.outputs, strict=True)):
                found.append(Vanishing(place, equation, known.inputs, inputs, outputs))
            return outputs

        with np.errstate(all="ignore"):
            results = self.program.run(self.args, self.arithmetic, hook)
        return results, found

    def same(self, ours: Any, theirs: Any) -> bool:
        """Whether two values are the same everywhere."""
        return ours is theirs or not differs(ours, theirs, self.unit).any()

    def settled(self, ours: Any, theirs: Any) -> Any:
        """A value of the mutant, with the program's own elements wherever they are the same."""
        if ours is theirs:
            return theirs
        if np.shape(ours) != np.shape(theirs):
            return ours
        apart = differs(ours, theirs, self.unit)
        if not apart.any():
            return theirs
        return np.where(apart, ours, theirs)


def differs(ours: Any, theirs: Any, unit: float) -> np.ndarray:
    """Where two values differ, by more than this share of the larger; NaN is NaN."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    if ours.shape != theirs.shape:
        return np.array(True)
    with np.errstate(invalid="ignore"):  # of NaN among objects, by NumPy 2.5
        apart = np.array((ours != theirs) & ~((ours != ours) & (theirs != theirs)), bool)
    if unit and ours.dtype == object:
        for index in np.argwhere(apart):
            a, b = ours[tuple(index)], theirs[tuple(index)]
            size = max(abs(a), abs(b))  # a number is as far from infinity as can be
            apart[tuple(index)] = size - size != 0 or not abs(a - b) <= unit * size
    return apart
