"""Activations as functions of z: `elementwise` of each in the table of manual_bp/activations.py."""

from __future__ import annotations

from typing import Any

import jax

from manual_bp import activations
from manual_bp.interop.elementwise import elementwise

gelu = elementwise(activations.gelu)
gelu_tanh = elementwise(activations.gelu_tanh)
hard_sigmoid = elementwise(activations.hard_sigmoid)
hard_silu = elementwise(activations.hard_silu)
hard_tanh = elementwise(activations.hard_tanh)
log_sigmoid = elementwise(activations.log_sigmoid)
mish = elementwise(activations.mish)
relu = elementwise(activations.relu)
relu6 = elementwise(activations.relu6)
selu = elementwise(activations.selu)
sigmoid = elementwise(activations.sigmoid)
silu = elementwise(activations.silu)
softplus = elementwise(activations.softplus)
softsign = elementwise(activations.softsign)
squared_relu = elementwise(activations.squared_relu)
tanh = elementwise(activations.tanh)


def celu(z: Any, alpha: float = 1.0) -> jax.Array:
    """z where z > 0, alpha (e^{z/alpha} - 1) elsewhere; alpha is a Python number."""
    return elementwise(activations.celu(alpha))(z)


def elu(z: Any, alpha: float = 1.0) -> jax.Array:
    """z where z > 0, alpha (e^z - 1) elsewhere; alpha is a Python number."""
    return elementwise(activations.elu(alpha))(z)


def leaky_relu(z: Any, slope: float = 0.01) -> jax.Array:
    """z where z > 0, slope z elsewhere; slope is a Python number."""
    return elementwise(activations.leaky_relu(slope))(z)


def squareplus(z: Any, b: float = 4.0) -> jax.Array:
    """(z + √(z² + b)) / 2; b is a Python number."""
    return elementwise(activations.squareplus(b))(z)
