"""Layer normalisation: centre and rescale each feature vector.

Forward, for each vector x ∈ ℝᶜ on the last axis, with ⟨v⟩ the mean of v over that axis:

    r = 1/√(⟨(x - ⟨x⟩)²⟩ + ε)           biased variance: divided by C
    x̂ = (x - ⟨x⟩) r
    out = γ ⊙ x̂ + β

Backward, given dout:

    dγ = Σ dout ⊙ x̂,   dβ = Σ dout      over all axes but the last
    g = γ ⊙ dout                         this is dx̂
    dx = r (g - ⟨g⟩ - x̂ ⟨g ⊙ x̂⟩)

Derivation.  ∂⟨x⟩/∂x_i = 1/C. The variance v has ∂v/∂x_i = 2 (x_i - ⟨x⟩)/C, as Σ_j (x_j - ⟨x⟩) = 0
takes out the path through the mean, and r = (v + ε)^(-½) has ∂r/∂v = -½ r³; so ∂r/∂x_i = -r² x̂_i/C.
Hence

    ∂x̂_j/∂x_i = r (δ_ij - 1/C) + (x_j - ⟨x⟩) ∂r/∂x_i = r (δ_ij - 1/C - x̂_i x̂_j/C),

symmetric in i and j; contract it with g. To check by eye: Σ_i dx_i = 0, since out ignores a
constant shift; and where x is constant, x̂ = 0 and dx = (g - ⟨g⟩)/√ε.

Limits.  C = 1: a vector is one number, and out is constant: x̂ = 0, out = β, dx = 0.

Accuracy.  The variance is the mean of squared deviations. ⟨x²⟩ - ⟨x⟩² needs one pass fewer but is
the small difference of two large numbers: rounding errs there by u⟨x⟩², which is the variance
itself once the mean is 1/√u standard deviations away, 4000 in float32. A mean that is off by δ
changes ⟨(x - ⟨x⟩)²⟩ by δ² alone.

Backward keeps x as it came, which in half precision is exact where a rounded x̂ isn't, and which
whoever made x often keeps too; x̂ is one multiplication away. Statistics are in at least float32.

Shapes  x, out, dout, dx: (..., C); γ = scale, β = shift: (C,)
Source  Ba, Kiros & Hinton (2016), Layer normalization, arXiv:1607.06450
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import Layer, accumulation_dtype, check_taken, sum_over_examples
from manual_bp.layers._channels import apart, check_channels, check_eps, check_params
from manual_bp.sharding import beside


class Params(NamedTuple):
    """scale: (C,), γ; shift: (C,), β."""

    scale: Any
    shift: Any


class Residuals(NamedTuple):
    """x: (..., C), the input; mean, inverse_std: (..., 1), ⟨x⟩ and r."""

    x: jax.Array
    mean: jax.Array
    inverse_std: jax.Array


@dataclass(frozen=True)
class LayerNorm(Layer):
    """out = γ ⊙ (x - ⟨x⟩)/√(variance + ε) + β, with mean and variance over the last axis.

    γ begins as 1, β as 0.

    Args:
        eps: ε > 0, inside the root.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit; for an eps that isn't positive.

    Source: Ba, Kiros & Hinton (2016), arXiv:1607.06450.

    Example:
        >>> layer, x = LayerNorm(), jnp.array([[1.0, 2.0, 3.0], [4.0, 4.0, 4.0]])
        >>> out, residuals = layer.forward(layer.init(jax.random.key(0), x), x)
        >>> print(out.round(3))
        [[-1.225  0.     1.225]
         [ 0.     0.     0.   ]]
    """

    eps: float = 1e-5

    def __post_init__(self) -> None:
        check_eps(self, self.eps)

    def init(self, key: jax.Array, x: Any) -> Params:
        check_channels(self, x)
        return Params(jnp.ones(x.shape[-1], x.dtype), jnp.zeros(x.shape[-1], x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        check_channels(self, x)
        check_params(self, Params, params, x)
        mean = x.mean(-1, keepdims=True, dtype=accumulation_dtype(x))
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        residuals = Residuals(x, mean, jax.lax.rsqrt(variance + self.eps))
        scale, shift = (beside(each, x) for each in params)
        out = scale * self._normalized(residuals) + shift
        return out.astype(jnp.result_type(x, *params)), residuals

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        kept, error = apart(residuals, dout)
        dscale = sum_over_examples(error * self._normalized(kept), like=params.scale)
        dshift = sum_over_examples(error, like=params.shift)
        kept, error, scale = apart(residuals, dout, params.scale)
        normalized = self._normalized(kept)
        g = beside(scale, kept.x) * error.astype(kept.inverse_std.dtype)
        through_mean = g.mean(-1, keepdims=True)
        through_std = normalized * (g * normalized).mean(-1, keepdims=True)
        dx = kept.inverse_std * (g - through_mean - through_std)
        return Params(dscale, dshift), dx.astype(kept.x.dtype)

    def _normalized(self, residuals: Residuals) -> jax.Array:
        """x̂ = (x - ⟨x⟩) r."""
        x, mean, inverse_std = residuals
        return (x - mean) * inverse_std
