"""The R-operator through layers: what each quantity of a pass becomes when params move.

R{·} is the derivative in the direction V of the parameters: R{f} = d/dr f(params + r V) at r = 0.
`manual_bp.signals.curvature_products` has the formulas; here they are, layer by layer.

Each leaf of a network is wrapped in a layer that carries A and R{A} together, one array with a new
first axis of 2. What a combinator does between its leaves is linear: it hands on, adds, splits,
concatenates. So it does the same to A and to R{A}, and its own forward and walk serve as they are.
Only where outputs are multiplied that isn't so, and such a combinator is an error.

Params and the direction travel as one tree too, W and V along a new last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation, Gated
from manual_bp.combinators.checkpoint import Checkpoint
from manual_bp.combinators.parallel import Parallel
from manual_bp.combinators.reversible import Reversible
from manual_bp.combinators.sequential import Sequential
from manual_bp.combinators.skip import Skip
from manual_bp.combinators.stack import Stack
from manual_bp.combinators.tied import Tied
from manual_bp.layer import (
    Combinator,
    Layer,
    Tree,
    outer_over_examples,
    sum_over_examples,
    within,
)
from manual_bp.layers.dense import Dense, Params
from manual_bp.layers.dense import Residuals as OfDense
from manual_bp.layers.flatten import Flatten

LINEAR = (Sequential, Skip, Stack, Parallel, Tied, Checkpoint, Reversible)
"""The combinators that do nothing but hand on, add, split and concatenate; Parallel also multiplies
where it is told to."""


class Residuals(NamedTuple):
    """own: what the layer itself keeps; ra: R{A_prev}, for a dense layer, () where it is 0; bend:
    g''(Z) ⊙ R{Z}, () where g'' is 0.
    """

    own: Tree
    ra: Any
    bend: Any


@dataclass(frozen=True)
class Moving(Layer):
    """A layer that takes [A_prev, R{A_prev}] to [A, R{A}], of shape (2, m, ...) each.

    Args:
        layer: a dense layer, an activation or Flatten.
        at_rest: whether its input depends on no parameters. Then it takes A_prev alone, and gives A
            alone unless it has parameters itself.
    """

    layer: Layer
    at_rest: bool

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        layer, a_prev = self.layer, x if self.at_rest else x[0]
        ra_prev: Any = () if self.at_rest else x[1]
        if isinstance(layer, Dense):
            here, direction = apart(params)
            z, rz = layer.preactivation(here, a_prev), layer.preactivation(direction, a_prev)
            if not self.at_rest:
                rz += ra_prev @ here.W.T
            a, kept = layer.activation.forward((), z)
            ra, bend = _through(layer.activation, z, kept, rz)
            return jnp.stack([a, ra]), Residuals(OfDense(a_prev, kept), ra_prev, bend)
        a, own = layer.forward((), a_prev)
        if self.at_rest:
            return a, Residuals(own, (), ())
        if isinstance(layer, Activation):
            ra, bend = _through(layer, a_prev, own, ra_prev)
        else:
            (ra, _), bend = layer.forward((), ra_prev), ()
        return jnp.stack([a, ra]), Residuals(own, (), bend)

    def __repr__(self) -> str:
        return repr(self.layer)


def moving(network: Layer) -> tuple[Layer, bool]:
    """The network that carries [A, R{A}], and whether x itself enters it, rather than [x, 0].

    Raises:
        TypeError: for a layer that has no R-operator here, naming it.
    """
    at_rest = _begins_dense(network)
    return _moving(network, at_rest), at_rest


def hessian_visit(
    moving: Moving, dout: jax.Array, params: Tree, residuals: Residuals
) -> tuple[Tree, jax.Array]:
    """R{dparams} and [dA_prev, R{dA_prev}] from [dA, R{dA}]."""
    layer, (own, ra_prev, bend) = moving.layer, residuals
    if moving.at_rest and not isinstance(layer, Dense):
        return layer.backward((), own, dout)  # zeros, see below
    da, rda = dout[0], dout[1]
    if isinstance(layer, Flatten):
        return (), jnp.stack([layer.backward((), own, each)[1] for each in (da, rda)])
    activation, kept = (
        (layer.activation, layer.kept(own)) if isinstance(layer, Dense) else (layer, own)
    )
    (_, dz), (_, rdz) = (activation.backward((), kept, each) for each in (da, rda))
    if not isinstance(activation, Gated):
        rdz += da * bend
    if not isinstance(layer, Dense):
        return (), jnp.stack([dz, rdz])
    here, direction = apart(params)
    rdW = outer_over_examples(rdz, own.a_prev, like=here.W)
    rdb = sum_over_examples(rdz).astype(here.b.dtype) if layer.bias else ()
    if moving.at_rest:
        return Params(rdW, rdb), jnp.zeros_like(own.a_prev)  # no params below ask for more
    rdW += outer_over_examples(dz, ra_prev, like=here.W)
    da_prev, rda_prev = dz @ here.W, rdz @ here.W + dz @ direction.W
    return Params(rdW, rdb), jnp.stack([da_prev, rda_prev]).astype(own.a_prev.dtype)


def gauss_newton_visit(
    moving: Moving, dout: jax.Array, params: Tree, residuals: Residuals
) -> tuple[Tree, jax.Array]:
    """The layer's own backward pass."""
    here, _ = apart(params)
    return moving.layer.backward(here, residuals.own, dout)


def together(params: Tree, direction: Tree) -> Tree:
    """Params and a direction as one tree, along a new last axis."""
    return jax.tree.map(
        lambda here, there: jnp.stack([here, there.astype(here.dtype)], -1), params, direction
    )


def apart(params: Tree) -> tuple[Tree, Tree]:
    """What `together` made one."""
    here = jax.tree.map(lambda leaf: leaf[..., 0], params)
    return here, jax.tree.map(lambda leaf: leaf[..., 1], params)


def _through(
    activation: Activation, z: jax.Array, kept: Tree, rz: jax.Array
) -> tuple[jax.Array, Any]:
    """R{A} = g'(Z) ⊙ R{Z}, and g''(Z) ⊙ R{Z}: backward scales by g' too."""
    _, ra = activation.backward((), kept, rz)
    if isinstance(activation, Gated):  # straight in pieces
        return ra, ()
    wide = z.astype(jnp.promote_types(z.dtype, jnp.float32))
    return ra, (activation.curvature(wide) * rz).astype(z.dtype)


def _moving(network: Layer, at_rest: bool) -> Layer:
    if isinstance(network, Combinator):
        if type(network) not in LINEAR:
            raise TypeError(f"{network!r} has no R-operator: {ADVICE}")
        if isinstance(network, Parallel) and network.combine == "product":
            raise TypeError(f"{network!r} multiplies its outputs and has no R-operator: {ADVICE}")
        children = []
        for number, child in enumerate(network.children, start=1):
            with within(number, child):
                children.append(_moving(child, at_rest))
            at_rest = at_rest and not _has_params(child)
        return network.rebuild(tuple(children))
    if type(network) in (Dense, Flatten) or isinstance(network, Activation):
        return Moving(network, at_rest)
    raise TypeError(f"{network!r} has no R-operator: {ADVICE}")


ADVICE = (
    "Hessian- and GGN-vector products are for Dense, activations and Flatten, inside sequential, "
    "skip, stack, parallel with concatenate or sum, tied, checkpoint and reversible."
)


def _begins_dense(network: Layer) -> bool:
    """Whether x goes through sequentials, activations and Flatten alone to a dense layer."""
    if isinstance(network, Sequential | Tied | Checkpoint):
        entered = next(filter(_has_params, network.children), network.children[0])
        return _begins_dense(entered)
    return isinstance(network, Dense)


def _has_params(layer: Layer) -> bool:
    if isinstance(layer, Combinator):
        return any(map(_has_params, layer.children))
    return isinstance(layer, Dense)
