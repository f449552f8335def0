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
from benchmarks.measuring import Row, compiled, seconds_in_turn
from manual_bp.layer import Layer

MLP = "mlp 784-512-512-10, batch 128"
LENET = "lenet, 28x28, batch 64"
GPT = "gpt, 2 blocks of 128, T 64, batch 16"


def networks() -> dict[str, tuple[Layer, jax.Array]]:
    """The networks that are trained, with a batch each."""
    key = jax.random.key(1)
    return {
        MLP: (mbp.mlp([784, 512, 512, 10]), jax.random.normal(key, (128, 784))),
        LENET: (mbp.lenet(), jax.random.normal(key, (64, 28, 28, 1))),
        GPT: (
            mbp.gpt(96, width=128, depth=2, context=64),
            jax.random.randint(key, (16, 64), 0, 96),
        ),
    }


def step(network: Layer, optimizer: Any, measured: str) -> Callable[..., Any]:
    """(params, state, x, y) -> the same after one step, the loss, and what is measured of it."""

    def run(params: Any, state: Any, x: Any, y: Any) -> Any:
        if measured == "nothing":
            loss, grads = mbp.manual_value_and_grads(params, x, y, network=network)
            found: dict[str, Any] = {}
        else:
            loss, _, grads, _, found = mbp.diagnosed_pass(params, x, y, network=network)
        updates, state = optimizer.update(grads, state, params)
        updated = optax.apply_updates(params, updates)
        if measured != "nothing":
            found = found | mbp.update_ratios(params, updated, network=network)
        if measured == "gradients too":
            found = found | mbp.gradient_norms(grads, network=network)
        return updated, state, loss, found

    return run


def rows_of(name: str, network: Layer, x: Any, rounds: int) -> list[Row]:
    """Times of a step of this network, with diagnostics and without."""
    optimizer = optax.adam(1e-3)
    params = network.init(jax.random.key(0), x)
    shape = jax.eval_shape(lambda params: mbp.predict(params, x, network=network), params).shape
    y = jnp.zeros(shape[:-1], int)
    args = params, optimizer.init(params), x, y
    programs = [
        compiled(step(network, optimizer, each), *args)
        for each in ("nothing", "errors, activations, updates", "gradients too")
    ]
    runs = [lambda program=program: program(*args) for program in programs]
    plain, diagnosed, more = seconds_in_turn(rounds, *runs)
    return [
        Row("time of a step with diagnostics over one without", name, diagnosed, plain, "s", 1.05),
        Row("with gradient norms too", name, more, plain, "s"),
    ]


def measure(
    chosen: dict[str, tuple[Layer, Any]] | None = None, rounds: int = 7, steps: int = 20
) -> list[Row]:
    """All rows.

    Args:
        chosen: networks with a batch each.
        rounds: how many times to measure each time.
        steps: how many steps are a measurement's worth: times of a few ms need many.
    """
    chosen = chosen or networks()
    return [row for name, each in chosen.items() for row in rows_of(name, *each, rounds * steps)]
