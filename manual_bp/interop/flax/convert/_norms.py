"""The norms of flax.nnx as our layers, and back: the table is in `convert`."""

from __future__ import annotations

from typing import Any

import flax.nnx as nnx

from manual_bp.interop.flax.convert._common import for_layer, made, of_module, value
from manual_bp.interop.settings import Converted
from manual_bp.layers import batch_norm, group_norm, layer_norm, rms_norm


def _check_norm(module: Any) -> None:
    """What all of flax's norms have in common."""
    refuse = of_module(module)
    refuse.check("use_scale", module.use_scale, True)
    refuse.check("axis_index_groups", module.axis_index_groups, None)
    if not isinstance(module, nnx.RMSNorm):
        refuse.check("use_bias", module.use_bias, True)
    if not isinstance(module, nnx.BatchNorm):
        refuse.check("axis_name", module.axis_name, None)
    if isinstance(module, nnx.LayerNorm | nnx.RMSNorm):
        refuse.check("reduction_axes", module.reduction_axes, -1)
        refuse.check("feature_axes", module.feature_axes, -1)


def from_layer_norm(module: nnx.LayerNorm) -> Converted:
    _check_norm(module)
    params = layer_norm.Params(value(module.scale), value(module.bias))
    return Converted(layer_norm.LayerNorm(module.epsilon), params)


def to_layer_norm(layer: layer_norm.LayerNorm, params: layer_norm.Params) -> nnx.LayerNorm:
    module = made(nnx.LayerNorm, len(params.scale), like=params.scale, epsilon=layer.eps)
    return _affine(module, params)


def from_rms_norm(module: nnx.RMSNorm) -> Converted:
    _check_norm(module)
    return Converted(rms_norm.RMSNorm(module.epsilon), rms_norm.Params(value(module.scale)))


def to_rms_norm(layer: rms_norm.RMSNorm, params: rms_norm.Params) -> nnx.RMSNorm:
    module = made(nnx.RMSNorm, len(params.scale), like=params.scale, epsilon=layer.eps)
    module.scale = nnx.Param(params.scale)
    return module


def from_group_norm(module: nnx.GroupNorm) -> Converted:
    _check_norm(module)
    of_module(module).check("reduction_axes", module.reduction_axes, None)
    params = group_norm.Params(value(module.scale), value(module.bias))
    return Converted(group_norm.GroupNorm(module.num_groups, module.epsilon), params)


def to_group_norm(layer: group_norm.GroupNorm, params: group_norm.Params) -> nnx.GroupNorm:
    channels, scale = len(params.scale), params.scale
    module = made(nnx.GroupNorm, channels, layer.groups, like=scale, epsilon=layer.eps)
    return _affine(module, params)


def from_batch_norm(module: nnx.BatchNorm) -> Converted:
    _check_norm(module)
    of_module(module).check("axis", module.axis, -1)
    params = batch_norm.Params(value(module.scale), value(module.bias))
    statistics = batch_norm.Statistics(module.mean[...], module.var[...])
    if module.use_running_average:
        return Converted(batch_norm.FrozenBatchNorm(module.epsilon), params, statistics)
    layer = batch_norm.BatchNorm(module.epsilon, axis_name=module.axis_name)
    return Converted(layer, params, statistics)


def to_batch_norm(
    layer: batch_norm.BatchNorm | batch_norm.FrozenBatchNorm,
    params: batch_norm.Params,
    statistics: Any,
) -> nnx.BatchNorm:
    for_layer(layer).check("masked", layer.masked, False)
    frozen = isinstance(layer, batch_norm.FrozenBatchNorm)
    module = made(
        nnx.BatchNorm,
        len(params.scale),
        like=params.scale,
        epsilon=layer.eps,
        use_running_average=frozen,
        axis_name=None if frozen else layer.axis_name,
    )
    if statistics != ():
        module.mean = nnx.BatchStat(statistics.mean)
        module.var = nnx.BatchStat(statistics.variance)
    return _affine(module, params)


def _affine(module: Any, params: Any) -> Any:
    module.scale, module.bias = nnx.Param(params.scale), nnx.Param(params.shift)
    return module
