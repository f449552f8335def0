"""Recurrent layers beside jax.grad of the same scan: time and memory of a gradient.

jax.grad's scan is written as people write it, both products in every step. It is also measured with
the input's product hoisted out of the scan, which is half of what the derivation by hand does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.measuring import Row, compiled, seconds_in_turn, temporary_bytes
from manual_bp.layer import Layer

MEBIBYTE = 2**20


class Size(NamedTuple):
    """Steps, examples, and features of input and state."""

    steps: int
    examples: int
    features: int

    def __str__(self) -> str:
        return f"T {self.steps}, batch {self.examples}, width {self.features}"


SIZES = (Size(256, 16, 256),)


class Kind(NamedTuple):
    """A layer, and one step of the same function written out."""

    layer: Callable[[int], Layer]
    parts: int
    """How many arrays its state has."""
    step: Callable[..., Any]
    """step(params, state, Wx) -> state, with Wx = x Wᵀ."""
    target: float | None = None
    """The ratio of times that is aimed at, beside the scan as people write it."""


def lstm(params: Any, state: Any, Wx: Any) -> Any:
    """One step of an LSTM."""
    h, c = state
    i, f, g, o = jnp.split(Wx + h @ params.U.T + params.b, 4, axis=-1)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def gru(params: Any, state: Any, Wx: Any) -> Any:
    """One step of a GRU."""
    (h,) = state
    p_r, p_z, p_n = jnp.split(Wx + params.b, 3, axis=-1)
    q_r, q_z, q_n = jnp.split(h @ params.U.T, 3, axis=-1)
    r, z = jax.nn.sigmoid(p_r + q_r), jax.nn.sigmoid(p_z + q_z)
    n = jnp.tanh(p_n + r * (q_n + params.c))
    return ((1 - z) * n + z * h,)


def rnn(params: Any, state: Any, Wx: Any) -> Any:
    """One step of a plain network."""
    (h,) = state
    return (jnp.tanh(Wx + h @ params.U.T + params.b),)


KINDS = (
    Kind(mbp.LSTM, 2, lstm, 0.8),
    Kind(mbp.GRU, 1, gru),
    Kind(mbp.RNN, 1, rnn),
)


def gradient(layer: Layer) -> Callable[[Any, Any], Any]:
    """(dparams, dx) by hand of half the squares of all outputs."""

    def run(params: Any, x: Any) -> Any:
        out, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, out)

    return run


def by_autodiff(kind: Kind, size: Size, hoisted: bool) -> Callable[[Any, Any], Any]:
    """The same by jax.grad of a scan."""

    def objective(params: Any, x: Any) -> Any:
        x = jnp.swapaxes(x, 0, 1)

        def step(state: Any, x: Any) -> Any:
            state = kind.step(params, state, x if hoisted else x @ params.W.T)
            return state, state[0]

        zeros = jnp.zeros((size.examples, size.features))
        first = (zeros,) * kind.parts
        _, out = jax.lax.scan(step, first, x @ params.W.T if hoisted else x)
        return 0.5 * (out**2).sum()

    return jax.grad(objective, argnums=(0, 1))


def rows_of(kind: Kind, size: Size, rounds: int) -> list[Row]:
    """Times and memory of one kind of layer."""
    layer = kind.layer(size.features)
    x = jax.random.normal(jax.random.key(1), (size.examples, size.steps, size.features))
    args = layer.init(jax.random.key(0), x), x
    functions = [gradient(layer), *(by_autodiff(kind, size, hoisted) for hoisted in (False, True))]
    programs = [compiled(function, *args) for function in functions]
    runs = [lambda program=program: program(*args) for program in programs]
    ours, theirs, hoisted = seconds_in_turn(rounds, *runs)
    memory = [temporary_bytes(function, *args) / MEBIBYTE for function in functions]
    name = f"{type(layer).__name__}, {size}"
    return [
        Row("time of a gradient over jax.grad", name, ours, theirs, "s", kind.target),
        Row("time over jax.grad, x Wᵀ hoisted", name, ours, hoisted, "s"),
        Row("memory over jax.grad", name, memory[0], memory[1], "MiB", 1.0),
        Row("memory over jax.grad, x Wᵀ hoisted", name, memory[0], memory[2], "MiB", 1.0),
    ]


def measure(sizes: tuple[Size, ...] = SIZES, rounds: int = 7) -> list[Row]:
    """All rows.

    Args:
        sizes: of inputs.
        rounds: how many times to measure each time.
    """
    return [row for size in sizes for kind in KINDS for row in rows_of(kind, size, rounds)]
