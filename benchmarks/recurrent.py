"""Recurrent layers: (dparams, dx) of a whole sequence.

jax.grad's scan is written as people write it, with both products in every step. It is also measured
with x Wᵀ as one product before the scan, which is half of what the derivation by hand does, and of
our own layer's forward pass.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.row import IDIOMATIC, OURS, SAME, TIME, TORCH, Eager, Group, Row, Target, Way
from benchmarks.torch_ways import of_module, tensor, torch_way
from benchmarks.ways import by_autodiff, by_hand, half_squares
from manual_bp.layers._recurrence import Recurrent

HOISTED = "jax.grad, x Wᵀ first"
OF_OURS = "jax.grad of our layer"


class Size(NamedTuple):
    """Steps, examples, features of the input, and units."""

    steps: int
    examples: int
    inputs: int
    units: int

    def __str__(self) -> str:
        return f"T {self.steps}, batch {self.examples}, {self.inputs} to {self.units}"


SIZES = (Size(64, 32, 128, 256), Size(256, 16, 256, 256))


class Kind(NamedTuple):
    """A layer, and one step of the same function written out."""

    layer: Callable[[int], Recurrent]
    parts: int
    """How many arrays its state has."""
    step: Callable[..., Any]
    """step(params, state, Wx) -> state, with Wx = x Wᵀ."""
    cell: str
    """Of flax."""


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
    Kind(mbp.LSTM, 2, lstm, "OptimizedLSTMCell"),
    Kind(mbp.GRU, 1, gru, "GRUCell"),
    Kind(mbp.RNN, 1, rnn, "SimpleCell"),
)


def ways(kind: Kind, size: Size) -> dict[str, Way | Eager]:
    """By hand; jax.grad of three ways to write it, of flax; PyTorch."""
    layer = kind.layer(size.units)
    x = jax.random.normal(jax.random.key(1), (size.examples, size.steps, size.inputs))
    params = layer.init(jax.random.key(0), x)
    args = params, x
    return {
        OURS: Way(by_hand(layer), args),
        SAME: Way(half_squares(written_out(kind)), args),
        HOISTED: Way(half_squares(written_out(kind, hoisted=True)), args),
        OF_OURS: Way(by_autodiff(layer), args),
        **in_flax(layer, params, x),
        **torch_way(lambda torch: in_torch(torch, layer, params, x)),
    }


def written_out(kind: Kind, hoisted: bool = False) -> Callable[[Any, Any], Any]:
    """The sequence of states as a scan, time first; with x Wᵀ in each step or before all."""

    def over_time(params: Any, x: Any) -> Any:
        x = jnp.swapaxes(x, 0, 1)

        def step(state: Any, x: Any) -> Any:
            state = kind.step(params, state, x if hoisted else x @ params.W.T)
            return state, state[0]

        zeros = jnp.zeros((x.shape[1], params.U.shape[1]), x.dtype)
        return jax.lax.scan(step, (zeros,) * kind.parts, x @ params.W.T if hoisted else x)[1]

    return over_time


def in_flax(layer: Recurrent, params: Any, x: Any) -> dict[str, Way]:
    """flax.nnx.RNN over its cell, with the same parameters, where flax is installed."""
    if importlib.util.find_spec("flax") is None:
        return {}
    from flax import nnx

    from manual_bp.interop.flax.convert import to_module

    graph, state, rest = nnx.split(to_module(layer, params), nnx.Param, ...)

    def run(state: Any, x: Any) -> Any:
        return nnx.merge(graph, state, rest, copy=True)(x)

    return {IDIOMATIC: Way(half_squares(run), (state, x))}


def in_torch(torch: Any, layer: Recurrent, params: Any, x: Any) -> Callable[[], Any]:
    """nn.LSTM, nn.GRU or nn.RNN, which has two biases: beside W x, and beside U h."""
    kind = getattr(torch.nn, type(layer).__name__)
    units = params.U.shape[1]
    module = kind(x.shape[-1], units, batch_first=True)
    beside_U = jnp.zeros_like(params.b)
    if isinstance(layer, mbp.GRU):
        beside_U = beside_U.at[2 * units :].set(params.c)
    given = params.W, params.U, params.b, beside_U
    with torch.no_grad():
        for parameter, value in zip(module.parameters(), given, strict=True):
            parameter.copy_(tensor(torch, value))

    def objective(found: Any) -> Any:
        return 0.5 * found[0].square().sum()

    return of_module(torch, module, tensor(torch, x), objective, of_input=True)


BASELINE = (
    "jax.grad is of a scan as people write it, both products in every step. Kept for each step of "
    "an example: {kept}. "
)
SHORT = (
    "Falls short: over half of the time are products, those of a step, 16 or 32 rows each, at "
    "100 to 190 GF/s where PyTorch's reach 130 to 220, and above 32 MiB each call pays for its "
    "pages anew, 2 µs each. Tried without gain: U transposed before the loop, columns for rows, "
    "products by parts of U or of the batch, 2 and 4 steps in a turn, dW as (xᵀ dz)ᵀ, W and U in "
    "one product; chunks of time, for two thirds of the memory and the same time."
)
KEPT = {
    "LSTM": "6n + F numbers, x, h, c and z",
    "GRU": "5n + F, x, h, v and three arguments",
    "RNN": "2n + F, x, h and the slope",
}


def group() -> Group:
    """The rows."""
    rows = []
    for kind in KINDS:
        name = kind.layer.__name__
        for size in SIZES:
            made = lambda kind=kind, size=size: ways(kind, size)  # noqa: E731
            rows.append(
                Row(
                    f"{name}, {size}",
                    made,
                    (Target(TIME, 0.6), Target(TIME, 1.0, TORCH)),
                    note=BASELINE.format(kept=KEPT[name]) + (SHORT if name != "RNN" else ""),
                    against_idiomatic=f"flax.nnx.RNN({kind.cell})",
                )
            )
    return Group("recurrent", "Recurrent layers", tuple(rows))
