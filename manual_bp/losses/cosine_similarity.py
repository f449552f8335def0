"""Cosine similarity: the angle between prediction and target, whatever their lengths.

For vectors a and y on the last axis, with |v|_ε = max(|v|, √ε), â = a/|a|_ε and ŷ = y/|y|_ε:

    c = â · ŷ,    value = 1 - c

    error = ∂value/∂a = -(ŷ - c â) / |a|       where |a| > √ε
                      = -ŷ / √ε                where |a| ≤ √ε
                      = 0                      at a = 0 when ε = 0

Derivation.  ∂|a|/∂a = a/|a| = â, hence ∂â/∂a = (I - â âᵀ)/|a|, symmetric; contract it with ŷ. Below
√ε the length is a constant. To check by eye: error · a = 0 above √ε, since the value ignores the
length.

With ε = 0 a zero vector has no direction; stated are value 1, as for a right angle, and error 0
(x/|x| there is 0/0, and autodiff NaN). At |a| = √ε, a kink, the side of the constant is taken.

Very long and very short vectors are scaled first, so that squares neither overflow nor vanish.

Shapes  prediction a, target y, error: (..., n); value: (...)
Source  Salton, Wong & Yang (1975), A vector space model for automatic indexing
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape


@dataclass(frozen=True)
class CosineSimilarity(Loss):
    """1 - cos of the angle between a and y, with error -(ŷ - (â · ŷ) â)/|a|, 0 at a = 0.

    Args:
        epsilon: ε ≥ 0: what lengths are shorter than √ε count as √ε (optax's epsilon, which bounds
            the squared length).

    Raises:
        TypeError, ValueError: for targets whose shape isn't the prediction's.

    Source: Salton, Wong & Yang (1975).

    Example:
        >>> a, y = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[0.0, 2.0], [0.0, 2.0]])
        >>> print(CosineSimilarity().value(a, y))
        [0.19999999 1.        ]
        >>> print(CosineSimilarity().error(a, y)[1] == 0)
        [ True  True]
    """

    epsilon: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon < math.inf:
            raise ValueError(
                f"CosineSimilarity: epsilon must be 0 or more, and finite, got {self.epsilon!r}."
            )

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(prediction)
        a_unit, _, _ = self.unit(prediction.astype(dtype))
        y_unit, _, _ = self.unit(target.astype(dtype))
        return 1 - (a_unit * y_unit).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        dtype = accumulation_dtype(prediction)
        a_unit, length, free = self.unit(prediction.astype(dtype))
        y_unit, _, _ = self.unit(target.astype(dtype))
        along = (a_unit * y_unit).sum(-1, keepdims=True) * a_unit
        if free is not None:
            along = jnp.where(free, along, 0)
        return -(y_unit - along) / length

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)

    def unit(self, v: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array | None]:
        """v/|v|_ε; |v|_ε (..., 1); whether |v| > √ε (..., 1), None where that goes without saying.

        With ε = 0 a zero vector is infinitely long: so its unit vector and its error are 0.
        """
        if not self.epsilon:
            length = _length(v, of_zero=jnp.inf)
            return v / length, length, None
        least = math.sqrt(self.epsilon)
        length, least = _length(v, of_zero=0, least=least), jnp.asarray(least, v.dtype)
        bounded = jnp.maximum(length, least)
        return v / bounded, bounded, length > least


def _length(v: jax.Array, of_zero: float, least: float = 0.0) -> jax.Array:
    """|v| (..., 1), by squares that neither overflow nor vanish where |v| is `least` or more."""
    largest = jnp.abs(v).max(-1, keepdims=True)
    scale = _scale(largest, least / math.sqrt(v.shape[-1]))
    length = scale * jnp.sqrt(jnp.square(v / scale).sum(-1, keepdims=True))
    return jnp.where(largest == 0, of_zero, length)


def _scale(largest: jax.Array, least: float) -> jax.Array:
    """A power of two, by which nothing is rounded: 1 but where squares would leave the range.

    Below `least` they may vanish: there the length is bounded anyway.
    """
    bits = jnp.finfo(largest.dtype).maxexp  # floats reach from 2^-bits to 2^bits
    safe, far = 2.0 ** (3 * bits // 8), 2.0 ** (5 * bits // 8)
    small = 1 if least > 1 / safe else jnp.where(largest < 1 / safe, 1 / far, 1)
    return jnp.where(largest > safe, far, small)
