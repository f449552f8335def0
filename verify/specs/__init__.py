"""One spec for each layer, combinator and loss, in a file of the same name, and all activations.

Every module here that defines SPECS is found by itself. A test, or an author of new layers, adds
specs for a while with `registered`.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from manual_bp.layer import Combinator, Layer, Loss
from verify.specification import LayerSpec, LossSpec

_extra: list[LayerSpec | LossSpec] = []


@functools.cache
def _found() -> tuple[LayerSpec | LossSpec, ...]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return tuple(
        spec for name in modules for spec in importlib.import_module(f"{__name__}.{name}").SPECS
    )


def layers() -> list[LayerSpec]:
    """The specs of all layers and combinators."""
    return [spec for spec in (*_found(), *_extra) if isinstance(spec, LayerSpec)]


def losses() -> list[LossSpec]:
    """The specs of all losses."""
    return [spec for spec in (*_found(), *_extra) if isinstance(spec, LossSpec)]


def of_layer(layer: Layer) -> LayerSpec:
    """The spec of this kind of layer."""
    return _one([spec for spec in layers() if spec.layer is type(layer)], layer)


def of_loss(loss: Loss) -> LossSpec:
    """The spec of this kind of loss."""
    return _one([spec for spec in losses() if spec.loss is type(loss)], loss)


def mixes(layer: Layer) -> bool:
    """Whether an example's output depends on other examples, in the layer or one inside it."""
    if isinstance(layer, Combinator):
        return any(map(mixes, layer.children))
    return of_layer(layer).mixes(layer)


@contextmanager
def registered(*specs: LayerSpec | LossSpec) -> Iterator[None]:
    """Let every judge range over these specs too.

    Example:
        >>> from verify import specs
        >>> with specs.registered():
        ...     any(spec.layer is Dense for spec in specs.layers())
        True
    """
    _extra.extend(specs)
    try:
        yield
    finally:
        del _extra[len(_extra) - len(specs) :]


def _one(found: list[Any], thing: Any) -> Any:
    if len(found) != 1:
        name = type(thing).__name__
        raise LookupError(
            f"{name} has {len(found)} specs, expected 1: write verify/specs/ with SPECS holding a "
            f"spec of it, or pass one to verify.specs.registered(...)"
        )
    return found[0]
