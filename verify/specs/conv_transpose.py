"""Spec of ConvTranspose: jax.lax.conv_transpose; or each input painting the filter where it can."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layers.conv_transpose import ConvTranspose, Params
from verify.specification import BadInput, LayerSpec, Shape, Tap


def _sizes(setting: Any, rank: int) -> tuple[int, ...]:
    return tuple(setting) if isinstance(setting, tuple) else (setting,) * rank


def reference(layer: ConvTranspose, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """jax.lax.conv_transpose, as flax calls it."""
    W, b = params
    space = "DHW"[5 - x.ndim :]
    layout = (f"N{space}C", f"{space}IO", f"N{space}C")
    strides = _sizes(layer.stride, x.ndim - 2)
    out = jax.lax.conv_transpose(x, W, strides, layer.padding, dimension_numbers=layout)
    return out + b if layer.bias else out


def naive(layer: ConvTranspose, params: Any, x: np.ndarray) -> np.ndarray:
    """One product at a time, each added to the output that it belongs to."""
    W, b = params
    m, *space, channels = x.shape
    *kernel, _, features = W.shape
    strides = _sizes(layer.stride, len(space))
    places, lows = [], []
    for axis, (n, k, s) in enumerate(zip(space, kernel, strides, strict=True)):
        if layer.padding == "VALID":
            count, low = s * n + max(k - s, 0), k - 1
        elif layer.padding == "SAME":
            count, low = s * n, k - 1 if s >= k else -(-(k + s - 2) // 2)
        else:
            pairs: Any = layer.padding
            low, high = pairs[axis]
            count = s * (n - 1) + 1 + low + high - (k - 1)
        places.append(count)
        lows.append(low)
    zero = 0 * W.flat[0]
    out = np.empty((m, *places, features), object)
    out[...] = zero + b if layer.bias else zero
    for example, *at in np.ndindex(m, *space):
        for p in np.ndindex(*kernel):
            where = tuple(
                s * i - j + low for s, i, j, low in zip(strides, at, p, lows, strict=True)
            )
            if any(not 0 <= j < n for j, n in zip(where, places, strict=True)):
                continue
            for c in range(channels):
                for o in range(features):
                    out[(example, *where, o)] += x[(example, *at, c)] * W[(*p, c, o)]
    return out


def draw(rng: np.random.Generator, shape: Shape) -> ConvTranspose | None:
    """For 3 to 5 axes; strides of 1 or 2 mostly, on images that stay small."""
    rank = len(shape) - 2
    if rank not in (1, 2, 3):
        return None
    kernel = tuple(int(rng.choice([1, 2, 3, 4], p=[0.1, 0.35, 0.4, 0.15])) for _ in range(rank))
    large = np.prod(shape[1:-1]) > 40
    stride = 1 if large else int(rng.choice([1, 2, 3], p=[0.3, 0.6, 0.1]))
    padding: Any = str(rng.choice(["SAME", "VALID"], p=[0.7, 0.3]))
    if rng.random() < 0.3:
        lows = [int(rng.integers(0, k + 1)) for k in kernel]
        padding = tuple((low, max(k - low, 0)) for low, k in zip(lows, kernel, strict=True))
    return ConvTranspose(
        int(rng.integers(1, 6)),
        kernel,
        stride=stride,
        padding=padding,
        bias=bool(rng.random() < 0.8),
    )


def shrink(layer: ConvTranspose) -> Iterator[ConvTranspose]:
    """One setting less."""
    if layer.stride != 1:
        yield replace(layer, stride=1)
    if not layer.bias:
        yield replace(layer, bias=True)
    if layer.padding != "SAME":
        yield replace(layer, padding="SAME")
    if layer.features > 1:
        yield replace(layer, features=1)


def _forward(layer: ConvTranspose, W: Any, b: Any, x: Any) -> Any:
    return lambda: layer.forward(Params(jnp.zeros(W), jnp.zeros(b)), jnp.zeros(x))


def _init(layer: ConvTranspose, x: Any) -> Any:
    return lambda: layer.init(jax.random.key(0), jnp.zeros(x))


def _made(*args: Any, **settings: Any) -> Any:
    return lambda: ConvTranspose(*args, **settings)


_PLAIN = ConvTranspose(4, (3, 3), stride=2)

ERRORS = (
    BadInput(
        "x without channels",
        _init(_PLAIN, (5, 8, 8)),
        ValueError,
        (
            "ConvTranspose(4, (3, 3), stride=2)",
            "x has shape (5, 8, 8)",
            "(m, height, width, channels)",
            "x[..., None]",
        ),
    ),
    BadInput(
        "x with other channels",
        _forward(_PLAIN, (3, 3, 2, 4), (4,), (5, 8, 8, 3)),
        ValueError,
        ("x has shape (5, 8, 8, 3)", "expected (m, height, width, 2)"),
    ),
    BadInput(
        "x with channels first",
        _forward(_PLAIN, (3, 3, 2, 4), (4,), (5, 2, 8, 8)),
        ValueError,
        ("x has shape (5, 2, 8, 8)", "Channels come last", "jnp.moveaxis(x, 1, -1)"),
    ),
    BadInput(
        "x with no height",
        _init(_PLAIN, (5, 0, 8, 2)),
        ValueError,
        ("x has shape (5, 0, 8, 2)", "nothing in it"),
    ),
    BadInput(
        "integer x",
        lambda: _PLAIN.init(jax.random.key(0), jnp.zeros((5, 8, 8, 2), jnp.uint8)),
        TypeError,
        ("ConvTranspose(4, (3, 3), stride=2)", "floating-point", "uint8", "x / 255"),
    ),
    BadInput(
        "nothing left of the output",
        _forward(ConvTranspose(4, 5, padding=((0, 1),)), (5, 2, 4), (4,), (1, 3, 2)),
        ValueError,
        ("x has shape (1, 3, 2)", "a kernel of 5", "become 4", 'padding="VALID"'),
    ),
    BadInput(
        "W with channels and features exchanged",
        _forward(_PLAIN, (3, 3, 4, 2), (4,), (5, 8, 8, 2)),
        ValueError,
        ("W has shape (3, 3, 4, 2)", "expected (3, 3, channels, 4)"),
    ),
    BadInput(
        "bias (1,)",
        _forward(_PLAIN, (3, 3, 2, 4), (1,), (5, 8, 8, 2)),
        ValueError,
        ("b has shape (1,)", "expected (4,)", "not broadcast"),
    ),
    BadInput(
        "a bias where there should be none",
        _forward(ConvTranspose(4, (3, 3), bias=False), (3, 3, 2, 4), (4,), (5, 8, 8, 2)),
        ValueError,
        ("a bias b", "expected b=()", "bias=False"),
    ),
    BadInput(
        "params that aren't ConvTranspose's",
        lambda: _PLAIN.forward(
            (jnp.zeros((3, 3, 2, 4)), jnp.zeros(4)),  # pyright: ignore[reportArgumentType]
            jnp.zeros((5, 8, 8, 2)),
        ),
        TypeError,
        ("fields W and b", "got tuple", "network.init"),
    ),
    BadInput("no features", _made(0, 3), TypeError, ("features", "positive int", "0")),
    BadInput("a kernel of size 0", _made(4, 0), TypeError, ("kernel", "positive int", "0")),
    BadInput(
        "a stride for another number of axes",
        _made(4, (3, 3), stride=(2, 2, 2)),
        ValueError,
        ("stride has 3 sizes", "expected 2"),
    ),
    BadInput(
        "an unknown padding",
        _made(4, 3, padding="CAUSAL"),
        ValueError,
        ("padding must be", '"SAME", "VALID" or 1 pair', "got 'CAUSAL'"),
    ),
    BadInput(
        "negative padding",
        _made(4, 3, padding=((0, -1),)),
        ValueError,
        ("must not be negative", "((0, -1),)"),
    ),
)

SPECS = (
    LayerSpec(
        layer=ConvTranspose,
        samples=(
            (ConvTranspose(3, (3, 2), stride=2), (2, 2, 3, 2)),
            (ConvTranspose(2, (2, 2), stride=2, padding="VALID"), (2, 2, 2, 2)),  # square
            (ConvTranspose(3, 4, stride=2), (2, 3, 2)),
            (ConvTranspose(2, 2, stride=3), (2, 3, 2)),  # between painted ones, outputs are b
            (ConvTranspose(2, 3, stride=2, padding="VALID", bias=False), (1, 3, 2)),
            (ConvTranspose(2, (1, 3), stride=(3, 1), padding=((0, 0), (1, 1))), (2, 2, 3, 2)),
            (ConvTranspose(2, 3, stride=2, padding=((4, 0),)), (3, 3, 2)),  # dx crops dout
            (ConvTranspose(2, (3, 3), padding=((2, 1), (0, 2))), (2, 3, 2, 1)),
            (ConvTranspose(2, (2, 1, 2), stride=(1, 2, 2), padding="VALID"), (1, 2, 2, 2, 2)),
            (ConvTranspose(1, 1), (1, 1, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: True,
        errors=ERRORS,
    ),
)
