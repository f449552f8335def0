"""Spec of CosineSimilarity: optax's formula, with a zero vector in the place of its NaN."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax

from manual_bp.losses.cosine_similarity import CosineSimilarity
from verify.specification import BadInput, Edge, LossSpec, Shape

TARGET = jnp.array([0.0, 2.0])


def unit(loss: CosineSimilarity, v: jax.Array) -> jax.Array:
    """v over the root of its bounded square; 0 for a zero vector, where optax has 0/0."""
    if v.shape[-1] == 1:  # a single number has a sign: roots of squares would leave roundings
        if not loss.epsilon:
            return jnp.sign(v)
        least = jnp.sqrt(jnp.asarray(loss.epsilon, v.dtype))
        return jnp.where(jnp.abs(v) > least, jnp.sign(v), v / least)
    square = jnp.square(v).sum(-1, keepdims=True)
    if loss.epsilon:
        # where, not maximum: at the bound autodiff of maximum would take half of each side
        return v / jnp.sqrt(jnp.where(square > loss.epsilon, square, loss.epsilon))
    zero = jnp.abs(v).max(-1, keepdims=True) == 0
    return jnp.where(zero, 0, v / jnp.sqrt(jnp.where(zero, 1, square)))


def reference(loss: CosineSimilarity, a: jax.Array, y: jax.Array) -> jax.Array:
    """optax.cosine_distance, but for zero vectors."""
    return 1 - (unit(loss, a) * unit(loss, y)).sum(-1)


def naive(loss: CosineSimilarity, a: np.ndarray, y: np.ndarray) -> np.ndarray:
    """1 - a·y / (|a| |y|), row by row."""

    def length(row: Any) -> Any:
        return mp.sqrt(max(sum(each * each for each in row), mp.mpf(loss.epsilon))) or mp.mpf(1)

    size = a.shape[-1]
    values = [
        1 - sum(p * t for p, t in zip(row, goal, strict=True)) / (length(row) * length(goal))
        for row, goal in zip(a.reshape(-1, size), y.reshape(-1, size), strict=True)
    ]
    return np.array(values).reshape(a.shape[:-1])


def target(rng: np.random.Generator, loss: CosineSimilarity, shape: Shape) -> np.ndarray:
    """Vectors of all lengths, sometimes a zero one."""
    y = rng.normal(size=shape) * rng.choice([0.1, 1.0, 10.0], size=(*shape[:-1], 1))
    return y * (rng.random((*shape[:-1], 1)) < (0.8 if rng.random() < 0.2 else 1.0))


def _edge(function: str, point: tuple[float, float], stated: Any, recorded: Any) -> Edge:
    return Edge(
        function=function,
        point=point,
        dtype="float32",
        stated=stated,
        manual=lambda a: CosineSimilarity().error(a, TARGET),
        autodiff=jax.grad(lambda a: optax.cosine_distance(a, TARGET)),
        recorded=recorded,
    )


SPECS = (
    LossSpec(
        loss=CosineSimilarity,
        samples=(CosineSimilarity(), CosineSimilarity(epsilon=4.0)),
        reference=reference,
        naive=naive,
        target=target,
        draw=lambda rng: CosineSimilarity(epsilon=float(rng.choice([0.0, 0.0, 1e-8, 0.25, 4.0]))),
        edges=(
            _edge("1 - cos at the zero vector", (0.0, 0.0), (0.0, 0.0), (np.nan, np.nan)),
            _edge(
                "1 - cos where squares vanish",
                (1e-25, 1e-25),
                (3.54e24, -3.54e24),
                (np.nan, np.nan),
            ),
            _edge("1 - cos where squares overflow", (1e25, 1e25), (3.54e-26, -3.54e-26), (0, 0)),
            Edge(
                function="1 - cos to the zero vector",
                point=(1.0, 2.0),
                dtype="float32",
                stated=(0.0, 0.0),
                manual=lambda a: CosineSimilarity().error(a, jnp.zeros(2)),
                autodiff=jax.grad(lambda a: optax.cosine_distance(a, jnp.zeros(2))),
                recorded=(np.nan, np.nan),
            ),
        ),
        errors=(
            BadInput(
                "cosine: targets (m, 1) against (m, 3)",
                lambda: CosineSimilarity().check(jnp.zeros((5, 3)), jnp.zeros((5, 1))),
                ValueError,
                ("CosineSimilarity()", "shape (5, 1)", "expected (5, 3)", "not broadcast"),
            ),
            BadInput(
                "epsilon below 0",
                lambda: CosineSimilarity(epsilon=-1e-8),
                ValueError,
                ("epsilon", "0 or more", "-1e-08"),
            ),
        ),
    ),
)
