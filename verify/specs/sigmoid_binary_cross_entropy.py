"""Spec of SigmoidBinaryCrossEntropy: optax's, summed over the units."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax

from manual_bp.losses.sigmoid_binary_cross_entropy import SigmoidBinaryCrossEntropy
from verify.specification import BadInput, Edge, LossSpec, Shape

loss = SigmoidBinaryCrossEntropy()


def naive(loss: SigmoidBinaryCrossEntropy, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """-y log σ(z) - (1 - y) log(1 - σ(z)) from the definition of σ."""

    def one(z: Any, y: Any) -> Any:
        p = 1 / (1 + mp.exp(-z))
        return -y * mp.log(p) - (1 - y) * mp.log(1 / (1 + mp.exp(z)))

    terms = [one(*pair) for pair in zip(z.ravel(), y.ravel(), strict=True)]
    return np.array(terms).reshape(z.shape).sum(-1)


def target(rng: np.random.Generator, loss: SigmoidBinaryCrossEntropy, shape: Shape) -> np.ndarray:
    """Yes and no, or shares in between."""
    return (rng.random(shape) < 0.4) * 1.0 if rng.random() < 0.5 else rng.random(shape)


SPECS = (
    LossSpec(
        loss=SigmoidBinaryCrossEntropy,
        samples=(loss,),
        reference=lambda loss, z, y: optax.sigmoid_binary_cross_entropy(z, y).sum(-1),
        naive=naive,
        target=target,
        draw=lambda rng: loss,
        activation=jax.nn.sigmoid,
        notes_target=lambda loss, y, units: y,
        edges=(
            Edge(
                function="-log(σ(z))",
                point=(-200.0, 0.0),
                dtype="float32",
                stated=(-1.0, -0.5),
                manual=lambda z: loss.error(z, jnp.ones(2)),
                autodiff=jax.grad(lambda z: -jnp.log(jax.nn.sigmoid(z)).sum()),
                recorded=(np.nan, -0.5),
            ),
            Edge(
                function="sigmoid binary cross-entropy of a yes",
                point=(20.0, 30.0),
                dtype="float32",
                stated=(-2.06e-09, -9.36e-14),
                manual=lambda z: loss.error(z, jnp.ones(2)),
                autodiff=jax.grad(lambda z: optax.sigmoid_binary_cross_entropy(z, 1.0).sum()),
                recorded=(-2.06e-09, -9.36e-14),
            ),
        ),
        errors=(
            BadInput(
                "targets (m,) against (m, 1)",
                lambda: loss.check(jnp.zeros((5, 1)), jnp.zeros(5)),
                ValueError,
                ("SigmoidBinaryCrossEntropy()", "shape (5,)", "expected (5, 1)", "y[..., None]"),
            ),
        ),
    ),
)
