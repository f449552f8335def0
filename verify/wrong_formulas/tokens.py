"""Mistakes that people make with tokens and positions, for `verify.wrong_formulas`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.layer import no_gradient
from manual_bp.layers import _rotary, embedding, position_embedding, rotary
from manual_bp.layers.embedding import Embedding
from manual_bp.layers.position_embedding import PositionEmbedding
from manual_bp.layers.rotary import Rotary
from verify.networks import Case

NETWORK = mbp.sequential(Embedding(4, 4), PositionEmbedding(4), Rotary(4), mbp.Dense(3))
CASES = (Case(NETWORK, mbp.SoftmaxCrossEntropy(), (3, 3), seed=(7,)),)


def _dW(change: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """change(tokens, dout) -> dW in place of the sum."""

    def backward(layer: Embedding, params: Any, residuals: Any, dout: jax.Array) -> Any:
        tokens = residuals.tokens
        each = change(tokens.reshape(-1), dout.reshape(-1, layer.features))
        return embedding.Params(each), no_gradient(tokens)

    return mock.patch.object(Embedding, "backward", backward)


def _zeros(dout: jax.Array) -> jax.Array:
    return jnp.zeros((4, dout.shape[-1]), dout.dtype)


def _averaged(tokens: jax.Array, dout: jax.Array) -> jax.Array:
    total = _zeros(dout).at[tokens].add(dout)
    return total / jnp.maximum(_zeros(dout).at[tokens].add(1.0), 1)


def _tokens(change: Callable[[jax.Array], jax.Array]) -> Any:
    right = Embedding.forward
    return mock.patch.object(
        Embedding, "forward", lambda layer, params, x, **taken: right(layer, params, change(x))
    )


def _positions(change: Callable[[jax.Array], jax.Array]) -> Any:
    right = PositionEmbedding.backward

    def backward(layer: PositionEmbedding, params: Any, residuals: Any, dout: jax.Array) -> Any:
        dparams, dx = right(layer, params, residuals, dout)
        return position_embedding.Params(change(dparams.P)), dx

    return mock.patch.object(PositionEmbedding, "backward", backward)


def _turned(change: Callable[[jax.Array, float, bool], jax.Array]) -> Any:
    return mock.patch.object(
        rotary, "rotate", lambda x, base, inverse=False: change(x, base, inverse)
    )


def _one_later(x: jax.Array, base: float, inverse: bool) -> jax.Array:
    shifted = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))
    return _rotary.rotate(shifted, base, inverse)[:, 1:]


def _neighbours(x: jax.Array, base: float, inverse: bool) -> jax.Array:
    halves = jnp.concatenate([x[..., ::2], x[..., 1::2]], -1)
    return _rotary.rotate(halves, base, inverse)


WRONG: dict[str, Callable[[], Any]] = {
    "embedding gradient overwritten, not added": lambda: _dW(
        lambda tokens, dout: _zeros(dout).at[tokens].set(dout)
    ),
    "embedding gradient averaged over its places": lambda: _dW(_averaged),
    "token off by one": lambda: _tokens(lambda x: (x + 1) % 4),
    "token off by one in the gradient": lambda: _dW(
        lambda tokens, dout: _zeros(dout).at[tokens + 1].add(dout)
    ),
    "position shifted by one": lambda: _positions(lambda dP: jnp.roll(dP, 1, 0)),
    "error not turned back": lambda: _turned(
        lambda x, base, inverse: _rotary.rotate(x, base, inverse=False)
    ),
    "positions counted from one": lambda: _turned(_one_later),
    "neighbours turned in place of halves": lambda: _turned(_neighbours),
}
