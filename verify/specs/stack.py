"""Spec of Stack: a loop over slices of the params."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.combinators.stack import Stack
from manual_bp.layer import Layer
from verify import specs
from verify.specification import BadInput, LayerSpec, Shape
from verify.specs.activations import draw_activation


def sliced(params: Any, step: int) -> Any:
    """The params of one step."""
    return jax.tree.map(lambda leaf: leaf[step], params)


def reference(layer: Stack, params: Any, x: Any, run: Callable[..., Any]) -> Any:
    """Step after step."""
    for step in range(layer.depth):
        x = run(0, sliced(params[0], step), x, step)
    return x


def draw_body(rng: np.random.Generator, features: int) -> Layer:
    """A layer that keeps the shape: dense, by itself or added to its input."""
    dense = mbp.Dense(features, draw_activation(rng))
    which = rng.integers(3)
    if which == 0:
        return dense
    if which == 1:
        return mbp.skip(dense)
    inner = mbp.Dense(int(rng.integers(1, 7)), draw_activation(rng))
    return mbp.skip(mbp.sequential(inner, mbp.Dense(features)))


def draw(rng: np.random.Generator, shape: Shape) -> Stack:
    """One to three steps of a small body."""
    body = draw_body(rng, shape[-1])
    if rng.random() < 0.3:
        body = mbp.checkpoint(body)
    return mbp.stack(body, int(rng.integers(1, 4)))


def shrink(layer: Stack) -> Iterator[Layer]:
    """The body alone, a step less, or a simpler body."""
    yield layer.layer
    if layer.depth > 1:
        yield Stack(layer.layer, layer.depth - 1)
    for simpler in specs.of_layer(layer.layer).shrink(layer.layer):
        yield Stack(simpler, layer.depth)


_x = jnp.ones((2, 4))
_two = mbp.stack(mbp.Dense(4), 2).init(jax.random.key(0), _x)
_half = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), _two)

SPECS = (
    LayerSpec(
        layer=Stack,
        samples=(
            (mbp.stack(mbp.Dense(4, mbp.tanh), 3), (3, 4)),
            (mbp.stack(mbp.skip(mbp.Dense(3, mbp.relu)), 2), (2, 3)),
            (mbp.stack(mbp.skip(mbp.sequential(mbp.Dense(2, mbp.relu), mbp.Dense(3))), 2), (4, 3)),
            (mbp.stack(mbp.stack(mbp.Dense(2, mbp.tanh), 2), 3), (2, 1, 2)),
            (mbp.stack(mbp.parallel(mbp.relu, mbp.Dense(2), combine="product"), 2), (1, 2)),
            (
                mbp.stack(mbp.checkpoint(mbp.sequential(mbp.Dense(3, mbp.relu), mbp.Dense(2))), 2),
                (3, 2),
            ),
            (
                mbp.stack(
                    mbp.tied(mbp.sequential(mbp.Dense(2, mbp.relu), mbp.Dense(2)), ((0,), (1,))), 2
                ),
                (3, 2),
            ),
            (mbp.stack(mbp.Dense(1), 1), (1, 1)),
            (mbp.stack(mbp.sigmoid, 3), (2, 3)),
        ),
        reference=reference,
        naive=reference,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: specs.of_layer(layer.layer).exact(layer.layer),
        smooth=lambda layer: specs.of_layer(layer.layer).smooth(layer.layer),
        errors=(
            BadInput(
                "a layer that changes the shape",
                lambda: mbp.stack(mbp.Dense(3), 2).init(jax.random.key(0), _x),
                ValueError,
                (
                    "in layer 1, Dense(3)",
                    "makes (2, 3) of (2, 4)",
                    "inside stack",
                    "keep the shape",
                ),
            ),
            BadInput(
                "an input that the layer would widen",
                lambda: mbp.stack(mbp.Dense(4), 2).forward(_two, _x.astype(jnp.float16)),
                TypeError,
                ("in layer 1, Dense(4)", "makes float32 of float16", "keep the dtype"),
            ),
            BadInput(
                "params of another depth",
                lambda: mbp.stack(mbp.Dense(4), 3).forward(_two, _x),
                ValueError,
                ("params.W has shape (2, 4, 4)", "first axis of 3", "network.init"),
            ),
            BadInput(
                "params that aren't stacked",
                lambda: mbp.stack(mbp.Dense(4), 3).forward((sliced(_two[0], 0),), _x),
                ValueError,
                ("params.W has shape (4, 4)", "first axis of 3"),
            ),
            BadInput(
                "a layer inside that doesn't fit",
                lambda: mbp.stack(mbp.Dense(4, inputs=5), 2).init(jax.random.key(0), _x),
                ValueError,
                ("in layer 1, Dense(4, inputs=5)", "expected (..., 5)"),
            ),
            BadInput(
                "a depth of 0",
                lambda: mbp.stack(mbp.relu, 0),
                TypeError,
                ("stack: depth must be a positive int, got 0",),
            ),
            BadInput(
                "depth and layer exchanged",
                lambda: mbp.stack(3, mbp.relu),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("stack: layer must be a layer, got 3",),
            ),
        ),
    ),
)
