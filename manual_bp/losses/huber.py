"""Huber loss: squared error near the target, absolute error beyond δ.

For r = a - y and q = min(|r|, δ), summed over the units:

    value = Σ q (|r| - ½ q)        ½ r² where |r| ≤ δ,  δ (|r| - ½ δ) where |r| > δ

    error = ∂value/∂a = min(max(r, -δ), δ)

Derivation.  (½ r²)' = r and (δ |r|)' = δ sign(r). Both pieces have value ½ δ² and slope ±δ at
|r| = δ, so there is no kink: the error of ½ Σ r², clipped to [-δ, δ].

Shapes  prediction a, target y, error: (..., n); value: (...)
Source  Huber (1964), Robust estimation of a location parameter
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape


@dataclass(frozen=True)
class Huber(Loss):
    """Σ ½ r² where |r| ≤ δ, δ (|r| - ½ δ) beyond, with error r clipped to [-δ, δ]; r = a - y.

    Args:
        delta: δ > 0, where the square ends.

    Raises:
        TypeError, ValueError: for targets whose shape isn't the prediction's.

    Source: Huber (1964).

    Example:
        >>> Huber().error(jnp.array([[0.5, 3.0, -7.0]]), jnp.zeros((1, 3)))
        Array([[ 0.5,  1. , -1. ]], dtype=float32)
    """

    delta: float = 1.0

    def __post_init__(self) -> None:
        if not self.delta > 0:
            raise ValueError(f"Huber: delta must be above 0, got {self.delta!r}.")

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        distance = jnp.abs(prediction.astype(accumulation_dtype(prediction)) - target)
        q = jnp.minimum(distance, self.delta)
        return (q * (distance - 0.5 * q)).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        r = prediction.astype(accumulation_dtype(prediction)) - target
        return jnp.minimum(jnp.maximum(r, -self.delta), self.delta)

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)
