"""Spec of Flatten: each example's ravel, stacked; or element by element."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.flatten import Flatten
from verify.specification import BadInput, LayerSpec, Shape, Tap


def reference(layer: Flatten, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """jax.lax.collapse of all axes but the first."""
    del layer, params, tap
    return jax.lax.collapse(x, 1)


def naive(layer: Flatten, params: Any, x: np.ndarray) -> np.ndarray:
    """The last index runs fastest."""
    del layer, params
    places = list(itertools.product(*map(range, x.shape[1:])))
    return np.array([[example[place] for place in places] for example in x], object)


def draw(rng: np.random.Generator, shape: Shape) -> Flatten:
    """There is one."""
    del rng, shape
    return Flatten()


SPECS = (
    LayerSpec(
        layer=Flatten,
        samples=(
            (Flatten(), (3, 2, 4, 5)),
            (Flatten(), (2, 2, 2)),
            (Flatten(), (1, 3)),
            (Flatten(), (2, 1, 3, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=lambda layer: iter((mbp.identity,)),
        exact=lambda layer: True,
        errors=(
            BadInput(
                "examples that are numbers",
                lambda: Flatten().init(jax.random.key(0), jnp.zeros(5)),
                ValueError,
                ("Flatten()", "x has shape (5,)", "expected (m, ...)"),
            ),
            BadInput(
                "integer images",
                lambda: Flatten().forward((), jnp.zeros((2, 3, 3), jnp.uint8)),
                TypeError,
                ("Flatten()", "floating-point", "uint8 (2, 3, 3)", "x / 255"),
            ),
        ),
    ),
)
