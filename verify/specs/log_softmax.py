"""Spec of LogSoftmax: x - jax.nn.logsumexp(x); or the logarithm of softmax."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.log_softmax import LogSoftmax
from verify.specification import LayerSpec, Tap
from verify.specs.softmax import INF, NAN, bad_axes, distribution, drawn, edge


def reference(layer: LogSoftmax, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """jax.nn.log_softmax."""
    del params, tap
    return jax.nn.log_softmax(x, axis=layer.axis)


def naive(layer: LogSoftmax, params: Any, x: np.ndarray) -> np.ndarray:
    """The logarithm of softmax: in 30 digits nothing is 0."""
    del params
    log = np.frompyfunc(mp.log, 1, 1)
    return log(distribution(layer, x))


EDGES = (
    edge(
        *(LogSoftmax(), "log(softmax(x))", (0.0, 200.0), (1.0, 0.0)),
        *((1.0, -1.0), lambda v: jnp.log(jax.nn.softmax(v)), (NAN, NAN)),
    ),
    edge(
        *(LogSoftmax(), "log_softmax(x)", (0.0, 200.0), (1.0, 0.0)),
        *((1.0, -1.0), jax.nn.log_softmax, (1.0, -1.0)),
    ),
    edge(
        *(LogSoftmax(), "log_softmax, a class ruled out", (-INF, 0.0, 0.0), (0.0, 1.0, 0.0)),
        *((0.0, 0.5, -0.5), jax.nn.log_softmax, (0.0, 0.5, -0.5)),
    ),
    edge(
        *(LogSoftmax(), "log_softmax, every class ruled out: none", (-INF, -INF), (1.0, 2.0)),
        *((NAN, NAN), jax.nn.log_softmax, (NAN, NAN)),
    ),
)

SPECS = (
    LayerSpec(
        layer=LogSoftmax,
        samples=(
            (LogSoftmax(), (3, 4)),
            (LogSoftmax(), (2, 2)),
            (LogSoftmax(-2), (2, 3, 2)),
            (LogSoftmax(), (1, 2, 1)),  # a single class
        ),
        reference=reference,
        naive=naive,
        draw=drawn(LogSoftmax),
        shrink=lambda layer: iter((mbp.identity,)),
        edges=EDGES,
        errors=bad_axes(LogSoftmax, "LogSoftmax"),
    ),
)
