"""Global average pooling: the mean of each channel over all of space.

    out_c = (1/N) Σ_p x_pc        p over the N places of an image
    dx_pc = dout_c / N

Derivation.  ∂out_c/∂x_pd = [c = d]/N at every place p: the error of a channel is shared evenly.
Backward keeps the shape alone. Sums and quotients are taken in at least float32: N may be more than
a half-precision number holds.

Shapes  x, dx: (m, n₁, ..., n_d, C), d ≥ 1, N = n₁ ... n_d; out, dout: (m, C)
Source  Lin, Chen & Yan (2013), Network in network, arXiv:1312.4400
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating
from manual_bp.layer import Layer, Static, accumulation_dtype, check_taken
from manual_bp.sharding import axes_of, divided


class Residuals(NamedTuple):
    """shape, axes: of x, its sizes and the mesh axes that divide it; no arrays."""

    shape: Static
    axes: Static


@dataclass(frozen=True)
class GlobalAvgPool(Layer):
    """The mean over all axes between examples and channels.

    Raises:
        TypeError: for inputs that aren't floats.
        ValueError: for inputs without space axes or places.

    Source: Lin, Chen & Yan (2013).

    Example:
        >>> x = jnp.arange(8.0).reshape(1, 2, 2, 2)
        >>> out, residuals = GlobalAvgPool().forward((), x)
        >>> _, dx = GlobalAvgPool().backward((), residuals, jnp.array([[4.0, 8.0]]))
        >>> print(out, dx[0, 0], dx[0, 1])
        [[3. 4.]] [[1. 2.]
         [1. 2.]] [[1. 2.]
         [1. 2.]]
    """

    def init(self, key: jax.Array, x: Any) -> tuple[()]:
        del key
        self._check(x)
        return ()

    def forward(self, params: Any, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(x)
        mean = x.mean(tuple(range(1, x.ndim - 1)), dtype=accumulation_dtype(x))
        return mean.astype(x.dtype), Residuals(Static(x.shape), Static(axes_of(x)))

    def backward(
        self, params: Any, residuals: Residuals, dout: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        shape = residuals.shape.value
        places = math.prod(shape[1:-1])
        share = (dout.astype(accumulation_dtype(dout)) / places).astype(dout.dtype)
        share = jnp.expand_dims(share, tuple(range(1, len(shape) - 1)))
        return (), divided(jnp.broadcast_to(share, shape), *residuals.axes.value)

    def _check(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim < 3 or 0 in x.shape[1:-1]:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected (m, ..., C) with at least one "
                "space axis between, none of them empty."
            )
