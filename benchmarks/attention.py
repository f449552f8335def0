"""Attention in blocks and written out: memory and time beside jax.grad of the T x T matrix.

One causal head of 64 features, one sequence. The gradient by hand, in blocks and with all of P, is
held against jax.grad of the same layer out of jnp.einsum and jax.nn.softmax.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.measuring import Row, compiled, seconds_in_turn, temporary_bytes

MEBIBYTE = 2**20
FEATURES = 64
BLOCK = 256
"""The fastest of 64, 128, 256 and 512 at T = 8192 on two cores."""


def by_hand(block: int | None) -> Callable[[Any, Any], Any]:
    """(dparams, dx) by hand of half the squares of the output."""
    layer = _layer(block)

    def run(params: Any, x: Any) -> Any:
        out, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, out)

    return run


def by_autodiff(params: Any, x: Any) -> Any:
    """The same by jax.grad of the T x T matrix."""

    def objective(params: Any, x: Any) -> Any:
        q, k, v = (x @ W.T for W in params[:3])
        scores = jnp.einsum("mtd,msd->mts", q, k) / FEATURES**0.5
        readable = jnp.tril(jnp.ones(scores.shape[1:], bool))
        P = jax.nn.softmax(jnp.where(readable, scores, -jnp.inf))
        out = jnp.einsum("mts,msd->mtd", P, v) @ params.Wo.T
        return 0.5 * (out**2).sum()

    return jax.grad(objective, (0, 1))(params, x)


def _layer(block: int | None) -> mbp.MultiHeadAttention:
    return mbp.MultiHeadAttention(1, causal=True, bias=False, block=block)


def _numbers(length: int) -> tuple[Any, Any]:
    x = jax.random.normal(jax.random.key(1), (1, length, FEATURES))
    return _layer(None).init(jax.random.key(0), x), x


def measure_memory(length: int = 8192) -> list[Row]:
    """The row that is the same on every run."""
    shapes = jax.eval_shape(lambda: _numbers(length))
    ours, theirs = (
        temporary_bytes(each, *shapes) / MEBIBYTE for each in (by_hand(BLOCK), by_autodiff)
    )
    what = f"memory over jax.grad, T = {length}"
    return [Row(what, f"in blocks of {BLOCK}", ours, theirs, "MiB", 0.05)]


def measure(length: int = 8192, shorter: int = 2048, rounds: int = 7) -> list[Row]:
    """All rows.

    Args:
        length: where T x T is too much to hold.
        shorter: where it isn't, and times are compared.
        rounds: how many times to measure each time.
    """
    small, large = _numbers(shorter), _numbers(length)
    programs = [compiled(each, *small) for each in (by_hand(BLOCK), by_hand(None), by_autodiff)]
    blocks, plain, theirs = seconds_in_turn(
        rounds, *(lambda program=program: program(*small) for program in programs)
    )
    long = compiled(by_hand(BLOCK), *large)
    (in_blocks,) = seconds_in_turn(rounds, lambda: long(*large))
    name, time = f"in blocks of {BLOCK}", "time of a gradient"
    return [
        Row(f"{time} over jax.grad, T = {shorter}", name, blocks, theirs, "s", 1.0),
        Row(f"{time} over jax.grad, T = {shorter}", "T x T", plain, theirs, "s", 1.0),
        Row(f"{time}, T = {length} over {shorter}", name, in_blocks, blocks, "s"),
        *measure_memory(length),
    ]
