"""Flatten: all axes but the first as one.

    out_n = the elements of x_n in row-major order,    dx_n = those of dout_n, in x_n's shape

Derivation.  Each element of out is one element of x, so ∂out/∂x is a renaming of indices; its
transpose is the renaming back. Nothing is computed, and backward keeps the shape alone.

Shapes  x, dx: (m, n₁, ..., n_d); out, dout: (m, n₁ ... n_d)
Source  LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to document
        recognition (where feature maps meet the first dense layer)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from manual_bp.activation import check_floating
from manual_bp.layer import Layer, Static, check_taken
from manual_bp.sharding import axes_of, reshape


class Residuals(NamedTuple):
    """shape, axes: of x, its sizes and the mesh axes that divide it; no arrays."""

    shape: Static
    axes: Static


@dataclass(frozen=True)
class Flatten(Layer):
    """Each example as one vector.

    Raises:
        TypeError: for inputs that aren't floats.
        ValueError: for inputs without a features axis.

    Source: LeCun et al. (1998).

    Example:
        >>> out, residuals = Flatten().forward((), jnp.ones((5, 4, 3, 2)))
        >>> _, dx = Flatten().backward((), residuals, out)
        >>> out.shape, dx.shape
        ((5, 24), (5, 4, 3, 2))
    """

    def init(self, key: jax.Array, x: Any) -> tuple[()]:
        del key
        self._check(x)
        return ()

    def forward(self, params: Any, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(x)
        features = math.prod(x.shape[1:])  # -1 would not do for an empty batch
        return reshape(x, (x.shape[0], features), axes_of(x)[0]), Residuals(
            Static(x.shape), Static(axes_of(x))
        )

    def backward(
        self, params: Any, residuals: Residuals, dout: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        return (), reshape(dout, residuals.shape.value, *residuals.axes.value)

    def _check(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim < 2:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected (m, ...), with axes to flatten."
            )
