"""Activations: element-wise g, with g' and g'' by hand, in one table.

An activation is a layer: A = g(Z) forward, dZ = dA ⊙ g'(Z) backward. The product is element-wise
because g acts on each element alone: ∂Aᵢ/∂Zⱼ = g'(Zᵢ) δᵢⱼ, a diagonal Jacobian, and multiplying by
a diagonal matrix scales each element.

| name | g(z) | g'(z) | g''(z) | weights drawn after |
|---|---|---|---|---|
| identity | z | 1 | 0 | LeCun |
| relu | max(z, 0) | [z > 0] | 0 | He |
| leaky_relu(slope) | z if z > 0 else slope·z | 1 if z > 0 else slope | 0 | He |
| tanh | tanh z | sech² z | -2 tanh z sech² z | Glorot |
| sigmoid | σ(z) = 1/(1 + e⁻ᶻ) | σ(z) σ(-z) | σ(z) σ(-z) (σ(-z) - σ(z)) | Glorot |
| gelu | z Φ(z) | Φ(z) + z φ(z) | (2 - z²) φ(z) | He |
| silu | z σ(z) | σ(z) (1 + z σ(-z)) | σ'(z) (2 + z (σ(-z) - σ(z))) | He |
| softplus | log(1 + eᶻ) | σ(z) | σ(z) σ(-z) | He |

Φ and φ are the distribution and density of the standard normal, [·] is 1 where true and else 0.

Derivations. (σ)' = e⁻ᶻ/(1 + e⁻ᶻ)² = σ(z) σ(-z); this form keeps its relative accuracy where
a (1 - a) is rounded to 0. sech² z = 4 e^(-2|z|) / (1 + e^(-2|z|))² likewise, where 1 - tanh² z is
0. silu: (z σ)' = σ + z σ σ(-z). gelu: φ'(z) = -z φ(z), hence (Φ + z φ)' = 2 φ - z² φ.

Kinks follow JAX: g'(0) is relu' = 0, leaky_relu' = slope.

float16 and bfloat16 are computed in float32 and rounded once.

Initialisation keeps the variance of the signal from layer to layer (n_in inputs, n_out outputs):
He: normal, variance 2/n_in. Glorot: uniform on ±√(6/(n_in + n_out)). LeCun: normal, variance
1/n_in. Both normals are cut at two standard deviations and rescaled to the variance stated.

Shapes  Z, A, dA, dZ: any, all the same.
Sources  LeCun et al. (1998) Efficient BackProp; Glorot & Bengio (2010); He et al. (2015),
arXiv:1502.01852; Hendrycks & Gimpel (2016), arXiv:1606.08415 (gelu, silu).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from manual_bp.layer import Layer, Tree

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
        [0.        0.7615942] [1.        0.4199743]
    """

    initializer: ClassVar[Initializer] = staticmethod(he)

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
        """DA ⊙ g'(Z), from what was kept of Z."""
        return dout * kept

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
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


def check_floating(layer: Layer, x: Any) -> None:
    """Raise unless x is floating: integers are tokens or pixels, and both need something first."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"{layer!r} takes floating-point inputs, got {x.dtype} {tuple(x.shape)}. "
            "Cast them, x.astype(jnp.float32), and scale pixels, x / 255; tokens need an embedding."
        )


def _sech_squared(z: jax.Array) -> jax.Array:
    decay = jnp.exp(-2 * jnp.abs(z))
    return 4 * decay / jnp.square(1 + decay)


def _normal_density(z: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(z)) * 0.3989422804014327  # 1/√(2π)


def _normal_distribution(z: jax.Array) -> jax.Array:
    return 0.5 * jax.lax.erfc(-z * 0.7071067811865476)  # 1/√2; erfc keeps the left tail


@dataclass(frozen=True)
class Identity(Activation):
    """z; backward keeps nothing."""

    initializer: ClassVar[Initializer] = staticmethod(lecun)

    def value(self, z: jax.Array) -> jax.Array:
        return z

    def derivative(self, z: jax.Array) -> jax.Array:
        return jnp.ones_like(z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.zeros_like(z)

    def keep(self, z: jax.Array) -> Tree:
        return ()

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        return dout


@dataclass(frozen=True)
class Relu(Activation):
    """max(z, 0); backward keeps the mask [z > 0], one byte for each element."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.maximum(z, 0)

    def derivative(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 1, 0).astype(z.dtype)

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.zeros_like(z)

    def keep(self, z: jax.Array) -> Tree:
        return z > 0

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        return jnp.where(kept, dout, 0)


@dataclass(frozen=True)
class LeakyRelu(Activation):
    """z where z > 0, slope·z elsewhere; backward keeps the mask [z > 0]."""

    slope: float = 0.01

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, z, self.slope * z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 1, self.slope).astype(z.dtype)

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.zeros_like(z)

    def keep(self, z: jax.Array) -> Tree:
        return z > 0

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        return jnp.where(kept, dout, self.slope * dout)


@dataclass(frozen=True)
class Tanh(Activation):
    """tanh z; tanh' = sech² z, from e^(-2|z|) so that it doesn't round to 0 where tanh is 1."""

    initializer: ClassVar[Initializer] = staticmethod(glorot)

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.tanh(z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return _sech_squared(z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return -2 * jnp.tanh(z) * _sech_squared(z)


@dataclass(frozen=True)
class Sigmoid(Activation):
    """σ(z) = 1/(1 + e⁻ᶻ); σ' = σ(z) σ(-z), which doesn't round to 0 where σ is 1."""

    initializer: ClassVar[Initializer] = staticmethod(glorot)

    def value(self, z: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return self.derivative(z) * (jax.nn.sigmoid(-z) - jax.nn.sigmoid(z))


@dataclass(frozen=True)
class Gelu(Activation):
    """z Φ(z), exact; gelu' = Φ(z) + z φ(z)."""

    def value(self, z: jax.Array) -> jax.Array:
        return z * _normal_distribution(z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return _normal_distribution(z) + z * _normal_density(z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return (2 - jnp.square(z)) * _normal_density(z)


@dataclass(frozen=True)
class Silu(Activation):
    """z σ(z), also called swish; silu' = σ(z) (1 + z σ(-z))."""

    def value(self, z: jax.Array) -> jax.Array:
        return z * jax.nn.sigmoid(z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(z) * (1 + z * jax.nn.sigmoid(-z))

    def curvature(self, z: jax.Array) -> jax.Array:
        left, right = jax.nn.sigmoid(-z), jax.nn.sigmoid(z)
        return left * right * (2 + z * (left - right))


@dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + eᶻ); softplus' = σ(z)."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))

    def derivative(self, z: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(z) * jax.nn.sigmoid(-z)


identity = Identity()
relu = Relu()
leaky_relu = LeakyRelu  # a family: leaky_relu(), leaky_relu(0.2)
tanh = Tanh()
sigmoid = Sigmoid()
gelu = Gelu()
silu = Silu()
softplus = Softplus()
