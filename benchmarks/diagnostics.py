"""What diagnostics cost: a training step with them beside the same step without.

A step is the gradient by hand, adam and its update, in one jit. With diagnostics it also returns
all of `diagnosed_pass` and `update_ratios`; then those of `gradient_norms` too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import manual_bp as mbp
from benchmarks.row import OURS, TIME, Eager, Group, Row, Target, Way
from manual_bp.layer import Layer

WITHOUT = "without diagnostics"
GRADIENTS_TOO = "with gradient norms too"


def step(network: Layer, optimizer: Any, measured: str) -> Callable[..., Any]:
    """(params, state, x, y) -> the same after one step, the loss, and what is measured of it."""

    def run(params: Any, state: Any, x: Any, y: Any) -> Any:
        if measured == WITHOUT:
            loss, grads = mbp.manual_value_and_grads(params, x, y, network=network)
            found: dict[str, Any] = {}
        else:
            loss, _, grads, _, found = mbp.diagnosed_pass(params, x, y, network=network)
        updates, state = optimizer.update(grads, state, params)
        updated = optax.apply_updates(params, updates)
        if measured != WITHOUT:
            found = found | mbp.update_ratios(params, updated, network=network)
        if measured == GRADIENTS_TOO:
            found = found | mbp.gradient_norms(grads, network=network)
        return updated, state, loss, found

    return run


def ways(network: Layer, x: Any) -> dict[str, Way | Eager]:
    """A step with diagnostics, without, and with gradient norms too."""
    optimizer = optax.adam(1e-3)
    params = network.init(jax.random.key(0), x)
    shape = jax.eval_shape(lambda params: mbp.predict(params, x, network=network), params).shape
    args = params, optimizer.init(params), x, jnp.zeros(shape[:-1], int)
    each = (OURS, WITHOUT, GRADIENTS_TOO)
    return {name: Way(step(network, optimizer, name), args) for name in each}


def group() -> Group:
    """The rows."""
    key = jax.random.key(1)
    made: dict[str, Callable[[], tuple[Layer, Any]]] = {
        "MLP 784-512-512-10 x 128": lambda: (
            mbp.mlp([784, 512, 512, 10]),
            jax.random.normal(key, (128, 784)),
        ),
        "LeNet 28 x 28 x 64": lambda: (mbp.lenet(), jax.random.normal(key, (64, 28, 28, 1))),
        "GPT 2 blocks of 128, T 64 x 16": lambda: (
            mbp.gpt(96, width=128, depth=2, context=64),
            jax.random.randint(key, (16, 64), 0, 96),
        ),
    }
    rows = tuple(
        Row(name, lambda make=make: ways(*make()), (Target(TIME, 1.05, WITHOUT),))
        for name, make in made.items()
    )
    note = (
        "Norms and shares of dead units are further passes over errors and outputs, which are "
        "large beside LeNet's products. Not tried yet: the slope of tanh from one exponential."
    )
    return Group("diagnostics", "A training step with diagnostics", rows, note=note)
