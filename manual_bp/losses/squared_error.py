"""Squared error: the canonical loss of real values.

    value = ½ Σ (a - y)²,    error = ∂value/∂a = a - y         the notes' dZ[L] = A[L] - Y

Derivation.  Each unit enters one term of the sum; the ½ cancels the 2 of the power.

Shapes  prediction a, target y, error: (..., n); value: (...)
Source  Gauss (1809); Bishop (2006), Pattern Recognition and Machine Learning, section 3.1.1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape


@dataclass(frozen=True)
class SquaredError(Loss):
    """½ Σ (a - y)², with error a - y.

    Raises:
        ValueError: for targets whose shape isn't the prediction's.

    Source: Bishop (2006), section 3.1.1.

    Example:
        >>> SquaredError().value(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]]))
        Array([2.5], dtype=float32)
    """

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return 0.5 * jnp.square(self.error(prediction, target)).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return prediction.astype(accumulation_dtype(prediction)) - target

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)
