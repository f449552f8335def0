"""The models once more, in plain jnp, for jax.grad: nothing here is manual_bp's.

Parameters are read from the places where the models keep them. A function `tap(name, value)` sees
every intermediate on its way and may change it: so jax.grad finds its gradient too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

UNREADABLE = -1e9
"""The score of what comes later: e to the power of it is 0."""

Tap = Callable[[str, jax.Array], jax.Array]


def untapped(name: str, value: jax.Array) -> jax.Array:
    """A tap that does nothing."""
    del name
    return value


def gpt(params: Any, tokens: jax.Array, *, heads: int, tap: Tap = untapped) -> jax.Array:
    """Logits of GPT-2, (m, T, vocabulary).

    Args:
        params: as `manual_bp.gpt(...).init` makes them, without dropout.
        tokens: (m, T) integers.
        heads: of attention.
        tap: sees "embedded", "X0", then of each block l, with l behind, "N", "Q", "K", "V", "S",
            "P", "O", "attention", "H", "N'", "Z", "A", "mlp" and "X", then "F" and "logits".
    """
    ((embedding, position, (blocks,), norm, _),) = params
    T = tokens.shape[1]
    x = tap("X0", tap("embedded", embedding.W[tokens]) + position.P[:T])
    may_read = jnp.tril(jnp.ones((T, T), bool))

    def in_heads(v: jax.Array) -> jax.Array:
        return v.reshape(*v.shape[:2], heads, -1).transpose(0, 2, 1, 3)

    for l, block in enumerate(_steps(blocks), start=1):
        ((norm1, attention),), ((norm2, first, second),) = block
        n = tap(f"N{l}", _layer_norm(norm1, x))
        q = tap(f"Q{l}", n @ attention.Wq.T + attention.bq)
        k = tap(f"K{l}", n @ attention.Wk.T + attention.bk)
        v = tap(f"V{l}", n @ attention.Wv.T + attention.bv)
        q, k, v = in_heads(q), in_heads(k), in_heads(v)
        s = tap(f"S{l}", q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(q.shape[-1]))
        p = tap(f"P{l}", jax.nn.softmax(jnp.where(may_read, s, UNREADABLE)))
        o = tap(f"O{l}", (p @ v).transpose(0, 2, 1, 3).reshape(x.shape))
        h = tap(f"H{l}", x + tap(f"attention{l}", o @ attention.Wo.T + attention.bo))
        n = tap(f"N'{l}", _layer_norm(norm2, h))
        z = tap(f"Z{l}", n @ first.W.T + first.b)
        a = tap(f"A{l}", jax.nn.gelu(z, approximate=True))
        x = tap(f"X{l}", h + tap(f"mlp{l}", a @ second.W.T + second.b))
    features = tap("F", _layer_norm(norm, x))
    return tap("logits", features @ embedding.W.T)


def llama(
    params: Any, tokens: jax.Array, *, heads: int, kv_heads: int, base: float = 10000.0
) -> jax.Array:
    """Logits of Llama, (m, T, vocabulary).

    Args:
        params: as `manual_bp.llama(...).init` makes them.
        tokens: (m, T) integers.
        heads, kv_heads: of queries, and of keys and values.
        base: of the angles by which queries and keys are turned.
    """
    embedding, (blocks,), norm, head = params
    x = embedding.W[tokens]
    m, T, width = x.shape
    d = width // heads
    turns = jnp.asarray(_rotations(T, d, base), x.dtype)

    def in_heads(v: jax.Array, turned: bool) -> jax.Array:
        v = v.reshape(m, T, -1, d).transpose(0, 2, 1, 3)
        if turned:
            v = jnp.einsum("tij,mhtj->mhti", turns, v)
        return jnp.repeat(v, heads // v.shape[1], 1)

    for (norm1, attention), (norm2, mlp) in ((a[0], b[0]) for a, b in _steps(blocks)):
        n = _rms_norm(norm1, x)
        q = in_heads(n @ attention.Wq.T, turned=True)
        k = in_heads(n @ attention.Wk.T, turned=True)
        v = in_heads(n @ attention.Wv.T, turned=False)
        s = q @ jnp.swapaxes(k, -1, -2) / jnp.sqrt(d)
        p = jax.nn.softmax(jnp.where(jnp.tril(jnp.ones((T, T), bool)), s, UNREADABLE))
        x = x + (p @ v).transpose(0, 2, 1, 3).reshape(x.shape) @ attention.Wo.T
        n = _rms_norm(norm2, x)
        x = x + (jax.nn.silu(n @ mlp.W_gate.T) * (n @ mlp.W_up.T)) @ mlp.W_down.T
    return _rms_norm(norm, x) @ head.W.T


def char_lstm(params: Any, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Logits of the LSTM, (m, T, vocabulary), and the state after the last token.

    Args:
        params: as `manual_bp.char_lstm(...).init` makes them.
        tokens: (m, T) integers.
        state: nested as the network observes it; the state after is nested alike.
    """
    embedding, *layers, head = params
    x, after = embedding.W[tokens], []
    for p, before in zip(layers, state[1:-1], strict=True):

        def step(state: Any, x: jax.Array, p: Any = p) -> tuple[Any, jax.Array]:
            h, c = state
            i, f, g, o = jnp.split(p.W @ x + p.U @ h + p.b, 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        one = functools.partial(jax.lax.scan, step)
        last, x = jax.vmap(one)(tuple(before), x)
        after.append(last)
    places = jax.tree.structure(state)
    return x @ head.W.T + head.b, jax.tree.unflatten(places, jax.tree.leaves(after))


def _steps(blocks: Any) -> list[Any]:
    """The parameters of each block, from those stacked along a first axis."""
    depth = len(jax.tree.leaves(blocks)[0])
    return [jax.tree.map(lambda leaf, l=l: leaf[l], blocks) for l in range(depth)]


def _rotations(T: int, d: int, base: float) -> np.ndarray:
    """A rotation of R^d for each place, (T, d, d): feature i turns with feature i + d/2."""
    half = np.arange(d // 2)
    angles = np.arange(T)[:, None] * base ** (-2 * half / d)
    turns = np.zeros((T, d, d))
    turns[:, half, half] = turns[:, half + d // 2, half + d // 2] = np.cos(angles)
    turns[:, half + d // 2, half] = np.sin(angles)
    turns[:, half, half + d // 2] = -np.sin(angles)
    return turns


def _layer_norm(params: Any, x: jax.Array, eps: float = 1e-5) -> jax.Array:
    centred = x - x.mean(-1, keepdims=True)
    return params.scale * centred / jnp.sqrt(x.var(-1, keepdims=True) + eps) + params.shift


def _rms_norm(params: Any, x: jax.Array, eps: float = 1e-6) -> jax.Array:
    return params.scale * x / jnp.sqrt((x * x).mean(-1, keepdims=True) + eps)
