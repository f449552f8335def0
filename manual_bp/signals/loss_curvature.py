"""The Hessian of a loss with respect to its prediction: times a vector, and in factors.

For one prediction z ∈ R^C and its target y, with no weight in it:

    H = ∂²value/∂z², C x C and symmetric

    hessian_vector: H v        hessian_factor: s_k with H = Σ_k s_k s_kᵀ

Most losses treat each unit by itself. Then H = diag(h) is the derivative of the error, unit by
unit, H v = h ⊙ v, and s_k = √h_k e_k (e_k is the k-th unit vector):

| loss | error | h |
|---|---|---|
| SquaredError | a - y | 1 |
| Huber(δ) | r clipped to [-δ, δ], r = a - y | [|r| ≤ δ]: at |r| = δ from inside |
| LogCosh | tanh r | tanh' r = sech² r |
| SigmoidBinaryCrossEntropy | σ(z) - y | σ'(z) = σ(z) σ(-z), whatever y |
| PoissonNegativeLogLikelihood | e^z - y | e^z |
| AbsoluteError, Hinge, KLDivergence | constant in pieces | 0 |
| Focal(α, γ) | s (t + c γ ρ E), t = p - y, c = 1 - 2y | \
s (p q + c γ ρ (2t + ((γ - 1) c ρ + q - p) E)) |

with Focal's p = σ(z), q = 1 - p, binary cross-entropy E, s = α_y w^γ, w = (1 - y) p + y q and
ρ = p q/w. Derivation: t' = p q and (p q)' = p q (q - p); w' = c p q gives s' = s γ c ρ and
ρ' = ρ (q - p - c ρ); with E' = t the product rule on the error gives h.

Three losses mix the units of a prediction:

    SoftmaxCrossEntropy   H = Y (diag(p) - p pᵀ),   p = softmax(z),   Y = Σ y
                          H v = Y p ⊙ (v - p·v),    s_k = √(Y p_k) (e_k - p)
    CosineSimilarity      H = (ŷ âᵀ + â ŷᵀ + c (I - 3 â âᵀ))/|a|²,   c = â·ŷ;   0 where |a| ≤ √ε
    MulticlassHinge       H = 0

Derivations.  The error is p Y - y, and ∂p_i/∂z_j = p_i (δ_ij - p_j); label smoothing keeps Y. The
factors: Σ_k p_k (e_k - p)(e_k - p)ᵀ = diag(p) - p pᵀ - p pᵀ + p pᵀ, as Σ p_k = 1. For the cosine,
with the error -(ŷ - c â)/|a|: in the direction v, R{|a|} = â·v, R{â} = (v - (â·v) â)/|a| and
R{c} = ŷ·R{â}; collect the terms.

A loss is convex in its prediction where every h is 0 or more: there is a factor. Focal's h falls
below 0 where a unit is wrong and sure, and the cosine's H has eigenvalues of both signs: they have
none. Nor has softmax cross-entropy where labels sum to less than 0: there √Y is NaN.

At kinks H is that of the pieces beside them, 0. A prediction of the ignored class has H = 0; where
a class doesn't exist H is NaN, as the error is.

Cost  O(C) for H v of one prediction; C columns of C entries for the factors.
Ill-conditioned  In p_k (v_k - p·v) the difference loses digits where p_k is nearly 1.
Shapes  prediction, v, H v: (..., C); target: as the loss takes it; factors: (K, ..., C), K = C
Source  Schraudolph (2002), Fast curvature matrix-vector products for second-order gradient descent;
        Bishop (2006), section 4.3; Dangel, Kunstner & Hennig (2020), arXiv:1912.10985 (factors)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activations import sigmoid, tanh
from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import is_classes
from manual_bp.losses.absolute_error import AbsoluteError
from manual_bp.losses.cosine_similarity import CosineSimilarity
from manual_bp.losses.focal import Focal
from manual_bp.losses.hinge import Hinge
from manual_bp.losses.huber import Huber
from manual_bp.losses.kl_divergence import KLDivergence
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy
from manual_bp.losses.log_cosh import LogCosh
from manual_bp.losses.multiclass_hinge import MulticlassHinge
from manual_bp.losses.poisson_negative_log_likelihood import PoissonNegativeLogLikelihood
from manual_bp.losses.sigmoid_binary_cross_entropy import SigmoidBinaryCrossEntropy
from manual_bp.losses.softmax_cross_entropy import SoftmaxCrossEntropy, poison, softmax
from manual_bp.losses.squared_error import SquaredError


class Curvature(NamedTuple):
    """What is known of a loss's Hessian."""

    product: Callable[..., jax.Array]
    """product(loss, prediction, target, v) -> H v."""
    factor: Callable[..., jax.Array] | None
    """factor(loss, prediction, target) -> the s_k, (..., K, C); None where it isn't convex."""


def hessian_vector(loss: Loss, prediction: jax.Array, target: jax.Array, v: jax.Array) -> jax.Array:
    """H v for each prediction, H the Hessian of the loss's value with respect to the prediction.

        H v = h ⊙ v for a loss of each unit by itself,  Y p ⊙ (v - p·v) for softmax cross-entropy

    Args:
        loss: any of manual_bp's but LinearCrossEntropy.
        prediction: (..., C).
        target: as the loss takes it.
        v: (..., C).

    Returns:
        (..., C), no weights in it; in at least float32.

    Raises:
        TypeError: for a loss whose Hessian isn't known, naming those whose is.

    Source: Schraudolph (2002).

    Example:
        >>> z, v = jnp.zeros((1, 2)), jnp.array([[1.0, 0.0]])
        >>> hessian_vector(SoftmaxCrossEntropy(), z, jnp.array([0]), v)
        Array([[ 0.25, -0.25]], dtype=float32)
    """
    wide = accumulation_dtype(prediction, v)
    return check_has_hessian(loss).product(loss, prediction.astype(wide), target, v.astype(wide))


def hessian_factor(loss: Loss, prediction: jax.Array, target: jax.Array) -> jax.Array:
    """Columns s_k with H = Σ_k s_k s_kᵀ, for a loss that is convex in its prediction.

        s_k = √h_k e_k for a loss of each unit by itself,  √(Y p_k) (e_k - p) for softmax

    Args:
        loss: any of manual_bp's but LinearCrossEntropy, Focal and CosineSimilarity.
        prediction: (..., C).
        target: as the loss takes it.

    Returns:
        (C, ..., C), s_k first; no weights in it; in at least float32.

    Raises:
        TypeError: for a loss whose Hessian isn't known, or that isn't convex.

    Source: Dangel, Kunstner & Hennig (2020), arXiv:1912.10985.

    Example:
        >>> s = hessian_factor(SquaredError(), jnp.zeros((5, 3)), jnp.ones((5, 3)))
        >>> s.shape
        (3, 5, 3)
        >>> print(s[:, 0])
        [[1. 0. 0.]
         [0. 1. 0.]
         [0. 0. 1.]]
    """
    factor = check_has_hessian(loss).factor
    if factor is None:
        convex = [kind.__name__ for kind, each in CURVATURES.items() if each.factor]
        raise TypeError(
            f"{loss!r} isn't convex in its prediction: its Hessian has eigenvalues below 0, so "
            f"that H = Σ s sᵀ has no real s. Use a convex loss: {', '.join(convex)}; or "
            "hessian_vector, which needs no factors."
        )
    wide = prediction.astype(accumulation_dtype(prediction))
    return jnp.moveaxis(factor(loss, wide, target), -2, 0)


def check_has_hessian(loss: Loss) -> Curvature:
    """What is known of the loss's Hessian; a TypeError where nothing is."""
    if type(loss) in CURVATURES:  # not a subclass: its value may be another
        return CURVATURES[type(loss)]
    known = ", ".join(kind.__name__ for kind in CURVATURES)
    advice = f"Those that have one: {known}."
    if isinstance(loss, LinearCrossEntropy):
        advice = (
            "It holds the last layer's parameters, through which the curvature passes too. Write "
            "the same as Dense(classes) at the end of the network and SoftmaxCrossEntropy()."
        )
    raise TypeError(f"{loss!r} has no Hessian by hand. {advice}")


def _of_units(curvature: Callable[..., jax.Array], convex: bool = True) -> Curvature:
    """From h(loss, prediction, target), for a loss that treats each unit by itself."""

    def product(loss: Any, prediction: jax.Array, target: jax.Array, v: jax.Array) -> jax.Array:
        return curvature(loss, prediction, target) * v

    def factor(loss: Any, prediction: jax.Array, target: jax.Array) -> jax.Array:
        h = curvature(loss, prediction, target)
        return jnp.sqrt(h)[..., None] * jnp.eye(h.shape[-1], dtype=h.dtype)

    return Curvature(product, factor if convex else None)


def _flat(loss: Loss, prediction: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.zeros_like(prediction)


def _flat_of_classes(loss: Loss, prediction: jax.Array, target: jax.Array) -> jax.Array:
    exists = (target[..., None] == jnp.arange(prediction.shape[-1])).any(-1, keepdims=True)
    return 0 * jnp.where(exists, jnp.ones_like(prediction), jnp.nan)


def _of_squared_error(loss: SquaredError, a: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.ones_like(a)


def _of_huber(loss: Huber, a: jax.Array, y: jax.Array) -> jax.Array:
    return (jnp.abs(a - y) <= loss.delta).astype(a.dtype)


def _of_log_cosh(loss: LogCosh, a: jax.Array, y: jax.Array) -> jax.Array:
    return tanh.derivative(a - y)


def _of_sigmoid(loss: SigmoidBinaryCrossEntropy, z: jax.Array, y: jax.Array) -> jax.Array:
    return sigmoid.derivative(z)


def _of_poisson(loss: PoissonNegativeLogLikelihood, z: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.exp(z)


def _of_focal(loss: Focal, prediction: jax.Array, target: jax.Array) -> jax.Array:
    y, log_p, log_q, log_w, cross_entropy, scale = loss.terms(prediction, target)
    p, q, c = jnp.exp(log_p), jnp.exp(log_q), 1 - 2 * y
    rho = jnp.exp(log_p + log_q - log_w)
    t = (1 - y) * p - y * q
    bend = 2 * t + ((loss.gamma - 1) * c * rho + q - p) * cross_entropy
    return scale * (p * q + loss.gamma * c * rho * bend)


def _softmax(
    loss: SoftmaxCrossEntropy, prediction: jax.Array, target: jax.Array
) -> tuple[jax.Array, Any]:
    """p and Y."""
    total = (
        1
        if is_classes(prediction, target)
        else target.astype(prediction.dtype).sum(-1, keepdims=True)
    )
    return softmax(prediction), total


def _softmax_product(
    loss: SoftmaxCrossEntropy, prediction: jax.Array, target: jax.Array, v: jax.Array
) -> jax.Array:
    p, total = _softmax(loss, prediction, target)
    product = total * p * (v - (p * v).sum(-1, keepdims=True))
    return poison(product, *loss.distribution(prediction, target)[1:])


def _softmax_factor(
    loss: SoftmaxCrossEntropy, prediction: jax.Array, target: jax.Array
) -> jax.Array:
    p, total = _softmax(loss, prediction, target)
    columns = jnp.eye(p.shape[-1], dtype=p.dtype) - p[..., None, :]
    factor = jnp.sqrt(total * p)[..., None] * columns
    return poison(factor, *loss.distribution(prediction, target)[1:])


def _cosine_product(
    loss: CosineSimilarity, prediction: jax.Array, target: jax.Array, v: jax.Array
) -> jax.Array:
    a_unit, length, free = loss.unit(prediction)
    y_unit, _, _ = loss.unit(target.astype(prediction.dtype))
    c, along, onto = (
        (left * right).sum(-1, keepdims=True)
        for left, right in ((a_unit, y_unit), (a_unit, v), (y_unit, v))
    )
    product = along * y_unit + onto * a_unit + c * (v - 3 * along * a_unit)
    product = product / length / length  # not by its square, which may overflow
    return product if free is None else jnp.where(free, product, 0)


CURVATURES: dict[type[Loss], Curvature] = {
    SquaredError: _of_units(_of_squared_error),
    Huber: _of_units(_of_huber),
    LogCosh: _of_units(_of_log_cosh),
    AbsoluteError: _of_units(_flat),
    SoftmaxCrossEntropy: Curvature(_softmax_product, _softmax_factor),
    SigmoidBinaryCrossEntropy: _of_units(_of_sigmoid),
    PoissonNegativeLogLikelihood: _of_units(_of_poisson),
    KLDivergence: _of_units(_flat),
    Hinge: _of_units(_flat),
    MulticlassHinge: _of_units(_flat_of_classes),
    Focal: _of_units(_of_focal, convex=False),
    CosineSimilarity: Curvature(_cosine_product, None),
}
"""The Hessians by hand, by kind of loss."""
