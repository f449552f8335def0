"""Spec of SquaredError: optax.l2_loss, summed over the units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from manual_bp.losses.squared_error import SquaredError
from verify.specification import BadInput, LossSpec

loss = SquaredError()


def _checked(prediction: tuple[int, ...], target: jax.Array):
    return lambda: loss.check(jnp.zeros(prediction), target)


SPECS = (
    LossSpec(
        loss=SquaredError,
        samples=(loss,),
        reference=lambda loss, a, y: optax.l2_loss(a, y).sum(-1),
        naive=lambda loss, a, y: np.array(
            [
                sum((p - t) ** 2 for p, t in zip(row, goal, strict=True)) / 2
                for row, goal in zip(
                    a.reshape(-1, a.shape[-1]), y.reshape(-1, a.shape[-1]), strict=True
                )
            ]
        ).reshape(a.shape[:-1]),
        target=lambda rng, loss, shape: rng.normal(size=shape),
        draw=lambda rng: loss,
        notes_target=lambda loss, y, units: y,
        exact=lambda loss: True,
        errors=(
            BadInput(
                "targets (m,) against (m, 1)",
                _checked((5, 1), jnp.zeros(5)),
                ValueError,
                (
                    "SquaredError()",
                    "shape (5,)",
                    "expected (5, 1)",
                    "not broadcast",
                    "y[..., None]",
                ),
            ),
            BadInput(
                "targets (m, 1) against (m, 3)",
                _checked((5, 3), jnp.zeros((5, 1))),
                ValueError,
                ("shape (5, 1)", "expected (5, 3)", "not broadcast"),
            ),
            BadInput(
                "targets as features x examples",
                _checked((5, 3), jnp.zeros((3, 5))),
                ValueError,
                ("shape (3, 5)", "expected (5, 3)", "y.T would fit"),
            ),
            BadInput(
                "integer labels where one-hot is due",
                _checked((5, 3), jnp.zeros(5, jnp.int32)),
                TypeError,
                ("integers of shape (5,)", "jax.nn.one_hot(y, 3)", "SoftmaxCrossEntropy()"),
            ),
        ),
    ),
)
