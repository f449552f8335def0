"""Visits of layers over time: the places of an example are its steps.

Inside these layers the time comes first, (T, m, n); forms have the examples first. A step that a
mask leaves out has an error of 0, and its x is read as 0: it may be NaN.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from manual_bp.layer import Tree
from manual_bp.layers._recurrence import time_first
from manual_bp.layers.gru import GRU
from manual_bp.layers.linear_recurrence import LinearRecurrence
from manual_bp.layers.lstm import LSTM
from manual_bp.layers.rnn import RNN
from manual_bp.signals.factored.visit import affine, by_backward, factors, sum_over_places


@factors.register
def _(layer: RNN, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """dW = Σ_t dz_t x_tᵀ, dU = Σ_t dz_t h_{t-1}ᵀ, db = Σ_t dz_t."""
    dz, _ = layer.errors(params, residuals, dout)
    return _over_time(params, residuals, dz, residuals.before)


@factors.register
def _(layer: LSTM, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """As of an RNN with four times as many units."""
    dz, _ = layer.errors(params, residuals, dout)
    return _over_time(params, residuals, dz, residuals.before.h)


@factors.register
def _(layer: GRU, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    """dW = Σ_t dp_t x_tᵀ, dU = Σ_t dq_t h_{t-1}ᵀ, db = Σ_t dp_t, dc = Σ_t dq_n."""
    dp, dq_n, _ = layer.errors(params, residuals, dout)
    dq = jnp.concatenate([dp[..., : 2 * layer.features], dq_n], axis=-1)
    of_input, dx = _over_time(params, residuals, dp, residuals.before)
    of_state, _ = affine(params.U, (), _swapped(dq), _swapped(residuals.before))
    return of_input._replace(U=of_state, c=sum_over_places(params.c, _swapped(dq_n))), dx


@factors.register
def _(
    layer: LinearRecurrence, dout: jax.Array, params: Tree, residuals: Tree
) -> tuple[Tree, jax.Array]:
    """Its own backward, one example at a time: it has one number for each feature."""
    axes = residuals._replace(x=0, real=None, h=1, first=0, final=0)
    if residuals.real is not None:
        axes = axes._replace(real=1)
    return by_backward(layer, dout, params, residuals, axes)


def _over_time(
    params: Tree, residuals: Tree, dz: jax.Array, before: jax.Array
) -> tuple[Tree, jax.Array]:
    """The forms of W, U and b, and dx, where z_t = W x_t + U h_{t-1} + b.

    Args:
        params, residuals: the layer's.
        dz: (T, m, gates · n).
        before: (T, m, n), h_{t-1}.
    """
    x, errors = _swapped(time_first(residuals.x, residuals.real)), _swapped(dz)
    of_input, of_bias = affine(params.W, params.b, errors, x)
    of_state, _ = affine(params.U, (), errors, _swapped(before))
    dx = (errors @ params.W).astype(x.dtype)
    return params._replace(W=of_input, U=of_state, b=of_bias), dx


def _swapped(values: jax.Array) -> jax.Array:
    """(T, m, n) as (m, T, n)."""
    return jnp.swapaxes(values, 0, 1)
