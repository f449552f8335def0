"""Average pooling: the mean of each window, channel by channel.

Forward, along one axis, with windows j of places i = 0 ... k-1, s places apart:

    out_j = (1/c_j) Σ_i x_{js+i-low}

with padded places 0, and over several axes one after the other, c being the product of theirs. c_j
is k, or with count_padding=False the number of the window's places that aren't padding.

Backward, given dout:

    g_j = dout_j / c_j
    dx_p = Σ over j with 0 ≤ p + low - j s < k of g_j

Derivation.  ∂out_j/∂x_p = 1/c_j for each p in window j, whatever x is. Contracting with dout sums
over the windows that p lies in. Set the g_j s places apart, 0 between them: then these windows are
k places in a row, and dx is again a windowed sum, with stride 1; where windows don't overlap, it is
g_j at each place of window j.

Backward keeps nothing of x but its shape. Sums and quotients are taken in at least float32.

Shapes  x, dx: (..., n₁, ..., n_d, C); out, dout: (..., n₁', ..., n_d', C), with
        n' = ⌊(low + n + high - k)/s⌋ + 1; d = 1, 2 or 3
Source  LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to document
        recognition (subsampling)
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
    """along: how the windows lie along each space axis; axes: of a mesh, those that divide x."""

    along: Static
    axes: Static


@dataclass(frozen=True)
class AvgPool(Layer):
    """The mean of each window.

    Args:
        window: its sides, one for each of 1, 2 or 3 space axes.
        stride: from one window to the next, along each axis or along all; the window's sides
            unless given.
        padding: "VALID" for none, "SAME" for ⌈n/stride⌉ windows along each axis, or pairs
            (before, behind), one for each space axis.
        count_padding: whether padded places count, as zeros; else the mean is that of the others.

    Raises:
        TypeError: for settings of the wrong type or number, for inputs that aren't floats.
        ValueError: for inputs with too few axes or places, for windows that are all padding.

    Source: LeCun et al. (1998).

    Example:
        >>> layer = AvgPool((2, 2))
        >>> x = jnp.arange(8.0).reshape(1, 2, 4, 1)
        >>> out, residuals = layer.forward((), x)
        >>> _, dx = layer.backward((), residuals, jnp.array([4.0, 8.0]).reshape(1, 1, 2, 1))
        >>> print(out[0, ..., 0], dx[0, ..., 0], sep=2 * chr(10))
        [[2.5 4.5]]
        <BLANKLINE>
        [[1. 1. 2. 2.]
         [1. 1. 2. 2.]]
    """

    window: Sides
    stride: int | Sides | None = None
    padding: Padding = "VALID"
    count_padding: bool = True

    def __post_init__(self) -> None:
        check_settings("AvgPool", self.window, self.stride, self.padding)
        if not isinstance(self.count_padding, bool):
            raise TypeError(f"AvgPool: count_padding must be a bool, got {self.count_padding!r}.")

    def init(self, key: jax.Array, x: Any) -> tuple[()]:
        del key
        along_axes(self, x, self.window, self.stride, self.padding)
        return ()

    def forward(self, params: Any, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        every = along_axes(self, x, self.window, self.stride, self.padding)
        total = undivided(x, *(along.axis for along in every)).astype(accumulation_dtype(x))
        for along in reversed(every):
            total = _windowed_sum(total, along)
        mean = (total / self._counts(every, total)).astype(x.dtype)
        return mean, Residuals(Static(tuple(every)), Static(axes_of(x)))

    def backward(
        self, params: Any, residuals: Residuals, dout: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        every = residuals.along.value
        g = undivided(dout, *(along.axis for along in every)).astype(accumulation_dtype(dout))
        g = g / self._counts(every, g)
        for along in every:
            g = _to_places(g, along)
        return (), divided(g.astype(dout.dtype), *residuals.axes.value)

    def _counts(self, every: list[Along], like: jax.Array) -> Any:
        """c: what sums are divided by, one number for all windows or (n₁', ..., n_d', 1)."""
        if self.count_padding or not any(along.low or along.high for along in every):
            return float(np.prod([along.side for along in every]))
        counts: Any = np.ones(1)
        for along in reversed(every):
            start = along.stride * np.arange(along.windows) - along.low
            inside = np.minimum(start + along.side, along.size) - np.maximum(start, 0)
            counts = np.multiply.outer(inside, counts)
        return jnp.asarray(counts, like.dtype)


def _windowed_sum(x: jax.Array, along: Along) -> jax.Array:
    """The sum of each window along one axis."""
    padded = along.pad(x, 0)
    total = along.place(padded, 0)
    for i in range(1, along.side):
        total = total + along.place(padded, i)
    return total


def _to_places(g: jax.Array, along: Along) -> jax.Array:
    """For each place of one axis the sum of g over the windows that it lies in."""
    if not along.overlap:
        shape = (*g.shape[: along.axis + 1], along.side, *g.shape[along.axis + 1 :])
        return along.side_by_side(jnp.broadcast_to(jnp.expand_dims(g, along.axis + 1), shape))
    window = [along.side if axis == along.axis else 1 for axis in range(g.ndim)]
    return jax.lax.reduce_window(along.apart(g), 0, jax.lax.add, window, (1,) * g.ndim, "VALID")
