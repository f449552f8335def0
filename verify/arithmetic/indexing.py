"""gather and scatter: what `table[tokens]`, `jnp.take` and `.at[]` are traced to.

Both walk over windows of an operand. A row of the indices, their last axis, says where a window
starts along some axes of the operand; along batching axes it starts at the row's own place. Which
elements of the operand a window consists of is the same question for both, and is answered here
once, as places in the flattened operand.

What happens to a window that is not inside the operand as a whole, the mode says, and XLA where it
leaves that open: "clip" moves it inside, "fill or drop" fills what is read and drops what is
written, "promise in bounds" is moved inside where it is read and dropped where it is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jax.lax import GatherScatterMode


def gather(params: Any, operand: np.ndarray, fill: Any, indices: np.ndarray) -> np.ndarray:
    """The windows of operand that start at the indices.

    Args:
        params: of the equation.
        operand: with elements of any kind.
        fill: () what stands in a window that isn't read.
        indices: integers, (..., indexed axes).
    """
    numbers, mode = params["dimension_numbers"], GatherScatterMode.from_any(params["mode"])
    place, inside = _places(
        operand.shape,
        indices,
        params["slice_sizes"],
        clip=mode != GatherScatterMode.FILL_OR_DROP,
        indexed=numbers.start_index_map,
        dropped=numbers.collapsed_slice_dims,
        batching=(numbers.operand_batching_dims, numbers.start_indices_batching_dims),
        window_axes=numbers.offset_dims,
    )
    out = np.empty(place.shape, operand.dtype)
    out[...] = fill
    out[inside] = operand.reshape(-1)[place[inside]]
    return out


def scatter(
    params: Any, operand: np.ndarray, updates: np.ndarray, indices: np.ndarray
) -> np.ndarray:
    """operand with updates in place of its windows; of several for one element the last one.

    JAX leaves open which of several it is. On CPU it is the last.
    """
    place, inside = _targets(params, operand.shape, updates.shape, indices)
    window = params["dimension_numbers"].update_window_dims
    place, inside, updates = (  # window after window
        np.moveaxis(each, window, range(-len(window), 0)) for each in (place, inside, updates)
    )
    out = np.array(operand).reshape(-1)
    out[place[inside]] = updates[inside]
    return out.reshape(operand.shape)


def scatter_add(
    params: Any, operand: np.ndarray, indices: np.ndarray, updates: np.ndarray
) -> np.ndarray:
    """operand with updates added to its windows: to one element as many as meet there."""
    place, inside = _targets(params, operand.shape, updates.shape, indices)
    out = np.array(operand).reshape(-1)
    np.add.at(out, place[inside], updates[inside])
    return out.reshape(operand.shape)


def _targets(
    params: Any, shape: Sequence[int], updates: Sequence[int], indices: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where in the flattened operand each update belongs, and whether it is written at all."""
    numbers, mode = params["dimension_numbers"], GatherScatterMode.from_any(params["mode"])
    sides = iter(updates[axis] for axis in numbers.update_window_dims)
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    return _places(
        shape,
        indices,
        [1 if axis in dropped else next(sides) for axis in range(len(shape))],
        clip=mode == GatherScatterMode.CLIP,
        indexed=numbers.scatter_dims_to_operand_dims,
        dropped=numbers.inserted_window_dims,
        batching=(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims),
        window_axes=numbers.update_window_dims,
    )


def _places(
    shape: Sequence[int],
    indices: np.ndarray,
    sizes: Sequence[int],
    *,
    clip: bool,
    indexed: Sequence[int],
    dropped: Sequence[int],
    batching: tuple[Sequence[int], Sequence[int]],
    window_axes: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """Places of the windows' elements in the flattened operand, and whether the window is inside.

    Args:
        shape: of the operand.
        indices: (*rows, indexed axes).
        sizes: of a window, along each axis of the operand.
        clip: whether windows are moved inside.
        indexed: the operand's axes that the indices are for.
        dropped: axes of the operand, of size 1 in a window, that the result doesn't have.
        batching: axes of the operand, and those of the indices that run along with them; the
            result doesn't have the former.
        window_axes: where the window's other axes stand in the result, after one another.

    Returns:
        Both in the result's shape.
    """
    indices = np.asarray(indices).astype(np.int64)
    rows = indices.shape[:-1]
    rank = len(shape)

    def spread(start: np.ndarray) -> np.ndarray:
        return start.reshape(*rows, *[1] * rank)

    start = [np.zeros(rows, np.int64) for _ in shape]
    for number, axis in enumerate(indexed):
        start[axis] = indices[..., number]
    for axis, along in zip(*batching, strict=True):
        start[axis] = np.indices(rows)[along]
    inside = np.ones(rows, bool)
    place: Any = np.zeros((*rows, *sizes), np.int64)
    for axis, (size, side) in enumerate(zip(shape, sizes, strict=True)):
        first = np.clip(start[axis], 0, size - side) if clip else start[axis]
        inside &= (first >= 0) & (first <= size - side)
        along = [1] * rank
        along[axis] = side
        step = math.prod(shape[axis + 1 :])
        place = place + (spread(first) + np.arange(side).reshape(along)) * step
    whole = np.broadcast_to(spread(inside), place.shape)

    gone = {*dropped, *batching[0]}
    kept = [side for axis, side in enumerate(sizes) if axis not in gone]

    def laid_out(found: np.ndarray) -> np.ndarray:
        found = found.reshape((*rows, *kept))
        return np.moveaxis(found, range(len(rows), found.ndim), window_axes)

    return laid_out(place), laid_out(whole)
