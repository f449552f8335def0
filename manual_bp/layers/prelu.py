"""PReLU: a leaky relu whose slope below 0 is learnt.

    out = x where x ≥ 0, s ⊙ x elsewhere         s for each channel, or one for all

    ds = Σ over examples and places of dout ⊙ x where x < 0     over channels too if one for all
    dx = dout where x ≥ 0, s ⊙ dout elsewhere

Derivation.  Element by element: ∂out/∂x is 1 or s, and ∂out/∂s is 0 or x. J depends on a slope
through every element that has it, so its derivative sums over these, in at least float32. At the
kink x = 0 the derivative is 1, from the right, as JAX has it for where(x >= 0, x, s x); ∂out/∂s is
0 there either way. Backward keeps x.

Shapes  x, out, dout, dx: (..., C); s (slope): (C,), or () if one for all
Source  He, Zhang, Ren & Sun (2015), Delving deep into rectifiers, arXiv:1502.01852
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating, check_number
from manual_bp.layer import Layer, accumulation_dtype, check_taken, sum_over_examples
from manual_bp.sharding import beside, sharded_like


class Params(NamedTuple):
    """slope: (C,), or () if one for all."""

    slope: Any


class Residuals(NamedTuple):
    """x: (..., C), the input."""

    x: jax.Array


@dataclass(frozen=True)
class PReLU(Layer):
    """x where x ≥ 0, slope·x elsewhere, with slopes that are parameters.

    Args:
        slope: what slopes are drawn as.
        shared: whether there is one slope for all channels.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for a slope that isn't finite, for shapes that don't fit.

    Source: He et al. (2015).

    Example:
        >>> params = PReLU().init(jax.random.key(0), jnp.ones((2, 2)))
        >>> out, residuals = PReLU().forward(params, jnp.array([[-4.0, 2.0], [-8.0, 0.0]]))
        >>> dparams, dx = PReLU().backward(params, residuals, jnp.ones((2, 2)))
        >>> print(out, dx, dparams.slope)
        [[-1.  2.] [-2.  0.]] [[0.25 1. ] [0.25 1. ]] [-12.   0.]
    """

    slope: float = 0.25
    shared: bool = False

    def __post_init__(self) -> None:
        check_number("PReLU's slope", self.slope, "a finite number", lambda slope: True)
        if not isinstance(self.shared, bool):
            raise TypeError(f"PReLU: shared must be a bool, got {self.shared!r}.")

    def init(self, key: jax.Array, x: Any) -> Params:
        del key
        return Params(jnp.full(self._shape(x), self.slope, x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(params, x)
        return jnp.where(x >= 0, x, beside(params.slope, x) * x), Residuals(x)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        x, s = residuals.x, params.slope
        dout = sharded_like(dout, x)
        wide = accumulation_dtype(dout, x)
        below = jnp.where(x >= 0, 0, dout.astype(wide) * x.astype(wide))
        ds = sum_over_examples(below, s.ndim, like=s)
        dx = jnp.where(x >= 0, dout, beside(s, x) * dout).astype(x.dtype)
        return Params(ds), dx

    def _shape(self, x: Any) -> tuple[int, ...]:
        """The slope's shape for inputs like x."""
        check_floating(self, x)
        if x.ndim < 1:
            raise ValueError(f"{self!r}: x has shape (), expected (..., C).")
        return () if self.shared else (x.shape[-1],)

    def _check(self, params: Params, x: Any) -> None:
        expected = self._shape(x)
        if not hasattr(params, "slope"):
            raise TypeError(
                f"{self!r} expected params with a field slope, got {type(params).__name__}. "
                "Make them with network.init(key, x)."
            )
        slope = params.slope
        if not hasattr(slope, "shape") or not jnp.issubdtype(slope.dtype, jnp.floating):
            given = f"{slope.dtype}" if hasattr(slope, "dtype") else type(slope).__name__
            raise TypeError(f"{self!r}: slope must be a floating-point array, got {given}.")
        if slope.shape != expected:
            raise ValueError(
                f"{self!r}: slope has shape {tuple(slope.shape)}, expected {expected} for x "
                f"{tuple(x.shape)}; it is not broadcast."
            )
