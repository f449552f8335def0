"""What the tests of drop-in modules share: a stock module and ours, judged as one function."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from verify.judges import same


def of_flax(module, call, *xs):
    """(out, new statistics, gradients of params and of floating xs) as a function of arrays."""
    graph, params, others = nnx.split(module, nnx.Param, ...)

    def run(params, statistics, *xs):
        def forward(params, floating):
            state = jax.tree.map(lambda leaf: leaf, (params, statistics))  # Variables of this trace
            merged = nnx.merge(graph, *state)
            out = call(merged, *_joined(xs, floating))
            return out, jax.tree.map(lambda leaf: leaf, nnx.state(merged, nnx.BatchStat))

        out, back, after = jax.vjp(forward, params, _floating(xs), has_aux=True)
        return out, jax.tree.leaves(after), jax.tree.leaves(back(cotangent(out)))

    return run, (params, others, *xs)


def of_equinox(module, call, *xs):
    """(out, gradients of the module's arrays and of floating xs) as a function of arrays."""
    arrays, rest = eqx.partition(module, eqx.is_inexact_array)

    def run(arrays, *xs):
        def forward(arrays, floating):
            return call(eqx.combine(arrays, rest), *_joined(xs, floating))

        out, back = jax.vjp(forward, arrays, _floating(xs))
        return out, jax.tree.leaves(back(cotangent(out)))

    return run, (arrays, *xs)


def cotangent(out):
    """A number of its own for each entry, none of them 0."""
    return jax.tree.map(
        lambda leaf: 1 + jnp.sin(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), out
    )


def drawn(tree, seed=0):
    """A tree with its floating arrays drawn anew: biases of 0 and scales of 1 would hide much."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            return leaf
        return np.asarray(rng.normal(size=leaf.shape), leaf.dtype)

    return jax.tree.map(draw, tree)


def numbers(*shape, seed=1):
    """Standard normal numbers, in float32."""
    return np.asarray(np.random.default_rng(seed).normal(size=shape), np.float32)


def assert_same(ours, theirs, args):
    """Within the bounds of both, in float64."""
    verdict = same(ours, theirs, *args)
    assert verdict.ok, (verdict.first_wrong, verdict.why, verdict.figure)


def _floating(xs):
    return [x for x in xs if jnp.issubdtype(x.dtype, jnp.floating)]


def _joined(xs, floating):
    rest = iter(floating)
    return [next(rest) if jnp.issubdtype(x.dtype, jnp.floating) else x for x in xs]
