"""Spec of GRU: a Python loop over time, each gate with a product of its own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from manual_bp.layers.gru import GRU, Params
from verify import recurrence
from verify.recurrence import logistic, times_vector
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(
    layer: GRU, params: Any, x: jax.Array, tap: Tap, mask: Any = None, state: Any = None
) -> jax.Array:
    """One step after the other, one gate after the other."""
    n, (W, U, b, c) = layer.features, params
    gates = [[each[at * n : (at + 1) * n] for each in (W, U, b)] for at in range(3)]

    def step(state: Any, x: jax.Array) -> Any:
        (h,) = state
        of_x = [jnp.dot(x, jnp.transpose(W)) + b for W, _, b in gates]
        of_h = [jnp.dot(h, jnp.transpose(U)) for _, U, _ in gates]
        r, z = jax.nn.sigmoid(of_x[0] + of_h[0]), jax.nn.sigmoid(of_x[1] + of_h[1])
        candidate = jnp.tanh(of_x[2] + r * (of_h[2] + c))
        return ((1 - z) * candidate + z * h,)

    first = jnp.zeros((x.shape[0], n), x.dtype) if state is None else state
    return recurrence.over_time(layer, step, x, (first,), mask)


def naive(
    layer: GRU, params: Any, x: np.ndarray, mask: Any = None, state: Any = None
) -> np.ndarray:
    """One number at a time."""
    W, U, b, c = params
    n = layer.features

    def step(state: Any, x: Any) -> Any:
        (h,) = state
        p = [of_x + bias for of_x, bias in zip(times_vector(W, x), b, strict=True)]
        q, new = times_vector(U, h), []
        for unit in range(n):
            r, z = logistic(p[unit] + q[unit]), logistic(p[unit + n] + q[unit + n])
            candidate = mp.tanh(p[unit + 2 * n] + r * (q[unit + 2 * n] + c[unit]))
            new.append((1 - z) * candidate + z * h[unit])
        return (new,)

    first = recurrence.zeros_or(None if state is None else (state,), 1, n)
    return recurrence.one_by_one(layer, step, x, first, mask)


def draw(rng: np.random.Generator, shape: Shape) -> GRU | None:
    """A few units; none but for sequences."""
    if not recurrence.fits(shape):
        return None
    return GRU(int(rng.integers(1, 6)), **recurrence.settings(rng))


def by_hand(z: jax.Array) -> jax.Array:
    """The derivatives after the biases of the update gate and the candidate, h_0 = 1, others 0."""
    layer, none = GRU(1, stateful=True), jnp.zeros((3, 1), z.dtype)
    params = Params(none, none, jnp.zeros(3, z.dtype).at[1].set(z), jnp.zeros(1, z.dtype))
    one = jnp.ones((1, 1), z.dtype)
    _, residuals = layer.forward(params, jnp.zeros((1, 1, 1), z.dtype), state=one)
    return layer.backward(params, residuals, one[None])[0].b[1:]


PARAMS = Params(jnp.zeros((9, 4)), jnp.zeros((9, 3)), jnp.zeros(9), jnp.zeros(3))


def of_gate(both: jax.Array) -> jax.Array:
    """h after one step from h = 1, of the update gate's argument and the candidate's."""
    z = jax.nn.sigmoid(both[0])
    return (1 - z) * jnp.tanh(both[1]) + z


SPECS = (
    LayerSpec(
        layer=GRU,
        samples=(
            (GRU(2), (2, 3, 1)),
            (GRU(2, masked=True, stateful=True, reverse=True), (3, 3, 2)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=recurrence.shrink,
        edges=(
            Edge(
                function="GRU's update gate, where all stays",
                point=18.0,
                dtype="float32",
                stated=(1.52e-8, 1.52e-8),  # σ'(18) and 1 - σ(18)
                manual=by_hand,
                autodiff=lambda z: jax.grad(of_gate)(jnp.stack([z, jnp.zeros_like(z)])),
                recorded=(0.0, 0.0),
            ),
        ),
        errors=(
            *recurrence.errors(GRU, PARAMS, 3),
            BadInput(
                "GRU: c for three gates",
                lambda: GRU(3).forward(PARAMS._replace(c=jnp.zeros(9)), jnp.zeros((2, 5, 4))),
                ValueError,
                ("GRU(3)", "c has shape (9,)", "expected (3,)"),
            ),
        ),
    ),
)
