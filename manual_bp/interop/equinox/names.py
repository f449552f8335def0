"""Activations by the names that equinox's users have for them, those of jax.nn."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from manual_bp import activations
from manual_bp.activation import Activation
from manual_bp.interop import functions

FUNCTIONS: dict[Activation, Callable[..., Any]] = {
    activations.relu: jax.nn.relu,
    activations.relu6: jax.nn.relu6,
    activations.leaky_relu(): jax.nn.leaky_relu,
    activations.elu(): jax.nn.elu,
    activations.celu(): jax.nn.celu,
    activations.selu: jax.nn.selu,
    activations.sigmoid: jax.nn.sigmoid,
    activations.log_sigmoid: jax.nn.log_sigmoid,
    activations.hard_sigmoid: jax.nn.hard_sigmoid,
    activations.hard_silu: jax.nn.hard_silu,
    activations.hard_tanh: jax.nn.hard_tanh,
    activations.tanh: jax.nn.tanh,
    activations.softsign: jax.nn.soft_sign,
    activations.softplus: jax.nn.softplus,
    activations.squareplus(): jax.nn.squareplus,
    activations.mish: jax.nn.mish,
    activations.silu: jax.nn.silu,
    activations.gelu_tanh: jax.nn.gelu,  # whose approximate is true unless told otherwise
    activations.gelu: functools.partial(jax.nn.gelu, approximate=False),
    activations.identity: jax.nn.identity,
}
"""jax.nn's name of each activation."""

ACTIVATIONS: dict[Any, Activation] = {
    **{function: activation for activation, function in FUNCTIONS.items()},
    functions.relu: activations.relu,
    functions.relu6: activations.relu6,
    functions.selu: activations.selu,
    functions.sigmoid: activations.sigmoid,
    functions.log_sigmoid: activations.log_sigmoid,
    functions.hard_sigmoid: activations.hard_sigmoid,
    functions.hard_silu: activations.hard_silu,
    functions.hard_tanh: activations.hard_tanh,
    functions.tanh: activations.tanh,
    functions.softsign: activations.softsign,
    functions.softplus: activations.softplus,
    functions.mish: activations.mish,
    functions.silu: activations.silu,
    functions.gelu: activations.gelu,
    functions.gelu_tanh: activations.gelu_tanh,
}
"""The activation of each function, jax.nn's and ours."""

NO_ACTIVATION = eqx.filter_eval_shape(
    lambda: eqx.nn.MLP(1, 1, 1, 0, key=jax.random.key(0))
).final_activation
"""equinox's own identity, an MLP's final activation unless told otherwise: it has no name."""
