"""Spec of KLDivergence: optax's formula, without a logarithm of 0."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from manual_bp.losses.kl_divergence import KLDivergence
from verify.specification import BadInput, Edge, LossSpec, Shape

loss = KLDivergence()


def reference(loss: KLDivergence, log_p: jax.Array, y: jax.Array) -> jax.Array:
    """Cross-entropy less entropy; optax.kl_divergence takes log 0, and drops it."""
    entropy = -(y * jnp.log(jnp.where(y > 0, y, 1))).sum(-1)
    return -(y * log_p).sum(-1) - entropy


def naive(loss: KLDivergence, log_p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """y log(y/p), one by one."""
    pairs = zip(log_p.ravel(), y.ravel(), strict=True)
    terms = [mp.mpf(t) * mp.log(t / mp.exp(p)) if t else mp.mpf(0) for p, t in pairs]
    return np.array(terms).reshape(log_p.shape).sum(-1)


def target(rng: np.random.Generator, loss: KLDivergence, shape: Shape) -> np.ndarray:
    """Distributions, zeros in some; or weights that don't sum to one."""
    weights = rng.random(shape) * (rng.random(shape) < 0.7)
    if rng.random() < 0.3:
        return weights
    return weights / np.where(weights.any(-1, keepdims=True), weights.sum(-1, keepdims=True), 1)


def by_probabilities(log_p: jax.Array) -> jax.Array:
    """The idiomatic form, which divides by probabilities."""
    y = jnp.array([0.0, 0.5, 0.5])
    return (y * jnp.log(y / jnp.exp(log_p))).sum()


SPECS = (
    LossSpec(
        loss=KLDivergence,
        samples=(loss,),
        reference=reference,
        naive=naive,
        target=target,
        draw=lambda rng: loss,
        edges=(
            Edge(
                function="y log(y / e^ℓ) with y = (0, ½, ½)",
                point=(-1.0, -1.0, -200.0),
                dtype="float32",
                stated=(0.0, -0.5, -0.5),
                manual=lambda log_p: loss.error(log_p, jnp.array([0.0, 0.5, 0.5])),
                autodiff=jax.grad(by_probabilities),
                recorded=(np.nan, -0.5, np.nan),
            ),
        ),
        errors=(
            BadInput(
                "KL divergence: integer classes",
                lambda: loss.check(jnp.zeros((5, 3)), jnp.zeros(5, jnp.int32)),
                TypeError,
                ("KLDivergence()", "integers of shape (5,)", "jax.nn.one_hot(y, 3)"),
            ),
            BadInput(
                "KL divergence: a negative share",
                lambda: loss.check_target(2, np.array([[2, -1]]), np.ones((1, 2), dtype=bool)),
                ValueError,
                ("target [0, 1] is -1", "a probability, 0 or more"),
            ),
        ),
    ),
)
