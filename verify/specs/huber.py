"""Spec of Huber: optax's, summed over the units."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from manual_bp.losses.huber import Huber
from verify.specification import BadInput, Edge, LossSpec, Shape


def reference(loss: Huber, a: jax.Array, y: jax.Array) -> jax.Array:
    """optax.huber_loss; at |r| = δ both its pieces have the slope δ, so its autodiff is right."""
    return optax.huber_loss(a, y, delta=loss.delta).sum(-1)


def naive(loss: Huber, a: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The two cases of Huber's definition, one by one."""

    def one(r: Any) -> Any:
        return r * r / 2 if abs(r) <= loss.delta else loss.delta * abs(r) - loss.delta**2 / 2

    terms = [one(p - t) for p, t in zip(a.ravel(), y.ravel(), strict=True)]
    return np.array(terms).reshape(a.shape).sum(-1)


def target(rng: np.random.Generator, loss: Huber, shape: Shape) -> np.ndarray:
    """Real values, near and far."""
    return rng.normal(size=shape) * rng.choice([1.0, 4.0])


def is_exact(loss: Huber) -> bool:
    """Whether δ is a multiple of 1/8, which floats and the lattice hold."""
    return float(8 * loss.delta).is_integer()


SPECS = (
    LossSpec(
        loss=Huber,
        samples=(Huber(), Huber(delta=0.25), Huber(delta=1.7)),
        reference=reference,
        naive=naive,
        target=target,
        draw=lambda rng: Huber(delta=float(rng.choice([1.0, 0.5, 0.25, 2.0, 0.3, 1.7]))),
        exact=is_exact,
        smooth=lambda loss: False,
        edges=(
            Edge(
                function="Huber(1) at 0, where the pieces meet, and beyond",
                point=(0.0, 1.0, -1.0, 3.0, 1e30),
                dtype="float32",
                stated=(0.0, 1.0, -1.0, 1.0, 1.0),
                manual=lambda a: Huber().error(a, jnp.zeros(5)),
                autodiff=jax.grad(lambda a: optax.huber_loss(a, jnp.zeros(5)).sum()),
                recorded=(0.0, 1.0, -1.0, 1.0, 1.0),
            ),
        ),
        errors=(
            BadInput(
                "Huber: targets (m, 1) against (m, 3)",
                lambda: Huber(2.0).check(jnp.zeros((5, 3)), jnp.zeros((5, 1))),
                ValueError,
                ("Huber(2.0)", "shape (5, 1)", "expected (5, 3)", "not broadcast"),
            ),
            BadInput("delta 0", lambda: Huber(delta=0.0), ValueError, ("delta", "above 0", "0.0")),
            BadInput(
                "delta NaN", lambda: Huber(delta=float("nan")), ValueError, ("delta", "above 0")
            ),
        ),
    ),
)
