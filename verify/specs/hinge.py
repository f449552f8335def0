"""Spec of Hinge: optax's, summed over the units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax

from manual_bp.losses.hinge import Hinge
from verify.specification import BadInput, Edge, LossSpec, Shape

loss = Hinge()


def naive(loss: Hinge, z: np.ndarray, y: np.ndarray) -> np.ndarray:
    """max(0, 1 - y z), one by one."""
    terms = [max(0 * p, 1 - t * p) for p, t in zip(z.ravel(), y.ravel(), strict=True)]
    return np.array(terms).reshape(z.shape).sum(-1)


def target(rng: np.random.Generator, loss: Hinge, shape: Shape) -> np.ndarray:
    """-1 and 1."""
    return rng.choice([-1.0, 1.0], size=shape)


def _target(*labels: int) -> np.ndarray:
    return np.array([labels])


SPECS = (
    LossSpec(
        loss=Hinge,
        samples=(loss,),
        reference=lambda loss, z, y: optax.hinge_loss(z, y).sum(-1),
        naive=naive,
        target=target,
        draw=lambda rng: loss,
        exact=lambda loss: True,
        smooth=lambda loss: False,
        edges=(
            Edge(
                function="max(0, 1 - z) within the margin, on it and beyond",
                point=(0.0, 1.0, 2.0),
                dtype="float32",
                stated=(-1.0, -0.5, 0.0),
                manual=lambda z: loss.error(z, jnp.ones(3)),
                autodiff=jax.grad(lambda z: optax.hinge_loss(z, jnp.ones(3)).sum()),
                recorded=(-1.0, -0.5, 0.0),
            ),
        ),
        errors=(
            BadInput(
                "hinge: labels (m,) against (m, 1)",
                lambda: loss.check(jnp.zeros((5, 1)), jnp.zeros(5)),
                ValueError,
                ("Hinge()", "shape (5,)", "expected (5, 1)", "y[..., None]"),
            ),
            BadInput(
                "hinge: integer classes",
                lambda: loss.check(jnp.zeros((5, 3)), jnp.zeros(5, jnp.int32)),
                TypeError,
                ("integers of shape (5,)", "2 * jax.nn.one_hot(y, 3) - 1", "MulticlassHinge()"),
            ),
            BadInput(
                "hinge: yes and no",
                lambda: loss.check(jnp.zeros((5, 3)), jnp.zeros((5, 3), bool)),
                TypeError,
                ("labels are -1 and +1", "bool (5, 3)", "jnp.where(y, 1, -1)"),
            ),
            BadInput(
                "hinge: unsigned integers",
                lambda: loss.check(jnp.zeros((5, 3)), jnp.zeros((5, 3), jnp.uint8)),
                TypeError,
                ("labels are -1 and +1", "uint8 (5, 3)"),
            ),
            BadInput(
                "hinge: a label 0",
                lambda: loss.check_target(3, _target(1, -1, 0), np.ones(1, dtype=bool)),
                ValueError,
                ("Hinge()", "target [0, 2] is 0", "expected -1 or 1", "weight 0"),
            ),
        ),
    ),
)
