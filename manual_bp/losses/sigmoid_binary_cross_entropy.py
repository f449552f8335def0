"""Sigmoid binary cross-entropy: the canonical loss of yes and no, for each unit by itself.

For logits z and targets y in [0, 1], with σ(z) = 1/(1 + e⁻ᶻ), summed over the units:

    value = -Σ y log σ(z) + (1 - y) log σ(-z)
          = Σ y max(-z, 0) + (1 - y) max(z, 0) + log(1 + e^{-|z|})

    error = ∂value/∂z = σ(z) - y                  the notes' dZ[L] = A[L] - Y
                      = (1 - y) σ(z) - y σ(-z)

Derivation.  -log σ(±z) = softplus(∓z) = max(∓z, 0) + log(1 + e^{-|z|}), which never overflows, and
the logarithm's weights add up to y + (1 - y) = 1. softplus' = σ gives the last form of the error,
and σ(-z) = 1 - σ(z) the notes'. The last keeps what σ(z) - y loses where a right unit is sure: at
z = 20 and y = 1 it is -2.06e-9, which is 0 when 1 is subtracted from σ in float32.

Shapes  prediction, target, error: (..., n); value: (...)
Source  Bishop (2006), Pattern Recognition and Machine Learning, section 4.3.2
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape


@dataclass(frozen=True)
class SigmoidBinaryCrossEntropy(Loss):
    """-Σ y log σ(z) + (1 - y) log σ(-z), with error σ(z) - y.

    Raises:
        ValueError: for targets whose shape isn't the prediction's.

    Source: Bishop (2006), section 4.3.2.

    Example:
        >>> SigmoidBinaryCrossEntropy().error(jnp.zeros((2, 1)), jnp.array([[0.0], [1.0]]))
        Array([[ 0.5],
               [-0.5]], dtype=float32)
    """

    def activate(self, prediction: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(prediction)

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        z = prediction.astype(accumulation_dtype(prediction))
        wrong_by = target * jnp.maximum(-z, 0) + (1 - target) * jnp.maximum(z, 0)
        return (wrong_by + jnp.log1p(jnp.exp(-jnp.abs(z)))).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        z = prediction.astype(accumulation_dtype(prediction))
        return (1 - target) * jax.nn.sigmoid(z) - target * jax.nn.sigmoid(-z)

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)
