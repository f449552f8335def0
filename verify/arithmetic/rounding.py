"""What rounding may do to the result of an operation in float64, after Higham.

A value is a pair (v, e): the exact result, for the inputs as they are, lies within v ± e. Each
operation adds to e what its inputs' bounds become and what its own rounding may be at most:

    a + b      e_a + e_b + |what was lost|                     what was lost: v - (a + b), exactly
    a b        |a| e_b + |b| e_a + e_a e_b + u |v|
    a / b      (e_a + |v| e_b) / (|b| - e_b) + u |v|           infinite where b may be 0
    Σ a        Σ e_a + γ_(n - 1) Σ (|a| + e_a)
    Σ a b      the products' bounds + γ_n Σ (|a| + e_a)(|b| + e_b)
    Π a        Π (|a| + e_a) - Π |a| + 2 γ_n Π (|a| + e_a)
    f(a)       e_a sup |f'| over a ± e_a, + 8 u |v|

in any order of summation, with γ_n = n u / (1 - n u) for n roundings in a row. u = 2⁻⁵³ is the unit
roundoff: rounding changes v by at most u |v|, or by the smallest number there is where it
underflows. The one constant that isn't derived is the accuracy of the math library, 4 units in the
last place or 8 u.

Where it comes out exact, nothing is added. If all factors are multiples of 2^g₁ and 2^g₂, every
sum of products is one of 2^(g₁ + g₂): while the sums of absolute values are no more than 2⁵³ of
these, each is a float64, and no order of summation rounds. So ties at kinks stay ties for small
integers.

Source  Higham (2002), Accuracy and Stability of Numerical Algorithms, sections 2.2, 3.1, 3.5;
        Knuth, The Art of Computer Programming 2, section 4.2.2 (what an addition loses)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from verify.arithmetic import Primitive
from verify.arithmetic.convolution import convolve
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


def unit_roundoff(dtype: Any) -> float:
    """u of a dtype: rounding to it changes a number by at most u of itself."""
    return float(jnp.finfo(dtype).eps) / 2


def gamma(count: Any) -> Any:
    """γ_n, the bound on n roundings in a row."""
    return count * UNIT / (1 - count * UNIT)


def _rounded(value: Any, bound: Any, roundings: float = 1) -> Bounded:
    return Bounded(value, bound + roundings * UNIT * np.abs(value) + SMALLEST)


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


def is_exact(size: np.ndarray, *factors: Bounded) -> bool:
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


def _add(params: Any, a: Bounded, b: Bounded) -> Bounded:
    value = a.value + b.value
    # What rounding took away, itself exact (Knuth's TwoSum).
    other = value - a.value
    lost = (a.value - (value - other)) + (b.value - other)
    return Bounded(value, a.bound + b.bound + np.abs(lost))


def _sub(params: Any, a: Bounded, b: Bounded) -> Bounded:
    return _add(params, a, Bounded(-b.value, b.bound))


def _mul(params: Any, a: Bounded, b: Bounded) -> Bounded:
    value = a.value * b.value
    if np.size(value) and is_exact(np.abs(value), a, b):
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
    if is_exact(size, a, b):
        return Bounded(times(a.value, b.value), np.zeros(size.shape))
    bound = _product_bound(a, b, times) + gamma(count) * size + count * SMALLEST
    return Bounded(times(a.value, b.value), bound)


def _sum(params: Any, a: Bounded) -> Bounded:
    axes = tuple(params["axes"])
    count = math.prod(a.value.shape[axis] for axis in axes)
    size = (np.abs(a.value) + a.bound).sum(axes)
    if is_exact(size, a):
        return Bounded(a.value.sum(axes), np.zeros(np.shape(size)))
    return Bounded(a.value.sum(axes), a.bound.sum(axes) + gamma(max(count - 1, 0)) * size)


def _running_sum(params: Any, a: Bounded) -> Bounded:
    value, size = (FLOAT64["cumsum"](params, each) for each in (a.value, np.abs(a.value) + a.bound))
    if is_exact(size, a):
        return Bounded(value, np.zeros(value.shape))
    count = a.value.shape[params["axis"]]
    return Bounded(value, FLOAT64["cumsum"](params, a.bound) + gamma(count) * size)


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


def _sqrt(params: Any, a: Bounded) -> Bounded:
    value = np.sqrt(a.value)
    steep = 0.5 * a.bound / np.sqrt(np.maximum(a.value - a.bound, SMALLEST))
    # |√a - √b| ≤ √|a - b| also where the slope is infinite.
    found = _rounded(value, np.minimum(steep, np.sqrt(a.bound)))
    # The root of an exact square is exact (24 bits: then the square is too), so that lengths tie.
    exact = (a.bound == 0) & (value == value.astype(np.float32)) & (value * value == a.value)
    return Bounded(value, np.where(exact, 0, found.bound))


def _atan2(params: Any, a: Bounded, b: Bounded) -> Bounded:
    """The gradient has length 1/r; beyond the half-axis b < 0 the angle begins anew."""
    reach = a.bound + b.bound
    nearest = np.hypot(a.value, b.value) - reach
    anew = (b.value - b.bound < 0) & (np.abs(a.value) <= a.bound) & (a.bound > 0)
    spread = np.where(reach > 0, reach * _inverse(nearest), 0)
    return _rounded(np.arctan2(a.value, b.value), np.where(anew, np.inf, spread), 2 * LIBRARY_ULPS)


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
    "atan2": _atan2,
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
    "reduce_sum": _sum,
    "reduce_prod": _prod,
    "cumsum": _running_sum,
    "cumprod": _running_product,
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
}
