"""The angle between two gradients, exact to rounding wherever it lies between 0° and 180°.

For u and v in ℝⁿ, of lengths ‖u‖ and ‖v‖,

    û = u / ‖u‖,   v̂ = v / ‖v‖
    θ = 2 atan2(‖û - v̂‖, ‖û + v̂‖)

Derivation.  û and v̂ span a rhombus of side 1, whose diagonals û + v̂ and û - v̂ meet at a right
angle and halve θ: ‖û + v̂‖ = 2 cos θ/2 and ‖û - v̂‖ = 2 sin θ/2. Their ratio is tan θ/2.

Why not arccos(û · v̂), which is the definition.  Near θ = 0 the cosine is 1 - θ²/2: a rounding error
ε in it is one of ε/θ in θ, and angles below √ε, 0.02° in float32, are read as 0 or worse. Here both
lengths are had to a relative error of few ε, unless they are small; then the other is near 2, and
an absolute error of ε is one of ε in θ: 1e-5 degrees in float32, at both ends.

A vector of zeros has no direction, hence no angle. Its û is set to 0: then θ = 2 atan2(1, 1) = 90°
with any other vector, along which it makes no step, and θ = 2 atan2(0, 0) = 0° with another one of
zeros, which it equals. NaN and ∞ in a vector give NaN.

Vectors are divided by their largest entry before they are squared, so that gradients of 1e-30 have
an angle too.

Shapes  u, v: any, as lists of parts whose entries together are the vector; θ: (), in degrees
Source  Kahan (2006), How futile are mindless assessments of roundoff?, section 12
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp

from manual_bp.layer import accumulation_dtype


def angle(ours: list[jax.Array], theirs: list[jax.Array], lead: int = 0) -> jax.Array:
    """θ = 2 atan2(‖û - v̂‖, ‖û + v̂‖), in degrees.

    Args:
        ours: u, in parts of any shape.
        theirs: v, in parts of the same shapes.
        lead: how many first axes count vectors, each with an angle of its own; all parts have them.

    Returns:
        The shape of the first `lead` axes; at least float32.

    Source: Kahan (2006).

    Example:
        >>> print(angle([jnp.array([1.0, 0.0])], [jnp.array([1.0, 1.0])]).round(2))
        45.0
        >>> print(angle([jnp.array([1.0, 0.0])], [jnp.array([1.0, 1e-5])]) * 1e5 * math.pi / 180)
        1.0
    """
    u, v = _direction(ours, lead), _direction(theirs, lead)
    apart = _length([a - b for a, b in zip(u, v, strict=True)])
    together = _length([a + b for a, b in zip(u, v, strict=True)])
    return jnp.arctan2(apart, together) * (360 / math.pi)


def _direction(parts: list[jax.Array], lead: int) -> list[jax.Array]:
    """û in parts, each as (*lead, entries); 0 for 0."""
    rows = [part.reshape(*part.shape[:lead], -1) for part in parts]
    rows = [row.astype(accumulation_dtype(row)) for row in rows]
    largest = functools.reduce(jnp.maximum, (jnp.abs(row).max(-1) for row in rows))
    largest = jnp.maximum(largest, jnp.finfo(largest.dtype).tiny)  # that of zeros: not 0 / 0
    rows = [row / largest[..., None] for row in rows]
    length = jnp.maximum(_length(rows), 1)  # it is 1 or more, but for zeros
    return [row / length[..., None] for row in rows]


def _length(rows: list[jax.Array]) -> jax.Array:
    return jnp.sqrt(functools.reduce(jnp.add, (jnp.square(row).sum(-1) for row in rows)))
