"""Spec of Checkpoint: its body."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.combinators.checkpoint import Checkpoint
from manual_bp.layer import Layer
from verify import specs
from verify.specification import BadInput, LayerSpec, Shape
from verify.specs.stack import draw_body


def reference(layer: Checkpoint, params: Any, x: Any, run: Callable[..., Any]) -> Any:
    """The body."""
    return run(0, params[0], x)


def draw(rng: np.random.Generator, shape: Shape) -> Checkpoint:
    """Around a small body."""
    return mbp.checkpoint(draw_body(rng, shape[-1]))


def shrink(layer: Checkpoint) -> Iterator[Layer]:
    """The body alone, or a simpler body."""
    yield layer.body
    for simpler in specs.of_layer(layer.body).shrink(layer.body):
        yield Checkpoint(simpler)


SPECS = (
    LayerSpec(
        layer=Checkpoint,
        samples=(
            (mbp.checkpoint(mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(3))), (3, 4)),
            (
                mbp.checkpoint(mbp.skip(mbp.sequential(mbp.Dense(2, mbp.relu), mbp.Dense(3)))),
                (2, 3),
            ),
            (mbp.checkpoint(mbp.stack(mbp.Dense(2, mbp.relu), 2)), (3, 2)),
        ),
        reference=reference,
        naive=reference,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: specs.of_layer(layer.body).exact(layer.body),
        smooth=lambda layer: specs.of_layer(layer.body).smooth(layer.body),
        errors=(
            BadInput(
                "a function for a body",
                lambda: mbp.checkpoint(jnp.tanh),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("checkpoint: body must be a layer",),
            ),
            BadInput(
                "a body whose params don't fit",
                lambda: mbp.checkpoint(mbp.Dense(3)).forward(((),), jnp.ones((2, 3))),
                TypeError,
                ("in layer 1, Dense(3)", "fields W and b"),
            ),
        ),
    ),
)
