"""A rule of a signal: networks it is judged on, and how their numbers are drawn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import Layer, Loss
from verify import reference, specs
from verify.networks import Shape, draw_params, draw_taken, opened, prediction_shape, with_loss
from verify.rules import NOTHING, Rule, flat, inputs, numbers, params_of_kind

Outputs = Any


def of_signal(
    family: str,
    network: Layer,
    loss: Loss,
    shape: Shape,
    manual: Callable[..., Outputs],
    definition: Callable[..., Outputs],
    *,
    exact: bool = False,
    weighted: bool = False,
    omitted: dict[str, str] | None = None,
) -> Rule:
    """The rule of a signal on a network.

    Args:
        family: the row of the report.
        network, loss, shape: what it is judged on, and the shape of x.
        manual: manual(params, x, y, weights, **taken) -> a tree of results.
        definition: definition(params, x, y, weights, **taken) -> the same tree by autodiff.
        exact: whether all is piecewise polynomial.
        weighted: whether weights are given; else they are None.
        omitted: levels that don't apply, with the reason.
    """

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        x = inputs(rng, kind, network, shape)
        params = params_of_kind(rng, kind, network, x)
        prediction = prediction_shape(network, params, x)
        of_network = params
        params = with_loss(params, loss, prediction, lambda *of: draw_params(rng, *of))
        y = specs.of_loss(loss).target(rng, loss, prediction)
        weights = numbers(rng, kind, prediction[:-1]) if weighted else None
        taken = draw_taken(rng, network, network, of_network, x)
        return params, x, y, weights, taken

    def named(function: Callable[..., Outputs]) -> Callable[..., dict[str, Any]]:
        def run(params: Any, x: Any, y: Any, weights: Any, taken: Any = NOTHING) -> dict[str, Any]:
            return flat("d", function(params, x, y, weights, **opened(taken)))

        return run

    return Rule(
        name=f"{family} of {network!r} with {loss!r} on {shape}",
        family=family,
        manual=named(manual),
        autodiff=named(definition),
        draw=draw,
        exact=exact,
        omitted=omitted or {},
    )


def objective(network: Layer, loss: Loss, **taken: Any) -> Callable[..., jax.Array]:
    """J(params, x, y, weights), by the judge's own network and loss."""

    def total(params: Any, x: Any, y: Any, weights: Any) -> jax.Array:
        untapped: Any = lambda name, value: value  # noqa: E731
        return reference.objective(network, loss, params, x, y, weights, untapped, taken)[0]

    return total


def one_by_one(
    function: Callable[..., Any], params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> Any:
    """function(params, x_i, y_i, weights_i, taken_i) of each example by itself, stacked."""

    def of_example(i: int) -> Callable[[Any], Any]:
        return lambda leaf: leaf[i : i + 1] if leaf.shape[:1] == (len(x),) else leaf

    found = []
    for i in range(len(x)):
        weight = None if weights is None else weights[i : i + 1]
        of_one = {
            name: each if name in ("statistics", "key") else jax.tree.map(of_example(i), each)
            for name, each in taken.items()
        }
        found.append(function(params, x[i : i + 1], y[i : i + 1], weight, of_one))
    return jax.tree.map(lambda *each: jnp.stack(each), *found)
