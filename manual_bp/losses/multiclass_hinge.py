"""Multiclass hinge loss: the right class must lead every other one by a margin of 1.

For scores z in R^C and the class k:

    t_k = 0,   t_c = 1 + z_c - z_k for c ≠ k,    value = max_c t_c

    error_c = ∂value/∂z_c = s_c - [c = k],       s_c = [t_c = max t] / (how many are)

Derivation.  Where one t_c alone is largest, value = t_c: for c = k it is constant, else its
derivative is +1 in z_c and -1 in z_k. Both are s_c - [c = k]. Where several are equal there is a
kink, and the error is the mean of theirs, in the middle of the subdifferential; so JAX
differentiates a maximum. The errors of a prediction sum to 0.

A class outside 0 ... C-1 has value and error NaN.

Shapes  prediction, error: (..., C); target: integers (...); value: (...)
Source  Crammer & Singer (2001), On the algorithmic implementation of multiclass kernel-based
        vector machines
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_classes, check_classes_exist


@dataclass(frozen=True)
class MulticlassHinge(Loss):
    """max(0, 1 + max over c ≠ k of z_c - z_k), with error +1 at the rival that leads, -1 at k.

    Raises:
        TypeError, ValueError: for targets that aren't integer classes (...) from 0 to C-1.

    Source: Crammer & Singer (2001).

    Example:
        >>> z = jnp.array([[0.5, 0.0, -2.0], [3.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
        >>> MulticlassHinge().error(z, jnp.array([0, 0, 0]))
        Array([[-1.        ,  1.        ,  0.        ],
               [ 0.        ,  0.        ,  0.        ],
               [-0.6666666 ,  0.33333334,  0.33333334]], dtype=float32)
    """

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        t, _, valid = self._margins(prediction, target)
        return jnp.where(valid[..., 0], t.max(-1), jnp.nan)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        t, own, valid = self._margins(prediction, target)
        largest = (t == t.max(-1, keepdims=True)).astype(t.dtype)
        s = largest / largest.sum(-1, keepdims=True)
        return jnp.where(valid, s - own.astype(t.dtype), jnp.nan)

    def check(self, prediction: Any, target: Any) -> None:
        check_classes(self, prediction, target)

    def check_target(self, units: int, target: Any, counted: Any) -> None:
        check_classes_exist(self, units, target, counted)

    def _margins(
        self, prediction: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """t (..., C), which classes are the right ones (..., C), which exist (..., 1)."""
        z = prediction.astype(accumulation_dtype(prediction))
        own = target[..., None] == jnp.arange(z.shape[-1])
        z_k = jnp.where(own, z, 0).sum(-1, keepdims=True)
        return jnp.where(own, 0, 1 + (z - z_k)), own, own.any(-1, keepdims=True)
