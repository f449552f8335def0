"""Spec of Skip: a sum."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.combinators.skip import Skip
from manual_bp.layer import Layer
from verify import specs
from verify.specification import BadInput, LayerSpec, Shape
from verify.specs.activations import draw_activation


def reference(layer: Skip, params: Any, x: Any, run: Callable[[int, Any, Any], Any]) -> Any:
    """Input plus output."""
    return run(0, params[0], x) + x


def draw(rng: np.random.Generator, shape: Shape) -> Skip:
    """Around one dense layer, or two."""
    last = mbp.Dense(shape[-1], draw_activation(rng))
    if rng.random() < 0.5:
        return mbp.skip(last)
    return mbp.skip(mbp.sequential(mbp.Dense(int(rng.integers(1, 9)), draw_activation(rng)), last))


def shrink(layer: Skip) -> Iterator[Layer]:
    """The body alone, or a simpler body."""
    yield layer.body
    for simpler in specs.of_layer(layer.body).shrink(layer.body):
        yield Skip(simpler)


SPECS = (
    LayerSpec(
        layer=Skip,
        samples=(
            (mbp.skip(mbp.Dense(4, mbp.tanh)), (3, 4)),
            (mbp.skip(mbp.relu), (2, 3)),
            (mbp.skip(mbp.skip(mbp.sequential(mbp.Dense(2, mbp.relu), mbp.Dense(3)))), (2, 2, 3)),
        ),
        reference=reference,
        naive=reference,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: specs.of_layer(layer.body).exact(layer.body),
        errors=(
            BadInput(
                "a body that changes the shape",
                lambda: mbp.skip(mbp.Dense(3)).init(jax.random.key(0), jnp.ones((2, 4))),
                ValueError,
                ("in layer 1, Dense(3)", "makes (2, 3) of (2, 4)", "keep the shape"),
            ),
            BadInput(
                "a function for a body",
                lambda: mbp.skip(jnp.tanh),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("skip: body must be a layer",),
            ),
        ),
    ),
)
