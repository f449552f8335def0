"""Attention in blocks: the same function without the T x S matrix, in memory linear in T.

Queries come in blocks of b rows, each against all keys that it may read: a strip of S and of P. A
row of S is whole in its strip, so softmax is what it was, and a strip needs no other one.

Forward.  O = P V for each strip. Kept are two numbers for each query, the largest score μ and
r = 1/Σ e^{S - μ}.

Backward.  With them a strip of P is computed again from Q and K, without its sums:

    P_ts = e^{S_ts} / Σ_s' e^{S_ts'} = r_t e^{S_ts - μ_t} = r_t E_ts

In real numbers one number would do, L = μ - log r, with P = e^{S - L}. But a sum is rounded to a
multiple of its larger term's unit: in float32 and at scores of 10⁷ that is 1, the logarithm is
lost, and P doesn't sum to 1. S - μ has no such error: S is the same product of the same strips both
times, so it is 0 for the largest score.

D_t = Σ_s dP_ts P_ts needs no P either. With dP_ts = Σ_j dO_tj V_sj the sums exchange,

    D_t = Σ_s P_ts Σ_j dO_tj V_sj = Σ_j dO_tj Σ_s P_ts V_sj = Σ_j dO_tj O_tj

and r is a factor of each row of P alone, so it may stand with dO and D, which are small, instead of
with E. With dO' = r dO and D' = r D, for each strip:

    E = e^{S - μ},   dS = E ⊙ (dO' Vᵀ - D') ⊙ (1 - tanh²)
    dV += Eᵀ dO',   dQ = scale · dS K,   dK += scale · dSᵀ Q

E is masked, where `_attention` needs no mask: it isn't kept, and e^{S - μ} isn't 0 where nothing
may be read.

Which strips.  A causal query needs no keys behind it, and with a window none that are too far back.
But a loop's turns have one shape. So the blocks are dealt to four parts of the sequence, one after
the other, and each turn takes one block of each part: with a strip as wide as the longest of its
part, S is computed for 5/8 of T x T, instead of half of it. One scan runs over the turns: the
program is as long for any T. Where T isn't a multiple of the blocks, zeros fill the last ones: such
queries have dO' = 0.

Why parts and turns, on two CPU cores.  XLA runs what doesn't depend on each other side by side, and
four strips do so for what one leaves idle; and products of matrices are fast when they are large
(100 GF/s of 64 rows by 1024, 175 of 128, 220 of 256). For the same reason a CPU takes one example
after the other: strips of it alone can be higher in the same memory, a tenth of what all take. A
GPU wants all examples at once. For 4 examples with T = 1024, d = 64 this takes 20 ms where one scan
over squares of 128 x 128, with sums that are rescaled when a larger score is found, took 37.

Backward keeps Q, K, V, O, μ and r, 4 d + 2 numbers for each position and head, where `_attention`
keeps 3 d + T, and holds a few strips, about 5 b T numbers. It pays for that with one more product
of Q and K.

Source  Rabe & Staats (2021), arXiv:2112.05682; Dao, Fu, Ermon, Rudra & Ré (2022), FlashAttention,
        arXiv:2205.14135, which also cuts keys, and rescales sums (Milakov & Gimelshein (2018),
        arXiv:1805.02867): there a strip doesn't fit into the fastest memory
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
from manual_bp.sharding import axes_of, zeros_like

PARTS = 4
"""Of the sequence, at most: more leave less of S above the diagonal, and make a longer program."""


class Grid(NamedTuple):
    """How S is cut into strips: `parts` of the sequence, each of `turns` blocks of `rows`."""

    queries: int
    """T."""
    keys: int
    """S."""
    rows: int
    """b, the queries in a block."""
    turns: int
    parts: int

    def first(self, part: int, turn: Any) -> Any:
        """The first query of a block."""
        return (part * self.turns + turn) * self.rows

    def columns(self, how: How, part: int, turn: Any) -> tuple[Any, int]:
        """The first key of a block's strip, and how many: enough for all blocks of its part."""
        if not how.causal:
            return 0, self.keys
        width = min((part + 1) * self.turns * self.rows, self.keys)
        if how.window is None or self.rows + how.window - 1 >= width:
            return 0, width
        width = self.rows + how.window - 1
        return jnp.clip(self.first(part, turn) + self.rows - width, 0, self.keys - width), width


class Strip(NamedTuple):
    """One block of queries beside the keys that it may read."""

    scores: jax.Array
    """(m, H, G, b, columns)."""
    tanh: jax.Array | None
    readable: jax.Array | None
    k: jax.Array
    v: jax.Array
    start: Any
    """The place of its first key."""

    def exponentials(self, largest: jax.Array) -> jax.Array:
        """E = e^{S - μ}, 0 where nothing may be read."""
        return jnp.exp(where(self.readable, self.scores - largest, NEVER))


class Kept(NamedTuple):
    """What backward needs beside Q, K, V and O, of each query: (m, H, G, T, 1)."""

    largest: jax.Array
    """μ, the largest score that may be read."""
    inverse: jax.Array
    """r = 1/Σ e^{S - μ}; 1 where nothing may be read."""


def forward(
    how: How, block: int, q: jax.Array, k: jax.Array, v: jax.Array, masks: Masks
) -> tuple[jax.Array, Kept]:
    """(O, μ and r), in at least float32."""
    return _by_examples(functools.partial(_forward, how, block), (*in_wide(q, k, v), masks))


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
    q, k, v = in_wide(q, k, v)  # as forward: S is to be the same
    given = (q, k, v, masks, out, kept, *in_wide(dout))
    return _by_examples(functools.partial(_backward, how, block), given)


def _forward(how: How, block: int, given: Any) -> tuple[jax.Array, Kept]:
    """O, μ and r of these examples."""
    q, k, v, masks = given
    grid = grid_of(block, q, k)

    def turn(_: None, each: Any) -> tuple[None, Any]:
        number, queries = each
        found = []
        for part in range(grid.parts):
            strip = _strip(how, grid, part, number, queries[part], k, v, masks)
            readable, scores = strip.readable, strip.scores
            largest = where(readable, scores, lowest(scores)).max(-1, keepdims=True)
            exponentials = strip.exponentials(largest)
            inverse = 1 / at_least_one(exponentials.sum(-1, keepdims=True))
            read = inverse * jnp.einsum("mhgts,mhsd->mhgtd", exponentials, strip.v)
            found.append((read, largest, inverse))
        return None, [jnp.stack(each) for each in zip(*found, strict=True)]

    _, found = jax.lax.scan(turn, None, (jnp.arange(grid.turns), _blocks(grid, q)))
    out, largest, inverse = (_joined(grid, each) for each in found)
    return out, Kept(largest, inverse)


def _backward(how: How, block: int, given: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(dQ, dK, dV) of these examples."""
    q, k, v, masks, out, kept, dout = given
    grid = grid_of(block, q, k)
    through_sum = kept.inverse * (dout * out).sum(-1, keepdims=True)
    of_rows = kept.largest, kept.inverse * dout, through_sum

    def turn(sums: Any, each: Any) -> tuple[Any, jax.Array]:
        (dk, dv), of_parts = sums, []
        number, *blocks = each
        for part, (q_i, largest, dout, through_sum) in enumerate(zip(*blocks, strict=True)):
            strip = _strip(how, grid, part, number, q_i, k, v, masks)
            exponentials = strip.exponentials(largest)
            dP = jnp.einsum("mhgtd,mhsd->mhgts", dout, strip.v)
            dS = through_cap(strip.tanh, exponentials * (dP - through_sum))
            of_parts.append(how.scale * jnp.einsum("mhgts,mhsd->mhgtd", dS, strip.k))
            dk = _added(dk, to_keys(dS, q_i), strip.start)
            dv = _added(dv, to_keys(exponentials, dout), strip.start)
        return (dk, dv), jnp.stack(of_parts)

    dtype = accumulation_dtype(q, dout)
    start = tuple(jnp.swapaxes(zeros_like(each, dtype), -1, -2) for each in (k, v))
    turns = (jnp.arange(grid.turns), *(_blocks(grid, each) for each in (q, *of_rows)))
    (dk, dv), dq = jax.lax.scan(turn, start, turns)
    dk, dv = jnp.swapaxes(dk, -1, -2), jnp.swapaxes(dv, -1, -2)
    return _joined(grid, dq), how.scale * dk, dv


def _strip(
    how: How,
    grid: Grid,
    part: int,
    turn: jax.Array,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masks: Masks,
) -> Strip:
    """The block of a part whose turn it is, beside its keys."""
    first, (start, width) = grid.first(part, turn), grid.columns(how, part, turn)
    k, v = (_part(each, start, width, -2) for each in (k, v))
    keys, pairs = masks
    if keys is not None:
        keys = _part(keys, start, width, -1)
    if pairs is not None:
        whole = _filled(pairs, -2, grid.parts * grid.turns * grid.rows)
        pairs = _part(_part(whole, start, width, -1), first, grid.rows, -2)
    rows, columns = first + jnp.arange(grid.rows), start + jnp.arange(width)
    readable = may_read(how, Masks(keys, pairs), rows, columns)
    return Strip(*score(how, q, k), readable, k, v, start)


def _by_examples(function: Callable[[Any], Any], given: Any) -> Any:
    """function(given): of one example after the other on a CPU, of all at once elsewhere.

    Args:
        function: of a tree of arrays, with one or all examples first, to such a tree.
        given: that tree; the first leaf says how many examples there are, and what has one for all
            of them is given whole.
    """
    leaves, structure = jax.tree.flatten(given)
    examples = len(leaves[0])
    if examples < 2 or axes_of(leaves[0])[0] is not None:  # divided: each device has a few
        return function(given)
    own = [len(leaf) == examples for leaf in leaves]

    def one_by_one(*leaves: jax.Array) -> Any:
        def turn(_: None, mine: Sequence[jax.Array]) -> tuple[None, Any]:
            rest = iter(mine)
            each = [
                next(rest)[None] if is_own else leaf
                for leaf, is_own in zip(leaves, own, strict=True)
            ]
            return None, function(jax.tree.unflatten(structure, each))

        scanned = [leaf for leaf, is_own in zip(leaves, own, strict=True) if is_own]
        _, found = jax.lax.scan(turn, None, scanned)
        return jax.tree.map(lambda each: each[:, 0], found)

    def at_once(*leaves: jax.Array) -> Any:
        return function(jax.tree.unflatten(structure, leaves))

    return jax.lax.platform_dependent(*leaves, cpu=one_by_one, default=at_once)


def grid_of(block: int, q: jax.Array, k: jax.Array) -> Grid:
    """Blocks of this size, or of the whole where that is less."""
    T, S = q.shape[-2], k.shape[-2]
    rows = min(block, T)
    blocks = -(-T // rows)
    turns = -(-blocks // PARTS)
    return Grid(T, S, rows, turns, -(-blocks // turns))


def _filled(x: jax.Array, axis: int, size: int) -> jax.Array:
    """x with zeros behind it along an axis, up to this size."""
    behind = size - x.shape[axis]
    if not behind:
        return x
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, behind)
    return jnp.pad(x, widths)


def _blocks(grid: Grid, x: jax.Array) -> jax.Array:
    """x (..., T, d) as blocks (turns, parts, ..., rows, d), with zeros in the last ones."""
    *front, _, d = x.shape
    x = _filled(x, -2, grid.parts * grid.turns * grid.rows)
    x = x.reshape(*front, grid.parts, grid.turns, grid.rows, d)
    return jnp.moveaxis(x, (-3, -4), (0, 1))


def _joined(grid: Grid, blocks: jax.Array) -> jax.Array:
    """Blocks (turns, parts, ..., rows, d) as one array (..., T, d), without what fills it."""
    *_, rows, d = blocks.shape
    x = jnp.moveaxis(blocks, (0, 1), (-3, -4))
    *front, _, _, _, _ = x.shape
    x = x.reshape(*front, grid.parts * grid.turns * rows, d)
    return x[..., : grid.queries, :]


def _part(x: jax.Array, start: Any, size: int, axis: int) -> jax.Array:
    """So many places along an axis."""
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis, allow_negative_indices=False)


def _added(total: jax.Array, part: jax.Array, start: Any) -> jax.Array:
    """The total with this part added along its last axis, from a place on."""
    part = _part(total, start, part.shape[-1], -1) + part
    return jax.lax.dynamic_update_slice_in_dim(total, part, start, -1, allow_negative_indices=False)
