"""Checks for layers that take tokens: integers that name a row of a table."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

from manual_bp.layer import Layer


def check_integers(layer: Layer, x: Any) -> None:
    """Raise unless x holds integers."""
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(
            f"{layer!r} takes integer tokens, got {x.dtype} {tuple(x.shape)}. Cast them, "
            "x.astype(jnp.int32), if they are tokens; vectors, one-hot ones too, need a Dense."
        )


def exist(x: Any, vocabulary: int) -> Any:
    """Whether each token is one of 0, ..., vocabulary - 1, as booleans."""
    x = x.astype(jnp.int32) if x.dtype.itemsize < 4 else x  # an int8 can't be compared with 50257
    return (x >= 0) & (x < vocabulary)


def check_tokens(layer: Layer, x: np.ndarray, counted: np.ndarray, vocabulary: int) -> None:
    """Raise unless all tokens that count exist, naming the first one that doesn't.

    Args:
        layer: named in the message.
        x: tokens, of any shape.
        counted: booleans of that shape, which of them have a weight other than 0.
        vocabulary: how many tokens there are.
    """
    wrong = np.argwhere(counted & ~exist(x, vocabulary))
    if len(wrong) == 0:
        return
    place = tuple(map(int, wrong[0]))
    where = ", ".join(map(str, place))
    advice = "Give padding a token of its own; a gradient also takes weights of 0."
    if x[place] >= 0:
        advice = "vocabulary must be larger than the largest token."
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    raise ValueError(
        f"{layer!r}: token {x[place]} at x[{where}]{more} doesn't exist: expected 0 to "
        f"{vocabulary - 1}. {advice}"
    )
