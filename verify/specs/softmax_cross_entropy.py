"""Spec of SoftmaxCrossEntropy: optax's on one-hot labels, with optax's smoothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax

from manual_bp.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from verify.specification import BadInput, Edge, LossSpec, Shape


def labels(loss: SoftmaxCrossEntropy, target: Any, units: int) -> Any:
    """Targets as a distribution, by jax.nn.one_hot and optax.smooth_labels."""
    y = (
        jax.nn.one_hot(target, units)
        if target.ndim and jnp.issubdtype(target.dtype, jnp.integer)
        else target
    )
    if loss.label_smoothing:
        # optax spreads α over classes of labels that sum to one; others keep their own sum.
        total = y.sum(-1, keepdims=True)
        share = jnp.asarray(loss.label_smoothing, y.dtype)
        return (1 - share) * y + share * total / units
    return y


def reference(loss: SoftmaxCrossEntropy, z: jax.Array, target: jax.Array) -> jax.Array:
    """optax.softmax_cross_entropy, 0 for the ignored class."""
    values = optax.softmax_cross_entropy(z, labels(loss, target, z.shape[-1]))
    mask = counts(loss, target)
    return values if mask is None else jnp.where(mask, values, 0)


def counts(loss: SoftmaxCrossEntropy, target: Any) -> Any:
    """Which predictions count."""
    if loss.ignored_class is None or not jnp.issubdtype(target.dtype, jnp.integer):
        return None
    return jnp.not_equal(target, loss.ignored_class)


def naive(loss: SoftmaxCrossEntropy, z: np.ndarray, target: np.ndarray) -> np.ndarray:
    """-Σ y log p, row by row."""
    units = z.shape[-1]
    rows = z.reshape(-1, units)
    targets = target.reshape(-1) if target.ndim < z.ndim else target.reshape(-1, units)
    values = []
    for row, goal in zip(rows, targets, strict=True):
        if target.ndim < z.ndim and goal == loss.ignored_class:
            values.append(mp.mpf(0))
            continue
        y = [float(c == goal) for c in range(units)] if target.ndim < z.ndim else list(goal)
        share = loss.label_smoothing * sum(y) / units
        y = [(1 - loss.label_smoothing) * each + share for each in y]
        top = max(row)
        log_sum = top + mp.log(sum(mp.exp(each - top) for each in row))
        values.append(-sum(each * (logit - log_sum) for each, logit in zip(y, row, strict=True)))
    return np.array(values).reshape(z.shape[:-1])


def target(rng: np.random.Generator, loss: SoftmaxCrossEntropy, shape: Shape) -> np.ndarray:
    """Classes, one-hot labels, or soft labels that need not sum to one."""
    classes = rng.integers(0, shape[-1], size=shape[:-1])
    kind = rng.random()
    if loss.ignored_class is not None:
        return np.where(rng.random(shape[:-1]) < 0.3, loss.ignored_class, classes)
    if kind < 0.5:
        return classes
    if kind < 0.7:
        return np.eye(shape[-1])[classes]
    return rng.random(shape) * rng.choice([0.5, 1.0, 2.0])


def draw(rng: np.random.Generator) -> SoftmaxCrossEntropy:
    """Plain, smoothed, with an ignored class, or both."""
    return SoftmaxCrossEntropy(
        label_smoothing=float(rng.choice([0.0, 0.0, 0.1, 0.25])),
        ignored_class=[None, None, -1, 0][rng.integers(4)],
    )


def notes_target(loss: SoftmaxCrossEntropy, target: np.ndarray, units: int) -> np.ndarray | None:
    """One-hot; None for labels that don't sum to one or classes that don't count."""
    if loss.ignored_class is not None:
        return None
    y = np.eye(units)[target] if target.dtype.kind in "iu" else target
    if not np.array_equal(y.sum(-1), np.ones(y.shape[:-1])):
        return None
    return (1 - loss.label_smoothing) * y + loss.label_smoothing / units


def _checked(prediction: Shape, target: jax.Array, loss: Any = None) -> Any:
    return lambda: (loss or SoftmaxCrossEntropy()).check(jnp.zeros(prediction), target)


def _integer_edge(function: str, z: tuple[float, ...], k: int, stated: Any, recorded: Any) -> Edge:
    def by_optax(z: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(z, jnp.array(k))

    return Edge(
        function=function,
        point=z,
        dtype="float32",
        stated=stated,
        manual=lambda z: SoftmaxCrossEntropy().error(z, jnp.array(k)),
        autodiff=jax.grad(by_optax),
        recorded=recorded,
    )


SPECS = (
    LossSpec(
        loss=SoftmaxCrossEntropy,
        samples=(
            SoftmaxCrossEntropy(),
            SoftmaxCrossEntropy(label_smoothing=0.1),
            SoftmaxCrossEntropy(ignored_class=-1),
            SoftmaxCrossEntropy(label_smoothing=0.25, ignored_class=0),
        ),
        reference=reference,
        naive=naive,
        target=target,
        draw=draw,
        counts=counts,
        activation=lambda z: jax.nn.softmax(z),
        notes_target=notes_target,
        edges=(
            Edge(
                function="-log(softmax(z)) of class 0",
                point=(0.0, 200.0),
                dtype="float32",
                stated=(-1.0, 1.0),
                manual=lambda z: SoftmaxCrossEntropy().error(z, jnp.array(0)),
                autodiff=jax.grad(lambda z: -jnp.log(jax.nn.softmax(z))[0]),
                recorded=(np.nan, np.nan),
            ),
            _integer_edge(
                "optax's cross-entropy, class 5 of 3: its value is NaN",
                (0.0, 1.0, 2.0),
                5,
                (np.nan, np.nan, np.nan),
                (0.09, 0.245, 0.665),
            ),
            _integer_edge(
                "optax's cross-entropy, class -1: it takes the last",
                (0.0, 1.0, 2.0),
                -1,
                (np.nan, np.nan, np.nan),
                (0.09, 0.245, -0.335),
            ),
        ),
        errors=(
            BadInput(
                "floating-point classes",
                _checked((5, 3), jnp.zeros(5)),
                TypeError,
                ("SoftmaxCrossEntropy()", "shape (5,)", "must be integers", "y.astype(int)"),
            ),
            BadInput(
                "classes (m, 1)",
                _checked((5, 3), jnp.zeros((5, 1), jnp.int32)),
                ValueError,
                ("shape (5, 1)", "(5, 3)", "integer classes of shape (5,)", "y[..., 0]"),
            ),
            BadInput(
                "one-hot labels as classes x examples",
                _checked((5, 3), jnp.zeros((3, 5))),
                ValueError,
                ("shape (3, 5)", "expected (5, 3)", "y.T would fit"),
            ),
            BadInput(
                "one-hot labels of another number of classes",
                _checked((5, 3), jnp.zeros((5, 4))),
                ValueError,
                ("shape (5, 4)", "expected (5, 3)", "not broadcast"),
            ),
            BadInput(
                "an ignored class with one-hot labels",
                _checked((5, 3), jnp.zeros((5, 3)), SoftmaxCrossEntropy(ignored_class=0)),
                TypeError,
                ("ignored class needs integer classes", "(5, 3)", "weight"),
            ),
            BadInput(
                "label smoothing above 1",
                lambda: SoftmaxCrossEntropy(label_smoothing=1.5),
                ValueError,
                ("label_smoothing", "[0, 1]", "1.5"),
            ),
            BadInput(
                "an ignored class between two",
                lambda: SoftmaxCrossEntropy(ignored_class=1.5),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("ignored_class must be an int or None", "1.5"),
            ),
        ),
    ),
)
