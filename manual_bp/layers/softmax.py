"""Softmax: exponentials that sum to one.

Forward, for each vector x in R^C along an axis:

    a_i = e^{x_i} / Σ_k e^{x_k}

Backward, given dout:

    dx = a ⊙ (dout - ⟨dout, a⟩)

Derivation.  log a_i = x_i - log Σ_k e^{x_k}, so ∂a_i/∂x_j = a_i (δ_ij - a_j), symmetric in i and j;
contracted with dout: dx_j = a_j dout_j - a_j Σ_i dout_i a_i. To check by eye: Σ_j dx_j = 0, since a
ignores a constant shift of x. For the same reason max x may be subtracted first, so that no
exponential exceeds 1. Backward keeps a alone, which is out.

At x_i = -inf, a class that is ruled out, a_i = 0 and dx_i = 0, and the others are as if it weren't
there. A vector of -inf alone has no softmax: all of a and dx is NaN, as in JAX; so it is where an
x_i is +inf or NaN. Where a_i rounds to 1, its own derivative a_i (1 - a_i) is lost, as in autodiff.
LogSoftmax, and SoftmaxCrossEntropy of logits, keep log a_i there; 1 - a_i, at most a unit roundoff,
is lost in their errors too.

float16 and bfloat16 are computed in float32 and rounded once.

Shapes  x, out, dout, dx: any, with C classes along the axis
Source  Bridle (1990), Probabilistic interpretation of feedforward classification network outputs
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_axis, check_floating
from manual_bp.layer import Layer, accumulation_dtype, check_taken


class Residuals(NamedTuple):
    """a: the output, with x's shape."""

    a: jax.Array


@dataclass(frozen=True)
class Softmax(Layer):
    """e^x over its sum along an axis.

    Args:
        axis: the axis of classes, counted from the end.

    Raises:
        TypeError: for an axis that isn't an int, for inputs that aren't floats.
        ValueError: for an axis counted from the front, for inputs that don't have it.

    Source: Bridle (1990).

    Example:
        >>> a, residuals = Softmax().forward((), jnp.array([[0.0, 0.0]]))
        >>> _, dx = Softmax().backward((), residuals, jnp.array([[1.0, 0.0]]))
        >>> print(a, dx)
        [[0.5 0.5]] [[ 0.25 -0.25]]
    """

    axis: int = -1

    def __post_init__(self) -> None:
        check_axis("Softmax", self.axis)

    def init(self, key: jax.Array, x: Any) -> tuple[()]:
        del key
        self._check(x)
        return ()

    def forward(self, params: Any, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(x)
        exponentials = jnp.exp(_shifted(x.astype(accumulation_dtype(x)), self.axis))
        a = (exponentials / exponentials.sum(self.axis, keepdims=True)).astype(x.dtype)
        return a, Residuals(a)

    def backward(
        self, params: Any, residuals: Residuals, dout: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        wide = accumulation_dtype(dout)
        a, dout = residuals.a.astype(wide), dout.astype(wide)
        inner = (dout * a).sum(self.axis, keepdims=True)
        return (), (a * (dout - inner)).astype(residuals.a.dtype)

    def _check(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim <= -self.axis:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected examples first and "
                f"{-self.axis} more axes at least."
            )


def _shifted(x: jax.Array, axis: int) -> jax.Array:
    """What is left of x when its maximum is subtracted."""
    return x - x.max(axis, keepdims=True)
