"""L7: rules broken on purpose, one equation at a time, to judge the judges.

A mutant is a rule's traced program with one equation changed: its result zeroed, negated, doubled,
halved, off by 1e-2 ... 1e-5 of itself, one element off by 1%, the last row dropped, an operand
transposed or left out, an operator or a comparison exchanged, the cases of a selection swapped, an
index off by one, a sum made a mean or a maximum or taken over another axis. The judge of error
bounds must kill it at some draw.

A mutant that computes the same function can't be killed. So each survivor is compared with the rule
itself: in exact fractions if the rule is exact, at 80 digits otherwise, on many draws, ties
included. If it ever differs, the judge is blind and the run fails. If it never does, it is
equivalent, and it must belong to a class that is listed here with the reason; an unlisted one fails
the run too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from verify.arithmetic import Arithmetic, is_floating
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.rational import Rational
from verify.equivalence import EQUIVALENT
from verify.interpreter import CALLS, Program
from verify.judges import BOUNDS, within_bounds
from verify.rules import Rule, generator

KILLING_DRAWS = (
    ("normal", 0),
    ("ties", 1),
    ("normal", 2),
    ("large", 3),
    ("ties", 4),
    ("normal", 5),
)
EQUIVALENCE_DRAWS = (("ties", 6), ("normal", 7), ("large", 8), ("ties", 9), ("normal", 10))
FURTHER_DRAWS = tuple((kind, seed) for seed in range(20, 35) for kind in ("ties", "normal"))
DIGITS = 80

Change = Callable[[Arithmetic, Any, list[Any], Callable[..., list[Any]]], list[Any]]


@dataclass(frozen=True)
class Mutant:
    """One equation of a program, changed."""

    place: tuple[int, ...]
    primitive: str
    kind: str
    """What was done to it: "scaled by 1.01", "operand transposed", ..."""
    change: Change
    function: str
    """The function of the library that the equation came from."""
    consumers: frozenset[str]
    """The primitives that use its result."""
    is_zero: bool = False
    """Whether its result was zero everywhere."""

    def __str__(self) -> str:
        where = ".".join(map(str, self.place))
        return f"{self.primitive} {self.kind}, equation {where} from {self.function}"

    def run(self, program: Program, args: Any, arithmetic: Arithmetic) -> Any:
        """The program's results with this equation changed."""

        def hook(place: Any, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
            if place != self.place:
                return run(*inputs)
            return self.change(arithmetic, equation, inputs, run)

        with np.errstate(all="ignore"):  # a mutant may overflow
            return program.run(args, arithmetic, hook)


# --- how an equation is changed -------------------------------------------------------------


def _each_output(function: Callable[[Arithmetic, Any], Any]) -> Change:
    return lambda arithmetic, equation, inputs, run: [
        function(arithmetic, value) for value in run(*inputs)
    ]


def _scaled(factor: float) -> Change:
    def scale(arithmetic: Arithmetic, value: Any) -> Any:
        return arithmetic.primitives["mul"]({}, value, arithmetic.lift(np.array(float(factor))))

    return _each_output(scale)


def _zeroed(arithmetic: Arithmetic, value: Any) -> Any:
    return arithmetic.lift(np.zeros(arithmetic.lower(value).shape))


def _masked(mask: Callable[[tuple[int, ...]], np.ndarray]) -> Change:
    def change(arithmetic: Arithmetic, value: Any) -> Any:
        factors = arithmetic.lift(mask(arithmetic.lower(value).shape))
        return arithmetic.primitives["mul"]({}, value, factors)

    return _each_output(change)


def _all_but_last_row(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.ones(shape)
    mask[-1] = 0
    return mask


def _one_element(shape: tuple[int, ...]) -> np.ndarray:
    mask = np.ones(shape)
    mask.flat[mask.size // 2] = 1.01
    return mask


def _operand(index: int, change: Callable[[Any], Any]) -> Change:
    def transposed(arithmetic: Arithmetic, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
        inputs = list(inputs)
        inputs[index] = arithmetic.move(change, inputs[index])
        return run(*inputs)

    return transposed


def _only_operand(index: int) -> Change:
    return lambda arithmetic, equation, inputs, run: [inputs[index]]


def _exchanged(primitive: str) -> Change:
    return lambda arithmetic, equation, inputs, run: [
        arithmetic.primitives[primitive](equation.params, *inputs)
    ]


def _swapped(arithmetic: Arithmetic, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
    return run(inputs[0], *reversed(inputs[1:]))


def _shifted(arithmetic: Arithmetic, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
    return [value + 1 for value in run(*inputs)]


def _rolled(arithmetic: Arithmetic, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
    axis = int(np.argmax(np.array(equation.outvars[0].aval.shape)))
    return [arithmetic.move(lambda a: np.roll(a, 1, axis), value) for value in run(*inputs)]


def _reduced(primitive: str, axes: tuple[int, ...] | None = None, mean: bool = False) -> Change:
    def change(arithmetic: Arithmetic, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
        used = equation.params["axes"] if axes is None else axes
        (value,) = [arithmetic.primitives[primitive]({"axes": used}, *inputs)]
        if mean:
            count = np.prod([equation.invars[0].aval.shape[axis] for axis in used])
            value = arithmetic.primitives["div"]({}, value, arithmetic.lift(np.array(float(count))))
        return [value]

    return change


SWAPS = {
    "add": "sub",
    "sub": "add",
    "add_any": "sub",
    "mul": "add",
    "div": "mul",
    "max": "min",
    "min": "max",
}
COMPARISONS = {
    "gt": ("ge", "lt"),
    "ge": ("gt", "le"),
    "lt": ("le", "gt"),
    "le": ("lt", "ge"),
    "eq": ("ne",),
    "ne": ("eq",),
}


def changes(equation: Any) -> Iterator[tuple[str, Change]]:
    """(kind, change) for everything that can be done to an equation."""
    name = equation.primitive.name
    shapes = [getattr(atom.aval, "shape", ()) for atom in equation.invars]
    out = equation.outvars[0].aval
    if is_floating(out):
        yield "zeroed", _each_output(_zeroed)
        for factor in (-1, 2, 0.5, 1.01, 1.001, 1.0001, 1.00001):
            yield f"scaled by {factor:g}", _scaled(factor)
        if out.shape and out.shape[0] > 1:
            yield "last row dropped", _masked(_all_but_last_row)
        if int(np.prod(out.shape)) > 1:
            yield "one element off by 1%", _masked(_one_element)
    if name == "dot_general":
        for index, shape in enumerate(shapes):
            if len(shape) >= 2 and shape[-1] == shape[-2] > 1:
                yield (
                    f"operand {index} transposed",
                    _operand(index, lambda a: np.swapaxes(a, -1, -2)),
                )
    if name in SWAPS and is_floating(out):
        for index in (0, 1):
            if shapes[index] == out.shape and is_floating(equation.invars[index].aval):
                yield f"only operand {index}", _only_operand(index)
        yield f"made {SWAPS[name]}", _exchanged(SWAPS[name])
    if name in COMPARISONS:
        integers = not is_floating(equation.invars[0].aval)
        for other in COMPARISONS[name]:
            yield f"made {other}", _compared(other) if integers else _exchanged(other)
    if name == "select_n" and len(shapes) == 3:
        yield "cases swapped", _swapped
    if name == "iota":
        yield "off by one", _shifted
    if (
        name in ("slice", "dynamic_slice", "gather", "concatenate")
        and max(out.shape, default=1) > 1
    ):
        yield "off by one", _rolled
    if name == "reduce_sum":
        axes = equation.params["axes"]
        yield "made a mean", _reduced("reduce_sum", mean=True)
        if axes:
            yield "made a maximum", _reduced("reduce_max")
        for axis in range(len(shapes[0])):
            rest = tuple(size for other, size in enumerate(shapes[0]) if other != axis)
            if len(axes) == 1 and axis != axes[0] and rest == out.shape:
                yield f"over axis {axis}", _reduced("reduce_sum", (axis,))


def _compared(primitive: str) -> Change:
    from verify.arithmetic.integers import INTEGERS

    return lambda arithmetic, equation, inputs, run: [INTEGERS[primitive]({}, *inputs)]


def mutants(program: Program, args: Any) -> list[Mutant]:
    """Every mutant of every equation that a result depends on."""
    seen: dict[tuple[int, ...], Any] = {}
    zero: dict[tuple[int, ...], bool] = {}
    origins: dict[tuple[int, ...], str] = {}

    def origin(place: tuple[int, ...]) -> str:
        """Where the equation comes from, or the call around it: jnp.where knows not who called."""
        while place and not origins.get(place):
            place = place[:-1]
        return origins.get(place, "")

    def record(place: Any, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
        outputs = run(*inputs)
        origins[place] = _origin(equation)
        if equation.primitive.name not in CALLS:
            seen[place] = equation
            zero[place] = not np.any(BOUNDS.lower(outputs[0]))
        return outputs

    program.run(args, BOUNDS, record)
    used = _consumers(program)
    return [
        Mutant(
            place,
            equation.primitive.name,
            kind,
            change,
            origin(place),
            used[place],
            zero[place],
        )
        for place, equation in seen.items()
        if place in used
        for kind, change in changes(equation)
    ]


def _consumers(program: Program) -> dict[tuple[int, ...], frozenset[str]]:
    """What uses each equation's result; equations that no result depends on are left out."""
    found: dict[tuple[int, ...], frozenset[str]] = {}

    def visit(jaxpr: Any, place: tuple[int, ...], out_users: list[set[str]]) -> list[set[str]]:
        users: dict[Any, set[str]] = {}
        for variable, names in zip(jaxpr.outvars, out_users, strict=True):
            if hasattr(variable, "count") or not hasattr(variable, "val"):
                users.setdefault(variable, set()).update(names)
        for index in reversed(range(len(jaxpr.eqns))):
            equation = jaxpr.eqns[index]
            here = (*place, index)
            own = [users.get(variable, set()) for variable in equation.outvars]
            if not any(own):
                continue  # dead: no result depends on it
            name = equation.primitive.name
            if name in CALLS:
                inner = equation.params[CALLS[name]]
                inputs = visit(getattr(inner, "jaxpr", inner), here, own)
            else:
                found[here] = frozenset().union(*own)
                inputs = [{name}] * len(equation.invars)
            for atom, names in zip(equation.invars, inputs, strict=True):
                if not hasattr(atom, "val"):
                    users.setdefault(atom, set()).update(names)
        return [users.get(variable, set()) for variable in jaxpr.invars]

    jaxpr = program.jaxpr.jaxpr
    visit(jaxpr, (), [{"result"}] * len(jaxpr.outvars))
    return found


def _origin(equation: Any) -> str:
    """The innermost function of manual_bp on the equation's stack, or of whoever wrote it."""
    traceback = equation.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    for frame in frames:
        if "manual_bp" in frame.file_name.replace("\\", "/").split("/"):
            return frame.function_name.rpartition(".")[2]
    return ""


# --- how a mutant is judged ------------------------------------------------------------------


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
        # What bounds can't judge is exact, and fractions judge it.
        self.judging = self.exact if "L4 bounds" in rule.omitted else BOUNDS
        self._drawn = functools.cache(lambda kind, seed: rule.draw(generator(seed), kind))
        self._autodiff = functools.cache(
            lambda kind, seed: self._programs(kind, seed)[1].run(
                self._drawn(kind, seed), self.judging
            )
        )
        self._exactly = functools.cache(
            lambda kind, seed: self._programs(kind, seed)[0].run(
                self._drawn(kind, seed), self.exact
            )
        )

    def mutants(self) -> list[Mutant]:
        """Every mutant of the rule."""
        args = self._drawn(*KILLING_DRAWS[0])
        return mutants(self.rule.programs(args)[0], args)

    def judge(self, mutant: Mutant) -> Outcome:
        """Kill the mutant, or find that it computes the same function."""
        for draw in KILLING_DRAWS:
            if self._kills(mutant, draw):
                return Outcome(mutant, True)
        different = [draw for draw in EQUIVALENCE_DRAWS if self._differs(mutant, draw)]
        if any(self._kills(mutant, draw) for draw in different):
            return Outcome(mutant, True)
        if different:
            return Outcome(mutant, False, why="differs in exact arithmetic: the judge is blind")
        for name, each in EQUIVALENT.items():
            if each.holds(mutant):
                return Outcome(mutant, False, equivalent=name)
        # It may be one that differs at few points only: look at more before it is called unlisted.
        different = [draw for draw in FURTHER_DRAWS if self._differs(mutant, draw)]
        if any(self._kills(mutant, draw) for draw in different):
            return Outcome(mutant, True)
        if different:
            return Outcome(mutant, False, why="differs in exact arithmetic: the judge is blind")
        return Outcome(mutant, False, equivalent="unlisted")

    def _programs(self, kind: str, seed: int) -> tuple[Program, Program]:
        return self.rule.programs(self._drawn(kind, seed))

    def _kills(self, mutant: Mutant, draw: tuple[str, int]) -> bool:
        manual, _ = self._programs(*draw)
        if not _same_places(manual, mutant):
            return False  # another kind of target, traced to another program
        try:
            results = mutant.run(manual, self._drawn(*draw), self.judging)
        except (ArithmeticError, ValueError, TypeError):
            return True  # it doesn't even run
        return not self._agree(results, draw)

    def _agree(self, results: Any, draw: tuple[str, int]) -> bool:
        right = self._autodiff(*draw)
        if self.judging is BOUNDS:
            return within_bounds(results, right).ok
        return all(np.array_equal(results[name], right[name]) for name in right)

    def false_alarms(self) -> list[tuple[str, int]]:
        """The draws at which the rule itself is taken for wrong."""
        return [
            draw
            for draw in (*KILLING_DRAWS, *EQUIVALENCE_DRAWS)
            if not self._agree(self._programs(*draw)[0].run(self._drawn(*draw), self.judging), draw)
        ]

    def _differs(self, mutant: Mutant, draw: tuple[str, int]) -> bool:
        """Whether it computes something else, in exact arithmetic."""
        manual, _ = self._programs(*draw)
        if not _same_places(manual, mutant):
            return False
        try:
            results = mutant.run(manual, self._drawn(*draw), self.exact)
        except (ArithmeticError, ValueError, TypeError):
            return True
        for name, each in self._exactly(*draw).items():
            ours, theirs = np.ravel(results[name]), np.ravel(each)
            size = max((abs(value) for value in theirs), default=0)
            apart = max((abs(a - b) for a, b in zip(ours, theirs, strict=True)), default=0)
            unit = 0 if self.rule.exact else size * 10.0 ** (-DIGITS // 2)
            if not apart <= unit:
                return True
        return False


def _same_places(program: Program, mutant: Mutant) -> bool:
    """Whether the equation at the mutant's place is the one that was changed."""
    jaxpr = program.jaxpr.jaxpr
    for depth, index in enumerate(mutant.place):
        if index >= len(jaxpr.eqns):
            return False
        equation = jaxpr.eqns[index]
        if depth == len(mutant.place) - 1:
            return equation.primitive.name == mutant.primitive
        inner = equation.params.get(CALLS.get(equation.primitive.name, ""), None)
        if inner is None:
            return True  # inside control flow
        jaxpr = getattr(inner, "jaxpr", inner)
    return False
