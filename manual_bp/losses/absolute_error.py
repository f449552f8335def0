"""Absolute error: real values, with outliers that don't pull harder than others.

    value = Σ |a - y|,    error = ∂value/∂a = sign(a - y)

Derivation.  |r| is r where r > 0 and -r where r < 0. At the kink r = 0 the derivative is stated 0,
the middle of the subdifferential [-1, 1]: a unit that is right is left alone. (Here we leave JAX,
whose derivative of abs at 0 is 1: it moves a perfect prediction.)

Minimised by the median of y, where the squared error is by the mean.

Shapes  prediction a, target y, error: (..., n); value: (...)
Source  Hastie, Tibshirani & Friedman (2009), The Elements of Statistical Learning, section 10.6
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape


@dataclass(frozen=True)
class AbsoluteError(Loss):
    """Σ |a - y|, with error sign(a - y), 0 where a = y.

    Raises:
        TypeError, ValueError: for targets whose shape isn't the prediction's.

    Source: Hastie, Tibshirani & Friedman (2009), section 10.6.

    Example:
        >>> AbsoluteError().error(jnp.array([[1.0, 2.0, 5.0]]), jnp.array([[2.0, 2.0, 0.0]]))
        Array([[-1.,  0.,  1.]], dtype=float32)
    """

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.abs(prediction.astype(accumulation_dtype(prediction)) - target).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.sign(prediction.astype(accumulation_dtype(prediction)) - target)

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)
