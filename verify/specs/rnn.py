"""Spec of RNN: a Python loop over time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.rnn import RNN, Params
from verify import recurrence
from verify.recurrence import times_vector
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap
from verify.specs import activations


def reference(
    layer: RNN, params: Any, x: jax.Array, tap: Tap, mask: Any = None, state: Any = None
) -> jax.Array:
    """One step after the other, each as two products and a bias."""
    W, U, b = params

    def step(state: Any, x: jax.Array) -> Any:
        (h,) = state
        z = jnp.dot(x, jnp.transpose(W)) + jnp.dot(h, jnp.transpose(U)) + b
        return (activations.reference(layer.activation, z),)

    first = jnp.zeros((x.shape[0], layer.features), x.dtype) if state is None else state
    return recurrence.over_time(layer, step, x, (first,), mask)


def naive(
    layer: RNN, params: Any, x: np.ndarray, mask: Any = None, state: Any = None
) -> np.ndarray:
    """One number at a time."""
    W, U, b = params

    def step(state: Any, x: Any) -> Any:
        sums = zip(times_vector(W, x), times_vector(U, state[0]), b, strict=True)
        z = np.array([of_x + of_h + bias for of_x, of_h, bias in sums])
        return (list(activations.naive(layer.activation, (), z)),)

    first = recurrence.zeros_or(None if state is None else (state,), 1, layer.features)
    return recurrence.one_by_one(layer, step, x, first, mask)


ACTIVATIONS = (mbp.tanh, mbp.tanh, mbp.relu, mbp.identity, mbp.hard_tanh, mbp.sigmoid)


def draw(rng: np.random.Generator, shape: Shape) -> RNN | None:
    """A few units; none but for sequences."""
    if not recurrence.fits(shape):
        return None
    activation = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
    return RNN(int(rng.integers(1, 7)), activation, **recurrence.settings(rng))


def shrink(layer: RNN) -> Iterator[RNN]:
    """Simpler settings."""
    yield from recurrence.shrink(layer)
    if layer.activation != mbp.identity:
        yield RNN(layer.features, mbp.identity)


def by_hand(x: jax.Array) -> jax.Array:
    """dx of one step with W = 1 and U = 0."""
    layer, one, none = RNN(1), jnp.ones((1, 1), x.dtype), jnp.zeros(1, x.dtype)
    params = Params(one, none[None], none)
    _, residuals = layer.forward(params, x.reshape(1, 1, 1))
    return layer.backward(params, residuals, one[None])[1].reshape(())


PARAMS = Params(jnp.zeros((3, 4)), jnp.zeros((3, 3)), jnp.zeros(3))

SPECS = (
    LayerSpec(
        layer=RNN,
        samples=(
            (RNN(3), (2, 3, 4)),
            (RNN(2, mbp.relu, masked=True, stateful=True), (3, 3, 2)),
            (RNN(3, masked=True, stateful=True, reverse=True), (2, 4, 2)),
            (RNN(2, mbp.identity, stateful=True), (2, 2, 2)),  # square everywhere
            (RNN(2, mbp.hard_tanh, reverse=True), (1, 2, 3)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: activations.is_exact(layer.activation),  # pyright: ignore[reportAttributeAccessIssue]
        smooth=lambda layer: type(layer.activation) not in activations.KINKED,  # pyright: ignore[reportAttributeAccessIssue]
        edges=(
            Edge(
                function="RNN of one step, saturated",
                point=10.0,
                dtype="float32",
                stated=8.24e-9,  # sech²(10)
                manual=by_hand,
                autodiff=jax.grad(jnp.tanh),
                recorded=0.0,
            ),
        ),
        errors=(
            *recurrence.errors(RNN, PARAMS, 3),
            BadInput(
                "RNN: a function instead of an activation",
                lambda: RNN(3, jnp.tanh),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("RNN(3)", "activation of manual_bp", "manual_bp.relu"),
            ),
            BadInput(
                "RNN: U that isn't square",
                lambda: RNN(3).forward(PARAMS._replace(U=jnp.zeros((3, 4))), jnp.zeros((2, 5, 4))),
                ValueError,
                ("RNN(3)", "U has shape (3, 4)", "expected (3, 3)"),
            ),
        ),
    ),
)
