"""The visit itself, what it refuses, and what visits of several kinds share.

    factors(layer, dout, params, residuals) -> (forms nested like params, dx)

`factors.register(Kind)` adds a kind of layer. It is a TypeError for a kind that nobody has said a
visit for, and for one that mixes examples.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation
from manual_bp.layer import Layer, Tree
from manual_bp.layers.batch_norm import BatchNorm
from manual_bp.signals.factors import Each, Form, Outer


class ByKind:
    """A function that the kind of its first argument decides.

    Kinds that are derived from a registered one aren't taken for it: what they compute may be
    another function. Only a whole family, whose visit leaves all to the layer's own backward, is.

    Args:
        otherwise: what is called for all other kinds.
        families: registered kinds that stand for what is derived from them too.
    """

    def __init__(self, otherwise: Callable[..., Any], *families: type) -> None:
        self._table = functools.singledispatch(otherwise)
        self._families = families
        self.register = self._table.register

    def dispatch(self, kind: type) -> Callable[..., Any]:
        """What is called for this kind."""
        nearest = next(base for base in kind.__mro__ if base in self._table.registry)
        exact = nearest is kind or nearest in self._families
        return self._table.registry[nearest if exact else object]

    def __call__(self, thing: Any, *args: Any) -> Any:
        return self.dispatch(type(thing))(thing, *args)


def _unknown(
    layer: Layer, dout: jax.Array, params: Tree, residuals: Tree
) -> tuple[Tree, jax.Array]:
    """What is no kind that a visit is known for: an error, never a guess."""
    raise TypeError(
        f"{layer!r}: what the gradient of one example is made of isn't known for layers of this "
        "kind. Say it with manual_bp.signals.factored.factors.register."
    )


factors = ByKind(_unknown, Activation)
"""factors(layer, dout, params, residuals) -> (forms nested like params, dx), of a leaf."""


@factors.register(BatchNorm)
def _(layer: Layer, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, jax.Array]:
    raise TypeError(
        f"{layer!r} mixes examples: the statistics of the batch make each output depend on all "
        "examples, so that the gradient of one example isn't defined. Use LayerNorm or GroupNorm, "
        "or network.inference(), whose statistics are given."
    )


def by_backward(
    layer: Layer, dout: jax.Array, params: Tree, residuals: Tree, axes: Tree
) -> tuple[Tree, jax.Array]:
    """Each example's gradient by the layer's own backward on a batch of one.

    Args:
        layer, dout, params, residuals: as for `factors`; the parameters should be so few that m
            times as many are no burden.
        axes: nested like residuals: which axis is that of examples, None where all have the same.
    """

    def backward(residuals: Tree, dout: jax.Array) -> tuple[Tree, jax.Array]:
        one = jax.tree.map(
            lambda axis, leaf: leaf if axis is None else jnp.expand_dims(leaf, axis),
            axes,
            residuals,
            is_leaf=lambda axis: axis is None,
        )
        dparams, dx = layer.backward(params, one, dout[None])
        return dparams, dx[0]

    grads, dx = jax.vmap(backward, in_axes=(axes, 0))(residuals, dout)
    return jax.tree.map(lambda each, leaf: Each(each, like(leaf)), grads, params), dx


def affine(W: jax.Array, b: Any, errors: jax.Array, inputs: jax.Array) -> tuple[Outer, Any]:
    """The forms of W and b where out = inputs Wᵀ + b, at any number of places.

    Args:
        W, b: (o, i) and (o,), or () without a bias.
        errors: (m, ..., o).
        inputs: (m, ..., i).
    """
    outer = Outer(_places(errors)[:, :, None], _places(inputs)[:, :, None], like(W))
    return outer, sum_over_places(b, errors) if jax.tree.leaves(b) else ()


def sum_over_places(b: jax.Array, errors: jax.Array) -> Each:
    """The form of a bias: Σ over the places of an example of its errors (m, ..., o)."""
    return Each(_places(errors).sum(1, dtype=jnp.promote_types(errors.dtype, jnp.float32)), like(b))


def like(param: Any) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a parameter."""
    return jax.ShapeDtypeStruct(param.shape, param.dtype)


def _places(values: jax.Array) -> jax.Array:
    """(m, ..., n) as (m, S, n)."""
    return values.reshape(len(values), math.prod(values.shape[1:-1]), values.shape[-1])


def is_form(part: Any) -> bool:
    """Whether it stands for a parameter's gradient in what the visit returns."""
    return isinstance(part, Form)
