"""Rotary: position as a rotation of each pair of features.

The features are those of heads, d to each. Feature i of a head and feature i + d/2 are a point of
the plane, which at position t turns by the angle θ_ti = t base^(-2i/d):

    out = R(θ) x          out_i       = x_i cos θ_ti - x_(i+d/2) sin θ_ti
                          out_(i+d/2) = x_i sin θ_ti + x_(i+d/2) cos θ_ti

    dx = R(-θ) dout

Derivation.  out is linear in x, so dx = R(θ)ᵀ dout; and a rotation's transpose is its inverse, the
rotation by -θ. To check by eye: |dx| = |dout| at every position, and dx = dout at position 0.

Which features are a pair is a convention: halves, as here, in GPT-NeoX and in Llama as Hugging Face
keeps it; neighbours, 2i and 2i + 1, in the paper and in Llama's first release. They differ by the
order of the features alone, which may be put into the rows of the W before.

Backward keeps nothing: the angles are constants of the program (see `manual_bp.layers._rotary`).

Shapes  x, out, dout, dx: (m, T, F), F = heads · d with d even
Source  Su, Lu, Pan, Murtadha, Wen & Liu (2021), arXiv:2104.09864
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax

from manual_bp.activation import check_floating, check_number
from manual_bp.layer import Layer, Static, check_taken
from manual_bp.layers._rotary import rotate
from manual_bp.sharding import axes_of, reshape


class Residuals(NamedTuple):
    """dtype: the input's."""

    dtype: Static


@dataclass(frozen=True)
class Rotary(Layer):
    """Each head's pairs of features turned by angles that grow with the position.

    Args:
        head_features: d, features of a head, even; x has a multiple of it.
        base: point i turns by base^(-2i/d) from one position to the next.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for an odd head_features; for shapes that don't fit.

    Source: Su et al. (2021).

    Example:
        >>> import numpy as np
        >>> out, residuals = Rotary(2).forward((), jnp.array([[[2.0, 0.0], [2.0, 0.0]]]))
        >>> print(np.asarray(out, np.float64).round(2))  # (2 cos 1, 2 sin 1) at position 1
        [[[2.   0.  ]
          [1.08 1.68]]]
        >>> _, dx = Rotary(2).backward((), residuals, out)
        >>> print(np.asarray(dx, np.float64).round(2))
        [[[2. 0.]
          [2. 0.]]]
    """

    head_features: int
    base: float = field(default=10000.0, kw_only=True)

    def __post_init__(self) -> None:
        d = self.head_features
        if not isinstance(d, int) or isinstance(d, bool) or d < 1:
            raise TypeError(f"Rotary: head_features must be a positive int, got {d!r}.")
        if d % 2:
            raise ValueError(
                f"Rotary: head_features must be even, got {d}: features are turned in pairs."
            )
        check_number("Rotary: base", self.base, "a positive number", lambda base: base > 0)

    def forward(self, params: Any, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        del params
        check_taken(self, taken)
        check_floating(self, x)
        if x.ndim != 3 or x.shape[-1] % self.head_features or x.shape[-1] == 0:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected (m, T, F) with F a multiple of "
                f"head_features, {self.head_features}."
            )
        return self._turned(x), Residuals(Static(x.dtype))

    def backward(
        self, params: Any, residuals: Residuals, dout: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        del params
        return (), self._turned(dout, inverse=True).astype(residuals.dtype.value)

    def _turned(self, x: jax.Array, inverse: bool = False) -> jax.Array:
        m, T, F = x.shape
        axes, d = axes_of(x), self.head_features
        heads = reshape(x, (m, T, F // d, d), *axes)
        return reshape(rotate(heads, self.base, inverse), x.shape, *axes)
