"""Bidirectional recurrent networks: one layer that reads forwards, one that reads backwards."""

from __future__ import annotations

from dataclasses import replace

from manual_bp.combinators.parallel import Parallel, parallel
from manual_bp.layer import Layer
from manual_bp.layers._recurrence import Recurrent


def bidirectional(layer: Layer) -> Parallel:
    """A recurrent layer beside the same one in reverse, each with its own parameters.

        out_t = (forwards_t, backwards_t),   dx = dx of one + dx of the other

    out_t has seen all of x_1 ... x_t and of x_t ... x_T. Masked, both begin and end with real
    steps, wherever the padding is. For one output of the whole sequence don't take out[:, -1], as
    LastStep does: there the backward half has read x_T alone. The two final states, which are what
    is observed, have each read all. What is observed, and a state that is taken, is a pair.

    Args:
        layer: RNN, LSTM, GRU or LinearRecurrence, without reverse=True.

    Returns:
        A layer (m, T, F) -> (m, T, 2 features), with params (forwards', backwards').

    Raises:
        TypeError: when it isn't a recurrent layer.
        ValueError: when it runs in reverse already.

    Source: Schuster & Paliwal (1997), Bidirectional recurrent neural networks.

    Example:
        >>> network, x = bidirectional(GRU(3)), jnp.ones((2, 5, 4))
        >>> network
        parallel(GRU(3), GRU(3, reverse=True))
        >>> network.forward(network.init(jax.random.key(0), x), x)[0].shape
        (2, 5, 6)
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"bidirectional: expected a recurrent layer, RNN, LSTM, GRU or LinearRecurrence, got "
            f"{layer!r}. Of several layers make each one bidirectional: "
            "sequential(bidirectional(LSTM(64)), bidirectional(LSTM(64)))."
        )
    if layer.reverse:
        raise ValueError(
            f"bidirectional: {layer!r} runs in reverse already: leave out reverse=True."
        )
    return parallel(layer, replace(layer, reverse=True))  # pyright: ignore[reportArgumentType]
