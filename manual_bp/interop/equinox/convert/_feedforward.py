"""Linear, Conv and Embedding of equinox as our layers, and back: the table is in `convert`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from manual_bp import activations
from manual_bp.interop.equinox.convert._common import filled, for_layer, made, of_module, value
from manual_bp.interop.settings import Converted, as_sizes, shortest
from manual_bp.layers import conv, dense, embedding


def from_linear(module: eqx.nn.Linear) -> Converted:
    return Converted(dense_of(module, activations.identity), params_of_linear(module))


def params_of_linear(module: eqx.nn.Linear) -> dense.Params:
    refuse = of_module(module)
    for name, size in (("in_features", module.in_features), ("out_features", module.out_features)):
        if size == "scalar":
            refuse.check(name, size, 1, advice="Write 1, and vectors of one number.")
    return dense.Params(module.weight, value(module.bias))


def dense_of(module: eqx.nn.Linear, activation: Any) -> dense.Dense:
    return dense.Dense(int(module.out_features), activation, bias=module.use_bias)


def to_linear(layer: dense.Dense, params: dense.Params) -> eqx.nn.Linear:
    advice = "Write it as two layers: mbp.sequential(mbp.Dense(3), mbp.tanh)."
    for_layer(layer).check("activation", layer.activation, activations.identity, advice=advice)
    return linear_of_params(params)


def linear_of_params(params: dense.Params) -> eqx.nn.Linear:
    n_out, n_in = params.W.shape
    module = made(eqx.nn.Linear, n_in, n_out, not isinstance(params.b, tuple), params.W.dtype)
    return filled(module, lambda m: [m.weight, m.bias], *params)


def from_conv(module: eqx.nn.Conv) -> Converted:
    refuse = of_module(module)
    refuse.check("padding_mode", module.padding_mode, "ZEROS")
    padding = module.padding
    if isinstance(padding, str):
        refuse.check("padding", padding, "SAME", "VALID")
    else:
        padding = tuple((low, high) for low, high in padding)
    layer = conv.Conv(
        module.out_channels,
        module.kernel_size,
        stride=shortest(module.stride),
        padding=padding,
        dilation=shortest(module.dilation),
        groups=module.groups,
        bias=module.use_bias,
    )
    W = jnp.moveaxis(module.weight, (0, 1), (-1, -2))
    b = () if module.bias is None else module.bias.reshape(-1)
    return Converted(layer, conv.Params(W, b))


def to_conv(layer: conv.Conv, params: conv.Params) -> eqx.nn.Conv:
    *kernel, channels, features = params.W.shape
    axes = len(kernel)
    kind = {1: eqx.nn.Conv1d, 2: eqx.nn.Conv2d, 3: eqx.nn.Conv3d}[axes]
    module = made(
        kind,
        channels * layer.groups,
        features,
        tuple(kernel),
        as_sizes(layer.stride, axes),
        layer.padding,
        as_sizes(layer.dilation, axes),
        layer.groups,
        layer.bias,
        dtype=params.W.dtype,
    )
    W = jnp.moveaxis(params.W, (-1, -2), (0, 1))
    b = params.b.reshape(-1, *(1,) * axes) if layer.bias else ()
    return filled(module, lambda m: [m.weight, m.bias], W, b)


def from_embedding(module: eqx.nn.Embedding) -> Converted:
    layer = embedding.Embedding(module.num_embeddings, module.embedding_size)
    return Converted(layer, embedding.Params(module.weight))


def to_embedding(layer: embedding.Embedding, params: embedding.Params) -> eqx.nn.Embedding:
    return eqx.nn.Embedding(weight=params.W)
