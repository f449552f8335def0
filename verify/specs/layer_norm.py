"""Spec of LayerNorm: jnp.mean and jnp.var, or loops over each vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

import manual_bp as mbp
from manual_bp.layers.layer_norm import LayerNorm, Params
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(layer: LayerNorm, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """Deviations over the standard deviation, as textbooks write it."""
    deviation = jnp.sqrt(jnp.var(x, axis=-1, keepdims=True) + layer.eps)
    return (x - jnp.mean(x, axis=-1, keepdims=True)) / deviation * params.scale + params.shift


def naive(layer: LayerNorm, params: Any, x: np.ndarray) -> np.ndarray:
    """One vector at a time."""
    scale, shift = params
    count = x.shape[-1]
    rows = []
    for row in x.reshape(-1, count):
        mean = sum(row) / count
        variance = sum((each - mean) ** 2 for each in row) / count
        std = mp.sqrt(variance + mp.mpf(layer.eps))
        rows.append(
            [g * (each - mean) / std + b for each, g, b in zip(row, scale, shift, strict=True)]
        )
    return np.array(rows).reshape(x.shape)


def draw(rng: np.random.Generator, shape: Shape) -> LayerNorm:
    """With an ε that matters, or the usual one."""
    return LayerNorm() if rng.random() < 0.7 else LayerNorm(float(rng.choice([1e-12, 0.125, 2.0])))


WEIGHTS = jnp.array([1.0, -2.0, 0.5, 3.0])
"""The cotangent at the edges: not uniform, since for ones dx is 0."""


def by_hand(x: jax.Array) -> jax.Array:
    """dx of this layer, with scale 1 and shift 0."""
    layer, params = LayerNorm(), Params(jnp.ones(4, x.dtype), jnp.zeros(4, x.dtype))
    _, residuals = layer.forward(params, x)
    return layer.backward(params, residuals, WEIGHTS.astype(x.dtype))[1]


def of_deviations(x: jax.Array) -> jax.Array:
    """The variance as the mean of squared deviations."""
    centred = x - x.mean()
    return WEIGHTS.astype(x.dtype) @ (centred / jnp.sqrt(jnp.square(centred).mean() + 1e-5))


def of_squares(x: jax.Array) -> jax.Array:
    """The variance as E[x²] - E[x]², one pass over x: flax's default."""
    variance = jnp.maximum(jnp.square(x).mean() - jnp.square(x.mean()), 0)
    return WEIGHTS.astype(x.dtype) @ ((x - x.mean()) * jax.lax.rsqrt(variance + 1e-5))


def _forward(scale: Any, shift: Any, x: Any, dtype: Any = jnp.float32) -> Any:
    return lambda: LayerNorm().forward(
        Params(jnp.zeros(scale), jnp.zeros(shift)), jnp.zeros(x, dtype)
    )


SPECS = (
    LayerSpec(
        layer=LayerNorm,
        samples=(
            (LayerNorm(), (5, 4)),
            (LayerNorm(0.125), (3, 2, 5)),
            (LayerNorm(), (4, 4)),
            (LayerNorm(1e-3), (1, 6)),
            (LayerNorm(2.0), (3, 1)),  # a vector of one: out is the shift
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        edges=(
            Edge(
                function="layer norm of a constant vector",
                point=(3.0, 3.0, 3.0, 3.0),
                dtype="float32",
                stated=(118.585, -830.098, -39.5285, 751.041),  # (g - <g>)/sqrt(eps)
                manual=by_hand,
                autodiff=jax.grad(of_deviations),
                recorded=(118.585, -830.098, -39.5285, 751.041),
            ),
            Edge(
                function="layer norm far from 0, by E[x²] - E[x]²",
                point=(4000.0, 4001.0, 4003.0, 4002.0),
                dtype="float32",
                stated=(0.804977, -2.19134, -0.581372, 1.96773),
                manual=by_hand,
                autodiff=jax.grad(of_squares),
                recorded=(1.03125, -2.40625, -0.78125, 2.15625),
            ),
        ),
        errors=(
            BadInput(
                "layer norm: scale that isn't one for each channel",
                _forward((3,), (4,), (5, 4)),
                ValueError,
                ("LayerNorm()", "scale has shape (3,)", "expected (4,)", "not broadcast"),
            ),
            BadInput(
                "layer norm: one shift for all",
                _forward((4,), (1,), (5, 4)),
                ValueError,
                ("shift has shape (1,)", "expected (4,)", "not broadcast"),
            ),
            BadInput(
                "layer norm: a scalar",
                _forward((1,), (1,), ()),
                ValueError,
                ("x has shape ()", "expected (..., C)"),
            ),
            BadInput(
                "layer norm: vectors of no length",
                lambda: LayerNorm().init(jax.random.key(0), jnp.zeros((5, 0))),
                ValueError,
                ("x has shape (5, 0)", "no empty axis"),
            ),
            BadInput(
                "layer norm: integers",
                _forward((4,), (4,), (5, 4), jnp.int32),
                TypeError,
                ("LayerNorm()", "floating-point", "int32 (5, 4)"),
            ),
            BadInput(
                "layer norm: integer scale",
                lambda: LayerNorm().forward(
                    Params(jnp.ones(4, jnp.int32), jnp.zeros(4)), jnp.zeros((5, 4))
                ),
                TypeError,
                ("scale must be a floating-point array", "int32"),
            ),
            BadInput(
                "layer norm: params of another layer",
                lambda: LayerNorm().forward(
                    (jnp.ones(4), jnp.zeros(4)),  # pyright: ignore[reportArgumentType]
                    jnp.zeros((5, 4)),
                ),
                TypeError,
                ("LayerNorm()", "Params(scale, shift)", "builtins.tuple", "network.init"),
            ),
            BadInput(
                "layer norm: a mask that it doesn't take",
                lambda: mbp.LayerNorm().forward(
                    Params(jnp.ones(4), jnp.zeros(4)), jnp.zeros((5, 4)), mask=jnp.ones(5, bool)
                ),
                TypeError,
                ("LayerNorm() takes nothing", "leave out mask"),
            ),
            BadInput(
                "layer norm: eps of 0", lambda: LayerNorm(0.0), ValueError, ("eps", "positive")
            ),
            BadInput(
                "layer norm: width for eps",
                lambda: LayerNorm("64"),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("LayerNorm: eps must be a positive number", "'64'", "str"),
            ),
        ),
    ),
)
