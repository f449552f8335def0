"""K-FAC as an optimiser: the gradient of each layer, multiplied by the inverse of its A ⊗ G.

With dW = ∂J/∂[W b], (o, i + 1), the factors A and G of `kfac_factors` and damping λ, each step:

    Ā ← ε Ā + (1 - ε) A,   Ḡ ← ε Ḡ + (1 - ε) G,   ε = min(1 - 1/k, decay) in step k
    π = √((tr Ā / dim A) / (tr Ḡ / dim G))
    U = (Ḡ + √λ/π I)⁻¹ dW (Ā + π √λ I)⁻¹
    V ← momentum V + ν U,   ν = min(1, √(clip / (rate² Σ U · dW)))
    [W b] ← [W b] - rate V

Derivation.  The natural gradient step is F⁻¹ vec(dW). With F = A ⊗ G and vec by columns,
(A ⊗ G) vec(U) = vec(G U A), as A is symmetric: U = G⁻¹ dW A⁻¹, two small systems where F has
(o (i + 1))² entries. Damping by λ I doesn't keep the form of a product; (A + π√λ I) ⊗ (G + √λ/π I)
is A ⊗ G + λ I and two terms between, whose sizes π balances: A and G aren't known but up to a
number that one has and the other lacks. Averages start with the first factors and need no
correction: with ε = 1 - 1/k they are the mean of all so far, until decay is reached.
rate² U·dW is rate² Uᵀ F U without damping, about twice the divergence (KL) between the model before
and after a step of rate U: ν keeps it below clip, over all layers together. So clip is how far the
predictions may move, whatever the parameters; where it binds the rate no longer counts. It bounds
what a step adds to V: with momentum μ what V has added up moves by up to 1/(1 - μ) as far.

Biases are in [W b]. Layers without factors (None: norms, scales, recurrent layers, attention) have
U = dW, in the same sum.

State  Ā and Ḡ, and V, of the size of params.
Cost  every step factorises every Ā and Ḡ anew (Cholesky), o³/3 + i³/3 multiply-adds for each layer,
and solves, o² i + o i²: cubic in the width. That is little beside many examples, and more than the
whole gradient where layers are wider than the batch. No inverse is kept for later steps.
Ill-conditioned  with λ near 0: A and G have rank m S at most. The factorisation of what isn't
positive definite is NaN.
Source  Martens & Grosse (2015), arXiv:1503.05671, sections 5 and 6.3; Ba, Grosse & Martens (2017),
        Distributed second-order optimization using Kronecker-factored approximations (clip)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import GradientTransformationExtraArgs

from manual_bp.activation import check_number
from manual_bp.layer import Tree
from manual_bp.signals.kfac import ConvFactors, DenseFactors, KroneckerFactors, is_factors


class KFACState(NamedTuple):
    """What K-FAC keeps from step to step."""

    steps: jax.Array
    """Steps taken."""
    factors: Tree
    """Ā and Ḡ, nested as the factors given."""
    velocity: Tree
    """V, nested like params."""


def kfac(
    learning_rate: float | Callable[[jax.Array], Any],
    like: Tree,
    *,
    damping: float = 1e-3,
    decay: float = 0.95,
    momentum: float = 0.9,
    clip: float | None = 1e-3,
) -> GradientTransformationExtraArgs:
    """K-FAC: U = (G + √λ/π I)⁻¹ dW (A + π √λ I)⁻¹ in place of each layer's gradient.

    Each step factorises all A and G by Cholesky: of order o³ + i³ for a layer with i inputs and o
    outputs.

    Args:
        learning_rate: of the step, or a schedule, of the steps taken before.
        like: factors of any batch, or their shapes: jax.eval_shape of `kfac_factors`. The state
            starts with zeros of these shapes, which params alone don't tell; values aren't used.
        damping: λ > 0, in the unit of F.
        decay: of the averages of A and G, at least 0 and below 1.
        momentum: at least 0 and below 1.
        clip: bound on rate² Σ U · dW, about twice the KL divergence that a step without momentum
            makes, above 0; None for no bound. 1e-3 is the custom (kl_clip elsewhere): 1/1000 nat
            holds the first steps, whose factors are of few batches; near a minimum it is idle.

    Returns:
        An optax transformation; give its update the factors by name:
        optimizer.update(grads, state, params, factors=kfac_factors(...)).

    Raises:
        TypeError, ValueError: for a setting that doesn't fit; in update, for factors that are
            missing or not nested like those that it was made for.

    Source: Martens & Grosse (2015), arXiv:1503.05671.

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> batch = jnp.array([[1.0], [3.0]]), jnp.array([0, 1])
        >>> factors = kfac_factors(params, *batch)
        >>> optimizer = kfac(0.5, factors)
        >>> grads, state = manual_grads(params, *batch), optimizer.init(params)
        >>> updates, state = optimizer.update(grads, state, params, factors=factors)
        >>> updates[0][0].shape, updates[0][1].shape
        ((2, 1), (2,))
    """
    if not callable(learning_rate):
        check_number("kfac: learning_rate", learning_rate, "a number above 0", lambda n: n > 0)
    check_number("kfac: damping", damping, "a number above 0", lambda n: n > 0)
    for name, value in (("decay", decay), ("momentum", momentum)):
        check_number(f"kfac: {name}", value, "at least 0 and below 1", lambda n: 0 <= n < 1)
    if clip is not None:
        check_number("kfac: clip", clip, "a number above 0 or None", lambda n: n > 0)
    _, structure = jax.tree.flatten(like)

    def init(params: Tree) -> KFACState:
        factors = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
        return KFACState(jnp.zeros((), jnp.int32), factors, jax.tree.map(jnp.zeros_like, params))

    def update(
        updates: Tree, state: Any, params: Tree = None, *, factors: Tree = None, **others: Any
    ) -> tuple[Tree, KFACState]:
        del params, others
        grads = updates
        given = jax.tree.flatten(factors)[1]
        if given != structure:
            raise TypeError(
                "kfac: update needs factors=kfac_factors(...), nested like those that the "
                f"optimiser was made for, {structure}; got {given}."
            )
        count = state.steps + 1
        rate = learning_rate(state.steps) if callable(learning_rate) else learning_rate
        keep = jnp.minimum(1 - 1 / count, decay)
        averages = jax.tree.map(
            lambda old, new: (keep * old + (1 - keep) * new).astype(old.dtype),
            state.factors,
            factors,
        )
        of_layer = functools.partial(precondition, damping=damping)
        directions = jax.tree.map(of_layer, averages, grads, is_leaf=is_factors)
        if clip is not None:
            along = jax.tree.map(lambda u, g: (u * g.astype(u.dtype)).sum(), directions, grads)
            squared = sum(jax.tree.leaves(along)) * jnp.square(rate)
            # no step, no bound
            scale = jnp.sqrt(clip / jnp.where(squared == 0, clip, squared))
            directions = jax.tree.map(lambda u: jnp.minimum(1, scale) * u, directions)
        velocity = jax.tree.map(
            lambda v, u: (momentum * v + u).astype(v.dtype), state.velocity, directions
        )
        moves = jax.tree.map(lambda v, g: (-rate * v).astype(g.dtype), velocity, grads)
        return moves, KFACState(count, averages, velocity)

    return GradientTransformationExtraArgs(init, update)


def precondition(factors: KroneckerFactors | None, grads: Tree, *, damping: float) -> Tree:
    """U of one layer, nested like its gradients.

    Args:
        factors: the layer's, with or without a first axis of steps; None for U = dW.
        grads: W and b in any nesting, or W alone.
        damping: λ.
    """
    if factors is None:
        return grads
    leaves, structure = jax.tree.flatten(grads)
    weights = max(range(len(leaves)), key=lambda place: leaves[place].ndim)
    W, *b = leaves[weights], *(leaves[1 - weights] for _ in leaves[1:])
    solve: Callable[..., Any]
    if isinstance(factors, DenseFactors):
        solve, steps = _dense, factors.A.ndim - 2
    elif isinstance(factors, ConvFactors):
        solve, steps = _conv, factors.A.ndim - 3
    else:
        solve, steps = _table, factors.A.ndim - 1
    of_step = functools.partial(solve, damping=damping)
    for _ in range(steps):
        of_step = jax.vmap(of_step)
    found = of_step(factors.A, factors.G, W, *b)
    return jax.tree.unflatten(structure, found if weights == 0 else found[::-1])


def _dense(
    A: jax.Array, G: jax.Array, W: jax.Array, *b: jax.Array, damping: float
) -> tuple[jax.Array, ...]:
    joined = jnp.concatenate([W, *(each[:, None] for each in b)], axis=1)
    U = _solved(A, G, joined, damping)
    return U[:, : W.shape[1]], *(U[:, -1] for _ in b)


def _conv(
    A: jax.Array, G: jax.Array, W: jax.Array, *b: jax.Array, damping: float
) -> tuple[jax.Array, ...]:
    groups, o, _ = G.shape
    rows = jnp.moveaxis(W.reshape(-1, groups, o), 0, -1)  # (groups, o, K c)
    joined = jnp.concatenate([rows, *(each.reshape(groups, o, 1) for each in b)], axis=2)
    U = jax.vmap(functools.partial(_solved, damping=damping))(A, G, joined)
    kernel = jnp.moveaxis(U[:, :, : rows.shape[2]], -1, 0).reshape(W.shape)
    return kernel, *(U[:, :, -1].reshape(-1) for _ in b)


def _table(A: jax.Array, G: jax.Array, W: jax.Array, *, damping: float) -> tuple[jax.Array, ...]:
    of_A, of_G = _split(A.mean(), G, damping)
    by_token = W / (A + of_A)[:, None]
    return (_by_cholesky(G, of_G, by_token.T).T,)


def _solved(A: jax.Array, G: jax.Array, dW: jax.Array, damping: float) -> jax.Array:
    """(G + √λ/π I)⁻¹ dW (A + π √λ I)⁻¹."""
    of_A, of_G = _split(jnp.trace(A) / len(A), G, damping)
    return _by_cholesky(A, of_A, _by_cholesky(G, of_G, dW).T).T


def _split(mean_of_A: jax.Array, G: jax.Array, damping: float) -> tuple[jax.Array, jax.Array]:
    """(π √λ, √λ/π), with π = 1 where A or G is 0."""
    ratio = mean_of_A / (jnp.trace(G) / len(G))
    pi = jnp.sqrt(jnp.where((ratio > 0) & jnp.isfinite(ratio), ratio, 1))
    return pi * math.sqrt(damping), math.sqrt(damping) / pi


def _by_cholesky(matrix: jax.Array, damping: jax.Array, right: jax.Array) -> jax.Array:
    """(matrix + damping I)⁻¹ right."""
    damped = matrix + damping * jnp.eye(len(matrix), dtype=matrix.dtype)
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(damped), True), right)
