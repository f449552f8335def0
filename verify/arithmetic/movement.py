"""Primitives that move elements about: the same for every kind of element.

Each is a function (params, *arrays) -> array, or a list of arrays where there are several outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def _broadcast_in_dim(params: Any, array: np.ndarray, *_: Any) -> np.ndarray:
    shape, places = params["shape"], params["broadcast_dimensions"]
    array = np.asarray(array)
    expanded = [1] * len(shape)
    for axis, place in enumerate(places):
        expanded[place] = array.shape[axis]
    return np.broadcast_to(array.reshape(expanded), shape)


def _pad(params: Any, array: np.ndarray, value: np.ndarray) -> np.ndarray:
    config = params["padding_config"]
    shape = [
        max(low + high + size + max(size - 1, 0) * inner, 0)
        for size, (low, high, inner) in zip(array.shape, config, strict=True)
    ]
    out = np.empty(shape, dtype=array.dtype)
    out[...] = value
    source, target = [], []
    for size, full, (low, _, inner) in zip(array.shape, shape, config, strict=True):
        kept = [(low + i * (inner + 1), i) for i in range(size)]
        kept = [(place, i) for place, i in kept if 0 <= place < full]
        target.append([place for place, _ in kept])
        source.append([i for _, i in kept])
    out[np.ix_(*target)] = array[np.ix_(*source)]
    return out


def _reshape(params: Any, array: np.ndarray, *_: Any) -> np.ndarray:
    order = params["dimensions"]  # in which the axes are read, None for as they are
    return np.reshape(array if order is None else np.transpose(array, order), params["new_sizes"])


def _select_n(params: Any, which: Any, *cases: np.ndarray) -> np.ndarray:
    del params
    which = np.asarray(which)
    if which.dtype == bool:
        return np.where(which, cases[1], cases[0])
    out = cases[0]
    for number, case in enumerate(cases[1:], start=1):
        out = np.where(which == number, case, out)
    return out


def _slice(params: Any, array: np.ndarray) -> np.ndarray:
    strides = params["strides"] or (1,) * array.ndim
    return array[
        tuple(
            slice(*each)
            for each in zip(params["start_indices"], params["limit_indices"], strides, strict=True)
        )
    ]


def _split(params: Any, array: np.ndarray) -> list[np.ndarray]:
    return np.split(array, np.cumsum(params["sizes"])[:-1], axis=params["axis"])


def _dynamic_slice(params: Any, array: np.ndarray, *starts: Any) -> np.ndarray:
    where = []
    for size, length, start in zip(array.shape, params["slice_sizes"], starts, strict=True):
        first = min(max(int(start), 0), size - length)
        where.append(slice(first, first + length))
    return array[tuple(where)]


def _dynamic_update_slice(
    params: Any, array: np.ndarray, update: np.ndarray, *starts: Any
) -> np.ndarray:
    del params
    out = np.array(array)
    where = []
    for size, length, start in zip(array.shape, update.shape, starts, strict=True):
        first = min(max(int(start), 0), size - length)
        where.append(slice(first, first + length))
    out[tuple(where)] = update
    return out


MOVEMENT = {
    "broadcast_in_dim": _broadcast_in_dim,
    "reshape": _reshape,
    "transpose": lambda params, a: np.transpose(a, params["permutation"]),
    "squeeze": lambda params, a: np.squeeze(a, tuple(params["dimensions"])),
    "expand_dims": lambda params, a: np.expand_dims(a, params["dimensions"]),
    "concatenate": lambda params, *each: np.concatenate(each, axis=params["dimension"]),
    "tile": lambda params, a: np.tile(a, params["reps"]),
    "stack": lambda params, *each: np.stack(each, axis=params["axis"]),
    "unstack": lambda params, a: list(np.moveaxis(a, params["axis"], 0)),
    "rev": lambda params, a: np.flip(a, params["dimensions"]),
    "pad": _pad,
    "slice": _slice,
    "split": _split,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "select_n": _select_n,
    "copy": lambda params, a: a,
    "copy_p": lambda params, a: a,
    "stop_gradient": lambda params, a: a,
}
