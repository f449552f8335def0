"""Spec of Softmax: jax.nn.softmax; or exponentials over their sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.softmax import Softmax
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap

NAN, INF = float("nan"), float("inf")


def reference(layer: Softmax, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """jax.nn.softmax."""
    del params, tap
    return jax.nn.softmax(x, axis=layer.axis)


def distribution(layer: Any, x: np.ndarray) -> np.ndarray:
    """e^x over its sum, vector by vector."""
    moved = np.moveaxis(x, layer.axis, -1)
    rows = []
    for row in moved.reshape(-1, moved.shape[-1]):
        powers = [mp.exp(each) for each in row]
        total = sum(powers)
        rows.append([each / total for each in powers])
    return np.moveaxis(np.array(rows, object).reshape(moved.shape), -1, layer.axis)


def naive(layer: Softmax, params: Any, x: np.ndarray) -> np.ndarray:
    """As the formula has it, with no maximum subtracted."""
    del params
    return distribution(layer, x)


def drawn(kind: Callable[..., Any]) -> Callable[..., Any]:
    """Mostly the last axis, where there are others another one."""

    def draw(rng: np.random.Generator, shape: Shape) -> Any:
        return kind(-int(rng.integers(1, len(shape)))) if rng.random() < 0.3 else kind()

    return draw


def bad_axes(kind: Callable[..., Any], name: str) -> tuple[BadInput, ...]:
    """What Softmax and LogSoftmax must refuse alike."""
    return (
        BadInput(
            "an axis counted from the front",
            lambda: kind(1),
            ValueError,
            (f"{name}: axis must be a negative int", "got 1", "the last one is -1"),
        ),
        BadInput(
            "two axes",
            lambda: kind((-1, -2)),
            TypeError,
            (f"{name}: axis must be a negative int", "got (-1, -2)"),
        ),
        BadInput(
            "the axis of examples",
            lambda: kind(-2).forward((), jnp.zeros((5, 3))),
            ValueError,
            (f"{name}(-2)", "x has shape (5, 3)", "examples first and 2 more axes"),
        ),
        BadInput(
            "integers",
            lambda: kind().init(jax.random.key(0), jnp.zeros((5, 3), jnp.int32)),
            TypeError,
            (f"{name}()", "floating-point", "int32 (5, 3)"),
        ),
    )


def edge(
    layer: Any, what: str, point: Any, dout: Any, stated: Any, idiom: Any, recorded: Any
) -> Edge:
    """dx of one vector for this dout, beside autodiff of an idiom."""

    def manual(x: jax.Array) -> jax.Array:
        _, residuals = layer.forward((), x[None])
        return layer.backward((), residuals, jnp.array([dout], x.dtype))[1][0]

    def autodiff(x: jax.Array) -> jax.Array:
        return jax.grad(lambda v: jnp.vdot(jnp.array(dout, v.dtype), idiom(v)))(x)

    return Edge(what, point, "float32", stated, manual, autodiff, recorded)


EDGES = (
    edge(
        *(Softmax(), "softmax with a class ruled out", (-INF, 0.0, 0.0), (1.0, 2.0, 3.0)),
        *((0.0, -0.25, 0.25), jax.nn.softmax, (0.0, -0.25, 0.25)),
    ),
    edge(
        *(Softmax(), "softmax with every class ruled out: none", (-INF, -INF), (1.0, 2.0)),
        *((NAN, NAN), jax.nn.softmax, (NAN, NAN)),
    ),
    edge(
        *(Softmax(), "softmax by exp(x) / sum(exp(x))", (100.0, 95.0), (0.0, 1.0)),
        *((-0.00665, 0.00665), lambda v: jnp.exp(v) / jnp.sum(jnp.exp(v)), (NAN, NAN)),
    ),
)

SPECS = (
    LayerSpec(
        layer=Softmax,
        samples=(
            (Softmax(), (3, 4)),
            (Softmax(), (2, 2)),
            (Softmax(-2), (2, 3, 2)),
            (Softmax(), (1, 2, 1)),  # a single class
        ),
        reference=reference,
        naive=naive,
        draw=drawn(Softmax),
        shrink=lambda layer: iter((mbp.identity,)),
        edges=EDGES,
        errors=bad_axes(Softmax, "Softmax"),
    ),
)
