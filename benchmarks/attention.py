"""Causal attention in blocks, beside jax.grad of the T x T matrix.

One head of 64 features between its four projections. By hand the matrix is never there; the forward
pass that jax.grad is taken of is the same layer's with all of it, `block=None`, since jax.grad of
the loop over blocks would keep every block and the sums after each.
"""

from __future__ import annotations

from typing import Any

import jax

import manual_bp as mbp
from benchmarks.row import IDIOMATIC, MEMORY, SAME, TIME, TORCH, Eager, Group, Row, Target, Way
from benchmarks.torch_ways import tensor, torch_way
from benchmarks.ways import by_autodiff, by_hand, half_squares, of_layer

FEATURES = 64
WRITTEN_OUT = "by hand, T x T"
"""The same gradients by hand with the matrix written out: where blocks don't pay, it is this."""


def layer_of(block: int | None) -> mbp.MultiHeadAttention:
    """One causal head."""
    return mbp.MultiHeadAttention(1, causal=True, bias=False, block=block)


def ways(examples: int, length: int, block: int, torch: bool = True) -> dict[str, Way | Eager]:
    """By hand in blocks, jax.grad of T x T, jax.grad of jax.nn's attention, PyTorch's."""
    x = jax.random.normal(jax.random.key(1), (examples, length, FEATURES))

    def in_jax_nn(params: Any, x: Any) -> Any:
        q, k, v = ((x @ W.T)[:, :, None] for W in params[:3])
        read = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return read[:, :, 0] @ params.Wo.T

    def in_torch(torch: Any) -> Any:
        weights = [tensor(torch, W, requires_grad=True) for W in params[:4]]
        data = tensor(torch, x, requires_grad=True)

        def run() -> Any:
            q, k, v = ((data @ W.T)[:, None] for W in weights[:3])
            attend = torch.nn.functional.scaled_dot_product_attention
            out = attend(q, k, v, is_causal=True)[:, 0] @ weights[3].T
            return torch.autograd.grad(0.5 * (out**2).sum(), (*weights, data))

        return run

    found = of_layer(layer_of(block), x)
    plain = layer_of(None)
    params = plain.init(jax.random.key(0), x)
    args = params, x
    found[SAME] = Way(by_autodiff(plain), args)
    found[IDIOMATIC] = Way(half_squares(in_jax_nn), args)
    found[WRITTEN_OUT] = Way(by_hand(plain), args)
    return {**found, **torch_way(in_torch)} if torch else found


def group() -> Group:
    """The rows."""
    shorter = Row(
        "b=4, T=1024, d=64",
        lambda: ways(4, 1024, 256),
        (Target(TIME, 0.6), Target(MEMORY, 0.2), Target(TIME, 1.2, TORCH)),
        note="Backward keeps x, Q, K, V, O and two numbers for each query: 5.03 MiB beside the "
        "weights. PyTorch's one kernel is at 15 ms, this at 20.7; all examples at once take 16 ms "
        "and 28 MiB, one scan over squares of 128 took 36 ms and 10 MiB.",
        against_idiomatic="jax.nn.dot_product_attention",
    )
    longer = Row(
        "b=1, T=8192, d=64",
        lambda: ways(1, 8192, 64, torch=False),
        (Target(MEMORY, 0.03),),
        timed=False,
        against_idiomatic="jax.nn.dot_product_attention",
    )
    return Group("attention", "Causal attention", (shorter, longer))
