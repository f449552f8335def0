"""L7: rules broken on purpose, one equation at a time, to judge the judges.

A mutant is a rule's traced program with one equation changed: its result zeroed, negated, doubled,
halved, off by 1e-2 ... 1e-5 of itself, one element off by 1%, the last row dropped, an operand
transposed or left out, an operator or a comparison exchanged, the cases of a selection swapped, an
index off by one, what is added to a place written over it, a sum made a mean or a maximum or taken
over another axis, the filter of a convolution reversed or with its channels exchanged, its padding
or a window off by one.
`verify.bench` judges them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from verify.arithmetic import Arithmetic, is_floating
from verify.arithmetic.indexing import scatter
from verify.equivalence import EQUIVALENT as EQUIVALENT
from verify.interpreter import CALLS, INNER, Program, scan_parts
from verify.judges import BOUNDS
from verify.vanishing import Place

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
    """The last of those that aren't 0: rows of padding may be dropped."""
    mask, rows = np.ones(value.shape), np.flatnonzero(value.reshape(len(value), -1).any(1))
    mask[rows[-1] if len(rows) else -1] = 0
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


def only_operand(index: int) -> Change:
    """The equation left out: one of its operands in place of its result."""
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


def _overwritten(arithmetic: Arithmetic, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
    """The last update of an element in place of their sum."""
    operand, places, updates = inputs
    places = arithmetic.places(places)
    return [arithmetic.move(lambda a, b: scatter(equation.params, a, b, places), operand, updates)]


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
                yield f"only operand {index}", only_operand(index)
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
    if name in ("gather", "scatter", "scatter-add") and 0 not in shapes[1]:
        yield "indices off by one", _operand(1, lambda indices: indices + 1)
    if name == "scatter-add":
        yield "made a scatter", _overwritten
    if name == "rev" and any(out.shape[axis] > 1 for axis in equation.params["dimensions"]):
        yield "dropped", only_operand(0)
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
