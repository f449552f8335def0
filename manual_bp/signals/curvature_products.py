"""Hessian- and GGN-vector products of dense networks, by the R-operator.

The Hessian of J has as many rows as there are parameters; times a vector V, nested like params, it
costs about two gradients, and nothing of its size is ever held. R{f} = d/dr f(params + r V) at
r = 0, the derivative of f in the direction V, obeys the rules of any derivative; so R of the
gradient, which is H V, is had by going through the formulas of the gradient once more.

Forward, for each layer, with V_W and V_b the direction's W and b, and R{A[0]} = 0:

    Z = A_prev Wᵀ + b           R{Z} = R{A_prev} Wᵀ + A_prev V_Wᵀ + V_b
    A = g(Z)                    R{A} = g'(Z) ⊙ R{Z}

At the loss, with the weights w and the Hessian H_i of each prediction's loss (`loss_curvature`):

    dZ[L] = w error             R{dZ[L]} = w H_i R{Z[L]}

Backward:

    dZ = dA ⊙ g'(Z)             R{dZ} = R{dA} ⊙ g'(Z) + dA ⊙ g''(Z) ⊙ R{Z}
    dW = Σ dZ A_prevᵀ           R{dW} = Σ R{dZ} A_prevᵀ + dZ R{A_prev}ᵀ          in rows as in Dense
    db = Σ dZ                   R{db} = Σ R{dZ}
    dA_prev = dZ W              R{dA_prev} = R{dZ} W + dZ V_W

Derivation.  R{W} = V_W, R{b} = V_b and R{x} = 0; R{u v} = R{u} v + u R{v}, and
R{g(Z)} = g'(Z) ⊙ R{Z}. Each line on the right is R of the line on the left; the sums are over
examples. At the first dense layer the terms with R{x} are left out.

The generalised Gauss-Newton matrix G = Σ_i w_i Jᵢᵀ H_i Jᵢ, Jᵢ = ∂Z[L]ᵢ/∂params, is what is left of
the Hessian when the network is replaced by its tangent: the curvature of g drops out, and so do
all terms with an error dZ. J V = R{Z[L]}, and Jᵀ is the ordinary backward pass:

    G V = the gradient's backward pass with R{dZ[L]} = w H_i R{Z[L]} in place of the error

G is symmetric and, where the loss is convex in its prediction and no weight is below 0, has no
eigenvalue below 0: uᵀ G u = Σ w_i (Jᵢu)ᵀ H_i (Jᵢu). Focal and CosineSimilarity aren't convex. For a
network that is linear in its params G is the Hessian.

At kinks of g or g' the derivatives are those that `manual_bp.activations` states; for relu and its
kin g'' = 0, so that what lies at the kink itself (a multiple of Dirac's δ) isn't seen.

Kept  A_prev, R{A_prev}, what g' needs, and g'' ⊙ R{Z}: about three times what a gradient keeps.
Cost  of matrix products per dense layer with n_in n_out weights and m examples, each of
      2 m n_in n_out flops: 3 in a gradient, 8 in H V, 5 in G V; in the first layer 2, 3 and 3.
Ill-conditioned  as the gradient is; and where the terms of R{dZ} cancel.
Shapes  V and H V: those of params; R{Z}, R{A}, R{dZ}, R{dA}: those of Z, A, dZ, dA
Source  Pearlmutter (1994), Fast exact multiplication by the Hessian; Schraudolph (2002), Fast
        curvature matrix-vector products for second-order gradient descent
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.gradients import (
    check_call,
    close_params,
    open_params,
    weights_of,
    without_idle_spoilers,
)
from manual_bp.inputs import check_batch
from manual_bp.layer import Layer, Loss, Tree
from manual_bp.losses.softmax_cross_entropy import SoftmaxCrossEntropy
from manual_bp.signals._roperator import gauss_newton_visit, hessian_visit, moving, together
from manual_bp.signals.loss_curvature import check_has_hessian, hessian_vector


def hessian_vector_product(
    params: Tree,
    vector: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
) -> Tree:
    """The Hessian of J, with respect to params, times a vector: H V = d/dr ∇J(params + r V).

        R{Z} = R{A_prev} Wᵀ + A_prev V_Wᵀ + V_b,   R{dZ} = R{dA} ⊙ g' + dA ⊙ g'' ⊙ R{Z},
        R{dW} = R{dZ} A_prevᵀ + dZ R{A_prev}ᵀ

    Args:
        params: as for `manual_pass`.
        vector: V, nested like params, with the same shapes.
        x, y: as for `manual_pass`.
        network: of Dense, activations and Flatten, in sequential, skip, stack, parallel
            (concatenated or added), tied, checkpoint and reversible; without one the notes' MLP.
        loss: SoftmaxCrossEntropy() unless given; any but LinearCrossEntropy.
        weights: as for `manual_pass`: J is the weighted sum of losses, by default their mean.

    Returns:
        H V, in structure, shapes and dtypes of params.

    Raises:
        TypeError, ValueError: as `manual_pass` does; for a vector that isn't nested like params, a
            layer or a loss that has no second derivatives here, naming it.

    Source: Pearlmutter (1994), Fast exact multiplication by the Hessian.

    Example:
        >>> params = (jnp.array([[1.0, 2.0]]), jnp.zeros(1))
        >>> x, y = jnp.array([[3.0, 4.0]]), jnp.zeros((1, 1))
        >>> ones = (jnp.ones((1, 2)), jnp.ones(1))
        >>> HW, Hb = hessian_vector_product(params, ones, x, y, loss=SquaredError())
        >>> print(HW, Hb)
        [[24. 32.]] [8.]
    """
    loss = _check(params, vector, x, y, weights, network, loss)
    return _product(params, vector, x, y, weights, network=network, loss=loss, gauss_newton=False)


def ggn_vector_product(
    params: Tree,
    vector: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
) -> Tree:
    """The generalised Gauss-Newton matrix of J times a vector: G V = Σ_i w_i Jᵢᵀ H_i Jᵢ V.

        Jᵢ V = R{Z[L]}ᵢ,   H_i the Hessian of the loss of prediction i,   Jᵀ the backward pass

    Args, Raises: as for `hessian_vector_product`.

    Returns:
        G V, in structure, shapes and dtypes of params. G has no eigenvalue below 0 where the loss
        is convex in its prediction (all are but Focal and CosineSimilarity) and no weight is below
        0.

    Source: Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient
    descent.

    Example:
        >>> params, x = (jnp.eye(2), jnp.zeros(2)), jnp.ones((1, 2))
        >>> V = (jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.zeros(2))
        >>> GW, Gb = ggn_vector_product(params, V, x, jnp.array([0]))
        >>> print(Gb)
        [ 0.25 -0.25]
    """
    loss = _check(params, vector, x, y, weights, network, loss)
    return _product(params, vector, x, y, weights, network=network, loss=loss, gauss_newton=True)


@functools.partial(jax.jit, static_argnames=("network", "loss", "gauss_newton"))
def _product(
    params: Tree,
    vector: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    *,
    network: Layer | None,
    loss: Loss,
    gauss_newton: bool,
) -> Tree:
    network, tree, _ = open_params(params, network, loss)
    _, direction, _ = open_params(vector, network, loss)
    check_batch(x, y)
    if weights is not None:
        x = without_idle_spoilers(network, x, weights)
    carrier, at_rest = moving(network)
    entering = x if at_rest else jnp.stack([x, jnp.zeros_like(x)])
    both = together(tree, direction)
    (prediction, moved), residuals = carrier.forward(both, entering)
    weights = weights_of(loss, prediction, y, weights)
    w = weights.reshape(weights.shape + (1,) * (prediction.ndim - weights.ndim))
    rdz = jnp.where(w == 0, 0, w * hessian_vector(loss, prediction, y, moved))
    if gauss_newton:
        visit, first = gauss_newton_visit, rdz
    else:
        _, _, dz = loss.sweep((), prediction, y, weights)
        visit, first = hessian_visit, jnp.stack([dz, rdz])
    seen, _ = carrier.walk(visit, first.astype(prediction.dtype), both, residuals)
    return close_params(carrier.gather(seen), (), params, network, loss)


def _check(
    params: Tree,
    vector: Tree,
    x: Any,
    y: Any,
    weights: Any,
    network: Layer | None,
    loss: Loss | None,
) -> Loss:
    """Check what is checked outside jit; returns the loss, the default one for None."""
    if isinstance(network, Layer):
        moving(network)  # before params are asked for what such a network takes
    if loss is None:
        loss = SoftmaxCrossEntropy()
    elif isinstance(loss, Loss):
        check_has_hessian(loss)
    loss = check_call(params, x, y, weights, {}, network, loss)
    _check_vector(params, vector)
    return loss


def _check_vector(params: Tree, vector: Tree) -> None:
    """Raise unless the vector is nested like params, with floating arrays of the same shapes."""
    leaves, structure = jax.tree.flatten(params)
    given, of_vector = jax.tree.flatten(vector)
    if of_vector != structure:
        raise TypeError(
            "vector must be nested like params, with an array for each of theirs: expected "
            f"{structure}, got {of_vector}."
        )
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    for path, leaf, each in zip(paths, leaves, given, strict=True):
        place = f"vector{jax.tree_util.keystr(path)}"
        if not hasattr(each, "dtype") or not jnp.issubdtype(each.dtype, jnp.floating):
            kind = f"{each.dtype}" if hasattr(each, "dtype") else type(each).__name__
            raise TypeError(f"{place} must be a floating-point array like params, got {kind}.")
        if each.shape != leaf.shape:
            raise ValueError(
                f"{place} has shape {tuple(each.shape)}, expected {tuple(leaf.shape)} like params; "
                "it is not broadcast."
            )
