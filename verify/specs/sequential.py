"""Spec of Sequential: a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.combinators.sequential import Sequential
from manual_bp.layer import Layer
from verify import specs
from verify.specification import BadInput, LayerSpec, Shape


def reference(layer: Sequential, params: Any, x: Any, run: Callable[[int, Any, Any], Any]) -> Any:
    """One after the other."""
    for index, each in enumerate(params):
        x = run(index, each, x)
    return x


def draw(rng: np.random.Generator, shape: Shape) -> Sequential | None:
    """Nested sequentials: two or three dense layers."""
    del shape
    pairs = [(int(rng.integers(1, 9)), mbp.tanh) for _ in range(int(rng.integers(2, 4)))]
    return mbp.sequential(*(mbp.Dense(width, g) for width, g in pairs))


def shrink(layer: Sequential) -> Iterator[Layer]:
    """Without one layer, or with one layer simpler."""
    children = layer.layers
    for index in range(len(children)):
        if len(children) > 1:
            yield Sequential(children[:index] + children[index + 1 :])
    for index, child in enumerate(children):
        for simpler in specs.of_layer(child).shrink(child):
            yield Sequential((*children[:index], simpler, *children[index + 1 :]))


_network = mbp.mlp([4, 3, 2])
_params = mbp.mlp([4, 3, 2]).init(jax.random.key(0), jax.ShapeDtypeStruct((1, 4), jnp.float32))

SPECS = (
    LayerSpec(
        layer=Sequential,
        samples=(
            (mbp.sequential(mbp.Dense(3, mbp.tanh), mbp.Dense(2)), (5, 4)),
            (mbp.sequential(mbp.relu), (3, 2)),
            (mbp.sequential(mbp.sequential(mbp.Dense(2)), mbp.tanh, mbp.Dense(3)), (2, 2)),
        ),
        reference=reference,
        naive=reference,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: all(
            specs.of_layer(child).exact(child)
            for child in layer.layers  # pyright: ignore[reportAttributeAccessIssue]
        ),
        errors=(
            BadInput(
                "a layer too few in params",
                lambda: _network.forward(_params[:1], jnp.zeros((5, 4))),
                ValueError,
                ("2 layers", "tuple of 2", "got a tuple of 1", "network.init"),
            ),
            BadInput(
                "params as a list",
                lambda: mbp.sequential(mbp.Dense(2), mbp.relu).forward(
                    [_params[0], ()], jnp.zeros((5, 4))
                ),
                ValueError,
                ("tuple of 2", "got a list of 2"),
            ),
            BadInput(
                "a shape that doesn't fit, deep inside",
                lambda: mbp.sequential(mbp.tanh, _network).forward(
                    ((), _params), jnp.zeros((5, 3))
                ),
                ValueError,
                ("in layer 2,", "in layer 1, Dense(3, relu, inputs=4)", "expected (..., 4)"),
            ),
            BadInput(
                "an argument that no layer takes",
                lambda: _network.forward(_params, jnp.zeros((5, 4)), key=jax.random.key(0)),
                TypeError,
                ("takes nothing", "given key", "leave out key", "network.inference()"),
            ),
            BadInput("no layers", mbp.sequential, TypeError, ("at least one layer",)),
            BadInput(
                "a list of layers",
                lambda: mbp.sequential([mbp.relu]),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("argument 1", "must be a layer", "sequential(*layers)"),
            ),
        ),
    ),
)
