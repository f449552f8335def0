"""Weights of flax.nnx modules as parameters of our layers, and back.

| flax.nnx | here | what moves |
|---|---|---|
| Linear | Dense | kernel (n_in, n_out) = Wᵀ |
| Conv | Conv | kernel (*kernel, C / groups, O) = W as it is; NHWC images both |
| Embed | Embedding | embedding = W |
| LayerNorm, GroupNorm | the same | scale, bias = shift |
| RMSNorm | the same | scale |
| BatchNorm | BatchNorm; FrozenBatchNorm if use_running_average | and mean, var = statistics |
| RNN(OptimizedLSTMCell) | LSTM | dense_i.kernel = Wᵀ, dense_h.kernel = Uᵀ, dense_h.bias = b |
| RNN(LSTMCell) | LSTM | the same gate by gate: ii, if_, ig, io; hi, hf, hg, ho |
| RNN(GRUCell) | GRU | dense_i.kernel = Wᵀ, dense_i.bias = b, dense_h.kernel = Uᵀ; c = 0 |
| RNN(SimpleCell) | RNN | dense_i.kernel = Wᵀ, dense_i.bias = b, dense_h.kernel = Uᵀ |
| MultiHeadAttention | MultiHeadAttention | query.kernel (F, heads, d) = Wqᵀ, out.kernel = Woᵀ |
| Sequential | sequential | one by one; functions such as nnx.relu are activations |

Gates have the same order in both, i, f, g, o of an LSTM and r, z, n of a GRU. Both have one bias
for each gate; flax's GRU has none inside of the reset, so that c is 0 here and must be 0 to go
back. The features of attention's Wq are cut into heads, (heads · d) as (heads, d), and so are those
of Wk, Wv and the biases; out.kernel is (heads, d, F).

What says how weights are drawn (initializers, initial_std), how a result is computed (block) or
averaged (momentum) stays behind, since it isn't part of the function; so do dtypes of computation.
What is part of it and has no counterpart is an error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.nnx as nnx

from manual_bp.activation import Activation
from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.interop.flax.convert import _attention, _feedforward, _norms, _recurrent
from manual_bp.interop.flax.names import ACTIVATIONS, FUNCTIONS
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
    rnn,
)


def from_module(module: Any) -> Converted:
    """A flax.nnx module as (layer, params, statistics) of manual_bp, by this file's table.

    Args:
        module: one of those in the table, ours of the same names among them. A bare cell is read
            as the whole sequence's layer, as RNN(cell) is.

    Returns:
        Converted(layer, params, statistics); statistics are BatchNorm's, nested like the network,
        for `layer.inference()`. What flax takes at the call is a setting here:
        `dataclasses.replace(layer, causal=True)` for is_causal=True.

    Raises:
        TypeError: for a module that has no counterpart.
        ValueError: for a setting that has none.

    Source: flax's source, flax/nnx/nn.

    Example:
        >>> import flax.nnx as nnx
        >>> layer, params, _ = from_module(nnx.Linear(3, 2, rngs=nnx.Rngs(0)))
        >>> layer, params.W.shape
        (Dense(2), (2, 3))
    """
    for kind, convert in FROM.items():
        if isinstance(module, kind):
            return convert(module)
    names = ", ".join(kind.__name__ for kind in FROM)
    raise TypeError(
        f"from_module: {type(module).__name__} has no counterpart among manual_bp's layers; those "
        f"that have one are {names}."
    )


def to_module(layer: Layer, params: Tree, statistics: Tree = ()) -> Any:
    """Parameters of a manual_bp layer as a flax.nnx module, by this file's table.

    Args:
        layer: one of those in the table. An LSTM comes back as RNN over an OptimizedLSTMCell.
        params: of that layer.
        statistics: BatchNorm's running Statistics, nested like the network; () for means of 0 and
            variances of 1, as flax has them at first.

    Returns:
        A module of flax's own; `manual_bp.interop.flax` has the same ones with hand-derived
        gradients, and nnx.state and nnx.update move its weights there.

    Raises:
        TypeError: for a layer that has no counterpart.
        ValueError: for a setting that has none.

    Source: flax's source, flax/nnx/nn.

    Example:
        >>> params = dense.Params(jnp.ones((2, 3)), jnp.zeros(2))
        >>> to_module(dense.Dense(2), params).kernel.shape
        (3, 2)
    """
    if isinstance(layer, Activation) and layer in FUNCTIONS:
        return FUNCTIONS[layer]
    if type(layer) not in TO:
        names = ", ".join(kind.__name__ for kind in TO)
        raise TypeError(
            f"to_module: {layer!r} has no counterpart among flax.nnx's modules; those that have "
            f"one are {names} and activations."
        )
    if isinstance(layer, Sequential | batch_norm.BatchNorm | batch_norm.FrozenBatchNorm):
        return TO[type(layer)](layer, params, statistics)
    return TO[type(layer)](layer, params)


def _from_sequential(module: nnx.Sequential) -> Converted:
    found = []
    for each in module.layers:
        if isinstance(each, Callable) and each in ACTIVATIONS:
            found.append(Converted(ACTIVATIONS[each], ()))
        else:
            found.append(from_module(each))
    layers, params, statistics = zip(*found, strict=True)
    return Converted(sequential(*layers), params, statistics)


def _to_sequential(layer: Sequential, params: Tree, statistics: Any) -> nnx.Sequential:
    each = statistics if statistics != () else ((),) * len(layer.layers)
    return nnx.Sequential(*map(to_module, layer.layers, params, each))


FROM: dict[type, Callable[[Any], Converted]] = {
    nnx.Linear: _feedforward.from_linear,
    nnx.Conv: _feedforward.from_conv,
    nnx.Embed: _feedforward.from_embed,
    nnx.LayerNorm: _norms.from_layer_norm,
    nnx.RMSNorm: _norms.from_rms_norm,
    nnx.GroupNorm: _norms.from_group_norm,
    nnx.BatchNorm: _norms.from_batch_norm,
    **_recurrent.CELLS,
    nnx.RNN: _recurrent.from_rnn,
    nnx.MultiHeadAttention: _attention.from_attention,
    nnx.Sequential: _from_sequential,
}

TO: dict[type, Callable[..., Any]] = {
    dense.Dense: _feedforward.to_linear,
    conv.Conv: _feedforward.to_conv,
    embedding.Embedding: _feedforward.to_embed,
    layer_norm.LayerNorm: _norms.to_layer_norm,
    rms_norm.RMSNorm: _norms.to_rms_norm,
    group_norm.GroupNorm: _norms.to_group_norm,
    batch_norm.BatchNorm: _norms.to_batch_norm,
    batch_norm.FrozenBatchNorm: _norms.to_batch_norm,
    lstm.LSTM: _recurrent.to_lstm,
    gru.GRU: _recurrent.to_gru,
    rnn.RNN: _recurrent.to_rnn,
    multi_head_attention.MultiHeadAttention: _attention.to_attention,
    Sequential: _to_sequential,
}
