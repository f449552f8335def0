"""Linear, Conv and Embed of flax.nnx as our layers, and back: the table is in `convert`."""

from __future__ import annotations

import flax.nnx as nnx

from manual_bp import activations
from manual_bp.interop.flax.convert._common import for_layer, made, of_module, value
from manual_bp.interop.settings import Converted, as_sizes, shortest
from manual_bp.layers import conv, dense, embedding


def from_linear(module: nnx.Linear) -> Converted:
    layer = dense.Dense(module.out_features, bias=module.use_bias)
    return Converted(layer, dense.Params(module.kernel[...].T, value(module.bias)))


def to_linear(layer: dense.Dense, params: dense.Params) -> nnx.Linear:
    advice = "Write it as two layers: mbp.sequential(mbp.Dense(3), mbp.tanh)."
    for_layer(layer).check("activation", layer.activation, activations.identity, advice=advice)
    n_out, n_in = params.W.shape
    module = made(nnx.Linear, n_in, n_out, like=params.W, use_bias=layer.bias)
    module.kernel = nnx.Param(params.W.T)
    if layer.bias:
        module.bias = nnx.Param(params.b)
    return module


def from_conv(module: nnx.Conv) -> Converted:
    axes, refuse = len(module.kernel_size), of_module(module)
    refuse.check("mask", module.mask, None)
    refuse.check("input_dilation", as_sizes(module.input_dilation, axes), (1,) * axes)
    padding = module.padding
    if padding == "CAUSAL":
        dilation = as_sizes(module.kernel_dilation, axes)[0]
        padding = ((dilation * (module.kernel_size[0] - 1), 0),)
    elif isinstance(padding, str):
        refuse.check("padding", padding, "SAME", "VALID", "CAUSAL")
    elif isinstance(padding, int):
        padding = ((padding, padding),) * axes
    else:
        padding = tuple((p, p) if isinstance(p, int) else (p[0], p[1]) for p in padding)
    layer = conv.Conv(
        module.out_features,
        tuple(module.kernel_size),
        stride=shortest(as_sizes(module.strides, axes)),
        padding=padding,
        dilation=shortest(as_sizes(module.kernel_dilation, axes)),
        groups=module.feature_group_count,
        bias=module.use_bias,
    )
    return Converted(layer, conv.Params(module.kernel[...], value(module.bias)))


def to_conv(layer: conv.Conv, params: conv.Params) -> nnx.Conv:
    *kernel, channels, features = params.W.shape
    module = made(
        nnx.Conv,
        channels * layer.groups,
        features,
        tuple(kernel),
        like=params.W,
        strides=layer.stride,
        padding=layer.padding,
        kernel_dilation=layer.dilation,
        feature_group_count=layer.groups,
        use_bias=layer.bias,
    )
    module.kernel = nnx.Param(params.W)
    if layer.bias:
        module.bias = nnx.Param(params.b)
    return module


def from_embed(module: nnx.Embed) -> Converted:
    layer = embedding.Embedding(module.num_embeddings, module.features)
    return Converted(layer, embedding.Params(module.embedding[...]))


def to_embed(layer: embedding.Embedding, params: embedding.Params) -> nnx.Embed:
    module = made(nnx.Embed, *params.W.shape, like=params.W)
    module.embedding = nnx.Param(params.W)
    return module
