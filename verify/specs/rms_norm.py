"""Spec of RMSNorm: a vector over its root mean square, or loops over each vector."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from manual_bp.layers.rms_norm import Params, RMSNorm
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(layer: RMSNorm, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """The squared length over the number of entries is the mean square."""
    mean_square = jnp.sum(x * x, axis=-1, keepdims=True) / x.shape[-1]
    return x / jnp.sqrt(mean_square + layer.eps) * params.scale


def naive(layer: RMSNorm, params: Any, x: np.ndarray) -> np.ndarray:
    """One vector at a time."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]):
        rms = mp.sqrt(sum(each**2 for each in row) / len(row) + mp.mpf(layer.eps))
        rows.append([g * each / rms for each, g in zip(row, params.scale, strict=True)])
    return np.array(rows).reshape(x.shape)


def draw(rng: np.random.Generator, shape: Shape) -> RMSNorm:
    """With an ε that matters, or the usual one."""
    return RMSNorm() if rng.random() < 0.7 else RMSNorm(float(rng.choice([1e-12, 0.125, 2.0])))


WEIGHTS = jnp.array([1.0, -2.0, 0.5, 3.0])


def by_hand(x: jax.Array) -> jax.Array:
    """dx of this layer, with scale 1."""
    layer, params = RMSNorm(), Params(jnp.ones(4, x.dtype))
    _, residuals = layer.forward(params, x)
    return layer.backward(params, residuals, WEIGHTS.astype(x.dtype))[1]


def in_its_dtype(x: jax.Array) -> jax.Array:
    """With squares in x's own dtype."""
    return WEIGHTS.astype(x.dtype) @ (x / jnp.sqrt((x * x).mean() + jnp.asarray(1e-6, x.dtype)))


def _forward(scale: Any, x: Any, dtype: Any = jnp.float32) -> Any:
    return lambda: RMSNorm().forward(Params(jnp.zeros(scale)), jnp.zeros(x, dtype))


SPECS = (
    LayerSpec(
        layer=RMSNorm,
        samples=(
            (RMSNorm(), (5, 4)),
            (RMSNorm(0.125), (3, 2, 5)),
            (RMSNorm(), (4, 4)),
            (RMSNorm(1e-3), (1, 6)),
            (RMSNorm(2.0), (3, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        edges=(
            Edge(
                function="rms norm of a zero vector",
                point=(0.0, 0.0, 0.0, 0.0),
                dtype="float32",
                stated=(1000, -2000, 500, 3000),  # g/sqrt(eps)
                manual=by_hand,
                autodiff=jax.grad(in_its_dtype),
                recorded=(1000, -2000, 500, 3000),
            ),
            Edge(
                function="rms norm where squares leave the dtype's range",
                point=(400.0, 0.0, 0.0, 300.0),
                dtype="float16",
                stated=(-0.00432, -0.008, 0.002, 0.00576),
                manual=by_hand,
                autodiff=jax.grad(in_its_dtype),
                recorded=(0,) * 4,
            ),
        ),
        errors=(
            BadInput(
                "rms norm: scale that isn't one for each channel",
                _forward((3,), (5, 4)),
                ValueError,
                ("RMSNorm()", "scale has shape (3,)", "expected (4,)", "not broadcast"),
            ),
            BadInput(
                "rms norm: one scale for all",
                _forward((1,), (5, 4)),
                ValueError,
                ("scale has shape (1,)", "expected (4,)", "not broadcast"),
            ),
            BadInput(
                "rms norm: a scalar",
                _forward((1,), ()),
                ValueError,
                ("x has shape ()", "expected (..., C)"),
            ),
            BadInput(
                "rms norm: vectors of no length",
                lambda: RMSNorm().init(jax.random.key(0), jnp.zeros((5, 0))),
                ValueError,
                ("x has shape (5, 0)", "no empty axis"),
            ),
            BadInput(
                "rms norm: integers",
                _forward((4,), (5, 4), jnp.int32),
                TypeError,
                ("RMSNorm()", "floating-point", "int32 (5, 4)"),
            ),
            BadInput(
                "rms norm: a bare scale for params",
                lambda: RMSNorm().forward(
                    jnp.ones(4),  # pyright: ignore[reportArgumentType]
                    jnp.zeros((5, 4)),
                ),
                TypeError,
                ("RMSNorm()", "Params(scale)", "network.init"),
            ),
            BadInput(
                "rms norm: a key that it doesn't take",
                lambda: RMSNorm().forward(
                    Params(jnp.ones(4)), jnp.zeros((5, 4)), key=jax.random.key(0)
                ),
                TypeError,
                ("RMSNorm() takes nothing", "leave out key"),
            ),
            BadInput(
                "rms norm: negative eps", lambda: RMSNorm(-1e-6), ValueError, ("eps", "positive")
            ),
            BadInput(
                "rms norm: True for eps", lambda: RMSNorm(True), TypeError, ("eps", "True", "bool")
            ),
        ),
    ),
)
