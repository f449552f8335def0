"""Spec of the table of activations: what jax.nn says they are, and textbook loops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from mpmath import mp

from manual_bp import activations as table
from manual_bp.activations import Activation
from verify.specification import LayerSpec, Shape, Tap

JAX: dict[type[Activation], Callable[..., Any]] = {
    table.Identity: lambda layer, z: z,
    table.Relu: lambda layer, z: jax.nn.relu(z),
    table.LeakyRelu: lambda layer, z: jax.nn.leaky_relu(z, layer.slope),
    table.Tanh: lambda layer, z: jax.nn.tanh(z),
    table.Sigmoid: lambda layer, z: jax.nn.sigmoid(z),
    table.Gelu: lambda layer, z: jax.nn.gelu(z, approximate=False),
    table.Silu: lambda layer, z: jax.nn.silu(z),
    table.Softplus: lambda layer, z: jax.nn.softplus(z),
}
"""The same functions from jax.nn."""

SCALAR: dict[type[Activation], Callable[..., Any]] = {
    table.Identity: lambda layer, z: z,
    table.Relu: lambda layer, z: max(z, 0),
    table.LeakyRelu: lambda layer, z: z if z > 0 else layer.slope * z,
    table.Tanh: lambda layer, z: mp.tanh(z),
    table.Sigmoid: lambda layer, z: 1 / (1 + mp.exp(-z)),
    table.Gelu: lambda layer, z: z / 2 * mp.erfc(-z / mp.sqrt(2)),
    table.Silu: lambda layer, z: z / (1 + mp.exp(-z)),
    table.Softplus: lambda layer, z: mp.log(1 + mp.exp(z)),
}
"""The same functions from their definitions, on one mpmath number."""

PIECEWISE_LINEAR = (table.Identity, table.Relu, table.LeakyRelu)


def draw_activation(rng: np.random.Generator) -> Activation:
    """Any activation, with random settings where it has some."""
    kind = list(JAX)[rng.integers(len(JAX))]
    if kind is table.LeakyRelu:
        return table.LeakyRelu(float(rng.choice([0.01, 0.125, 0.25])))
    return kind()


def reference(layer: Activation, z: jax.Array) -> jax.Array:
    """g(z) by jax.nn."""
    return JAX[type(layer)](layer, z)


def is_exact(layer: Activation) -> bool:
    """Whether g is piecewise polynomial with coefficients that floats hold."""
    return isinstance(layer, PIECEWISE_LINEAR)


def naive(layer: Activation, params: Any, z: np.ndarray) -> np.ndarray:
    """g(z), number by number."""
    del params
    return np.array([SCALAR[type(layer)](layer, each) for each in z.ravel()]).reshape(z.shape)


def _spec(kind: type[Activation]) -> LayerSpec:
    def draw(rng: np.random.Generator, shape: Shape) -> Activation:
        del shape
        drawn = draw_activation(rng)
        while type(drawn) is not kind:
            drawn = draw_activation(rng)
        return drawn

    def by_jax(layer: Activation, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
        del params, tap
        return reference(layer, x)

    return LayerSpec(
        layer=kind,
        samples=((kind(), (4, 3)), (kind(), (1, 1)), (kind(), (2, 3, 5))),
        reference=by_jax,
        naive=naive,
        draw=draw,
        shrink=lambda layer: iter(() if kind is table.Identity else (table.identity,)),
        exact=is_exact,
    )


SPECS = tuple(_spec(kind) for kind in JAX)
