"""Cells of flax.nnx and RNN over them as our layers, and back: the table is in `convert`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.nnx as nnx
import jax.numpy as jnp

from manual_bp.interop import functions
from manual_bp.interop.flax.convert._common import for_layer, made, of_module, value
from manual_bp.interop.flax.names import ACTIVATIONS, FUNCTIONS
from manual_bp.interop.settings import Converted
from manual_bp.layers import gru, lstm, rnn


def _check_cell(cell: Any) -> None:
    """Gates of the usual kind; flax may have others."""
    refuse = of_module(cell)
    for name, given, usual, ours in (
        ("gate_fn", cell.gate_fn, nnx.sigmoid, functions.sigmoid),
        ("activation_fn", cell.activation_fn, nnx.tanh, functions.tanh),
    ):
        refuse.check(name, given, usual, ours)


def from_lstm_cell(cell: nnx.LSTMCell) -> Converted:
    _check_cell(cell)
    of_input = (cell.ii, cell.if_, cell.ig, cell.io)
    of_state = (cell.hi, cell.hf, cell.hg, cell.ho)
    W = jnp.concatenate([gate.kernel[...].T for gate in of_input])
    U = jnp.concatenate([gate.kernel[...].T for gate in of_state])
    b = jnp.concatenate([value(gate.bias) for gate in of_state])
    return Converted(lstm.LSTM(cell.hidden_features), lstm.Params(W, U, b))


def from_optimized_lstm_cell(cell: nnx.OptimizedLSTMCell) -> Converted:
    _check_cell(cell)
    W, U = cell.dense_i.kernel[...].T, cell.dense_h.kernel[...].T
    return Converted(lstm.LSTM(cell.hidden_features), lstm.Params(W, U, value(cell.dense_h.bias)))


def to_lstm(layer: lstm.LSTM, params: lstm.Params) -> nnx.RNN:
    W, U, b = params
    cell = made(nnx.OptimizedLSTMCell, W.shape[1], layer.features, like=W)
    cell.dense_i.kernel, cell.dense_h.kernel = nnx.Param(W.T), nnx.Param(U.T)
    cell.dense_h.bias = nnx.Param(b)
    return _over_time(layer, cell)


def from_gru_cell(cell: nnx.GRUCell) -> Converted:
    _check_cell(cell)
    W, U, b = cell.dense_i.kernel[...].T, cell.dense_h.kernel[...].T, value(cell.dense_i.bias)
    c = jnp.zeros(cell.hidden_features, U.dtype)
    return Converted(gru.GRU(cell.hidden_features), gru.Params(W, U, b, c))


def to_gru(layer: gru.GRU, params: gru.Params) -> nnx.RNN:
    W, U, b, c = params
    if (c != 0).any():
        raise ValueError(
            f"{layer!r}: the bias c inside of the reset isn't 0, and flax's GRUCell has no such "
            "bias. equinox's GRUCell has one, bias_n."
        )
    cell = made(nnx.GRUCell, W.shape[1], layer.features, like=W)
    cell.dense_i.kernel, cell.dense_h.kernel = nnx.Param(W.T), nnx.Param(U.T)
    cell.dense_i.bias = nnx.Param(b)
    return _over_time(layer, cell)


def from_simple_cell(cell: nnx.SimpleCell) -> Converted:
    refuse = of_module(cell)
    refuse.check("residual", cell.residual, False)
    if cell.activation_fn not in ACTIVATIONS:
        refuse.check("activation_fn", cell.activation_fn, *ACTIVATIONS)
    found = ACTIVATIONS[cell.activation_fn]
    W, U, b = cell.dense_i.kernel[...].T, cell.dense_h.kernel[...].T, value(cell.dense_i.bias)
    return Converted(rnn.RNN(cell.hidden_features, found), rnn.Params(W, U, b))


def to_rnn(layer: rnn.RNN, params: rnn.Params) -> nnx.RNN:
    W, U, b = params
    if layer.activation not in FUNCTIONS:
        for_layer(layer).check("activation", layer.activation, *FUNCTIONS)
    function, (n, n_in) = FUNCTIONS[layer.activation], W.shape
    cell = made(nnx.SimpleCell, n_in, n, like=W, dtype=W.dtype, activation_fn=function)
    cell.dense_i.kernel, cell.dense_h.kernel = nnx.Param(W.T), nnx.Param(U.T)
    cell.dense_i.bias = nnx.Param(b)
    return _over_time(layer, cell)


def from_rnn(module: nnx.RNN) -> Converted:
    refuse = of_module(module)
    refuse.check("time_major", module.time_major, False)
    refuse.check("return_carry", module.return_carry, False)
    if module.reverse:
        refuse.check("keep_order", module.keep_order, True)
    found = [convert for kind, convert in CELLS.items() if isinstance(module.cell, kind)]
    if not found:
        refuse.check("cell", type(module.cell), *CELLS)
    layer, params, _ = found[0](module.cell)
    return Converted(dataclasses.replace(layer, reverse=module.reverse), params)


def _over_time(layer: Any, cell: Any) -> nnx.RNN:
    advice = "flax takes seq_lengths at the call, and goes on behind them."
    for_layer(layer).check("masked", layer.masked, False, advice=advice)
    return nnx.RNN(cell, reverse=layer.reverse, keep_order=layer.reverse)


CELLS: dict[type, Callable[[Any], Converted]] = {
    nnx.LSTMCell: from_lstm_cell,
    nnx.OptimizedLSTMCell: from_optimized_lstm_cell,
    nnx.GRUCell: from_gru_cell,
    nnx.SimpleCell: from_simple_cell,
}
"""The cells that RNN may be over."""
