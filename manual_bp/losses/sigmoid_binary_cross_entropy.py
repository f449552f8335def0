"""Sigmoid binary cross-entropy: the canonical loss of yes and no, for each unit by itself.

For logits z and targets y in [0, 1], with σ(z) = 1/(1 + e⁻ᶻ), summed over the units:

    value = -Σ y log σ(z) + (1 - y) log σ(-z) = Σ max(z, 0) - y z + log(1 + e^{-|z|})

    error = ∂value/∂z = σ(z) - y                  the notes' dZ[L] = A[L] - Y

Derivation.  log σ(z) = -log(1 + e⁻ᶻ) and log σ(-z) = log σ(z) - z, so value = Σ softplus(z) - y z;
softplus' = σ. The second form of softplus, max(z, 0) + log(1 + e^{-|z|}), never overflows.

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
        softplus = jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))
        return (softplus - target * z).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(prediction.astype(accumulation_dtype(prediction))) - target

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)
