"""Recurrent layers over a whole sequence, as functions: one scan, and one contraction for dW.

Each takes the whole sequence, (m, T, F), and returns the state after every step, (m, T, n). Weights
are (n_out, n_in); gates follow one another along their first axis.
"""

from __future__ import annotations

from typing import Any

import jax

from manual_bp.activation import Activation
from manual_bp.activations import tanh
from manual_bp.interop.function import as_function
from manual_bp.layers import gru as of_gru
from manual_bp.layers import lstm as of_lstm
from manual_bp.layers import rnn as of_rnn


def lstm(
    x: Any, W: Any, U: Any, b: Any, *, state: Any = None, mask: Any = None, reverse: bool = False
) -> jax.Array:
    """Long short-term memory over a sequence: c_t = f ⊙ c_{t-1} + i ⊙ g, h_t = o ⊙ tanh(c_t).

    Args:
        x: (m, T, F).
        W: (4n, F), of the input; gates in the order i, f, g, o.
        U: (4n, n), of the state.
        b: (4n,).
        state: (h_0, c_0), (m, n) each; zeros by default.
        mask: (m, T) booleans, true where a step is real; at others the state is carried over.
        reverse: whether to run from the last step to the first.

    Returns:
        h_t of all steps, (m, T, n).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/lstm.py has formula, derivation and source.

    Example:
        >>> x, W, U, b = jnp.ones((2, 5, 3)), jnp.ones((16, 3)), jnp.ones((16, 4)), jnp.zeros(16)
        >>> jax.grad(lambda U: lstm(x, W, U, b).sum())(U).shape
        (16, 4)
    """
    layer = of_lstm.LSTM(
        b.shape[-1] // 4, masked=mask is not None, stateful=state is not None, reverse=reverse
    )
    state = None if state is None else of_lstm.State(*state)
    return as_function(layer)(of_lstm.Params(W, U, b), x, **_taken(state, mask))


def gru(
    x: Any,
    W: Any,
    U: Any,
    b: Any,
    c: Any,
    *,
    state: Any = None,
    mask: Any = None,
    reverse: bool = False,
) -> jax.Array:
    """A gated recurrent unit over a sequence: h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}.

    Args:
        x: (m, T, F).
        W: (3n, F), of the input; in the order r, z, n.
        U: (3n, n), of the state.
        b: (3n,), beside W x.
        c: (n,), beside U_n h, inside of the reset.
        state: h_0, (m, n); zeros by default.
        mask: (m, T) booleans, true where a step is real; at others the state is carried over.
        reverse: whether to run from the last step to the first.

    Returns:
        h_t of all steps, (m, T, n).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/gru.py has formula, derivation and source.

    Example:
        >>> x, W, U, b = jnp.ones((2, 5, 3)), jnp.ones((12, 3)), jnp.ones((12, 4)), jnp.zeros(12)
        >>> gru(x, W, U, b, jnp.zeros(4)).shape
        (2, 5, 4)
    """
    layer = of_gru.GRU(
        c.shape[-1], masked=mask is not None, stateful=state is not None, reverse=reverse
    )
    return as_function(layer)(of_gru.Params(W, U, b, c), x, **_taken(state, mask))


def rnn(
    x: Any,
    W: Any,
    U: Any,
    b: Any,
    *,
    activation: Activation = tanh,
    state: Any = None,
    mask: Any = None,
    reverse: bool = False,
) -> jax.Array:
    """A simple recurrent layer over a sequence: h_t = g(W x_t + U h_{t-1} + b).

    Args:
        x: (m, T, F).
        W: (n, F), of the input.
        U: (n, n), of the state.
        b: (n,).
        activation: g, one of manual_bp's.
        state: h_0, (m, n); zeros by default.
        mask: (m, T) booleans, true where a step is real; at others the state is carried over.
        reverse: whether to run from the last step to the first.

    Returns:
        h_t of all steps, (m, T, n).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/rnn.py has formula, derivation and source.

    Example:
        >>> rnn(jnp.ones((2, 5, 3)), jnp.ones((4, 3)), jnp.ones((4, 4)), jnp.zeros(4)).shape
        (2, 5, 4)
    """
    layer = of_rnn.RNN(
        b.shape[-1],
        activation,
        masked=mask is not None,
        stateful=state is not None,
        reverse=reverse,
    )
    return as_function(layer)(of_rnn.Params(W, U, b), x, **_taken(state, mask))


def _taken(state: Any, mask: Any) -> dict[str, Any]:
    return {name: each for name, each in (("state", state), ("mask", mask)) if each is not None}
