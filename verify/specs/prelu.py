"""Spec of PReLU: jax.nn.leaky_relu with a slope that is differentiated; or case by case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.prelu import Params, PReLU
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(layer: PReLU, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """jax.nn.leaky_relu, which is where(x >= 0, x, slope x)."""
    del layer, tap
    return jax.nn.leaky_relu(x, params.slope)


def naive(layer: PReLU, params: Any, x: np.ndarray) -> np.ndarray:
    """Number by number."""
    slopes = [params.slope.item()] * x.shape[-1] if layer.shared else list(params.slope)
    rows = [
        [each if each > 0 else s * each for each, s in zip(row, slopes, strict=True)]
        for row in x.reshape(-1, x.shape[-1])
    ]
    return np.array(rows, object).reshape(x.shape)


def draw(rng: np.random.Generator, shape: Shape) -> PReLU:
    """Slopes of its own for each channel, or one."""
    del shape
    return PReLU(shared=bool(rng.random() < 0.3))


def _edge(what: str, stated: float, recorded: float, of: Callable[[Any], Any]) -> Edge:
    """At x = 0 with slope 1/4 and dout 1: which of (dslope, dx)."""

    def manual(x: jax.Array) -> jax.Array:
        params = Params(jnp.full(1, 0.25, x.dtype))
        _, residuals = PReLU().forward(params, x.reshape(1, 1))
        dparams, dx = PReLU().backward(params, residuals, jnp.ones((1, 1), x.dtype))
        return of((dparams.slope, dx))

    def autodiff(x: jax.Array) -> jax.Array:
        return of(
            jax.grad(lambda s, v: jax.nn.leaky_relu(v, s), argnums=(0, 1))(
                jnp.asarray(0.25, x.dtype), x
            )
        )

    return Edge(what, 0.0, "float32", stated, manual, autodiff, recorded)


def _forward(layer: PReLU, slope: Any, dtype: Any = jnp.float32) -> Any:
    return lambda: layer.forward(Params(slope), jnp.zeros((5, 3), dtype))


SPECS = (
    LayerSpec(
        layer=PReLU,
        samples=(
            (PReLU(), (4, 3)),
            (PReLU(), (2, 2)),
            (PReLU(shared=True), (3, 2, 2)),
            (PReLU(0.1), (1, 2, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=lambda layer: iter((mbp.relu, mbp.identity)),
        exact=lambda layer: True,
        smooth=lambda layer: False,
        edges=(
            _edge("dPReLU/dx", 1.0, 1.0, lambda pair: pair[1]),
            _edge("dPReLU/dslope", 0.0, 0.0, lambda pair: pair[0]),
        ),
        errors=(
            BadInput(
                "one slope where each channel has its own",
                _forward(PReLU(), jnp.zeros(1)),
                ValueError,
                ("PReLU()", "slope has shape (1,)", "expected (3,)", "not broadcast"),
            ),
            BadInput(
                "a vector where one slope is shared",
                _forward(PReLU(shared=True), jnp.zeros(1)),
                ValueError,
                ("PReLU(shared=True)", "slope has shape (1,)", "expected ()"),
            ),
            BadInput(
                "an integer slope",
                _forward(PReLU(), jnp.zeros(3, jnp.int32)),
                TypeError,
                ("PReLU()", "slope must be a floating-point array", "int32"),
            ),
            BadInput(
                "params that aren't PReLU's",
                lambda: PReLU().forward(jnp.ones(3), jnp.zeros((5, 3))),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("PReLU()", "a field slope", "network.init"),
            ),
            BadInput(
                "integer x",
                _forward(PReLU(), jnp.zeros(3), jnp.int32),
                TypeError,
                ("PReLU()", "floating-point", "int32 (5, 3)"),
            ),
            BadInput(
                "a scalar x",
                lambda: PReLU().init(jax.random.key(0), jnp.zeros(())),
                ValueError,
                ("PReLU()", "x has shape ()", "expected (..., C)"),
            ),
            BadInput(
                "a slope that is NaN",
                lambda: PReLU(float("nan")),
                ValueError,
                ("PReLU's slope must be a finite number", "nan"),
            ),
            BadInput(
                "a number for shared",
                lambda: PReLU(shared=1),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("PReLU: shared must be a bool, got 1",),
            ),
        ),
    ),
)
