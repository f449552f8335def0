"""Per-example gradients, norms and inner products, by jax.grad of one example at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from verify.networks import Shape
from verify.rules import Rule
from verify.signals.cases import objective, of_signal, one_by_one

CASES: tuple[tuple[Layer, Loss, Shape], ...] = (
    (mbp.mlp([3, 2, 2]), mbp.SquaredError(), (3, 3)),
    (mbp.mlp([2, 3, 2], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy(), (2, 2)),
    (mbp.sequential(mbp.Dense(2, mbp.relu), mbp.Dense(3)), mbp.SquaredError(), (2, 3, 2)),
)


def rules() -> list[Rule]:
    """Of every case: gradients, norms and inner products."""
    return [
        rule
        for network, loss, shape in CASES
        for rule in (
            of_signal(
                "PerExample",
                network,
                loss,
                shape,
                lambda params, x, y, weights, network=network, loss=loss, **taken: ours(
                    network, loss, params, x, y, weights, taken
                ),
                lambda params, x, y, weights, network=network, loss=loss, **taken: theirs(
                    network, loss, params, x, y, weights, taken
                ),
                exact=isinstance(loss, mbp.SquaredError),
            ),
        )
    ]


def ours(
    network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> dict[str, Any]:
    """What manual_bp makes of it."""
    settings = {"network": network, "loss": loss, "weights": weights, **taken}
    return {
        "grads": mbp.per_example_grads(params, x, y, **settings),
        "squared": mbp.per_example_squared_norms(params, x, y, **settings),
        "gram": mbp.gradient_gram(params, x, y, **settings),
    }


def theirs(
    network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> dict[str, Any]:
    """Its definition."""

    def gradient(params: Any, x: Any, y: Any, weights: Any, taken: Any) -> Any:
        return jax.grad(objective(network, loss, **taken))(params, x, y, weights)

    grads = one_by_one(gradient, params, x, y, weights, taken)
    rows = jnp.concatenate([each.reshape(len(x), -1) for each in jax.tree.leaves(grads)], axis=1)
    return {
        "grads": grads,
        "squared": jax.tree.map(lambda each: (each.reshape(len(x), -1) ** 2).sum(1), grads),
        "gram": rows @ rows.T,
    }
