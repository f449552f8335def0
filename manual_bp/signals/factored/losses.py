"""Forms of a loss's own parameters, or of those that it borrows."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, Tree
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy
from manual_bp.signals.factored.visit import ByKind, affine


def _of_no_params(
    loss: Loss, params: Tree, prediction: jax.Array, target: jax.Array, weights: jax.Array
) -> Tree:
    """() of a loss that doesn't sweep in its own way: one that does may mix examples."""
    if type(loss).sweep is Loss.sweep:
        return ()
    raise TypeError(
        f"{loss!r}: what the gradient of one example is made of isn't known for losses of this "
        "kind. Say it with manual_bp.signals.factored.loss_factors.register."
    )


loss_factors = ByKind(_of_no_params)
"""loss_factors(loss, params, prediction, target, weights) -> forms nested like the loss's params,
its own or those it borrows; `loss_factors.register(Kind)` adds a kind."""


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
