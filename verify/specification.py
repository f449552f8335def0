"""What a spec says of a layer or a loss, so that every judge can range over all of them.

A spec is written without the implementation in mind: its reference is another way to compute the
same function, out of `jax.nn`, `optax` or plain `jnp`, which autodiff differentiates; its naive
form is loops over numbers of 30 digits, which nobody differentiates and which judges the forward
pass itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from manual_bp.layer import Layer, Loss

Shape = tuple[int, ...]
Tap = Callable[[str, jax.Array], jax.Array]
"""tap(name, value) -> value: marks an intermediate, so that autodiff's error there can be had."""


@dataclass(frozen=True)
class Edge:
    """A point where autodiff may be NaN or inaccurate, and the value stated for it.

    Values are compared to the three significant digits that a table shows; NaN, zeros and
    infinities are themselves.
    """

    function: str
    """What is differentiated, in words."""
    point: Any
    """Where: a number or a tuple of numbers."""
    dtype: str
    stated: Any
    """The derivative that is right there: a number or a tuple, from mathematics, not from us."""
    manual: Callable[[jax.Array], jax.Array]
    """The hand-derived derivative at an array of that dtype."""
    autodiff: Callable[[jax.Array], jax.Array]
    """jax.grad of the idiomatic form, at the same array."""
    recorded: Any
    """What jax.grad gave when this was written; a JAX that no longer does is reported."""


@dataclass(frozen=True)
class BadInput:
    """A call that must raise, and what the message must say."""

    name: str
    call: Callable[[], Any]
    error: type[Exception]
    says: tuple[str, ...]


@dataclass(frozen=True)
class LayerSpec:
    """What the judges need to know of one kind of layer."""

    layer: type[Layer]
    samples: tuple[tuple[Layer, Shape], ...]
    """Settings and input shapes where it could go wrong."""
    reference: Callable[..., jax.Array]
    """reference(layer, params, x, tap) -> out, in another way; for a combinator
    reference(layer, params, x, run), with run(index, params, x) -> out for its children."""
    naive: Callable[..., np.ndarray]
    """naive(layer, params, x) -> out by loops over mpmath numbers; for a combinator
    naive(layer, params, x, run)."""
    draw: Callable[..., Layer | None]
    """A random one for inputs of this shape, None if none fits."""
    inputs: Callable[..., np.ndarray] | None = None
    """inputs(rng, layer, shape) -> x, for a layer that takes integers; None for floats."""
    shrink: Callable[..., Iterator[Layer]] = lambda layer: iter(())
    """Simpler ones, to find the smallest network that still fails."""
    exact: Callable[..., bool] = lambda layer: False
    """Whether it is piecewise polynomial: exact in fractions."""
    smooth: Callable[..., bool] = lambda layer: True
    """Whether it has derivatives of all orders: finite differences are for those."""
    mixes: Callable[..., bool] = lambda layer: False
    """Whether an example's output depends on other examples; a combinator's children say so."""
    edges: tuple[Edge, ...] = ()
    errors: tuple[BadInput, ...] = ()
    omitted: dict[str, str] = field(default_factory=dict)
    """Levels that don't apply, each with the reason, which the report prints."""


@dataclass(frozen=True)
class LossSpec:
    """What the judges need to know of one kind of loss."""

    loss: type[Loss]
    samples: tuple[Loss, ...]
    """Settings where it could go wrong."""
    reference: Callable[..., jax.Array]
    """reference(loss, prediction, target) -> values, in another way; of a loss that has or borrows
    parameters reference(loss, prediction, target, params)."""
    naive: Callable[..., np.ndarray]
    """naive(loss, prediction, target) -> values by loops over mpmath numbers; or
    naive(loss, prediction, target, params)."""
    target: Callable[..., np.ndarray]
    """Random targets for predictions of this shape."""
    draw: Callable[..., Loss]
    shapes: tuple[Shape, ...] = ((5, 4), (2, 3, 2))
    """Of predictions, for every sample."""
    counts: Callable[..., Any] = lambda loss, target: None
    """Which predictions count, None for all: written again, apart from the implementation."""
    borrow: Callable[..., Any] = lambda loss, params: ()
    """The loss's params where they are some of the network's: written again, too."""
    activation: Callable[..., jax.Array] = lambda z: z
    """The output activation of its canonical pair."""
    notes_target: Callable[..., np.ndarray | None] = lambda loss, y, units: None
    """Y as the notes' dZ[L] = A[L] - Y takes it, (m, n_L); None where that formula doesn't hold."""
    exact: Callable[..., bool] = lambda loss: False
    smooth: Callable[..., bool] = lambda loss: True
    edges: tuple[Edge, ...] = ()
    errors: tuple[BadInput, ...] = ()
    omitted: dict[str, str] = field(default_factory=dict)
