"""Spec of Parallel: jnp.concatenate, sum, prod over a stacked axis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.combinators.parallel import Parallel
from manual_bp.layer import Layer
from verify import specs
from verify.specification import BadInput, LayerSpec, Shape
from verify.specs.activations import draw_activation


def reference(layer: Parallel, params: Any, x: Any, run: Callable[[int, Any, Any], Any]) -> Any:
    """Branch by branch, then jnp's own combination."""
    outs = [run(index, each, x) for index, each in enumerate(params)]
    if layer.combine == "concatenate":
        return jnp.concatenate(outs, -1)
    if layer.combine == "sum":
        return jnp.stack(outs).sum(0)
    out = outs[-1]
    for other in reversed(outs[:-1]):
        out = other * out
    return out


def naive(layer: Parallel, params: Any, x: Any, run: Callable[[int, Any, Any], Any]) -> Any:
    """Number by number."""
    outs = [run(index, each, x) for index, each in enumerate(params)]
    if layer.combine == "concatenate":
        return np.concatenate(outs, -1)
    start = 0 if layer.combine == "sum" else 1
    flat = []
    for numbers in zip(*(out.ravel() for out in outs), strict=True):
        total = start
        for number in numbers:
            total = total + number if layer.combine == "sum" else total * number
        flat.append(total)
    return np.array(flat).reshape(outs[0].shape)


def draw(rng: np.random.Generator, shape: Shape) -> Parallel:
    """Two or three dense branches, or one that is the input itself."""
    combine = ("concatenate", "sum", "product")[rng.integers(3)]
    width = int(rng.integers(1, 7))
    branches: list[Layer] = []
    for _ in range(int(rng.integers(1, 4))):
        own = int(rng.integers(1, 7)) if combine == "concatenate" else width
        branches.append(mbp.Dense(own, draw_activation(rng)))
    if combine == "concatenate" and rng.random() < 0.3:
        branches.append(draw_activation(rng))
    return mbp.parallel(*branches, combine=combine)


def shrink(layer: Parallel) -> Iterator[Layer]:
    """One branch alone, one branch less, one branch simpler."""
    for index, branch in enumerate(layer.branches):
        yield branch
        if len(layer.branches) > 1:
            rest = layer.branches[:index] + layer.branches[index + 1 :]
            yield Parallel(rest, layer.combine)
        for simpler in specs.of_layer(branch).shrink(branch):
            changed = (*layer.branches[:index], simpler, *layer.branches[index + 1 :])
            yield Parallel(changed, layer.combine)


_key = jax.random.key(0)

SPECS = (
    LayerSpec(
        layer=Parallel,
        samples=(
            (mbp.parallel(mbp.Dense(2, mbp.tanh), mbp.Dense(3), mbp.relu), (4, 3)),
            (mbp.parallel(mbp.Dense(3, mbp.relu), mbp.Dense(3), combine="sum"), (2, 3)),
            (
                mbp.parallel(
                    mbp.Dense(2, mbp.relu),
                    mbp.Dense(2),
                    mbp.Dense(2, mbp.sigmoid),
                    combine="product",
                ),
                (3, 4),
            ),
            (mbp.parallel(mbp.Dense(2), mbp.Dense(2, mbp.relu), combine="product"), (2, 2)),
            (mbp.parallel(mbp.Dense(1)), (1, 2)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: all(specs.of_layer(each).exact(each) for each in layer.branches),
        errors=(
            BadInput(
                "a sum of unequal shapes",
                lambda: mbp.parallel(mbp.Dense(1), mbp.Dense(3), combine="sum").init(
                    _key, jnp.ones((2, 4))
                ),
                ValueError,
                ("(2, 1), (2, 3)", "equal shapes", "combine='sum'", "not broadcast"),
            ),
            BadInput(
                "a combination that doesn't exist",
                lambda: mbp.parallel(mbp.relu, combine="mean"),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("concatenate, sum, product", "'mean'"),
            ),
            BadInput(
                "a branch whose input doesn't fit",
                lambda: mbp.parallel(mbp.relu, mbp.Dense(3, inputs=5)).init(_key, jnp.ones((2, 4))),
                ValueError,
                ("in layer 2, Dense(3, inputs=5)", "expected (..., 5)"),
            ),
            BadInput("no branches", mbp.parallel, TypeError, ("at least one layer",)),
            BadInput(
                "a list of branches",
                lambda: mbp.parallel([mbp.relu]),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("argument 1", "must be a layer"),
            ),
        ),
    ),
)
