"""Spec of Scale: an einsum with a diagonal; or number by number."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.scale import Params, Scale
from verify.specification import BadInput, LayerSpec, Shape, Tap


def reference(layer: Scale, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """jnp.einsum, and the shift where there is one."""
    del tap
    out = jnp.einsum("...c,c->...c", x, params.scale)
    return jnp.add(out, params.shift) if layer.bias else out


def naive(layer: Scale, params: Any, x: np.ndarray) -> np.ndarray:
    """γ x + β, number by number."""
    shift = params.shift if layer.bias else [0] * x.shape[-1]
    rows = [
        [g * each + b for g, each, b in zip(params.scale, row, shift, strict=True)]
        for row in x.reshape(-1, x.shape[-1])
    ]
    return np.array(rows, object).reshape(x.shape)


def draw(rng: np.random.Generator, shape: Shape) -> Scale:
    """With a shift or without."""
    del shape
    return Scale(bias=bool(rng.random() < 0.5))


def _forward(layer: Scale, scale: Any, shift: Any, dtype: Any = jnp.float32) -> Any:
    params = Params(jnp.zeros(scale), () if shift is None else jnp.zeros(shift))
    return lambda: layer.forward(params, jnp.zeros((5, 3), dtype))


SPECS = (
    LayerSpec(
        layer=Scale,
        samples=(
            (Scale(), (3, 4)),
            (Scale(bias=True), (2, 2)),
            (Scale(bias=True), (2, 3, 2, 1)),
            (Scale(), (1, 5)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=lambda layer: iter((Scale(), mbp.identity) if layer.bias else (mbp.identity,)),
        exact=lambda layer: True,
        errors=(
            BadInput(
                "one scale for all features",
                _forward(Scale(), (1,), None),
                ValueError,
                ("Scale()", "scale has shape (1,)", "expected (3,)", "not broadcast"),
            ),
            BadInput(
                "a shift of another length",
                _forward(Scale(bias=True), (3,), (4,)),
                ValueError,
                ("Scale(True)", "shift has shape (4,)", "expected (3,)", "not broadcast"),
            ),
            BadInput(
                "no shift where there is a bias",
                _forward(Scale(bias=True), (3,), None),
                TypeError,
                ("Scale(True)", "shift must be a floating-point array", "tuple"),
            ),
            BadInput(
                "a shift without bias",
                _forward(Scale(), (3,), (3,)),
                ValueError,
                ("Scale() has no shift", "Scale(bias=True)"),
            ),
            BadInput(
                "params that aren't Scale's",
                lambda: Scale().forward(jnp.ones(3), jnp.zeros((5, 3))),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("Scale()", "fields scale and shift", "network.init"),
            ),
            BadInput(
                "an integer scale",
                lambda: Scale().forward(Params(jnp.ones(3, jnp.int32)), jnp.zeros((5, 3))),
                TypeError,
                ("Scale()", "scale must be a floating-point array", "int32"),
            ),
            BadInput(
                "integer x",
                _forward(Scale(), (3,), None, jnp.int32),
                TypeError,
                ("Scale()", "floating-point", "int32 (5, 3)"),
            ),
            BadInput(
                "a scalar x",
                lambda: Scale().init(jax.random.key(0), jnp.zeros(())),
                ValueError,
                ("Scale()", "x has shape ()", "expected (..., C)"),
            ),
            BadInput(
                "a number for bias",
                lambda: Scale(bias=1),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("Scale: bias must be a bool, got 1",),
            ),
        ),
    ),
)
