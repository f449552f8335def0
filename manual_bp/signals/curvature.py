"""Diagonals of curvature: of the generalised Gauss-Newton matrix, and of the empirical Fisher.

With the weights of J = Σ_i w_i loss_i, by default one over the number of predictions that count:

    GGN       diag Σ_i w_i J_iᵀ H_i J_i = Σ_i w_i Σ_k (J_iᵀ s_ik)²       squares by element
    Fisher    diag Σ_i w_i g_i g_iᵀ     = Σ_i w_i g_i²

J_i = ∂Z[L]_i/∂params, H_i = Σ_k s_ik s_ikᵀ the Hessian of loss i with respect to its prediction
(`loss_curvature.hessian_factor`), g_i = J_iᵀ (A[L]_i - Y_i) the gradient of loss i.

Derivation.  J_iᵀ v is what a backward pass makes of the error v in row i. So column k of all
examples goes back in one walk, in place of the loss's error. At each layer row i of it has the
factors of J_iᵀ s_ik, of which Σ_i c_i (·)² is taken as of any gradients (`factors.sum_of_squares`),
with c = w. Weights are no part of what is squared: both are linear in w, whatever its sign.

Sequences  A network that predicts at T places, (m, T, C), has J = Σ_it w_it loss_it.
GGN: the Hessian of an example's losses is block-diagonal, and each place is a row of J of its own:
one walk for each place and column, whose squares don't mix. Fisher: the example is the whole
sequence. With v_i = Σ_t w_it it is Σ_i v_i g_i², g_i the gradient of the weighted mean of its
losses, Σ_t (w_it/v_i) loss_it. This mean is squared, so that it is by about T smaller than the GGN.

The two agree in expectation where T = 1, the loss is a negative log-likelihood in its natural
parameters (softmax, sigmoid, half squared error, Poisson) and labels are drawn from the model: then
E[(A - Y)(A - Y)ᵀ] = H. With the labels of the data they differ: where every example is fitted g_i
is 0, and so is the empirical Fisher, however curved J is (Kunstner, Balles & Hennig).

Cost  GGN: one forward pass and C T backward passes, C the size of the prediction. They run in a
`jax.lax.scan`, one at a time: memory is that of one gradient and the sum. Fisher: one sweep, with
twice the contractions. Where a layer has several places (steps, pixels) each example's gradient is
formed, one example at a time, and squared.
Ill-conditioned  nowhere: only squares are added, where no weight is below 0.
Source  Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent;
        Dangel, Kunstner & Hennig (2020), arXiv:1912.10985; Martens (2020), arXiv:1412.1193;
        Kunstner, Balles & Hennig (2019), arXiv:1905.12558
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.gradients import begin, check_call, open_params
from manual_bp.layer import Layer, Loss, Tree
from manual_bp.signals.factored import loss_factors
from manual_bp.signals.factors import Uses, sum_of_squares
from manual_bp.signals.loss_curvature import hessian_factor
from manual_bp.signals.per_example import compiled, gathered_uses, held, uses_of, visit_of


def ggn_diagonal(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Tree:
    """The exact diagonal of the generalised Gauss-Newton matrix of J.

        diag Σ_i w_i J_iᵀ H_i J_i = Σ_i w_i Σ_k (J_iᵀ s_ik)²,   H_i = Σ_k s_ik s_ikᵀ

    Args:
        params, x, y, network, **taken: as for `manual_grads`.
        loss: one that is convex in its prediction: SoftmaxCrossEntropy() unless given; not Focal
            nor CosineSimilarity, nor LinearCrossEntropy.
        weights: one for each prediction, (m,) or (m, T), as in J = Σ w · loss; by default one over
            the number of predictions that count.

    Returns:
        Nested like params, in the unit of the loss over that of params²; in at least float32.
        Where the network is linear in a parameter it is the diagonal of the Hessian there.

    Raises:
        TypeError: for a loss without such factors, a layer that mixes examples (BatchNorm), or one
            of an unknown kind; else as `manual_grads`.

    Source: Schraudolph (2002); Dangel, Kunstner & Hennig (2020), arXiv:1912.10985.

    Example:
        >>> params = ((jnp.zeros((2, 2)), jnp.zeros(2)),)
        >>> x = jnp.array([[1.0, 2.0]])
        >>> ((of_W, of_b),) = ggn_diagonal(params, x, jnp.array([0]))
        >>> print(of_W[0], of_b)
        [0.24999999 0.99999994] [0.24999999 0.24999999]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    return _compiled_ggn(params, x, y, weights, taken, network=network, loss=loss)


def empirical_fisher(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Tree:
    """The diagonal of the empirical Fisher matrix: the mean of the examples' squared gradients.

        Σ_i v_i g_i²,   g_i = ∂(Σ_t (w_it/v_i) loss_it)/∂params,   v_i = Σ_t w_it

    With one prediction for each example v_i = w_i and g_i = ∂loss_i/∂params.

    Args:
        params, x, y, network, loss, **taken: as for `manual_grads`.
        weights: one for each prediction, (m,) or (m, T), as in J = Σ w · loss; by default one over
            the number of predictions that count: the mean. They are no part of what is squared. An
            example whose weights add up to 0 contributes nothing.

    Returns:
        Nested like params, in the unit of the loss² over that of params²; in at least float32.

    Raises:
        TypeError: for a layer that mixes examples (BatchNorm), or one of an unknown kind; else as
            `manual_grads`.

    Source: Martens (2020), arXiv:1412.1193, section 11.

    Example:
        >>> params = ((jnp.zeros((2, 2)), jnp.zeros(2)),)
        >>> x = jnp.array([[1.0, 2.0]])
        >>> ((of_W, of_b),) = empirical_fisher(params, x, jnp.array([0]))
        >>> print(of_W[0], of_b)
        [0.25 1.  ] [0.25 0.25]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    return _compiled_fisher(params, x, y, weights, taken, network=network, loss=loss)


def over_columns(
    back: Callable[[jax.Array, jax.Array], Tree],
    loss: Loss,
    prediction: jax.Array,
    target: jax.Array,
    weights: jax.Array,
) -> Tree:
    """Σ back(error, w) over the columns of the loss's Hessian: one place and one column at a time.

    Args:
        back: back(error, w) -> a tree of arrays, of an error in the prediction's shape, which is 0
            but at one place of each example, and the weights of those places, (m,).
        loss, prediction, target: as `hessian_factor` takes them.
        weights: (m,) or (m, T). Where one is 0 so is the error, whatever the target there.

    Returns:
        The sum, nested as what back returns.
    """
    m, *between, units = prediction.shape
    places = math.prod(between)
    columns = hessian_factor(loss, prediction, target).reshape(-1, m, places, units)
    w = weights.reshape(m, places)
    columns = jnp.moveaxis(jnp.where(w[..., None] == 0, 0, columns), 2, 0)  # (T, K, m, C)
    count = columns.shape[1]

    def one(column: jax.Array, place: jax.Array, w: jax.Array) -> Tree:
        here = jnp.arange(places) == place
        error = jnp.where(here[:, None], column[:, None], 0).reshape(prediction.shape)
        return back(error.astype(prediction.dtype), w)

    each = (
        columns.reshape(-1, m, units),
        jnp.broadcast_to(jnp.arange(places)[:, None], (places, count)).reshape(-1),
        jnp.broadcast_to(w.T[:, None], (places, count, m)).reshape(-1, m),
    )
    like = jax.eval_shape(one, *jax.tree.map(lambda leaf: leaf[0], each))

    def add(total: Tree, each: tuple[jax.Array, ...]) -> tuple[Tree, None]:
        return jax.tree.map(jnp.add, total, one(*each)), None

    start = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
    total, _ = jax.lax.scan(add, start, each)
    return total


def of_examples(weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(v, w/v) with v_i = Σ_t w_it, (m,): what an example counts, and its predictions within it."""
    v = weights.sum(tuple(range(1, weights.ndim)))
    by_example = v.reshape(-1, *[1] * (weights.ndim - 1))
    return v, jnp.where(by_example == 0, 0, weights / by_example)


@compiled
def _compiled_ggn(
    params: Tree, x: Any, y: Any, weights: Any, taken: Any, *, network: Layer | None, loss: Loss
) -> Tree:
    opened, tree, loss_params = open_params(params, network, loss)
    marks = held(opened, tree, loss, loss_params)
    prediction, residuals, weights = begin(opened, loss, tree, x, y, weights, taken)

    def back(error: jax.Array, w: jax.Array) -> Tree:
        def squares(uses: Uses) -> jax.Array:
            return uses.take(sum_of_squares, w)

        seen, _ = opened.walk(visit_of(squares), error, tree, residuals, marks)
        return gathered_uses(squares, seen, (), params, opened, loss)

    return over_columns(back, loss, prediction, y, weights)


@compiled
def _compiled_fisher(
    params: Tree, x: Any, y: Any, weights: Any, taken: Any, *, network: Layer | None, loss: Loss
) -> Tree:
    opened, tree, loss_params = open_params(params, network, loss)
    marks = held(opened, tree, loss, loss_params)
    prediction, residuals, weights = begin(opened, loss, tree, x, y, weights, taken)
    v, within = of_examples(weights)

    def squares(uses: Uses) -> jax.Array:
        return uses.take(sum_of_squares, v)

    _, _, error = loss.sweep(loss_params, prediction, y, within)
    error = error.astype(prediction.dtype)
    seen, _ = opened.walk(visit_of(squares), error, tree, residuals, marks)
    of_loss = uses_of(loss_factors(loss, loss_params, prediction, y, within))
    return gathered_uses(squares, seen, of_loss, params, opened, loss)
