"""Spec of GatedMLP: one einsum for both of its wide layers, or loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.gated_mlp import GatedMLP, Params
from verify.specification import BadInput, LayerSpec, Shape, Tap
from verify.specs import activations


def reference(layer: GatedMLP, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """Both wide layers as one, cut in two behind it."""
    wide = jnp.einsum("...i,oi->...o", x, jnp.concatenate([params.W_up, params.W_gate]))
    up, gate = jnp.split(wide, 2, axis=-1)
    inside = up * activations.reference(layer.activation, gate)
    return jnp.einsum("...i,oi->...o", inside, params.W_down)


def naive(layer: GatedMLP, params: Any, x: np.ndarray) -> np.ndarray:
    """One number at a time."""

    def dense(W: Any, rows: Any) -> Any:
        return [[sum(w * a for w, a in zip(each, row, strict=True)) for each in W] for row in rows]

    rows = x.reshape(-1, x.shape[-1])
    gate = activations.naive(layer.activation, (), np.array(dense(params.W_gate, rows)))
    up = dense(params.W_up, rows)
    inside = [[a * b for a, b in zip(*pair, strict=True)] for pair in zip(gate, up, strict=True)]
    return np.array(dense(params.W_down, inside)).reshape(x.shape)


def draw(rng: np.random.Generator, shape: Shape) -> GatedMLP:
    """A small inside, and any activation."""
    return GatedMLP(int(rng.integers(1, 9)), activations.draw_activation(rng))


def shrink(layer: GatedMLP) -> Iterator[GatedMLP]:
    """A narrower inside, a plain product."""
    if layer.features_inside > 1:
        yield GatedMLP(layer.features_inside // 2, layer.activation)
    if layer.activation != mbp.identity:
        yield GatedMLP(layer.features_inside, mbp.identity)


def _forward(gate: Any, up: Any, down: Any, x: Any, dtype: Any = jnp.float32) -> Any:
    params = Params(jnp.zeros(gate, dtype), jnp.zeros(up), jnp.zeros(down))
    return lambda: GatedMLP(4).forward(params, jnp.zeros(x))


SPECS = (
    LayerSpec(
        layer=GatedMLP,
        samples=(
            (GatedMLP(4), (3, 2)),
            (GatedMLP(3, mbp.relu), (2, 2, 3)),  # square everywhere
            (GatedMLP(2, mbp.gelu), (1, 3)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: activations.is_exact(layer.activation),
        errors=(
            BadInput(
                "gated MLP: x with the wrong number of features",
                _forward((4, 3), (4, 3), (3, 4), (5, 2)),
                ValueError,
                ("GatedMLP(4)", "W_gate has shape (4, 3)", "expected (4, 2)", "x (5, 2)"),
            ),
            BadInput(
                "gated MLP: a matrix that is (n_in, n_out)",
                _forward((4, 3), (3, 4), (3, 4), (5, 3)),
                ValueError,
                ("W_up has shape (3, 4)", "expected (4, 3)", "W_up.T would fit"),
            ),
            BadInput(
                "gated MLP: a W_down that doesn't lead back to x's features",
                _forward((4, 3), (4, 3), (2, 4), (5, 3)),
                ValueError,
                ("W_down has shape (2, 4)", "expected (3, 4)"),
            ),
            BadInput(
                "gated MLP: integer weights",
                _forward((4, 3), (4, 3), (3, 4), (5, 3), jnp.int32),
                TypeError,
                ("GatedMLP(4)", "W_gate must be a floating-point array", "int32"),
            ),
            BadInput(
                "gated MLP: tokens",
                lambda: GatedMLP(4).init(jax.random.key(0), jnp.zeros((5, 3), jnp.int32)),
                TypeError,
                ("GatedMLP(4)", "floating-point", "int32 (5, 3)", "embedding"),
            ),
            BadInput(
                "gated MLP: a scalar",
                lambda: GatedMLP(4).init(jax.random.key(0), jnp.zeros(())),
                ValueError,
                ("GatedMLP(4)", "x has shape ()", "expected (..., F)"),
            ),
            BadInput(
                "gated MLP: params of a dense layer",
                lambda: GatedMLP(4).forward(
                    mbp.Dense(4).init(jax.random.key(0), jnp.zeros((5, 3))),  # pyright: ignore[reportArgumentType]
                    jnp.zeros((5, 3)),
                ),
                TypeError,
                ("GatedMLP(4)", "Params(W_gate, W_up, W_down)", "dense.Params", "network.init"),
            ),
            BadInput(
                "gated MLP: a mask that it doesn't take",
                lambda: GatedMLP(4).forward((), jnp.zeros((5, 3)), mask=jnp.ones(5, bool)),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("GatedMLP(4) takes nothing", "leave out mask"),
            ),
            BadInput(
                "gated MLP: no features inside",
                lambda: GatedMLP(0),
                TypeError,
                ("GatedMLP: features_inside must be a positive int", "0"),
            ),
            BadInput(
                "gated MLP: somebody else's activation",
                lambda: GatedMLP(4, jax.nn.silu),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("GatedMLP(4)", "activation of manual_bp", "manual_bp.silu"),
            ),
        ),
    ),
)
