"""The visit that finds the factors of each example's gradient, for every kind of layer.

    factors(layer, dout, params, residuals) -> (a form for each parameter, nested like them, dx)

Each kind says once what its gradient is summed from:

    Dense            dW[l] = Σ dZ A_prevᵀ, db = Σ dZ       Outer(dZ, A_prev), Each(Σ over s of dZ)
    Conv             dW = Σ over places of window doutᵀ    Outer(dout, windows of x), Each
    Embedding        rows of dW are sums of dout           Rows(dout, tokens)
    recurrent        dW = Σ_t dz_t x_tᵀ, dU = Σ_t dz_t h_{t-1}ᵀ
    attention        dWq = Σ dq xᵀ, and so on
    norms, scales    their own backward, one example at a time: what they have is small

A layer that mixes examples, BatchNorm, has no such form: the error of one example depends on all
others through the statistics, and so `the gradient of example i` is not defined. It is an error,
and so is a layer of a kind that nobody has said a visit for.

Source  Goodfellow (2015), arXiv:1510.01799; Rochette, Manoel & Tramel (2019), arXiv:1912.06015
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation
from manual_bp.layer import Layer, Loss, Tree
from manual_bp.layers.avg_pool import AvgPool
from manual_bp.layers.batch_norm import BatchNorm, FrozenBatchNorm
from manual_bp.layers.conv import Conv
from manual_bp.layers.conv_transpose import ConvTranspose
from manual_bp.layers.dense import Dense
from manual_bp.layers.dropout import Dropout
from manual_bp.layers.embedding import Embedding
from manual_bp.layers.flatten import Flatten
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
from manual_bp.signals.factors import Each, Form, Outer, Rows


@functools.singledispatch
def factors(layer: Layer, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """The visit: (forms nested like params, dx); `factors.register(Kind)` adds a kind of layer.

    Args:
        layer: a leaf of the network; the kind decides.
        dout: its error, (m, ...), examples first.
        params, residuals: the layer's own.

    Raises:
        TypeError: for a kind that nobody has said a visit for, and for one that mixes examples.
    """
    raise TypeError(
        f"{layer!r}: what the gradient of one example is made of isn't known for layers of this "
        "kind. Say it with manual_bp.signals.factored.factors.register."
    )


@factors.register(BatchNorm)
def _(layer: Layer, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    raise TypeError(
        f"{layer!r} mixes examples: the statistics of the batch make each output depend on all "
        "examples, so that the gradient of one example isn't defined. Use LayerNorm or GroupNorm, "
        "or network.inference(), whose statistics are given."
    )


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
    _, dx = layer.backward(params, residuals, dout)
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


def by_backward(
    layer: Layer, dout: jax.Array, params: Tree, residuals: Tree, axes: Tree
) -> tuple[Tree, jax.Array]:
    """Each example's gradient by the layer's own backward on a batch of one.

    Args:
        layer, dout, params, residuals: as for `factors`; the parameters should be so few that m
            times as many are no burden.
        axes: nested like residuals: 0 where examples come first, None where all have the same.
    """

    def backward(residuals: Tree, dout: jax.Array) -> Tree:
        one = jax.tree.map(
            lambda axis, leaf: leaf if axis is None else leaf[None],
            axes,
            residuals,
            is_leaf=lambda axis: axis is None,
        )
        return layer.backward(params, one, dout[None])[0]

    grads = jax.vmap(backward, in_axes=(axes, 0))(residuals, dout)
    _, dx = layer.backward(params, residuals, dout)
    return jax.tree.map(lambda each, leaf: Each(each, like(leaf)), grads, params), dx


def affine(W: jax.Array, b: Any, errors: jax.Array, inputs: jax.Array) -> tuple[Outer, Any]:
    """The forms of W and b where out = inputs Wᵀ + b, at any number of places.

    Args:
        W, b: (o, i) and (o,), or () without a bias.
        errors: (m, ..., o).
        inputs: (m, ..., i).
    """
    outer = Outer(_places(errors)[:, :, None], _places(inputs)[:, :, None], like(W))
    return outer, sum_over_places(b, errors) if jax.tree.leaves(b) else ()


def sum_over_places(b: jax.Array, errors: jax.Array) -> Each:
    """The form of a bias: Σ over the places of an example of its errors (m, ..., o)."""
    return Each(_places(errors).sum(1, dtype=jnp.promote_types(errors.dtype, jnp.float32)), like(b))


def like(param: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a parameter."""
    return jax.ShapeDtypeStruct(param.shape, param.dtype)


def _places(values: jax.Array) -> jax.Array:
    """(m, ..., n) as (m, S, n)."""
    return values.reshape(len(values), math.prod(values.shape[1:-1]), values.shape[-1])


def is_form(part: Any) -> bool:
    """Whether it stands for a parameter's gradient in what the visit returns."""
    return isinstance(part, Form)


def loss_factors(
    loss: Loss, params: Tree, prediction: jax.Array, target: jax.Array, weights: jax.Array
) -> Tree:
    """Forms of a loss's own parameters, or of those it borrows; () of a loss without.

    Raises:
        TypeError: for a loss that sweeps in its own way, and may mix examples.
    """
    if type(loss).sweep is Loss.sweep:
        return ()
    raise TypeError(
        f"{loss!r}: what the gradient of one example is made of isn't known for losses of this "
        "kind."
    )
