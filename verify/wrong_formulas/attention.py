"""Mistakes that people make in attention and gated layers, for `verify.wrong_formulas`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.layer import outer_over_examples
from manual_bp.layers import _attention, _blocked_attention, gated_mlp, multi_head_attention
from manual_bp.layers._attention import Masks
from verify.networks import Case

_SETTINGS: dict[str, Any] = {
    **{"head_features": 2, "causal": True, "masked": True, "soft_cap": 2.0, "rotary": 10.0}
}
CASES = (
    Case(
        mbp.MultiHeadAttention(2, kv_heads=1, **_SETTINGS),
        mbp.SquaredError(),
        (2, 3, 3),
        seed=(31,),
    ),
    Case(
        mbp.MultiHeadAttention(1, block=2, **_SETTINGS), mbp.SquaredError(), (2, 3, 3), seed=(32,)
    ),
    Case(mbp.GatedMLP(3), mbp.SquaredError(), (4, 3), seed=(33,)),
)


def _patch(module: Any, name: str, change: Callable[..., Any]) -> Any:
    """change(right, *args) in place of a module's function right(*args)."""
    right = getattr(module, name)
    return mock.patch.object(module, name, lambda *args, **named: change(right, *args, **named))


def _without_mean(right: Any, how: Any, q: Any, k: Any, v: Any, kept: Any, dout: Any) -> Any:
    """With dS = P ⊙ dP."""
    ds = _attention.through_cap(kept.tanh, kept.P * jnp.einsum("mhgtd,mhsd->mhgts", dout, v))
    dq = how.scale * jnp.einsum("mhgts,mhsd->mhgtd", ds, k)
    dk = how.scale * jnp.einsum("mhgts,mhgtd->mhsd", ds, q)
    return dq, dk, right(how, q, k, v, kept, dout)[2]


def _of_one_head(right: Any, how: Any, q: Any, k: Any, v: Any, kept: Any, dout: Any) -> Any:
    dq, _, dv = right(how, q, k, v, kept, dout)
    first = jnp.arange(q.shape[2])[:, None, None] == 0
    return dq, right(how, q, k, v, kept, jnp.where(first, dout, 0))[1], dv


def _gate_without_slope(layer: Any, params: Any, residuals: Any, dout: Any) -> Any:
    x, z, u = residuals
    a, _ = layer.activation.forward((), z)
    dh = dout @ params.W_down
    dz, du = dh * u, dh * a
    dparams = gated_mlp.Params(
        outer_over_examples(dz, x, params.W_gate),
        outer_over_examples(du, x, params.W_up),
        outer_over_examples(dout, a * u, params.W_down),
    )
    return dparams, dz @ params.W_gate + du @ params.W_up


WRONG: dict[str, Callable[[], Any]] = {
    "attention: a query doesn't read itself": lambda: _patch(
        _attention,
        "may_read",
        lambda right, how, masks, rows, columns: right(how, masks, rows - 1, columns),
    ),
    "attention: a query reads the next key": lambda: _patch(
        _attention,
        "may_read",
        lambda right, how, masks, rows, columns: right(how, masks, rows + 1, columns),
    ),
    "attention: scale left out": lambda: _patch(
        _attention, "score", lambda right, how, q, k: right(how._replace(scale=1.0), q, k)
    ),
    "attention: scale left out backward": lambda: _patch(
        _attention,
        "backward",
        lambda right, how, q, k, v, kept, dout: right(how._replace(scale=1.0), q, k, v, kept, dout),
    ),
    "attention: softmax's mean term left out": lambda: _patch(
        _attention, "backward", _without_mean
    ),
    "attention: dK of one head of its group": lambda: _patch(_attention, "backward", _of_one_head),
    "attention: the soft cap's derivative left out": lambda: _patch(
        _attention, "through_cap", lambda right, tanh, dS: dS
    ),
    "attention: errors not turned back": lambda: _patch(
        multi_head_attention,
        "rotate",
        lambda right, x, base, inverse=False: x if inverse else right(x, base),
    ),
    "attention in blocks: denominators left out backward": lambda: _patch(
        _blocked_attention,
        "backward",
        lambda right, *args: right(
            *args[:-2], args[-2]._replace(inverse=jnp.ones_like(args[-2].inverse)), args[-1]
        ),
    ),
    "attention in blocks: D left out": lambda: _patch(
        _blocked_attention,
        "backward",
        lambda right, how, block, q, k, v, masks, out, *rest: right(
            how, block, q, k, v, masks, jnp.zeros_like(out), *rest
        ),
    ),
    "attention in blocks: masks ignored backward": lambda: _patch(
        _blocked_attention,
        "backward",
        lambda right, how, block, q, k, v, masks, *rest: right(how, block, q, k, v, Masks(), *rest),
    ),
    "attention in blocks: not causal backward": lambda: _patch(
        _blocked_attention,
        "backward",
        lambda right, how, *rest: right(how._replace(causal=False), *rest),
    ),
    "gated MLP: the gate's slope left out": lambda: mock.patch.object(
        gated_mlp.GatedMLP, "backward", _gate_without_slope
    ),
}
