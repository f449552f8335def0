"""Visits of layers without time: dense, convolutional, embedding, norms, those that only pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation
from manual_bp.layer import Layer, Tree, accumulation_dtype
from manual_bp.layers.avg_pool import AvgPool
from manual_bp.layers.batch_norm import FrozenBatchNorm
from manual_bp.layers.conv import Conv
from manual_bp.layers.conv_transpose import ConvTranspose
from manual_bp.layers.dense import Dense
from manual_bp.layers.dropout import Dropout
from manual_bp.layers.embedding import Embedding
from manual_bp.layers.flatten import Flatten
from manual_bp.layers.gated_mlp import GatedMLP
from manual_bp.layers.global_avg_pool import GlobalAvgPool
from manual_bp.layers.group_norm import GroupNorm
from manual_bp.layers.last_step import LastStep
from manual_bp.layers.layer_norm import LayerNorm
from manual_bp.layers.log_softmax import LogSoftmax
from manual_bp.layers.max_pool import MaxPool
from manual_bp.layers.position_embedding import PositionEmbedding
from manual_bp.layers.prelu import PReLU
from manual_bp.layers.rms_norm import RMSNorm
from manual_bp.layers.rotary import Rotary
from manual_bp.layers.scale import Scale
from manual_bp.layers.softmax import Softmax
from manual_bp.signals.factored.visit import affine, by_backward, factors, like, sum_over_places
from manual_bp.signals.factors import Outer, Rows


@factors.register(Activation)
@factors.register(AvgPool)
@factors.register(Dropout)
@factors.register(Flatten)
@factors.register(GlobalAvgPool)
@factors.register(LastStep)
@factors.register(LogSoftmax)
@factors.register(MaxPool)
@factors.register(Rotary)
@factors.register(Softmax)
def _(layer: Layer, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """No parameters: the error passes."""
    return layer.backward(params, residuals, dout)


@factors.register
def _(layer: Dense, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """dW = Σ dZ A_prevᵀ, db = Σ dZ."""
    dz = layer.error(residuals, dout)
    dx = (dz @ params.W).astype(residuals.a_prev.dtype)
    return type(params)(*affine(params.W, params.b, dz, residuals.a_prev)), dx


@factors.register
def _(layer: GatedMLP, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """dW_gate = Σ dZ xᵀ, dW_up = Σ dU xᵀ, dW_down = Σ dout Hᵀ."""
    x, (dz, du, h) = residuals.x, layer.errors(params, residuals, dout)
    pairs = ((dz, x), (du, x), (dout, h))
    forms = [affine(W, (), *pair)[0] for W, pair in zip(params, pairs, strict=True)]
    return type(params)(*forms), (dz @ params.W_gate + du @ params.W_up).astype(x.dtype)


@factors.register
def _(layer: Embedding, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """The row of a token is the sum of the errors at its places."""
    tokens = residuals.tokens
    m, features = len(tokens), dout.shape[-1]
    rows = Rows(dout.reshape(m, -1, features), tokens.reshape(m, -1), like(params.W))
    _, dx = layer.backward(params, residuals, dout)
    return type(params)(rows), dx


@factors.register
def _(layer: Conv, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """dW = Σ over places of window doutᵀ, in each group."""
    windows = layer.windows(residuals.x)  # (m, S, groups, K c)
    m, places, groups, _ = windows.shape
    errors = dout.reshape(m, places, groups, layer.features // groups)
    by_group = params.W.reshape(-1, groups, layer.features // groups)
    # By a product, as long as windows are held anyway: XLA on CPU took 116 ms for the convolution
    # that dx is at 64 x 4 x 4 x 256 with 512 features and stride 2, and 3 ms for this.
    wide = accumulation_dtype(errors, by_group)
    seen = jnp.einsum("msgo,igo->msgi", errors, by_group, preferred_element_type=wide)
    dx = layer.from_windows(seen, residuals.x).astype(residuals.x.dtype)
    db = sum_over_places(params.b, dout) if layer.bias else ()
    return type(params)(Outer(errors, windows, like(params.W)), db), dx


@factors.register(ConvTranspose)
@factors.register(GroupNorm)
@factors.register(LayerNorm)
@factors.register(PReLU)
@factors.register(PositionEmbedding)
@factors.register(RMSNorm)
@factors.register(Scale)
def _(layer: Layer, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """The layer's own backward, one example at a time."""
    return by_backward(layer, dout, params, residuals, jax.tree.map(lambda leaf: 0, residuals))


@factors.register
def _(layer: FrozenBatchNorm, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, Any]:
    """As of all scales: its statistics are given, the same for all examples."""
    axes = residuals._replace(
        x=0,
        statistics=jax.tree.map(lambda leaf: None, residuals.statistics),
        mask=None if residuals.mask is None else 0,
    )
    return by_backward(layer, dout, params, residuals, axes)
