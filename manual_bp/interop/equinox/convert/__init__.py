"""Weights of equinox modules as parameters of our layers, and back.

| equinox.nn | here | what moves |
|---|---|---|
| Linear | Dense | weight (n_out, n_in) = W |
| Conv1d, Conv2d, Conv3d | Conv | weight (O, C / groups, *kernel), OIHW of HWIO; bias (O, 1, ..) |
| Embedding | Embedding | weight = W |
| LayerNorm, GroupNorm | the same | weight = scale, bias = shift |
| RMSNorm without bias | RMSNorm | weight = scale |
| BatchNorm, with its State | BatchNorm; FrozenBatchNorm if inference | and averages = statistics |
| LSTMCell | LSTM | weight_ih = W, weight_hh = U, bias = b |
| GRUCell | GRU | the same, and bias_n = c, inside of the reset |
| MultiheadAttention | MultiHeadAttention | the four projections' weight and bias = W and b |
| MLP | sequential of Dense | layer by layer, with its activation |
| Sequential | sequential | one by one; Lambda(jax.nn.relu) and the like are activations |

Gates have the same order in both: i, f, g, o of an LSTM, and r, z, n of a GRU. A module of equinox
is of one example, a layer here of many, and a cell of equinox is one step, an LSTM or GRU here a
whole sequence. Images are (C, H, W) there and (m, H, W, C) here.

What says how weights are drawn, how a result is computed (block) or averaged (momentum) stays
behind, since it isn't part of the function. What is part of it and has no counterpart is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx

from manual_bp.activation import Activation
from manual_bp.activations import identity
from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.interop.equinox.convert import _feedforward, _norms, _sequences
from manual_bp.interop.equinox.convert._common import for_layer, made, of_module
from manual_bp.interop.equinox.names import ACTIVATIONS, FUNCTIONS, NO_ACTIVATION
from manual_bp.interop.settings import Converted
from manual_bp.layer import Layer, Tree
from manual_bp.layers import (
    batch_norm,
    conv,
    dense,
    embedding,
    group_norm,
    gru,
    layer_norm,
    lstm,
    multi_head_attention,
    rms_norm,
)


def from_module(module: Any, state: eqx.nn.State | None = None) -> Converted:
    """An equinox module as (layer, params, statistics) of manual_bp, by this file's table.

    Args:
        module: one of those in the table, ours of the same names among them.
        state: where BatchNorm keeps its averages, as eqx.nn.make_with_state returns it.

    Returns:
        Converted(layer, params, statistics); statistics are BatchNorm's, nested like the network,
        for `layer.inference()`. What equinox takes at the call is a setting here:
        `dataclasses.replace(layer, causal=True)`.

    Raises:
        TypeError: for a module that has no counterpart; for a BatchNorm without state.
        ValueError: for a setting that has none.

    Source: equinox's source, equinox/nn.

    Example:
        >>> import equinox as eqx
        >>> layer, params, _ = from_module(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
        >>> layer, params.W.shape
        (Dense(2), (2, 3))
    """
    if isinstance(module, eqx.nn.Sequential):
        return _from_sequential(module, state)
    if isinstance(module, eqx.nn.BatchNorm):
        if state is None:
            raise TypeError(
                "from_module: BatchNorm's averages are in equinox's State: give it too, "
                "from_module(module, state)."
            )
        return _norms.from_batch_norm(module, state)
    for kind, convert in FROM.items():
        if isinstance(module, kind):
            return convert(module)
    names = ", ".join(kind.__name__ for kind in (*FROM, eqx.nn.BatchNorm, eqx.nn.Sequential))
    raise TypeError(
        f"from_module: {type(module).__name__} has no counterpart among manual_bp's layers; those "
        f"that have one are {names}."
    )


def to_module(layer: Layer, params: Tree, statistics: Tree = ()) -> Any:
    """Parameters of a manual_bp layer as an equinox module, by this file's table.

    Args:
        layer: one of those in the table. A chain of Dense with an activation becomes an MLP, and
            must have its shape: equal widths, one activation, and perhaps another at the end.
        params: of that layer.
        statistics: BatchNorm's running Statistics; () for means of 0 and variances of 1.

    Returns:
        A module of equinox's own; for a BatchNorm the pair (module, state).

    Raises:
        TypeError: for a layer that has no counterpart.
        ValueError: for a setting that has none.

    Source: equinox's source, equinox/nn.

    Example:
        >>> params = dense.Params(jnp.ones((2, 3)), jnp.zeros(2))
        >>> to_module(dense.Dense(2), params).weight.shape
        (2, 3)
    """
    if isinstance(layer, Activation) and layer in FUNCTIONS:
        return eqx.nn.Lambda(FUNCTIONS[layer])
    if isinstance(layer, batch_norm.BatchNorm | batch_norm.FrozenBatchNorm):
        return _norms.to_batch_norm(layer, params, statistics)
    if type(layer) not in TO:
        names = ", ".join(kind.__name__ for kind in (*TO, batch_norm.BatchNorm))
        raise TypeError(
            f"to_module: {layer!r} has no counterpart among equinox's modules; those that have one "
            f"are {names} and activations."
        )
    return TO[type(layer)](layer, params)


def _from_mlp(module: eqx.nn.MLP) -> Converted:
    refuse = of_module(module)
    refuse.check("scan", module.scan, False)
    known, found = {**ACTIVATIONS, NO_ACTIVATION: identity}, []
    for name, given in (
        ("activation", module.activation),
        ("final_activation", module.final_activation),
    ):
        if given not in known:
            refuse.check(name, given, *known)
        found.append(known[given])
    hidden, final = found
    *before, last = module.layers
    each = [_feedforward.params_of_linear(linear) for linear in module.layers]
    layers = [_feedforward.dense_of(linear, hidden) for linear in before]
    layers.append(_feedforward.dense_of(last, final))
    return Converted(sequential(*layers), tuple(each), ((),) * len(each))


def _to_mlp(layer: Sequential, dense_layers: list[dense.Dense], params: Tree) -> eqx.nn.MLP:
    *before, last = dense_layers
    widths = {each.features for each in before}
    functions = {each.activation for each in before}
    biases = {each.bias for each in before}
    if len(widths) > 1 or len(functions) > 1 or len(biases) > 1:
        raise ValueError(
            f"{layer!r}: equinox's MLP has one width, one activation and one use_bias for all "
            "hidden layers. Write the activations as layers of their own, "
            "mbp.sequential(mbp.Dense(8), mbp.tanh, ...), for an eqx.nn.Sequential."
        )
    refuse = for_layer(layer)
    for each in (*functions, last.activation):
        if each not in FUNCTIONS:
            refuse.check("activation", each, *FUNCTIONS)
    module = made(
        eqx.nn.MLP,
        params[0].W.shape[1],
        last.features,
        widths.pop() if widths else last.features,
        len(before),
        FUNCTIONS[functions.pop()] if functions else FUNCTIONS[identity],
        NO_ACTIVATION if last.activation == identity else FUNCTIONS[last.activation],
        biases.pop() if biases else last.bias,
        last.bias,
        dtype=params[0].W.dtype,
    )
    linears = tuple(map(_feedforward.linear_of_params, params))
    return eqx.tree_at(lambda m: m.layers, module, linears)


def _from_sequential(module: eqx.nn.Sequential, state: eqx.nn.State | None) -> Converted:
    found = []
    for each in module.layers:
        if isinstance(each, eqx.nn.Lambda) and each.fn in ACTIVATIONS:
            found.append(Converted(ACTIVATIONS[each.fn], ()))
        else:
            found.append(from_module(each, state))
    layers, params, statistics = zip(*found, strict=True)
    return Converted(sequential(*layers), params, statistics)


def _to_sequential(layer: Sequential, params: Tree) -> eqx.nn.MLP | eqx.nn.Sequential:
    dense_layers = [each for each in layer.layers if isinstance(each, dense.Dense)]
    activated = any(each.activation != identity for each in dense_layers)
    if activated and len(dense_layers) == len(layer.layers):
        return _to_mlp(layer, dense_layers, params)
    for each in layer.layers:
        if isinstance(each, batch_norm.BatchNorm | batch_norm.FrozenBatchNorm):
            raise TypeError(
                f"to_module: {each!r} in a network: equinox makes the State of all layers at once. "
                "Make the network with eqx.nn.make_with_state, and put in what to_module returns "
                "for each layer."
            )
    return eqx.nn.Sequential([*map(to_module, layer.layers, params)])


FROM: dict[type, Callable[..., Converted]] = {
    eqx.nn.Linear: _feedforward.from_linear,
    eqx.nn.Conv: _feedforward.from_conv,
    eqx.nn.Embedding: _feedforward.from_embedding,
    eqx.nn.LayerNorm: _norms.from_layer_norm,
    eqx.nn.RMSNorm: _norms.from_rms_norm,
    eqx.nn.GroupNorm: _norms.from_group_norm,
    eqx.nn.LSTMCell: _sequences.from_lstm_cell,
    eqx.nn.GRUCell: _sequences.from_gru_cell,
    eqx.nn.MultiheadAttention: _sequences.from_attention,
    eqx.nn.MLP: _from_mlp,
}

TO: dict[type, Callable[..., Any]] = {
    dense.Dense: _feedforward.to_linear,
    conv.Conv: _feedforward.to_conv,
    embedding.Embedding: _feedforward.to_embedding,
    layer_norm.LayerNorm: _norms.to_layer_norm,
    rms_norm.RMSNorm: _norms.to_rms_norm,
    group_norm.GroupNorm: _norms.to_group_norm,
    lstm.LSTM: _sequences.to_lstm_cell,
    gru.GRU: _sequences.to_gru_cell,
    multi_head_attention.MultiHeadAttention: _sequences.to_attention,
    Sequential: _to_sequential,
}
