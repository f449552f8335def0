"""Forms of a loss's own parameters, or of those that it borrows."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, Tree
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy
from manual_bp.signals.factored.visit import affine


@functools.singledispatch
def loss_factors(
    loss: Loss, params: Tree, prediction: jax.Array, target: jax.Array, weights: jax.Array
) -> Tree:
    """Forms nested like the loss's params, () of a loss without; `.register(Kind)` adds a kind.

    Args:
        loss: the kind decides.
        params: the loss's own, or those it borrows.
        prediction, target, weights: as `Loss.sweep` takes them.

    Raises:
        TypeError: for a loss that sweeps in its own way, and may mix examples.
    """
    if type(loss).sweep is Loss.sweep:
        return ()
    raise TypeError(
        f"{loss!r}: what the gradient of one example is made of isn't known for losses of this "
        "kind. Say it with manual_bp.signals.factored.loss_factors.register."
    )


@loss_factors.register
def _(
    loss: LinearCrossEntropy,
    params: Tree,
    prediction: jax.Array,
    target: jax.Array,
    weights: jax.Array,
) -> Tree:
    """dW = Σ dz hᵀ, db = Σ dz; dz is there for all predictions and classes at once."""
    dz = loss.error_of_logits(params, prediction, target, weights)
    idle = (dz == 0).all(-1, keepdims=True)  # there 0 · NaN would be NaN
    return type(params)(*affine(params.W, params.b, dz, jnp.where(idle, 0, prediction)))
