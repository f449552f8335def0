"""Spec of LSTM: a Python loop over time, each gate with a product of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from manual_bp.layers.lstm import LSTM, Params, State
from verify import recurrence
from verify.recurrence import logistic, times_vector
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(
    layer: LSTM, params: Any, x: jax.Array, tap: Tap, mask: Any = None, state: Any = None
) -> jax.Array:
    """One step after the other, one gate after the other."""
    n = layer.features
    gates = [[each[at * n : (at + 1) * n] for each in params] for at in range(4)]

    def step(state: Any, x: jax.Array) -> Any:
        h, c = state
        i, f, g, o = (
            jnp.dot(x, jnp.transpose(W)) + jnp.dot(h, jnp.transpose(U)) + b for W, U, b in gates
        )
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return jax.nn.sigmoid(o) * jnp.tanh(c), c

    zeros = jnp.zeros((x.shape[0], n), x.dtype)
    return recurrence.over_time(layer, step, x, state or (zeros, zeros), mask)


def naive(
    layer: LSTM, params: Any, x: np.ndarray, mask: Any = None, state: Any = None
) -> np.ndarray:
    """One number at a time."""
    W, U, b = params
    n = layer.features

    def step(state: Any, x: Any) -> Any:
        h, c = state
        sums = zip(times_vector(W, x), times_vector(U, h), b, strict=True)
        z = [of_x + of_h + bias for of_x, of_h, bias in sums]
        new_h, new_c = [], []
        for unit in range(n):
            i, f, o = (logistic(z[unit + gate * n]) for gate in (0, 1, 3))
            new_c.append(f * c[unit] + i * mp.tanh(z[unit + 2 * n]))
            new_h.append(o * mp.tanh(new_c[-1]))
        return new_h, new_c

    return recurrence.one_by_one(layer, step, x, recurrence.zeros_or(state, 2, n), mask)


def draw(rng: np.random.Generator, shape: Shape) -> LSTM | None:
    """A few units; none but for sequences."""
    if not recurrence.fits(shape):
        return None
    return LSTM(int(rng.integers(1, 6)), **recurrence.settings(rng))


def by_hand(z: jax.Array) -> jax.Array:
    """The derivative after the forget gate's bias, with c = 1 and all other numbers 0."""
    layer, none = LSTM(1, stateful=True), jnp.zeros((4, 1), z.dtype)
    params, x = (
        Params(none, none, jnp.zeros(4, z.dtype).at[1].set(z)),
        jnp.zeros((1, 1, 1), z.dtype),
    )
    state = State(jnp.zeros((1, 1), z.dtype), jnp.ones((1, 1), z.dtype))
    out, residuals = layer.forward(params, x, state=state)
    return layer.backward(params, residuals, jnp.ones_like(out))[0].b[1]


PARAMS = Params(jnp.zeros((12, 4)), jnp.zeros((12, 3)), jnp.zeros(12))


def _with_state(state: Any) -> Any:
    return lambda: LSTM(3, stateful=True).forward(PARAMS, jnp.zeros((2, 5, 4)), state=state)


SPECS = (
    LayerSpec(
        layer=LSTM,
        samples=(
            (LSTM(2), (2, 3, 1)),
            (LSTM(2, masked=True, stateful=True, reverse=True), (3, 3, 2)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=recurrence.shrink,
        edges=(
            Edge(
                function="LSTM's forget gate, open",
                point=18.0,
                dtype="float32",
                stated=3.20e-9,  # ½ sech²(σ(18)) σ'(18)
                manual=by_hand,
                autodiff=jax.grad(lambda z: 0.5 * jnp.tanh(jax.nn.sigmoid(z))),
                recorded=0.0,
            ),
        ),
        errors=(
            *recurrence.errors(LSTM, PARAMS, 3),
            BadInput(
                "LSTM: h alone as state",
                _with_state(jnp.zeros((2, 3))),
                TypeError,
                ("LSTM(3, stateful=True)", "state must be its State(h, c)", "Array"),
            ),
            BadInput(
                "LSTM: c of another batch",
                _with_state(State(jnp.zeros((2, 3)), jnp.zeros((4, 3)))),
                ValueError,
                ("LSTM(3, stateful=True)", "state.c has shape (4, 3)", "expected (2, 3)"),
            ),
            BadInput(
                "LSTM: h of integers",
                _with_state(State(jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 3)))),
                TypeError,
                ("state.h must be a floating-point array", "int32"),
            ),
            BadInput(
                "LSTM: params of three gates",
                lambda: LSTM(4).forward(PARAMS, jnp.zeros((2, 5, 4))),
                ValueError,
                ("LSTM(4)", "W has shape (12, 4)", "expected (16, 4)"),
            ),
        ),
    ),
)
