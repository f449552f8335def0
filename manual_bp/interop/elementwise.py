"""Activations as functions of z alone, with hand-derived rules for every mode.

    a = g(z),   ȧ = g'(z) ż,   and of g' itself:  (g')˙ = g''(z) ż

attached by `jax.custom_jvp`. Reverse mode is its transpose, dZ = dA ⊙ g'(Z), the notes' rule; what
it keeps is g'(Z), or a mask of one byte where g' is one of two numbers. Forward mode, Hessians and
linearize use the same two derivatives. A third derivative is JAX's, of the formula of g'': right
but where that formula has an |z|, as mish's, and z is exactly 0, or where it overflows.

Where g has a kink, g'' is 0 there, as g' takes one side.

Source  JAX's documentation, Custom derivative rules for Python code; the derivatives:
        manual_bp/activations.py
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation, Gated, check_activation


def elementwise(activation: Activation) -> Callable[[Any], jax.Array]:
    """The function z -> g(z), differentiated by the activation's own g' and g''.

        ȧ = g'(z) ż,   dz = da ⊙ g'(z)

    Args:
        activation: one of manual_bp's, such as mbp.relu or mbp.leaky_relu(0.2).

    Returns:
        A function of an array of any shape. Each call with an equal activation returns the same
        one, so that jit compiles it once.

    Raises:
        TypeError: for what is no activation; the function raises it for integers.

    Source: manual_bp/activations.py has the formulas and where they are from.

    Example:
        >>> tanh = elementwise(mbp.tanh)
        >>> print(jax.grad(tanh)(0.0), jax.hessian(tanh)(0.0))
        1.0 -0.0
    """
    check_activation("elementwise", activation)
    return _elementwise(activation)


@functools.cache
def _elementwise(activation: Activation) -> Callable[[Any], jax.Array]:
    @jax.custom_jvp
    def value(z: jax.Array) -> jax.Array:
        return activation.forward((), z)[0]

    @jax.custom_jvp
    def slope(z: jax.Array) -> jax.Array:
        return _narrowed(activation.derivative, z)

    def through_slope(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (z,), (dz,) = primals, tangents
        return slope(z), _narrowed(activation.curvature, z) * dz

    def through_value(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        (z,), (dz,) = primals, tangents
        if isinstance(activation, Gated):  # a mask is smaller than g', and has no derivative
            a, kept = activation.forward((), z)
            return a, activation.scale(kept, dz)
        return value(z), slope(z) * dz

    slope.defjvp(through_slope)
    value.defjvp(through_value)

    def function(z: Any) -> jax.Array:
        return value(jnp.asarray(z))

    function.__name__ = function.__qualname__ = repr(activation)
    function.__doc__ = f"{activation!r} of z, with its hand-derived g' and g''."
    return function


def _narrowed(of: Callable[[jax.Array], jax.Array], z: jax.Array) -> jax.Array:
    """A derivative as the activation's forward has it: computed in float32 or wider."""
    return of(z.astype(jnp.promote_types(z.dtype, jnp.float32))).astype(z.dtype)
