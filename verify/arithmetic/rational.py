"""Exact fractions: what piecewise-polynomial networks compute, with no rounding at all.

Two programs for the same function give the same fractions, `==`, whatever their order of
operations. Infinities and NaN stay floats; they may be compared, as guards against them do.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np

from verify.arithmetic import Arithmetic, Primitive, indexing, windows
from verify.arithmetic.convolution import convolve
from verify.arithmetic.numpy import contract


def _number(value: float) -> Any:
    return Fraction(value) if math.isfinite(value) else value


_lift = np.frompyfunc(_number, 1, 1)
_finite = np.frompyfunc(lambda a: isinstance(a, Fraction) or math.isfinite(a), 1, 1)
_sign = np.frompyfunc(lambda a: Fraction((a > 0) - (a < 0)), 1, 1)
_floor = np.frompyfunc(lambda a: Fraction(math.floor(a)), 1, 1)
_nearest = np.frompyfunc(lambda a: Fraction(round(a)), 1, 1)
_power = np.frompyfunc(lambda a, y: a**y, 2, 1)


def _divide(a: Any, b: Any) -> Any:
    """a/b; by zero what floats give, since a selection may leave it out."""
    if b == 0:
        return math.nan if a == 0 or a != a else math.copysign(math.inf, a)
    return a / b


_quotient = np.frompyfunc(_divide, 2, 1)


def elements(array: Any) -> np.ndarray:
    """An object array, also where NumPy has made a single object of it."""
    out = np.empty(np.shape(array), object)
    out[...] = array
    return out


def total(params: Any, a: np.ndarray) -> np.ndarray:
    """reduce_sum for objects; an empty sum is a Fraction too."""
    zero: Any = Fraction(0)
    return elements(np.sum(a, axis=tuple(params["axes"]), initial=zero))


def of_objects(primitive: Primitive) -> Primitive:
    """A primitive whose result is an object array, also where NumPy has made something else."""
    return lambda params, *arrays: elements(primitive(params, *arrays))


def over_windows(reduce: dict[str, Primitive]) -> dict[str, Primitive]:
    """reduce_window_sum, _max and _min of objects, by these reductions."""
    return windows.reductions(reduce, lambda places, a, fill: places(a, fill))


def compare(function: np.ufunc) -> Primitive:
    """A comparison of objects as an array of booleans."""
    return lambda params, a, b: np.asarray(function(a, b), bool)


EXACT: dict[str, Primitive] = {
    "add": lambda params, a, b: elements(a + b),
    "add_any": lambda params, a, b: elements(a + b),
    "sub": lambda params, a, b: elements(a - b),
    "mul": lambda params, a, b: elements(a * b),
    "div": lambda params, a, b: elements(_quotient(a, b)),
    "neg": lambda params, a: elements(-a),
    "abs": lambda params, a: elements(abs(a)),
    "max": lambda params, a, b: elements(np.maximum(a, b)),
    "min": lambda params, a, b: elements(np.minimum(a, b)),
    "clamp": lambda params, low, a, high: elements(np.minimum(np.maximum(a, low), high)),
    "one_minus_square": lambda params, a: elements(1 - a * a),
    "square": lambda params, a: elements(a * a),
    "integer_pow": lambda params, a: elements(_power(a, params["y"])),
    "eq": compare(np.equal),
    "ne": compare(np.not_equal),
    "gt": compare(np.greater),
    "ge": compare(np.greater_equal),
    "lt": compare(np.less),
    "le": compare(np.less_equal),
    "reduce_max": lambda params, a: elements(np.max(a, axis=tuple(params["axes"]))),
    "reduce_min": lambda params, a: elements(np.min(a, axis=tuple(params["axes"]))),
    "dot_general": lambda params, a, b: elements(contract(params, a, b)),
    "conv_general_dilated": lambda params, a, b: elements(convolve(params, a, b)),
    "scatter-add": indexing.scatter_add,
    **windows.PLAIN,
    **{
        name: of_objects(windows.PLAIN[name])
        for name in ("reduce_prod", "cumsum", "cumprod", "cummax", "cummin")
    },
}
"""What needs no rounding in any arithmetic whose elements are Python objects."""

PRIMITIVES: dict[str, Primitive] = {
    **EXACT,
    "reduce_sum": total,
    "sign": lambda params, a: elements(_sign(a)),
    "floor": lambda params, a: elements(_floor(a)),
    "round": lambda params, a: elements(_nearest(a)),
    "is_finite": lambda params, a: np.asarray(_finite(a), bool),
}
PRIMITIVES |= over_windows(PRIMITIVES)


class Rational(Arithmetic):
    """Fractions in object arrays."""

    name = "rational"
    primitives: ClassVar[dict[str, Primitive]] = PRIMITIVES

    def lift_floats(self, array: np.ndarray) -> np.ndarray:
        return elements(_lift(array))

    def lower(self, value: Any) -> np.ndarray:
        return np.asarray(value, np.float64 if value.dtype == object else None)
