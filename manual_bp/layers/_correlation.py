"""What layers whose kernel moves over space share: their settings, and the correlation itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating
from manual_bp.layer import Layer, accumulation_dtype
from manual_bp.sharding import along, as_divided, axes_of

Sizes = int | tuple[int, ...]
Padding = str | tuple[tuple[int, int], ...]


def per_axis(setting: Sizes, rank: int = 1) -> tuple[int, ...]:
    """A setting for each axis in space: an int stands for all of them."""
    return setting if isinstance(setting, tuple) else (setting,) * rank


def correlate(
    x: jax.Array,
    W: jax.Array,
    layout: tuple[str, str, str],
    *,
    stride: Sequence[int] | None = None,
    padding: Sequence[tuple[int, int]],
    spread: Sequence[int] | None = None,
    dilation: Sequence[int] | None = None,
    groups: int = 1,
    example_groups: int = 1,
    like: jax.Array | None = None,
) -> jax.Array:
    """out[i] = Σ_p x[stride·i + dilation·p - low] W[p], accumulated in at least float32.

    A correlation: the filter isn't flipped. Beyond x and its zero padding nothing is read.

    Args:
        x: what the window moves over.
        W: the filter.
        layout: names of the axes of x, W and out, with S for those in space: ("NSC", "SIO", "NSC")
            is x (m, *space, C), W (*kernel, C, O), out (m, *space, O). The sum is over C and I.
        stride: how far the window moves, along each axis in space.
        padding: (low, high) zeros around x; negative ones crop it.
        spread: the distance that neighbours of x are put apart, with zeros between them.
        dilation: the distance of neighbours in the window.
        groups: into how many groups I divides the channels C of x; O is divided alike.
        example_groups: into how many groups N of x and O of W are divided.
        like: what the result is divided like on a mesh; its examples as x's, its features as W's
            last axis, unless given.
    """
    space = "DHW"[-(x.ndim - 2) :]
    of_x, of_W, of_out = (each.replace("S", space) for each in layout)
    dtype = jnp.result_type(x, W)
    examples_by_features = along(x, axes_of(x)[0], *(None,) * len(space), axes_of(W)[-1])
    divided = examples_by_features if like is None else as_divided(like, x, W)
    return jax.lax.conv_general_dilated(
        x.astype(dtype),
        W.astype(dtype),
        window_strides=stride or (1,) * len(space),
        padding=padding,
        lhs_dilation=spread,
        rhs_dilation=dilation,
        dimension_numbers=(of_x, of_W, of_out),
        feature_group_count=groups,
        batch_group_count=example_groups,
        preferred_element_type=accumulation_dtype(dtype),
        out_sharding=divided,  # a mesh with Explicit axes asks for it
    )


def check_settings(layer: Any) -> None:
    """Raise unless features, kernel, stride, padding and bias are what a layer can have."""
    check_count(layer, "features", layer.features)
    check_sizes(layer, "kernel", layer.kernel)
    rank = len(per_axis(layer.kernel))
    if rank not in (1, 2, 3):
        raise ValueError(
            f"{layer!r}: kernel must have 1, 2 or 3 sizes, one for each axis in space, got {rank}."
        )
    check_sizes(layer, "stride", layer.stride, rank)
    _check_padding(layer, layer.padding, rank)
    if not isinstance(layer.bias, bool):
        raise TypeError(f"{layer!r}: bias must be True or False, got {layer.bias!r}.")


def check_count(layer: Layer, name: str, value: Any) -> None:
    """Raise unless value is a positive int."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise TypeError(f"{layer!r}: {name} must be a positive int, got {value!r}.")


def check_sizes(layer: Layer, name: str, value: Any, rank: int | None = None) -> None:
    """Raise unless value is a positive int, or a tuple of them, one for each axis."""
    sizes = value if isinstance(value, tuple) else (value,)
    if any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in sizes):
        advice = f" Write {name}={tuple(value)!r}." if isinstance(value, list) else ""
        raise TypeError(
            f"{layer!r}: {name} must be a positive int or a tuple of them, got {value!r}.{advice}"
        )
    if isinstance(value, tuple) and rank is not None and len(value) != rank:
        raise ValueError(
            f"{layer!r}: {name} has {len(value)} sizes, expected {rank}, as many as kernel has. "
            "An int stands for every axis."
        )


def _check_padding(layer: Layer, padding: Any, rank: int) -> None:
    expected = f'"SAME", "VALID" or {rank} pairs of ints (low, high) as a tuple'
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(f"{layer!r}: padding must be {expected}, got {padding!r}.")
        return
    if not _are_pairs(padding):
        advice = ""
        if isinstance(padding, list | tuple) and all(isinstance(p, list | tuple) for p in padding):
            meant = tuple(map(tuple, padding))
            advice = f" Write padding={meant}." if _are_pairs(meant) and len(meant) == rank else ""
        raise TypeError(f"{layer!r}: padding must be {expected}, got {padding!r}.{advice}")
    if len(padding) != rank:
        raise ValueError(
            f"{layer!r}: padding has {len(padding)} pairs, expected {rank}, one for each size of "
            f"kernel: {expected}."
        )
    if any(size < 0 for pair in padding for size in pair):
        raise ValueError(
            f"{layer!r}: padding must not be negative, got {padding!r}. To crop, slice x."
        )


def _are_pairs(value: Any) -> bool:
    """Whether this is a tuple of pairs of ints, one pair at least."""
    return (
        isinstance(value, tuple)
        and bool(value)
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in value)
        and all(isinstance(n, int) and not isinstance(n, bool) for pair in value for n in pair)
    )


def check_input(layer: Any, x: Any, channels: int | None = None) -> None:
    """Raise unless x is floating, (m, *space, channels), with something in space."""
    check_floating(layer, x)
    rank = len(per_axis(layer.kernel))
    axes = ("depth", "height", "width")[-rank:] if rank > 1 else ("time",)
    expected = f"(m, {', '.join(axes)}, {'channels' if channels is None else channels})"
    shape = tuple(x.shape)
    if len(shape) != rank + 2:
        advice = ""
        if len(shape) == rank + 1:
            advice = " For one example write x[None]; for one channel x[..., None]."
        raise ValueError(
            f"{layer!r}: x has shape {shape}, expected {expected}: {rank + 2} axes for a kernel "
            f"of {rank}.{advice}"
        )
    if channels is not None and shape[-1] != channels:
        advice = ""
        if shape[1] == channels:
            advice = " Channels come last: jnp.moveaxis(x, 1, -1) would fit."
        raise ValueError(f"{layer!r}: x has shape {shape}, expected {expected}.{advice}")
    if 0 in shape[1:]:
        raise ValueError(f"{layer!r}: x has shape {shape}, with nothing in it along an axis.")


def check_params(layer: Any, params: Any, x: Any, groups: int = 1) -> None:
    """Raise unless params hold W (*kernel, channels / groups, features) and b as settings say."""
    if not (hasattr(params, "W") and hasattr(params, "b")):
        raise TypeError(
            f"{layer!r} expected params with fields W and b, got {type(params).__name__}. "
            "Make them with network.init(key, x)."
        )
    W, b = params.W, params.b
    for name, value in (("W", W), *((("b", b),) if layer.bias else ())):
        if not hasattr(value, "shape") or not jnp.issubdtype(value.dtype, jnp.floating):
            given = f"{value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise TypeError(f"{layer!r}: {name} must be a floating-point array, got {given}.")
    kernel, shape = per_axis(layer.kernel), tuple(W.shape)
    if shape[:-2] != kernel or shape[-1] != layer.features:
        each = "channels" if groups == 1 else f"channels / {groups}"
        expected = f"({', '.join(map(str, kernel))}, {each}, {layer.features})"
        advice = ""
        if shape[2:] == kernel and shape[:1] == (layer.features,):
            axes = (*range(2, len(shape)), 1, 0)
            advice = f" W.transpose{axes} would fit: the features come last."
        raise ValueError(f"{layer!r}: W has shape {shape}, expected {expected}.{advice}")
    if layer.bias and b.shape != (layer.features,):
        raise ValueError(
            f"{layer!r}: b has shape {tuple(b.shape)}, expected ({layer.features},), one for each "
            "feature; it is not broadcast."
        )
    if not layer.bias and jax.tree.leaves(b):
        raise ValueError(f"{layer!r}: params have a bias b, expected b=() since bias=False.")
    check_input(layer, x, groups * shape[-2])
