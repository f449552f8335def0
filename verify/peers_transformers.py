"""Whole transformers out of flax and equinox modules, with our weights, for `verify.peers`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp

import manual_bp as mbp

_VOCABULARY, _CONTEXT, _WIDTH, _HEADS, _DEPTH = 5, 3, 4, 2, 2
GPT = mbp.gpt(_VOCABULARY, context=_CONTEXT, width=_WIDTH, heads=_HEADS, depth=_DEPTH)


class _FlaxGPT(nn.Module):
    """GPT-2 as a flax module; `attend` is the embedding as a head."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        embed = nn.Embed(_VOCABULARY, _WIDTH, name="embed")
        places = self.param("places", nn.initializers.zeros, (_CONTEXT, _WIDTH))
        x = embed(tokens) + places[: tokens.shape[1]]
        causal = nn.make_causal_mask(tokens, dtype=bool)
        for l in range(_DEPTH):
            n = nn.LayerNorm(epsilon=1e-5, name=f"norm{l}")(x)
            x = x + nn.MultiHeadDotProductAttention(_HEADS, name=f"attention{l}")(n, mask=causal)
            n = nn.LayerNorm(epsilon=1e-5, name=f"second_norm{l}")(x)
            a = nn.gelu(nn.Dense(4 * _WIDTH, name=f"up{l}")(n))
            x = x + nn.Dense(_WIDTH, name=f"down{l}")(a)
        return embed.attend(nn.LayerNorm(epsilon=1e-5, name="last_norm")(x))


def _steps(blocks: Any) -> list[Any]:
    """(norm, attention, norm, first dense, second dense) of each block."""
    found = []
    for l in range(_DEPTH):
        ((norm, attention),), ((second_norm, up, down),) = jax.tree.map(
            lambda leaf, l=l: leaf[l], blocks
        )
        found.append((norm, attention, second_norm, up, down))
    return found


def _flax(params: Any, tokens: jax.Array) -> Any:
    ((embedding, position, (blocks,), norm, _),) = params

    def dense(p: Any) -> Any:
        return {"kernel": p.W.T, "bias": p.b}

    def normal(p: Any) -> Any:
        return {"scale": p.scale, "bias": p.shift}

    def inwards(W: Any, b: Any) -> Any:
        return {"kernel": W.T.reshape(_WIDTH, _HEADS, -1), "bias": b.reshape(_HEADS, -1)}

    converted = {
        "embed": {"embedding": embedding.W},
        "places": position.P,
        "last_norm": normal(norm),
    }
    for l, (first, attention, second, up, down) in enumerate(_steps(blocks)):
        kernel = attention.Wo.T.reshape(_HEADS, -1, _WIDTH)
        converted |= {
            f"norm{l}": normal(first),
            f"second_norm{l}": normal(second),
            f"up{l}": dense(up),
            f"down{l}": dense(down),
            f"attention{l}": {
                "query": inwards(attention.Wq, attention.bq),
                "key": inwards(attention.Wk, attention.bk),
                "value": inwards(attention.Wv, attention.bv),
                "out": {"kernel": kernel, "bias": attention.bo},
            },
        }
    return _FlaxGPT().apply({"params": converted}, tokens)


def _equinox(params: Any, tokens: jax.Array) -> jax.Array:
    """Equinox modules take one text at a time, and one place."""
    ((embedding, position, (blocks,), norm, _),) = params

    def empty(kind: Any, *settings: Any) -> Any:
        return eqx.filter_eval_shape(lambda key: kind(*settings, key=key), jax.random.key(0))

    def linear(W: Any, b: Any) -> Any:
        module = empty(eqx.nn.Linear, *W.shape[::-1])
        return eqx.tree_at(lambda m: (m.weight, m.bias), module, (W, b))

    def normal(p: Any) -> Any:
        module = eqx.nn.LayerNorm(_WIDTH)
        return eqx.tree_at(lambda m: (m.weight, m.bias), module, (p.scale, p.shift))

    def attends(p: Any) -> Any:
        names = ("query_proj", "key_proj", "value_proj", "output_proj")
        return eqx.tree_at(
            lambda m: [getattr(m, name) for name in names],
            empty(eqx.nn.MultiheadAttention, _HEADS, _WIDTH),
            [linear(*pair) for pair in zip(p[:4], p[4:], strict=True)],
        )

    def one(tokens: jax.Array) -> jax.Array:
        x = jax.vmap(eqx.nn.Embedding(weight=embedding.W))(tokens) + position.P[: len(tokens)]
        causal = jnp.tril(jnp.ones((len(tokens), len(tokens)), bool))
        for first, attention, second, up, down in _steps(blocks):
            n = jax.vmap(normal(first))(x)
            x = x + attends(attention)(n, n, n, causal)
            a = jax.nn.gelu(jax.vmap(linear(*up))(jax.vmap(normal(second))(x)))
            x = x + jax.vmap(linear(*down))(a)
        return jax.vmap(normal(norm))(x) @ embedding.W.T

    return jax.vmap(one)(tokens)


ROWS: list[tuple[str, Any, tuple[int, ...], Any]] = [
    ("flax GPT", GPT, (2, 3), _flax),
    ("equinox GPT", GPT, (2, 3), _equinox),
]
"""(name, our network, the shape of x, theirs(params, x)), as `verify.peers.Peer` is."""
