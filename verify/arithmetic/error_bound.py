"""float64 with a bound on its rounding error, after Higham.

A value is a pair (v, e): the exact result, for the inputs as they are, lies within v ± e. Each
primitive adds to e what its inputs' bounds become and what its own rounding may be at most:

    a + b      e_a + e_b + u |v|
    a b        |a| e_b + |b| e_a + e_a e_b + u |v|
    dot, sum   the same summed, + γ_n Σ (|a| + e_a)(|b| + e_b),   γ_n = n u / (1 - n u)
    f(a)       e_a sup |f'| over a ± e_a, + 4 ulp |v|

in any order of summation. Where a sum or product comes out exact, as those of small integers do,
nothing is added: so ties at kinks stay ties. u = 2⁻⁵³ is the unit roundoff. The one constant that
isn't derived is the accuracy of the math library, 4 ulp. A comparison of values whose bounds
overlap is doubtful: both outcomes are possible, and what is selected by it is bounded over both.

So two programs for the same function agree within the sum of their bounds, always; and one that is
wrong by more than its rounding is seen.

Source  Higham (2002), Accuracy and Stability of Numerical Algorithms, sections 2.2, 3.1, 3.5
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from verify.arithmetic import Arithmetic, Primitive, indexing, is_floating, windows
from verify.arithmetic.convolution import convolve
from verify.arithmetic.integers import INTEGERS
from verify.arithmetic.numpy import PRIMITIVES as FLOAT64
from verify.arithmetic.numpy import contract, logistic

UNIT = 2.0**-53
LIBRARY_ULPS = 4
"""Accuracy of exp, log, tanh, ... in units in the last place: what libraries document."""
SMALLEST = 2.0**-1074  # of what underflows


class Bounded(NamedTuple):
    """The exact result lies within value ± bound."""

    value: np.ndarray
    bound: np.ndarray


class Doubtful(NamedTuple):
    """A boolean; where doubt is true, the exact result may be the other one."""

    value: np.ndarray
    doubt: np.ndarray


def unit_roundoff(dtype: Any) -> float:
    """u of a dtype: rounding to it changes a number by at most u of itself."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(count: Any) -> Any:
    """γ_n, the bound on n roundings in a row."""
    return count * UNIT / (1 - count * UNIT)


def _rounded(value: Any, bound: Any, roundings: float = 1) -> Bounded:
    return Bounded(value, bound + roundings * UNIT * np.abs(value) + SMALLEST)


def _add(params: Any, a: Bounded, b: Bounded) -> Bounded:
    value = a.value + b.value
    # What rounding took away, itself exact (Knuth's TwoSum).
    other = value - a.value
    lost = (a.value - (value - other)) + (b.value - other)
    return Bounded(value, a.bound + b.bound + np.abs(lost))


def _sub(params: Any, a: Bounded, b: Bounded) -> Bounded:
    return _add(params, a, Bounded(-b.value, b.bound))


def _grid(values: np.ndarray) -> float:
    """The largest exponent g such that every value is a multiple of 2^g; infinite for zeros."""
    mantissa, exponent = np.frexp(values[values != 0])
    if mantissa.size == 0:
        return np.inf
    if not np.isfinite(mantissa).all():
        return -np.inf
    whole = np.abs(mantissa * 2.0**53).astype(np.int64)
    lowest = np.log2((whole & -whole).astype(np.float64))
    return float((exponent - 53 + lowest).min())


def _is_exact(size: np.ndarray, *factors: Bounded) -> bool:
    """Whether sums of products of these are exact in any order: few bits, no bounds.

    Args:
        size: the sums of the products' absolute values.
        *factors: what is multiplied and summed.
    """
    if any(each.bound.any() for each in factors):
        return False
    grid = sum(_grid(each.value) for each in factors)
    return bool(grid == np.inf or np.max(size, initial=0) <= 2.0 ** min(53 + grid, 1000))


def _product_bound(a: Bounded, b: Bounded, times: Any = np.multiply) -> Any:
    return (
        times(np.abs(a.value), b.bound) + times(a.bound, np.abs(b.value)) + times(a.bound, b.bound)
    )


def _mul(params: Any, a: Bounded, b: Bounded) -> Bounded:
    value = a.value * b.value
    if np.size(value) and _is_exact(np.abs(value), a, b):
        return Bounded(value, np.zeros(value.shape))
    return _rounded(value, _product_bound(a, b))


def _div(params: Any, a: Bounded, b: Bounded) -> Bounded:
    value = a.value / b.value
    distance = np.abs(b.value) - b.bound
    spread = (a.bound + np.abs(value) * b.bound) / np.where(distance > 0, distance, 1)
    powers = np.abs(np.frexp(b.value)[0]) == 0.5
    if powers.all() and not b.bound.any():  # by a power of two: exact
        return Bounded(value, spread)
    return _rounded(value, np.where(distance > 0, spread, np.inf))


def _dot(params: Any, a: Bounded, b: Bounded) -> Bounded:
    count = math.prod(a.value.shape[axis] for axis in params["dimension_numbers"][0][0])
    return _summed_products(lambda x, y: contract(params, x, y), count, a, b)


def _convolution(params: Any, a: Bounded, b: Bounded) -> Bounded:
    features = b.value.shape[params["dimension_numbers"].rhs_spec[0]]
    count = b.value.size // features  # the window's places, times the channels of a group
    return _summed_products(lambda x, y: convolve(params, x, y), count, a, b)


def _summed_products(
    times: Callable[[np.ndarray, np.ndarray], np.ndarray], count: int, a: Bounded, b: Bounded
) -> Bounded:
    """What is linear in a and in b: sums of at most `count` products."""
    size = times(np.abs(a.value) + a.bound, np.abs(b.value) + b.bound)
    if _is_exact(size, a, b):
        return Bounded(times(a.value, b.value), np.zeros(size.shape))
    bound = _product_bound(a, b, times) + gamma(count) * size + count * SMALLEST
    return Bounded(times(a.value, b.value), bound)


def _sum(params: Any, a: Bounded) -> Bounded:
    axes = tuple(params["axes"])
    count = math.prod(a.value.shape[axis] for axis in axes)
    size = (np.abs(a.value) + a.bound).sum(axes)
    if _is_exact(size, a):
        return Bounded(a.value.sum(axes), np.zeros(np.shape(size)))
    return Bounded(a.value.sum(axes), a.bound.sum(axes) + gamma(max(count - 1, 0)) * size)


def _scatter_add(params: Any, a: Bounded, indices: Any, updates: Bounded) -> Bounded:
    """To each element as many updates as meet there: a sum with the element, unless that is 0."""

    def added(to: np.ndarray, each: np.ndarray) -> np.ndarray:
        return indexing.scatter_add(params, to, indices, each)

    indices = _sure(indices)
    value, bound = added(a.value, updates.value), added(a.bound, updates.bound)
    size = added(np.abs(a.value) + a.bound, np.abs(updates.value) + updates.bound)
    summed = Bounded(*(np.concatenate([np.ravel(x), np.ravel(y)]) for x, y in zip(a, updates)))  # noqa: B905
    if _is_exact(size, summed):
        return Bounded(value, np.zeros(value.shape))
    terms = added((np.abs(a.value) + a.bound > 0) * 1.0, np.ones(updates.value.shape))
    return Bounded(value, bound + gamma(np.maximum(terms - 1, 0)) * size)


def _sure(indices: Any) -> np.ndarray:
    if isinstance(indices, Doubtful):
        raise ArithmeticError("what is read or written depends on what rounding may turn")
    return np.asarray(indices)


def _integer_pow(params: Any, a: Bounded) -> Bounded:
    y = params["y"]
    value = a.value**y
    largest = np.abs(a.value) + a.bound
    smallest = np.abs(a.value) - a.bound
    if y >= 0:
        spread = largest**y - np.abs(a.value) ** y
    else:
        spread = np.where(
            smallest > 0, -y * np.where(smallest > 0, smallest, 1.0) ** (y - 1) * a.bound, np.inf
        )
    # The difference of powers is itself rounded: a bound of 0 must not come out of e > 0.
    linear = abs(y) * np.abs(a.value) ** max(y - 1, 0) * a.bound if y > 0 else 0
    return _rounded(value, np.maximum(spread, linear) + gamma(4) * spread, abs(y))


def _pow(params: Any, a: Bounded, b: Bounded) -> Bounded:
    value = np.power(a.value, b.value)
    smallest = a.value - a.bound
    safe = smallest > 0
    lowest = np.where(safe, smallest, 1.0)
    steepest = np.maximum(
        np.abs(b.value) * lowest ** (b.value - 1),
        np.abs(b.value) * (a.value + a.bound) ** (b.value - 1),
    )
    # In the exponent: sup |log a| a^b over the box, b's bound is 0 or a rounding.
    logs = np.maximum(np.abs(np.log(lowest)), np.abs(np.log(a.value + a.bound)))
    reach = np.maximum(lowest ** (b.value + b.bound), (a.value + a.bound) ** (b.value + b.bound))
    spread = steepest * a.bound + np.where(b.bound > 0, logs * reach * b.bound, 0)
    exact = a.bound == 0
    spread = np.where(safe | exact, np.where(exact & (b.bound == 0), 0, spread), np.inf)
    return _rounded(value, spread, 2 * LIBRARY_ULPS)


def _library(value: Callable[..., Any], steepest: Callable[..., Any]) -> Primitive:
    """A function of one argument: steepest(v, e) is sup |f'| over v ± e."""

    def primitive(params: Any, a: Bounded) -> Bounded:
        spread = np.where(a.bound == 0, 0, a.bound * steepest(a.value, a.bound))
        return _rounded(value(a.value), spread, 2 * LIBRARY_ULPS)

    return primitive


def _nearest_to_zero(v: np.ndarray, e: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(v) - e, 0)


def _sech_squared(v: np.ndarray, e: np.ndarray) -> np.ndarray:
    decay = np.exp(-2 * _nearest_to_zero(v, e))
    return 4 * decay / (1 + decay) ** 2


def _logistic_slope(v: np.ndarray, e: np.ndarray) -> np.ndarray:
    z = _nearest_to_zero(v, e)
    return logistic(z) * logistic(-z)


def _inverse(distance: np.ndarray) -> np.ndarray:
    """1/distance, infinite where the interval reaches 0."""
    return np.where(distance > 0, 1 / np.where(distance > 0, distance, 1), np.inf)


def _sqrt(params: Any, a: Bounded) -> Bounded:
    value = np.sqrt(a.value)
    steep = 0.5 * a.bound / np.sqrt(np.maximum(a.value - a.bound, SMALLEST))
    # |√a - √b| ≤ √|a - b| also where the slope is infinite.
    found = _rounded(value, np.minimum(steep, np.sqrt(a.bound)))
    # The root of an exact square is exact (24 bits: then the square is too), so that lengths tie.
    exact = (a.bound == 0) & (value == value.astype(np.float32)) & (value * value == a.value)
    return Bounded(value, np.where(exact, 0, found.bound))


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


def _atan2(params: Any, a: Bounded, b: Bounded) -> Bounded:
    """The gradient has length 1/r; beyond the half-axis b < 0 the angle begins anew."""
    reach = a.bound + b.bound
    nearest = np.hypot(a.value, b.value) - reach
    anew = (b.value - b.bound < 0) & (np.abs(a.value) <= a.bound) & (a.bound > 0)
    spread = np.where(reach > 0, reach * _inverse(nearest), 0)
    return _rounded(np.arctan2(a.value, b.value), np.where(anew, np.inf, spread), 2 * LIBRARY_ULPS)


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


def _prod(params: Any, a: Bounded) -> Bounded:
    axes = tuple(params["axes"])
    count = math.prod(a.value.shape[axis] for axis in axes)
    return _of_product(a, lambda factors: np.prod(factors, axis=axes), count)


def _running_product(params: Any, a: Bounded) -> Bounded:
    count = a.value.shape[params["axis"]]
    return _of_product(a, lambda factors: FLOAT64["cumprod"](params, factors), count)


def _of_product(a: Bounded, product: Callable[[np.ndarray], np.ndarray], count: int) -> Bounded:
    """A product of so many factors: its bound is how far Π(|a| + e) exceeds Π|a|, and rounding."""
    value, reach = product(a.value), product(np.abs(a.value) + a.bound)
    whole = not a.bound.any() and bool((a.value == np.round(a.value)).all())
    if whole and np.max(reach, initial=0) <= 2.0**53:
        return Bounded(value, np.zeros(np.shape(value)))
    return _rounded(value, reach - np.abs(value) + 2 * gamma(count) * reach)


def _running_sum(params: Any, a: Bounded) -> Bounded:
    value, size = (FLOAT64["cumsum"](params, each) for each in (a.value, np.abs(a.value) + a.bound))
    if _is_exact(size, a):
        return Bounded(value, np.zeros(value.shape))
    count = a.value.shape[params["axis"]]
    return Bounded(value, FLOAT64["cumsum"](params, a.bound) + gamma(count) * size)


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
    if _is_exact(size, source):
        return Bounded(value, bound)
    return Bounded(value, bound + gamma(math.prod(params["window_dimensions"])) * size)


def _moved(places: Callable[..., Any], a: Bounded, fill: float) -> Bounded:
    """Padding is exact."""
    return Bounded(places(a.value, fill), places(a.bound, 0.0))


_ONE = Bounded(np.ones(()), np.zeros(()))
_ROOT_PI = math.sqrt(math.pi)

PRIMITIVES: dict[str, Primitive] = {
    "add": _add,
    "add_any": _add,
    "sub": _sub,
    "mul": _mul,
    "div": _div,
    "neg": lambda params, a: Bounded(-a.value, a.bound),
    "abs": lambda params, a: Bounded(np.abs(a.value), a.bound),
    "sign": _sign,
    "floor": _step(np.floor),
    "round": _step(np.round),
    "atan2": _atan2,
    "max": _extreme(np.maximum),
    "min": _extreme(np.minimum),
    "clamp": lambda params, low, a, high: Bounded(
        np.clip(a.value, low.value, high.value), a.bound + low.bound + high.bound
    ),
    "square": lambda params, a: _mul(params, a, a),
    "one_minus_square": lambda params, a: _mul(
        params, _sub(params, _ONE, a), _add(params, _ONE, a)
    ),
    "integer_pow": _integer_pow,
    "pow": _pow,
    "sqrt": _sqrt,
    "rsqrt": _library(
        lambda v: 1 / np.sqrt(v), lambda v, e: 0.5 * _inverse(np.maximum(v - e, 0)) ** 1.5
    ),
    "exp": _library(np.exp, lambda v, e: np.exp(v + e)),
    "exp2": _library(np.exp2, lambda v, e: math.log(2) * np.exp2(v + e)),
    "expm1": _library(np.expm1, lambda v, e: np.exp(v + e)),
    "log": _library(np.log, lambda v, e: _inverse(v - e)),
    "log1p": _library(np.log1p, lambda v, e: _inverse(1 + v - e)),
    "tanh": _library(np.tanh, _sech_squared),
    "sin": _library(np.sin, lambda v, e: np.ones_like(v)),
    "cos": _library(np.cos, lambda v, e: np.ones_like(v)),
    "logistic": _library(logistic, _logistic_slope),
    "erf": _library(
        lambda v: FLOAT64["erf"]({}, v),
        lambda v, e: 2 / _ROOT_PI * np.exp(-(_nearest_to_zero(v, e) ** 2)),
    ),
    "erfc": _library(
        lambda v: FLOAT64["erfc"]({}, v),
        lambda v, e: 2 / _ROOT_PI * np.exp(-(_nearest_to_zero(v, e) ** 2)),
    ),
    "eq": _compare(np.equal),
    "ne": _compare(np.not_equal),
    "gt": _compare(np.greater),
    "ge": _compare(np.greater_equal),
    "lt": _compare(np.less),
    "le": _compare(np.less_equal),
    "is_finite": lambda params, a: np.isfinite(a.value),
    "reduce_sum": _sum,
    "reduce_max": _reduce_extreme(np.max),
    "reduce_min": _reduce_extreme(np.min),
    "reduce_prod": _prod,
    "argmax": _place_of_extreme("argmax"),
    "argmin": _place_of_extreme("argmin"),
    "cumsum": _running_sum,
    "cumprod": _running_product,
    "cummax": _running_extreme("cummax"),
    "cummin": _running_extreme("cummin"),
    "sort": _sort,
    "select_and_scatter_add": _scatter_to_extremes,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
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
