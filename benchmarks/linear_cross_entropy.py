"""A head of 32,768 classes fused with its loss: is the gradient leaner than jax.grad's, as fast?

Loss and both gradients of `LinearCrossEntropy` are held against jax.value_and_grad of the plain
composition, `optax.softmax_cross_entropy_with_integer_labels(h @ W.T, y).mean()`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from benchmarks.measuring import Row, compiled, seconds_in_turn, temporary_bytes
from manual_bp import LinearCrossEntropy
from manual_bp.losses.linear_cross_entropy import Params

MEBIBYTE = 2**20


class Size(NamedTuple):
    """How many predictions, classes and features."""

    predictions: int
    classes: int
    features: int

    def __str__(self) -> str:
        return f"{self.predictions} x {self.classes}, {self.features} features"


SIZES = (Size(1024, 32_768, 256), Size(1024, 32_768, 512))


def by_hand(size: Size) -> Callable[..., Any]:
    """(loss, dW, dh) of the mean, fused."""
    loss = LinearCrossEntropy(size.classes)

    def run(W: Any, h: Any, y: Any) -> Any:
        weights = jnp.full(y.shape, 1 / size.predictions)
        values, dparams, dh = loss.sweep(Params(W, ()), h, y, weights)
        return (weights * values).sum(), dparams.W, dh

    return run


def by_autodiff(W: Any, h: Any, y: Any) -> Any:
    """The same by jax.value_and_grad of the plain composition."""

    def mean(W: Any, h: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(h @ W.T, y).mean()

    loss, (dW, dh) = jax.value_and_grad(mean, (0, 1))(W, h)
    return loss, dW, dh


def shapes(size: Size) -> tuple[Any, ...]:
    """W, h and y, as shapes."""
    W = jax.ShapeDtypeStruct((size.classes, size.features), jnp.float32)
    h = jax.ShapeDtypeStruct((size.predictions, size.features), jnp.float32)
    return W, h, jax.ShapeDtypeStruct((size.predictions,), jnp.int32)


def numbers(size: Size) -> tuple[Any, ...]:
    """W, h and y, as arrays."""
    W, h, y = shapes(size)
    keys = jax.random.split(jax.random.key(0), 3)
    W = jax.random.normal(keys[0], W.shape) / size.features**0.5
    return W, jax.random.normal(keys[1], h.shape), jax.random.randint(keys[2], y.shape, 0, len(W))


def memory(size: Size) -> Row:
    """Memory by hand over jax.grad's."""
    ours, theirs = (
        temporary_bytes(each, *shapes(size)) / MEBIBYTE for each in (by_hand(size), by_autodiff)
    )
    return Row("memory over jax.grad", str(size), ours, theirs, "MiB", 0.1)


def run_time(size: Size, rounds: int) -> Row:
    """The time by hand over jax.grad's."""
    args = numbers(size)
    programs = [compiled(each, *args) for each in (by_hand(size), by_autodiff)]
    runs = [lambda program=program: program(*args) for program in programs]
    ours, theirs = seconds_in_turn(rounds, *runs)
    return Row("time over jax.grad", str(size), ours, theirs, "s", 1.05)


def measure(sizes: tuple[Size, ...] = SIZES, rounds: int = 7) -> list[Row]:
    """All rows.

    Args:
        sizes: of heads.
        rounds: how many times to measure each time.
    """
    return [row for size in sizes for row in (memory(size), run_time(size, rounds))]
