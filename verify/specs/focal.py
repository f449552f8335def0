"""Spec of Focal: optax's cross-entropy, scaled by a power of a probability."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax

from manual_bp.losses.focal import Focal
from verify.specification import BadInput, Edge, LossSpec, Shape


def reference(loss: Focal, z: jax.Array, y: jax.Array) -> jax.Array:
    """(1 - p_t)^γ times optax's cross-entropy; optax's focal loss takes log 0, and drops it."""
    cross_entropy = optax.sigmoid_binary_cross_entropy(z, y)
    missed = (1 - y) * jax.nn.sigmoid(z) + y * jax.nn.sigmoid(-z)
    values = jnp.exp(loss.gamma * jnp.log(missed)) * cross_entropy
    if loss.alpha is not None:
        alpha = jnp.asarray(loss.alpha, z.dtype)
        values = (alpha * y + (1 - alpha) * (1 - y)) * values
    return values.sum(-1)


def naive(loss: Focal, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-α_t (1 - p_t)^γ log p_t, one by one, with log p_t shared out between soft labels."""

    def one(z: Any, y: Any) -> Any:
        p, q = 1 / (1 + mp.exp(-z)), 1 / (1 + mp.exp(z))
        share = 1 if loss.alpha is None else loss.alpha * y + (1 - mp.mpf(loss.alpha)) * (1 - y)
        entropy = -(y * mp.log(p) + (1 - y) * mp.log(q))
        return share * ((1 - y) * p + y * q) ** mp.mpf(loss.gamma) * entropy

    terms = [one(*pair) for pair in zip(z.ravel(), y.ravel(), strict=True)]
    return np.array(terms).reshape(z.shape).sum(-1)


def target(rng: np.random.Generator, loss: Focal, shape: Shape) -> np.ndarray:
    """Yes and no, and shares in between."""
    y = rng.random(shape)
    return np.where(rng.random(shape) < 0.6, y < 0.4, y)


def draw(rng: np.random.Generator) -> Focal:
    """With and without α, γ of all kinds."""
    alpha = [None, 0.25, 0.7, 1.0][rng.integers(4)]
    return Focal(alpha=alpha, gamma=float(rng.choice([2.0, 0.0, 0.5, 1.0, 5.0])))


def by_powers(z: jax.Array) -> jax.Array:
    """The idiomatic form for y = 1: -(1 - p)² log p."""
    p = jax.nn.sigmoid(z)
    return -(jnp.square(1 - p) * jnp.log(p)).sum()


SPECS = (
    LossSpec(
        loss=Focal,
        samples=(
            Focal(),
            Focal(alpha=0.25),
            Focal(alpha=0.75, gamma=0.5),
            Focal(gamma=0.0),
            Focal(gamma=5.0),
        ),
        reference=reference,
        naive=naive,
        target=target,
        draw=draw,
        edges=(
            Edge(
                function="-(1 - σ(z))² log σ(z)",
                point=(17.0, 0.0, -200.0, -1e4, 1e4),
                dtype="float32",
                stated=(-2.13e-22, -0.298, -1.0, -1.0, 0.0),
                manual=lambda z: Focal().error(z, jnp.ones(5)),
                autodiff=jax.grad(by_powers),
                recorded=(0.0, -0.298, np.nan, np.nan, 0.0),
            ),
        ),
        errors=(
            BadInput(
                "focal: targets (m,) against (m, 1)",
                lambda: Focal().check(jnp.zeros((5, 1)), jnp.zeros(5)),
                ValueError,
                ("Focal()", "shape (5,)", "expected (5, 1)", "y[..., None]"),
            ),
            BadInput("alpha above 1", lambda: Focal(alpha=1.5), ValueError, ("alpha", "[0, 1]")),
            BadInput("gamma below 0", lambda: Focal(gamma=-1.0), ValueError, ("gamma", "-1.0")),
            BadInput(
                "gamma without end", lambda: Focal(gamma=np.inf), ValueError, ("gamma", "finite")
            ),
        ),
    ),
)
