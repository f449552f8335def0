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
from benchmarks.measuring import Row, compiled, seconds_in_turn, temporary_bytes

MEBIBYTE = 2**20
WIDTHS = (784, 1024, 1024, 10)
BATCH = 256
NETWORK = mbp.mlp(WIDTHS)


def clipped(params: Any, x: Any, y: Any) -> Any:
    """Σ min(1, 1/‖g_i‖) g_i."""
    return mbp.clipped_grads(params, x, y, clip=1.0, network=NETWORK)


def plain(params: Any, x: Any, y: Any) -> Any:
    """The gradient of the batch by hand."""
    return mbp.manual_grads(params, x, y, network=NETWORK)


def by_vmap(params: Any, x: Any, y: Any) -> Any:
    """The clipped sum with each example's gradient formed, by jax.vmap of jax.grad."""

    def objective(params: Any, x: Any, y: Any) -> Any:
        for number, (W, b) in enumerate(params):
            x = W @ (x if number == 0 else jax.nn.relu(x)) + b
        return -jax.nn.log_softmax(x)[y]

    grads = jax.vmap(jax.grad(objective), (None, 0, 0))(params, x, y)
    squared = sum((each.reshape(len(x), -1) ** 2).sum(1) for each in jax.tree.leaves(grads))
    shares = jnp.minimum(1, 1 / jnp.sqrt(squared))
    return jax.tree.map(lambda each: jnp.tensordot(shares, each, 1), grads)


def _numbers() -> tuple[Any, Any, Any]:
    x = jax.random.normal(jax.random.key(1), (BATCH, WIDTHS[0]))
    y = jax.random.randint(jax.random.key(2), (BATCH,), 0, WIDTHS[-1])
    return NETWORK.init(jax.random.key(0), x), x, y


def measure_memory() -> list[Row]:
    """The row that is the same on every run."""
    shapes = jax.eval_shape(_numbers)
    ours, theirs = (temporary_bytes(each, *shapes) / MEBIBYTE for each in (clipped, plain))
    return [Row("memory of a clipped sum over a gradient", _name(), ours, theirs, "MiB")]


def measure(rounds: int = 7) -> list[Row]:
    """All rows.

    Args:
        rounds: how many times to measure each time.
    """
    numbers = _numbers()
    ours, theirs, vmapped = (
        functools.partial(compiled(each, *numbers), *numbers) for each in (clipped, plain, by_vmap)
    )
    # apart: after vmap's gigabytes the memory of whatever comes next is cold
    time, one = seconds_in_turn(3 * rounds, ours, theirs)
    again, of_vmap = seconds_in_turn(rounds, ours, vmapped)
    return [
        Row("time of a clipped sum over a gradient", _name(), time, one, "s", 1.2),
        Row("time of a clipped sum over vmap(jax.grad)", _name(), again, of_vmap, "s"),
        *measure_memory(),
    ]


def _name() -> str:
    return f"{'-'.join(map(str, WIDTHS))} x {BATCH}"
