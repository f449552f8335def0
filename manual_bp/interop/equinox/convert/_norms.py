"""The norms of equinox as our layers, and back: the table is in `convert`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from manual_bp.interop.equinox.convert._common import for_layer, of_module
from manual_bp.interop.settings import Converted
from manual_bp.layers import batch_norm, group_norm, layer_norm, rms_norm

MANY = 2**30
"""Batches seen: after so many equinox divides an average by 1, not by 1 - momentumⁿ < 1."""


def _check_one_axis(module: eqx.nn.LayerNorm | eqx.nn.RMSNorm) -> None:
    advice = "Here a norm over several axes is one over the last of a reshaped x."
    of_module(module).check("shape", module.shape, module.shape[-1:], advice=advice)


def _eps(given: Any) -> float:
    return float(given)


def from_layer_norm(module: eqx.nn.LayerNorm) -> Converted:
    refuse = of_module(module)
    refuse.check("use_weight", module.use_weight, True)
    refuse.check("use_bias", module.use_bias, True)
    _check_one_axis(module)
    params = layer_norm.Params(module.weight, module.bias)
    return Converted(layer_norm.LayerNorm(_eps(module.eps)), params)


def to_layer_norm(layer: layer_norm.LayerNorm, params: layer_norm.Params) -> eqx.nn.LayerNorm:
    module = eqx.nn.LayerNorm(len(params.scale), layer.eps, dtype=params.scale.dtype)
    return eqx.tree_at(lambda m: [m.weight, m.bias], module, [*params])


def from_rms_norm(module: eqx.nn.RMSNorm) -> Converted:
    refuse = of_module(module)
    refuse.check("use_weight", module.use_weight, True)
    advice = "mbp.RMSNorm has no shift."
    refuse.check("use_bias", module.use_bias, False, advice=advice)
    _check_one_axis(module)
    return Converted(rms_norm.RMSNorm(_eps(module.eps)), rms_norm.Params(module.weight))


def to_rms_norm(layer: rms_norm.RMSNorm, params: rms_norm.Params) -> eqx.nn.RMSNorm:
    scale = params.scale
    module = eqx.nn.RMSNorm(len(scale), layer.eps, use_bias=False, dtype=scale.dtype)
    return eqx.tree_at(lambda m: m.weight, module, scale)


def from_group_norm(module: eqx.nn.GroupNorm) -> Converted:
    of_module(module).check("channelwise_affine", module.channelwise_affine, True)
    params = group_norm.Params(module.weight, module.bias)
    return Converted(group_norm.GroupNorm(module.groups, _eps(module.eps)), params)


def to_group_norm(layer: group_norm.GroupNorm, params: group_norm.Params) -> eqx.nn.GroupNorm:
    scale = params.scale
    module = eqx.nn.GroupNorm(layer.groups, len(scale), layer.eps, dtype=scale.dtype)
    return eqx.tree_at(lambda m: [m.weight, m.bias], module, [*params])


def from_batch_norm(module: Any, state: eqx.nn.State) -> Converted:
    refuse = of_module(module)
    refuse.check("channelwise_affine", module.channelwise_affine, True)
    advice = "In that mode a batch is normalised by an average over batches."
    if not module.inference:
        refuse.check("mode", module.mode, "batch", advice=advice)
    params = batch_norm.Params(module.weight, module.bias)
    if module.mode == "ema":
        statistics = batch_norm.Statistics(*state.get(module.ema_state_index))
    else:
        count = state.get(module.batch_counter)
        unbiased = jnp.where(count == 0, 1, 1 - module.momentum**count)
        mean, variance = state.get(module.batch_state_index)
        statistics = batch_norm.Statistics(mean / unbiased, variance / unbiased)
    if module.inference:
        return Converted(batch_norm.FrozenBatchNorm(_eps(module.eps)), params, statistics)
    return Converted(batch_norm.BatchNorm(_eps(module.eps)), params, statistics)


def to_batch_norm(
    layer: batch_norm.BatchNorm | batch_norm.FrozenBatchNorm,
    params: batch_norm.Params,
    statistics: Any,
) -> tuple[eqx.nn.BatchNorm, eqx.nn.State]:
    for_layer(layer).check("masked", layer.masked, False)
    frozen = isinstance(layer, batch_norm.FrozenBatchNorm)
    module, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(
        len(params.scale),
        (None if frozen else layer.axis_name) or "batch",
        layer.eps,
        mode="batch",
        inference=frozen,
        dtype=params.scale.dtype,
    )
    module = eqx.tree_at(lambda m: [m.weight, m.bias], module, [*params])
    if statistics != ():
        state = state.set(module.batch_state_index, tuple(statistics))
        state = state.set(module.batch_counter, jnp.array(MANY))
    return module, state
