"""Spec of Dense: one matrix product, one sum, one activation of jax.nn; or three loops."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.dense import Dense, Params
from verify.specification import BadInput, LayerSpec, Shape, Tap
from verify.specs import activations


def reference(layer: Dense, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """g(x Wᵀ + b) by jnp.dot and jax.nn."""
    W, b = params
    product = jnp.dot(x, jnp.transpose(W))
    z = tap("Z", product + b if layer.bias else product)
    return activations.reference(layer.activation, z)


def naive(layer: Dense, params: Any, x: np.ndarray) -> np.ndarray:
    """One number at a time."""
    W, b = params
    biases = b if layer.bias else [0 * weights[0] for weights in W]
    rows = x.reshape(-1, x.shape[-1])
    z = np.array(
        [
            [
                sum(w * a for w, a in zip(weights, row, strict=True)) + bias
                for weights, bias in zip(W, biases, strict=True)
            ]
            for row in rows
        ]
    ).reshape(*x.shape[:-1], len(W))
    return activations.naive(layer.activation, (), z)


def draw(rng: np.random.Generator, shape: Shape) -> Dense:
    """Mostly widths that differ from the input's, sometimes the same, sometimes 1."""
    kind = rng.random()
    if kind < 0.1:
        width = 1
    elif kind < 0.25:
        width = shape[-1]
    else:
        width = int(rng.integers(1, 97)) if rng.random() < 0.2 else int(rng.integers(2, 17))
    return Dense(width, activations.draw_activation(rng), bias=bool(rng.random() < 0.9))


def shrink(layer: Dense) -> Iterator[Dense]:
    """Fewer units, no activation, a bias."""
    if layer.features > 1:
        yield replace(layer, features=layer.features // 2)
        yield replace(layer, features=layer.features - 1)
    if layer.activation != mbp.identity:
        yield replace(layer, activation=mbp.identity)
    if not layer.bias:
        yield replace(layer, bias=True)


def _forward(layer: Dense, W: Any, b: Any, x: Any) -> Any:
    return lambda: layer.forward(Params(jnp.zeros(W), jnp.zeros(b)), jnp.zeros(x))


ERRORS = (
    BadInput(
        "x with the wrong number of features",
        _forward(Dense(3), (3, 4), (3,), (5, 7)),
        ValueError,
        ("Dense(3)", "x has shape (5, 7)", "expected (..., 4)"),
    ),
    BadInput(
        "x that is features x examples",
        _forward(Dense(3), (3, 4), (3,), (4, 5)),
        ValueError,
        ("x has shape (4, 5)", "expected (..., 4)", "x.T would fit", "manual_bp.formulas"),
    ),
    BadInput(
        "W that is (n_in, n_out)",
        _forward(Dense(3), (4, 3), (3,), (5, 4)),
        ValueError,
        ("Dense(3)", "W has shape (4, 3)", "expected (3, n_in)", "W.T would fit"),
    ),
    BadInput(
        "bias (1,)",
        _forward(Dense(3), (3, 4), (1,), (5, 4)),
        ValueError,
        ("b has shape (1,)", "expected (3,)", "not broadcast"),
    ),
    BadInput(
        "bias (n, 1), the notes' column",
        _forward(Dense(3), (3, 4), (3, 1), (5, 4)),
        ValueError,
        ("b has shape (3, 1)", "expected (3,)", "manual_bp.formulas", "b[:, 0]"),
    ),
    BadInput(
        "W with three axes",
        _forward(Dense(3), (3, 4, 1), (3,), (5, 4)),
        ValueError,
        ("W has shape (3, 4, 1)", "expected (n_out, n_in)"),
    ),
    BadInput(
        "a scalar x",
        _forward(Dense(3), (3, 4), (3,), ()),
        ValueError,
        ("x has shape ()", "expected (..., 4)"),
    ),
    BadInput(
        "integer x",
        lambda: Dense(3).forward(
            Params(jnp.zeros((3, 4)), jnp.zeros(3)), jnp.zeros((5, 4), jnp.int32)
        ),
        TypeError,
        ("Dense(3)", "floating-point", "int32 (5, 4)", "x.astype"),
    ),
    BadInput(
        "integer W",
        lambda: Dense(3).forward(
            Params(jnp.zeros((3, 4), jnp.int32), jnp.zeros(3)), jnp.zeros((5, 4))
        ),
        TypeError,
        ("Dense(3)", "W must be a floating-point array", "int32"),
    ),
    BadInput(
        "params that aren't Dense's",
        lambda: Dense(3).forward(
            (jnp.zeros((3, 4)), jnp.zeros(3)),  # pyright: ignore[reportArgumentType]
            jnp.zeros((5, 4)),
        ),
        TypeError,
        ("Dense(3)", "fields W and b", "got tuple", "network.init"),
    ),
    BadInput(
        "no bias where there should be one",
        lambda: Dense(3).forward(Params(jnp.zeros((3, 4)), ()), jnp.zeros((5, 4))),
        TypeError,
        ("Dense(3)", "b must be a floating-point array", "tuple"),
    ),
    BadInput(
        "a bias where there should be none",
        _forward(Dense(3, bias=False), (3, 4), (3,), (5, 4)),
        ValueError,
        ("Dense(3, bias=False)", "a bias b", "expected b=()", "bias=False"),
    ),
    BadInput(
        "a bias that is an array",
        lambda: Dense(3, bias=jnp.zeros(3)),  # pyright: ignore[reportArgumentType]
        TypeError,
        ("Dense(3)", "bias must be True or False", "among the params"),
    ),
    BadInput(
        "weights drawn without spread",
        lambda: Dense(3, initial_std=0.0),
        ValueError,
        ("Dense(3): initial_std", "a positive number or None", "0.0"),
    ),
    BadInput("no units", lambda: Dense(0), TypeError, ("features", "positive int", "0")),
    BadInput(
        "half a unit",
        lambda: Dense(2.5),  # pyright: ignore[reportArgumentType]
        TypeError,
        ("features", "positive int", "2.5"),
    ),
    BadInput(
        "a family instead of an activation",
        lambda: Dense(3, mbp.leaky_relu),  # pyright: ignore[reportArgumentType]
        TypeError,
        ("Dense(3)", "activation", "LeakyRelu", "call it"),
    ),
    BadInput(
        "a function instead of an activation",
        lambda: Dense(3, jnp.tanh),  # pyright: ignore[reportArgumentType]
        TypeError,
        ("Dense(3)", "activation of manual_bp", "manual_bp.relu"),
    ),
    BadInput(
        "inputs that aren't as stated, at init",
        lambda: Dense(3, inputs=4).init(jax.random.key(0), jnp.zeros((5, 7))),
        ValueError,
        ("Dense(3, inputs=4)", "x has shape (5, 7)", "expected (..., 4)"),
    ),
    BadInput(
        "inputs that aren't as stated, in W",
        _forward(Dense(3, inputs=4), (3, 7), (3,), (5, 7)),
        ValueError,
        ("Dense(3, inputs=4)", "W takes 7 inputs", "expected 4"),
    ),
)

SPECS = (
    LayerSpec(
        layer=Dense,
        samples=(
            (Dense(3, mbp.tanh), (5, 4)),
            (Dense(4, mbp.relu), (4, 4)),  # square everywhere: a missing transpose has a shape
            (Dense(1, mbp.identity), (3, 1)),
            (Dense(2, mbp.sigmoid), (1, 6)),
            (Dense(2, mbp.tanh, bias=False), (3, 4)),
            (Dense(3, mbp.leaky_relu(0.25)), (2, 3, 5)),  # a leading time axis
            (Dense(2, mbp.gelu), (2, 2, 3, 4)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: activations.is_exact(layer.activation),  # pyright: ignore[reportAttributeAccessIssue]
        errors=ERRORS,
    ),
)
