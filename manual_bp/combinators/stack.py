"""Stack: one layer repeated, each time with parameters of its own.

    A[0] = x,   A[l] = layer(params[l], A[l-1]),   out = A[depth]

Backward is `sequential`'s, read from the last step to the first:

    dA[depth] = dout,   (dparams[l], dA[l-1]) = backward(params[l], dA[l]),   dx = dA[0]

Derivation.  J depends on params[l] and A[l-1] through A[l] alone: the chain rule. Since every step
is the same function, it is traced and compiled once: forward is a `jax.lax.scan` over the stacked
parameters, backward one over parameters and residuals in reverse. The time to compile doesn't
depend on the depth, and neither does the size of the program.

What is kept is what the layer keeps, stacked, and nothing beside it: A[l-1] is there only if the
layer needs it, and weights are scanned anew, not copied. A layer that needs its input and its
output, as relu does for g', has both from one stack of A: a dense layer keeps one array a step.

Shapes  A[l], dA[l]: the same for all l; params, residuals, statistics, states, what a walk sees:
        (depth, ...) of one's
Source  Rumelhart, Hinton & Williams (1986); over stacked layers as flax.linen.scan does it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.combinators._steps import (
    Kept,
    at_step,
    check_depth,
    check_kept,
    check_stacked,
    input_of,
    kept_once,
    over_steps,
    over_uses,
    scannable,
)
from manual_bp.layer import NESTED, Combinator, Layer, Tree, Visit, output_shape, within
from manual_bp.sharding import sharded_like


class Residuals(NamedTuple):
    """kept: what the steps keep, stacked; x: the first one's input, () if none is read off outs."""

    kept: Kept
    x: Any


@dataclass(frozen=True)
class Stack(Combinator):
    """A layer repeated; write `stack(layer, depth)`."""

    layer: Layer
    depth: int

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.layer,)

    def rebuild(self, children: tuple[Layer, ...]) -> Stack:
        (layer,) = children
        return Stack(layer, self.depth)

    def init(self, key: jax.Array, x: Any) -> Tree:
        with within(1, self.layer):
            check_kept("stack", self.layer, x, output_shape(self.layer, self._one(key, x), x))
            keys = jax.vmap(lambda step: jax.random.fold_in(key, step))(jnp.arange(self.depth))
            return (jax.vmap(lambda each: self.layer.init(each, x))(keys),)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
        self.check(params, taken)
        shared, scanned = over_steps(self.hand(taken, 0), self.depth)
        check_stacked(self, self.depth, "params", params[0])
        for name in NESTED:
            check_stacked(self, self.depth, name, scanned.get(name))

        def step(x: jax.Array, each: tuple[Tree, Any]) -> tuple[jax.Array, Kept]:
            params, scanned = each
            out, residuals = self.layer.forward(params, x, **at_step(shared, scanned))
            check_kept("stack", self.layer, x, out)
            out = sharded_like(out, x)
            return out, kept_once(residuals, x, out)

        with within(1, self.layer):
            out, kept = jax.lax.scan(step, x, scannable((params[0], scanned)), length=self.depth)
        return out, Residuals(kept, x if kept.inputs else ())

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Tree, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        kept, x = residuals
        outs = scannable(kept.outs)

        def step(dout: jax.Array, each: tuple[Any, ...]) -> tuple[Any, Tree]:
            number, params, kept, *others = each
            a_prev = input_of(number, x, outs) if kept.inputs else ()
            seen, dx = self.layer.walk(visit, dout, params, kept.opened(a_prev), *others)
            return sharded_like(dx.astype(dout.dtype), dout), seen

        trees = scannable((params[0], kept, *(tree[0] for tree in others)))
        each = (jnp.arange(self.depth), *trees)
        with within(1, self.layer):
            dx, seen = jax.lax.scan(step, dout, each, length=self.depth, reverse=True)
        return (seen,), dx

    def gather_taken(self, dtaken: Tree) -> dict[str, Tree]:
        return over_uses(super().gather_taken(dtaken))

    def observe(self, residuals: Tree) -> Tree:
        kept, x = residuals
        if kept.inputs:  # of each step
            x = jnp.concatenate([x[None], kept.outs[:-1]])
        return (jax.vmap(self.layer.observe, axis_size=self.depth)(kept.opened(x)),)

    def _one(self, key: jax.Array, x: Any) -> Tree:
        """What the params of one step look like; nothing is computed."""
        return jax.eval_shape(lambda key: self.layer.init(key, x), key)

    def __repr__(self) -> str:
        return f"stack({self.layer!r}, {self.depth})"


def stack(layer: Layer, depth: int) -> Stack:
    """The same layer, depth times, each with its own parameters; compiled once.

        A[l] = layer(params[l], A[l-1]),   (dparams[l], dA[l-1]) = backward(params[l], dA[l])

    Args:
        layer: a layer that keeps the shape and dtype of its input.
        depth: how many times.

    Returns:
        A layer whose params are (the layer's params,), stacked along a new first axis. Each step
        gets a key of its own; a mask is the same for all; statistics are stacked like params.

    Raises:
        TypeError: when the layer isn't one, or depth isn't a positive int; at init and forward,
            when the layer changes the dtype.
        ValueError: at init and forward, when the layer changes the shape.

    Source: Rumelhart, Hinton & Williams (1986).

    Example:
        >>> network = stack(skip(Dense(3, relu)), 64)
        >>> x = jnp.ones((2, 3))
        >>> params = network.init(jax.random.key(0), x)
        >>> params[0][0].W.shape, network.forward(params, x)[0].shape
        ((64, 3, 3), (2, 3))
    """
    if not isinstance(layer, Layer):
        raise TypeError(f"stack: layer must be a layer, got {layer!r}.")
    check_depth("stack", depth)
    return Stack(layer, depth)
