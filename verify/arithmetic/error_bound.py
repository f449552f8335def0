"""float64 with a bound on its rounding error, and with choices that rounding may turn.

A value is a pair (v, e), the exact result within v ± e; `rounding` has the bounds of all that is
computed. What is left is what is chosen. Where bounds overlap, |a - b| ≤ e_a + e_b, the exact
numbers may compare either way:

    a < b          doubtful: a boolean beside whether the exact one may be the other
    where(c, a, b) the chosen v; e where c is in doubt: the farther one of a ± e_a, b ± e_b from v
    max(a, b)      e of the winner where it wins for sure, else max(e_a, e_b): a maximum moves by
                   no more than its arguments do; so does the n-th largest of many
    floor(a)       how far the step reaches over a ± e_a
    a window's     the error goes to the winner; a place that may have won may get it, and the
    winner         winner may not: both are bounded by all of it

Where no bound can follow, as where the order of other values, an index or a branch hangs on such a
comparison, an error says so. Ties of exact numbers, e_a = e_b = 0, are in no doubt.

So two programs for the same function agree within the sum of their bounds, always; and one that is
wrong by more than its rounding is seen.

Source  derived here; the bounds: Higham (2002), see `rounding`
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import numpy as np

from verify.arithmetic import Arithmetic, Primitive, indexing, is_floating, windows
from verify.arithmetic.integers import INTEGERS
from verify.arithmetic.numpy import PRIMITIVES as FLOAT64
from verify.arithmetic.rounding import LIBRARY_ULPS, UNIT, Bounded, gamma, is_exact, unit_roundoff
from verify.arithmetic.rounding import PRIMITIVES as ROUNDED


class Doubtful(NamedTuple):
    """A boolean; where doubt is true, the exact result may be the other one."""

    value: np.ndarray
    doubt: np.ndarray


def _overlap(a: Bounded, b: Bounded) -> np.ndarray:
    """Where rounding may turn a comparison.

    Infinities are what they are: no rounding leads to them or away from them.
    """
    reach = a.bound + b.bound
    finite = np.isfinite(a.value) & np.isfinite(b.value)
    apart = np.abs(np.where(finite, a.value, 0) - np.where(finite, b.value, 0))
    return finite & (apart <= reach) & (reach > 0)


def _compare(function: np.ufunc) -> Primitive:
    def primitive(params: Any, a: Bounded, b: Bounded) -> Any:
        if a is b:  # x != x asks whether x is NaN: whatever its rounding, x is itself
            return function(a.value, b.value)
        doubt = _overlap(a, b)
        value = function(a.value, b.value)
        return Doubtful(value, doubt) if doubt.any() else value

    return primitive


def _extreme(function: np.ufunc) -> Primitive:
    """max and min: the winner's bound where it wins for sure, the larger one elsewhere.

    One that wins everywhere is returned itself: autodiff asks whether the maximum is it.
    """

    def primitive(params: Any, a: Bounded, b: Bounded) -> Bounded:
        value = function(a.value, b.value)
        sure = np.abs(a.value - b.value) > a.bound + b.bound
        for each in (a, b):
            if sure.all() and each.value.shape == value.shape and (value == each.value).all():
                return each
        winner = np.where(value == a.value, a.bound, b.bound)
        return Bounded(value, np.where(sure, winner, np.maximum(a.bound, b.bound)))

    return primitive


def _reduce_extreme(function: Any) -> Primitive:
    def primitive(params: Any, a: Bounded) -> Bounded:
        axes = tuple(params["axes"])
        return Bounded(function(a.value, axis=axes), np.max(a.bound, axis=axes))

    return primitive


def _running_extreme(name: str) -> Primitive:
    return lambda params, a: Bounded(
        FLOAT64[name](params, a.value), FLOAT64["cummax"](params, a.bound)
    )


def _place_of_extreme(name: str) -> Primitive:
    """argmax and argmin: doubtful where another element's bound reaches the winner's."""

    def primitive(params: Any, a: Bounded) -> Any:
        (axis,) = params["axes"]
        place = FLOAT64[name](params, a.value)
        at = np.expand_dims(place, axis).astype(int)
        winner = Bounded(*(np.take_along_axis(each, at, axis) for each in a))
        places = np.indices(a.value.shape)[axis]
        doubt = (_overlap(winner, a) & (places != at)).any(axis)
        return Doubtful(place, doubt) if doubt.any() else place

    return primitive


def _sort(params: Any, *operands: Any) -> list[Any]:
    """The n-th largest moves by no more than the elements do; what else is sorted must be sure."""
    key, axis = operands[0], params["dimension"]
    if not isinstance(key, Bounded):
        raise NotImplementedError("sort by integers of floats: add it to error_bound")
    order = np.argsort(key.value, axis=axis, kind="stable")

    def moved(value: Any, places: np.ndarray = order) -> Any:
        if isinstance(value, Bounded):
            return Bounded(*(np.take_along_axis(each, places, axis) for each in value))
        return np.take_along_axis(value, places, axis)

    if len(operands) > 1:
        ahead = np.take(order, range(1, order.shape[axis]), axis)
        behind = np.take(order, range(order.shape[axis] - 1), axis)
        if _overlap(moved(key, behind), moved(key, ahead)).any():
            raise ArithmeticError("an order depends on a comparison that rounding may turn")
    widest = np.broadcast_to(key.bound.max(axis, keepdims=True, initial=0), key.bound.shape)
    return [Bounded(moved(key.value), widest), *map(moved, operands[1:])]


def _sign(params: Any, a: Bounded) -> Bounded:
    doubtful = (np.abs(a.value) <= a.bound) & (a.bound > 0)
    return Bounded(np.sign(a.value), np.where(doubtful, 2.0, 0.0))


def _step(function: Callable[[np.ndarray], np.ndarray]) -> Primitive:
    """A step function: exact where no step lies within the bound, else as far as they reach."""

    def primitive(params: Any, a: Bounded) -> Bounded:
        value = function(a.value)
        low, high = function(a.value - a.bound), function(a.value + a.bound)
        return Bounded(value, np.maximum(value - low, high - value))

    return primitive


def _sure(indices: Any) -> np.ndarray:
    if isinstance(indices, Doubtful):
        raise ArithmeticError("what is read or written depends on what rounding may turn")
    return np.asarray(indices)


def _scatter_add(params: Any, a: Bounded, indices: Any, updates: Bounded) -> Bounded:
    """To each element as many updates as meet there: a sum with the element, unless that is 0."""

    def added(to: np.ndarray, each: np.ndarray) -> np.ndarray:
        return indexing.scatter_add(params, to, indices, each)

    indices = _sure(indices)
    value, bound = added(a.value, updates.value), added(a.bound, updates.bound)
    size = added(np.abs(a.value) + a.bound, np.abs(updates.value) + updates.bound)
    summed = Bounded(*(np.concatenate([np.ravel(x), np.ravel(y)]) for x, y in zip(a, updates)))  # noqa: B905
    if is_exact(size, summed):
        return Bounded(value, np.zeros(value.shape))
    terms = added((np.abs(a.value) + a.bound > 0) * 1.0, np.ones(updates.value.shape))
    return Bounded(value, bound + gamma(np.maximum(terms - 1, 0)) * size)


def _scatter_to_extremes(params: Any, source: Bounded, operand: Bounded) -> Bounded:
    """select_and_scatter_add, bounded over every place that may be a window's extreme.

    A place whose bound reaches the winner's may have won: it may get the error, and the winner may
    not. Bounding both never takes a right program for a wrong one, and where windows are not in
    doubt, nearly everywhere, it lets nothing pass; to raise would give up the other windows too.
    """
    value = windows.select_and_scatter_add(params, source.value, operand.value)
    chosen = windows.select(params, operand.value)
    candidates = Bounded(chosen.candidates, windows.rows(params, operand.bound, 0.0))
    at = chosen.winner[:, None]
    wins = np.arange(candidates.value.shape[1]) == at
    winner = Bounded(*(np.take_along_axis(each, at, 1) for each in candidates))
    maybe = _overlap(winner, candidates) & ~wins
    doubt = maybe.any(1, keepdims=True)
    error, own = (each.reshape(-1, 1) for each in source)
    reach = np.abs(error) + own

    def scattered(parts: np.ndarray) -> np.ndarray:
        full = np.zeros(math.prod(chosen.shape))
        np.add.at(full, chosen.places, parts)
        return windows.cropped(params, full.reshape(chosen.shape), operand.value.shape)

    bound = scattered(np.where(wins, np.where(doubt, reach, own), np.where(maybe, reach, 0.0)))
    size = scattered(np.where(wins | maybe, reach, 0.0))
    if is_exact(size, source):
        return Bounded(value, bound)
    return Bounded(value, bound + gamma(math.prod(params["window_dimensions"])) * size)


def _gather_from_extremes(params: Any, tangents: Bounded, operand: Bounded) -> Bounded:
    """select_and_gather_add, bounded by every place that may be a window's extreme."""
    value = windows.select_and_gather_add(params, tangents.value, operand.value)
    chosen = windows.select(params, operand.value)
    candidates = Bounded(chosen.candidates, windows.rows(params, operand.bound, 0.0))
    at = chosen.winner[:, None]
    winner = Bounded(*(np.take_along_axis(each, at, 1) for each in candidates))
    found = Bounded(*(windows.rows(params, each, 0.0) for each in tangents))
    away = np.abs(found.value - value.reshape(-1, 1)) + found.bound
    bound = np.where(_overlap(winner, candidates), away, 0.0).max(1)
    return Bounded(value, bound.reshape(value.shape))


def _moved(places: Callable[..., Any], a: Bounded, fill: float) -> Bounded:
    """Padding is exact."""
    return Bounded(places(a.value, fill), places(a.bound, 0.0))


PRIMITIVES: dict[str, Primitive] = {
    **ROUNDED,
    "sign": _sign,
    "floor": _step(np.floor),
    "round": _step(np.round),
    "max": _extreme(np.maximum),
    "min": _extreme(np.minimum),
    "clamp": lambda params, low, a, high: Bounded(
        np.clip(a.value, low.value, high.value), a.bound + low.bound + high.bound
    ),
    "eq": _compare(np.equal),
    "ne": _compare(np.not_equal),
    "gt": _compare(np.greater),
    "ge": _compare(np.greater_equal),
    "lt": _compare(np.less),
    "le": _compare(np.less_equal),
    "is_finite": lambda params, a: np.isfinite(a.value),
    "reduce_max": _reduce_extreme(np.max),
    "reduce_min": _reduce_extreme(np.min),
    "argmax": _place_of_extreme("argmax"),
    "argmin": _place_of_extreme("argmin"),
    "cummax": _running_extreme("cummax"),
    "cummin": _running_extreme("cummin"),
    "sort": _sort,
    "select_and_gather_add": _gather_from_extremes,
    "select_and_scatter_add": _scatter_to_extremes,
    "scatter-add": _scatter_add,
}
PRIMITIVES |= windows.reductions(PRIMITIVES, _moved)


class ErrorBound(Arithmetic):
    """float64 values with bounds on their rounding errors."""

    name = "error_bound"
    primitives: ClassVar[dict[str, Primitive]] = PRIMITIVES

    def lift_floats(self, array: np.ndarray) -> Bounded:
        return Bounded(array, np.zeros(array.shape))

    def constant(self, array: np.ndarray) -> Any:
        """A constant of a program in a narrower dtype is rounded to it: 0.1 may be off by u |0.1|.

        One or two bits, as those of 0, 1, ½ or 3, are what was meant. A table of float64 that isn't
        float32 as well, such as one of cosines, has the accuracy of the math library.
        """
        array = np.asarray(array)
        value = self.lift(array)
        if not isinstance(value, Bounded):
            return value
        if array.dtype == np.float64:
            if not array.ndim or (array == array.astype(np.float32)).all():
                return value
            return Bounded(array, 2 * LIBRARY_ULPS * UNIT * np.abs(array))
        unit = unit_roundoff(array.dtype)
        meant = np.frexp(value.value)[0] * 4 == np.round(np.frexp(value.value)[0] * 4)
        return Bounded(value.value, np.where(meant, 0, unit * np.abs(value.value)))

    def lower(self, value: Any) -> np.ndarray:
        return np.asarray(value.value if isinstance(value, Bounded | Doubtful) else value)

    def from_integers(self, value: Any) -> Bounded:
        if isinstance(value, Doubtful):
            return Bounded(value.value.astype(np.float64), value.doubt.astype(np.float64))
        return super().from_integers(value)

    def decide(self, value: Any) -> Any:
        if isinstance(value, Doubtful):
            raise ArithmeticError("control flow depends on a comparison that rounding may turn")
        return super().decide(value)

    def places(self, value: Any) -> np.ndarray:
        return _sure(value)

    def move(self, function: Callable[..., Any], *values: Any) -> Any:
        kinds = {type(value) for value in values} & {Bounded, Doubtful}
        if not kinds:
            return function(*values)
        (kind,) = kinds
        plain = [each if isinstance(each, kind) else kind(each, _none(each)) for each in values]
        if kind is Bounded:  # indices among the arguments stay indices in both
            plain = [
                a if isinstance(v, Bounded) else (v, v) for a, v in zip(plain, values, strict=True)
            ]
        first = function(*(each[0] for each in plain))
        second = function(*(each[1] for each in plain))
        if isinstance(first, list):
            return [kind(*pair) for pair in zip(first, second, strict=True)]
        return kind(first, second)

    def apply(self, equation: Any, values: list[Any]) -> list[Any]:
        name, params = equation.primitive.name, equation.params
        with np.errstate(all="ignore"):
            if name == "select_n" and isinstance(values[0], Doubtful):
                return [self._select(values[0], values[1:])]
            floats = any(isinstance(value, Bounded) for value in values)
            if not floats and any(isinstance(value, Doubtful) for value in values):
                if name in ("and", "or", "xor", "not", "eq", "ne"):
                    plain = [v.value if isinstance(v, Doubtful) else v for v in values]
                    doubts = [v.doubt if isinstance(v, Doubtful) else _none(v) for v in values]
                    doubt = np.any(np.broadcast_arrays(*doubts), axis=0)
                    return [Doubtful(INTEGERS[name](params, *plain), doubt)]
                if name == "convert_element_type" and not is_floating(equation.outvars[0].aval):
                    converted = INTEGERS[name](params, values[0].value)
                    return [Doubtful(converted, values[0].doubt)]
                if name in INTEGERS and name not in ("convert_element_type",):
                    raise ArithmeticError(f"{name} of a comparison that rounding may turn")
            return super().apply(equation, values)

    def _select(self, which: Doubtful, cases: list[Any]) -> Any:
        if not isinstance(cases[0], Bounded):
            pairs = [c if isinstance(c, Doubtful) else Doubtful(c, _none(c)) for c in cases]
            value = np.where(which.value, pairs[1].value, pairs[0].value)
            differ = np.asarray(pairs[0].value != pairs[1].value)
            doubt = np.where(which.value, pairs[1].doubt, pairs[0].doubt)
            return Doubtful(value, doubt | (which.doubt & differ))
        chosen = np.where(which.value, cases[1].value, cases[0].value)
        bound = np.where(which.value, cases[1].bound, cases[0].bound)
        reach = np.maximum(*(np.abs(case.value - chosen) + case.bound for case in cases))
        return Bounded(chosen, np.where(which.doubt, reach, bound))


def _none(value: Any) -> np.ndarray:
    return np.zeros(np.shape(value), bool)
