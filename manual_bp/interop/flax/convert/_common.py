"""What the converters of flax.nnx share."""

from __future__ import annotations

from typing import Any

import flax.nnx as nnx

from manual_bp.interop.settings import Settings, carried
from manual_bp.layer import Layer


def of_module(module: Any) -> Settings:
    return carried(f"flax's {type(module).__name__}", "a layer of manual_bp")


def for_layer(layer: Layer) -> Settings:
    return carried(repr(layer), "a module of flax.nnx")


def value(variable: Any) -> Any:
    """The array of a Param, () for none."""
    return () if variable is None else variable[...]


def made(kind: Any, *sizes: Any, like: Any, **settings: Any) -> Any:
    """A module with parameters of this dtype, which are yet to be put in."""
    return kind(*sizes, param_dtype=like.dtype, rngs=nnx.Rngs(0), **settings)
