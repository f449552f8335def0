"""Other people's layers as judges: flax and equinox, with our weights, under jax.grad.

Each row is one of our networks and the same function out of somebody else's library. Forward and
gradient are compared as everywhere, traced, within the bounds of both; so whoever trusts flax or
equinox need not trust our own references.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.layer import Layer
from verify import judges, peers_attention, peers_transformers, rules
from verify.report import Report
from verify.rules import Rule
from verify.specification import Shape

Function = Callable[..., jax.Array]


@dataclass(frozen=True)
class Peer:
    """A network of ours, and theirs: the same function of the same parameters."""

    name: str
    ours: Layer
    shape: Shape
    theirs: Function
    """theirs(params, x, **taken) -> out, with params as ours.init makes them."""

    def rule(self) -> Rule:
        """Ours beside jax.vjp of theirs."""
        return rules.of_layer(self.ours, self.shape, theirs=self.theirs)


def _flax(module: nn.Module, convert: Callable[[Any], Any]) -> Function:
    """A flax module as a function of our parameters."""

    def run(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": convert(params)}, x)

    return run


def _dense(params: Any) -> dict[str, Any]:
    """flax keeps W as (n_in, n_out)."""
    return {"kernel": params.W.T, "bias": params.b}


def _conv(params: Any) -> dict[str, Any]:
    """flax keeps kernels as we do, HWIO."""
    return {"kernel": params.W} | ({} if isinstance(params.b, tuple) else {"bias": params.b})


def _norm(params: Any) -> dict[str, Any]:
    return {"scale": params.scale, "bias": params.shift}


def _trained_batch_norm(eps: float = 1e-5) -> Function:
    module = nn.BatchNorm(use_running_average=False, epsilon=eps)

    def run(params: Any, x: jax.Array) -> jax.Array:
        width = x.shape[-1:]
        running = {"mean": jnp.zeros(width, x.dtype), "var": jnp.ones(width, x.dtype)}
        variables = {"params": _norm(params), "batch_stats": running}
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    return run


def _frozen_batch_norm(params: Any, x: jax.Array, statistics: Any) -> jax.Array:
    running = {"mean": statistics.mean, "var": statistics.variance}
    variables = {"params": _norm(params), "batch_stats": running}
    return nn.BatchNorm(use_running_average=True).apply(variables, x)  # pyright: ignore


def _flax_block(params: Any, x: jax.Array) -> jax.Array:
    """A pre-activation residual block as a flax module, of our block's parameters."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            width = x.shape[-1]
            h = nn.relu(nn.BatchNorm(use_running_average=False, name="norm1")(x))
            h = nn.Conv(width, (3, 3), use_bias=False, name="conv1")(h)
            h = nn.relu(nn.BatchNorm(use_running_average=False, name="norm2")(h))
            return x + nn.Conv(width, (3, 3), use_bias=False, name="conv2")(h)

    (norm1, _, conv1, norm2, _, conv2) = params[0]
    width = x.shape[-1:]
    running = {"mean": jnp.zeros(width, x.dtype), "var": jnp.ones(width, x.dtype)}
    variables = {
        "params": {
            "norm1": _norm(norm1),
            "conv1": _conv(conv1),
            "norm2": _norm(norm2),
            "conv2": _conv(conv2),
        },
        "batch_stats": {"norm1": running, "norm2": running},
    }
    return Block().apply(variables, x, mutable=["batch_stats"])[0]


def _empty(kind: Any, *settings: Any) -> Any:
    """An equinox module without weights: to draw them would be part of the program."""
    return eqx.filter_eval_shape(lambda key: kind(*settings, key=key), jax.random.key(0))


def _filled(module: Any, **values: Any) -> Any:
    """An equinox module with these arrays in place of its own."""
    names = list(values)
    return eqx.tree_at(
        lambda m: [getattr(m, name) for name in names], module, [values[name] for name in names]
    )


def _eqx_conv(params: Any, padding: int, stride: int = 1) -> Any:
    """equinox keeps kernels as OIHW and images as CHW, one at a time."""
    *kernel, inputs, outputs = params.W.shape
    module = _empty(eqx.nn.Conv2d, inputs, outputs, tuple(kernel), stride, padding)
    bias = params.b[:, None, None]
    return _filled(module, weight=jnp.transpose(params.W, (3, 2, 0, 1)), bias=bias)


def _eqx_dense(params: Any) -> Any:
    outputs, inputs = params.W.shape
    module = _empty(eqx.nn.Linear, inputs, outputs)
    return _filled(module, weight=params.W, bias=params.b)


def _eqx_convnet(params: Any, x: jax.Array) -> jax.Array:
    """A small ConvNet out of equinox modules, image by image."""
    conv1, _, _, conv2, _, norm, _, dense = params
    first, second = _eqx_conv(conv1, padding=1), _eqx_conv(conv2, padding=0, stride=2)
    pool, head = eqx.nn.MaxPool2d(2, 2), _eqx_dense(dense)

    def one(image: jax.Array) -> jax.Array:
        h = pool(jax.nn.relu(first(jnp.transpose(image, (2, 0, 1)))))
        h = jax.nn.tanh(second(h))
        group = eqx.nn.GroupNorm(2, h.shape[0])
        h = _filled(group, weight=norm.scale, bias=norm.shift)(h)
        return head(h.mean((1, 2)))

    return jax.vmap(one)(x)


def _gates(params: Any, names: str) -> list[tuple[str, Any, Any, Any]]:
    """(name, W, U, b) of each gate; flax keeps them apart, with W and U as (n_in, n_out)."""
    split = [jnp.split(each, len(names)) for each in params[:3]]
    return [(name, W.T, U.T, b) for name, W, U, b in zip(names, *split, strict=True)]


def _flax_rnn(params: Any) -> dict[str, Any]:
    return {"i": {"kernel": params.W.T, "bias": params.b}, "h": {"kernel": params.U.T}}


def _flax_lstm(params: Any) -> dict[str, Any]:
    gates = _gates(params, "ifgo")
    of_input = {f"i{name}": {"kernel": W} for name, W, _, _ in gates}
    return of_input | {f"h{name}": {"kernel": U, "bias": b} for name, _, U, b in gates}


def _flax_gru(params: Any) -> dict[str, Any]:
    gates = _gates(params, "rzn")
    cell = {f"i{name}": {"kernel": W, "bias": b} for name, W, _, b in gates}
    cell |= {f"h{name}": {"kernel": U} for name, _, U, _ in gates}
    cell["hn"]["bias"] = params.c
    return cell


def _flax_over_time(
    cell: Any, convert: Callable[[Any], Any], carry: Callable[[Any], Any] = lambda state: state
) -> Function:
    """A flax cell in flax's scan over time, with its own order of the state."""

    def run(params: Any, x: jax.Array, state: Any) -> Any:
        variables = {"params": {"cell": convert(params)}}
        return nn.RNN(cell).apply(variables, x, initial_carry=carry(state))

    return run


def _eqx_over_time(kind: Any, parts: int, reverse: bool = False) -> Function:
    """An equinox cell in a scan over time, example by example."""

    def run(params: Any, x: jax.Array) -> jax.Array:
        n = params.U.shape[-1]
        values = {"weight_ih": params.W, "weight_hh": params.U, "bias": params.b}
        values |= {"bias_n": params.c} if "c" in params._fields else {}
        cell = _filled(_empty(kind, x.shape[-1], n), **values)

        def step(state: Any, x: jax.Array) -> Any:
            state = cell(x, state)
            return state, state[0] if parts > 1 else state

        zeros = jnp.zeros(n, x.dtype)
        first = (zeros,) * parts if parts > 1 else zeros
        return jax.vmap(lambda each: jax.lax.scan(step, first, each, reverse=reverse)[1])(x)

    return run


def peers() -> list[Peer]:
    """Layers and networks that flax or equinox has too."""
    images = (2, 6, 5, 4)
    return [
        Peer("flax Dense", mbp.Dense(3), (4, 5), _flax(nn.Dense(3), _dense)),
        Peer("flax Conv", mbp.Conv(3, (3, 2)), images, _flax(nn.Conv(3, (3, 2)), _conv)),
        Peer(
            "flax Conv, strides, dilation, groups",
            mbp.Conv(6, (3, 3), stride=(2, 1), padding="VALID", dilation=(1, 2), groups=2),
            images,
            _flax(
                nn.Conv(
                    6,
                    (3, 3),
                    strides=(2, 1),
                    padding="VALID",
                    kernel_dilation=(1, 2),
                    feature_group_count=2,
                ),
                _conv,
            ),
        ),
        Peer("flax Conv 1-D", mbp.Conv(2, (3,)), (2, 7, 3), _flax(nn.Conv(2, (3,)), _conv)),
        Peer(
            "flax Conv 3-D",
            mbp.Conv(2, (2, 2, 2)),
            (1, 3, 3, 2, 2),
            _flax(nn.Conv(2, (2, 2, 2)), _conv),
        ),
        Peer(
            "flax ConvTranspose",
            mbp.ConvTranspose(3, (3, 2), stride=2),
            (2, 3, 4, 2),
            _flax(nn.ConvTranspose(3, (3, 2), strides=(2, 2)), _conv),
        ),
        Peer(
            "flax max_pool",
            mbp.MaxPool((2, 3), stride=(2, 1)),
            images,
            lambda params, x: nn.max_pool(x, (2, 3), strides=(2, 1)),
        ),
        Peer(
            "flax avg_pool",
            mbp.AvgPool((3, 2), stride=(2, 2), padding="SAME", count_padding=False),
            images,
            lambda params, x: nn.avg_pool(
                x, (3, 2), strides=(2, 2), padding="SAME", count_include_pad=False
            ),
        ),
        Peer("flax BatchNorm", mbp.BatchNorm(), images, _trained_batch_norm()),
        Peer(
            "flax BatchNorm, not training", mbp.BatchNorm().inference(), images, _frozen_batch_norm
        ),
        Peer(
            "flax LayerNorm", mbp.LayerNorm(), (3, 2, 5), _flax(nn.LayerNorm(epsilon=1e-5), _norm)
        ),
        Peer(
            "flax RMSNorm",
            mbp.RMSNorm(),
            (3, 5),
            _flax(nn.RMSNorm(epsilon=mbp.RMSNorm().eps), lambda params: {"scale": params.scale}),
        ),
        Peer(
            "flax GroupNorm",
            mbp.GroupNorm(2),
            images,
            _flax(nn.GroupNorm(2, epsilon=mbp.GroupNorm(2).eps), _norm),
        ),
        Peer(
            "flax PReLU",
            mbp.PReLU(shared=True),
            (3, 4),
            _flax(nn.PReLU(), lambda params: {"negative_slope": params.slope}),
        ),
        Peer(
            "flax Embed",
            mbp.Embedding(5, 3),
            (2, 4),
            _flax(nn.Embed(5, 3), lambda params: {"embedding": params.W}),
        ),
        Peer(
            "equinox Embedding",
            mbp.Embedding(4, 2),
            (6,),
            lambda params, x: jax.vmap(eqx.nn.Embedding(weight=params.W))(x),
        ),
        Peer(
            "equinox RotaryPositionalEmbedding",
            mbp.Rotary(6),
            (2, 4, 6),
            lambda params, x: jax.vmap(eqx.nn.RotaryPositionalEmbedding(6, dtype=x.dtype))(x),
        ),
        Peer(
            "flax residual block",
            mbp.skip(
                mbp.sequential(
                    mbp.BatchNorm(),
                    mbp.relu,
                    mbp.Conv(4, (3, 3), bias=False),
                    mbp.BatchNorm(),
                    mbp.relu,
                    mbp.Conv(4, (3, 3), bias=False),
                )
            ),
            images,
            _flax_block,
        ),
        Peer(
            "equinox ConvNet",
            mbp.sequential(
                mbp.Conv(4, (3, 3), padding=((1, 1), (1, 1))),
                mbp.relu,
                mbp.MaxPool((2, 2)),
                mbp.Conv(6, (2, 2), stride=2, padding="VALID"),
                mbp.tanh,
                mbp.GroupNorm(2),
                mbp.GlobalAvgPool(),
                mbp.Dense(3),
            ),
            (2, 8, 9, 2),
            _eqx_convnet,
        ),
        Peer(
            "equinox LayerNorm",
            mbp.LayerNorm(),
            (4, 5),
            lambda params, x: jax.vmap(
                _filled(eqx.nn.LayerNorm(5), weight=params.scale, bias=params.shift)
            )(x),
        ),
        Peer(
            "flax SimpleCell in RNN, from a state",
            mbp.RNN(3, stateful=True),
            (2, 3, 2),
            _flax_over_time(nn.SimpleCell(3), _flax_rnn),
        ),
        Peer(
            "flax OptimizedLSTMCell in RNN, from a state",
            mbp.LSTM(3, stateful=True),
            (2, 3, 2),
            _flax_over_time(nn.OptimizedLSTMCell(3), _flax_lstm, lambda state: (state.c, state.h)),
        ),
        Peer(
            "flax LSTMCell in RNN, from a state",
            mbp.LSTM(2, stateful=True),
            (3, 2, 4),
            _flax_over_time(nn.LSTMCell(2), _flax_lstm, lambda state: (state.c, state.h)),
        ),
        Peer(
            "flax GRUCell in RNN, from a state",
            mbp.GRU(3, stateful=True),
            (2, 3, 2),
            _flax_over_time(nn.GRUCell(3), _flax_gru),
        ),
        Peer(
            "equinox LSTMCell in a scan",
            mbp.LSTM(3),
            (2, 3, 2),
            _eqx_over_time(eqx.nn.LSTMCell, 2),
        ),
        Peer(
            "equinox GRUCell in a scan in reverse",
            mbp.GRU(3, reverse=True),
            (2, 3, 2),
            _eqx_over_time(eqx.nn.GRUCell, 1, reverse=True),
        ),
        *(Peer(*row) for row in (*peers_attention.ROWS, *peers_transformers.ROWS)),
    ]


def run(report: Report, *, seed: int) -> None:
    """Judge every row: forward and gradient, at normal numbers and with ties."""
    level = report.level("peers", "flax and equinox with our weights, their jax.grad: as L4", "1")
    rows = peers()
    with report.working("peers", len(rows)) as advance:
        for peer in rows:
            rule = peer.rule()
            for kind in ("normal", "ties"):
                verdict = judges.bounds(rule, rule.draw(rules.generator(seed), kind))
                failure = f"{peer.name} at {kind} numbers: {verdict.first_wrong} {verdict.why}"
                level.judged(verdict.ok, verdict.figure, failure, type(peer.ours).__name__)
            advance(peer.name)
    level.note(f"{len(rows)} layers and networks: {', '.join(peer.name for peer in rows)}")
