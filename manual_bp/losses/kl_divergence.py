"""Kullback-Leibler divergence of predicted log-probabilities from target probabilities.

For log-probabilities ℓ and targets y ≥ 0, summed over the units:

    value = Σ y (log y - ℓ),    error = ∂value/∂ℓ = -y

with 0 log 0 = 0: a unit with y = 0 has value 0, also at ℓ = -inf.

Derivation.  y log y is constant and -y ℓ is linear, for any real ℓ: that e^ℓ sums to one is the
network's business (its last layer is a log-softmax), and is not checked.

For logits use SoftmaxCrossEntropy: with ℓ = log softmax(z) its value differs from this one by
Σ y log y, which is constant, and its error softmax(z) Σ y - y is this one's ∂value/∂z, without the
logarithm in between.

Negative targets are an error where integers are at hand; elsewhere their value is NaN, the
logarithm's.

Shapes  prediction ℓ, target y, error: (..., n); value: (...)
Source  Kullback & Leibler (1951), On information and sufficiency
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape, check_units


@dataclass(frozen=True)
class KLDivergence(Loss):
    """Σ y (log y - ℓ) for log-probabilities ℓ, with error -y. For logits: SoftmaxCrossEntropy.

    Raises:
        TypeError, ValueError: for targets whose shape isn't the prediction's, or integers below 0.

    Source: Kullback & Leibler (1951).

    Example:
        >>> log_p = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
        >>> KLDivergence().value(log_p, jnp.array([[1.0, 0.0, 0.0]]))
        Array([0.6931472], dtype=float32)
    """

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        log_p = prediction.astype(accumulation_dtype(prediction))
        y = target.astype(log_p.dtype)
        return jnp.where(y == 0, 0, y * (jnp.log(y) - log_p)).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return -target.astype(accumulation_dtype(prediction))

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)

    def check_target(self, units: int, target: Any, counted: Any) -> None:
        check_units(self, target, counted, target < 0, "a probability, 0 or more")
