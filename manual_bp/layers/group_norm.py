"""Group normalisation: centre and rescale groups of channels, each example by itself.

Forward: the C channels are split into G groups of C/G neighbours. For each example and each group,
with ⟨v⟩ the mean of v over all positions of the example and over the group's channels:

    r = 1/√(⟨(x - ⟨x⟩)²⟩ + ε)           biased variance
    x̂ = (x - ⟨x⟩) r
    out = γ ⊙ x̂ + β                     one γ and β for each channel

Backward, given dout:

    dγ = Σ dout ⊙ x̂,   dβ = Σ dout      over all axes but the last
    g = γ ⊙ dout                         this is dx̂
    dx = r (g - ⟨g⟩ - x̂ ⟨g ⊙ x̂⟩)        with the means of the element's own group

Derivation.  A group of n = P C/G numbers (P positions) is a vector that is normalised by itself.
∂⟨x⟩/∂x_i = 1/n. The variance v has ∂v/∂x_i = 2 (x_i - ⟨x⟩)/n, as Σ_j (x_j - ⟨x⟩) = 0 takes out the
path through the mean, and r = (v + ε)^(-½) has ∂r/∂v = -½ r³; so ∂r/∂x_i = -r² x̂_i/n, and

    ∂x̂_j/∂x_i = r (δ_ij - 1/n - x̂_i x̂_j/n),

symmetric in i and j; contract it with g. γ differs within a group, so it stays inside the means, in
g. To check by eye: Σ_i dx_i = 0 over each group, since out ignores a constant shift of it.

Limits.  G = 1: one mean and variance for each example, layer normalisation over positions and
channels together. G = C: each channel of each example by itself, instance normalisation (Ulyanov,
Vedaldi & Lempitsky 2016). With x (m, C) and G = C a group is one number: x̂ = 0, out = β, dx = 0.

The variance is the mean of squared deviations, in at least float32: ⟨x²⟩ - ⟨x⟩² would be the small
difference of two large numbers. Backward keeps x as it came, and x̂ is one multiplication away.

Shapes  x, out, dout, dx: (m, ..., C), (m, H, W, C) for images; γ = scale, β = shift: (C,);
        ⟨x⟩, r: (m, 1, G, 1), beside x as (m, P, G, C/G)
Source  Wu & He (2018), Group normalization, arXiv:1803.08494
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import Layer, accumulation_dtype, check_taken, sum_over_examples
from manual_bp.layers._channels import check_channels, check_eps, check_params
from manual_bp.sharding import axes_of, beside, reshape

GROUP = (1, 3)
"""The axes of (m, P, G, C/G) over which a group is normalised."""


class Params(NamedTuple):
    """scale: (C,), γ; shift: (C,), β."""

    scale: Any
    shift: Any


class Residuals(NamedTuple):
    """x: (m, ..., C), the input; mean, inverse_std: (m, 1, G, 1), ⟨x⟩ and r of each group."""

    x: jax.Array
    mean: jax.Array
    inverse_std: jax.Array


@dataclass(frozen=True)
class GroupNorm(Layer):
    """out = γ ⊙ (x - ⟨x⟩)/√(variance + ε) + β, with mean and variance of groups of channels.

    γ begins as 1, β as 0.

    Args:
        groups: G, which divides the number of channels; as many as channels for instance
            normalisation.
        eps: ε > 0, inside the root.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit; when the groups don't divide the channels.

    Source: Wu & He (2018), arXiv:1803.08494.

    Example:
        >>> layer, x = GroupNorm(2), jnp.array([[1.0, 3.0, 10.0, 30.0]])
        >>> out, residuals = layer.forward(layer.init(jax.random.key(0), x), x)
        >>> print(out.round(3))
        [[-1.  1. -1.  1.]]
    """

    groups: int
    eps: float = 1e-5

    def __post_init__(self) -> None:
        if not isinstance(self.groups, int) or isinstance(self.groups, bool) or self.groups < 1:
            raise TypeError(f"GroupNorm: groups must be a positive int, got {self.groups!r}.")
        check_eps(self, self.eps)

    def init(self, key: jax.Array, x: Any) -> Params:
        self._check_input(x)
        return Params(jnp.ones(x.shape[-1], x.dtype), jnp.zeros(x.shape[-1], x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check_input(x)
        check_params(self, Params, params, x)
        grouped = self._grouped(x)
        mean = grouped.mean(GROUP, keepdims=True, dtype=accumulation_dtype(x))
        variance = jnp.square(grouped - mean).mean(GROUP, keepdims=True)
        residuals = Residuals(x, mean, jax.lax.rsqrt(variance + self.eps))
        scale, shift = (beside(each, x) for each in params)
        out = scale * reshape(self._normalized(residuals), x.shape, *axes_of(x)) + shift
        return out.astype(jnp.result_type(x, *params)), residuals

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        x, _, inverse_std = residuals
        normalized = self._normalized(residuals)
        of_channels = reshape(normalized, x.shape, *axes_of(x))
        dscale = sum_over_examples(dout * of_channels, like=params.scale)
        dshift = sum_over_examples(dout, like=params.shift)
        g = self._grouped(beside(params.scale, x) * dout.astype(inverse_std.dtype))
        through_mean = g.mean(GROUP, keepdims=True)
        through_std = normalized * (g * normalized).mean(GROUP, keepdims=True)
        dx = inverse_std * (g - through_mean - through_std)
        return Params(dscale, dshift), reshape(dx, x.shape, *axes_of(x)).astype(x.dtype)

    def _normalized(self, residuals: Residuals) -> jax.Array:
        """x̂ = (x - ⟨x⟩) r, as (m, P, G, C/G)."""
        x, mean, inverse_std = residuals
        return (self._grouped(x) - mean) * inverse_std

    def _grouped(self, values: jax.Array) -> jax.Array:
        """(m, ..., C) as (m, P, G, C/G)."""
        m, *space, channels = values.shape
        shape = (m, math.prod(space), self.groups, channels // self.groups)
        return reshape(values, shape, axes_of(values)[0])

    def _check_input(self, x: Any) -> None:
        check_channels(self, x, axes=2)
        if x.shape[-1] % self.groups:
            channels = x.shape[-1]
            fitting = [str(n) for n in range(1, channels + 1) if channels % n == 0]
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, {channels} channels, which {self.groups} "
                f"groups don't divide; {', '.join(fitting)} would."
            )
