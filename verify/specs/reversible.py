"""Spec of Reversible: a loop over slices of the params, nothing undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.combinators.reversible import Reversible
from manual_bp.layer import Layer
from verify import specs
from verify.specification import BadInput, LayerSpec, Shape
from verify.specs.activations import draw_activation
from verify.specs.stack import sliced


def reference(layer: Reversible, params: Any, x: Any, run: Callable[..., Any]) -> Any:
    """Step after step, on the two halves that jnp.split makes."""
    return jnp.concatenate(_steps(layer, params, jnp.split(x, 2, -1), run), -1)


def naive(layer: Reversible, params: Any, x: Any, run: Callable[..., Any]) -> Any:
    """The same of NumPy arrays of numbers."""
    return np.concatenate(_steps(layer, params, np.split(x, 2, -1), run), -1)


def _steps(layer: Reversible, params: Any, halves: Any, run: Callable[..., Any]) -> Any:
    first, second = halves
    for step in range(layer.depth):
        f, g = sliced(params, step)
        first = run(0, f, second, step) + first
        second = run(1, g, first, step) + second
    return first, second


def draw(rng: np.random.Generator, shape: Shape) -> Reversible | None:
    """One to three steps of dense layers; None for an odd number of features."""
    half, odd = divmod(shape[-1], 2)
    if odd:
        return None
    f: Layer = mbp.Dense(half, draw_activation(rng))
    g: Layer = mbp.Dense(half, draw_activation(rng))
    if rng.random() < 0.3:
        g = mbp.sequential(mbp.Dense(int(rng.integers(1, 7)), draw_activation(rng)), g)
    return mbp.reversible(f, g, int(rng.integers(1, 4)))


def shrink(layer: Reversible) -> Iterator[Layer]:
    """A step less, or a simpler f or g."""
    if layer.depth > 1:
        yield Reversible(layer.f, layer.g, layer.depth - 1)
    for simpler in specs.of_layer(layer.f).shrink(layer.f):
        yield Reversible(simpler, layer.g, layer.depth)
    for simpler in specs.of_layer(layer.g).shrink(layer.g):
        yield Reversible(layer.f, simpler, layer.depth)


_key = jax.random.key(0)
_x = jnp.ones((2, 4))
_network = mbp.reversible(mbp.Dense(2), mbp.tanh, 2)

SPECS = (
    LayerSpec(
        layer=Reversible,
        samples=(
            (mbp.reversible(mbp.Dense(2, mbp.tanh), mbp.Dense(2, mbp.sigmoid), 3), (3, 4)),
            (mbp.reversible(mbp.Dense(2, mbp.relu), mbp.Dense(2), 2), (2, 4)),
            (mbp.reversible(mbp.tanh, mbp.sequential(mbp.Dense(3), mbp.Dense(2)), 2), (2, 2, 4)),
            (mbp.reversible(mbp.Dense(1), mbp.Dense(1, mbp.relu), 2), (1, 2)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: all(specs.of_layer(each).exact(each) for each in layer.children),
        smooth=lambda layer: all(specs.of_layer(each).smooth(each) for each in layer.children),
        errors=(
            BadInput(
                "an odd number of features",
                lambda: _network.init(_key, jnp.ones((2, 5))),
                ValueError,
                ("reversible(Dense(2), tanh, 2)", "(2, 5)", "even last axis", "two halves"),
            ),
            BadInput(
                "an f that changes the shape",
                lambda: mbp.reversible(mbp.Dense(3), mbp.tanh, 2).init(_key, _x),
                ValueError,
                ("in layer 1, Dense(3)", "makes (2, 3) of (2, 2)", "inside reversible"),
            ),
            BadInput(
                "a g that doesn't fit",
                lambda: mbp.reversible(mbp.tanh, mbp.Dense(2, inputs=4), 2).init(_key, _x),
                ValueError,
                ("in layer 2, Dense(2, inputs=4)", "expected (..., 4)"),
            ),
            BadInput(
                "params of another depth",
                lambda: mbp.reversible(mbp.Dense(2), mbp.tanh, 3).forward(
                    _network.init(_key, _x), _x
                ),
                ValueError,
                ("params[0].W has shape (2, 2, 2)", "first axis of 3"),
            ),
            BadInput(
                "an input that f would widen",
                lambda: _network.forward(_network.init(_key, _x), _x.astype(jnp.float16)),
                TypeError,
                ("in layer 1, Dense(2)", "makes float32 of float16", "keep the dtype"),
            ),
            BadInput(
                "a depth that isn't an int",
                lambda: mbp.reversible(mbp.tanh, mbp.tanh, 2.0),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("reversible: depth must be a positive int, got 2.0",),
            ),
            BadInput(
                "g left out",
                lambda: mbp.reversible(mbp.tanh, 2, 2),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("reversible: g must be a layer, got 2",),
            ),
        ),
    ),
)
