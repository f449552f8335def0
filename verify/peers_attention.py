"""Attention and gated layers of flax, equinox and jax.nn, with our weights, for `verify.peers`."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp

import manual_bp as mbp

ROWS: list[tuple[str, Any, tuple[int, ...], Any]] = []
"""(name, our network, the shape of x, theirs(params, x, **taken)), as `verify.peers.Peer` is."""


def _flax(layer: mbp.MultiHeadAttention, d: int, width: int) -> Any:
    """flax keeps kernels as (F, heads, d), and the last one as (heads, d, F)."""
    heads = layer.heads
    module = nn.MultiHeadDotProductAttention(
        heads, qkv_features=heads * d, out_features=width, use_bias=layer.bias
    )

    def inwards(W: Any, b: Any) -> Any:
        kernel = W.T.reshape(-1, heads, d)
        return {"kernel": kernel, "bias": b.reshape(heads, d)} if layer.bias else {"kernel": kernel}

    def run(
        params: Any, x: Any, memory: Any = None, memory_mask: Any = None, mask: Any = None
    ) -> Any:
        out = {"kernel": params.Wo.T.reshape(heads, d, width)}
        converted = {
            "query": inwards(params.Wq, params.bq),
            "key": inwards(params.Wk, params.bk),
            "value": inwards(params.Wv, params.bv),
            "out": out | ({"bias": params.bo} if layer.bias else {}),
        }
        source = x if memory is None else memory
        allowed = nn.make_causal_mask(x[..., 0], dtype=bool) if layer.causal else None
        if memory_mask is not None:
            allowed = nn.make_attention_mask(jnp.ones(x.shape[:2], bool), memory_mask, dtype=bool)
        return module.apply({"params": converted}, x, source, mask=allowed)

    return run


def _equinox(layer: mbp.MultiHeadAttention, width: int) -> Any:
    """equinox keeps W as we do, and takes one sequence at a time."""

    def linear(W: Any, b: Any) -> Any:
        rows, columns = W.shape
        module = eqx.filter_eval_shape(
            lambda key: eqx.nn.Linear(columns, rows, key=key), jax.random.key(0)
        )
        return eqx.tree_at(lambda m: (m.weight, m.bias), module, (W, b))

    def run(params: Any, x: Any, attention_mask: Any) -> Any:
        module = eqx.filter_eval_shape(
            lambda key: eqx.nn.MultiheadAttention(layer.heads, width, key=key), jax.random.key(0)
        )
        names = ("query_proj", "key_proj", "value_proj", "output_proj")
        module = eqx.tree_at(
            lambda m: [getattr(m, name) for name in names],
            module,
            [linear(*pair) for pair in zip(params[:4], params[4:], strict=True)],
        )
        return jax.vmap(lambda each, mask: module(each, each, each, mask))(x, attention_mask)

    return run


def _jax_nn(layer: mbp.MultiHeadAttention) -> Any:
    """jax.nn.dot_product_attention between einsums: grouped heads, causal, a window."""

    def run(params: Any, x: Any) -> Any:
        m, T, _ = x.shape
        q, k, v = (
            jnp.einsum("mti,oi->mto", x, W).reshape(m, T, heads, -1)
            for W, heads in zip(
                params[:3], (layer.heads, layer.kv_heads, layer.kv_heads), strict=True
            )
        )
        window = None if layer.window is None else (layer.window - 1, 0)
        read = jax.nn.dot_product_attention(
            q, k, v, is_causal=layer.causal, local_window_size=window
        )
        return jnp.einsum("mto,io->mti", read.reshape(m, T, -1), params.Wo)

    return run


def _gated(params: Any, x: jax.Array) -> jax.Array:
    """SwiGLU out of flax's Dense, as Llama in flax has it."""

    def dense(W: Any, z: Any) -> Any:
        return nn.Dense(len(W), use_bias=False).apply({"params": {"kernel": W.T}}, z)

    return dense(params.W_down, nn.silu(dense(params.W_gate, x)) * dense(params.W_up, x))  # pyright: ignore[reportOperatorIssue]


_SELF = mbp.MultiHeadAttention(2, causal=True)
_CROSS = mbp.MultiHeadAttention(2, head_features=4, memory=3, masked=True, bias=False)
_MASKED = mbp.MultiHeadAttention(2, attention_masked=True)
_GROUPED = mbp.MultiHeadAttention(4, kv_heads=2, head_features=4, causal=True, bias=False)
_WINDOW = mbp.MultiHeadAttention(
    2, kv_heads=1, head_features=4, causal=True, window=2, bias=False, block=2
)

ROWS += [
    ("flax MultiHeadDotProductAttention, causal", _SELF, (2, 3, 8), _flax(_SELF, 4, 8)),
    ("flax MultiHeadDotProductAttention, cross", _CROSS, (2, 4, 5), _flax(_CROSS, 4, 5)),
    ("equinox MultiheadAttention, masked", _MASKED, (1, 6, 8), _equinox(_MASKED, 8)),
    ("jax.nn.dot_product_attention, grouped", _GROUPED, (2, 3, 4), _jax_nn(_GROUPED)),
    ("jax.nn.dot_product_attention, window; ours in blocks", _WINDOW, (2, 5, 4), _jax_nn(_WINDOW)),
    ("flax gated MLP", mbp.GatedMLP(6), (2, 3, 4), _gated),
]
