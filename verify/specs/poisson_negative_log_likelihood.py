"""Spec of PoissonNegativeLogLikelihood: through the rate, as the distribution is defined."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from manual_bp.losses.poisson_negative_log_likelihood import PoissonNegativeLogLikelihood
from verify.specification import BadInput, Edge, LossSpec, Shape

loss = PoissonNegativeLogLikelihood()


def reference(loss: PoissonNegativeLogLikelihood, z: jax.Array, y: jax.Array) -> jax.Array:
    """λ - y log λ with λ = e^z; optax has no such loss."""
    rate = jnp.exp(z)
    return (rate - y * jnp.log(rate)).sum(-1)


def naive(loss: PoissonNegativeLogLikelihood, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-log(λ^y e^{-λ}), one by one."""

    def one(z: Any, y: Any) -> Any:
        rate = mp.exp(z)
        return -(mp.log(rate**y) + mp.log(mp.exp(-rate)))

    terms = [one(*pair) for pair in zip(z.ravel(), y.ravel(), strict=True)]
    return np.array(terms).reshape(z.shape).sum(-1)


def target(
    rng: np.random.Generator, loss: PoissonNegativeLogLikelihood, shape: Shape
) -> np.ndarray:
    """Counts, zeros among them, or means of counts."""
    return rng.poisson(2.0, size=shape) * 1.0 if rng.random() < 0.7 else rng.gamma(2.0, size=shape)


def by_log_density(z: jax.Array) -> jax.Array:
    """The idiomatic form, which takes the logarithm of a rate."""
    return -jax.scipy.stats.poisson.logpmf(jnp.array([3, 3]), jnp.exp(z)).sum()


SPECS = (
    LossSpec(
        loss=PoissonNegativeLogLikelihood,
        samples=(loss,),
        reference=reference,
        naive=naive,
        target=target,
        draw=lambda rng: loss,
        activation=jnp.exp,
        notes_target=lambda loss, y, units: y,
        edges=(
            Edge(
                function="-log of the Poisson probability of 3 at the rate e^z",
                point=(-200.0, 0.0),
                dtype="float32",
                stated=(-3.0, -2.0),
                manual=lambda z: loss.error(z, jnp.array([3, 3])),
                autodiff=jax.grad(by_log_density),
                recorded=(np.nan, -2.0),
            ),
        ),
        errors=(
            BadInput(
                "counts (m,) against (m, 1)",
                lambda: loss.check(jnp.zeros((5, 1)), jnp.zeros(5, jnp.int32)),
                ValueError,
                ("PoissonNegativeLogLikelihood()", "shape (5,)", "expected (5, 1)", "y[..., None]"),
            ),
            BadInput(
                "a negative count",
                lambda: loss.check_target(
                    2, np.array([[0, 3], [2, -1]]), np.ones((2, 2), dtype=bool)
                ),
                ValueError,
                ("target [1, 1] is -1", "a count, 0 or more", "weight 0"),
            ),
        ),
    ),
)
