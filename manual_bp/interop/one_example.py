"""A function of one example that takes all at once when it is under jax.vmap.

Where a model is written for one example and mapped over a batch, a `jax.custom_vjp` is mapped too:
each example gets a gradient of the weights, as large as the weights, and JAX adds them up after.
For an embedding of V tokens that is a batch of V x F tables. A layer that is handed the batch has
one sum,

    dW = Σ over examples of dz xᵀ

as one matrix product. So where `jax.vmap` is the innermost transformation and maps the examples but
not the weights, the layer is called once with all of them. Inside `jax.grad`, per-example gradients
by vmap(grad(...)) among them, and inside a scan it is called as it is. Both ways have the same
results; this one is faster and takes less memory.

Source  JAX's documentation, jax.custom_batching.custom_vmap
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.extend.core

from manual_bp.layer import Tree


def of_one_example(function: Callable[[Tree, jax.Array], jax.Array]) -> Callable[..., jax.Array]:
    """f(weights, x) -> out of one example, from a function of many.

        f(weights, x) = function(weights, x[None])[0]

    Args:
        function: function(weights, X) -> out, X (m, ...) and out (m, ...), each example by itself.

    Returns:
        f(weights, x), x without the examples' axis.

    Source: JAX's documentation, jax.custom_batching.custom_vmap.

    Example:
        >>> f = of_one_example(lambda W, X: X @ W.T)
        >>> jax.vmap(f, (None, 0))(jnp.ones((2, 3)), jnp.ones((5, 3))).shape
        (5, 2)
    """

    @jax.custom_batching.custom_vmap
    def mapped(weights: Tree, X: jax.Array) -> jax.Array:
        return function(weights, X)

    @mapped.def_vmap
    def all_at_once(
        size: int, in_batched: Any, weights: Tree, X: jax.Array
    ) -> tuple[jax.Array, bool]:
        if any(jax.tree.leaves(in_batched[0])):  # many models
            axes = jax.tree.map(lambda is_mapped: 0 if is_mapped else None, tuple(in_batched))
            return jax.vmap(function, axes)(weights, X), True
        m = X.shape[1]
        out = many(weights, X.reshape(size * m, *X.shape[2:]))
        return out.reshape(size, m, *out.shape[1:]), True

    def many(weights: Tree, X: jax.Array) -> jax.Array:
        return (mapped if _vmap_is_innermost() else function)(weights, X)

    def one(weights: Tree, x: Any) -> jax.Array:
        return many(weights, jax.numpy.asarray(x)[None])[0]

    return one


def _vmap_is_innermost() -> bool:
    with jax.extend.core.take_current_trace() as trace:
        return type(trace).__name__ == "BatchTrace"
