"""Spec of LinearRecurrence: a Python loop over time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from manual_bp.layers.linear_recurrence import LinearRecurrence, Params
from verify import recurrence
from verify.recurrence import logistic
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(
    layer: LinearRecurrence,
    params: Any,
    x: jax.Array,
    tap: Tap,
    mask: Any = None,
    state: Any = None,
) -> jax.Array:
    """One step after the other."""
    a = jax.nn.sigmoid(params.rate)
    s = jnp.sqrt(1 - a**2)
    first = jnp.zeros((x.shape[0], x.shape[2]), x.dtype) if state is None else state
    return recurrence.over_time(layer, lambda h, x: (a * h[0] + s * x,), x, (first,), mask)


def naive(
    layer: LinearRecurrence, params: Any, x: np.ndarray, mask: Any = None, state: Any = None
) -> np.ndarray:
    """One number at a time."""
    stays = [logistic(rate) for rate in params.rate]

    def step(state: Any, x: Any) -> Any:
        each = zip(stays, state[0], x, strict=True)
        return ([a * h + mp.sqrt(1 - a * a) * value for a, h, value in each],)

    first = recurrence.zeros_or(None if state is None else (state,), 1, len(stays))
    return recurrence.one_by_one(layer, step, x, first, mask)


def draw(rng: np.random.Generator, shape: Shape) -> LinearRecurrence | None:
    """With random settings; none but for sequences."""
    return LinearRecurrence(**recurrence.settings(rng)) if recurrence.fits(shape) else None


def by_hand(rate: jax.Array) -> jax.Array:
    """dν after one step from x = 1."""
    layer, params = LinearRecurrence(), Params(rate[None])
    one = jnp.ones((1, 1, 1), rate.dtype)
    _, residuals = layer.forward(params, one)
    return layer.backward(params, residuals, one)[0].rate[0]


PARAMS = Params(jnp.zeros(4))

SPECS = (
    LayerSpec(
        layer=LinearRecurrence,
        samples=(
            (LinearRecurrence(), (2, 5, 3)),
            (LinearRecurrence(masked=True, stateful=True), (3, 4, 2)),
            (LinearRecurrence(masked=True, stateful=True, reverse=True), (2, 3, 2)),
            (LinearRecurrence(reverse=True), (2, 2, 2)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=recurrence.shrink,
        edges=(
            Edge(
                function="linear recurrence, where nearly all stays",
                point=20.0,
                dtype="float32",
                stated=-3.21e-5,  # -a² s/(1 + a)
                manual=by_hand,
                autodiff=jax.grad(lambda rate: jnp.sqrt(1 - jax.nn.sigmoid(rate) ** 2)),
                recorded=jnp.nan,
            ),
        ),
        errors=(
            *recurrence.errors(LinearRecurrence, PARAMS),
            BadInput(
                "LinearRecurrence: one rate for all",
                lambda: LinearRecurrence().forward(Params(jnp.zeros(1)), jnp.zeros((2, 5, 4))),
                ValueError,
                ("LinearRecurrence()", "rate has shape (1,)", "expected (4,)", "not broadcast"),
            ),
            BadInput(
                "LinearRecurrence: a width for a setting",
                lambda: LinearRecurrence(64),  # pyright: ignore[reportCallIssue]
                TypeError,
                ("positional argument",),
            ),
        ),
    ),
)
