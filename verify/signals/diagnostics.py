"""Diagnostics: from the intermediates of the judge's own network and jax.grad of jax.nn's g."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.activation import Activation, Gated
from manual_bp.layer import Layer, Loss
from manual_bp.signals.diagnostics import shares as mbp_shares
from verify import reference
from verify.networks import Shape
from verify.rules import Rule, flat, numbers
from verify.signals.cases import of_signal
from verify.specs.activations import JAX

RELU = mbp.mlp([3, 3, 2])
LAYERS = mbp.sequential(mbp.Dense(3), mbp.relu6, mbp.Conv(2, 2, padding="VALID"), mbp.squared_relu)
STACK = mbp.sequential(mbp.stack(mbp.skip(mbp.Dense(2, mbp.relu)), 2), mbp.Dense(2))
TIED = mbp.tied(mbp.sequential(mbp.Dense(2, mbp.leaky_relu()), mbp.Dense(2)), ((0, "W"), (1, "W")))

CASES: tuple[tuple[Layer, Loss, Shape, bool], ...] = (
    (RELU, mbp.SoftmaxCrossEntropy(), (2, 3), False),
    (LAYERS, mbp.SquaredError(), (2, 3, 2), True),
    (STACK, mbp.SquaredError(), (2, 2), False),
    (TIED, mbp.SquaredError(), (3, 2), False),
)
EXACT = (mbp.softsign, mbp.hard_silu, mbp.relu)
"""Whose shares are judged in fractions: at its edge an entry is saturated or isn't, and error
bounds take both for right."""
RATE = 0.125
OFF_ZERO = 3.25
"""Added to params before the step whose ratio is judged: that of a bias of 0 is infinite."""
LARGEST: dict[str, float] = {"softsign": 1, "hard_silu": 3 / 2}
"""The largest |g'| of those that saturate."""
FLAT = ("relu", "relu6", "squared_relu", "hard_silu")
"""Those whose units can be dead."""


def rules() -> list[Rule]:
    """Of every case, and of the shares of an activation by themselves."""
    whole = [
        of_signal(
            "Diagnostics",
            network,
            loss,
            shape,
            functools.partial(diagnostics, network=network, loss=loss),
            functools.partial(by_definition, network=network, loss=loss),
            weighted=weighted,
        )
        for network, loss, shape, weighted in CASES
    ]
    return whole + [of_activation(g, (2, 4)) for g in EXACT]


def of_activation(g: Activation, shape: Shape) -> Rule:
    """The rule of the shares of dead units and saturated entries, from what g keeps."""
    gated = isinstance(g, Gated)

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        z = numbers(rng, kind, shape)
        return (z > 0 if gated else z / 8 * LARGEST[repr(g)],)  # some at 1/16 of the largest

    def manual(kept: Any) -> Any:
        return flat("", mbp_shares(g, kept, jnp.zeros(shape)))

    return Rule(
        name=f"shares of {g!r} on {shape}",
        family="Diagnostics",
        manual=manual,
        autodiff=lambda kept: flat("", of_slopes(g, jnp.where(kept, 1, 0) if gated else kept)),
        draw=draw,
        exact=True,
        omitted={"L4 bounds": "at its edge an entry is saturated or isn't: fractions judge that"},
    )


def diagnostics(params: Any, x: Any, y: Any, weights: Any, **settings: Any) -> Any:
    """What manual_bp makes of it, the gradient among it, for a step against the gradient."""
    step = mbp.diagnosed_pass(params, x, y, weights=weights, **settings)
    network = settings["network"]
    before = jax.tree.map(lambda leaf: leaf + OFF_ZERO, params)
    updated = jax.tree.map(lambda leaf, grad: leaf - RATE * grad, before, step.grads)
    return {
        **step.diagnostics,
        **mbp.gradient_norms(step.grads, network=network),
        **mbp.update_ratios(before, updated, network=network),
        **dict(reference.named_gradients(network, settings["loss"], step.grads)),
        "J": step.loss,
    }


def by_definition(
    params: Any, x: Any, y: Any, weights: Any, *, network: Layer, loss: Loss, **taken: Any
) -> Any:
    """The same from every intermediate."""
    steps = reference.intermediates(network, loss, params, x, y, weights, taken)
    depths = {"1.": 2} if network is STACK else {}
    found = {"J": steps["J"]}

    def length(value: Any, place: str) -> Any:
        repeated = any(place.startswith(start) for start in depths)
        axes = tuple(range(int(repeated), value.ndim))
        return jnp.sqrt((value**2).sum(axes))

    for place, layer in leaves(network):
        error = "dZ" if isinstance(layer, mbp.Dense) else "dout"
        found[f"norm/{error}{place}"] = length(steps[f"{error}{place}"], place)
        if isinstance(layer, mbp.Dense):
            g, z, out = layer.activation, steps[f"Z{place}"], "A"
        elif isinstance(layer, Activation):
            below = steps.get(f"A{int(place) - 1}", steps.get(f"out{int(place) - 1}"))
            g, z, out = layer, below, "out"
        else:
            continue
        repeated = any(place.startswith(start) for start in depths)
        of_step = functools.partial(shares, g)
        shown = jax.vmap(of_step)(z) if repeated else of_step(z)
        found |= {f"{name}/{out}{place}": share for name, share in shown.items()}
    for name, param in reference.named_params(network, params):
        grad, place = steps[name], name.lstrip("dWb")
        found[name], found[f"norm/{name}"] = grad, length(grad, place)
        moved = length(RATE * grad, place)
        found[f"update/{name[1:]}"] = jnp.where(
            moved == 0, 0, moved / length(param + OFF_ZERO, place)
        )
    return found


def leaves(network: Layer, place: str = "") -> list[tuple[str, Layer]]:
    """Every layer that isn't made of layers, with its place."""
    children = getattr(network, "children", None)
    if children is None:
        return [(place, network)]
    prefix = f"{place}." if place else ""
    return [each for n, child in enumerate(children, 1) for each in leaves(child, f"{prefix}{n}")]


def shares(g: Activation, z: Any) -> dict[str, Any]:
    """Dead units and saturated entries, with g' by jax.grad."""
    each = jax.vmap(jax.grad(lambda z: JAX[type(g)](g, z)))
    return of_slopes(g, each(z.reshape(-1)).reshape(z.shape))


def of_slopes(g: Activation, slopes: Any) -> dict[str, Any]:
    """Dead units and saturated entries, from g'(Z)."""
    found = {}
    if repr(g) in FLAT:
        units = slopes.reshape(-1, slopes.shape[-1])
        found["dead"] = jnp.mean(jnp.prod(jnp.where(units == 0, 1.0, 0.0), axis=0))
    if repr(g) in LARGEST:
        found["saturated"] = jnp.mean(jnp.where(jnp.abs(slopes) < LARGEST[repr(g)] / 16, 1.0, 0.0))
    return found
