"""Poisson negative log-likelihood: the canonical loss of counts, predicting the log of the rate.

For log rates z and counts y ≥ 0, summed over the units:

    value = Σ e^z - y z,    error = ∂value/∂z = e^z - y        the notes' dZ[L] = A[L] - Y

Derivation.  With rate λ = e^z, the probability of y is λ^y e^{-λ} / y!, and minus its logarithm is
λ - y log λ + log y! = e^z - y z + log y!. The last term doesn't depend on z and is left out;
jax.lax.lgamma(y + 1) is log y!. The derivative of e^z is itself, so exp is the output activation.

Where y = 0 the term y z is 0, also at z = -inf (a rate of 0).

Targets need not be whole: a mean of counts is as good. Negative ones are an error where integers
are at hand; elsewhere the formula is evaluated as it stands, and has no lowest value.

Shapes  prediction z, target y, error: (..., n); value: (...)
Source  Nelder & Wedderburn (1972), Generalized linear models
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape, check_units


@dataclass(frozen=True)
class PoissonNegativeLogLikelihood(Loss):
    """Σ e^z - y z, with error e^z - y; z is the log of the rate, log y! is left out.

    Raises:
        TypeError, ValueError: for targets whose shape isn't the prediction's, or integers below 0.

    Source: Nelder & Wedderburn (1972).

    Example:
        >>> PoissonNegativeLogLikelihood().error(jnp.zeros((1, 3)), jnp.array([[0, 1, 4]]))
        Array([[ 1.,  0., -3.]], dtype=float32)
    """

    def activate(self, prediction: jax.Array) -> jax.Array:
        return jnp.exp(prediction)

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        z = prediction.astype(accumulation_dtype(prediction))
        return (jnp.exp(z) - jnp.where(target == 0, 0, target * z)).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        return jnp.exp(prediction.astype(accumulation_dtype(prediction))) - target

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)

    def check_target(self, units: int, target: Any, counted: Any) -> None:
        check_units(self, target, counted, target < 0, "a count, 0 or more")
