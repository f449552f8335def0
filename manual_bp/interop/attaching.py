"""A pair of programs as one function that JAX differentiates by the pair: `jax.custom_vjp`.

    forward(*args)       -> (out, kept)
    backward(kept, dout) -> a cotangent for each argument, None for one that has none

The type of a cotangent.  Under an Explicit mesh a cotangent must be divided over devices as its
primal is, and in shard_map it may differ from device to device only where its primal does. A
layer's backward knows of no devices: a batch that is divided gives each device a part of dparams.
So each cotangent is brought to its primal's type, by a psum where JAX's own transposition would put
one.

Source  JAX's documentation, Custom derivative rules for Python code
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import Static, Tree
from manual_bp.sharding import placed_like


class Kept(NamedTuple):
    """What the backward half needs: what the pair keeps, and the types of the arguments."""

    own: Tree
    types: Static


def attached(
    forward: Callable[..., tuple[Any, Tree]],
    backward: Callable[[Tree, Any], tuple[Any, ...]],
    *,
    constants: Mapping[int, str] = MappingProxyType({}),
) -> Callable[..., Any]:
    """f(*args) = forward(*args)[0], with backward as its vector-Jacobian product.

    Args:
        forward: forward(*args) -> (out, kept), args and kept being trees of arrays.
        backward: backward(kept, dout) -> a cotangent for each argument, of its structure, shapes
            and dtypes, with None in place of whatever has none.
        constants: which arguments have no rule, and what to call them: asking for their gradient
            is an error. An argument with None for a cotangent that isn't among them has the
            gradient 0.

    Returns:
        f, with positional arguments alone.

    Raises:
        TypeError: from f, where the gradient of a constant is asked for.

    Source: JAX's documentation, Custom derivative rules for Python code.

    Example:
        >>> square = attached(lambda z: (z * z, z), lambda z, da: (2 * z * da,))
        >>> print(jax.grad(square)(3.0))
        6.0
    """

    @jax.custom_vjp
    def compute(*args: Any) -> Any:
        return forward(*args)[0]

    def keep(*args: Any) -> tuple[Any, Kept]:
        if constants:
            for index, what in constants.items():
                _check_constant(what, args[index])
            args = jax.tree.map(lambda leaf: leaf.value, args, is_leaf=_is_primal)
        out, own = forward(*args)
        leaves, structure = jax.tree.flatten(args)
        return out, Kept(own, Static((structure, tuple(jax.typeof(leaf) for leaf in leaves))))

    def carry_back(kept: Kept, dout: Any) -> tuple[Any, ...]:
        kinds = jax.tree.unflatten(*kept.types.value)
        if constants:  # then JAX says zero without writing zeros
            dout = jax.tree.map(_written, dout, is_leaf=_is_zero)
        return jax.tree.map(_placed, backward(kept.own, dout), kinds, is_leaf=_is_none)

    compute.defvjp(keep, carry_back, symbolic_zeros=bool(constants))
    return compute


def _placed(cotangent: Any, kind: Any) -> Any:
    return None if cotangent is None else placed_like(cotangent, kind)


def _check_constant(what: str, tree: Tree) -> None:
    """Raise if a gradient is asked for what has no rule for one."""
    if any(leaf.perturbed for leaf in jax.tree.leaves(tree, is_leaf=_is_primal)):
        raise TypeError(
            f"{what} has no hand-derived gradient, and one was asked for. Hold it constant with "
            "jax.lax.stop_gradient, or leave it out of argnums."
        )


def _written(dout: Any) -> Any:
    return jnp.zeros(dout.shape, dout.dtype) if _is_zero(dout) else dout


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _is_none(leaf: Any) -> bool:
    return leaf is None
