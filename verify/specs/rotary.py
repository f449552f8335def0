"""Spec of Rotary: x cos + (x turned by a quarter) sin; or as multiplication of complex numbers."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from manual_bp.layers.rotary import Rotary
from verify.specification import BadInput, LayerSpec, Shape, Tap


def reference(layer: Rotary, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """As in Hugging Face's Llama, by rotate_half; the angles by NumPy."""
    del params, tap
    d = layer.head_features
    frequencies = layer.base ** (-np.arange(0, d, 2) / d)
    angles = np.outer(np.arange(x.shape[1]), frequencies)
    cos, sin = (np.concatenate([each, each], -1) for each in (np.cos(angles), np.sin(angles)))
    heads = x.reshape(*x.shape[:2], -1, d)
    left, right = heads[..., : d // 2], heads[..., d // 2 :]
    quarter = jnp.concatenate([-right, left], -1)
    out = heads * cos[:, None].astype(x.dtype) + quarter * sin[:, None].astype(x.dtype)
    return out.reshape(x.shape)


def naive(layer: Rotary, params: Any, x: np.ndarray) -> np.ndarray:
    """One pair of one head at a time, as a complex number times e^(iθ)."""
    del params
    d, half = layer.head_features, layer.head_features // 2
    out = np.empty(x.shape, object)
    for n, t in np.ndindex(*x.shape[:2]):
        for head in range(0, x.shape[-1], d):
            for i in range(half):
                angle = t * mp.power(layer.base, -mp.mpf(2 * i) / d)
                turned = mp.mpc(x[n, t, head + i], x[n, t, head + half + i]) * mp.expj(angle)
                out[n, t, head + i], out[n, t, head + half + i] = turned.real, turned.imag
    return out


def draw(rng: np.random.Generator, shape: Shape) -> Rotary | None:
    """Heads of any even size that divides the features."""
    if len(shape) != 3 or shape[-1] % 2:
        return None
    sizes = [d for d in range(2, shape[-1] + 1, 2) if shape[-1] % d == 0]
    return Rotary(int(rng.choice(sizes)), base=float(rng.choice([10.0, 10000.0, 500000.0])))


def _forward(layer: Rotary, x: Any, dtype: Any = jnp.float32, **taken: Any) -> Any:
    return lambda: layer.forward((), jnp.zeros(x, dtype), **taken)


SPECS = (
    LayerSpec(
        layer=Rotary,
        samples=(
            (Rotary(4), (2, 3, 4)),
            (Rotary(2, base=10.0), (2, 4, 6)),
            (Rotary(6, base=3.0), (3, 2, 12)),
            (Rotary(2), (1, 2, 2)),  # one position alone is turned by nothing
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        exact=lambda layer: True,
        errors=(
            BadInput(
                "rotary: an odd head",
                lambda: Rotary(3),
                ValueError,
                ("Rotary: head_features must be even, got 3", "pairs"),
            ),
            BadInput(
                "rotary: no head",
                lambda: Rotary(0),
                TypeError,
                ("Rotary: head_features must be a positive int, got 0",),
            ),
            BadInput(
                "rotary: a head of floats",
                lambda: Rotary(4.0),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("Rotary: head_features must be a positive int, got 4.0",),
            ),
            BadInput(
                "rotary: a base of 0",
                lambda: Rotary(4, base=0.0),
                ValueError,
                ("Rotary: base must be a positive number, got 0.0",),
            ),
            BadInput(
                "rotary: a base in words",
                lambda: Rotary(4, base="10000"),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("Rotary: base must be a positive number", "'10000'"),
            ),
            BadInput(
                "rotary: features that are no heads",
                _forward(Rotary(4), (2, 3, 6)),
                ValueError,
                ("Rotary(4)", "x has shape (2, 3, 6)", "F a multiple of head_features, 4"),
            ),
            BadInput(
                "rotary: heads on an axis of their own",
                _forward(Rotary(4), (2, 3, 2, 4)),
                ValueError,
                ("Rotary(4)", "x has shape (2, 3, 2, 4)", "expected (m, T, F)"),
            ),
            BadInput(
                "rotary: vectors without positions",
                _forward(Rotary(4), (3, 4)),
                ValueError,
                ("Rotary(4)", "x has shape (3, 4)", "expected (m, T, F)"),
            ),
            BadInput(
                "rotary: no features",
                _forward(Rotary(4), (2, 3, 0)),
                ValueError,
                ("Rotary(4)", "x has shape (2, 3, 0)"),
            ),
            BadInput(
                "rotary: tokens",
                _forward(Rotary(4), (2, 3), jnp.int32),
                TypeError,
                ("Rotary(4)", "int32 (2, 3)", "embedding"),
            ),
            BadInput(
                "rotary: a mask that it doesn't take",
                _forward(Rotary(4), (2, 3, 4), mask=jnp.ones(2, bool)),
                TypeError,
                ("Rotary(4) takes nothing", "leave out mask"),
            ),
        ),
    ),
)
