"""What the converters of equinox share."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax

from manual_bp.interop.settings import Settings, carried
from manual_bp.layer import Layer


def of_module(module: Any) -> Settings:
    return carried(f"equinox's {type(module).__name__}", "a layer of manual_bp")


def for_layer(layer: Layer) -> Settings:
    return carried(repr(layer), "a module of equinox")


def value(array: Any) -> Any:
    """The array, () for none."""
    return () if array is None else array


def made(kind: Any, *sizes: Any, **settings: Any) -> Any:
    """A module whose arrays are shapes, which are yet to be put in: nothing is drawn."""
    return eqx.filter_eval_shape(lambda: kind(*sizes, key=jax.random.key(0), **settings))


def filled(module: Any, where: Any, *arrays: Any) -> Any:
    """The module with these arrays at where(module), none where there is no bias."""
    return eqx.tree_at(
        where,
        module,
        [None if isinstance(array, tuple) else array for array in arrays],
        is_leaf=lambda leaf: leaf is None,
    )
