"""Spec of MaxPool: lax.reduce_window, whose derivative is XLA's own scatter; or the largest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.max_pool import MaxPool
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def strides(layer: Any) -> tuple[int, ...]:
    """The layer's stride along each axis in space."""
    if layer.stride is None:
        return layer.window
    return layer.stride if isinstance(layer.stride, tuple) else (layer.stride,) * len(layer.window)


def config(layer: Any, x: Any) -> dict[str, Any]:
    """The settings as lax.reduce_window takes them: every axis, pairs of padding."""
    rank = len(layer.window)
    before = x.ndim - rank - 1
    padding: Any = layer.padding
    if not isinstance(padding, str):
        padding = ((0, 0),) * before + padding + ((0, 0),)
    return {
        "window_dimensions": (1,) * before + layer.window + (1,),
        "window_strides": (1,) * before + strides(layer) + (1,),
        "padding": padding,
    }


def reference(layer: MaxPool, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """lax.reduce_window, as flax and equinox have it."""
    del params, tap
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, **config(layer, x))


def by_windows(layer: Any, x: np.ndarray, reduce: Any) -> np.ndarray:
    """One window at a time: reduce(the elements in it, how many places it has)."""
    rank = len(layer.window)
    images = x.reshape(-1, *x.shape[-rank - 1 :])
    starts = []
    for axis, size in enumerate(images.shape[1:-1]):
        side, step = layer.window[axis], strides(layer)[axis]
        if layer.padding == "SAME":
            count = -(-size // step)
            first = -(max((count - 1) * step + side - size, 0) // 2)
        else:
            before, behind = (0, 0) if layer.padding == "VALID" else layer.padding[axis]
            count, first = (before + size + behind - side) // step + 1, -before
        starts.append([first + number * step for number in range(count)])
    found = []
    for image in images:
        for corner in itertools.product(*starts):
            inside = [
                range(max(start, 0), min(start + side, size))
                for start, side, size in zip(corner, layer.window, image.shape, strict=False)
            ]
            places = list(itertools.product(*inside))
            for channel in range(image.shape[-1]):
                found.append(reduce([image[(*place, channel)] for place in places]))
    counts = [len(each) for each in starts]
    return np.array(found, object).reshape(*x.shape[: -rank - 1], *counts, x.shape[-1])


def naive(layer: MaxPool, params: Any, x: np.ndarray) -> np.ndarray:
    """The largest of the elements in each window."""
    del params
    return by_windows(layer, x, max)


def settings(rng: np.random.Generator, shape: Shape) -> dict[str, Any] | None:
    """A window that fits images of this shape, with stride and padding; None for no images."""
    rank = min(len(shape) - 2, 3)
    if rank < 1:
        return None
    space = shape[-1 - rank : -1]
    window = tuple(int(rng.integers(1, min(size, 3) + 1)) for size in space)
    stride = tuple(int(rng.integers(1, 4)) for _ in space) if rng.random() < 0.6 else None
    kind = rng.random()
    if kind < 0.3:
        return {"window": window, "stride": stride, "padding": "SAME"}
    if kind < 0.6 and stride is not None and max(stride) == 1:
        pairs = tuple((int(rng.integers(k)), int(rng.integers(k))) for k in window)
        return {"window": window, "stride": stride, "padding": pairs}
    return {"window": window, "stride": stride}


def draw(rng: np.random.Generator, shape: Shape) -> MaxPool | None:
    """Over all axes between examples and channels, three at most."""
    given = settings(rng, shape)
    return None if given is None else MaxPool(**given)


def shrink(layer: Any) -> Iterator[Any]:
    """No padding, the window's own stride."""
    if layer.padding != "VALID":
        yield type(layer)(layer.window, layer.stride)
    if layer.stride is not None:
        yield type(layer)(layer.window)
    yield mbp.identity


def bad_settings(kind: Any) -> tuple[BadInput, ...]:
    """What MaxPool and AvgPool must refuse alike."""
    name = kind.__name__

    def at(*shape: int, dtype: Any = jnp.float32) -> jax.Array:
        return jnp.zeros(shape, dtype)

    return (
        BadInput(
            "an int for a window",
            lambda: kind(2),
            TypeError,
            (f"{name}: window must be a tuple of 1 to 3 positive ints", "(2, 2)", "got 2"),
        ),
        BadInput(
            "a window of size 0",
            lambda: kind((2, 0)),
            TypeError,
            (f"{name}: window", "positive ints", "got (2, 0)"),
        ),
        BadInput(
            "a window over four axes",
            lambda: kind((1, 1, 1, 1)),
            TypeError,
            (f"{name}: window", "1 to 3", "got (1, 1, 1, 1)"),
        ),
        BadInput(
            "a stride for one axis of two",
            lambda: kind((2, 2), (2,)),
            TypeError,
            (f"{name}: stride must be a tuple of 2 positive ints", "got (2,)"),
        ),
        BadInput(
            "padding that doesn't exist",
            lambda: kind((2, 2), padding="same"),
            ValueError,
            (f"{name}: padding", '"VALID"', '"SAME"', "got 'same'"),
        ),
        BadInput(
            "one number of padding",
            lambda: kind((2, 2), padding=1),
            TypeError,
            (f"{name}: padding", "2 pairs", "((1, 1), (1, 1))", "got 1"),
        ),
        BadInput(
            "negative padding",
            lambda: kind((2,), padding=((-1, 0),)),
            TypeError,
            (f"{name}: padding", "none negative", "got ((-1, 0),)"),
        ),
        BadInput(
            "an image without examples",
            lambda: kind((2, 2)).forward((), at(4, 4, 3)),
            ValueError,
            (f"{name}((2, 2))", "x has shape (4, 4, 3)", "expected (m, n1, n2, C)"),
        ),
        BadInput(
            "a window larger than the image",
            lambda: kind((2, 5)).init(jax.random.key(0), at(2, 4, 4, 3)),
            ValueError,
            (f"{name}((2, 5))", "axis 2 of x (2, 4, 4, 3)", "has 4 places", "window's 5", "SAME"),
        ),
        BadInput(
            "an image without places",
            lambda: kind((1,), padding="SAME").forward((), at(2, 0, 3)),
            ValueError,
            (f"{name}((1,), padding='SAME')", "axis 1 of x (2, 0, 3) is empty"),
        ),
        BadInput(
            "a first window that is all padding",
            lambda: kind((2,), padding=((2, 0),)).forward((), at(2, 4, 3)),
            ValueError,
            (f"{name}((2,)", "(2, 0)", "all padding", "less than the window's side"),
        ),
        BadInput(
            "a last window that is all padding",
            lambda: kind((2,), (1,), ((0, 2),)).forward((), at(2, 4, 3)),
            ValueError,
            (f"{name}((2,)", "(0, 2)", "all padding"),
        ),
        BadInput(
            "integer images",
            lambda: kind((2, 2)).forward((), at(2, 4, 4, 3, dtype=jnp.uint8)),
            TypeError,
            (f"{name}((2, 2))", "floating-point", "uint8 (2, 4, 4, 3)", "x / 255"),
        ),
    )


def _edge(
    what: str, point: tuple[float, ...], stated: Any, recorded: Any, layer: MaxPool, weights: Any
) -> Edge:
    """The derivative of the weighted sum of one row's windows."""

    def row(x: jax.Array) -> jax.Array:
        return x.reshape(1, -1, 1)

    def manual(x: jax.Array) -> jax.Array:
        _, residuals = layer.forward((), row(x))
        return layer.backward((), residuals, row(jnp.array(weights)))[1].ravel()

    def total(x: jax.Array) -> jax.Array:
        out = reference(layer, (), row(x), lambda name, value: value)
        return jnp.sum(out * row(jnp.array(weights)))

    return Edge(what, point, "float32", stated, manual, jax.grad(total), recorded)


NAN, INF = float("nan"), float("inf")
WHOLE = MaxPool((4,))
BORDER = MaxPool((3,), (1,), ((1, 1),))

EDGES = (
    _edge("a tie: the first", (1, 3, 3, 3), (0, 1, 0, 0), (0, 1, 0, 0), WHOLE, [1.0]),
    _edge("0 and -0 tie", (-0.0, 0.0, -1, 0.0), (1, 0, 0, 0), (1, 0, 0, 0), WHOLE, [1.0]),
    _edge("a tie in two windows", (2, 2), (11, 0), (11, 0), BORDER, [1.0, 10.0]),
    _edge("-inf: the first", (-INF,) * 4, (1, 0, 0, 0), (1, 0, 0, 0), WHOLE, [1.0]),
    _edge(
        "-inf at a border: JAX's padding wins, and the error is lost",
        *((-INF, -INF), (11, 0), (10, 0), BORDER, [1.0, 10.0]),
    ),
    _edge("a NaN: the NaN itself", (1, NAN, 5, 4), (0, 1, 0, 0), (0, 0, 1, 0), WHOLE, [1.0]),
    _edge("NaN: the first", (1, NAN, 5, NAN), (0, 1, 0, 0), (0, 0, 0, 1), WHOLE, [1.0]),
)

SPECS = (
    LayerSpec(
        layer=MaxPool,
        samples=(
            (MaxPool((2, 3)), (2, 5, 6, 2)),  # a row is left over
            (MaxPool((3, 2), (2, 1)), (2, 5, 4, 1)),  # windows overlap along both axes
            (MaxPool((3, 3), 2, "SAME"), (1, 4, 4, 2)),
            (MaxPool((2, 2), (1, 1), ((1, 0), (0, 1))), (2, 2, 2, 2)),
            (MaxPool((2,), (3,)), (2, 8, 3)),  # gaps between windows
            (MaxPool((3,), (1,), ((2, 1),)), (3, 2, 1)),
            (MaxPool((2, 1), None, ((1, 1), (0, 0))), (1, 2, 1, 2)),
            (MaxPool((2, 1, 2), (1, 1, 2)), (2, 3, 2, 4, 1)),
            (MaxPool((2, 2)), (2, 2, 2, 3, 1)),  # two leading axes
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: True,
        smooth=lambda layer: False,
        edges=EDGES,
        errors=bad_settings(MaxPool),
    ),
)
