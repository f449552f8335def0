"""MultiHeadAttention of flax.nnx as our layer, and back: the table is in `convert`."""

from __future__ import annotations

import math
from typing import Any

import flax.nnx as nnx

from manual_bp.interop.flax.convert._common import for_layer, made, of_module, value
from manual_bp.interop.settings import Converted, check_carried
from manual_bp.layers import multi_head_attention


def from_attention(module: nnx.MultiHeadAttention) -> Converted:
    refuse = of_module(module)
    refuse.check("normalize_qk", module.normalize_qk, False)
    refuse.check("dropout_rate", module.dropout_rate, 0.0)
    refuse.check("decode", module.decode, None, False)
    refuse.check("out_features", module.out_features, module.in_features)
    heads, d, width = module.num_heads, module.head_dim, module.in_features
    parts = (module.query, module.key, module.value)
    memory = None if module.in_kv_features == width else module.in_kv_features
    layer = multi_head_attention.MultiHeadAttention(
        heads,
        kv_heads=None if module.num_kv_heads == heads else module.num_kv_heads,
        head_features=None if heads * d == width else d,
        memory=memory,
        bias=module.use_bias,
    )
    Wq, Wk, Wv = (part.kernel[...].reshape(part.kernel.shape[0], -1).T for part in parts)
    bq, bk, bv = (() if part.bias is None else part.bias[...].reshape(-1) for part in parts)
    Wo = module.out.kernel[...].reshape(-1, width).T
    params = multi_head_attention.Params(Wq, Wk, Wv, Wo, bq, bk, bv, value(module.out.bias))
    return Converted(layer, params)


def to_attention(layer: Any, params: multi_head_attention.Params) -> nnx.MultiHeadAttention:
    refuse = for_layer(layer)
    check_carried(refuse, layer, "flax takes it at the call, module(x, is_causal=True) or mask=...")
    width, rows = params.Wo.shape
    heads, d = layer.heads, rows // layer.heads
    refuse.check("scale", layer.scale, None, 1 / math.sqrt(d))
    module = made(
        nnx.MultiHeadAttention,
        heads,
        width,
        rows,
        like=params.Wq,
        num_kv_heads=layer.kv_heads,
        in_kv_features=layer.memory,
        use_bias=layer.bias,
    )
    for part, W, b in zip(
        (module.query, module.key, module.value), params[:3], params[4:7], strict=True
    ):
        part.kernel = nnx.Param(W.T.reshape(W.shape[1], -1, d))
        if layer.bias:
            part.bias = nnx.Param(b.reshape(-1, d))
    module.out.kernel = nnx.Param(params.Wo.T.reshape(heads, d, width))
    if layer.bias:
        module.out.bias = nnx.Param(params.bo)
    return module
