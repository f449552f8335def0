"""The judge's own network: written out of jax.nn and optax, differentiated by jax.grad.

It shares no code with the engine. Every intermediate's error is had by adding zeros at the place
and differentiating with respect to them: ∂J/∂(zeros at Z[l]) is dZ[l].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.combinators.sequential import Sequential
from manual_bp.layer import Combinator, Layer, Loss
from manual_bp.layers.dense import Dense
from verify import specs
from verify.specification import Tap


def forward(
    layer: Layer,
    params: Any,
    x: jax.Array,
    tap: Tap,
    place: str = "",
    taken: Mapping[str, Any] = MappingProxyType({}),
) -> jax.Array:
    """The layer's output by its spec's reference, with every intermediate tapped.

    Args:
        layer: any layer that has a spec.
        params: its params.
        x: its input.
        tap: tap(name, value) -> value, called with "Z1", "A1", "out2.3", ...
        place: the layer's place in the network, "" for the network itself.
        taken: what the layer takes by name.

    Returns:
        The layer's output.
    """
    spec = specs.of_layer(layer)
    if isinstance(layer, Combinator):

        def run(index: int, params: Any, x: jax.Array, step: int | None = None) -> jax.Array:
            inner = f"{place}.{index + 1}" if place else str(index + 1)
            child, times = layer.children[index], "" if step is None else f"@{step}"
            given = handed(child, taken, index, step)
            return forward(child, params, x, tap, inner + times, given)

        return spec.reference(layer, params, x, run)
    here = place or "1"
    at = lambda name: f"{name}{here}"  # noqa: E731
    out = spec.reference(layer, params, x, lambda name, value: tap(at(name), value), **taken)
    return tap(f"{'A' if isinstance(layer, Dense) else 'out'}{here}", out)


def handed(
    child: Layer, taken: Mapping[str, Any], index: int, step: int | None = None
) -> dict[str, Any]:
    """What a combinator's child gets: a key, statistics, a state of its own, and of its step."""
    given = {name: taken[name] for name in child.takes}
    if "key" in given:
        given["key"] = jax.random.fold_in(given["key"], index)
        if step is not None:
            given["key"] = jax.random.fold_in(given["key"], step)
    for name in {"statistics", "state"} & set(given):
        given[name] = given[name][index]
        if step is not None:
            given[name] = jax.tree.map(lambda leaf: leaf[step], given[name])
    return given


def objective(
    network: Layer,
    loss: Loss,
    params: Any,
    x: Any,
    y: Any,
    weights: Any,
    tap: Tap,
    taken: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[jax.Array, jax.Array]:
    """(J, prediction) with J the weighted sum of losses, by default their mean."""
    spec = specs.of_loss(loss)
    params, own = params if loss.parametric else (params, spec.borrow(loss, params))
    prediction = forward(network, params, x, tap, taken=taken)
    values = spec.reference(loss, prediction, y, *([own] if jax.tree.leaves(own) else []))
    if weights is not None:
        return jnp.sum(weights * values), prediction
    mask = spec.counts(loss, y)
    if mask is None:
        return jnp.mean(values), prediction
    return jnp.sum(values) / jnp.maximum(jnp.sum(mask), 1), prediction


def intermediates(
    network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> dict[str, jax.Array]:
    """J and every intermediate by autodiff, named as `manual_bp.intermediates` names them."""
    shapes: dict[str, Any] = {}

    def record_shapes(name: str, value: jax.Array) -> jax.Array:
        shapes[name] = jax.ShapeDtypeStruct(value.shape, value.dtype)
        return value

    jax.eval_shape(
        lambda p, v: objective(network, loss, p, v, y, weights, record_shapes, taken), params, x
    )
    zeros = {name: jnp.zeros(each.shape, each.dtype) for name, each in shapes.items()}

    def run(params: Any, x: Any, zeros: dict[str, jax.Array]) -> Any:
        values = {}

        def add_zeros(name: str, value: jax.Array) -> jax.Array:
            values[name] = value
            return value + zeros[name]

        total, prediction = objective(network, loss, params, x, y, weights, add_zeros, taken)
        return total, (values, prediction)

    (total, (values, prediction)), (dparams, dx, dzeros) = jax.value_and_grad(
        run, argnums=(0, 1, 2), has_aux=True, allow_int=True
    )(params, x, zeros)
    named = {"J": total, "A0": x, **_stacked(values)}
    if dx.dtype != jax.dtypes.float0:  # tokens have no gradient
        named["dA0"] = dx
    named |= {f"d{name}": each for name, each in _stacked(dzeros).items()}
    named |= dict(named_gradients(network, loss, dparams))
    layers = network.children if isinstance(network, Sequential) else (network,)
    last, number = layers[-1], len(layers)
    if isinstance(last, Dense) and last.activation == type(last).activation:
        named[f"A{number}"] = specs.of_loss(loss).activation(prediction)
        del named[f"dA{number}"]
    return named


def _stacked(values: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The values of repeated steps, "Z1.1@0", "Z1.1@1", ..., as one array with the step first."""
    if not any("@" in name for name in values):
        return values
    found: dict[str, list[jax.Array]] = {}
    for name, value in values.items():  # the innermost step first
        found.setdefault(re.sub(r"@\d+(?!.*@)", "", name), []).append(value)
    return _stacked(
        {name: each[0] if name in values else jnp.stack(each) for name, each in found.items()}
    )


def named_gradients(network: Layer, loss: Loss, grads: Any) -> list[tuple[str, jax.Array]]:
    """Gradients of the network's parameters with their names, and of the loss's own."""
    if not loss.parametric:
        return named_params(network, grads)
    grads, own = grads
    of_the_loss = [(f"{name} of the loss", each) for name, each in _fields(own)]
    return named_params(network, grads) + of_the_loss


def named_params(layer: Layer, dparams: Any, place: str = "") -> list[tuple[str, jax.Array]]:
    """Gradients of parameters with their names, "dW1", "db1", "dW2.3", ..."""
    if isinstance(layer, Combinator):
        prefix = f"{place}." if place else ""
        dparams = dparams or ((),) * len(layer.children)  # tied elsewhere
        return [
            pair
            for number, (child, each) in enumerate(zip(layer.children, dparams, strict=True), 1)
            for pair in named_params(child, each, f"{prefix}{number}")
        ]
    return [(f"{name}{place or '1'}", each) for name, each in _fields(dparams)]


def _fields(dparams: Any) -> list[tuple[str, jax.Array]]:
    """Gradients by the names of their parameters; () is tied elsewhere, or isn't used."""
    fields = dparams._asdict() if hasattr(dparams, "_asdict") else {}
    return [(f"d{name}", each) for name, each in fields.items() if hasattr(each, "shape")]
