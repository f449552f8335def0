"""Attention as one derives it: every query against every key, the T x S matrix written out.

Forward, for each head, with queries Q, keys K and values V as rows:

    S = scale · Q Kᵀ                    with a soft cap c:  S = c tanh(scale · Q Kᵀ / c)
    P_ts = e^{S_ts} / Σ_s' e^{S_ts'}    over the keys that query t may read; 0 elsewhere
    O = P V

Backward, given dO:

    dV = Pᵀ dO
    dP = dO Vᵀ
    dS = P ⊙ (dP - D),   D_t = Σ_s dP_ts P_ts
    dS = dS ⊙ (1 - tanh²)                with a soft cap
    dQ = scale · dS K
    dK = scale · dSᵀ Q

Derivation.  O_tj = Σ_s P_ts V_sj is a matrix product, hence dV and dP as in a dense layer. Row t of
P is the softmax of row t of S, with the Jacobian ∂P_ts/∂S_tr = P_ts (δ_sr - P_tr):

    dS_tr = Σ_s dP_ts P_ts (δ_sr - P_tr) = P_tr (dP_tr - Σ_s dP_ts P_ts)

The cap acts on each score alone, and c tanh(x/c) has derivative 1 - tanh²(x/c). The scores are a
matrix product again. To check by eye: Σ_s dS_ts = 0 without a cap, since P ignores what is added to
all scores of a query.

What may not be read has P = 0, so dS = 0 there, and no mask is needed backward. A query that may
read nothing has P = 0, O = 0 and dS = 0; softmax alone would be 0/0 there, and its derivative NaN.

Grouped heads.  G heads of queries share one head of keys and values, as though they were G · T
queries of one head: dK and dV are sums over the group as they are over t. There are H such groups;
with H = 1 it is multi-query attention.

The largest score is subtracted before e^S, so that no exponential exceeds 1; its own is exactly 1,
so that Σ e^S ≥ 1 wherever something is read. In half precision all of this is in float32.

Shapes  Q, O, dO, dQ: (m, H, G, T, d); K, V, dK, dV: (m, H, S, d); S, P: (m, H, G, T, S)
Source  Vaswani et al. (2017), Attention is all you need, arXiv:1706.03762; the soft cap:
        Gemma Team (2024), Gemma 2, arXiv:2408.00118; shared keys: Shazeer (2019), arXiv:1911.02150;
        Ainslie et al. (2023), arXiv:2305.13245
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import accumulation_dtype

NEVER = -math.inf
"""The exponent of what may not be read. It is masked before e^S: after it, a score far above the
readable ones would be ∞ first, and the derivative of this program 0 · ∞, for who takes a second
one."""


class How(NamedTuple):
    """The settings of attention: what scores are, and who may read whom whatever the masks say."""

    scale: float
    soft_cap: float | None = None
    causal: bool = False
    """Query t reads keys s ≤ t alone."""
    window: int | None = None
    """Query t reads keys s > t - window alone."""


class Masks(NamedTuple):
    """Booleans, which keys may be read: None where all may.

    keys: (m, 1, 1, 1, S), by any query; pairs: (m or 1, H or 1, G or 1, T, S), by each.
    """

    keys: jax.Array | None = None
    pairs: jax.Array | None = None


class Kept(NamedTuple):
    """What backward needs beside Q, K and V: P, and tanh, None without a soft cap."""

    P: jax.Array
    tanh: jax.Array | None


def forward(
    how: How, q: jax.Array, k: jax.Array, v: jax.Array, masks: Masks
) -> tuple[jax.Array, Kept]:
    """O = softmax(S) V, in at least float32."""
    q, k, v = in_wide(q, k, v)
    scores, tanh = score(how, q, k)
    readable = may_read(how, masks, jnp.arange(q.shape[-2]), jnp.arange(k.shape[-2]))
    largest = where(readable, scores, lowest(scores)).max(-1, keepdims=True)
    exponentials = jnp.exp(where(readable, scores - largest, NEVER))
    P = exponentials / at_least_one(exponentials.sum(-1, keepdims=True))
    return jnp.einsum("mhgts,mhsd->mhgtd", P, v), Kept(P, tanh)


def backward(
    how: How, q: jax.Array, k: jax.Array, v: jax.Array, kept: Kept, dout: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dQ, dK, dV), in at least float32."""
    q, k, v, dout = in_wide(q, k, v, dout)
    P, tanh = kept
    dv = jnp.swapaxes(to_keys(P, dout), -1, -2)
    dP = jnp.einsum("mhgtd,mhsd->mhgts", dout, v)
    through_sum = (dP * P).sum(-1, keepdims=True)
    dS = through_cap(tanh, P * (dP - through_sum))
    dq = how.scale * jnp.einsum("mhgts,mhsd->mhgtd", dS, k)
    dk = how.scale * jnp.swapaxes(to_keys(dS, q), -1, -2)
    return dq, dk, dv


# --- what attention in blocks shares ---------------------------------------------------------


def in_wide(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays in the one dtype that attention is computed in: the widest, at least float32."""
    dtype = accumulation_dtype(*arrays)
    return tuple(each.astype(dtype) for each in arrays)


def score(how: How, q: jax.Array, k: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """S, and the tanh in it, None without a soft cap."""
    products = jnp.einsum("mhgtd,mhsd->mhgts", how.scale * q, k)
    if how.soft_cap is None:
        return products, None
    tanh = jnp.tanh(products / how.soft_cap)
    return how.soft_cap * tanh, tanh


def to_keys(weights: jax.Array, rows: jax.Array) -> jax.Array:
    """dOᵀ P, Qᵀ dS: sums over all queries of a group, as though they were of one head.

    These are dVᵀ and dKᵀ. With P as the right factor, as it is, only dO is transposed, which is
    small, by a copy that XLA isn't to take back. Written as Pᵀ dO, the sum over the rows of both,
    XLA on CPU takes a slower product: 105 GF/s instead of 190 for 1024 x 1024, d = 64.

    Args:
        weights: (m, H, G, T, S).
        rows: (m, H, G, T, d).

    Returns:
        (m, H, d, S).
    """
    m, H, G, T, S = weights.shape
    weights, rows = weights.reshape(m, H, G * T, S), rows.reshape(m, H, G * T, rows.shape[-1])
    columns = jax.lax.optimization_barrier(jnp.swapaxes(rows, -1, -2))
    return jnp.einsum("mhdt,mhts->mhds", columns, weights)


def through_cap(tanh: jax.Array | None, dS: jax.Array) -> jax.Array:
    """The error of scale · Q Kᵀ from that of S."""
    return dS if tanh is None else dS * (1 - tanh) * (1 + tanh)


def may_read(how: How, masks: Masks, rows: jax.Array, columns: jax.Array) -> jax.Array | None:
    """Which of these queries may read which of these keys; None where all may.

    Args:
        how: the settings.
        masks: those of these queries and keys.
        rows: the queries' places in the sequence.
        columns: the keys'.
    """
    rows = rows[:, None]
    parts = [each for each in masks if each is not None]
    if how.causal:
        parts.append(columns <= rows)
    if how.window is not None:
        parts.append(columns > rows - how.window)
    return functools.reduce(jnp.logical_and, parts) if parts else None


def where(readable: jax.Array | None, values: jax.Array, otherwise: float) -> jax.Array:
    """The values where they may be read, and this number elsewhere."""
    return values if readable is None else jnp.where(readable, values, otherwise)


def lowest(like: jax.Array) -> float:
    """What stands for the score of what may not be read: it is never the largest of others.

    Not -∞: two of them have no difference.
    """
    return float(jnp.finfo(like.dtype).min)


def at_least_one(total: jax.Array) -> jax.Array:
    """Σ e^S as it is, since the largest score's own is 1; but 1 where nothing may be read."""
    return jnp.maximum(total, 1)
