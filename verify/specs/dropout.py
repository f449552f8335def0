"""Spec of Dropout: the same bits, read as numbers from 0 to 1."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layers.dropout import Dropout
from verify.specification import BadInput, LayerSpec, Shape, Tap


def reference(layer: Dropout, params: Any, x: jax.Array, tap: Tap, key: Any) -> jax.Array:
    """Kept are the numbers whose bits, an integer below 2³², are 2³² times the rate or more."""
    bits = jax.random.bits(key, x.shape, jnp.uint32)
    least = next(n for n in range(int(layer.rate * 2**32), 2**32) if n >= layer.rate * 2**32)
    kept = jnp.logical_not(bits < np.uint32(least)).astype(x.dtype)
    return kept * x * (1 / (1 - layer.rate))


def naive(layer: Dropout, params: Any, x: np.ndarray, key: Any) -> np.ndarray:
    """One number at a time, the uniform number as a fraction."""
    bits = np.asarray(jax.random.bits(key, x.shape, jnp.uint32))
    out = np.empty(x.shape, object)
    for at in np.ndindex(x.shape):
        kept = Fraction(int(bits[at]), 2**32) >= Fraction(layer.rate)
        out[at] = x[at] / (1 - layer.rate) if kept else 0 * x[at]
    return out


def draw(rng: np.random.Generator, shape: Shape) -> Dropout:
    """Rates that people use, those whose 1/(1 - rate) is a power of two more often, and 0."""
    return Dropout(float(rng.choice([0.0, 0.1, 0.3, 0.5, 0.5, 0.75, 0.9])))


def shrink(layer: Dropout) -> Iterator[Dropout]:
    """Nothing dropped."""
    if layer.rate:
        yield Dropout(0.0)


def _rate(rate: Any) -> Any:
    return lambda: Dropout(rate)


def _forward(x: Any, **taken: Any) -> Any:
    return lambda: Dropout(0.5).forward((), x, **taken)


SPECS = (
    LayerSpec(
        layer=Dropout,
        samples=(
            (Dropout(0.5), (5, 4)),
            (Dropout(0.1), (3, 2, 5)),
            (Dropout(0.75), (4, 4)),
            (Dropout(0.0), (2, 3)),
            (Dropout(0.9), (1, 8)),
            (Dropout(0.3), (2, 2, 3, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: True,
        errors=(
            BadInput(
                "dropout: everything", _rate(1.0), ValueError, ("Dropout: rate", "0 <= rate < 1")
            ),
            BadInput("dropout: a negative rate", _rate(-0.1), ValueError, ("probability", "-0.1")),
            BadInput("dropout: percent", _rate(50), ValueError, ("0 <= rate < 1", "50")),
            BadInput("dropout: no number", _rate(float("nan")), ValueError, ("rate", "nan")),
            BadInput("dropout: a text", _rate("0.5"), TypeError, ("rate", "'0.5'", "str")),
            BadInput(
                "dropout: no key",
                _forward(jnp.ones((2, 3))),
                TypeError,
                ("Dropout(0.5) takes key", "pass key=..."),
            ),
            BadInput(
                "dropout: a seed for a key",
                _forward(jnp.ones((2, 3)), key=0),
                TypeError,
                ("Dropout(0.5)", "jax.random.key(0)", "got 0"),
            ),
            BadInput(
                "dropout: a key for each example",
                _forward(jnp.ones((2, 3)), key=jax.random.split(jax.random.key(0))),
                TypeError,
                ("one random key", "(2,)"),
            ),
            BadInput(
                "dropout: integers",
                _forward(jnp.ones((2, 3), jnp.int32), key=jax.random.key(0)),
                TypeError,
                ("Dropout(0.5)", "floating-point", "int32 (2, 3)"),
            ),
        ),
    ),
)
