"""Spec of PositionEmbedding: a one-hot product; or position by position."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layers.position_embedding import Params, PositionEmbedding
from verify.specification import BadInput, LayerSpec, Shape, Tap


def reference(layer: PositionEmbedding, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """The positions as tokens of a table."""
    del layer, tap
    return x + jnp.take(params.P, jnp.arange(x.shape[1]), axis=0)


def naive(layer: PositionEmbedding, params: Any, x: np.ndarray) -> np.ndarray:
    """One position of one example at a time."""
    del layer
    out = np.empty(x.shape, object)
    for n, sequence in enumerate(x):
        for t, vector in enumerate(sequence):
            for f, each in enumerate(vector):
                out[n, t, f] = each + params.P[t][f]
    return out


def draw(rng: np.random.Generator, shape: Shape) -> PositionEmbedding | None:
    """Of just as many positions as there are, or of more."""
    return PositionEmbedding(shape[1] + int(rng.integers(3))) if len(shape) == 3 else None


def _forward(P: Any, x: Any, dtype: Any = jnp.float32) -> Any:
    return lambda: PositionEmbedding(6).forward(Params(jnp.zeros(P)), jnp.zeros(x, dtype))


SPECS = (
    LayerSpec(
        layer=PositionEmbedding,
        samples=(
            (PositionEmbedding(4), (2, 3, 2)),
            (PositionEmbedding(3), (3, 3, 3)),
            (PositionEmbedding(2), (1, 1, 2)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        exact=lambda layer: True,
        errors=(
            BadInput(
                "position embedding: more positions than there are vectors",
                _forward((6, 4), (2, 7, 4)),
                ValueError,
                ("PositionEmbedding(6)", "has 7 positions", "only 6", "larger length"),
            ),
            BadInput(
                "position embedding: more positions at init",
                lambda: PositionEmbedding(6).init(jax.random.key(0), jnp.zeros((2, 7, 4))),
                ValueError,
                ("PositionEmbedding(6)", "has 7 positions"),
            ),
            BadInput(
                "position embedding: vectors without positions",
                _forward((6, 4), (2, 4)),
                ValueError,
                ("PositionEmbedding(6)", "x has shape (2, 4)", "expected (m, T, F)"),
            ),
            BadInput(
                "position embedding: tokens",
                _forward((6, 4), (2, 5), jnp.int32),
                TypeError,
                ("PositionEmbedding(6)", "int32 (2, 5)", "embedding"),
            ),
            BadInput(
                "position embedding: vectors of another width",
                _forward((6, 1), (2, 5, 4)),
                ValueError,
                ("P has shape (6, 1)", "expected (6, 4)", "not broadcast"),
            ),
            BadInput(
                "position embedding: a column for each position",
                _forward((4, 6), (2, 5, 4)),
                ValueError,
                ("P has shape (4, 6)", "expected (6, 4)", "P.T would fit"),
            ),
            BadInput(
                "position embedding: a table of another length",
                _forward((5, 4), (2, 5, 4)),
                ValueError,
                ("P has shape (5, 4)", "expected (6, 4)"),
            ),
            BadInput(
                "position embedding: an integer table",
                lambda: PositionEmbedding(6).forward(
                    Params(jnp.zeros((6, 4), jnp.int32)), jnp.zeros((2, 5, 4))
                ),
                TypeError,
                ("P must be a floating-point array", "int32"),
            ),
            BadInput(
                "position embedding: a bare table",
                lambda: PositionEmbedding(6).forward(jnp.zeros((6, 4)), jnp.zeros((2, 5, 4))),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("PositionEmbedding(6)", "a field P", "network.init"),
            ),
            BadInput(
                "position embedding: a mask that it doesn't take",
                lambda: PositionEmbedding(6).forward(
                    Params(jnp.zeros((6, 4))), jnp.zeros((2, 5, 4)), mask=jnp.ones(2, bool)
                ),
                TypeError,
                ("PositionEmbedding(6) takes nothing", "leave out mask"),
            ),
            BadInput(
                "position embedding: no length",
                lambda: PositionEmbedding(0),
                TypeError,
                ("PositionEmbedding: length must be a positive int, got 0",),
            ),
            BadInput(
                "position embedding: a negative standard deviation",
                lambda: PositionEmbedding(6, initial_std=-1.0),
                ValueError,
                ("PositionEmbedding: initial_std must be a positive number, got -1.0",),
            ),
        ),
    ),
)
