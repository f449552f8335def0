"""Spec of GlobalAvgPool: jnp.mean of flattened space; or place by place."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.global_avg_pool import GlobalAvgPool
from verify.specification import BadInput, LayerSpec, Shape, Tap


def reference(layer: GlobalAvgPool, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """The mean over one axis of all places."""
    del layer, params, tap
    return jnp.mean(x.reshape(x.shape[0], -1, x.shape[-1]), axis=1)


def naive(layer: GlobalAvgPool, params: Any, x: np.ndarray) -> np.ndarray:
    """Sums over places, divided by their number."""
    del layer, params
    places = list(itertools.product(*map(range, x.shape[1:-1])))
    return np.array(
        [
            [sum(image[(*place, c)] for place in places) / len(places) for c in range(x.shape[-1])]
            for image in x
        ],
        object,
    )


def draw(rng: np.random.Generator, shape: Shape) -> GlobalAvgPool | None:
    """Where there is space."""
    del rng
    return GlobalAvgPool() if len(shape) > 2 else None


def _forward(*shape: int) -> Any:
    return lambda: GlobalAvgPool().forward((), jnp.zeros(shape))


SPECS = (
    LayerSpec(
        layer=GlobalAvgPool,
        samples=(
            (GlobalAvgPool(), (3, 2, 3, 4)),
            (GlobalAvgPool(), (2, 4, 2)),
            (GlobalAvgPool(), (1, 3, 3, 3)),
            (GlobalAvgPool(), (2, 1, 1, 3)),
            (GlobalAvgPool(), (2, 2, 1, 3, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=lambda layer: iter((mbp.MaxPool((1,)),)),
        exact=lambda layer: True,
        errors=(
            BadInput(
                "vectors",
                _forward(5, 3),
                ValueError,
                ("GlobalAvgPool()", "x has shape (5, 3)", "at least one space axis"),
            ),
            BadInput(
                "images without places",
                _forward(5, 0, 2, 3),
                ValueError,
                ("GlobalAvgPool()", "x has shape (5, 0, 2, 3)", "none of them empty"),
            ),
            BadInput(
                "integer images",
                lambda: GlobalAvgPool().forward((), jnp.zeros((2, 3, 3), jnp.uint8)),
                TypeError,
                ("GlobalAvgPool()", "floating-point", "uint8 (2, 3, 3)"),
            ),
        ),
    ),
)
