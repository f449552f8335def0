"""Activations by the names that flax.nnx has for them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.nnx as nnx

from manual_bp import activations
from manual_bp.activation import Activation

_exact_gelu = functools.partial(nnx.gelu, approximate=False)

FUNCTIONS: dict[Activation, Callable[..., Any]] = {
    activations.relu: nnx.relu,
    activations.relu6: nnx.relu6,
    activations.leaky_relu(): nnx.leaky_relu,
    activations.elu(): nnx.elu,
    activations.celu(): nnx.celu,
    activations.selu: nnx.selu,
    activations.sigmoid: nnx.sigmoid,
    activations.log_sigmoid: nnx.log_sigmoid,
    activations.hard_sigmoid: nnx.hard_sigmoid,
    activations.hard_silu: nnx.hard_silu,
    activations.hard_tanh: nnx.hard_tanh,
    activations.tanh: nnx.tanh,
    activations.softsign: nnx.soft_sign,
    activations.softplus: nnx.softplus,
    activations.silu: nnx.silu,
    activations.gelu_tanh: nnx.gelu,  # whose approximate is true unless told otherwise
    activations.gelu: _exact_gelu,
    activations.identity: nnx.identity,
}
"""flax's name of each activation."""

ACTIVATIONS: dict[Any, Activation] = {
    **{function: activation for activation, function in FUNCTIONS.items()},
    nnx.swish: activations.silu,
    nnx.hard_swish: activations.hard_silu,
}
"""The activation of each function, flax's and ours."""
