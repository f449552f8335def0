"""Max pooling: the largest element of each window, channel by channel.

Forward, along one axis, with windows j of places i = 0 ... k-1, s places apart:

    out_j = max over i of x_{js+i-low}
    won_j = the smallest i at which x_{js+i-low} = out_j

and over several axes one after the other, the last one first: the largest element of a window is
the largest of its rows' largest.

Backward, given dout, axis by axis in the other order:

    dx_p = Σ over j with j s + won_j - low = p of dout_j

Derivation.  out_j is the element that won, and stays that element when x changes a little, so
∂out_j/∂x_p = [p = j s + won_j - low]. Contracting with dout sums over the windows that p has won:
several, where windows overlap. As a program: for each place i of the window, the errors of the
windows where i won, s places apart, added up; or, where windows don't overlap, dx at place i of
window j is dout_j if won_j = i, else 0.

Ties.  Where several elements of a window are largest, the first in the order of the axes (row by
row) gets the whole error, as in JAX; no derivative exists there. Taking the last axis first keeps
this order: each row's first largest, then the first of the rows.

Padding.  A padded place is -inf and never wins, not even in a window of -inf, whose first true
element gets the error. (Autodiff loses the error of such a window at the border.) A window that is
all padding is an error.

NaN.  The output of a window that holds a NaN is NaN, and its error goes to its first NaN. (Autodiff
gives the error to an element behind the last NaN that is no NaN, where there is one.)

Backward keeps won, one byte (for sides up to 256) for each output of each axis's step: with 2 x 2
windows 3 bytes for each output, where keeping x would take 16 in float32.

Shapes  x, dx: (..., n₁, ..., n_d, C); out, dout: (..., n₁', ..., n_d', C), with
        n' = ⌊(low + n + high - k)/s⌋ + 1; d = 1, 2 or 3
Source  Ranzato, Huang, Boureau & LeCun (2007), Unsupervised learning of invariant feature
        hierarchies; Fukushima (1980), Neocognitron, for pooling itself
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import Layer, Static, accumulation_dtype, check_taken
from manual_bp.layers._windows import Along, Padding, Sides, along_axes, check_settings
from manual_bp.sharding import axes_of, divided, undivided


class Residuals(NamedTuple):
    """won: for each space axis, the place in its window that won; along: how the windows lie;
    axes: of a mesh, which divide x.
    """

    won: tuple[jax.Array, ...]
    along: Static
    axes: Static


@dataclass(frozen=True)
class MaxPool(Layer):
    """The largest element of each window.

    Args:
        window: its sides, one for each of 1, 2 or 3 space axes.
        stride: from one window to the next, along each axis or along all; the window's sides
            unless given.
        padding: "VALID" for none, "SAME" for ⌈n/stride⌉ windows along each axis, or pairs
            (before, behind), one for each space axis.

    Raises:
        TypeError: for settings of the wrong type or number, for inputs that aren't floats.
        ValueError: for inputs with too few axes or places, for windows that are all padding.

    Source: Ranzato et al. (2007).

    Example:
        >>> layer = MaxPool((2, 2))
        >>> x = jnp.array([[1.0, 2.0, 5.0, 5.0], [4.0, 3.0, 5.0, 5.0]]).reshape(1, 2, 4, 1)
        >>> out, residuals = layer.forward((), x)
        >>> _, dx = layer.backward((), residuals, jnp.array([10.0, 20.0]).reshape(1, 1, 2, 1))
        >>> print(out[0, ..., 0], dx[0, ..., 0], sep=2 * chr(10))
        [[4. 5.]]
        <BLANKLINE>
        [[ 0.  0. 20.  0.]
         [10.  0.  0.  0.]]
    """

    window: Sides
    stride: int | Sides | None = None
    padding: Padding = "VALID"

    def __post_init__(self) -> None:
        check_settings("MaxPool", self.window, self.stride, self.padding)

    def init(self, key: jax.Array, x: Any) -> tuple[()]:
        del key
        along_axes(self, x, self.window, self.stride, self.padding)
        return ()

    def forward(self, params: Any, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        every = along_axes(self, x, self.window, self.stride, self.padding)
        out, won = undivided(x, *(along.axis for along in every)), []
        for along in reversed(every):
            out, place = _largest(out, along)
            won.append(place)
        axes = Static(axes_of(x))
        return out, Residuals(tuple(reversed(won)), Static(tuple(every)), axes)

    def backward(
        self, params: Any, residuals: Residuals, dout: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        every = residuals.along.value
        dx = undivided(dout, *(along.axis for along in every)).astype(accumulation_dtype(dout))
        for won, along in zip(residuals.won, every, strict=True):
            dx = _to_winners(dx, won, along)
        return (), divided(dx.astype(dout.dtype), *residuals.axes.value)


def _largest(x: jax.Array, along: Along) -> tuple[jax.Array, jax.Array]:
    """The largest of each window along one axis, and which place it has in the window."""
    padded = along.pad(x, -np.inf)
    largest = along.place(padded, 0)
    won = _first_true(largest, along)
    for i in range(1, along.side):
        candidate = along.place(padded, i)
        # Comparisons with NaN are false: the second one keeps a NaN that was there before.
        stays = (candidate <= largest) | (largest != largest)
        won = jnp.where(stays, won, jnp.asarray(i, won.dtype))
        largest = jnp.maximum(largest, candidate)
    return largest, won


def _first_true(like: jax.Array, along: Along) -> jax.Array:
    """The first place of each window that isn't padding: it wins until a larger one comes."""
    first = np.maximum(along.low - along.stride * np.arange(along.windows), 0)
    column = first.astype(np.min_scalar_type(along.side - 1)).reshape(
        -1, *(1,) * (like.ndim - 1 - along.axis)
    )
    return jnp.broadcast_to(column, like.shape)


def _to_winners(dout: jax.Array, won: jax.Array, along: Along) -> jax.Array:
    """The error of each window along one axis at the place that won, added over windows."""
    if not along.overlap:
        place = np.arange(along.side, dtype=won.dtype).reshape(
            -1, *(1,) * (dout.ndim - 1 - along.axis)
        )
        won, dout = (jnp.expand_dims(each, along.axis + 1) for each in (won, dout))
        return along.side_by_side(jnp.where(won == place, dout, 0))
    dx = along.put_back(jnp.where(won == 0, dout, 0), 0)
    for i in range(1, along.side):
        dx = dx + along.put_back(jnp.where(won == i, dout, 0), i)
    return dx
