"""Rotation by position: what Rotary does to a sequence, and attention to its queries and keys.

The d features of a head are taken as d/2 points of the plane, feature i with feature i + d/2 (the
halves of a head, as in GPT-NeoX and Llama). At position t = 0, 1, ... point i is turned by an angle

    θ_ti = t base^(-2i/d),    i = 0, ..., d/2 - 1

    out_i       = x_i cos θ_ti - x_(i+d/2) sin θ_ti
    out_(i+d/2) = x_i sin θ_ti + x_(i+d/2) cos θ_ti

A rotation's transpose is its inverse, so that the backward pass turns back, by -θ. And since
R(θ_s)ᵀ R(θ_t) = R(θ_t - θ_s), the product of a turned query with a turned key depends on the
distance of their positions alone: that is what it is for.

The angles are known when a program is traced. They are taken in float64 by NumPy: in float32 an
angle near 8191 would be rounded by up to 2.4e-4 before its cosine is taken, in bfloat16 by 16. Only
the cosines and sines are rounded, to float32 at least; products and sums are taken there.

Source  Su, Lu, Pan, Murtadha, Wen & Liu (2021), arXiv:2104.09864
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import accumulation_dtype


def rotate(x: jax.Array, base: float, inverse: bool = False) -> jax.Array:
    """Each head of x turned by the angles of its position, or back by them.

    Args:
        x: (m, T, heads, d), with d even.
        base: of the angles: point i turns by base^(-2i/d) from one position to the next.
        inverse: turn by -θ instead of θ: undone, and the backward pass.

    Returns:
        Like x, in x's dtype.

    Example:
        >>> x = jnp.ones((1, 3, 1, 2))
        >>> print(np.asarray(rotate(x, 10000.0)[0, :, 0], np.float64).round(3))
        [[ 1.     1.   ]
         [-0.301  1.382]
         [-1.325  0.493]]
        >>> bool(jnp.allclose(rotate(rotate(x, 10000.0), 10000.0, inverse=True), x))
        True
    """
    wide = accumulation_dtype(x)
    length, d = x.shape[-3], x.shape[-1]
    angle = np.arange(length)[:, None] * float(base) ** (-2 * np.arange(d // 2) / d)
    cos = jnp.asarray(np.cos(angle)[:, None], wide)  # (T, 1, d/2): the same for every head
    sin = jnp.asarray(np.sin(-angle if inverse else angle)[:, None], wide)
    left, right = jnp.split(x.astype(wide), 2, -1)
    turned = (left * cos - right * sin, left * sin + right * cos)
    return jnp.concatenate(turned, -1).astype(x.dtype)
