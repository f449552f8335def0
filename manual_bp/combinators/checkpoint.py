"""Checkpoint: forget what a body keeps, and compute it again when the error arrives.

    out = body(x)

Backward starts with the forward pass, from the input, which is all that is kept:

    residuals = those of body(x), once more,   (dparams, dx) = backward_body(residuals, dout)

Derivation.  The residuals are a function of params and x, and both are there when the error
arrives. Recomputing costs one more forward pass, and memory falls from what the body keeps to its
input. It pays inside a stack, where a body's residuals live in its own step alone: of n layers in
groups of k, n/k inputs and one group's residuals are held at a time.

A compiler that sees the same computation twice would do it once and keep the result. The barrier
forbids it: input and error pass it together, so that what is recomputed can't start before the
error is there. Inside a scan the two are in different loops and can't be merged anyway; outside
one, XLA for CPU drops the barrier and merges them, as it does for jax.checkpoint.

Shapes  as the body's
Source  Chen, Xu, Zhang & Guestrin (2016), arXiv:1604.06174; Griewank & Walther (2000)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from manual_bp.layer import Combinator, Layer, Tree, Visit, within


class Residuals(NamedTuple):
    """x: the input; taken: what the body takes by name; observed: what it observed."""

    x: jax.Array
    taken: dict[str, Any]
    observed: Tree


@dataclass(frozen=True)
class Checkpoint(Combinator):
    """A body whose residuals are recomputed; write `checkpoint(body)`."""

    body: Layer

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.body,)

    def rebuild(self, children: tuple[Layer, ...]) -> Checkpoint:
        return Checkpoint(*children)

    def init(self, key: jax.Array, x: Any) -> Tree:
        with within(1, self.body):
            return (self.body.init(key, x),)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        self.check(params, taken)
        handed = self.hand(taken, 0)
        with within(1, self.body):
            out, residuals = self.body.forward(params[0], x, **handed)
        return out, Residuals(x, handed, self.body.observe(residuals))

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Residuals, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        x, taken, dout = jax.lax.optimization_barrier((residuals.x, residuals.taken, dout))
        with within(1, self.body):
            _, again = self.body.forward(params[0], x, **taken)
            seen, dx = self.body.walk(visit, dout, params[0], again, *(tree[0] for tree in others))
        return (seen,), dx

    def observe(self, residuals: Residuals) -> Tree:
        return (residuals.observed,)

    def __repr__(self) -> str:
        return f"checkpoint({self.body!r})"


def checkpoint(body: Layer) -> Checkpoint:
    """A body of which only the input is kept; backward computes the rest again.

        (dparams, dx) = backward_body(residuals of body(x), dout)

    Args:
        body: any layer.

    Returns:
        A layer whose params are (body's params,).

    Raises:
        TypeError: when the body isn't a layer.

    Source: Chen, Xu, Zhang & Guestrin (2016), arXiv:1604.06174.

    Example:
        >>> layer = checkpoint(sequential(Dense(400, relu), Dense(3)))
        >>> x = jnp.ones((2, 3))
        >>> out, residuals = layer.forward(layer.init(jax.random.key(0), x), x)
        >>> sum(leaf.size for leaf in jax.tree.leaves(residuals))
        6
    """
    if not isinstance(body, Layer):
        raise TypeError(f"checkpoint: body must be a layer, got {body!r}.")
    return Checkpoint(body)
