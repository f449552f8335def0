"""Clipped sums of per-example gradients beside one plain gradient: time and memory.

The clipped sum is what a step of differentially private training needs. It is held against the
plain gradient by hand of the same batch, and against jax.vmap of jax.grad with the same clipping.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.measuring import Row, compiled, seconds_in_turn, temporary_bytes

MEBIBYTE = 2**20
WIDTHS = (784, 1024, 1024, 10)
BATCH = 256
CLIP = 1.0


def by_hand(widths: tuple[int, ...]) -> Callable[..., Any]:
    """Σ min(1, C/‖g_i‖) g_i, of params, x and y."""
    return functools.partial(mbp.clipped_grads, clip=CLIP, network=mbp.mlp(widths))


def plain(widths: tuple[int, ...]) -> Callable[..., Any]:
    """The gradient of the batch by hand."""
    return functools.partial(mbp.manual_grads, network=mbp.mlp(widths))


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


def numbers(widths: tuple[int, ...], batch: int) -> tuple[Any, Any, Any]:
    """Params, x and y."""
    x = jax.random.normal(jax.random.key(1), (batch, widths[0]))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, widths[-1])
    return mbp.mlp(widths).init(jax.random.key(0), x), x, y


def measure(widths: tuple[int, ...] = WIDTHS, batch: int = BATCH, rounds: int = 7) -> list[Row]:
    """All rows.

    Args:
        widths: of an MLP.
        batch: how many examples.
        rounds: how many times to measure each time.
    """
    given = numbers(widths, batch)
    programs = (by_hand(widths), plain(widths), by_vmap)
    ours, theirs, vmapped = (functools.partial(compiled(each, *given), *given) for each in programs)
    # apart: after vmap's gigabytes the memory of whatever comes next is cold
    time, one = seconds_in_turn(3 * rounds, ours, theirs)
    again, of_vmap = seconds_in_turn(rounds, ours, vmapped)
    held, held_by_one = (temporary_bytes(each, *given) / MEBIBYTE for each in programs[:2])
    name = f"{'-'.join(map(str, widths))} x {batch}"
    return [
        Row("time of a clipped sum over a gradient", name, time, one, "s", 1.2),
        Row("time of a clipped sum over vmap(jax.grad)", name, again, of_vmap, "s"),
        Row("temporary memory of a clipped sum over a gradient", name, held, held_by_one, "MiB"),
    ]
