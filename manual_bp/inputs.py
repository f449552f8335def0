"""Checks of what a caller hands in, before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from manual_bp.layer import Layer, Loss, Tree


def check_arrays(params: Tree, **arrays: Any) -> None:
    """Raise a TypeError unless params holds arrays and each of `arrays` is one (or None)."""
    for leaf in jax.tree.leaves(params):
        if not _is_array(leaf):
            path = next(
                jax.tree_util.keystr(path)
                for path, each in jax.tree_util.tree_leaves_with_path(params)
                if each is leaf
            )
            raise TypeError(
                f"params{path} must be an array, got {type(leaf).__name__}: {leaf!r}. "
                "Make params with network.init(key, x), or convert them with jnp.asarray."
            )
    for name, value in arrays.items():
        if not _is_array(value) and not (name == "weights" and value is None):
            raise TypeError(
                f"{name} must be an array, got {type(value).__name__}. Convert it: "
                f"jnp.asarray({name})."
            )


def check_taken_arrays(taken: Mapping[str, Any]) -> None:
    """Raise a TypeError unless what is taken by name holds nothing but arrays."""
    for name, tree in taken.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if not _is_array(leaf):
                raise TypeError(
                    f"{name}{jax.tree_util.keystr(path)} must be an array, got "
                    f"{type(leaf).__name__}: {leaf!r}. Convert it: {name}=jnp.asarray(...)."
                )


def check_batch(x: Any, y: Any) -> None:
    """Raise a ValueError unless x and y hold the same number of examples, at least one."""
    if x.ndim == 0 or x.shape[0] == 0:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, expected (m, ...) with at least one example: the mean "
            "over no examples isn't defined."
        )
    if y.ndim == 0 or y.shape[0] != x.shape[0]:
        advice = ""
        if x.ndim == y.ndim == 2 and x.shape[1] == y.shape[1]:
            advice = (
                " x.T and y.T would fit: examples come first. For features x examples as in the "
                "notes see manual_bp.formulas."
            )
        elif y.ndim == 2 and y.shape[1] == x.shape[0]:
            advice = " y.T would fit: y holds examples first."
        elif x.ndim == 2 and y.ndim >= 1 and x.shape[1] == y.shape[0]:
            advice = (
                " x.T would fit: x holds examples first. For features x examples as in the notes "
                "see manual_bp.formulas."
            )
        raise ValueError(
            f"x has {x.shape[0]} examples, shape {tuple(x.shape)}, but y has shape "
            f"{tuple(y.shape)}; the first axes must be equal.{advice}"
        )


def check_weights(weights: Any, expected: tuple[int, ...]) -> None:
    """Raise unless there is one weight for each prediction."""
    if tuple(weights.shape) != expected:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)}, expected {expected}, one for each "
            "prediction; they are not broadcast. The mean over m examples is "
            "weights=jnp.full(m, 1 / m)."
        )


def check_classes(loss: Loss, y: Any, weights: Any, units: Callable[[], int]) -> None:
    """Let the loss check integer targets where their values are at hand.

    They are at hand when y is a NumPy array, or a JAX array that is already computed and lies on
    this machine: a check never waits for work that is still queued. Elsewhere (a tracer, a queued
    array) the compiled sweep makes loss and gradient NaN.
    """
    if y.dtype.kind not in "iu" or not at_hand(y) or not (weights is None or at_hand(weights)):
        return
    target = np.asarray(y)
    if weights is None:
        counted = np.ones(target.shape, bool)
    else:
        counted = np.asarray(weights) != 0
    loss.check_target(units(), target, counted)


def check_tokens(network: Layer, x: Any, weights: Any) -> None:
    """Let the layers that x enters check integers in it where their values are at hand."""
    if x.dtype.kind not in "iu" or not at_hand(x) or not (weights is None or at_hand(weights)):
        return
    counted = np.ones(x.shape, bool)
    if weights is not None and np.shape(weights) == x.shape[: np.ndim(weights)]:
        idle = np.asarray(weights) == 0
        counted[idle] = False
    network.check_values(np.asarray(x), counted)


def at_hand(array: Any) -> bool:
    """Whether its value can be looked at now, without waiting for queued work."""
    if not isinstance(array, jax.Array):
        return True
    # Only computed arrays have is_ready: tracers, whose values don't exist yet, don't.
    is_ready = getattr(array, "is_ready", None)
    return is_ready is not None and array.is_fully_addressable and is_ready()


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, np.void)
