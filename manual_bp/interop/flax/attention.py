"""Attention of flax.nnx without its T x S matrix: in blocks, with a hand-derived backward pass.

`dot_product_attention` takes flax's place as MultiHeadAttention's attention_fn, and our
MultiHeadAttention has hand-derived projections around it. Formulas and derivations:
manual_bp/layers/_attention.py and _blocked_attention.py.

A query that may read nothing gives 0, and passes no error on. In flax its scores are all the same
large negative number, so that it gives the mean of all values.
"""

from __future__ import annotations

import math
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from manual_bp.interop import functions
from manual_bp.interop.flax.linear import LinearGeneral, linear_general
from manual_bp.interop.flax.norms import layer_norm
from manual_bp.interop.settings import Settings, served

BLOCK = 64
"""Queries in a block: what is held is about five rows of scores for each of them."""


def dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    bias: Any = None,
    mask: Any = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    promote_dtype: Any = nnx.nn.dtypes.promote_dtype,  # pyright: ignore[reportAttributeAccessIssue]
    is_causal: bool = False,
    *,
    block: int | None = BLOCK,
) -> jax.Array:
    """softmax(Q Kᵀ / √d) V for each head, as flax.nnx.dot_product_attention takes it.

    Args:
        query: (..., T, heads, d).
        key, value: (..., S, kv_heads, d).
        bias: not served: None.
        mask: true where a query may read a key, broadcast to (..., heads, T, S). For a causal one
            say is_causal=True: then there is no T x S mask either.
        broadcast_dropout, dropout_rng, dropout_rate, deterministic: dropout isn't served, but
            deterministic=True.
        dtype: of the computation; by default the arguments'.
        precision, module: not served: None.
        promote_dtype: what brings the arguments to one dtype.
        is_causal: whether query t reads keys s ≤ t alone.
        block: queries in a block; None for all at once.

    Returns:
        (..., T, heads, d).

    Raises:
        ValueError: for what isn't served, and for shapes that don't fit.

    Source: manual_bp/layers/_blocked_attention.py has formula, derivation and source.

    Example:
        >>> q = k = v = jnp.ones((1, 8, 2, 4))
        >>> dot_product_attention(q, k, v, is_causal=True).shape
        (1, 8, 2, 4)
    """
    del broadcast_dropout, dropout_rng  # dropout's
    refuse = Settings(
        "manual_bp.interop.flax.dot_product_attention",
        "isn't served by the hand-derived backward",
        "Or keep flax.nnx.dot_product_attention here.",
    )
    refuse.check("bias", bias, None)
    refuse.check("precision", precision, None)
    refuse.check("module", module, None, advice="In blocks the weights are never all there.")
    if not deterministic:
        refuse.check("dropout_rate", dropout_rate, 0, 0.0)
    query, key, value = promote_dtype((query, key, value), dtype=dtype)
    *examples, T, _, _ = query.shape
    q, k, v = (each.reshape(math.prod(examples), *each.shape[-3:]) for each in (query, key, value))
    masks = {} if mask is None else _masks(mask, tuple(examples), T, k.shape[1])
    out = functions.attention(q, k, v, causal=is_causal, block=block, **masks)
    return out.reshape(query.shape)


def _masks(mask: Any, examples: tuple[int, ...], T: int, S: int) -> dict[str, Any]:
    """mask (m or 1, heads or 1, T, S), or key_mask (m, S) where it is the same for all queries."""
    mask = jnp.asarray(mask) != 0
    mask = mask.reshape((1,) * (len(examples) + 3 - mask.ndim) + mask.shape)
    *before, heads, rows, _ = mask.shape
    if rows == 1 and heads == 1:
        keys = jnp.broadcast_to(mask, (*examples, 1, 1, S))
        return {"key_mask": keys.reshape(math.prod(examples), S)}
    if math.prod(before) > 1:
        mask = jnp.broadcast_to(mask, (*examples, *mask.shape[-3:]))
    m = math.prod(mask.shape[:-3])
    return {"mask": jnp.broadcast_to(mask.reshape(m, heads, *mask.shape[-2:]), (m, heads, T, S))}


class MultiHeadAttention(nnx.MultiHeadAttention):
    """flax's MultiHeadAttention; see `manual_bp.interop.flax`.

    All of it is by hand, projections too, with attention in blocks where attention_fn is flax's
    default or our `dot_product_attention`. Another attention_fn is called as it is.

    With decode=True it is flax's own call: a decoder that fills its cache has no backward pass.

    Not served: dropout unless deterministic, sow_weights, out_sharding, qkv_sharding, precision.

    Example:
        >>> from flax import nnx
        >>> import manual_bp.interop.flax as by_hand
        >>> layer = by_hand.MultiHeadAttention(2, 8, rngs=nnx.Rngs(0), decode=False)
        >>> layer(jnp.ones((1, 5, 8)), is_causal=True).shape
        (1, 5, 8)
    """

    def __call__(
        self,
        inputs_q: Any,
        inputs_k: Any = None,
        inputs_v: Any = None,
        *,
        mask: Any = None,
        deterministic: bool | None = None,
        rngs: Any = None,
        sow_weights: bool = False,
        decode: bool | None = None,
        is_causal: bool = False,
        out_sharding: Any = None,
        qkv_sharding: Any = None,
    ) -> jax.Array:
        """inputs_q (..., T, in_features), inputs_k and inputs_v (..., S, in_kv_features)."""
        if self.decode if decode is None else decode:
            return super().__call__(
                inputs_q,
                inputs_k,
                inputs_v,
                mask=mask,
                deterministic=deterministic,
                rngs=rngs,
                sow_weights=sow_weights,
                decode=decode,
                is_causal=is_causal,
                out_sharding=out_sharding,
                qkv_sharding=qkv_sharding,
            )
        refuse = served(MultiHeadAttention, "flax.nnx.MultiHeadAttention")
        refuse.check("sow_weights", sow_weights, False)
        refuse.check("out_sharding", out_sharding, None)
        refuse.check("qkv_sharding", qkv_sharding, None)
        deterministic = self.deterministic if deterministic is None else deterministic
        if not deterministic:
            refuse.check("dropout_rate", self.dropout_rate, 0, 0.0)
        if inputs_k is None:
            refuse.check("inputs_v", inputs_v, None, advice="Give inputs_k too.")
            inputs_k = inputs_q
        query, key, value = (
            _project(part, inputs)
            for part, inputs in (
                (self.query, inputs_q),
                (self.key, inputs_k),
                (self.value, inputs_k if inputs_v is None else inputs_v),
            )
        )
        if self.normalize_qk:
            query, key = layer_norm(self.query_ln, query), layer_norm(self.key_ln, key)
        attend = self.attention_fn
        if attend is nnx.dot_product_attention:
            attend = dot_product_attention
        read = attend(
            query,
            key,
            value,
            mask=mask,
            dropout_rng=None,
            dropout_rate=self.dropout_rate,
            broadcast_dropout=self.broadcast_dropout,
            deterministic=True,
            dtype=self.dtype,
            precision=self.precision,
            module=None,
            is_causal=is_causal,
        )
        return _project(self.out, read)


def _project(part: Any, inputs: Any) -> jax.Array:
    """A projection by hand, unless somebody put in one of their own, such as a LoRA."""
    return (
        linear_general(part, inputs)
        if type(part) in (nnx.LinearGeneral, LinearGeneral)
        else part(inputs)
    )
