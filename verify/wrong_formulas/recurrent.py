"""Mistakes in backpropagation through time, for `verify.wrong_formulas`.

Each layer's backward pass is written again as a loop over steps in which every term has a name; a
mistake replaces one term. With none it is right, which a test says too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.activations import sigmoid, tanh
from manual_bp.layer import Layer, outer_over_examples
from manual_bp.layers import gru, linear_recurrence, lstm, rnn
from verify.networks import Case

Term = Callable[[Any, dict[str, Any]], Any]
"""term(right value, all that is known at this step) -> what is put in its place."""


def _case(layer: Any, seed: int) -> Case:
    network = mbp.sequential(layer, mbp.Dense(2))
    return Case(network, mbp.SquaredError(), (3, 3, 2), seed=(seed,))


def _cases(plain: Any, masked: Any) -> tuple[Case, ...]:
    return _case(plain, 1), _case(masked, 2)


CASES = {
    mbp.LSTM: _cases(mbp.LSTM(2), mbp.LSTM(2, masked=True, reverse=True)),
    mbp.GRU: _cases(mbp.GRU(2), mbp.GRU(2, masked=True, reverse=True)),
    mbp.RNN: _cases(mbp.RNN(2), mbp.RNN(2, masked=True, reverse=True)),
    mbp.LinearRecurrence: _cases(
        mbp.LinearRecurrence(), mbp.LinearRecurrence(masked=True, reverse=True)
    ),
}


class _Steps:
    """What a loop over steps backwards needs, with terms that a mistake may replace."""

    def __init__(self, layer: Any, residuals: Any, dout: Any, terms: dict[str, Term]) -> None:
        self.real = residuals.real
        self.dout = jnp.swapaxes(dout, 0, 1)
        self.x = jnp.swapaxes(residuals.x, 0, 1)
        if self.real is not None:
            self.x = jnp.where(self.real, self.x, 0)
        times = list(range(len(self.dout)))
        self.order = times if layer.reverse else times[::-1]
        self.terms = terms

    def put(self, name: str, value: Any, **known: Any) -> Any:
        return self.terms[name](value, known) if name in self.terms else value

    def where(self, t: int, value: Any, otherwise: Any) -> Any:
        if self.real is None:
            return value
        return jnp.where(self.put("mask", self.real[t]), value, otherwise)


def _after(before: Any, final: Any, layer: Any) -> Any:
    """h_t, from h_{t-1}."""
    last = final[None]
    return jnp.concatenate([last, before[:-1]] if layer.reverse else [before[1:], last])


def _products(steps: _Steps, layer: Any, params: Any, residuals: Any, dp: Any, dq: Any) -> Any:
    before = getattr(residuals.before, "h", residuals.before)
    final = getattr(residuals.final, "h", residuals.final)
    h = steps.put("h in dU", before, after=_after(before, final, layer))
    dW = outer_over_examples(dp, steps.x, like=params.W)
    dU = outer_over_examples(dq, h, like=params.U)
    return dW, dU, jnp.swapaxes(dp @ params.W, 0, 1)


def of_lstm(**terms: Term) -> Any:
    """The LSTM's backward pass with these terms replaced."""

    def backward(layer: Any, params: Any, residuals: Any, dout: Any) -> Any:
        steps = _Steps(layer, residuals, dout, terms)
        dh_next = dc_next = jnp.zeros_like(residuals.final.c)
        found: dict[int, Any] = {}
        for t in steps.order:
            z_i, z_f, z_g, z_o = (part[t] for part in residuals.z)
            i, f, g, o = (sigmoid.value(z_i), sigmoid.value(z_f), jnp.tanh(z_g), sigmoid.value(z_o))
            c_before = residuals.before.c[t]
            c = f * c_before + i * g
            dh = steps.put("dh carried", dh_next) + steps.dout[t]
            slope = steps.put("slope of c", tanh.derivative(c))
            dc = steps.put("dc carried", dc_next) + dh * o * slope
            dz_i = dc * g * steps.put("slope of i", sigmoid.derivative(z_i), z=z_i)
            of_f = steps.put("factor of f", c_before, g=g, c=c)
            dz_f = dc * of_f * sigmoid.derivative(z_f)
            dz_g = dc * i * steps.put("slope of g", tanh.derivative(z_g), z=z_g)
            dz_o = dh * steps.put("factor of o", jnp.tanh(c), c=c) * sigmoid.derivative(z_o)
            dz = jnp.concatenate([dz_i, dz_f, dz_g, dz_o], axis=-1)
            found[t] = steps.where(t, dz, 0)
            dh_next = steps.where(t, found[t] @ params.U, dh)
            dc_next = steps.where(t, dc * steps.put("f", f, i=i), dc_next)
        dz = jnp.stack([found[t] for t in sorted(found)])
        dW, dU, dx = _products(steps, layer, params, residuals, dz, dz)
        return lstm.Params(dW, dU, dz.sum((0, 1))), dx, {}

    return mock.patch.object(lstm.LSTM, "backward_taken", backward)


def of_gru(**terms: Term) -> Any:
    """The GRU's backward pass with these terms replaced."""

    def backward(layer: Any, params: Any, residuals: Any, dout: Any) -> Any:
        steps = _Steps(layer, residuals, dout, terms)
        dh_next, n_at = jnp.zeros_like(residuals.final), 2 * layer.features
        found: dict[int, Any] = {}
        for t in steps.order:
            of_r, of_z, of_n, v = (part[t] for part in residuals.arguments)
            r, z, n, h = (
                sigmoid.value(of_r),
                sigmoid.value(of_z),
                jnp.tanh(of_n),
                residuals.before[t],
            )
            dh = dh_next + steps.dout[t]
            dp_z = dh * steps.put("h - n", h - n) * sigmoid.derivative(of_z)
            dp_n = dh * steps.put("1 - z", 1 - z, z=z) * tanh.derivative(of_n)
            dp_r = dp_n * steps.put("v", v, h=h) * sigmoid.derivative(of_r)
            dq_n = dp_n * steps.put("r", r)
            both = (
                jnp.concatenate([dp_r, dp_z, dp_n], axis=-1),
                jnp.concatenate([dp_r, dp_z, dq_n], axis=-1),
            )
            dp, dq = (steps.where(t, each, 0) for each in both)
            found[t] = dp, dq
            stays = steps.put("z", z)
            dh_next = steps.where(t, stays * dh + steps.put("through U", dq @ params.U), dh)
        dp, dq = (jnp.stack([found[t][at] for t in sorted(found)]) for at in (0, 1))
        dW, dU, dx = _products(steps, layer, params, residuals, dp, dq)
        dc = dq[..., n_at:].sum((0, 1))
        return gru.Params(dW, dU, dp.sum((0, 1)), dc), dx, {}

    return mock.patch.object(gru.GRU, "backward_taken", backward)


def of_rnn(**terms: Term) -> Any:
    """The plain network's backward pass with these terms replaced."""

    def backward(layer: Any, params: Any, residuals: Any, dout: Any) -> Any:
        steps = _Steps(layer, residuals, dout, terms)
        dh_next = jnp.zeros_like(residuals.final)
        found: dict[int, Any] = {}
        for t in steps.order:
            dh = steps.put("dh carried", dh_next) + steps.dout[t]
            dz = dh * steps.put("slope", residuals.kept[t])
            found[t] = steps.where(t, dz, 0)
            through = steps.put("through U", found[t] @ params.U, dz=found[t], U=params.U)
            dh_next = steps.where(t, through, dh)
        dz = jnp.stack([found[t] for t in sorted(found)])
        dW, dU, dx = _products(steps, layer, params, residuals, dz, dz)
        return rnn.Params(dW, dU, dz.sum((0, 1))), dx, {}

    return mock.patch.object(rnn.RNN, "backward_taken", backward)


def of_linear(**terms: Term) -> Any:
    """The linear recurrence's backward pass with these terms replaced."""

    def backward(layer: Any, params: Any, residuals: Any, dout: Any) -> Any:
        steps = _Steps(layer, residuals, dout, terms)
        a = sigmoid.value(params.rate)
        s = jnp.sqrt(1 - a * a)
        h = residuals.h[::-1] if layer.reverse else residuals.h
        first = residuals.first[None]
        before = jnp.concatenate([h[1:], first] if layer.reverse else [first, h[:-1]])
        dh_next, drate = jnp.zeros_like(residuals.final), jnp.zeros_like(a)
        found: dict[int, Any] = {}
        for t in steps.order:
            dh = steps.put("dh carried", dh_next) + steps.dout[t]
            du = steps.where(t, dh, 0)
            da = (du * steps.put("h", before[t], after=h[t])).sum(0)
            ds = (du * steps.x[t]).sum(0)
            through_s = steps.put("through s", -a / s * ds)
            drate = drate + (da + through_s) * a * (1 - a)
            found[t] = steps.put("s", s) * du
            dh_next = steps.where(t, a * dh, dh)
        dx = jnp.stack([found[t] for t in sorted(found)], axis=1)
        return linear_recurrence.Params(drate), dx, {}

    return mock.patch.object(linear_recurrence.LinearRecurrence, "backward_taken", backward)


RIGHT = {
    mbp.LSTM: of_lstm,
    mbp.GRU: of_gru,
    mbp.RNN: of_rnn,
    mbp.LinearRecurrence: of_linear,
}


def _nothing(value: Any, known: Any) -> Any:
    return jnp.zeros_like(value)


def _ones(value: Any, known: Any) -> Any:
    return jnp.ones_like(value)


def _always(value: Any, known: Any) -> Any:
    return jnp.ones_like(value, bool)


def _other(name: str) -> Term:
    return lambda value, known: known[name]


MISTAKES: dict[Any, dict[str, dict[str, Term]]] = {
    mbp.LSTM: {
        "tanh' for σ' of the input gate": {
            "slope of i": lambda value, known: tanh.derivative(known["z"])
        },
        "σ' for tanh' of the candidate": {
            "slope of g": lambda value, known: sigmoid.derivative(known["z"])
        },
        "the input gate's factor for the forget gate": {"factor of f": _other("g")},
        "c_t for c_{t-1} at the forget gate": {"factor of f": _other("c")},
        "c for tanh(c) at the output gate": {"factor of o": _other("c")},
        "tanh'(c) missing": {"slope of c": _ones},
        "dc not carried": {"dc carried": _nothing},
        "dh not carried": {"dh carried": _nothing},
        "dc carried without f": {"f": _ones},
        "dc carried by i": {"f": _other("i")},
        "truncated at one step": {"dc carried": _nothing, "dh carried": _nothing},
        "h_t for h_{t-1} in dU": {"h in dU": _other("after")},
        "mask ignored": {"mask": _always},
    },
    mbp.GRU: {
        "z for 1 - z": {"1 - z": _other("z")},
        "n - h for h - n": {"h - n": lambda value, known: -value},
        "r missing in the error of U h": {"r": _ones},
        "h for U h + c at the reset gate": {"v": _other("h")},
        "the path through z missing": {"z": _nothing},
        "the path through U missing": {"through U": _nothing},
        "h_t for h_{t-1} in dU": {"h in dU": _other("after")},
        "mask ignored": {"mask": _always},
    },
    mbp.RNN: {
        "g' missing": {"slope": _ones},
        "truncated at one step": {"dh carried": _nothing},
        "U for its transpose": {"through U": lambda value, known: known["dz"] @ known["U"].T},
        "h_t for h_{t-1} in dU": {"h in dU": _other("after")},
        "mask ignored": {"mask": _always},
    },
    mbp.LinearRecurrence: {
        "h_t for h_{t-1}": {"h": _other("after")},
        "the normalisation taken for a constant": {"through s": _nothing},
        "the normalisation missing in dx": {"s": _ones},
        "truncated at one step": {"dh carried": _nothing},
        "mask ignored": {"mask": _always},
    },
}

WRONG: dict[type[Layer], dict[str, Callable[[], Any]]] = {
    kind: {
        name: lambda kind=kind, terms=terms: RIGHT[kind](**terms) for name, terms in each.items()
    }
    for kind, each in MISTAKES.items()
}
"""For each kind of layer, since each shows in networks of its own."""
