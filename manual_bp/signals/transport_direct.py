"""Direct feedback alignment: the first error, carried straight to every layer.

With e = ∂J/∂prediction (m, C) and a layer's input A_prev (m, n), for every layer with matrices

    dA_prev = e B                       B (C, n), drawn once

in place of dZ W. So dZ of the layer below is e B ⊙ g'(Z): no layer waits for the one above it.

Why it may learn.  J falls along any update at an angle below 90° to the gradient. While B is fixed,
the layers above learn from what this one makes; the forward weights turn until the true error at
A_prev, e times the Jacobian of all layers above, points to the side of e B (Nøkland, 2016).

Shapes  e: (m, ..., C); A_prev, dA_prev: (m, ...); B: see DirectFeedbackAlignment
Source  Nøkland (2016), Direct feedback alignment provides learning in deep neural networks,
        arXiv:1609.01596
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from manual_bp.gradients import open_params
from manual_bp.layer import Layer, Loss, Tree
from manual_bp.signals.transport_contract import (
    MAKE,
    Carried,
    Transport,
    entry,
    matrices,
    numbered,
)


@dataclass(frozen=True)
class DirectFeedbackAlignment(Transport):
    """dx = e B: the first error, carried straight to the input of each layer with matrices.

    B is drawn from a normal distribution of variance 1/C, with C the entries of e that it sums, so
    that dx is as large as e. Where the layer's input has the first axes of the prediction
    (m, ..., C), all but the last, B is (C, ...) of the remaining axes and carries each position's
    error to that position; else it carries an example's whole error, (..., C), to its whole input.
    What lies between two such layers, activations, pooling, norms, passes e B on truthfully.

    Source: Nøkland (2016), arXiv:1609.01596.

    Example:
        >>> network, x = mlp([2, 5, 3]), jnp.ones((4, 2))
        >>> params = network.init(jax.random.key(0), x)
        >>> feedback = DirectFeedbackAlignment().init(jax.random.key(1), params, x, network=network)
        >>> feedback[0].W.shape, feedback[1].W.shape
        ((3, 2), (3, 5))
    """

    takes: ClassVar[tuple[str, ...]] = ("feedback",)

    def init(self, key: jax.Array, params: Tree, x: Any, *, network: Layer | None = None) -> Tree:
        """B of each layer, at the place of the first of its matrices; () elsewhere.

        Each use of tied parameters has a B of its own: it belongs to a place, not to a matrix.
        """
        network, tree, _ = open_params(params, network, Loss())
        return _drawn(key, tree, jnp.zeros(x.shape, jnp.result_type(x)), network=network)

    def backward(
        self, layer: Layer, params: Tree, residuals: Tree, dout: jax.Array, carried: Carried
    ) -> tuple[Tree, jax.Array]:
        dparams, dx = layer.backward(params, residuals, dout)
        e, shape = carried.error, _direct_shape(carried.error, dx)
        B = entry(self, layer, carried.feedback, matrices(layer)[0])
        if B.shape != shape:
            raise ValueError(
                f"{layer!r}: feedback has shape {B.shape}, expected {shape}: from the first error "
                f"{e.shape} to the layer's input {dx.shape}. {MAKE.format(self)}"
            )
        return dparams, jnp.tensordot(e, B, e.ndim - _shared(e, dx)).astype(dx.dtype)


@functools.partial(jax.jit, static_argnames=("network",))
def _drawn(key: jax.Array, params: Tree, x: jax.Array, *, network: Layer) -> Tree:
    """B of each layer. Errors and layers' inputs are asked for their shapes; XLA drops the rest."""
    taken = {name: network.stand_in(name, x) for name in network.takes}
    prediction, residuals = network.forward(params, x, **taken)
    e = jnp.zeros_like(prediction)

    def visit(
        layer: Layer, dout: jax.Array, params: Tree, residuals: Tree, numbers: Tree
    ) -> tuple[Tree, Any]:
        dx = layer.backward(params, residuals, dout)[1]
        seen = jax.tree.map(lambda leaf: (), params)
        for name in matrices(layer)[:1]:
            shape, own = _direct_shape(e, dx), numbers._asdict()[name]
            summed = math.prod(e.shape[_shared(e, dx) :])
            draw = jax.nn.initializers.normal(summed**-0.5)
            B = draw(jax.random.fold_in(key, own), shape, dx.dtype)
            seen = seen._replace(**{name: B})
        return seen, dx

    return network.walk(visit, e, params, residuals, numbered(network, e, params, residuals))[0]


def _shared(e: jax.Array, dx: jax.Array) -> int:
    """How many first axes of the first error are also those of a layer's input."""
    positions = e.ndim - 1
    return positions if dx.ndim > positions and dx.shape[:positions] == e.shape[:-1] else 1


def _direct_shape(e: jax.Array, dx: jax.Array) -> tuple[int, ...]:
    """The shape of B from the first error to a layer's input."""
    shared = _shared(e, dx)
    return e.shape[shared:] + dx.shape[shared:]
