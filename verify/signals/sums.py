"""Clipped sums, moments, noise scale: from one example's gradient at a time by jax.grad."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from manual_bp.signals.moments import cosines_of
from verify.networks import Shape
from verify.rules import Rule, numbers
from verify.signals.cases import objective, of_signal, one_by_one

CLIP = 0.75
"""Between the norms of the cases' gradients: some are clipped, some aren't."""

DENSE = mbp.sequential(mbp.Dense(2, mbp.relu), mbp.Dense(2))
TIED = mbp.tied(mbp.sequential(mbp.Dense(2, mbp.relu), mbp.Dense(2)), ((0, "W"), (1, "W")))
CONV = mbp.sequential(mbp.Conv(2, 2), mbp.Flatten(), mbp.Dense(1))
STACK = mbp.sequential(mbp.stack(mbp.Dense(2, mbp.relu), 2), mbp.Dense(1))
TOKENS = mbp.sequential(mbp.Embedding(3, 2), mbp.Dense(2, bias=False))

CASES: tuple[tuple[Layer, Loss, Shape], ...] = (
    (DENSE, mbp.SquaredError(), (3, 2)),
    (TIED, mbp.SquaredError(), (3, 2)),
    (CONV, mbp.SquaredError(), (2, 3, 1)),
    (STACK, mbp.SquaredError(), (3, 2)),
    (TOKENS, mbp.SquaredError(), (2, 2)),
)


SMOOTH: tuple[tuple[Layer, Loss, Shape], ...] = (
    (
        mbp.sequential(mbp.stack(mbp.Dense(2, mbp.tanh), 2), mbp.Dense(1)),
        mbp.SquaredError(),
        (3, 2),
    ),
    (
        mbp.tied(mbp.sequential(mbp.Dense(2, mbp.tanh), mbp.Dense(2)), ((0, "W"), (1, "W"))),
        mbp.SquaredError(),
        (2, 2, 2),
    ),
)
"""Where numbers are drawn at random, and of no example is the gradient 0: cosines are 0/0 there."""


def rules() -> list[Rule]:
    """Of every case, each signal by itself."""
    settings = {
        "ClippedGrads": (clipped, clipped_by_definition, CASES, False),
        "GradientMoments": (moments, moments_by_definition, CASES, True),
        "GradientNoise": (noise, noise_by_definition, SMOOTH, False),
    }
    found = [
        of_signal(
            family,
            network,
            loss,
            shape,
            functools.partial(ours, network=network, loss=loss),
            functools.partial(theirs, network=network, loss=loss),
            exact=exact,
            # of moments not: drawn weights may be 0, and too few examples count
            weighted=family == "ClippedGrads" and number == 1,
        )
        for family, (ours, theirs, cases, exact) in settings.items()
        for number, (network, loss, shape) in enumerate(cases)
    ]
    return [
        replace(rule, draw=functools.partial(_at_random, rule))
        if rule.family == "GradientNoise"
        else rule
        for rule in (*found, of_cosines())
    ]


def _at_random(rule: Rule, rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
    return rule.draw(rng, "normal")


def each_by_autodiff(
    network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> Any:
    """g_i, by jax.grad of each example by itself."""

    def gradient(params: Any, x: Any, y: Any, weights: Any, taken: Any) -> Any:
        return jax.grad(objective(network, loss, **taken))(params, x, y, weights)

    return one_by_one(gradient, params, x, y, weights, taken)


def in_rows(grads: Any) -> jax.Array:
    """All parameters' gradients side by side, a row for each example."""
    leaves = jax.tree.leaves(grads)
    return jnp.concatenate([each.reshape(len(each), -1) for each in leaves], axis=1)


def over(values: jax.Array, lengths: jax.Array) -> jax.Array:
    """values / lengths, 0 where the length is."""
    return jnp.where(lengths == 0, 0, values / jnp.where(lengths == 0, 1, lengths))


def clipped(params: Any, x: Any, y: Any, weights: Any, **settings: Any) -> Any:
    """What manual_bp makes of it."""
    step = mbp.clipped_pass(params, x, y, clip=CLIP, weights=weights, **settings)
    return {"grads": step.grads, "norms": step.norms}


def clipped_by_definition(
    params: Any, x: Any, y: Any, weights: Any, *, network: Layer, loss: Loss, **taken: Any
) -> Any:
    """Σ_i min(1, C/‖g_i‖) g_i."""
    grads = each_by_autodiff(network, loss, params, x, y, weights, taken)
    norms = jnp.sqrt((in_rows(grads) ** 2).sum(1))
    shares = jnp.where(norms <= CLIP, 1, CLIP / jnp.where(norms <= CLIP, 1, norms))
    return {
        "grads": jax.tree.map(lambda each: jnp.tensordot(shares, each, 1), grads),
        "norms": norms,
    }


def moments(params: Any, x: Any, y: Any, weights: Any, **settings: Any) -> Any:
    """What manual_bp makes of it."""
    return mbp.gradient_moments(params, x, y, weights=weights, **settings)._asdict()


def moments_by_definition(
    params: Any, x: Any, y: Any, weights: Any, *, network: Layer, loss: Loss, **taken: Any
) -> Any:
    """Mean, mean square, and variance over m - 1."""
    grads = each_by_autodiff(network, loss, params, x, y, weights, taken)
    definitions: dict[str, Callable[[jax.Array], jax.Array]] = {
        "mean": lambda each: each.mean(0),
        "second_moment": lambda each: (each**2).mean(0),
        "variance": lambda each: ((each - each.mean(0)) ** 2).sum(0) / (len(each) - 1),
    }
    return {name: jax.tree.map(of_each, grads) for name, of_each in definitions.items()}


def noise(params: Any, x: Any, y: Any, weights: Any, **settings: Any) -> Any:
    """What manual_bp makes of it, but for the ratio, whose divisor may be 0 within its bound."""
    found = mbp.gradient_noise(params, x, y, weights=weights, **settings)
    return found._asdict() | {"noise_scale": found.noise_scale * found.squared_norm}


def noise_by_definition(
    params: Any, x: Any, y: Any, weights: Any, *, network: Layer, loss: Loss, **taken: Any
) -> Any:
    """tr Σ over the rows' variances; ‖ḡ‖² less its noise; cosines to the mean."""
    rows = in_rows(each_by_autodiff(network, loss, params, x, y, weights, taken))
    mean, norms = rows.mean(0), jnp.sqrt((rows**2).sum(1))
    trace = ((rows - mean) ** 2).sum() / (len(rows) - 1)
    squared_norm = (mean**2).sum() - trace / len(rows)
    return {
        "noise_scale": trace,
        "trace": trace,
        "squared_norm": squared_norm,
        "norms": norms,
        "similarities": over(rows @ mean, norms * jnp.sqrt((mean**2).sum())),
    }


def of_cosines() -> Rule:
    """Cosines from a Gram matrix: the matrix itself is judged where it is made."""

    def draw(rng: np.random.Generator, kind: str) -> tuple[Any, ...]:
        rows = numbers(rng, "large" if kind == "large" else "normal", (3, 2))
        return (rows @ rows.T,)

    def definition(gram: jax.Array) -> jax.Array:
        lengths = jnp.sqrt(jnp.stack([gram[i, i] for i in range(len(gram))]))
        return over(over(gram, lengths[:, None]), lengths)

    return Rule(
        "CosineSimilarities of a Gram matrix",
        "CosineSimilarities",
        lambda gram: {"dcosines": cosines_of(gram)},
        lambda gram: {"dcosines": definition(gram)},
        draw,
    )
