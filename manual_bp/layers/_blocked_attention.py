"""Attention in blocks: the same function without the T x S matrix, in memory linear in T.

Queries come in blocks of b rows, keys and values in blocks of b' rows, and one block of scores is
there at a time. A block that no query in it may read, above the diagonal of a causal S or outside
of a window, is not computed at all.

Forward.  Softmax needs the sum over all keys before any part of O is right. But with a reference μ
in place of the largest score,

    O_t = Σ_s e^{S_ts - μ} V_s / Σ_s e^{S_ts - μ}

for every μ: numerator and denominator have the same factor. So both are summed block by block with
the largest score so far, and where a block raises it from μ to μ', what was summed is rescaled:

    μ' = max(μ, max_s S_ts)                             s in the block
    numerator   ← e^{μ - μ'} numerator + Σ_s e^{S_ts - μ'} V_s
    denominator ← e^{μ - μ'} denominator + Σ_s e^{S_ts - μ'}

At the end O = numerator/denominator, and μ and r = 1/denominator are kept, two numbers for each
query.

Backward.  With them a block of P needs no other block:

    P_ts = e^{S_ts} / Σ_s' e^{S_ts'} = r_t e^{S_ts - μ_t}

so P is computed again from Q, K, μ and r. In real numbers one would do, L = μ + log denominator,
with P = e^{S - L}. But a sum is rounded to a multiple of its larger term's unit: in float32 and at
scores of 10⁷ that is 1, the logarithm is lost, and P doesn't sum to 1. S - μ has no such error: S
is the same product of the same blocks both times, so it is 0 for the largest score.

One term of dS = P ⊙ (dP - D) reaches across
blocks, D_t = Σ_s dP_ts P_ts over all keys. With dP_ts = Σ_j dO_tj V_sj the sums exchange,

    D_t = Σ_s P_ts Σ_j dO_tj V_sj = Σ_j dO_tj Σ_s P_ts V_sj = Σ_j dO_tj O_tj

and D = rowsum(dO ⊙ O) is known before the first block. Then for each block of queries i and keys j:

    P = r_i e^{S - μ_i},   dS = P ⊙ (dO_i V_jᵀ - D_i) ⊙ (1 - tanh²)
    dV_j += Pᵀ dO_i,   dQ_i += scale · dS K_j,   dK_j += scale · dSᵀ Q_i

P is masked here, where `_attention` needs no mask: it isn't kept, and e^{S - μ} isn't 0 where
nothing may be read.

Where T or S is no multiple of a block, zeros fill the last one: such keys may not be read, and such
queries have dO = 0 and r = 0. The blocks that are needed are listed when the program is traced, and
one scan runs over the list: the program is as long for any T.

Backward keeps Q, K, V, O, μ and r, 4 d + 2 numbers for each position and head, where `_attention`
keeps 3 d + T. It pays for that with one more product of Q and K.

On two CPU cores blocks of 128 to 512 are about as fast, at d = 64, and 3 to 4 times as fast as all
at once at T = 2048: a block of P stays in the cache.

Source  Milakov & Gimelshein (2018), arXiv:1805.02867; Rabe & Staats (2021), arXiv:2112.05682;
        Dao, Fu, Ermon, Rudra & Ré (2022), FlashAttention, arXiv:2205.14135
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import accumulation_dtype
from manual_bp.layers._attention import (
    NEVER,
    How,
    Masks,
    at_least_one,
    in_wide,
    lowest,
    may_read,
    score,
    through_cap,
    to_keys,
    where,
)
from manual_bp.sharding import zeros_like


class Grid(NamedTuple):
    """How S is cut into blocks."""

    queries: int
    """T."""
    keys: int
    """S."""
    rows: int
    """b, the queries in a block."""
    columns: int
    """b', the keys in a block."""

    def needed(self, how: How) -> tuple[np.ndarray, np.ndarray]:
        """The blocks (i, j) in which some query may read some key, row by row."""
        down, across = -(-self.queries // self.rows), -(-self.keys // self.columns)
        pairs = [
            (i, j)
            for i in range(down)
            for j in range(across)
            if self._may_meet(how, i * self.rows, j * self.columns)
        ]
        return tuple(np.array(pairs, np.int32).T)

    def _may_meet(self, how: How, row: int, column: int) -> bool:
        """Whether the settings let a query of the block that begins here read a key of it."""
        last_row, last_column = row + self.rows - 1, column + self.columns - 1
        return not (
            (how.causal and column > last_row)
            or (how.window is not None and last_column <= row - how.window)
        )

    def cut(self, how: How, masks: Masks) -> Masks:
        """The masks, false for keys and queries that fill the last blocks."""
        keys, pairs = masks
        if keys is None and self.keys % self.columns and not how.causal:
            keys = jnp.ones((1, 1, 1, 1, self.keys), bool)  # causal ones don't read what follows
        if keys is not None:
            keys = _filled(keys, -1, self.columns)
        if pairs is not None:
            pairs = _filled(_filled(pairs, -1, self.columns), -2, self.rows)
        return Masks(keys, pairs)

    def readable(self, how: How, masks: Masks, i: jax.Array, j: jax.Array) -> jax.Array | None:
        """Which queries of block (i, j) may read which keys of it; None where all may."""
        row, column = i * self.rows, j * self.columns
        keys, pairs = masks
        if keys is not None:
            keys = _part(keys, column, self.columns, -1)
        if pairs is not None:
            pairs = _part(_part(pairs, column, self.columns, -1), row, self.rows, -2)
        rows, columns = row + jnp.arange(self.rows), column + jnp.arange(self.columns)
        return may_read(how, Masks(keys, pairs), rows, columns)


class Kept(NamedTuple):
    """What backward needs beside Q, K, V and O, of each query: (m, H, G, T, 1)."""

    largest: jax.Array
    """μ, the largest score that it may read."""
    inverse: jax.Array
    """r = 1 / Σ e^{S - μ}."""


def forward(
    how: How, block: int, q: jax.Array, k: jax.Array, v: jax.Array, masks: Masks
) -> tuple[jax.Array, Kept]:
    """(O, μ and r), in at least float32."""
    grid, (q, k, v) = _grid(block, q, k), in_wide(q, k, v)
    queries, keys, values = (
        _blocks(q, grid.rows),
        _blocks(k, grid.columns),
        _blocks(v, grid.columns),
    )
    cut = grid.cut(how, masks)

    def add_block(sums: Any, pair: Any) -> Any:
        numerator, denominator, largest = sums
        i, j = pair
        scores, _ = score(how, _at(queries, i), _at(keys, j))
        readable = grid.readable(how, cut, i, j)
        before = _at(largest, i)
        now = jnp.maximum(before, where(readable, scores, lowest(scores)).max(-1, keepdims=True))
        rescale = _rescale(before, now)
        exponentials = jnp.exp(where(readable, scores - now, NEVER))
        total = rescale * _at(denominator, i) + exponentials.sum(-1, keepdims=True)
        weighted = jnp.einsum("mhgts,mhsd->mhgtd", exponentials, _at(values, j))
        weighted = rescale * _at(numerator, i) + weighted
        return (
            _put(numerator, weighted, i),
            _put(denominator, total, i),
            _put(largest, now, i),
        ), None

    zeros = zeros_like(queries)
    start = (zeros, zeros[..., :1], zeros[..., :1] + lowest(q))
    (numerator, denominator, largest), _ = jax.lax.scan(add_block, start, grid.needed(how))
    denominator = at_least_one(denominator)
    kept = Kept(_joined(largest, q), _joined(1 / denominator, q))
    return _joined(numerator / denominator, q), kept


def backward(
    how: How,
    block: int,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masks: Masks,
    out: jax.Array,
    kept: Kept,
    dout: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dQ, dK, dV), in at least float32.

    Args:
        how, block, q, k, v, masks: as forward had them.
        out, kept: what forward returned.
        dout: the error of out.
    """
    grid, (q, k, v) = _grid(block, q, k), in_wide(q, k, v)  # as forward: S is to be the same
    (dout,) = in_wide(dout)
    through_sum = (dout * out).sum(-1, keepdims=True)
    of_rows = [_blocks(each, grid.rows) for each in (q, dout, through_sum, *kept)]
    of_columns = [_blocks(each, grid.columns) for each in (k, v)]
    cut = grid.cut(how, masks)

    def add_block(sums: Any, pair: Any) -> Any:
        dq, dk, dv = sums
        i, j = pair
        q_i, dout_i, through_sum_i, largest_i, inverse_i = (_at(each, i) for each in of_rows)
        k_j, v_j = (_at(each, j) for each in of_columns)
        scores, tanh = score(how, q_i, k_j)
        readable = grid.readable(how, cut, i, j)
        P = jnp.exp(where(readable, scores - largest_i, NEVER)) * inverse_i
        dP = jnp.einsum("mhgtd,mhsd->mhgts", dout_i, v_j)
        dS = through_cap(tanh, P * (dP - through_sum_i))
        dq_i = _at(dq, i) + jnp.einsum("mhgts,mhsd->mhgtd", dS, k_j)
        dk_j = _at(dk, j) + to_keys(dS, q_i)
        dv_j = _at(dv, j) + to_keys(P, dout_i)
        return (_put(dq, dq_i, i), _put(dk, dk_j, j), _put(dv, dv_j, j)), None

    dtype = accumulation_dtype(q, dout)
    start = tuple(zeros_like(each, dtype) for each in (of_rows[0], *of_columns))
    (dq, dk, dv), _ = jax.lax.scan(add_block, start, grid.needed(how))
    return how.scale * _joined(dq, q), how.scale * _joined(dk, k), _joined(dv, v)


def _rescale(before: jax.Array, now: jax.Array) -> jax.Array:
    """e^{μ - μ'}: what sums with the largest score so far become with a new one."""
    return jnp.exp(before - now)


def _grid(block: int, q: jax.Array, k: jax.Array) -> Grid:
    """Blocks of this size, or of the whole where that is less."""
    T, S = q.shape[-2], k.shape[-2]
    return Grid(T, S, min(block, T), min(block, S))


def _filled(x: jax.Array, axis: int, size: int) -> jax.Array:
    """x with zeros behind it along an axis, so that its length is a multiple of size."""
    behind = -x.shape[axis] % size
    if not behind:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, behind)
    return jnp.pad(x, widths)


def _blocks(x: jax.Array, size: int) -> jax.Array:
    """x (..., T, d) as blocks of rows (n, ..., size, d), the last one filled with zeros."""
    x = _filled(x, -2, size)
    *front, length, d = x.shape
    return jnp.moveaxis(x.reshape(*front, length // size, size, d), -3, 0)


def _joined(blocks: jax.Array, like: jax.Array) -> jax.Array:
    """Blocks of rows as one array (..., T, d) with the T of `like`, without what fills them."""
    n, *front, size, d = blocks.shape
    return jnp.moveaxis(blocks, 0, -3).reshape(*front, n * size, d)[..., : like.shape[-2], :]


def _part(x: jax.Array, start: jax.Array, size: int, axis: int) -> jax.Array:
    """So many places along an axis."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis, allow_negative_indices=False)


def _at(blocks: jax.Array, i: jax.Array) -> jax.Array:
    """Block i."""
    return jax.lax.dynamic_index_in_dim(blocks, i, keepdims=False, allow_negative_indices=False)


def _put(blocks: jax.Array, value: jax.Array, i: jax.Array) -> jax.Array:
    """The blocks with this one as block i."""
    return jax.lax.dynamic_update_index_in_dim(blocks, value, i, 0, allow_negative_indices=False)
