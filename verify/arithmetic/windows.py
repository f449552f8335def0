"""Windows and running reductions: the same for every kind of element, given its reductions.

A window primitive is a reduction over axes of its own, once the places of each window stand along
them. Padded places are 0 for sums and infinite for extremes, as JAX has them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from verify.arithmetic.movement import MOVEMENT

Primitive = Callable[..., Any]
FILL = {"reduce_window_sum": 0, "reduce_window_max": -math.inf, "reduce_window_min": math.inf}


def padded(params: Any, array: np.ndarray, fill: Any) -> np.ndarray:
    """The array with its padding around and its base dilation between the elements."""
    dilation = params.get("base_dilation") or (1,) * array.ndim
    config = [(*pair, each - 1) for pair, each in zip(params["padding"], dilation, strict=True)]
    return MOVEMENT["pad"]({"padding_config": config}, array, fill)


def windows(params: Any, array: np.ndarray) -> np.ndarray:
    """(*windows, *window): the places of each window of an array that is padded already."""
    sides, strides = params["window_dimensions"], params["window_strides"]
    dilation = params.get("window_dilation") or (1,) * array.ndim
    reach = tuple((side - 1) * each + 1 for side, each in zip(sides, dilation, strict=True))
    if any(one > size for one, size in zip(reach, array.shape, strict=True)):
        counts = [max(-(-(n - k + 1) // s), 0) for n, k, s in zip(array.shape, reach, strides)]  # noqa: B905
        return np.empty((*counts, *sides), array.dtype)
    steps = tuple(slice(None, None, each) for each in (*strides, *dilation))
    return sliding_window_view(array, reach)[steps]


def reductions(
    reduce: dict[str, Primitive], move: Callable[[Callable[..., Any], Any, float], Any]
) -> dict[str, Primitive]:
    """reduce_window_sum, _max and _min of an arithmetic.

    Args:
        reduce: its reduce_sum, reduce_max and reduce_min.
        move: move(function, value, fill), which applies function(array, fill) to a value.
    """

    def made(name: str) -> Primitive:
        def primitive(params: Any, value: Any) -> Any:
            rank = len(params["window_dimensions"])

            def places(array: np.ndarray, fill: Any) -> np.ndarray:
                return windows(params, padded(params, array, fill))

            axes = {"axes": tuple(range(rank, 2 * rank))}
            return reduce[name.replace("_window", "")](axes, move(places, value, FILL[name]))

        return primitive

    return {name: made(name) for name in FILL}


class Selected(NamedTuple):
    """What select_and_scatter_add chooses."""

    candidates: np.ndarray
    """(windows, places): the operand, padded."""
    places: np.ndarray
    """(windows, places): where in the padded operand, flattened."""
    winner: np.ndarray
    """(windows,): which place of the window."""
    shape: tuple[int, ...]
    """Of the padded operand."""


def select(params: Any, operand: np.ndarray) -> Selected:
    """The place of each window's extreme: the first one, unless a later one is larger.

    As in XLA a NaN is left for the next place, and a padded place, infinite, may win a tie.
    """
    at_least = params["select_prim"].name == "ge"
    full = padded(params, operand, -math.inf if at_least else math.inf)
    candidates = _rows(params, full)
    places = _rows(params, np.arange(full.size).reshape(full.shape))
    best, winner = candidates[:, 0], np.zeros(len(candidates), int)
    for place in range(1, candidates.shape[1]):
        candidate = candidates[:, place]
        stays = np.asarray(best >= candidate if at_least else best <= candidate, bool)
        best, winner = np.where(stays, best, candidate), np.where(stays, winner, place)
    return Selected(candidates, places, winner, full.shape)


def rows(params: Any, array: np.ndarray, fill: Any) -> np.ndarray:
    """(windows, places): the places of each window, of an array that is padded with fill."""
    return _rows(params, padded(params, array, fill))


def _rows(params: Any, full: np.ndarray) -> np.ndarray:
    return windows(params, full).reshape(-1, math.prod(params["window_dimensions"]))


def cropped(params: Any, full: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A padded array without its padding."""
    starts = [low for low, _ in params["padding"]]
    return full[tuple(slice(a, a + n) for a, n in zip(starts, shape, strict=True))]


def select_and_scatter_add(params: Any, source: np.ndarray, operand: np.ndarray) -> np.ndarray:
    """Each element of source added where its window of operand has its extreme."""
    chosen = select(params, operand)
    out = np.zeros(math.prod(chosen.shape), source.dtype)
    targets = np.take_along_axis(chosen.places, chosen.winner[:, None], 1)[:, 0]
    for target, error in zip(targets, source.ravel(), strict=True):
        out[target] = out[target] + error
    return cropped(params, out.reshape(chosen.shape), operand.shape)


def select_and_gather_add(params: Any, tangents: np.ndarray, operand: np.ndarray) -> np.ndarray:
    """The tangent at the place of each window's extreme; what the name adds to is zeros."""
    chosen = select(params, operand)
    counts = windows(params, padded(params, operand, 0)).shape[: operand.ndim]
    at = chosen.winner[:, None]
    return np.take_along_axis(rows(params, tangents, 0), at, 1).reshape(counts)


def running(function: Callable[[np.ndarray, int], Any]) -> Primitive:
    """A running reduction along params' axis, from either end."""

    def primitive(params: Any, array: np.ndarray) -> np.ndarray:
        axis = params["axis"]
        if params["reverse"]:
            return np.flip(function(np.flip(array, axis), axis), axis)
        return function(array, axis)

    return primitive


def sort(params: Any, *operands: np.ndarray) -> list[np.ndarray]:
    """Operands in the order of the first of them, which is the only key."""
    if params["num_keys"] != 1:
        raise NotImplementedError("sort by more than one key: add it to verify.arithmetic.windows")
    order = np.argsort(operands[0], axis=params["dimension"], kind="stable")
    return [np.take_along_axis(each, order, params["dimension"]) for each in operands]


PLAIN: dict[str, Primitive] = {
    "select_and_gather_add": select_and_gather_add,
    "select_and_scatter_add": select_and_scatter_add,
    "argmax": lambda params, a: np.argmax(a, axis=params["axes"][0]).astype(params["index_dtype"]),
    "argmin": lambda params, a: np.argmin(a, axis=params["axes"][0]).astype(params["index_dtype"]),
    "reduce_prod": lambda params, a: np.prod(a, axis=tuple(params["axes"])),
    "cumsum": running(np.cumsum),
    "cumprod": running(np.cumprod),
    "cummax": running(np.maximum.accumulate),
    "cummin": running(np.minimum.accumulate),
    "sort": sort,
}
"""For NumPy arrays of any kind of element: floats, integers, Python objects."""
