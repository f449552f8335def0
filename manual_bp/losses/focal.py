"""Focal loss: binary cross-entropy that all but forgets the units that are right already.

For logits z and targets y in [0, 1], with p = σ(z), q = σ(-z) = 1 - p, summed over the units:

    H = -y log p - (1 - y) log q               binary cross-entropy
    w = (1 - y) p + y q                        the probability that is misplaced
    α_y = α y + (1 - α) (1 - y)                1 without α

    value = Σ α_y w^γ H

    error = ∂value/∂z = α_y w^γ ((1 - y) p - y q + γ (1 - 2y) (p q / w) H)

For y = 1 the value is -α q^γ log p. γ = 0 without α is the cross-entropy itself.

Derivation.  p' = p q and q' = -p q, hence H' = p - y = (1 - y) p - y q and w' = (1 - 2y) p q; then
(w^γ H)' = w^γ (H' + γ (w'/w) H).

Where |z| is large p or q is rounded to 0; for y = 0 or 1 so is w, and p q / w is 0/0. Their
logarithms stay: log p = min(z, 0) - log(1 + e^{-|z|}), log q = log p - z, and for y = 1, log w =
log q. So p q / w = exp(log p + log q - log w), and w^γ = exp(γ log w), precise near w = 1 too.

Shapes  prediction z, target y, error: (..., n); value: (...)
Source  Lin, Goyal, Girshick, He & Dollár (2017), arXiv:1708.02002
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape
from manual_bp.sharding import sharded_like


class Terms(NamedTuple):
    """The formula's quantities, (..., n) each."""

    y: jax.Array
    log_p: jax.Array
    log_q: jax.Array
    log_w: jax.Array
    cross_entropy: jax.Array
    scale: jax.Array


@dataclass(frozen=True)
class Focal(Loss):
    """Σ α_y w^γ H: binary cross-entropy H of logits, scaled by what is misplaced, w.

    Args:
        alpha: α in [0, 1], the share of the yes in all weight; None for no weighting.
        gamma: γ ≥ 0, how fast units that are right are forgotten; 0 forgets none.

    Raises:
        TypeError, ValueError: for targets whose shape isn't the prediction's.

    Source: Lin et al. (2017), arXiv:1708.02002.

    Example:
        >>> z, y = jnp.array([[-4.0, 0.0, 4.0]]), jnp.ones((1, 3))
        >>> print(SigmoidBinaryCrossEntropy().error(z, y))
        [[-0.98201376 -0.5        -0.01798621]]
        >>> print(Focal().error(z, y))
        [[-1.0863959e+00 -2.9828680e-01 -1.7350536e-05]]
    """

    alpha: float | None = None
    gamma: float = 2.0

    def __post_init__(self) -> None:
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"Focal: alpha must be None or in [0, 1], got {self.alpha!r}.")
        if not 0 <= self.gamma < math.inf:
            raise ValueError(f"Focal: gamma must be 0 or more, and finite, got {self.gamma!r}.")

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        terms = self.terms(prediction, target)
        return (terms.scale * terms.cross_entropy).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        y, log_p, log_q, log_w, cross_entropy, scale = self.terms(prediction, target)
        of_cross_entropy = (1 - y) * jnp.exp(log_p) - y * jnp.exp(log_q)
        pq_over_w = jnp.exp(log_p + log_q - log_w)
        return scale * (of_cross_entropy + self.gamma * (1 - 2 * y) * pq_over_w * cross_entropy)

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(self, prediction, target)

    def terms(self, prediction: jax.Array, target: jax.Array) -> Terms:
        z = prediction.astype(accumulation_dtype(prediction))
        y = sharded_like(target.astype(z.dtype), z)
        rest = jnp.log1p(jnp.exp(-jnp.abs(z)))
        log_p, log_q = jnp.minimum(z, 0) - rest, jnp.minimum(-z, 0) - rest
        mixed = jnp.log((1 - y) * jnp.exp(log_p) + y * jnp.exp(log_q))
        log_w = jnp.where(y == 1, log_q, jnp.where(y == 0, log_p, mixed))
        scale = jnp.exp(self.gamma * log_w)  # α_y w^γ
        if self.alpha is not None:
            alpha = jnp.asarray(self.alpha, z.dtype)
            scale *= alpha * y + (1 - alpha) * (1 - y)
        cross_entropy = -y * log_p - (1 - y) * log_q
        return Terms(y, log_p, log_q, log_w, cross_entropy, scale)
