"""Spec of AvgPool: lax.reduce_window over sizes, as flax has it; or one window at a time."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layers.avg_pool import AvgPool
from verify.specification import BadInput, LayerSpec, Shape, Tap
from verify.specs.max_pool import bad_settings, by_windows, config, settings, shrink


def reference(layer: AvgPool, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """Sums of windows over their size, or over the sums of windows of ones."""
    del params, tap

    def total(values: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(values, 0.0, jax.lax.add, **config(layer, x))

    if layer.count_padding:
        return total(x) / math.prod(layer.window)
    return total(x) / total(jnp.ones_like(x))


def naive(layer: AvgPool, params: Any, x: np.ndarray) -> np.ndarray:
    """The sum of the elements in each window, over its places or over their number."""
    del params
    size = math.prod(layer.window)
    return by_windows(
        layer, x, lambda inside: sum(inside) / (size if layer.count_padding else len(inside))
    )


def draw(rng: np.random.Generator, shape: Shape) -> AvgPool | None:
    """As MaxPool, with padded places counted or not."""
    given = settings(rng, shape)
    return None if given is None else AvgPool(**given, count_padding=bool(rng.random() < 0.5))


SPECS = (
    LayerSpec(
        layer=AvgPool,
        samples=(
            (AvgPool((2, 3)), (2, 5, 6, 2)),  # a row is left over
            (AvgPool((3, 2), (2, 1)), (2, 5, 4, 1)),  # windows overlap along both axes
            (AvgPool((3, 3), 2, "SAME"), (1, 4, 4, 2)),
            (AvgPool((3, 2), (2, 2), "SAME", count_padding=False), (2, 4, 3, 2)),
            (AvgPool((2, 2), (1, 1), ((1, 0), (0, 1)), count_padding=False), (2, 2, 2, 2)),
            (AvgPool((2,), (3,)), (2, 8, 3)),  # gaps between windows
            (AvgPool((3,), (1,), ((2, 1),)), (3, 2, 1)),
            (AvgPool((2, 1), None, ((1, 1), (0, 0))), (1, 2, 1, 2)),
            (AvgPool((2, 1, 2), (1, 1, 2)), (2, 3, 2, 4, 1)),
            (AvgPool((2, 2)), (2, 2, 2, 3, 1)),  # two leading axes
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: True,
        errors=(
            *bad_settings(AvgPool),
            BadInput(
                "a number for whether padding counts",
                lambda: AvgPool((2,), count_padding=1),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("AvgPool: count_padding must be a bool, got 1",),
            ),
        ),
    ),
)
