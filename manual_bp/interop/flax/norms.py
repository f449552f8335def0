"""LayerNorm, RMSNorm, GroupNorm and BatchNorm of flax.nnx with hand-derived backward passes.

Dtypes are promoted first, by the module's own promote_dtype. The variance is always the mean of
(x - ⟨x⟩)². flax, with use_fast_variance, its default, takes ⟨x²⟩ - ⟨x⟩², the same number, which
rounding makes wrong where the mean is large beside the deviation.

Formulas and derivations: manual_bp/layers/layer_norm.py, rms_norm.py, group_norm.py, batch_norm.py.
"""

from __future__ import annotations

from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from manual_bp.interop import functions
from manual_bp.interop.flax.linear import array_of
from manual_bp.interop.function import as_function
from manual_bp.interop.settings import served
from manual_bp.layers import batch_norm


class LayerNorm(nnx.LayerNorm):
    """flax's LayerNorm over the last axis; see `manual_bp.interop.flax`.

    Not served: other reduction_axes or feature_axes, axis_name, mask at the call.

    Example:
        >>> from flax import nnx
        >>> import manual_bp.interop.flax as by_hand
        >>> by_hand.LayerNorm(4, rngs=nnx.Rngs(0))(jnp.ones((2, 4))).shape
        (2, 4)
    """

    def __call__(self, x: Any, *, mask: Any = None) -> jax.Array:
        """x (..., num_features) -> the same shape."""
        return layer_norm(self, x, mask)


class RMSNorm(nnx.RMSNorm):
    """flax's RMSNorm over the last axis; see `manual_bp.interop.flax`.

    Not served: other reduction_axes or feature_axes, axis_name, mask at the call.
    """

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """x (..., num_features) -> the same shape."""
        _check_last_axis(self, RMSNorm, "flax.nnx.RMSNorm", x, mask)
        x, scale = self.promote_dtype((x, array_of(self.scale)), dtype=self.dtype)
        return functions.rms_norm(x, scale, eps=self.epsilon)


class GroupNorm(nnx.GroupNorm):
    """flax's GroupNorm over space and channels; see `manual_bp.interop.flax`.

    Not served: reduction_axes, axis_name, mask at the call.
    """

    def __call__(self, x: Any, *, mask: Any = None) -> jax.Array:
        """x (m, ..., num_features) -> the same shape."""
        refuse = served(GroupNorm, "flax.nnx.GroupNorm")
        refuse.check("reduction_axes", self.reduction_axes, None)
        refuse.check("axis_name", self.axis_name, None)
        refuse.check("mask", mask, None)
        x, scale, bias = self.promote_dtype(
            (x, array_of(self.scale), array_of(self.bias)), dtype=self.dtype
        )
        return functions.group_norm(x, self.num_groups, scale, bias, eps=self.epsilon)


class BatchNorm(nnx.BatchNorm):
    """flax's BatchNorm; see `manual_bp.interop.flax`.

    The batch's statistics have no gradient of their own, and running ones have none at all: as
    BatchStat they are no parameters. A batch of one position raises, since its variance is 0.

    Not served: axis_index_groups, mask at the call.

    Example:
        >>> from flax import nnx
        >>> import manual_bp.interop.flax as by_hand
        >>> layer = by_hand.BatchNorm(2, rngs=nnx.Rngs(0))
        >>> out = layer(jnp.array([[1.0, 5.0], [3.0, 5.0]]))
        >>> print(layer.mean[...])
        [0.02 0.05]
    """

    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: Any = None
    ) -> jax.Array:
        """x of any shape, normalised along all axes but `axis`."""
        refuse = served(BatchNorm, "flax.nnx.BatchNorm")
        refuse.check("axis_index_groups", self.axis_index_groups, None)
        refuse.check("mask", mask, None)
        frozen = self.use_running_average if use_running_average is None else use_running_average
        refuse.check("use_running_average", frozen, True, False, advice="Say it, here or there.")
        x, mean, variance, scale, bias = self.promote_dtype(
            (x, self.mean[...], self.var[...], array_of(self.scale), array_of(self.bias)),
            dtype=self.dtype,
        )
        x = jnp.moveaxis(x, self.axis, -1)
        if frozen:
            channels = x.shape[-1:]
            params = batch_norm.Params(
                jnp.ones(channels, x.dtype) if scale is None else scale,
                jnp.zeros(channels, x.dtype) if bias is None else bias,
            )
            layer = batch_norm.FrozenBatchNorm(self.epsilon)
            out = as_function(layer)(params, x, statistics=batch_norm.Statistics(mean, variance))
        else:
            out, of_batch = functions.batch_norm(
                x, scale, bias, eps=self.epsilon, axis_name=self.axis_name
            )
            self.mean[...] = self._average(self.mean[...], of_batch.mean)
            self.var[...] = self._average(self.var[...], of_batch.variance)
        return jnp.moveaxis(out, -1, self.axis)

    def _average(self, before: jax.Array, now: jax.Array) -> jax.Array:
        return jax.lax.stop_gradient(self.momentum * before + (1 - self.momentum) * now)


def layer_norm(module: Any, x: Any, mask: Any = None) -> jax.Array:
    """What LayerNorm computes, of flax's module or ours."""
    _check_last_axis(module, LayerNorm, "flax.nnx.LayerNorm", x, mask)
    x, scale, bias = module.promote_dtype(
        (x, array_of(module.scale), array_of(module.bias)), dtype=module.dtype
    )
    return functions.layer_norm(x, scale, bias, eps=module.epsilon)


def _check_last_axis(module: Any, kind: type, original: str, x: Any, mask: Any) -> None:
    refuse = served(kind, original)
    last = x.ndim - 1
    for name, axes in (
        ("reduction_axes", module.reduction_axes),
        ("feature_axes", module.feature_axes),
    ):
        refuse.check(name, axes if isinstance(axes, int) else tuple(axes), -1, last, (-1,), (last,))
    refuse.check("axis_name", module.axis_name, None)
    refuse.check("mask", mask, None)
