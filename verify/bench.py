"""How a mutant is judged: killed, or shown to compute the same function, for a reason.

The judge of error bounds must kill it at some draw. A mutant that computes the same function can't
be killed. So each survivor is compared with the rule itself: in exact fractions if the rule is
exact, at 80 digits otherwise, on many draws, ties included. If it ever differs, the judge is blind
and the run fails. If it never does, it is equivalent, and it must belong to a class that
`verify.equivalence` lists with the reason; an unlisted one fails the run too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from verify.arithmetic import Arithmetic
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.numpy import Float64
from verify.arithmetic.rational import Rational
from verify.equivalence import EQUIVALENT as EQUIVALENT
from verify.equivalence import classify
from verify.interpreter import Hook, Program
from verify.judges import BOUNDS, within_bounds
from verify.mutants import Mutant, mutants, only_operand
from verify.rules import Rule, generator
from verify.vanishing import Place, Recording, Vanishing, differs

KILLING_KINDS = ("normal", "ties", "normal", "large", "ties", "normal")
EXACT_KINDS = ("ties", "beside", "normal", "large") * 7
FURTHER_KINDS = tuple(("ties", "beside", "normal") * (7 + 7 * number) for number in range(1, 7))
"""For those that are still unexplained: one element of many may rarely be near a kink."""
MANY_NUMBERS = 2000
"""Arguments that hold so many are thousands of examples."""
SEEDS_TRIED = 100
"""To find one whose draw is traced to the program that is mutated."""
DIGITS = 80
Draw = tuple[str, int]
"""A kind of numbers and a seed."""

UNLISTED = "unlisted"


class Outcome(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    killed: bool
    equivalent: str = ""
    """The name of its class; "unlisted" for one that no class holds."""
    why: str = ""


class Bench:
    """A rule with what judging its mutants needs again and again: draws, and results at them."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.exact = Rational() if rule.exact else Multiprecision(DIGITS)
        self.unit = 0.0 if rule.exact else 10.0 ** (-DIGITS // 2)
        # What bounds can't judge is exact, and fractions judge it.
        self.judging = self.exact if "L4 bounds" in rule.omitted else BOUNDS
        self._drawn = functools.cache(lambda kind, seed: rule.draw(generator(seed), kind))
        self._right = functools.cache(
            lambda kind, seed: rule.programs(self._drawn(kind, seed))[1].run(
                self._drawn(kind, seed), self.judging
            )
        )
        self._recorded = functools.cache(
            lambda kind, seed: Recording(
                self._program((kind, seed)), self._drawn(kind, seed), self.exact, self.unit
            )
        )
        self._of_program: dict[tuple[int, tuple[str, ...]], list[Draw]] = {}
        self._finer: Multiprecision | None = None
        self._free: dict[tuple[int, Place], bool] = {}

    def programs(self) -> list[Program]:
        """The programs that the rule's draws are traced to: one for each kind of target."""
        every = [self._program((kind, seed)) for seed, kind in enumerate(KILLING_KINDS)]
        return list({id(program): program for program in every}.values())

    def mutants(self) -> list[Mutant]:
        """Every mutant of the rule."""
        return [
            mutant
            for program in self.programs()
            for mutant in mutants(program, self._drawn(*self.draws(program)[0]))
        ]

    def draws(self, program: Program, kinds: tuple[str, ...] = KILLING_KINDS) -> list[Draw]:
        """Draws of these kinds that are traced to this program."""
        key = (id(program), kinds)
        if key not in self._of_program:
            found = []
            for number, kind in enumerate(kinds):
                seeds = range(number, SEEDS_TRIED * len(kinds), len(kinds))
                fits = (seed for seed in seeds if self._program((kind, seed)) is program)
                found += [(kind, seed) for seed in itertools.islice(fits, 1)]
            self._of_program[key] = found
        return self._of_program[key]

    def _exact_draws(self, program: Program, kinds: tuple[str, ...]) -> list[Draw]:
        """The last 28 of these draws; 4 of thousands of examples, each of which is a draw."""
        drawn = jax.tree.leaves(self._drawn(*self.draws(program)[0]))
        small = sum(map(np.size, drawn)) < MANY_NUMBERS
        return self.draws(program, kinds)[-len(EXACT_KINDS) if small else -4 :]

    def args(self, mutant: Mutant) -> Any:
        """The arguments at which the mutant is judged first."""
        return self._drawn(*self.draws(mutant.program)[0])

    def judge(self, mutant: Mutant) -> Outcome:
        """Kill the mutant, or find that it computes the same function."""
        if any(self._kills(mutant, draw) for draw in self.draws(mutant.program)):
            return Outcome(mutant, True)
        survivor = _Survivor(self, mutant, [], [])
        name = why = ""
        for kinds in (EXACT_KINDS, *FURTHER_KINDS):
            different = survivor.look(self._exact_draws(mutant.program, kinds))
            if any(self._kills(mutant, draw) for draw in different):
                return Outcome(mutant, True)
            if different:
                why = f"differs in exact arithmetic at {different[0]}: the judge is blind"
                return Outcome(mutant, False, why=why)
            name, why = classify(survivor, survivor.vanishings)
            if name:
                return Outcome(mutant, False, equivalent=name)
        return Outcome(mutant, False, UNLISTED, f"no class lists it: {why}")

    def false_alarms(self) -> list[bool]:
        """For each draw, whether the rule itself is taken for wrong there."""
        return [
            not self._agree(program.run(self._drawn(*draw), self.judging), draw)
            for program in self.programs()
            for draw in (*self.draws(program), *self.draws(program, EXACT_KINDS)[:5])
        ]

    def is_free(self, program: Program, place: Place) -> bool:
        """Whether a comparison or selection may turn out either way: no result changes at all."""
        key = (id(program), place)
        if key not in self._free:
            self._free[key] = all(
                self._is_free_at(self._recorded(*draw), place)
                for draw in self._exact_draws(program, EXACT_KINDS)
            )
        return self._free[key]

    def _is_free_at(self, recording: Recording, place: Place) -> bool:
        def again(arithmetic: Arithmetic) -> Any:
            hook = _at(place, _turned)
            return recording.program.run(recording.args, arithmetic, hook)

        return self._same(recording, recording.follow({place: _turned})[0], again)

    def shows_beyond(self, program: Program, place: Place, change: Any) -> bool:
        """Whether results are infinite, finite or something else at arguments out of range.

        Args:
            program: what is changed.
            place: where.
            change: change(arithmetic, equation, inputs, run) -> outputs.
        """
        arithmetic = Float64()
        hook = _at(place, functools.partial(change, arithmetic))
        draws = self.draws(program)

        def differs_at(args: Any) -> bool:
            with np.errstate(all="ignore"):
                right = program.run(args, arithmetic)
                try:
                    results = program.run(args, arithmetic, hook)
                except (ArithmeticError, ValueError, TypeError):
                    return True
                return any(_grossly_differ(results[name], right[name]) for name in right)

        for number, size in enumerate(SIZES):
            args = self._drawn(*draws[number % len(draws)])
            if differs_at(jax.tree.map(functools.partial(_scaled_leaf, size), args)):
                return False  # this isn't out of range: the draws should have reached it
        return any(
            differs_at(_hostile(generator(seed), self._drawn(*draws[seed % len(draws)])))
            for seed in range(HOSTILE_DRAWS)
        )

    def _program(self, draw: Draw) -> Program:
        return self.rule.programs(self._drawn(*draw))[0]

    def _kills(self, mutant: Mutant, draw: Draw) -> bool:
        try:
            results = mutant.run(mutant.program, self._drawn(*draw), self.judging)
        except (ArithmeticError, ValueError, TypeError):
            return True  # it doesn't even run
        return not self._agree(results, draw)

    def _agree(self, results: Any, draw: Draw) -> bool:
        right = self._right(*draw)
        if self.judging is BOUNDS:
            return within_bounds(results, right).ok
        with np.errstate(invalid="ignore"):  # of NaN among objects, by NumPy 2.5
            return all(np.array_equal(results[name], right[name]) for name in right)

    def _follow(self, mutant: Mutant, recording: Recording) -> tuple[bool, list[Vanishing]]:
        """Whether it computes something else in exact arithmetic, and where its change vanishes."""
        try:
            change = functools.partial(mutant.change, self.exact)
            results, vanishings = recording.follow({mutant.place: change})
        except (ArithmeticError, ValueError, TypeError):
            return True, []

        def again(arithmetic: Arithmetic) -> Any:
            return mutant.run(recording.program, recording.args, arithmetic)

        return not self._same(recording, results, again), vanishings

    def _same(self, recording: Recording, results: Any, again: Callable[..., Any]) -> bool:
        """Equal, or at 80 digits equal but for rounding.

        Rounding is what is below 40 digits, or shrinks by 40 decades at 160 digits: where terms
        cancel, much less than they are may be all that is left.
        """
        apart, size = _apart(results, recording.results)
        if _within(apart, size, self.unit):
            return True
        if not self.unit or not all(map(math.isfinite, apart.values())):
            return False
        if self._finer is None:
            self._finer = Multiprecision(2 * DIGITS)
        program, args = recording.program, recording.args
        finer, _ = _apart(again(self._finer), program.run(args, self._finer))
        return all(finer[name] <= apart[name] * self.unit for name in apart)


def _within(apart: dict[str, Any], size: dict[str, Any], unit: float) -> bool:
    """Whether every result is as far apart as this share of its size, and not infinitely."""
    return all(math.isfinite(apart[name]) and apart[name] <= size[name] * unit for name in apart)


def _apart(ours: Any, theirs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """For each result, how far apart two runs are, and how large the second is."""
    apart, size = {}, {}
    for name, each in theirs.items():
        if np.shape(ours[name]) != np.shape(each):
            apart[name], size[name] = math.inf, 0
            continue
        where = differs(ours[name], each, 0)
        pairs = zip(np.asarray(ours[name])[where], np.asarray(each)[where], strict=True)
        found = [abs(a - b) for a, b in pairs]
        apart[name] = max((math.inf if a != a else a for a in found), default=0)
        size[name] = max((abs(a) for a in np.ravel(each)), default=0) if found else 0
    return apart, size


class _Survivor(NamedTuple):
    """What `verify.equivalence` wants to know of a mutant."""

    bench: Bench
    mutant: Mutant
    recordings: list[Recording]
    vanishings: list[Vanishing]

    def look(self, draws: list[Draw]) -> list[Draw]:
        """Follow its change at these draws; those at which a result differs."""
        different = []
        for draw in draws:
            recording = self.bench._recorded(*draw)
            wrong, found = self.bench._follow(self.mutant, recording)
            self.recordings.append(recording)
            self.vanishings.extend(found)
            if wrong:
                different.append(draw)
            elif _is_certain(self.mutant, found):
                break  # no draw can make a difference
        return different

    def is_free(self, place: Place) -> bool:
        return self.bench.is_free(self.mutant.program, place)

    def shows_beyond(self) -> bool:
        mutant, program = self.mutant, self.mutant.program
        return self.bench.shows_beyond(program, mutant.place, mutant.change)

    def is_same_turned(self, place: Place) -> bool:
        mutant, bench = self.mutant, self.bench
        changes = {mutant.place: functools.partial(mutant.change, bench.exact), place: _turned}

        def same(recording: Recording) -> bool:
            apart, size = _apart(recording.follow(changes)[0], recording.results)
            return _within(apart, size, bench.unit)

        return all(map(same, self.recordings))

    def bounds_a_guard(self) -> bool:
        mutant, program = self.mutant, self.mutant.program
        return all(
            name in ("max", "min")
            and self.bench.shows_beyond(program, place, only_operand(mutant.fixed[place][0]))
            for name, place in mutant.users
        )


def _is_certain(mutant: Mutant, vanishings: list[Vanishing]) -> bool:
    """Whether one draw proves it: what is changed depends on no argument, and stays the same."""
    return not mutant.depends and [each.place for each in vanishings] == [mutant.place]


def _grossly_differ(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether one is finite where the other isn't, or half as large, or of the other sign."""
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return True
    if ours.dtype == theirs.dtype == bool:  # gradients of integers, which are none
        return not np.array_equal(ours, theirs)
    ours, theirs = ours[np.isfinite(ours)], theirs[np.isfinite(theirs)]
    return bool((np.abs(ours - theirs) > np.maximum(np.abs(ours), np.abs(theirs)) / 2).any())


def _at(place: Place, change: Callable[..., list[Any]]) -> Hook:
    """A hook that changes one equation."""
    return lambda here, equation, inputs, run: (
        change(equation, inputs, run) if here == place else run(*inputs)
    )


def _turned(equation: Any, inputs: list[Any], run: Any) -> list[Any]:
    """A comparison with the other outcome, a selection with the other case."""
    if equation.primitive.name == "select_n":
        return run(inputs[0], *reversed(inputs[1:]))
    return [~np.asarray(value) for value in run(*inputs)]


HOSTILE_DRAWS = 300
SIZES = tuple(10.0**power for power in (1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5, -6))
"""How much larger or smaller than drawn arguments may be and not be out of range."""
HOSTILE = (np.inf, -np.inf, np.nan, 1e300, 1e-300)


def _scaled_leaf(size: float, leaf: Any) -> np.ndarray:
    return np.asarray(leaf) * size if np.asarray(leaf).dtype.kind == "f" else np.asarray(leaf)


def _hostile(rng: np.random.Generator, args: Any) -> Any:
    """Arguments with something in them that no draw has: infinities, zero vectors, no classes."""
    leaves, structure = jax.tree.flatten(args)

    def spoilt(leaf: Any) -> np.ndarray:
        leaf = np.array(leaf)
        if rng.random() > 1.5 / len(leaves):
            return leaf  # if all were spoilt, nothing but NaN would be left to see
        if leaf.dtype.kind in "iu":
            return np.where(
                rng.random(leaf.shape) < 0.5, rng.integers(-3, max(9, leaf.max() + 3)), leaf
            )
        if leaf.dtype.kind != "f" or not leaf.ndim:
            return leaf
        how = rng.integers(4)
        if how == 0:
            leaf[rng.random(leaf.shape) < 0.2] = rng.choice(HOSTILE)
        if how == 1:
            rows = rng.random(len(leaf)) < 0.5
            leaf[rows] = rng.choice([0.0, *HOSTILE])
        if how == 2:
            leaf *= rng.choice([1e300, 1e150, 1e-170, 1e-300])
        return leaf

    return jax.tree.unflatten(structure, [spoilt(leaf) for leaf in leaves])
