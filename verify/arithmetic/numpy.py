"""float64, as NumPy computes it: plain floating-point arithmetic without a compiler."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np

from verify.arithmetic import Arithmetic, Primitive, indexing, windows
from verify.arithmetic.convolution import convolve

_erf = np.frompyfunc(math.erf, 1, 1)
_erfc = np.frompyfunc(math.erfc, 1, 1)


def contract(
    params: Any, left: np.ndarray, right: np.ndarray, product: Callable[..., Any] = np.matmul
) -> Any:
    """dot_general as one batched matrix product, for any kind of element."""
    (left_summed, right_summed), (left_batch, right_batch) = params["dimension_numbers"]
    left_free = [a for a in range(left.ndim) if a not in (*left_summed, *left_batch)]
    right_free = [a for a in range(right.ndim) if a not in (*right_summed, *right_batch)]
    batch = [left.shape[a] for a in left_batch]
    summed = math.prod(left.shape[a] for a in left_summed)
    rows, columns = [left.shape[a] for a in left_free], [right.shape[a] for a in right_free]
    one = np.transpose(left, (*left_batch, *left_free, *left_summed))
    two = np.transpose(right, (*right_batch, *right_summed, *right_free))
    one = one.reshape(math.prod(batch), math.prod(rows), summed)
    two = two.reshape(math.prod(batch), summed, math.prod(columns))
    return np.reshape(product(one, two), (*batch, *rows, *columns))


def logistic(z: np.ndarray) -> np.ndarray:
    """1/(1 + e⁻ᶻ), accurate on both sides."""
    decay = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, decay) / (1 + decay)


PRIMITIVES: dict[str, Primitive] = {
    "add": lambda params, a, b: a + b,
    "add_any": lambda params, a, b: a + b,
    "sub": lambda params, a, b: a - b,
    "mul": lambda params, a, b: a * b,
    "div": lambda params, a, b: a / b,
    "neg": lambda params, a: -a,
    "abs": lambda params, a: np.abs(a),
    "sign": lambda params, a: np.sign(a),
    "floor": lambda params, a: np.floor(a),
    "round": lambda params, a: np.round(a),  # ties to even, which is what jnp.round asks for
    "atan2": lambda params, a, b: np.arctan2(a, b),
    "max": lambda params, a, b: np.maximum(a, b),
    "min": lambda params, a, b: np.minimum(a, b),
    "clamp": lambda params, low, a, high: np.clip(a, low, high),
    "one_minus_square": lambda params, a: (1 - a) * (1 + a),
    "square": lambda params, a: a * a,
    "integer_pow": lambda params, a: a ** params["y"],
    "pow": lambda params, a, b: np.power(a, b),
    "sqrt": lambda params, a: np.sqrt(a),
    "rsqrt": lambda params, a: 1 / np.sqrt(a),
    "exp": lambda params, a: np.exp(a),
    "exp2": lambda params, a: np.exp2(a),
    "expm1": lambda params, a: np.expm1(a),
    "log": lambda params, a: np.log(a),
    "log1p": lambda params, a: np.log1p(a),
    "tanh": lambda params, a: np.tanh(a),
    "logistic": lambda params, a: logistic(a),
    "erf": lambda params, a: np.asarray(_erf(a), np.float64),
    "erfc": lambda params, a: np.asarray(_erfc(a), np.float64),
    "eq": lambda params, a, b: np.equal(a, b),
    "ne": lambda params, a, b: np.not_equal(a, b),
    "gt": lambda params, a, b: np.greater(a, b),
    "ge": lambda params, a, b: np.greater_equal(a, b),
    "lt": lambda params, a, b: np.less(a, b),
    "le": lambda params, a, b: np.less_equal(a, b),
    "is_finite": lambda params, a: np.isfinite(a),
    "reduce_sum": lambda params, a: np.sum(a, axis=tuple(params["axes"])),
    "reduce_max": lambda params, a: np.max(a, axis=tuple(params["axes"])),
    "reduce_min": lambda params, a: np.min(a, axis=tuple(params["axes"])),
    "dot_general": contract,
    "conv_general_dilated": convolve,
    "scatter-add": indexing.scatter_add,
    **windows.PLAIN,
}
PRIMITIVES |= windows.reductions(PRIMITIVES, lambda places, a, fill: places(a, fill))


class Float64(Arithmetic):
    """IEEE double precision, in the order NumPy sums."""

    name = "float64"
    primitives: ClassVar[dict[str, Primitive]] = PRIMITIVES

    def lift_floats(self, array: np.ndarray) -> np.ndarray:
        return array

    def lower(self, value: Any) -> np.ndarray:
        return np.asarray(value)

    def apply(self, equation: Any, values: list[Any]) -> list[Any]:
        with np.errstate(all="ignore"):  # infinities and NaN are values like others here
            return super().apply(equation, values)
