"""Log-softmax: the logarithm of softmax, without taking the logarithm of 0.

Forward, for each vector x in R^C along an axis:

    out_i = x_i - log Σ_k e^{x_k}

Backward, given dout, with a = softmax(x) = e^out:

    dx = dout - a Σ_k dout_k

Derivation.  ∂ log Σ_k e^{x_k} / ∂x_j = e^{x_j} / Σ_k e^{x_k} = a_j, so ∂out_i/∂x_j = δ_ij - a_j;
contract it with dout. To check by eye: Σ_j dx_j = 0, since out ignores a constant shift of x. For
the same reason max x may be subtracted first: then no exponential exceeds 1 and their sum is at
least 1. Backward keeps out alone.

At x_i = -inf, a class that is ruled out, out_i = -inf and a_i = 0: dx_i = dout_i, and the others
are as if it weren't there but for dout_i. A vector of -inf alone has no softmax: all of out and dx
is NaN, as in JAX; so it is where an x_i is +inf or NaN.

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
    """log_a: the output, with x's shape."""

    log_a: jax.Array


@dataclass(frozen=True)
class LogSoftmax(Layer):
    """x - log Σ e^x along an axis.

    Args:
        axis: the axis of classes, counted from the end.

    Raises:
        TypeError: for an axis that isn't an int, for inputs that aren't floats.
        ValueError: for an axis counted from the front, for inputs that don't have it.

    Source: Bridle (1990).

    Example:
        >>> out, residuals = LogSoftmax().forward((), jnp.array([[0.0, 200.0]]))
        >>> _, dx = LogSoftmax().backward((), residuals, jnp.array([[1.0, 0.0]]))
        >>> print(out, dx)
        [[-200.    0.]] [[ 1. -1.]]
    """

    axis: int = -1

    def __post_init__(self) -> None:
        check_axis("LogSoftmax", self.axis)

    def init(self, key: jax.Array, x: Any) -> tuple[()]:
        del key
        self._check(x)
        return ()

    def forward(self, params: Any, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(x)
        shifted = _shifted(x.astype(accumulation_dtype(x)), self.axis)
        total = jnp.exp(shifted).sum(self.axis, keepdims=True)
        log_a = (shifted - jnp.log(total)).astype(x.dtype)
        return log_a, Residuals(log_a)

    def backward(
        self, params: Any, residuals: Residuals, dout: jax.Array
    ) -> tuple[tuple[()], jax.Array]:
        wide = accumulation_dtype(dout)
        a, dout = jnp.exp(residuals.log_a.astype(wide)), dout.astype(wide)
        dx = dout - a * dout.sum(self.axis, keepdims=True)
        return (), dx.astype(residuals.log_a.dtype)

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
