"""Cells of flax.nnx and RNN over them with hand-derived backward passes.

A cell is one step: its affine maps, and then the gates by hand (`manual_bp.interop.gates`). RNN
over a cell is the whole sequence's layer, where dW is one product over all steps and examples, and
6n numbers are kept for each step of an LSTM where autodiff keeps some 12n.

Formulas and derivations: manual_bp/layers/lstm.py, gru.py and rnn.py.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import flax.nnx as nnx
import jax
import jax.numpy as jnp

from manual_bp.interop import functions
from manual_bp.interop.elementwise import elementwise
from manual_bp.interop.flax.convert import from_module
from manual_bp.interop.flax.linear import linear
from manual_bp.interop.flax.names import ACTIVATIONS
from manual_bp.interop.function import as_function
from manual_bp.interop.gates import gru_gates, lstm_gates
from manual_bp.interop.settings import Converted, served
from manual_bp.layers import lstm


class LSTMCell(nnx.LSTMCell):
    """flax's LSTMCell; see `manual_bp.interop.flax`. Not served: other gate_fn, activation_fn."""

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """carry (c, h), (..., hidden_features) each; inputs (..., in_features)."""
        _check_gates(self, "flax.nnx.LSTMCell")
        c, h = carry
        of_input = (self.ii, self.if_, self.ig, self.io)
        of_state = (self.hi, self.hf, self.hg, self.ho)
        z = [
            linear(from_x, inputs) + linear(from_h, h)
            for from_x, from_h in zip(of_input, of_state, strict=True)
        ]
        h, c = lstm_gates(jnp.concatenate(z, axis=-1), c)
        return (c, h), h


class OptimizedLSTMCell(nnx.OptimizedLSTMCell):
    """flax's OptimizedLSTMCell; see `manual_bp.interop.flax`.

    Not served: other gate_fn, activation_fn.
    """

    def __call__(self, carry: Any, inputs: Any) -> tuple[Any, jax.Array]:
        """carry (c, h), (..., hidden_features) each; inputs (..., in_features)."""
        _check_gates(self, "flax.nnx.OptimizedLSTMCell")
        c, h = carry
        h, c = lstm_gates(linear(self.dense_i, inputs) + linear(self.dense_h, h), c)
        return (c, h), h


class GRUCell(nnx.GRUCell):
    """flax's GRUCell; see `manual_bp.interop.flax`. Not served: other gate_fn, activation_fn."""

    def __call__(self, carry: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        """carry h, (..., hidden_features); inputs (..., in_features)."""
        _check_gates(self, "flax.nnx.GRUCell")
        h = gru_gates(linear(self.dense_i, inputs), linear(self.dense_h, carry), carry)
        return h, h


class SimpleCell(nnx.SimpleCell):
    """flax's SimpleCell; see `manual_bp.interop.flax`. An activation_fn of your own is called."""

    def __call__(self, carry: Any, inputs: Any) -> tuple[jax.Array, jax.Array]:
        """carry h, (..., hidden_features); inputs (..., in_features)."""
        z = linear(self.dense_i, inputs) + linear(self.dense_h, carry)
        z = z + carry if self.residual else z
        known = self.activation_fn in ACTIVATIONS
        h = elementwise(ACTIVATIONS[self.activation_fn])(z) if known else self.activation_fn(z)
        return h, h


class RNN(nnx.RNN):
    """flax's RNN; see `manual_bp.interop.flax`.

    A cell of this file or flax's own of the same name is run as a layer over the whole sequence.
    Step by step, as flax runs it and with the cell's own backward, go: other cells, settings that
    the layer hasn't (gate_fn, residual), several dtypes, and where the carry is asked for.

    The whole sequence's layer is made for weights that are large beside the batch, and for devices
    that like large products. On two CPU cores an LSTM of 512 units and 4 examples takes 0.43 of the
    time and 0.6 of the memory of flax's own; one of 256 units and 32 examples 1.2 and 0.94. There
    nnx.RNN over our cell is the better choice: 1.0 and 0.63.

    Example:
        >>> from flax import nnx
        >>> import manual_bp.interop.flax as by_hand
        >>> layer = by_hand.RNN(by_hand.GRUCell(3, 4, rngs=nnx.Rngs(0)))
        >>> layer(jnp.ones((2, 5, 3))).shape
        (2, 5, 4)
    """

    def __call__(
        self,
        inputs: Any,
        *,
        initial_carry: Any = None,
        seq_lengths: Any = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
        rngs: Any = None,
    ) -> Any:
        """inputs (..., T, in_features), or (T, ..., in_features) if time_major."""
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order
        return_carry = self.return_carry if return_carry is None else return_carry
        rngs = self.rngs if rngs is None else rngs
        rngs = rngs.carry.fork() if isinstance(rngs, nnx.Rngs) else rngs
        time = 0 if time_major else inputs.ndim - 2
        if initial_carry is None:
            of_one_step = inputs.shape[:time] + inputs.shape[time + 1 :]
            initial_carry = self.cell.initialize_carry(of_one_step, rngs)
        lengths_matter = seq_lengths is not None and reverse
        found = _as_a_layer(self.cell, inputs, initial_carry)
        if return_carry or lengths_matter or found is None:
            return super().__call__(
                inputs,
                initial_carry=initial_carry,
                seq_lengths=seq_lengths,
                return_carry=return_carry,
                time_major=time_major,
                reverse=reverse,
                keep_order=keep_order,
                rngs=rngs,
            )
        x = jnp.moveaxis(inputs, time, -2)
        *examples, T, features = x.shape
        m = math.prod(examples)
        state = jax.tree.map(lambda each: each.reshape(m, each.shape[-1]), initial_carry)
        state = lstm.State(*reversed(state)) if isinstance(state, tuple) else state
        layer, params, _ = found
        layer = dataclasses.replace(layer, stateful=True, reverse=reverse)
        out = as_function(layer)(params, x.reshape(m, T, features), state=state)
        out = out.reshape(*examples, T, out.shape[-1])
        if reverse and not keep_order:
            out = jnp.flip(out, -2)
        return jnp.moveaxis(out, -2, time)


def _as_a_layer(cell: Any, inputs: Any, carry: Any) -> Converted | None:
    """The layer of ours that computes what RNN over this cell does, None where none does."""
    ours = (LSTMCell, OptimizedLSTMCell, GRUCell)
    if type(cell) in (*ours, nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell):
        fits = _usual_gates(cell)
    elif type(cell) in (SimpleCell, nnx.SimpleCell):
        fits = not cell.residual and cell.activation_fn in ACTIVATIONS
    else:
        fits = False
    if not fits:
        return None
    found = from_module(cell)
    dtypes = {each.dtype for each in jax.tree.leaves((inputs, carry, found.params))}
    return found if dtypes | {jnp.dtype(cell.dtype or inputs.dtype)} == {inputs.dtype} else None


def _usual_gates(cell: Any) -> bool:
    return cell.gate_fn in (nnx.sigmoid, functions.sigmoid) and cell.activation_fn in (
        nnx.tanh,
        functions.tanh,
    )


def _check_gates(cell: Any, original: str) -> None:
    refuse = served(type(cell), original)
    refuse.check("gate_fn", cell.gate_fn, nnx.sigmoid, functions.sigmoid)
    refuse.check("activation_fn", cell.activation_fn, nnx.tanh, functions.tanh)
