"""Cells and attention of equinox as our layers, and back: the table is in `convert`."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx

from manual_bp.interop.equinox.convert._common import filled, for_layer, made, of_module
from manual_bp.interop.equinox.convert._feedforward import linear_of_params, params_of_linear
from manual_bp.interop.settings import Converted, check_carried
from manual_bp.layers import dense, gru, lstm, multi_head_attention

OVER_TIME = "A cell is one step: say it in the jax.lax.scan over it."


def from_lstm_cell(module: eqx.nn.LSTMCell) -> Converted:
    of_module(module).check("use_bias", module.use_bias, True)
    params = lstm.Params(module.weight_ih, module.weight_hh, module.bias)
    return Converted(lstm.LSTM(module.hidden_size), params)


def to_lstm_cell(layer: lstm.LSTM, params: lstm.Params) -> eqx.nn.LSTMCell:
    _check_one_step(layer)
    module = made(eqx.nn.LSTMCell, params.W.shape[1], layer.features, dtype=params.W.dtype)
    return filled(module, lambda m: [m.weight_ih, m.weight_hh, m.bias], *params)


def from_gru_cell(module: eqx.nn.GRUCell) -> Converted:
    of_module(module).check("use_bias", module.use_bias, True)
    params = gru.Params(module.weight_ih, module.weight_hh, module.bias, module.bias_n)
    return Converted(gru.GRU(module.hidden_size), params)


def to_gru_cell(layer: gru.GRU, params: gru.Params) -> eqx.nn.GRUCell:
    _check_one_step(layer)
    module = made(eqx.nn.GRUCell, params.W.shape[1], layer.features, dtype=params.W.dtype)
    return filled(module, lambda m: [m.weight_ih, m.weight_hh, m.bias, m.bias_n], *params)


def _check_one_step(layer: Any) -> None:
    refuse = for_layer(layer)
    refuse.check("reverse", layer.reverse, False, advice=OVER_TIME)
    refuse.check("masked", layer.masked, False, advice=OVER_TIME)


def from_attention(module: eqx.nn.MultiheadAttention) -> Converted:
    refuse = of_module(module)
    biased = module.use_query_bias
    for name, given in (
        ("use_key_bias", module.use_key_bias),
        ("use_value_bias", module.use_value_bias),
        ("use_output_bias", module.use_output_bias),
    ):
        refuse.check(name, given, biased, advice="Here all four have a bias, or none.")
    refuse.check("dropout.p", module.dropout.p, 0, 0.0)
    refuse.check("vo_size", module.vo_size, module.qk_size)
    refuse.check("output_size", module.output_size, module.query_size)
    refuse.check("value_size", module.value_size, module.key_size)
    heads, width = module.num_heads, module.query_size
    layer = multi_head_attention.MultiHeadAttention(
        heads,
        head_features=None if heads * module.qk_size == width else module.qk_size,
        memory=None if module.key_size == width else module.key_size,
        bias=biased,
    )
    parts = (module.query_proj, module.key_proj, module.value_proj, module.output_proj)
    weights, biases = zip(*map(params_of_linear, parts), strict=True)
    return Converted(layer, multi_head_attention.Params(*weights, *biases))


def to_attention(layer: Any, params: multi_head_attention.Params) -> eqx.nn.MultiheadAttention:
    refuse = for_layer(layer)
    check_carried(refuse, layer, "equinox takes it at the call, mask=...")
    refuse.check("kv_heads", layer.kv_heads, None, layer.heads)
    (rows, width), (_, read) = params.Wq.shape, params.Wk.shape
    d = rows // layer.heads
    refuse.check("scale", layer.scale, None, 1 / math.sqrt(d))
    module = made(
        eqx.nn.MultiheadAttention,
        layer.heads,
        width,
        read,
        read,
        qk_size=d,
        vo_size=d,
        use_query_bias=layer.bias,
        use_key_bias=layer.bias,
        use_value_bias=layer.bias,
        use_output_bias=layer.bias,
        dtype=params.Wq.dtype,
    )
    parts = [
        linear_of_params(dense.Params(*pair)) for pair in zip(params[:4], params[4:], strict=True)
    ]
    return eqx.tree_at(
        lambda m: [m.query_proj, m.key_proj, m.value_proj, m.output_proj], module, parts
    )
