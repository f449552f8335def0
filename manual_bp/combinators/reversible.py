"""Reversible: residual layers whose inputs are had back from their outputs.

The last axis of x is split in two halves, x₁ and x₂. Each of depth steps:

    y₁ = x₁ + f(x₂)
    y₂ = x₂ + g(y₁)

Backward, given y₁, y₂ and dy₁, dy₂: first the inputs, then the errors,

    x₂ = y₂ - g(y₁)
    dy₁' = dy₁ + dg,    (dparams_g, dg) = backward_g(dy₂)       at y₁
    x₁ = y₁ - f(x₂)
    dx₁ = dy₁'
    dx₂ = dy₂ + df,     (dparams_f, df) = backward_f(dy₁')      at x₂

Derivation.  y₁ reaches J on its own and through g in y₂, so its whole error is dy₁' = dy₁ + dg.
x₁ reaches J through y₁ alone, with factor I: dx₁ = dy₁'. x₂ does so through y₂, with factor I, and
through f in y₁: dx₂ = dy₂ + df. Nothing but the last step's output is kept: whatever f and g must
be, the step is undone by subtracting what it added. The memory that activations take doesn't
depend on the depth; the price is a further forward pass.

What rounding does.  (x₂ + g) - g is x₂ only up to a rounding of y₂, so the inputs had back are not
exactly those of the forward pass: one step is off by about u·(|y₁| + |y₂|), with u the unit
roundoff, and every step below carries it on, times the derivative of the inverse. The gradient is
the exact one at these nearby points. With float32 that is harmless unless y grows far above x; in
bfloat16 (u = 2⁻⁹) tens of steps may lose it all: keep x in float32 there. A kink, as of relu, may
be found on its other side where an input lies within that distance of it.

Shapes  x, out, dout, dx: (..., 2h); f, g: (..., h) -> (..., h); params stacked: (depth, ...)
Source  Gomez, Ren, Urtasun & Grosse (2017), The reversible residual network, arXiv:1707.04585
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.combinators._steps import (
    at_step,
    check_depth,
    check_kept,
    check_stacked,
    over_steps,
    over_uses,
    scannable,
)
from manual_bp.layer import NESTED, Combinator, Layer, Tree, Visit, output_shape, within
from manual_bp.sharding import sharded_like, undivided


class Residuals(NamedTuple):
    """out: (..., 2h), the output; taken: what was given by name; observed: what f and g did."""

    out: jax.Array
    taken: dict[str, Any]
    observed: tuple[Tree, Tree]


@dataclass(frozen=True)
class Reversible(Combinator):
    """Steps y₁ = x₁ + f(x₂), y₂ = x₂ + g(y₁); write `reversible(f, g, depth)`."""

    f: Layer
    g: Layer
    depth: int

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.f, self.g)

    def rebuild(self, children: tuple[Layer, ...]) -> Reversible:
        f, g = children
        return Reversible(f, g, self.depth)

    def init(self, key: jax.Array, x: Any) -> Tree:
        self._check_input(x)
        half = jax.ShapeDtypeStruct((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
        params = []
        for index, layer in enumerate(self.children):
            with within(index + 1, layer):
                own = jax.random.fold_in(key, index)
                one = jax.eval_shape(lambda key, layer=layer: layer.init(key, half), own)
                check_kept("reversible", layer, half, output_shape(layer, one, half))
                keys = jax.vmap(lambda step, own=own: jax.random.fold_in(own, step))(
                    jnp.arange(self.depth)
                )
                params.append(jax.vmap(lambda each, layer=layer: layer.init(each, half))(keys))
        return tuple(params)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        self.check(params, taken)
        self._check_input(x)
        check_stacked(self, self.depth, "params", params)
        shared, scanned = self._over_steps(taken)

        def step(halves: Any, each: tuple[Tree, Any]) -> tuple[Any, Tree]:
            (x1, x2), (params, scanned) = halves, each
            f, kept_f = self._add(0, params, x2, shared, scanned)
            y1 = x1 + sharded_like(f, x1)
            g, kept_g = self._add(1, params, y1, shared, scanned)
            y2 = x2 + sharded_like(g, x2)
            return (y1, y2), (self.f.observe(kept_f), self.g.observe(kept_g))

        halves, observed = jax.lax.scan(
            step, _halves(x), scannable((params, scanned)), length=self.depth
        )
        out = jnp.concatenate(halves, -1)
        return out, Residuals(out, taken, observed)

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Residuals, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        shared, scanned = self._over_steps(residuals.taken)

        def step(carry: Any, each: tuple[Any, Any]) -> tuple[Any, Tree]:
            ((y1, y2), (dy1, dy2)), (trees, scanned) = carry, each
            g, kept = self._add(1, trees[0], y1, shared, scanned)
            x2 = y2 - sharded_like(g, y2)
            seen_g, dg = self._walk(1, visit, dy2, kept, trees)
            dy1 = dy1 + sharded_like(dg.astype(dy1.dtype), dy1)
            f, kept = self._add(0, trees[0], x2, shared, scanned)
            x1 = y1 - sharded_like(f, y1)
            seen_f, df = self._walk(0, visit, dy1, kept, trees)
            return ((x1, x2), (dy1, dy2 + sharded_like(df.astype(dy2.dtype), dy2))), (
                seen_f,
                seen_g,
            )

        start = (_halves(residuals.out), _halves(dout))
        each = scannable(((params, *others), scanned))
        (_, errors), seen = jax.lax.scan(step, start, each, length=self.depth, reverse=True)
        return seen, jnp.concatenate(errors, -1)

    def gather_taken(self, dtaken: Tree) -> dict[str, Tree]:
        return over_uses(super().gather_taken(dtaken))

    def observe(self, residuals: Residuals) -> Tree:
        return residuals.observed

    def _over_steps(self, taken: dict[str, Any]) -> tuple[Any, Any]:
        both = [over_steps(self.hand(taken, index), self.depth) for index in (0, 1)]
        shared, scanned = zip(*both, strict=True)
        for each in scanned:
            for name in NESTED:
                check_stacked(self, self.depth, name, each.get(name))
        return shared, scanned

    def _add(
        self, index: int, params: Tree, x: jax.Array, shared: Any, scanned: Any
    ) -> tuple[jax.Array, Tree]:
        """What f (0) or g (1) adds at one step, and its residuals."""
        layer = self.children[index]
        with within(index + 1, layer):
            given = at_step(shared[index], scanned[index])
            added, kept = layer.forward(params[index], x, **given)
            check_kept("reversible", layer, x, added)
        return added, kept

    def _walk(
        self, index: int, visit: Visit, dout: jax.Array, kept: Tree, trees: tuple[Tree, ...]
    ) -> tuple[Tree, jax.Array]:
        layer = self.children[index]
        params, *others = (tree[index] for tree in trees)
        with within(index + 1, layer):
            return layer.walk(visit, dout, params, kept, *others)

    def _check_input(self, x: Any) -> None:
        if len(x.shape) < 1 or x.shape[-1] % 2:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected an even last axis: it is split "
                "in two halves."
            )

    def __repr__(self) -> str:
        return f"reversible({self.f!r}, {self.g!r}, {self.depth})"


def _halves(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    half = x.shape[-1] // 2
    x = undivided(x, -1)
    return x[..., :half], x[..., half:]


def reversible(f: Layer, g: Layer, depth: int) -> Reversible:
    """Residual steps that are undone on the way back, so that no activation is kept.

        y₁ = x₁ + f(x₂),   y₂ = x₂ + g(y₁);   backward   x₂ = y₂ - g(y₁),   x₁ = y₁ - f(x₂)

    The inputs had back are the forward pass's up to rounding: see the module's docstring.

    Args:
        f, g: layers that keep shape and dtype of half the features.
        depth: how many steps, each with parameters of its own.

    Returns:
        A layer whose params are (f's, g's), each stacked along a new first axis.

    Raises:
        TypeError: when f or g isn't a layer, or depth isn't a positive int; at init and forward,
            when one changes the dtype.
        ValueError: at init and forward, when one changes the shape, or the last axis is odd.

    Source: Gomez, Ren, Urtasun & Grosse (2017), arXiv:1707.04585.

    Example:
        >>> network = reversible(Dense(3, tanh), Dense(3, tanh), 64)
        >>> x = jnp.ones((2, 6))
        >>> out, residuals = network.forward(network.init(jax.random.key(0), x), x)
        >>> [leaf.shape for leaf in jax.tree.leaves(residuals)]
        [(2, 6)]
    """
    for name, layer in (("f", f), ("g", g)):
        if not isinstance(layer, Layer):
            raise TypeError(f"reversible: {name} must be a layer, got {layer!r}.")
    check_depth("reversible", depth)
    return Reversible(f, g, depth)
