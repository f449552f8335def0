"""The multi-layer perceptron of the notes: dense layers, the last one affine."""

from __future__ import annotations

from collections.abc import Sequence

from manual_bp.activation import Activation
from manual_bp.activations import relu
from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.layers.dense import Dense


def mlp(sizes: Sequence[int], hidden: Activation = relu) -> Sequential:
    """Dense layers of the given sizes; the last one ends at Z[L], its logits.

        A[l] = g(W[l] A[l-1] + b[l]) for l < L,    Z[L] = W[L] A[L-1] + b[L]

    Backward: dZ[L] = A[L] - Y from the loss, dZ[l] = W[l+1]ᵀ dZ[l+1] ⊙ g'(Z[l]); see
    `manual_bp.layers.dense`.

    Args:
        sizes: n_0, n_1, ..., n_L: the number of inputs, then of each layer's units.
        hidden: g of every layer but the last.

    Returns:
        A network whose params are ((W1, b1), ..., (WL, bL)), as in the notes.

    Raises:
        TypeError: when there are fewer than two sizes, or one is no positive int.

    Source: Rumelhart, Hinton & Williams (1986).

    Example:
        >>> mlp([64, 128, 10], hidden=tanh)
        sequential(Dense(128, tanh, inputs=64), Dense(10, inputs=128))
    """
    sizes = tuple(sizes)
    if len(sizes) < 2:
        raise TypeError(
            f"mlp: sizes must name the inputs and at least one layer, as in [64, 10]; got {sizes}."
        )
    *widths, outputs = sizes[1:]
    layers = [Dense(n, hidden, inputs=n_in) for n, n_in in zip(widths, sizes[:-2], strict=True)]
    return sequential(*layers, Dense(outputs, inputs=sizes[-2]))
