"""Batch normalisation: centre and rescale each channel over the whole batch.

Forward, for each channel (last axis), with x_1 ... x_n its values over all other axes (examples,
and their positions if they have any) and ⟨v⟩ = Σ_i v_i/n:

    μ = ⟨x⟩,   σ² = ⟨(x - μ)²⟩          biased variance: divided by n
    r = 1/√(σ² + ε)
    x̂ = (x - μ) r
    out = γ x̂ + β

Backward, given dout:

    dγ = Σ_i dout_i x̂_i,   dβ = Σ_i dout_i
    dx = γ r (dout - ⟨dout⟩ - x̂ ⟨dout x̂⟩) = γ r (dout - (dβ + x̂ dγ)/n)

Derivation, in three steps.

1. The graph x → μ → σ² → r → x̂ → out, edge by edge from its end, with g = γ dout, which is dx̂:

       dσ² = Σ_i g_i (x_i - μ) · (-½ r³)
       dμ  = -r Σ_i g_i - dσ² · (2/n) Σ_i (x_i - μ)
       dx  = r g + dσ² · (2/n)(x - μ) + dμ/n

2. Two terms besides r g. Deviations from a mean add to 0, so dμ = -r Σ_i g_i; and with x - μ = x̂/r,
   dσ² · (2/n)(x - μ) = -(r/n) x̂ Σ_i g_i x̂_i:

       dx = r g - (r/n) Σ_i g_i - (r/n) x̂ Σ_i g_i x̂_i

3. The closed form. γ is one number for the channel, so it leaves the sums, which are then dβ and
   dγ: two reductions serve for all three gradients.

To check by eye: Σ_i dx_i = 0, since out ignores a constant shift; and a uniform dout gives dx = 0,
since Σ_i out_i doesn't depend on x. A constant channel has x̂ = 0 and dx = γ (dout - ⟨dout⟩)/√ε.

Masked, only examples that count enter: n is their number, μ, σ² and every sum above run over them
alone. For the others out = 0, hence dx = 0, and no error that arrives there goes anywhere: whatever
is in them, NaN too, no other number changes. If one position counts, all is finite: σ² = 0,
out = β, dx = 0. If none does, there are no statistics: those observed, and dγ, are NaN.

A weight of 0, or an ignored class, silences an example's loss alone: it stays in the statistics,
unless mask=weights != 0 takes it out.

Over devices.  Where each device holds a part of the batch and the code of one (shard_map, or vmap
with axis_name), Σ_i in μ and σ² runs over all devices (psum). Then out on every device depends on
x_i through μ and σ², so in dx, too, Σ g and Σ g x̂ are of all devices: steps 1 to 3 hold with n the
number of all positions. dγ and dβ stay local sums, as all gradients of parameters do there: the
caller adds or averages them. Under jit nothing is needed, on a sharded batch neither: the program
there is that of the whole batch.

Not training, μ and σ² are running statistics s, given from outside, and the layer is an affine map:

    out = γ (x - s.mean)/√(s.variance + ε) + β,   dx = γ dout/√(s.variance + ε),   dγ, dβ as above

where dx has one term, as nothing that it divides by depends on x. Running statistics are an average
of those observed, `optax.incremental_update(observed, statistics, 0.1)`; their variance is biased,
as in Flax (PyTorch's running one is divided by n - 1).

Accuracy.  The variance is the mean of squared deviations. ⟨x²⟩ - ⟨x⟩² needs one pass fewer but is
the small difference of two large numbers: rounding errs there by u⟨x⟩², which is the variance
itself once the mean is 1/√u standard deviations away, 4000 in float32. A mean that is off by δ
changes ⟨(x - ⟨x⟩)²⟩ by δ² alone. Statistics are in at least float32, whatever x is in.

Shapes  x, out, dout, dx: (..., C); γ = scale, β = shift, μ = mean, σ² = variance: (C,);
        mask: as the first axes of x, (m,) or (m, T)
Source  Ioffe & Szegedy (2015), Batch normalization, arXiv:1502.03167
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import Layer, accumulation_dtype, check_taken, sum_over_examples
from manual_bp.layers._channels import (
    check_channels,
    check_eps,
    check_params,
    check_per_channel,
)
from manual_bp.sharding import beside, sharded_like


class Params(NamedTuple):
    """scale: (C,), γ; shift: (C,), β."""

    scale: Any
    shift: Any


class Statistics(NamedTuple):
    """mean: (C,), μ; variance: (C,), σ², biased. In at least float32."""

    mean: Any
    variance: Any


class Residuals(NamedTuple):
    """x: (..., C), the input; statistics: what it was normalised with; mask: as given, or None."""

    x: jax.Array
    statistics: Statistics
    mask: jax.Array | None


@dataclass(frozen=True)
class BatchNorm(Layer):
    """out = γ (x - μ)/√(σ² + ε) + β, with mean and variance of each channel over the batch.

    γ begins as 1, β as 0. `observe` gives the batch's Statistics(mean, variance); `inference()` is
    a FrozenBatchNorm with the same params, which takes running ones.

    Args:
        eps: ε > 0, inside the root.
        masked: whether forward takes mask=..., booleans of the shape of x's first axes, (m,) or
            (m, T): which examples or positions count.
        axis_name: the axis, or axes, of devices (shard_map) or of vmap that hold parts of the
            batch. Parameters are drawn without it, by the same network with axis_name=None.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit; for one position in all; for an axis_name that is
            no axis where the layer is called.

    Source: Ioffe & Szegedy (2015), arXiv:1502.03167.

    Example:
        >>> layer, x = BatchNorm(), jnp.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> print(out.round(3))
        [[-1.225  0.   ]
         [ 0.     0.   ]
         [ 1.225  0.   ]]
        >>> print(layer.observe(residuals).mean)
        [2. 5.]
        >>> layer.inference().takes
        ('statistics',)
    """

    eps: float = 1e-5
    masked: bool = field(default=False, kw_only=True)
    axis_name: str | tuple[str, ...] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_eps(self, self.eps)
        _check_masked(self, self.masked)
        names = self.axis_name if isinstance(self.axis_name, tuple) else (self.axis_name,)
        if self.axis_name is not None and not all(isinstance(name, str) for name in names):
            raise TypeError(
                "BatchNorm: axis_name must be the name of an axis, a tuple of names, or None, got "
                f"{self.axis_name!r}."
            )

    @property
    def takes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The mask, if masked."""
        return ("mask",) if self.masked else ()

    def init(self, key: jax.Array, x: Any) -> Params:
        return _init(self, x)

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        mask = _check(self, params, x, taken)
        n = self._count(x, mask)
        mean = self._over_devices(sum_over_examples(_where_counted(mask, x))) / n
        squares = _where_counted(mask, jnp.square(x - mean))
        variance = self._over_devices(sum_over_examples(squares)) / n
        residuals = Residuals(x, Statistics(mean, variance), mask)
        return _affine(self, params, residuals), residuals

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        x, _, mask = residuals
        n = self._count(x, mask)
        normalized, inverse_std = _normalized(self, residuals)
        dout = _where_counted(mask, dout.astype(normalized.dtype))
        dscale, dshift = sum_over_examples(dout * normalized), sum_over_examples(dout)
        # The sums once more: XLA takes equal ones once. But where a mesh divides γ and β it divides
        # dγ and dβ, and means made of those would have to be gathered; so would r times γ.
        through_mean = self._over_devices(sum_over_examples(dout)) / n
        through_std = normalized * (self._over_devices(sum_over_examples(dout * normalized)) / n)
        dx = beside(params.scale, x) * (inverse_std * (dout - through_mean - through_std))
        dparams = _as_params(dscale, dshift, params)
        return dparams, _where_counted(mask, dx).astype(x.dtype)

    def observe(self, residuals: Residuals) -> Statistics:
        return residuals.statistics

    def inference(self) -> FrozenBatchNorm:
        return FrozenBatchNorm(self.eps, masked=self.masked)

    def _count(self, x: Any, mask: jax.Array | None) -> Any:
        """n, how many values of a channel count, on all devices."""
        if mask is None:
            n = self._over_devices(math.prod(x.shape[:-1]))
            if n == 0:
                raise ValueError(
                    f"{self!r}: x has shape {tuple(x.shape)}, no position at all: there is no "
                    "mean. network.inference() with statistics=... takes any batch."
                )
            if n == 1:
                raise ValueError(
                    f"{self!r}: x has shape {tuple(x.shape)}, one position in all: its variance is "
                    "0, and out would be the shift whatever x is. Train, and init, on larger "
                    "batches; network.inference() with statistics=... takes any."
                )
            return n
        counts = jnp.broadcast_to(_beside(mask, x.ndim - 1), x.shape[:-1])
        return self._over_devices(counts.sum(dtype=accumulation_dtype(x)))

    def _over_devices(self, local: Any) -> Any:
        """The sum over all devices that hold a part of the batch."""
        if self.axis_name is None:
            return local
        try:
            return jax.lax.psum(local, self.axis_name)
        except NameError as error:
            raise ValueError(
                f"{self!r}: there is no axis {self.axis_name!r} where it is called. Call it inside "
                "jax.shard_map or jax.vmap with this axis; under jit alone, and to draw "
                "parameters, use axis_name=None: the params are the same."
            ) from error


@dataclass(frozen=True)
class FrozenBatchNorm(Layer):
    """out = γ (x - mean)/√(variance + ε) + β, with the statistics that it is given.

    What BatchNorm is when not training. Its backward is that of an affine map with parameters γ
    and β, so that networks may be fine-tuned with their statistics kept:
    `manual_grads(params, x, y, network=network.inference(), statistics=statistics)`.

    Args:
        eps: ε > 0, inside the root.
        masked: whether forward takes mask=..., as BatchNorm does; where it is false, out = 0.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Ioffe & Szegedy (2015), arXiv:1502.03167.

    Example:
        >>> layer, x = FrozenBatchNorm(), jnp.array([[1.0, 5.0], [2.0, 6.0]])
        >>> params = layer.init(jax.random.key(0), x)
        >>> statistics = Statistics(mean=jnp.array([1.0, 4.0]), variance=jnp.array([4.0, 1.0]))
        >>> print(layer.forward(params, x, statistics=statistics)[0].round(3))
        [[0.  1. ]
         [0.5 2. ]]
    """

    eps: float = 1e-5
    masked: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_eps(self, self.eps)
        _check_masked(self, self.masked)

    @property
    def takes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Statistics, and the mask, if masked."""
        return ("mask", "statistics") if self.masked else ("statistics",)

    def stand_in(self, name: str, x: Any) -> Any:
        if name == "statistics":
            channels, dtype = x.shape[-1], accumulation_dtype(x)
            return Statistics(jnp.zeros(channels, dtype), jnp.ones(channels, dtype))
        return super().stand_in(name, x)

    def init(self, key: jax.Array, x: Any) -> Params:
        return _init(self, x)

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        mask = _check(self, params, x, taken)
        residuals = Residuals(x, self._wide(taken["statistics"], x), mask)
        return _affine(self, params, residuals), residuals

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        x, _, mask = residuals
        normalized, inverse_std = _normalized(self, residuals)
        dout = _where_counted(mask, dout.astype(normalized.dtype))
        dscale, dshift = sum_over_examples(dout * normalized), sum_over_examples(dout)
        dx = beside(params.scale, x) * inverse_std * dout
        dparams = _as_params(dscale, dshift, params)
        return dparams, dx.astype(x.dtype)

    def _wide(self, statistics: Any, x: jax.Array) -> Statistics:
        """The statistics in the dtype in which x is normalised, after checks."""
        if not isinstance(statistics, Statistics):
            raise TypeError(
                f"{self!r}: statistics must be Statistics(mean, variance), an average of what "
                f"manual_pass(...).observed is, got {type(statistics).__name__}."
            )
        named = {f"statistics.{name}": each for name, each in statistics._asdict().items()}
        check_per_channel(self, named, x)
        dtype = accumulation_dtype(x)
        return Statistics(statistics.mean.astype(dtype), statistics.variance.astype(dtype))


def _normalized(layer: BatchNorm | FrozenBatchNorm, residuals: Residuals) -> Any:
    """x̂ = (x - μ) r, 0 where x doesn't count; and r."""
    x, statistics, mask = residuals
    mean, variance = (beside(each, x) for each in statistics)
    inverse_std = jax.lax.rsqrt(variance + layer.eps)
    return _where_counted(mask, x - mean) * inverse_std, inverse_std


def _affine(layer: BatchNorm | FrozenBatchNorm, params: Params, residuals: Residuals) -> jax.Array:
    """γ x̂ + β, 0 where x doesn't count."""
    normalized, _ = _normalized(layer, residuals)
    scale, shift = (beside(each, residuals.x) for each in params)
    out = _where_counted(residuals.mask, scale * normalized + shift)
    return out.astype(jnp.result_type(residuals.x, *params))


def _as_params(dscale: jax.Array, dshift: jax.Array, params: Params) -> Params:
    """Gradients in the dtype, and where, their parameters are."""
    pairs = zip((dscale, dshift), params, strict=True)
    return Params(*(sharded_like(each.astype(param.dtype), param) for each, param in pairs))


def _where_counted(mask: jax.Array | None, values: jax.Array) -> jax.Array:
    """The values that count, and 0 for the others."""
    if mask is None:
        return values
    return jnp.where(_beside(mask, values.ndim), values, 0)


def _beside(mask: jax.Array, axes: int) -> jax.Array:
    """The mask with this many axes, the new ones of size 1."""
    return mask.reshape(mask.shape + (1,) * (axes - mask.ndim))


def _init(layer: Layer, x: Any) -> Params:
    check_channels(layer, x, axes=2)
    return Params(jnp.ones(x.shape[-1], x.dtype), jnp.zeros(x.shape[-1], x.dtype))


def _check(layer: Layer, params: Params, x: Any, taken: dict[str, Any]) -> jax.Array | None:
    """Raise unless params, x and what is taken are right; returns the mask, None without one."""
    check_taken(layer, taken)
    check_channels(layer, x, axes=2)
    check_params(layer, Params, params, x)
    if "mask" not in taken:
        return None
    mask = taken["mask"]
    if not hasattr(mask, "dtype") or mask.dtype != bool:
        given = f"{mask.dtype}" if hasattr(mask, "dtype") else type(mask).__name__
        raise TypeError(f"{layer!r}: mask must be an array of booleans, got {given}.")
    if mask.ndim < 1 or mask.ndim >= x.ndim or tuple(mask.shape) != tuple(x.shape[: mask.ndim]):
        prefixes = " or ".join(str(tuple(x.shape[:n])) for n in range(1, x.ndim))
        raise ValueError(
            f"{layer!r}: mask has shape {tuple(mask.shape)}, expected {prefixes}, as the first "
            f"axes of x {tuple(x.shape)}."
        )
    return mask


def _check_masked(layer: Layer, masked: Any) -> None:
    if not isinstance(masked, bool):
        raise TypeError(
            f"{type(layer).__name__}: masked must be True or False, got {masked!r}. The mask is an "
            "argument of the call: mask=..."
        )
