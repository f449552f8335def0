"""Spec of LastStep: the last index of the time axis."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layers.last_step import LastStep
from verify.specification import BadInput, LayerSpec, Shape, Tap


def reference(layer: LastStep, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """Of all steps the last."""
    return jnp.squeeze(jnp.split(x, x.shape[1], axis=1)[-1], axis=1)


def naive(layer: LastStep, params: Any, x: np.ndarray) -> np.ndarray:
    """Example by example."""
    return np.array([list(example)[-1] for example in x])


def draw(rng: np.random.Generator, shape: Shape) -> LastStep | None:
    """For sequences."""
    return LastStep() if len(shape) == 3 else None


SPECS = (
    LayerSpec(
        layer=LastStep,
        samples=(
            (LastStep(), (2, 3, 4)),
            (LastStep(), (3, 3, 3)),
            (LastStep(), (1, 1, 2)),
            (LastStep(), (2, 3, 2, 2)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        exact=lambda layer: True,
        errors=(
            BadInput(
                "LastStep: no time",
                lambda: LastStep().forward((), jnp.zeros(5)),
                ValueError,
                ("LastStep()", "x has shape (5,)", "expected (m, T, ...)"),
            ),
            BadInput(
                "LastStep: no step",
                lambda: LastStep().init(jax.random.key(0), jnp.zeros((5, 0, 2))),
                ValueError,
                ("LastStep()", "x has shape (5, 0, 2)", "at least one step"),
            ),
            BadInput(
                "LastStep: integers",
                lambda: LastStep().forward((), jnp.zeros((5, 2, 2), jnp.int32)),
                TypeError,
                ("LastStep()", "floating-point", "int32"),
            ),
            BadInput(
                "LastStep: a mask",
                lambda: LastStep().forward((), jnp.zeros((5, 2, 2)), mask=jnp.ones((5, 2), bool)),
                TypeError,
                ("LastStep() takes nothing", "leave out mask"),
            ),
        ),
    ),
)
