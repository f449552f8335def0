"""One step of an LSTM and of a GRU, from where W x and U h are known: gates and state.

For cells, which are called once for each step by somebody else's loop. What is by hand is where
autodiff keeps most, the gates: 5n numbers for each step, (z, c) or the arguments, against some 12n.
The affine maps before them are bilinear, and JAX's transpose of them is the formula itself; left to
JAX, dW is one product over examples wherever `jax.vmap` stands.

Formulas and derivations: manual_bp/layers/lstm.py and gru.py. In a loop of our own, over a whole
sequence, dW is one product over steps too: functions.lstm and functions.gru.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.interop.attaching import attached
from manual_bp.layer import Tree, accumulation_dtype
from manual_bp.layers import gru, lstm


def _lstm_forward(z: jax.Array, c: jax.Array) -> tuple[tuple[jax.Array, jax.Array], Tree]:
    h_next, c_next = lstm.through_gates(z, c)
    dtype = jnp.result_type(z, c)
    return (h_next.astype(dtype), c_next.astype(dtype)), (z, c)


def _lstm_backward(kept: Tree, dout: Any) -> tuple[jax.Array, jax.Array]:
    (z, c), (dh, dc) = kept, dout
    _, c_next = lstm.through_gates(z, c)
    dz, dc = lstm.errors_of_gates(jnp.split(z, 4, axis=-1), c, c_next, dh, dc)
    return jnp.concatenate(dz, axis=-1).astype(z.dtype), dc.astype(c.dtype)


lstm_gates = attached(_lstm_forward, _lstm_backward)
"""(z, c_{t-1}) -> (h_t, c_t), z = W x_t + U h_{t-1} + b, (..., 4n), in the order i, f, g, o."""


def _gru_forward(p: jax.Array, q: jax.Array, h: jax.Array) -> tuple[jax.Array, Tree]:
    dtype, wide = jnp.result_type(p, q, h), accumulation_dtype(p, q, h)
    h_next, arguments = gru.through_gates(p.astype(wide), q.astype(wide), 0, h)
    kept = [each.astype(dtype) for each in arguments]
    types = jnp.zeros(0, p.dtype), jnp.zeros(0, q.dtype)
    return h_next.astype(dtype), (kept, h, types)


def _gru_backward(kept: Tree, dh: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    arguments, h, (like_p, like_q) = kept
    wide = accumulation_dtype(dh, *arguments)
    arguments = [each.astype(wide) for each in arguments]
    (dp_r, dp_z, dp_n), dq_n, passed_on = gru.errors_of_gates(arguments, h, dh)
    dp = jnp.concatenate([dp_r, dp_z, dp_n], axis=-1)
    dq = jnp.concatenate([dp_r, dp_z, dq_n], axis=-1)
    return dp.astype(like_p.dtype), dq.astype(like_q.dtype), passed_on.astype(h.dtype)


gru_gates = attached(_gru_forward, _gru_backward)
"""(p, q, h_{t-1}) -> h_t, p = W x_t + b and q = U h_{t-1}, its last part with c, (..., 3n)."""
