"""What an activation is: an element-wise layer, and how weights before it are drawn.

`manual_bp.activations` is the table of them, with all formulas.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from manual_bp.layer import Layer, Loss, Tree, check_taken

Initializer = Callable[..., jax.Array]

# Weights are (n_out, n_in), so that inputs are counted along the last axis.
he: Initializer = jax.nn.initializers.he_normal(in_axis=-1, out_axis=-2)
glorot: Initializer = jax.nn.initializers.glorot_uniform(in_axis=-1, out_axis=-2)
lecun: Initializer = jax.nn.initializers.lecun_normal(in_axis=-1, out_axis=-2)


class Activation(Layer):
    """An element-wise layer A = g(Z) with dZ = dA ⊙ g'(Z).

    A subclass gives g, its derivative g' and its curvature g'' on float32 or wider. What backward
    keeps is g'(Z), unless `keep` and `scale` agree on something smaller.

    Example:
        >>> a, kept = tanh.forward((), jnp.array([0.0, 1.0]))
        >>> _, dz = tanh.backward((), kept, jnp.ones(2))
        >>> print(a, dz)
        [0.        0.7615942] [1.         0.41997433]
    """

    initializer: ClassVar[Initializer]

    told_by_output: ClassVar[bool] = False
    """Whether keep(A) is keep(Z), so that who keeps A anyway needs nothing else."""

    def __init_subclass__(cls, initializer: Initializer = he, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.initializer = staticmethod(initializer)

    def value(self, z: jax.Array) -> jax.Array:
        """g(z)."""
        raise NotImplementedError(f"{type(self).__name__} must define value(z)")

    def derivative(self, z: jax.Array) -> jax.Array:
        """g'(z)."""
        raise NotImplementedError(f"{type(self).__name__} must define derivative(z)")

    def curvature(self, z: jax.Array) -> jax.Array:
        """g''(z)."""
        raise NotImplementedError(f"{type(self).__name__} must define curvature(z)")

    def keep(self, z: jax.Array) -> Tree:
        """What backward needs of z."""
        return self.derivative(z)

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        """dA ⊙ g'(Z), from what was kept of Z."""
        return dout * kept

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
        check_taken(self, taken)
        check_floating(self, x)
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        kept = jax.tree.map(
            lambda each: each if each.dtype == bool else each.astype(x.dtype), self.keep(wide)
        )
        return self.value(wide).astype(x.dtype), kept

    def backward(self, params: Tree, residuals: Tree, dout: jax.Array) -> tuple[Tree, jax.Array]:
        return (), self.scale(residuals, dout)

    def __repr__(self) -> str:
        """The name in the table, with the settings that are not the default ones."""
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(self).__name__).lower()
        settings = super().__repr__().partition("(")[2]
        return name if settings == ")" and not fields(self) else f"{name}({settings}"  # pyright: ignore[reportArgumentType]


class Gated(Activation):
    """An activation that lets the error through where `keep` says so: one byte for each element.

    A subclass gives g, the mask and, unless g' is 1 or 0, `scale`.
    """

    def keep(self, z: jax.Array) -> Tree:
        raise NotImplementedError(f"{type(self).__name__} must define keep(z)")

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        return jnp.where(kept, dout, 0)

    def derivative(self, z: jax.Array) -> jax.Array:
        return self.scale(self.keep(z), jnp.ones_like(z))

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.zeros_like(z)


def check_floating(layer: Layer | Loss, x: Any) -> None:
    """Raise unless x is floating: integers are tokens or pixels, and both need something first."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{layer!r} takes floating-point inputs, got {x.dtype} {tuple(x.shape)}. "
            "Cast them, x.astype(jnp.float32), and scale pixels, x / 255; tokens need an embedding."
        )


def check_activation(what: str, activation: Any) -> None:
    """Raise unless it is an activation, not a family of them or a function."""
    if isinstance(activation, Activation):
        return
    family = isinstance(activation, type) and issubclass(activation, Activation)
    advice = (
        "This one is a family: call it, as in leaky_relu(0.01)."
        if family
        else "Use one of manual_bp's, such as manual_bp.relu."
    )
    raise TypeError(
        f"{what}: activation must be an activation of manual_bp, got {activation!r}. {advice}"
    )


def check_axis(kind: str, axis: Any) -> None:
    """Raise unless an axis setting is an int that counts from the end."""
    if isinstance(axis, bool) or not isinstance(axis, int):
        raise TypeError(f"{kind}: axis must be a negative int, got {axis!r}.")
    if axis >= 0:
        raise ValueError(
            f"{kind}: axis must be a negative int, got {axis}: axes count from the end, so that "
            "the examples' are left alone; the last one is -1."
        )


def check_number(what: str, value: Any, wanted: str, fits: Callable[[Any], bool]) -> None:
    """Raise unless a family's setting is a finite number that fits."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be {wanted}, got {value!r}, of type {type(value).__name__}.")
    if not (math.isfinite(value) and fits(value)):
        raise ValueError(f"{what} must be {wanted}, got {value!r}.")
