"""Spec of MulticlassHinge: optax's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from manual_bp.losses.multiclass_hinge import MulticlassHinge
from verify.specification import BadInput, Edge, LossSpec, Shape

loss = MulticlassHinge()


def naive(loss: MulticlassHinge, z: np.ndarray, k: np.ndarray) -> np.ndarray:
    """The largest 1 + z_c - z_k of the other classes, or 0, row by row."""
    rows = zip(z.reshape(-1, z.shape[-1]), k.ravel(), strict=True)
    values = [
        max([0 * row[k], *(1 + each - row[k] for c, each in enumerate(row) if c != k)])
        for row, k in rows
    ]
    return np.array(values).reshape(k.shape)


def target(rng: np.random.Generator, loss: MulticlassHinge, shape: Shape) -> np.ndarray:
    """Classes."""
    return rng.integers(0, shape[-1], size=shape[:-1])


def _checked(prediction: Shape, target: Any) -> Any:
    return lambda: loss.check(jnp.zeros(prediction), target)


def _edge(function: str, scores: tuple[float, ...], k: int, stated: Any, recorded: Any) -> Edge:
    return Edge(
        function=function,
        point=scores,
        dtype="float32",
        stated=stated,
        manual=lambda z: loss.error(z, jnp.array(k)),
        autodiff=jax.grad(lambda z: optax.losses.multiclass_hinge_loss(z, jnp.array(k))),
        recorded=recorded,
    )


SPECS = (
    LossSpec(
        loss=MulticlassHinge,
        samples=(loss,),
        reference=lambda loss, z, k: optax.losses.multiclass_hinge_loss(z, k),
        naive=naive,
        target=target,
        draw=lambda rng: loss,
        exact=lambda loss: True,
        smooth=lambda loss: False,
        edges=(
            _edge(
                "multiclass hinge, class 0, a rival on the margin",
                (1.0, 0.0, -5.0),
                0,
                (-0.5, 0.5, 0.0),
                (-0.5, 0.5, 0.0),
            ),
            _edge(
                "multiclass hinge, class 0, two rivals on the margin",
                (1.0, 0.0, 0.0),
                0,
                (-0.667, 0.333, 0.333),
                (-0.667, 0.333, 0.333),
            ),
            _edge("multiclass hinge, class 3 of 2", (1.0, 0.0), 3, (np.nan, np.nan), (1.0, 0.0)),
            _edge("multiclass hinge, class -1", (1.0, 0.0), -1, (np.nan, np.nan), (1.0, 0.0)),
        ),
        errors=(
            BadInput(
                "multiclass hinge: floating-point classes",
                _checked((5, 3), jnp.zeros(5)),
                TypeError,
                ("MulticlassHinge()", "shape (5,)", "must be integers", "y.astype(int)"),
            ),
            BadInput(
                "multiclass hinge: one-hot labels",
                _checked((5, 3), jnp.zeros((5, 3))),
                ValueError,
                ("shape (5, 3)", "expected integer classes of shape (5,)", "y.argmax(-1)"),
            ),
            BadInput(
                "multiclass hinge: classes (m, 1)",
                _checked((5, 3), jnp.zeros((5, 1), jnp.int32)),
                ValueError,
                ("shape (5, 1)", "shape (5,)", "not broadcast", "y[..., 0]"),
            ),
            BadInput(
                "multiclass hinge: a class too high",
                lambda: loss.check_target(3, np.array([0, 3]), np.ones(2, dtype=bool)),
                ValueError,
                ("MulticlassHinge()", "class 3 of target [1]", "3 classes 0 to 2", "weight 0."),
            ),
        ),
        omitted={
            "L4 bounds": "the share of the largest is 1 over how many are largest, and with "
            "bounds a maximum may always differ from itself; it is exact in fractions (L2)"
        },
    ),
)
