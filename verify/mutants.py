"""L7: rules broken on purpose, one equation at a time, to judge the judges.

A mutant is a rule's traced program with one equation changed: its result zeroed, negated, doubled,
halved, off by 1e-2 ... 1e-5 of itself, one element off by 1%, the last row dropped, an operand
transposed or left out, an operator or a comparison exchanged, the cases of a selection swapped, an
index off by one, a sum made a mean or a maximum or taken over another axis, the filter of a
convolution reversed or with its channels exchanged, its padding or a window off by one. The judge
of error bounds must kill it at some draw.

A mutant that computes the same function can't be killed. So each survivor is compared with the rule
itself: in exact fractions if the rule is exact, at 80 digits otherwise, on many draws, ties
included. If it ever differs, the judge is blind and the run fails. If it never does, it is
equivalent, and it must belong to a class that is listed here with the reason; an unlisted one fails
the run too.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from verify.arithmetic import Arithmetic, is_floating
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.numpy import Float64
from verify.arithmetic.rational import Rational
from verify.equivalence import EQUIVALENT as EQUIVALENT
from verify.equivalence import classify
from verify.interpreter import CALLS, INNER, Hook, Program, scan_parts
from verify.judges import BOUNDS, within_bounds
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
    users: frozenset[tuple[str, Place]]
    """The primitives that use its result, and where; ("result", ()) where it is returned."""
    depends: bool
    """Whether it depends on an argument; else it is a constant of the program."""
    program: Program = field(repr=False, compare=False)
    """What it is a mutant of: other targets may be traced to another program."""
    fixed: dict[Place, tuple[bool, ...]] = field(repr=False, compare=False)
    """Which operands are constants of the program, for every equation."""
    users_of: dict[Place, frozenset[tuple[str, Place]]] = field(repr=False, compare=False)
    """The users of every equation's result."""

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


def _masked(mask: Callable[[np.ndarray], np.ndarray]) -> Change:
    def change(arithmetic: Arithmetic, value: Any) -> Any:
        factors = arithmetic.lift(mask(arithmetic.lower(value)))
        return arithmetic.primitives["mul"]({}, value, factors)

    return _each_output(change)


def _all_but_last_row(value: np.ndarray) -> np.ndarray:
    mask = np.ones(value.shape)
    mask[-1] = 0
    return mask


def _one_element(value: np.ndarray) -> np.ndarray:
    """The middle one of those that aren't 0: the zeros between spread errors have no 1%."""
    mask, places = np.ones(value.shape), np.flatnonzero(value)
    mask.flat[places[len(places) // 2] if len(places) else 0] = 1.01
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


def _of_convolution(params: Any, filter_shape: tuple[int, ...]) -> Iterator[tuple[str, Change]]:
    out, inner, *space = params["dimension_numbers"].rhs_spec
    if any(filter_shape[axis] > 1 for axis in space):
        yield "filter reversed in space", _operand(1, lambda w: np.flip(w, tuple(space)))
    if filter_shape[out] == filter_shape[inner] > 1:
        yield "filter's channels exchanged", _operand(1, lambda w: np.swapaxes(w, out, inner))
    shifted = tuple((low + 1, high - 1) for low, high in params["padding"])
    yield (
        "padding off by one",
        lambda arithmetic, equation, inputs, run: [
            arithmetic.primitives["conv_general_dilated"](
                {**equation.params, "padding": shifted}, *inputs
            )
        ],
    )


def _window_shifted(
    arithmetic: Arithmetic, equation: Any, inputs: list[Any], run: Any
) -> list[Any]:
    """Every window one place earlier along the axis where it is longest."""
    axis = int(np.argmax(equation.params["window_dimensions"]))
    padding = list(equation.params["padding"])
    padding[axis] = (padding[axis][0] + 1, padding[axis][1] - 1)
    params = {**equation.params, "padding": tuple(padding)}
    return [arithmetic.primitives[equation.primitive.name](params, *inputs)]


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
    if name == "conv_general_dilated":
        yield from _of_convolution(equation.params, shapes[1])
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
        name in ("slice", "dynamic_slice", "gather", "concatenate", "pad", "rev")
        and max(out.shape, default=1) > 1
    ):
        yield "off by one", _rolled
    if name == "rev" and any(out.shape[axis] > 1 for axis in equation.params["dimensions"]):
        yield "dropped", _only_operand(0)
    if name == "reduce_sum" and is_floating(out):
        axes = equation.params["axes"]
        yield "made a mean", _reduced("reduce_sum", mean=True)
        if axes:
            yield "made a maximum", _reduced("reduce_max")
        for axis in range(len(shapes[0])):
            rest = tuple(size for other, size in enumerate(shapes[0]) if other != axis)
            if len(axes) == 1 and axis != axes[0] and rest == out.shape:
                yield f"over axis {axis}", _reduced("reduce_sum", (axis,))
    if name.startswith("reduce_window_") and max(equation.params["window_dimensions"]) > 1:
        yield "window off by one", _window_shifted
        if name == "reduce_window_sum":
            yield "made a maximum", _exchanged("reduce_window_max")


def _compared(primitive: str) -> Change:
    from verify.arithmetic.integers import INTEGERS

    return lambda arithmetic, equation, inputs, run: [INTEGERS[primitive]({}, *inputs)]


def mutants(program: Program, args: Any) -> list[Mutant]:
    """Every mutant of every equation that a result depends on."""
    seen: dict[Place, Any] = {}
    origins: dict[Place, str] = {}

    def origin(place: Place) -> str:
        """Where the equation comes from, or the call around it: jnp.where knows not who called."""
        while place and not origins.get(place):
            place = place[:-1]
        return origins.get(place, "")

    def record(place: Any, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
        origins[place] = _origin(equation)
        if equation.primitive.name not in INNER:
            seen[place] = equation
        return run(*inputs)

    program.run(args, BOUNDS, record)
    users, fixed = _users(program), _fixed(program)
    return [
        Mutant(
            place,
            equation.primitive.name,
            kind,
            change,
            origin(place),
            users[place],
            not (place in fixed and all(fixed[place])),
            program,
            fixed,
            users,
        )
        for place, equation in seen.items()
        if place in users
        for kind, change in changes(equation)
    ]


_Users = set[tuple[str, Place]]


def _users(program: Program) -> dict[Place, frozenset[tuple[str, Place]]]:
    """What uses each equation's result; equations that no result depends on are left out."""
    found: dict[Place, frozenset[tuple[str, Place]]] = {}

    def visit(jaxpr: Any, place: Place, out_users: list[_Users]) -> list[_Users]:
        users: dict[Any, _Users] = {}
        for variable, names in zip(jaxpr.outvars, out_users, strict=True):
            if not hasattr(variable, "val"):
                users.setdefault(variable, set()).update(names)
        for index in reversed(range(len(jaxpr.eqns))):
            equation = jaxpr.eqns[index]
            here = (*place, index)
            own = [users.get(variable, set()) for variable in equation.outvars]
            if not any(own):
                continue  # dead: no result depends on it
            name = equation.primitive.name
            if name == "scan":
                inputs = visit_scan(equation, here, own)
            elif name in CALLS:
                inner = equation.params[CALLS[name]]
                inputs = visit(getattr(inner, "jaxpr", inner), here, own)
            else:
                found[here] = frozenset().union(*own)
                inputs = [{(name, here)}] * len(equation.invars)
            for atom, names in zip(equation.invars, inputs, strict=True):
                if not hasattr(atom, "val"):
                    users.setdefault(atom, set()).update(names)
        return [users.get(variable, set()) for variable in jaxpr.invars]

    def visit_scan(equation: Any, here: Place, own: list[_Users]) -> list[_Users]:
        """What a step leaves for the next is used there: again, until no more users are found."""
        inner = equation.params["jaxpr"].jaxpr
        first, carried = scan_parts(equation)
        while True:
            inputs = visit(inner, here, own)
            carry = inputs[first : first + carried]
            wider = [old | new for old, new in zip(own, carry, strict=False)] + own[carried:]
            if wider == own:
                return inputs
            own = wider

    jaxpr = program.jaxpr.jaxpr
    visit(jaxpr, (), [{("result", ())}] * len(jaxpr.outvars))
    return found


def _fixed(program: Program) -> dict[Place, tuple[bool, ...]]:
    """Which operands of each equation are constants of the program: no argument reaches them.

    Nor does an argument that is multiplied by a constant 0.
    """
    found: dict[Place, tuple[bool, ...]] = {}
    zeros: set[Any] = set()

    def visit(closed: Any, place: Place, given: list[bool]) -> list[bool]:
        jaxpr = getattr(closed, "jaxpr", closed)
        known = dict.fromkeys(jaxpr.constvars, True) | dict(zip(jaxpr.invars, given, strict=True))

        def is_fixed(atom: Any) -> bool:
            return hasattr(atom, "val") or known[atom]

        def is_zero(atom: Any) -> bool:
            return not np.any(atom.val) if hasattr(atom, "val") else atom in zeros

        for index, equation in enumerate(jaxpr.eqns):
            here, name = (*place, index), equation.primitive.name
            operands = [is_fixed(atom) for atom in equation.invars]
            if name == "scan":
                outputs = visit_scan(equation, here, operands)
            elif name in CALLS:
                outputs = visit(equation.params[CALLS[name]], here, operands)
            else:
                found[here] = tuple(operands)
                zero = name == "mul" and any(map(is_zero, equation.invars))
                zero |= name in KEEP_ZEROS and all(map(is_zero, equation.invars))
                if zero:
                    zeros.update(equation.outvars)
                outputs = [zero or all(operands)] * len(equation.outvars)
            known.update(zip(equation.outvars, outputs, strict=True))
        return [is_fixed(atom) for atom in jaxpr.outvars]

    def visit_scan(equation: Any, here: Place, operands: list[bool]) -> list[bool]:
        """What is carried is a constant if it begins as one and every step leaves it one."""
        first, carried = scan_parts(equation)
        while True:
            outputs = visit(equation.params["jaxpr"], here, operands)
            carry = operands[first : first + carried]
            fewer = [a and b for a, b in zip(carry, outputs, strict=False)]
            if fewer == carry:
                return outputs
            operands = [*operands[:first], *fewer, *operands[first + carried :]]

    visit(program.jaxpr, (), [False] * len(program.jaxpr.jaxpr.invars))
    return found


KEEP_ZEROS = ("broadcast_in_dim", "convert_element_type", "reshape", "neg")


def _origin(equation: Any) -> str:
    """The innermost function of manual_bp on the equation's stack, or of whoever wrote it."""
    traceback = equation.source_info.traceback
    frames = [] if traceback is None else traceback.frames
    for frame in frames:
        if "manual_bp" in frame.file_name.replace("\\", "/").split("/"):
            return frame.function_name.rpartition(".")[2]
    return ""


# --- how a mutant is judged ------------------------------------------------------------------


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
            and self.bench.shows_beyond(program, place, _only_operand(mutant.fixed[place][0]))
            for name, place in mutant.users
        )


def _is_certain(mutant: Mutant, vanishings: list[Vanishing]) -> bool:
    """Whether one draw proves it: what is changed depends on no argument, and stays the same."""
    return not mutant.depends and [each.place for each in vanishings] == [mutant.place]


def _grossly_differ(ours: np.ndarray, theirs: np.ndarray) -> bool:
    """Whether one is finite where the other isn't, or half as large, or of the other sign."""
    if not np.array_equal(np.isfinite(ours), np.isfinite(theirs)):
        return True
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
            return np.where(rng.random(leaf.shape) < 0.5, rng.integers(-3, 9), leaf)
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
