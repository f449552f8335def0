"""Spec of Conv: jax.lax's convolution, which autodiff transposes; or loops over the window."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layers.conv import Conv, Params
from verify.specification import BadInput, LayerSpec, Shape, Tap


def _sizes(setting: Any, rank: int) -> tuple[int, ...]:
    return tuple(setting) if isinstance(setting, tuple) else (setting,) * rank


def reference(layer: Conv, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """jax.lax.conv_general_dilated with its own padding, channels first as it wants them."""
    W, b = params
    rank = x.ndim - 2
    image = jnp.moveaxis(x, -1, 1)
    kernel = jnp.moveaxis(W, (-1, -2), (0, 1))
    out = jax.lax.conv_general_dilated(
        image,
        kernel,
        _sizes(layer.stride, rank),
        layer.padding,
        rhs_dilation=_sizes(layer.dilation, rank),
        feature_group_count=layer.groups,
    )
    out = jnp.moveaxis(out, 1, -1)
    return out + b if layer.bias else out


def naive(layer: Conv, params: Any, x: np.ndarray) -> np.ndarray:
    """One output at a time: it sums over the window, and what isn't there is not summed."""
    W, b = params
    m, *space, channels = x.shape
    *kernel, per_group, features = W.shape
    rank = len(space)
    strides, dilations = _sizes(layer.stride, rank), _sizes(layer.dilation, rank)
    places, lows = [], []
    for axis, (n, k, s, d) in enumerate(zip(space, kernel, strides, dilations, strict=True)):
        reach = (k - 1) * d  # beyond the first place of the window
        if layer.padding == "SAME":
            count = (n + s - 1) // s
            low = max(s * (count - 1) + reach + 1 - n, 0) // 2
        else:
            pairs: Any = [(0, 0)] * rank if layer.padding == "VALID" else layer.padding
            low, high = pairs[axis]
            count = len(range(-low, n + high - reach, s))
        places.append(count)
        lows.append(low)
    out = np.empty((m, *places, features), object)
    for example, o in itertools.product(range(m), range(features)):
        first = o // (features // layer.groups) * per_group
        for at in np.ndindex(*places):
            total = b[o] if layer.bias else 0 * W.flat[0]
            for p in np.ndindex(*kernel):
                where = tuple(
                    s * i + d * j - low
                    for s, i, d, j, low in zip(strides, at, dilations, p, lows, strict=True)
                )
                if any(not 0 <= j < n for j, n in zip(where, space, strict=True)):
                    continue
                for c in range(per_group):
                    total = total + x[(example, *where, first + c)] * W[(*p, c, o)]
            out[(example, *at, o)] = total
    assert channels == per_group * layer.groups
    return out


def draw(rng: np.random.Generator, shape: Shape) -> Conv | None:
    """For 3 to 5 axes; a window that fits, mostly 3 wide, now and then strided, spread, grouped."""
    rank = len(shape) - 2
    if rank not in (1, 2, 3):
        return None
    *space, channels = shape[1:]
    kernel = tuple(int(rng.choice([1, 2, 3, 5], p=[0.15, 0.2, 0.5, 0.15])) for _ in space)
    stride = int(rng.choice([1, 2, 3], p=[0.6, 0.3, 0.1]))
    dilation = int(rng.choice([1, 2], p=[0.8, 0.2]))
    groups, features = 1, int(rng.integers(1, 7))
    kind = rng.random()
    if kind < 0.15:
        groups, features = channels, channels * int(rng.integers(1, 3))
    elif kind < 0.3:
        groups = int(rng.choice([g for g in range(1, channels + 1) if channels % g == 0]))
        features = groups * int(rng.integers(1, 4))
    padding: Any = "SAME"
    kind = rng.random()
    if kind < 0.25 and all(d > dilation * (k - 1) for d, k in zip(space, kernel, strict=True)):
        padding = "VALID"
    elif kind < 0.5:
        spans = [dilation * (k - 1) for k in kernel]
        lows = [int(rng.integers(0, span + 1)) for span in spans]
        padding = tuple((low, span - low) for low, span in zip(lows, spans, strict=True))
    return Conv(
        features,
        kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=bool(rng.random() < 0.8),
    )


def shrink(layer: Conv) -> Iterator[Conv]:
    """One setting less."""
    for name, plain in (("groups", 1), ("dilation", 1), ("stride", 1), ("bias", True)):
        if getattr(layer, name) != plain:
            yield replace(layer, **{name: plain})
    if layer.padding != "SAME":
        yield replace(layer, padding="SAME")
    if layer.features > layer.groups:
        yield replace(layer, features=layer.groups)


def _forward(layer: Conv, W: Any, b: Any, x: Any) -> Any:
    return lambda: layer.forward(Params(jnp.zeros(W), jnp.zeros(b)), jnp.zeros(x))


def _init(layer: Conv, x: Any) -> Any:
    return lambda: layer.init(jax.random.key(0), jnp.zeros(x))


def _made(*args: Any, **settings: Any) -> Any:
    return lambda: Conv(*args, **settings)


_PLAIN = Conv(4, (3, 3))

ERRORS = (
    BadInput(
        "x without channels",
        _init(_PLAIN, (5, 8, 8)),
        ValueError,
        (
            "Conv(4, (3, 3))",
            "x has shape (5, 8, 8)",
            "(m, height, width, channels)",
            "x[..., None]",
        ),
    ),
    BadInput(
        "a matrix for a sequence",
        _init(Conv(4, 3), (5, 8)),
        ValueError,
        ("Conv(4, 3)", "x has shape (5, 8)", "expected (m, time, channels)", "x[None]"),
    ),
    BadInput(
        "x with too many axes",
        _forward(_PLAIN, (3, 3, 2, 4), (4,), (1, 5, 8, 8, 2)),
        ValueError,
        ("x has shape (1, 5, 8, 8, 2)", "(m, height, width, 2)", "4 axes"),
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
        "x with no width",
        _init(_PLAIN, (5, 8, 0, 2)),
        ValueError,
        ("x has shape (5, 8, 0, 2)", "nothing in it"),
    ),
    BadInput(
        "integer x",
        lambda: _PLAIN.init(jax.random.key(0), jnp.zeros((5, 8, 8, 2), jnp.uint8)),
        TypeError,
        ("Conv(4, (3, 3))", "floating-point", "uint8 (5, 8, 8, 2)", "x / 255"),
    ),
    BadInput(
        "a window larger than x",
        _forward(Conv(4, (3, 3), padding="VALID", dilation=2), (3, 3, 2, 4), (4,), (5, 8, 4, 2)),
        ValueError,
        ("x has shape (5, 8, 4, 2)", "spans 5", "x has 4", "smaller kernel", 'padding="SAME"'),
    ),
    BadInput(
        "W with the features first",
        _forward(_PLAIN, (4, 2, 3, 3), (4,), (5, 8, 8, 2)),
        ValueError,
        ("W has shape (4, 2, 3, 3)", "expected (3, 3, channels, 4)", "W.transpose(2, 3, 1, 0)"),
    ),
    BadInput(
        "W of another kernel",
        _forward(_PLAIN, (5, 3, 2, 4), (4,), (5, 8, 8, 2)),
        ValueError,
        ("W has shape (5, 3, 2, 4)", "expected (3, 3, channels, 4)"),
    ),
    BadInput(
        "W that ignores groups",
        _forward(Conv(4, (3, 3), groups=2), (3, 3, 2, 4), (4,), (5, 8, 8, 2)),
        ValueError,
        ("x has shape (5, 8, 8, 2)", "expected (m, height, width, 4)"),
    ),
    BadInput(
        "integer W",
        lambda: _PLAIN.forward(
            Params(jnp.zeros((3, 3, 2, 4), jnp.int32), jnp.zeros(4)), jnp.zeros((5, 8, 8, 2))
        ),
        TypeError,
        ("W must be a floating-point array", "int32"),
    ),
    BadInput(
        "bias (1,)",
        _forward(_PLAIN, (3, 3, 2, 4), (1,), (5, 8, 8, 2)),
        ValueError,
        ("b has shape (1,)", "expected (4,)", "not broadcast"),
    ),
    BadInput(
        "no bias where there should be one",
        lambda: _PLAIN.forward(Params(jnp.zeros((3, 3, 2, 4)), ()), jnp.zeros((5, 8, 8, 2))),
        TypeError,
        ("b must be a floating-point array", "tuple"),
    ),
    BadInput(
        "a bias where there should be none",
        _forward(Conv(4, (3, 3), bias=False), (3, 3, 2, 4), (4,), (5, 8, 8, 2)),
        ValueError,
        ("a bias b", "expected b=()", "bias=False"),
    ),
    BadInput(
        "params that aren't Conv's",
        lambda: _PLAIN.forward(
            (jnp.zeros((3, 3, 2, 4)), jnp.zeros(4)),  # pyright: ignore[reportArgumentType]
            jnp.zeros((5, 8, 8, 2)),
        ),
        TypeError,
        ("Conv(4, (3, 3))", "fields W and b", "got tuple", "network.init"),
    ),
    BadInput(
        "channels that don't divide into groups",
        _init(Conv(4, (3, 3), groups=2), (5, 8, 8, 3)),
        ValueError,
        ("x has 3 channels", "a multiple of groups=2"),
    ),
    BadInput(
        "features that don't divide into groups",
        _made(5, (3, 3), groups=2),
        ValueError,
        ("features must be a multiple of groups", "5 features in 2 groups"),
    ),
    BadInput("no features", _made(0, 3), TypeError, ("features", "positive int", "0")),
    BadInput("no groups", _made(4, 3, groups=0), TypeError, ("groups", "positive int", "0")),
    BadInput(
        "a kernel of size 0", _made(4, (3, 0)), TypeError, ("kernel", "positive int", "(3, 0)")
    ),
    BadInput(
        "a kernel as a list",
        _made(4, [3, 3]),
        TypeError,
        ("kernel must be", "got [3, 3]", "Write kernel=(3, 3)"),
    ),
    BadInput(
        "a kernel for four axes in space",
        _made(4, (3, 3, 3, 3)),
        ValueError,
        ("kernel must have 1, 2 or 3 sizes", "got 4"),
    ),
    BadInput(
        "a kernel for no axis", _made(4, ()), ValueError, ("kernel must have 1, 2 or 3", "got 0")
    ),
    BadInput(
        "a stride for another number of axes",
        _made(4, (3, 3), stride=(2,)),
        ValueError,
        ("stride has 1 sizes", "expected 2", "An int stands for every axis"),
    ),
    BadInput(
        "half a stride", _made(4, 3, stride=0.5), TypeError, ("stride", "positive int", "0.5")
    ),
    BadInput(
        "a dilation of 0", _made(4, 3, dilation=0), TypeError, ("dilation", "positive int", "0")
    ),
    BadInput(
        "an unknown padding",
        _made(4, (3, 3), padding="same"),
        ValueError,
        ("padding must be", '"SAME", "VALID" or 2 pairs', "got 'same'"),
    ),
    BadInput(
        "one padding for all",
        _made(4, (3, 3), padding=1),
        TypeError,
        ("padding must be", "2 pairs of ints (low, high)", "got 1"),
    ),
    BadInput(
        "padding as a list",
        _made(4, 3, padding=[(1, 1)]),
        TypeError,
        ("padding must be", "as a tuple", "[(1, 1)]"),
    ),
    BadInput(
        "padding for another number of axes",
        _made(4, (3, 3), padding=((1, 1),)),
        ValueError,
        ("padding has 1 pairs", "expected 2"),
    ),
    BadInput(
        "padding that isn't pairs",
        _made(4, (3, 3), padding=(1, 1)),
        TypeError,
        ("padding must be", "pairs", "(1, 1)"),
    ),
    BadInput(
        "negative padding",
        _made(4, 3, padding=((-1, 1),)),
        ValueError,
        ("must not be negative", "((-1, 1),)", "slice x"),
    ),
    BadInput("a bias that is an array", _made(4, 3, bias=0), TypeError, ("bias", "True or False")),
)

SPECS = (
    LayerSpec(
        layer=Conv,
        samples=(
            (Conv(3, (3, 2)), (2, 4, 5, 2)),
            (Conv(2, (3, 3), stride=2, padding="VALID"), (2, 6, 4, 2)),  # a row and a column remain
            (Conv(2, (2, 2), padding="VALID"), (2, 2, 2, 2)),  # square: all axes are 2 long
            (Conv(3, 3, stride=2, dilation=2, padding=((2, 3),)), (2, 7, 2)),
            (Conv(4, (2, 3), stride=(1, 2), dilation=(2, 1), groups=2), (2, 4, 6, 4)),
            (Conv(6, (3, 3), groups=3, bias=False), (1, 3, 4, 3)),  # depthwise, two filters each
            (Conv(2, (5, 5)), (1, 3, 2, 1)),  # larger than the image
            (Conv(2, 2, stride=3), (3, 8, 1)),  # some inputs are in no window
            (Conv(3, (1, 1)), (2, 2, 3, 2)),
            (Conv(2, (1, 1), stride=2, padding=((0, 2), (0, 1))), (2, 3, 3, 2)),
            (
                Conv(2, (2, 1, 2), stride=(1, 2, 1), padding=((1, 0), (0, 0), (0, 2))),
                (2, 2, 3, 2, 2),
            ),
            (Conv(1, 1), (1, 1, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: True,
        errors=ERRORS,
    ),
)
