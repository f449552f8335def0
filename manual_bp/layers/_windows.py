"""Windows over the space axes of images: settings, padding, and one axis at a time.

A window of sides k₁ ... k_d with strides s₁ ... s_d runs over the space axes of
x (..., n₁, ..., n_d, C). Along an axis of n places, padded by `low` places before and `high`
behind, there are ⌊(low + n + high - k)/s⌋ + 1 windows, and place i of window j is place
j s + i - low of the axis.

What is computed window by window and can be computed axis by axis takes k₁ + ... + k_d steps so,
instead of k₁ ... k_d.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating
from manual_bp.layer import Layer

Sides = tuple[int, ...]
Padding = str | tuple[tuple[int, int], ...]


class Along(NamedTuple):
    """How the windows lie along one axis."""

    axis: int
    """Counted from the front."""
    size: int
    """n, the places of the axis."""
    side: int
    """k, the places of a window."""
    stride: int
    """s, from one window to the next."""
    low: int
    """Padding before the axis."""
    high: int
    """Padding behind it."""

    @property
    def windows(self) -> int:
        """The number of windows."""
        return (self.low + self.size + self.high - self.side) // self.stride + 1

    def pad(self, x: jax.Array, value: float) -> jax.Array:
        """The axis with `low` and `high` places of this value around it."""
        return jax.lax.pad(x, jnp.asarray(value, x.dtype), self._config(x, self.low, self.high, 0))

    def place(self, padded: jax.Array, i: int) -> jax.Array:
        """Place i of each window: places i, i + s, i + 2s, ... of the padded axis."""
        end = i + (self.windows - 1) * self.stride + 1
        return jax.lax.slice_in_dim(padded, i, end, self.stride, self.axis)

    def put_back(self, errors: jax.Array, i: int) -> jax.Array:
        """The transpose of `place` and `pad`: errors, one a window, at their place i, else 0."""
        low = i - self.low
        return jax.lax.pad(errors, jnp.zeros((), errors.dtype), self._apart(errors, low))

    @property
    def overlap(self) -> bool:
        """Whether a place may lie in several windows."""
        return self.side > self.stride

    def side_by_side(self, places: jax.Array) -> jax.Array:
        """The places of windows that don't overlap, (..., n', k, ...), as (..., n, ...).

        What `put_back` of each place, added up, would be, without any addition.
        """
        gap = [(0, 0, 0)] * places.ndim
        gap[self.axis + 1] = (0, self.stride - self.side, 0)
        zero = jnp.zeros((), places.dtype)
        places = jax.lax.pad(places, zero, gap)
        shape = places.shape
        row = places.reshape(*shape[: self.axis], -1, *shape[self.axis + 2 :])
        behind = self.size + self.low - self.windows * self.stride
        return jax.lax.pad(row, zero, self._config(row, -self.low, behind, 0))

    def apart(self, errors: jax.Array) -> jax.Array:
        """Errors, one a window, s places apart, so that place p's are at p ... p + k - 1."""
        before = self.side - 1 - self.low
        # The windows that reach place p end k - 1 behind it.
        low, high, inner = self._apart(errors, before)[self.axis]
        config = self._config(errors, low, high + self.side - 1, inner)
        return jax.lax.pad(errors, jnp.zeros((), errors.dtype), config)

    def _apart(self, errors: jax.Array, low: int) -> list[tuple[int, int, int]]:
        """Padding that puts window j's error at low + j s of an axis of n places."""
        high = self.size - 1 - low - (self.windows - 1) * self.stride
        return self._config(errors, low, high, self.stride - 1)

    def _config(self, x: jax.Array, low: int, high: int, inner: int) -> list[tuple[int, int, int]]:
        config = [(0, 0, 0)] * x.ndim
        config[self.axis] = (low, high, inner)
        return config


def check_settings(kind: str, window: Any, stride: Any, padding: Any) -> None:
    """Raise unless a pooling layer's settings fit together."""
    if not _are_sides(window) or len(window) not in (1, 2, 3):
        meant = _tupled(window) if isinstance(window, list) else (window,) * 2
        advice = f" Write window={meant}." if _are_sides(meant) and len(meant) in (1, 2, 3) else ""
        raise TypeError(
            f"{kind}: window must be a tuple of 1 to 3 positive ints, one for each space axis, "
            f"such as (2, 2); got {window!r}.{advice}"
        )
    fits = stride is None or _is_int(stride, 1)
    if not fits and not (_are_sides(stride) and len(stride) == len(window)):  # pyright: ignore[reportArgumentType]
        raise TypeError(
            f"{kind}: stride must be a tuple of {len(window)} positive ints like the window "
            f"{window}, one int for every axis, or None for the window's own sides; got {stride!r}."
        )
    if isinstance(padding, str):
        if padding not in ("VALID", "SAME"):
            raise ValueError(f'{kind}: padding must be "VALID", "SAME" or pairs, got {padding!r}.')
        return
    if not _are_pairs(padding, len(window)):
        meant = _tupled(padding)
        advice = f" Write padding={meant}." if _are_pairs(meant, len(window)) else ""
        raise TypeError(
            f'{kind}: padding must be "VALID", "SAME", or a tuple of {len(window)} pairs of ints '
            f"(before, behind), none negative, such as {((1, 1),) * len(window)}; got {padding!r}."
            f"{advice}"
        )


def _tupled(value: Any) -> Any:
    """The value with tuples for lists."""
    return tuple(map(_tupled, value)) if isinstance(value, list | tuple) else value


def along_axes(
    layer: Layer, x: Any, window: Sides, stride: int | Sides | None, padding: Padding
) -> list[Along]:
    """How the windows lie along each space axis of inputs like x; raise unless they fit."""
    check_floating(layer, x)
    shape, rank = tuple(x.shape), len(window)
    if x.ndim < rank + 2:
        names = ("n1", "n2", "n3")[:rank]
        raise ValueError(
            f"{layer!r}: x has shape {shape}, expected (m, {', '.join(names)}, C): examples first, "
            f"{rank} space {'axis' if rank == 1 else 'axes'}, channels last."
        )
    steps = (stride,) * rank if isinstance(stride, int) else stride or window
    first, found = x.ndim - 1 - rank, []
    for number, (side, step) in enumerate(zip(window, steps, strict=True)):
        axis = first + number
        size = shape[axis]
        if padding == "SAME":
            total = max((-(-size // step) - 1) * step + side - size, 0)
            low, high = total // 2, total - total // 2
        else:
            low, high = (0, 0) if isinstance(padding, str) else padding[number]
        along = Along(axis, size, side, step, low, high)
        _check_fit(layer, shape, along)
        found.append(along)
    return found


def _check_fit(layer: Layer, shape: tuple[int, ...], along: Along) -> None:
    where = f"{layer!r}: axis {along.axis} of x {shape}"
    if along.size == 0:
        raise ValueError(f"{where} is empty.")
    if along.side > along.low + along.size + along.high:
        raise ValueError(
            f"{where} has {along.size} places, and with padding "
            f"{along.low + along.size + along.high}: fewer than the window's {along.side}. "
            'Use a smaller window, or padding="SAME".'
        )
    last = (along.windows - 1) * along.stride - along.low
    if along.low >= along.side or last >= along.size:
        raise ValueError(
            f"{where}, padded by {(along.low, along.high)}, has a window of {along.side} that is "
            "all padding: pad by less than the window's side."
        )


def _are_sides(value: Any, least: int = 1) -> bool:
    return isinstance(value, tuple) and all(_is_int(each, least) for each in value)


def _are_pairs(value: Any, count: int) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == count
        and all(_are_sides(pair, 0) and len(pair) == 2 for pair in value)
    )


def _is_int(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
