"""Clipped sums of per-example gradients beside one plain gradient: time and memory.

The clipped sum is what a step of differentially private training needs. It is held against the
plain gradient by hand of the same batch, and against jax.vmap of jax.grad with the same clipping.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.row import OURS, SAME, TIME, Eager, Group, Row, Target, Way

ONE_GRADIENT = "one gradient"
"""A plain gradient of the batch by hand."""
CLIP = 1.0


def by_vmap(params: Any, x: Any, y: Any) -> Any:
    """The clipped sum with each example's gradient formed, by jax.vmap of jax.grad."""

    def objective(params: Any, x: Any, y: Any) -> Any:
        for number, (W, b) in enumerate(params):
            x = W @ (x if number == 0 else jax.nn.relu(x)) + b
        return -jax.nn.log_softmax(x)[y]

    grads = jax.vmap(jax.grad(objective), (None, 0, 0))(params, x, y)
    squared = sum((each.reshape(len(x), -1) ** 2).sum(1) for each in jax.tree.leaves(grads))
    shares = jnp.minimum(1, CLIP / jnp.sqrt(squared))
    return jax.tree.map(lambda each: jnp.tensordot(shares, each, 1), grads)


def ways(widths: tuple[int, ...], batch: int) -> dict[str, Way | Eager]:
    """Σ min(1, C/‖g_i‖) g_i by hand and by vmap, and the gradient of the batch."""
    network = mbp.mlp(widths)
    x = jax.random.normal(jax.random.key(1), (batch, widths[0]))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, widths[-1])
    args = network.init(jax.random.key(0), x), x, y
    return {
        OURS: Way(functools.partial(mbp.clipped_grads, clip=CLIP, network=network), args),
        SAME: Way(by_vmap, args),
        ONE_GRADIENT: Way(functools.partial(mbp.manual_grads, network=network), args),
    }


def group() -> Group:
    """The row."""
    row = Row(
        "MLP 784-1024-1024-10 x 256",
        lambda: ways((784, 1024, 1024, 10), 256),
        (Target(TIME, 1.2, ONE_GRADIENT),),
        note="More memory than one gradient takes: the errors of all layers are held until the "
        "norms are known.",
    )
    return Group("clipping", "Clipped sums of per-example gradients", (row,))
