"""What layers with one parameter for each channel share: checks, and sums computed apart."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating, check_number
from manual_bp.layer import Layer


def apart(*values: Any) -> Any:
    """The same values, of which XLA merges nothing with what it computes of them elsewhere.

    The sums for dγ and those for dx both need x̂. Left to itself, XLA on a CPU computes x̂ once,
    stores it, and with it r and γ, each repeated to the size of x: for 4096 x 1024 numbers 48 MiB,
    and 28 ms, most of them for pages that are new each time. Computed anew from x for each of them,
    x̂ is never stored: no memory, 13 ms.

    Two calls with the same values are one to XLA: give each something of its own.
    """
    return jax.lax.optimization_barrier(values)


def check_eps(layer: Layer, eps: Any) -> None:
    """Raise unless ε is a positive number: without it, a constant input is 0/0."""
    wanted = "a positive number, since a constant input has variance 0"
    check_number(f"{type(layer).__name__}: eps", eps, wanted, lambda value: value > 0)


def check_channels(layer: Layer, x: Any, axes: int = 1) -> None:
    """Raise unless x is floating, with channels last and at least this many axes.

    Args:
        layer: named in the message.
        x: should be (..., C).
        axes: how many it must have.
    """
    check_floating(layer, x)
    if x.ndim < axes or 0 in x.shape[1 if x.ndim > 1 else 0 :]:  # a batch may be empty
        expected = {1: "(..., C)", 2: "(m, ..., C)"}[axes]
        raise ValueError(
            f"{layer!r}: x has shape {tuple(x.shape)}, expected {expected} with channels last and "
            "no empty axis but the examples'."
        )


def check_params(layer: Layer, kind: type[Any], params: Any, x: Any) -> None:
    """Raise unless params are of this kind, each field a floating array (C,): none is broadcast.

    Args:
        layer: named in the message.
        kind: the layer's Params.
        params: should be a `kind`.
        x: (..., C), already checked.
    """
    if not isinstance(params, kind):
        raise TypeError(
            f"{layer!r} expected its Params({', '.join(kind._fields)}), got "
            f"{type(params).__module__}.{type(params).__name__}. Make them with "
            "network.init(key, x)."
        )
    check_per_channel(layer, params._asdict(), x)


def check_per_channel(layer: Layer, named: dict[str, Any], x: Any) -> None:
    """Raise unless each of these is a floating array (C,).

    Args:
        layer: named in the message.
        named: the arrays by name.
        x: (..., C), already checked.
    """
    for name, value in named.items():
        if not hasattr(value, "shape") or not jnp.issubdtype(value.dtype, jnp.floating):
            given = f"{value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise TypeError(f"{layer!r}: {name} must be a floating-point array, got {given}.")
        if tuple(value.shape) != x.shape[-1:]:
            raise ValueError(
                f"{layer!r}: {name} has shape {tuple(value.shape)}, expected "
                f"{tuple(x.shape[-1:])}, one for each channel of x {tuple(x.shape)}; it is not "
                "broadcast."
            )
