"""MultiheadAttention of equinox without its T x S matrix: in blocks, by a hand-derived backward.

Formulas and derivations: manual_bp/layers/_attention.py and _blocked_attention.py.

A query that may read nothing gives 0, and passes no error on. In equinox its scores are all the
same large negative number, so that it gives the mean of all values.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from manual_bp.interop import functions
from manual_bp.interop.equinox.linear import Linear
from manual_bp.interop.one_example import of_one_example
from manual_bp.interop.settings import served

BLOCK = 64
"""Queries in a block: what is held is about five rows of scores for each of them."""


class MultiheadAttention(eqx.nn.MultiheadAttention):
    """equinox's MultiheadAttention; see `manual_bp.interop.equinox`.

    Not served: dropout unless in inference, vo_size other than qk_size.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> layer, x = by_hand.MultiheadAttention(2, 8, key=jax.random.key(0)), jnp.ones((3, 5, 8))
        >>> jax.vmap(lambda x: layer(x, x, x))(x).shape
        (3, 5, 8)
    """

    def __call__(
        self,
        query: Any,
        key_: Any,
        value: Any,
        mask: Any = None,
        *,
        key: Any = None,
        inference: bool | None = None,
        deterministic: bool | None = None,
        process_heads: Any = None,
    ) -> jax.Array:
        """query (T, query_size), key_ (S, key_size), value (S, value_size) -> (T, output_size)."""
        refuse = served(MultiheadAttention, "equinox.nn.MultiheadAttention")
        refuse.check("deterministic", deterministic, None, advice="It is inference=... now.")
        if not (self.dropout.inference if inference is None else inference):
            refuse.check("dropout_p", self.dropout.p, 0, 0.0)
        refuse.check("vo_size", self.vo_size, self.qk_size)
        heads = tuple(
            _project(part, x).reshape(len(x), self.num_heads, -1)
            for part, x in (
                (self.query_proj, query),
                (self.key_proj, key_),
                (self.value_proj, value),
            )
        )
        if process_heads is not None:
            shapes = [each.shape for each in heads]
            heads = process_heads(*heads)
            if [each.shape for each in heads] != shapes:
                raise ValueError(
                    "MultiheadAttention: process_heads must not change the shapes of the heads, "
                    f"{shapes}, got {[each.shape for each in heads]}."
                )
        q, k, v = (each[None] for each in heads)
        if mask is not None:
            mask = jnp.asarray(mask) != 0
            mask = mask[None, None] if mask.ndim == 2 else mask[None]
        read = functions.attention(q, k, v, mask=mask, block=BLOCK)
        return _project(self.output_proj, read[0].reshape(len(query), -1))


def _project(part: Any, x: jax.Array) -> jax.Array:
    """A projection of each row by hand, unless somebody put in one of their own."""
    if type(part) not in (eqx.nn.Linear, Linear):
        return jax.vmap(part)(x)
    return _of_rows((part.weight, part.bias), x)


_of_rows = of_one_example(lambda weights, X: functions.dense(X, *weights))
