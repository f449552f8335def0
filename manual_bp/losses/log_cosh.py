"""Log-cosh loss: half the squared error near the target, the absolute error far from it.

For r = a - y, summed over the units:

    value = Σ log cosh r,    error = ∂value/∂a = tanh r

Derivation.  (log cosh)' = sinh/cosh = tanh. Two forms of log cosh r, each accurate on its side:

    |r| ≤ 1:  cosh r - 1 = ½ e^r (1 - e^{-r})²,    log cosh r = log(1 + ½ e^r (1 - e^{-r})²)
    |r| > 1:  cosh r = ½ e^{|r|} (1 + e^{-2|r|}),  log cosh r = |r| + log(1 + e^{-2|r|}) - ln 2

and tanh r = sign(r) (1 - e^{-2|r|}) / (1 + e^{-2|r|}).

The first keeps its relative accuracy down to ½ r² (the second would subtract ln 2 from ln 2); the
second never overflows.

Shapes  prediction a, target y, error: (..., n); value: (...)
Source  Saleh & Saleh (2022), arXiv:2208.04564
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape


@dataclass(frozen=True)
class LogCosh(Loss):
    """Σ log cosh(a - y), with error tanh(a - y).

    Raises:
        TypeError, ValueError: for targets whose shape isn't the prediction's.

    Source: Saleh & Saleh (2022), arXiv:2208.04564.

    Example:
        >>> LogCosh().error(jnp.array([[0.5, 1000.0]]), jnp.zeros((1, 2)))
        Array([[0.46211717, 1.        ]], dtype=float32)
    """

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        r = prediction.astype(accumulation_dtype(prediction)) - target
        distance, small = jnp.abs(r), jnp.clip(r, -1, 1)
        near = jnp.log1p(0.5 * jnp.exp(small) * jnp.square(jnp.expm1(-small)))
        far = distance + jnp.log1p(jnp.exp(-2 * distance)) - 0.6931471805599453  # ln 2
        return jnp.where(distance <= 1, near, far).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        r = prediction.astype(accumulation_dtype(prediction)) - target
        twice = -2 * jnp.abs(r)
        return jnp.sign(r) * -jnp.expm1(twice) / (1 + jnp.exp(twice))

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)
