"""Hinge loss: yes and no as +1 and -1, each unit by itself, with a margin of 1.

For scores z and labels y in {-1, +1}, summed over the units:

    value = Σ max(0, 1 - y z),    error = ∂value/∂z = -y H(1 - y z)

with H(t) = (1 + sign t)/2: 1 where t > 0, 0 where t < 0.

Derivation.  A score on the right side of its margin, y z > 1, costs nothing; elsewhere 1 - y z has
the slope -y. At the kink y z = 1 the error is -y/2, H(0) = ½, the middle of the subdifferential,
as JAX differentiates a maximum of two equal numbers.

Labels must be -1 and +1. Booleans and unsigned integers can't be; integers are checked where they
are at hand; elsewhere the formula is evaluated as it stands, in which a label 0 has no error.

Shapes  prediction z, target y, error: (..., n); value: (...)
Source  Cortes & Vapnik (1995), Support-vector networks
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import check_same_shape, check_units


@dataclass(frozen=True)
class Hinge(Loss):
    """Σ max(0, 1 - y z) for labels -1 and +1, with error -y where y z < 1, -y/2 where y z = 1.

    Raises:
        TypeError: for labels that can't be -1: booleans, unsigned integers, integer classes.
        ValueError: for labels whose shape isn't the prediction's, or integers other than -1 and 1.

    Source: Cortes & Vapnik (1995).

    Example:
        >>> Hinge().error(jnp.array([[0.5, 1.0, 2.0]]), jnp.array([[1.0, 1.0, 1.0]]))
        Array([[-1. , -0.5, -0. ]], dtype=float32)
    """

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        z = prediction.astype(accumulation_dtype(prediction))
        return jnp.maximum(0, 1 - target * z).sum(-1)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        z = prediction.astype(accumulation_dtype(prediction))
        return -target * (1 + jnp.sign(1 - target * z)) / 2

    def check(self, prediction: Any, target: Any) -> None:
        check_same_shape(
            self,
            prediction,
            target,
            "2 * jax.nn.one_hot(y, {units}) - 1, or MulticlassHinge(), which takes them as they "
            "are",
        )
        if not (jnp.issubdtype(target.dtype, jnp.signedinteger) or _is_floating(target)):
            raise TypeError(
                f"{self!r}: labels are -1 and +1, got {target.dtype} {tuple(target.shape)}. For "
                "yes and no use jnp.where(y, 1, -1)."
            )

    def check_target(self, units: int, target: Any, counted: Any) -> None:
        if target.shape[-1:] == (units,) and target.dtype.kind == "i":
            check_units(self, target, counted, np.abs(target) != 1, "-1 or 1")


def _is_floating(target: Any) -> bool:
    return jnp.issubdtype(target.dtype, jnp.floating)
