"""Diagonals of curvature, by jax.jacobian of the judge's network and jax.hessian of its loss."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from verify import reference, specs
from verify.networks import Shape
from verify.rules import Rule
from verify.signals.cases import objective, of_signal, one_by_one

CASES: tuple[tuple[Layer, Loss, Shape, bool], ...] = (
    (mbp.mlp([2, 2, 2]), mbp.SquaredError(), (2, 2), True),
    (mbp.mlp([3, 2, 3], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy(), (2, 3), False),
    (
        mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(3)),
        mbp.SoftmaxCrossEntropy(),
        (2, 2, 2),
        True,
    ),
)


def rules() -> list[Rule]:
    """Of every case: the GGN's diagonal and the empirical Fisher's."""
    return [
        of_signal(
            family,
            network,
            loss,
            shape,
            functools.partial(_named, ours, network, loss),
            functools.partial(_named, theirs, network, loss),
            exact=family == "EmpiricalFisher" and isinstance(loss, mbp.SquaredError),  # GGN: √h
            weighted=weighted,
        )
        for network, loss, shape, weighted in CASES
        for family, ours, theirs in (
            ("GGNDiagonal", mbp.ggn_diagonal, ggn_diagonal),
            ("EmpiricalFisher", mbp.empirical_fisher, empirical_fisher),
        )
    ]


def _named(
    of: Any, network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, **taken: Any
) -> Any:
    return of(params, x, y, network=network, loss=loss, weights=weights, **taken)


def ggn_diagonal(
    params: Any, x: Any, y: Any, *, network: Layer, loss: Loss, weights: Any = None, **taken: Any
) -> Any:
    """diag Σ w JᵀHJ, from the whole Jacobian and the whole Hessian."""

    def predict(params: Any) -> jax.Array:
        return reference.forward(network, params, x, lambda name, value: value, taken=taken)

    def total(prediction: jax.Array) -> jax.Array:
        values = specs.of_loss(loss).reference(loss, prediction, y)
        return jnp.mean(values) if weights is None else jnp.sum(weights * values)

    prediction = predict(params)
    n = prediction.size
    H = jax.hessian(total)(prediction).reshape(n, n)

    def diagonal(J: jax.Array) -> jax.Array:
        rows = J.reshape(n, -1)
        return jnp.diagonal(rows.T @ H @ rows).reshape(J.shape[prediction.ndim :])

    return jax.tree.map(diagonal, jax.jacobian(predict)(params))


def empirical_fisher(
    params: Any, x: Any, y: Any, *, network: Layer, loss: Loss, weights: Any = None, **taken: Any
) -> Any:
    """Σ v g², g one example's gradient at a time."""

    def squared(params: Any, x: Any, y: Any, weights: Any, taken: Any) -> Any:
        share = None  # of an example alone: the mean
        if weights is not None:
            total = weights.sum()
            share = jnp.where(total == 0, 0, weights / jnp.where(total == 0, 1, total))
        grads = jax.grad(objective(network, loss, **taken))(params, x, y, share)
        return jax.tree.map(jnp.square, grads)

    each = one_by_one(squared, params, x, y, weights, taken)
    v = jnp.full(len(x), 1 / len(x)) if weights is None else weights.reshape(len(x), -1).sum(1)
    return jax.tree.map(lambda leaf: jnp.tensordot(v, leaf, 1), each)
