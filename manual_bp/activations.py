"""Activations: element-wise g, with g' and g'' by hand, in one table.

An activation is a layer: A = g(Z) forward, dZ = dA ⊙ g'(Z) backward. The product is element-wise
because g acts on each element alone: ∂Aᵢ/∂Zⱼ = g'(Zᵢ) δᵢⱼ, a diagonal Jacobian, and multiplying by
a diagonal matrix scales each element.

| name | g(z) | g'(z) | g''(z) | weights drawn after |
|---|---|---|---|---|
| identity | z | 1 | 0 | LeCun |
| relu | max(z, 0) | [z > 0] | 0 | He |
| leaky_relu(slope) | z if z ≥ 0 else slope·z | 1 if z ≥ 0 else slope | 0 | He |
| relu6 | min(max(z, 0), 6) | [0 < z < 6] | 0 | He |
| squared_relu | max(z, 0)² | 2 max(z, 0) | 2 [z > 0] | He |
| elu(alpha) | z if z > 0 else α(eᶻ - 1) | 1 or αeᶻ | 0 or αeᶻ | He |
| celu(alpha) | z if z > 0 else α(e^(z/α) - 1) | 1 or e^(z/α) | 0 or e^(z/α)/α | He |
| selu | λ elu(z) with α | λ or λαeᶻ | 0 or λαeᶻ | LeCun |
| sigmoid | σ(z) = 1/(1 + e⁻ᶻ) | σ(z) σ(-z) | -σ'(z) tanh(z/2) | Glorot |
| log_sigmoid | log σ(z) | σ(-z) | -σ'(z) | He |
| hard_sigmoid | relu6(z + 3)/6 | [-3 < z < 3]/6 | 0 | Glorot |
| tanh | tanh z | sech² z = 4 σ'(2z) | -2 tanh z sech² z | Glorot |
| hard_tanh | min(max(z, -1), 1) | [-1 ≤ z ≤ 1] | 0 | Glorot |
| softsign | z/(1 + |z|) | 1/(1 + |z|)² | -2 sign(z)/(1 + |z|)³ | Glorot |
| softplus | log(1 + eᶻ) | σ(z) | σ'(z) | He |
| squareplus(b) | (z + √(z² + b))/2 | (1 + zρ)/2, ρ = 1/√(z² + b) | bρ³/2 | He |
| gelu | z Φ(z) | Φ(z) + z φ(z) | (2 - z²) φ(z) | He |
| gelu_tanh | z σ(v), v = 2√(2/π)(z + 0.044715 z³) | σ + z σ' v' | \
σ' (2v' + z (v'' - tanh(v/2) v'²)) | He |
| silu | z σ(z) | σ(z) + z σ'(z) | σ'(z) (2 - z tanh(z/2)) | He |
| hard_silu | z hard_sigmoid(z) | 0, 1/2 + z/3, 1 | [-3 < z < 3]/3 | He |
| mish | z T(z), T = tanh(softplus(z)) | T + z T' | T' (2 + z (σ(-z) - 2Tσ(z))) | He |

Φ and φ are the distribution and density of the standard normal, [·] is 1 where true and else 0.

Derivations. σ' = e⁻ᶻ/(1 + e⁻ᶻ)² = σ(z) σ(-z), and tanh z = 2σ(2z) - 1. A gate g = z s(z) has
g' = s + z s' and g'' = 2s' + z s''; silu, gelu, gelu_tanh and mish are gates, with φ'(z) = -z φ(z)
and σ'' = σ' (σ(-z) - σ(z)) = -σ' tanh(z/2). mish: with e = eᶻ, T = (e² + 2e)/(e² + 2e + 2), and
T' = (1 - T²) σ = 4e(1 + e)/(e² + 2e + 2)². squareplus: (z + r)/2 = max(z, 0) + b/(2(r + |z|)) with
r = √(z² + b), as r² - z² = b.

Accuracy. Over each decade of |z| the error of g' is no larger than autodiff's (`verify.accuracy`),
and no tail is lost. Three habits do it: a small number is never the difference of large ones, so
1 - tanh² serves near 0 and σ(z) σ(-z) beyond; what lies near 1/2 or 1 is that number plus a small
rest, added last, so that one rounding counts; and eᶻ near 0 is 1 + expm1(z).

Kinks follow JAX, which takes one side or the other:

| name | at | g' there |
|---|---|---|
| relu, squared_relu | 0 | 0 |
| leaky_relu | 0 | 1 |
| relu6 | 0, 6 | 0, 0: as relu does; the average that autodiff makes of min and max, 1/2, isn't g' |
| elu, selu | 0 | α, λα: from the left |
| hard_sigmoid | -3, 3 | 0, 0 |
| hard_silu | -3, 3 | 0, 1: both from outside |
| hard_tanh | -1, 1 | 1, 1: both from inside |

g'' of softsign at 0 is 0, the middle of its jump from 2 to -2; of elu, celu, selu from the left.

float16 and bfloat16 are computed in float32 and rounded once.

Initialisation keeps the variance of the signal from layer to layer (n_in inputs, n_out outputs):
He: normal, variance 2/n_in. Glorot: uniform on ±√(6/(n_in + n_out)). LeCun: normal, variance
1/n_in. Both normals are cut at two standard deviations and rescaled to the variance stated.

Shapes  Z, A, dA, dZ: any, all the same.
Sources  LeCun et al. (1998) Efficient BackProp; Glorot & Bengio (2010); He et al. (2015),
arXiv:1502.01852; Maas et al. (2013) (leaky relu); Krizhevsky (2010) (relu6); So et al. (2021),
arXiv:2109.08668 (squared relu); Clevert et al. (2015), arXiv:1511.07289 (elu); Barron (2017),
arXiv:1704.07483 (celu); Klambauer et al. (2017), arXiv:1706.02515 (selu); Howard et al. (2019),
arXiv:1905.02244 (hard sigmoid, hard silu); Collobert (2004) (hard tanh); Bergstra et al. (2009)
(softsign); Dugas et al. (2000) (softplus); Barron (2021), arXiv:2112.11687 (squareplus); Hendrycks
& Gimpel (2016), arXiv:1606.08415 (gelu, silu); Misra (2019), arXiv:1908.08681 (mish).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation, Gated, check_number, glorot, lecun
from manual_bp.layer import Tree
from manual_bp.sharding import sharded_like


def _exp_below(z: jax.Array) -> jax.Array:
    """eᶻ for z ≤ 0: near 0, where it is nearly 1, by the rest."""
    return jnp.where(z > -0.5, 1 + jnp.expm1(z), jnp.exp(z))


def _sigmoid_tail(z: jax.Array) -> jax.Array:
    """σ(-|z|), at most 1/2: one exponential, of which σ, 1 - σ and σ' are made."""
    return jax.nn.sigmoid(-jnp.abs(z))


def _sigmoid_parts(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """0, 1/2 or 1, and the rest of σ(z)."""
    tail = _sigmoid_tail(z)
    near, right = jnp.abs(z) < 1, z > 0
    rest = jnp.where(near, 0.5 * jnp.tanh(z / 2), jnp.where(right, -tail, tail))
    return _nearest(near, right, z), rest


def _normal_parts(z: jax.Array) -> tuple[jax.Array, jax.Array]:
    """0, 1/2 or 1, and the rest of Φ(z)."""
    scaled = z * 0.7071067811865476  # 1/√2
    tail = 0.5 * jax.lax.erfc(jnp.abs(scaled))
    near, right = jnp.abs(z) < 0.5, z > 0
    rest = jnp.where(near, 0.5 * jax.lax.erf(scaled), jnp.where(right, -tail, tail))
    return _nearest(near, right, z), rest


def _nearest(near: jax.Array, right: jax.Array, z: jax.Array) -> jax.Array:
    return jnp.where(near, 0.5, jnp.where(right, 1, 0)).astype(z.dtype)


def _sigmoid_slope(z: jax.Array) -> jax.Array:
    """σ'(z)."""
    tail = _sigmoid_tail(z)
    near = 0.25 - jnp.square(0.5 * jnp.tanh(z / 2))
    return jnp.where(jnp.abs(z) < 1, near, tail * (1 - tail))


def _normal_density(z: jax.Array) -> jax.Array:
    return jnp.exp(-0.5 * jnp.square(z)) * 0.3989422804014327  # 1/√(2π)


@dataclass(frozen=True)
class Identity(Gated, initializer=lecun):
    """z; backward keeps nothing."""

    def value(self, z: jax.Array) -> jax.Array:
        return z

    def keep(self, z: jax.Array) -> Tree:
        return ()

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        return dout


@dataclass(frozen=True)
class Relu(Gated):
    """max(z, 0), above 0 just where z is."""

    told_by_output: ClassVar[bool] = True

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.maximum(z, 0)

    def keep(self, z: jax.Array) -> Tree:
        return z > 0


@dataclass(frozen=True)
class LeakyRelu(Gated):
    """z where z ≥ 0, slope·z elsewhere."""

    slope: float = 0.01

    def __post_init__(self) -> None:
        check_number("leaky_relu's slope", self.slope, "a finite number", lambda slope: True)

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.where(z >= 0, z, self.slope * z)

    def keep(self, z: jax.Array) -> Tree:
        return z >= 0

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        dout = sharded_like(dout, kept)
        return jnp.where(kept, dout, self.slope * dout)


@dataclass(frozen=True)
class Relu6(Gated):
    """max(z, 0), cut at 6."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.maximum(z, 0), 6)

    def keep(self, z: jax.Array) -> Tree:
        return (z > 0) & (z < 6)


@dataclass(frozen=True)
class HardTanh(Gated, initializer=glorot):
    """z, cut at -1 and 1."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.maximum(z, -1), 1)

    def keep(self, z: jax.Array) -> Tree:
        return jnp.abs(z) <= 1


@dataclass(frozen=True)
class HardSigmoid(Gated, initializer=glorot):
    """A straight line from 0 at -3 to 1 at 3."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.minimum(jnp.maximum(z + 3, 0), 6) / 6

    def keep(self, z: jax.Array) -> Tree:
        return jnp.abs(z) < 3

    def scale(self, kept: Tree, dout: jax.Array) -> jax.Array:
        return jnp.where(kept, dout / 6, 0)


@dataclass(frozen=True)
class HardSilu(Activation):
    """z hard_sigmoid(z), also called hard swish: z (z + 3)/6 between -3 and 3."""

    def value(self, z: jax.Array) -> jax.Array:
        return z * (jnp.minimum(jnp.maximum(z + 3, 0), 6) / 6)

    def derivative(self, z: jax.Array) -> jax.Array:
        nearest = _nearest(jnp.abs(z) < 1, z > 0, z)
        line = nearest + (z - (3 * nearest - 1.5)) / 3  # 1/2 + z/3
        return jnp.where(jnp.abs(z) < 3, line, jnp.where(z > 0, 1, 0))

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.where(jnp.abs(z) < 3, jnp.ones_like(z) / 3, 0)


@dataclass(frozen=True)
class SquaredRelu(Activation):
    """max(z, 0)²."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.square(jnp.maximum(z, 0))

    def derivative(self, z: jax.Array) -> jax.Array:
        return 2 * jnp.maximum(z, 0)

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 2, 0).astype(z.dtype)


@dataclass(frozen=True)
class Elu(Activation):
    """z where z > 0, α(eᶻ - 1) elsewhere."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("elu's alpha", self.alpha, "a finite number but 0", lambda alpha: alpha != 0)

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.maximum(z, 0) + self.alpha * jnp.expm1(jnp.minimum(z, 0))

    def derivative(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 1, self.alpha * _exp_below(jnp.minimum(z, 0)))

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 0, self.derivative(z))


@dataclass(frozen=True)
class Celu(Activation):
    """z where z > 0, α(e^(z/α) - 1) elsewhere: g' is continuous for every α."""

    alpha: float = 1.0

    def __post_init__(self) -> None:
        check_number("celu's alpha", self.alpha, "a finite number but 0", lambda alpha: alpha != 0)

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.maximum(z, 0) + self.alpha * jnp.expm1(jnp.minimum(z, 0) / self.alpha)

    def derivative(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 1, _exp_below(jnp.minimum(z, 0) / self.alpha))

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 0, self.derivative(z) / self.alpha)


@dataclass(frozen=True)
class Selu(Activation, initializer=lecun):
    """λ elu(z), with λ and α such that mean 0 and variance 1 are a fixed point of a layer."""

    SCALE: ClassVar[float] = 1.0507009873554804934193349852946
    ALPHA: ClassVar[float] = 1.6732632423543772848170429916717

    def value(self, z: jax.Array) -> jax.Array:
        below = self.ALPHA * jnp.expm1(jnp.minimum(z, 0))
        return self.SCALE * (jnp.maximum(z, 0) + below)

    def derivative(self, z: jax.Array) -> jax.Array:
        at_zero = jnp.multiply(self.SCALE, self.ALPHA)  # in the program, not rounded before
        below = jnp.minimum(z, 0)
        near = at_zero + at_zero * jnp.expm1(below)  # one rounding less than λα (1 + expm1)
        return jnp.where(z > 0, self.SCALE, jnp.where(below > -0.5, near, at_zero * jnp.exp(below)))

    def curvature(self, z: jax.Array) -> jax.Array:
        return jnp.where(z > 0, 0, self.derivative(z))


@dataclass(frozen=True)
class Sigmoid(Activation, initializer=glorot):
    """σ(z) = 1/(1 + e⁻ᶻ)."""

    def value(self, z: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return _sigmoid_slope(z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return -_sigmoid_slope(z) * jnp.tanh(z / 2)


@dataclass(frozen=True)
class LogSigmoid(Activation):
    """log σ(z) = -softplus(-z)."""

    def value(self, z: jax.Array) -> jax.Array:
        return -softplus.value(-z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return softplus.derivative(-z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return -_sigmoid_slope(z)


@dataclass(frozen=True)
class Tanh(Activation, initializer=glorot):
    """tanh z = 2σ(2z) - 1."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.tanh(z)

    def derivative(self, z: jax.Array) -> jax.Array:
        return 4 * _sigmoid_slope(2 * z)

    def curvature(self, z: jax.Array) -> jax.Array:
        return -2 * jnp.tanh(z) * self.derivative(z)


@dataclass(frozen=True)
class Softsign(Activation, initializer=glorot):
    """z/(1 + |z|)."""

    def value(self, z: jax.Array) -> jax.Array:
        return z / (1 + jnp.abs(z))

    def derivative(self, z: jax.Array) -> jax.Array:
        a = jnp.abs(z)
        excess = a * (2 + a)  # (1 + a)² - 1
        return jnp.where(a < 0.25, 1 - excess / (1 + excess), 1 / (1 + excess))

    def curvature(self, z: jax.Array) -> jax.Array:
        return -2 * jnp.sign(z) * self.derivative(z) / (1 + jnp.abs(z))


@dataclass(frozen=True)
class Softplus(Activation):
    """log(1 + eᶻ)."""

    def value(self, z: jax.Array) -> jax.Array:
        return jnp.maximum(z, 0) + jnp.log1p(jnp.exp(-jnp.abs(z)))

    def derivative(self, z: jax.Array) -> jax.Array:
        nearest, rest = _sigmoid_parts(z)
        return nearest + rest

    def curvature(self, z: jax.Array) -> jax.Array:
        return _sigmoid_slope(z)


@dataclass(frozen=True)
class Squareplus(Activation):
    """(z + √(z² + b))/2: a softplus without exponentials."""

    b: float = 4.0

    def __post_init__(self) -> None:
        check_number("squareplus's b", self.b, "a finite number above 0", lambda b: b > 0)

    def value(self, z: jax.Array) -> jax.Array:
        size = jnp.abs(z)
        return jnp.maximum(z, 0) + self.b / (2 * (size + jnp.sqrt(jnp.square(z) + self.b)))

    def derivative(self, z: jax.Array) -> jax.Array:
        rho, size = self._rho(z), jnp.abs(z)
        tail = self.b * jnp.square(rho) / (2 * (1 + size * rho))  # (1 - |z|ρ)/2
        near = jnp.square(z) < self.b
        return jnp.where(near, 0.5 + 0.5 * z * rho, jnp.where(z > 0, 1 - tail, tail))

    def curvature(self, z: jax.Array) -> jax.Array:
        rho = self._rho(z)
        return 0.5 * self.b * rho * rho * rho

    def _rho(self, z: jax.Array) -> jax.Array:
        return jax.lax.rsqrt(jnp.square(z) + self.b)


@dataclass(frozen=True)
class Gelu(Activation):
    """z Φ(z), exact."""

    def value(self, z: jax.Array) -> jax.Array:
        return z * (0.5 * jax.lax.erfc(-z * 0.7071067811865476))  # 1/√2; erfc keeps the left tail

    def derivative(self, z: jax.Array) -> jax.Array:
        nearest, rest = _normal_parts(z)
        return nearest + (rest + z * _normal_density(z))

    def curvature(self, z: jax.Array) -> jax.Array:
        density = _normal_density(z)
        return 2 * density - z * (z * density)  # not z², which overflows


@dataclass(frozen=True)
class GeluTanh(Activation):
    """z σ(v(z)), the usual approximation of gelu; (1 + tanh u)/2 = σ(2u)."""

    def value(self, z: jax.Array) -> jax.Array:
        return z * jax.nn.sigmoid(self._inner(z)[0])

    def derivative(self, z: jax.Array) -> jax.Array:
        z = jnp.clip(z, -1e4, 1e4)  # σ' is 0 long before; v' would overflow, and 0 · ∞ is NaN
        v, dv, _ = self._inner(z)
        nearest, rest = _sigmoid_parts(v)
        return nearest + (rest + z * (dv * _sigmoid_slope(v)))

    def curvature(self, z: jax.Array) -> jax.Array:
        z = jnp.clip(z, -1e4, 1e4)
        v, dv, ddv = self._inner(z)
        return _sigmoid_slope(v) * (2 * dv + z * (ddv - jnp.tanh(v / 2) * jnp.square(dv)))

    def _inner(self, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """v, v' and v''."""
        square, rate = jnp.square(z), 0.7978845608028654  # √(2/π)
        v = 2 * (rate * (z + 0.044715 * (z * square)))
        dv = 2 * (rate * (1 + 0.044715 * (3 * square)))
        return v, dv, 2 * (rate * (0.044715 * (6 * z)))


@dataclass(frozen=True)
class Silu(Activation):
    """z σ(z), also called swish."""

    def value(self, z: jax.Array) -> jax.Array:
        return z * jax.nn.sigmoid(z)

    def derivative(self, z: jax.Array) -> jax.Array:
        nearest, rest = _sigmoid_parts(z)
        return nearest + (rest + z * _sigmoid_slope(z))

    def curvature(self, z: jax.Array) -> jax.Array:
        return _sigmoid_slope(z) * (2 - z * jnp.tanh(z / 2))


@dataclass(frozen=True)
class Mish(Activation):
    """z T(z), T = tanh(softplus(z))."""

    def value(self, z: jax.Array) -> jax.Array:
        n, c, _ = self._gate(z)
        return z * (n / (n + c))

    def derivative(self, z: jax.Array) -> jax.Array:
        n, c, slope = self._gate(z)
        right = z > 0
        nearest = jnp.where(right, 1, 0).astype(z.dtype)
        return nearest + (jnp.where(right, -c, n) / (n + c) + z * slope)

    def curvature(self, z: jax.Array) -> jax.Array:
        n, c, slope = self._gate(z)
        bend = jax.nn.sigmoid(-z) - 2 * (n / (n + c)) * jax.nn.sigmoid(z)
        return 2 * slope + z * slope * bend

    def _gate(self, z: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """n, c and T', where T = n/(n + c); eᶻ = p/q with p, q ≤ 1, so that nothing overflows."""
        decay = jnp.exp(-jnp.abs(z))
        p, q = jnp.where(z > 0, 1, decay), jnp.where(z > 0, decay, 1)
        n, c = p * (p + 2 * q), 2 * q * q
        return n, c, 4 * p * (p + q) * q * q / jnp.square(n + c)


identity = Identity()
relu = Relu()
leaky_relu = LeakyRelu  # families: leaky_relu(), leaky_relu(0.2)
relu6 = Relu6()
squared_relu = SquaredRelu()
elu = Elu
celu = Celu
selu = Selu()
sigmoid = Sigmoid()
log_sigmoid = LogSigmoid()
hard_sigmoid = HardSigmoid()
tanh = Tanh()
hard_tanh = HardTanh()
softsign = Softsign()
softplus = Softplus()
squareplus = Squareplus
gelu = Gelu()
gelu_tanh = GeluTanh()
silu = Silu()
hard_silu = HardSilu()
mish = Mish()
