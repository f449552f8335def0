"""Attention of given queries, keys and values, all at once or in blocks."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import check_number
from manual_bp.interop.attaching import attached
from manual_bp.layer import Tree
from manual_bp.layers import _attention, _blocked_attention
from manual_bp.layers._attention import How, Masks
from manual_bp.sharding import undivided


def attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    mask: Any = None,
    key_mask: Any = None,
    causal: bool = False,
    window: int | None = None,
    scale: float | None = None,
    soft_cap: float | None = None,
    block: int | None = None,
) -> jax.Array:
    """softmax(scale · Q Kᵀ) V for each head; in blocks, without the T x S matrix.

    A query that may read no key gives 0, and its gradients are 0.

    Args:
        q: (m, T, heads, d).
        k, v: (m, S, kv_heads, d), kv_heads a divisor of heads: neighbouring heads of queries share
            one.
        mask: booleans, (m or 1, heads or 1, T, S), true where a query may read a key.
        key_mask: booleans, (m, S), true for keys that may be read: false where a sequence is
            filled up.
        causal: whether query t reads keys s ≤ t alone.
        window: query t reads keys s > t - window alone; with causal.
        scale: 1/√d unless given.
        soft_cap: c, for scores c tanh(scale · Q Kᵀ / c).
        block: queries in a block. None holds T x S scores, as backward does too; with blocks
            memory is linear in T.

    Returns:
        (m, T, heads, d), in q's dtype.

    Raises:
        TypeError: for arrays that aren't floating, masks that aren't booleans, settings that
            aren't numbers.
        ValueError: for shapes that don't fit.

    Source: manual_bp/layers/_attention.py and _blocked_attention.py have formula, derivation and
        source.

    Example:
        >>> q = k = v = jnp.ones((1, 8, 2, 4))
        >>> jax.grad(lambda q: attention(q, k, v, causal=True, block=4).sum())(q).shape
        (1, 8, 2, 4)
    """
    q, k, v = (jnp.asarray(each) for each in (q, k, v))
    _check(q, k, v, mask, key_mask, window, causal, block)
    for name, number in (("scale", scale), ("soft_cap", soft_cap)):
        if number is not None:
            wanted = "a positive number"
            check_number(f"attention: {name}", number, wanted, lambda number: number > 0)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    how = How(scale, soft_cap, causal, window)
    mask, key_mask = (None if each is None else jnp.asarray(each) for each in (mask, key_mask))
    return _attention_of(how, block)(q, k, v, mask, key_mask)


@functools.cache
def _attention_of(how: How, block: int | None) -> Any:
    """(q, k, v, mask, key_mask) -> out, for one setting."""

    def forward(q: Any, k: Any, v: Any, mask: Any, key_mask: Any) -> tuple[jax.Array, Tree]:
        q, k, v = (undivided(each, 1, 3) for each in (q, k, v))  # each device has whole sequences
        heads = k.shape[2]
        keys = None if key_mask is None else key_mask[:, None, None, None]
        masks = Masks(keys, None if mask is None else _pairs(mask, heads))
        q, k, v = _grouped(q, heads), jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
        if block is None:
            out, kept = _attention.forward(how, q, k, v, masks)
        else:
            out, kept = _blocked_attention.forward(how, block, q, k, v, masks)
        out = out.astype(q.dtype)
        read = () if block is None else out
        return _side_by_side(out), (q, k, v, masks, read, kept)

    def backward(residuals: Tree, dout: jax.Array) -> tuple[Any, ...]:
        q, k, v, masks, out, kept = residuals
        dout = _grouped(dout, k.shape[1])
        if block is None:
            dq, dk, dv = _attention.backward(how, q, k, v, kept, dout)
        else:
            dq, dk, dv = _blocked_attention.backward(how, block, q, k, v, masks, out, kept, dout)
        dk, dv = (jnp.swapaxes(each, 1, 2).astype(like.dtype) for each, like in ((dk, k), (dv, v)))
        return _side_by_side(dq).astype(q.dtype), dk, dv, None, None

    return attached(forward, backward)


def _grouped(z: jax.Array, kv_heads: int) -> jax.Array:
    """(m, T, heads, d) as (m, kv_heads, heads of queries for each, T, d)."""
    m, T, heads, d = z.shape
    return jnp.swapaxes(z, 1, 2).reshape(m, kv_heads, heads // kv_heads, T, d)


def _side_by_side(z: jax.Array) -> jax.Array:
    """The way back."""
    m, H, G, T, d = z.shape
    return jnp.swapaxes(z.reshape(m, H * G, T, d), 1, 2)


def _pairs(mask: jax.Array, kv_heads: int) -> jax.Array:
    """(m or 1, heads or 1, T, S) with heads as groups."""
    m, heads, T, S = mask.shape
    groups = (1, 1) if heads == 1 else (kv_heads, heads // kv_heads)
    return mask.reshape(m, *groups, T, S)


def _check(
    q: Any, k: Any, v: Any, mask: Any, key_mask: Any, window: Any, causal: bool, block: Any
) -> None:
    """Raise unless everything fits together: nothing is broadcast."""
    for name, each in (("q", q), ("k", k), ("v", v)):
        if not jnp.issubdtype(each.dtype, jnp.floating):
            raise TypeError(f"attention: {name} must be floating-point, got {each.dtype}.")
        if each.ndim != 4:
            advice = " For one sequence write q[None]." if each.ndim == 3 else ""
            raise ValueError(
                f"attention: {name} has shape {each.shape}, expected (m, T, heads, d).{advice}"
            )
    m, T, heads, d = q.shape
    S, kv_heads = k.shape[1:3]
    if k.shape != (m, S, kv_heads, d) or v.shape != k.shape or heads % kv_heads:
        raise ValueError(
            f"attention: q, k and v have shapes {q.shape}, {k.shape} and {v.shape}, expected "
            "(m, T, heads, d) and twice (m, S, kv_heads, d), heads a multiple of kv_heads."
        )
    if 0 in (T, S, heads, d):
        raise ValueError(
            f"attention: q and k have shapes {q.shape} and {k.shape}: no axis but the examples' "
            "may be empty."
        )
    if mask is not None:
        _check_mask("mask", mask, [(a, b, T, S) for a in (m, 1) for b in (heads, 1)])
    if key_mask is not None:
        _check_mask("key_mask", key_mask, [(m, S)])
    for name, size in (("window", window), ("block", block)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise TypeError(f"attention: {name} must be a positive int, got {size!r}.")
    if window is not None and not causal:
        raise ValueError("attention: window counts positions back: it needs causal=True.")


def _check_mask(name: str, mask: Any, fits: list[tuple[int, ...]]) -> None:
    if not hasattr(mask, "dtype") or mask.dtype != bool:
        given = f"{mask.dtype}" if hasattr(mask, "dtype") else type(mask).__name__
        raise TypeError(
            f"attention: {name} must be an array of booleans, true where a key may be read; got "
            f"{given}."
        )
    if tuple(mask.shape) not in fits:
        expected = " or ".join(str(each) for each in dict.fromkeys(fits))
        raise ValueError(f"attention: {name} has shape {tuple(mask.shape)}, expected {expected}.")
