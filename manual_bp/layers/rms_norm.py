"""RMS normalisation: rescale each feature vector to root mean square 1, without centring it.

Forward, for each vector x ∈ ℝᶜ on the last axis, with ⟨v⟩ the mean of v over that axis:

    r = 1/√(⟨x²⟩ + ε)
    x̂ = x r
    out = γ ⊙ x̂

Backward, given dout:

    dγ = Σ dout ⊙ x̂                     over all axes but the last
    g = γ ⊙ dout                         this is dx̂
    dx = r (g - x̂ ⟨g ⊙ x̂⟩)

Derivation.  With s = ⟨x²⟩, ∂s/∂x_i = 2 x_i/C and r = (s + ε)^(-½) has ∂r/∂s = -½ r³; so
∂r/∂x_i = -r² x̂_i/C. Hence

    ∂x̂_j/∂x_i = r δ_ij + x_j ∂r/∂x_i = r (δ_ij - x̂_i x̂_j/C),

symmetric in i and j; contract it with g. It is layer normalisation's without the mean, and there is
no ⟨g⟩ either. To check by eye: x · dx = ε r³ x · g, 0 but for ε, since out ignores the length of x;
and at x = 0, dx = g/√ε.

Backward keeps x as it came, which in half precision is exact where a rounded x̂ isn't, and which
whoever made x often keeps too. The mean of squares is in at least float32.

Shapes  x, out, dout, dx: (..., C); γ = scale: (C,)
Source  Zhang & Sennrich (2019), Root mean square layer normalization, arXiv:1910.07467
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
    """scale: (C,), γ."""

    scale: Any


class Residuals(NamedTuple):
    """x: (..., C), the input; inverse_rms: (..., 1), r."""

    x: jax.Array
    inverse_rms: jax.Array


@dataclass(frozen=True)
class RMSNorm(Layer):
    """out = γ ⊙ x/√(⟨x²⟩ + ε), with the mean of squares over the last axis; γ begins as 1.

    Args:
        eps: ε > 0, inside the root.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit; for an eps that isn't positive.

    Source: Zhang & Sennrich (2019), arXiv:1910.07467.

    Example:
        >>> layer, x = RMSNorm(), jnp.array([[1.0, -1.0], [0.0, 0.0]])
        >>> out, residuals = layer.forward(layer.init(jax.random.key(0), x), x)
        >>> print(out.round(3))
        [[ 1. -1.]
         [ 0.  0.]]
    """

    eps: float = 1e-6

    def __post_init__(self) -> None:
        check_eps(self, self.eps)

    def init(self, key: jax.Array, x: Any) -> Params:
        check_channels(self, x)
        return Params(jnp.ones(x.shape[-1], x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        check_channels(self, x)
        check_params(self, Params, params, x)
        wide = x.astype(accumulation_dtype(x))
        mean_square = jnp.square(wide).mean(-1, keepdims=True)
        residuals = Residuals(x, jax.lax.rsqrt(mean_square + self.eps))
        out = beside(params.scale, x) * (x * residuals.inverse_rms)
        return out.astype(jnp.result_type(x, params.scale)), residuals

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        (x, inverse_rms), error = apart(residuals, dout)
        error = error.astype(inverse_rms.dtype)
        dscale = sum_over_examples(error * x * inverse_rms, like=params.scale)
        (x, inverse_rms), error, scale = apart(residuals, dout, params.scale)
        g = beside(scale, x) * error.astype(inverse_rms.dtype)
        # x̂ ⟨g ⊙ x̂⟩, with both r, a number for each vector, taken out: XLA is faster so.
        along = x * (jnp.square(inverse_rms) * (g * x).mean(-1, keepdims=True))
        dx = inverse_rms * (g - along)
        return Params(dscale), dx.astype(x.dtype)
