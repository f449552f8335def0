"""LayerNorm, RMSNorm and GroupNorm of equinox with hand-derived backward passes.

Each normalises one example in at least float32, with weights of that dtype, and returns x's.
Formulas and derivations: manual_bp/layers/layer_norm.py, rms_norm.py and group_norm.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from manual_bp.interop import functions
from manual_bp.interop.one_example import of_one_example
from manual_bp.layer import Tree, accumulation_dtype


class LayerNorm(eqx.nn.LayerNorm):
    """equinox's LayerNorm, over all of one example; see `manual_bp.interop.equinox`.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> jax.vmap(by_hand.LayerNorm(4))(jnp.ones((2, 4))).shape
        (2, 4)
    """

    def __call__(self, x: Any, *state: Any, key: Any = None, **named: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x of `shape` -> the same; with a state, (out, state)."""
        _check_shape(self, x, self.shape)
        out = _normalised(
            lambda X, *affine: functions.layer_norm(X, *affine, eps=self.eps),
            x.reshape(-1),
            _flat(self.weight),
            _flat(self.bias),
        )
        return _beside(out.reshape(x.shape), state, named)


class RMSNorm(eqx.nn.RMSNorm):
    """equinox's RMSNorm, over all of one example; see `manual_bp.interop.equinox`."""

    def __call__(self, x: Any, *state: Any, key: Any = None, **named: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x of `shape` -> the same; with a state, (out, state)."""
        _check_shape(self, x, self.shape)

        def of_many(X: jax.Array, scale: Any, shift: Any) -> jax.Array:
            out = functions.rms_norm(X, scale, eps=self.eps)
            return out if shift is None else out + shift

        out = _normalised(of_many, x.reshape(-1), _flat(self.weight), _flat(self.bias))
        return _beside(out.reshape(x.shape), state, named)


class GroupNorm(eqx.nn.GroupNorm):
    """equinox's GroupNorm of x (channels, *space); see `manual_bp.interop.equinox`."""

    def __call__(self, x: Any, *state: Any, key: Any = None, **named: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (channels, ...) -> the same shape; with a state, (out, state)."""

        def of_many(X: jax.Array, *affine: Any) -> jax.Array:
            out = functions.group_norm(jnp.moveaxis(X, 1, -1), self.groups, *affine, eps=self.eps)
            return jnp.moveaxis(out, -1, 1)

        return _beside(_normalised(of_many, x, self.weight, self.bias), state, named)


def _normalised(
    of_many: Callable[..., jax.Array], x: jax.Array, scale: Any, shift: Any
) -> jax.Array:
    """of_many(X, scale, shift), in at least float32, of one example x."""
    wide = accumulation_dtype(x)

    def run(affine: Tree, X: jax.Array) -> jax.Array:
        return of_many(X, *affine)

    affine = tuple(None if each is None else each.astype(wide) for each in (scale, shift))
    return of_one_example(run)(affine, x.astype(wide)).astype(x.dtype)


def _flat(array: Any) -> Any:
    return None if array is None else array.reshape(-1)


def _beside(out: jax.Array, state: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Out, or (out, state) where a state was given, by its place or by its name."""
    given = (*state, *named.values())
    if len(given) > 1 or set(named) - {"state"}:
        raise TypeError(f"A norm takes x, state and key, got also {sorted(named) or given[1:]}.")
    return (out, *given) if given else out


def _check_shape(module: Any, x: Any, shape: tuple[int, ...]) -> None:
    if x.shape != shape:
        raise ValueError(
            f"{type(module).__name__} takes one example, of shape {shape}, got {x.shape}; for a "
            "batch write jax.vmap(norm)(x)."
        )
