"""Scale: each feature times a factor of its own, plus a shift if wanted.

    out = γ ⊙ x + β                      γ, β for each feature, the same for all examples

    dγ = Σ over examples of dout ⊙ x
    dβ = Σ over examples of dout
    dx = γ ⊙ dout

Derivation.  out_nc = γ_c x_nc + β_c: ∂out_nc/∂γ_d = [c = d] x_nc, ∂out_nc/∂β_d = [c = d] and
∂out_nc/∂x_kd = [n = k, c = d] γ_c. J depends on γ_c through out_nc for every n, so its derivative
sums over n, in at least float32. Backward keeps x; the shift needs nothing.

Shapes  x, out, dout, dx: (..., C); γ (scale), β (shift): (C,)
Source  Ioffe & Szegedy (2015), arXiv:1502.03167 (the affine map after normalising); Touvron et al.
        (2021), arXiv:2103.17239 (by itself, as LayerScale)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating
from manual_bp.layer import Layer, accumulation_dtype, check_taken, sum_over_examples
from manual_bp.sharding import beside


class Params(NamedTuple):
    """scale: (C,), γ; shift: (C,), β, or () without bias."""

    scale: Any
    shift: Any = ()


class Residuals(NamedTuple):
    """x: (..., C), the input."""

    x: jax.Array


@dataclass(frozen=True)
class Scale(Layer):
    """γ ⊙ x + β, feature by feature; γ is drawn as ones, β as zeros.

    Args:
        bias: whether there is a shift β.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Ioffe & Szegedy (2015).

    Example:
        >>> params = Params(jnp.array([2.0, 3.0]), jnp.array([1.0, 0.0]))
        >>> out, residuals = Scale(bias=True).forward(params, jnp.ones((4, 2)))
        >>> dparams, dx = Scale(bias=True).backward(params, residuals, jnp.ones((4, 2)))
        >>> print(out[0], dx[0], *dparams)
        [3. 3.] [2. 3.] [4. 4.] [4. 4.]
    """

    bias: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.bias, bool):
            raise TypeError(f"Scale: bias must be a bool, got {self.bias!r}.")

    def init(self, key: jax.Array, x: Any) -> Params:
        del key
        self._check_input(x)
        ones = jnp.ones(x.shape[-1], x.dtype)
        return Params(ones, jnp.zeros_like(ones) if self.bias else ())

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(params, x)
        used = tuple(params) if self.bias else (params.scale,)
        wide = accumulation_dtype(x, *used)  # γx is not rounded before β is added
        out = beside(params.scale, x).astype(wide) * x.astype(wide)
        if self.bias:
            out = out + beside(params.shift, x).astype(wide)
        return out.astype(jnp.result_type(x, *used)), Residuals(x)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        x = residuals.x
        wide = accumulation_dtype(dout, x)
        dscale = sum_over_examples(dout.astype(wide) * x.astype(wide), like=params.scale)
        dshift = sum_over_examples(dout, like=params.shift) if self.bias else ()
        return Params(dscale, dshift), (beside(params.scale, x) * dout).astype(x.dtype)

    def _check(self, params: Params, x: Any) -> None:
        self._check_input(x)
        if not (hasattr(params, "scale") and hasattr(params, "shift")):
            raise TypeError(
                f"{self!r} expected params with fields scale and shift, got "
                f"{type(params).__name__}. Make them with network.init(key, x)."
            )
        if not self.bias and hasattr(params.shift, "shape"):
            raise ValueError(f"{self!r} has no shift, but params hold one: use Scale(bias=True).")
        expected = (x.shape[-1],)
        for name in ("scale", "shift")[: 1 + self.bias]:
            value = params.scale if name == "scale" else params.shift
            if not hasattr(value, "shape") or not jnp.issubdtype(value.dtype, jnp.floating):
                given = f"{value.dtype}" if hasattr(value, "dtype") else type(value).__name__
                raise TypeError(f"{self!r}: {name} must be a floating-point array, got {given}.")
            if value.shape != expected:
                raise ValueError(
                    f"{self!r}: {name} has shape {tuple(value.shape)}, expected {expected}, one "
                    f"for each feature of x {tuple(x.shape)}; it is not broadcast."
                )

    def _check_input(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim < 1:
            raise ValueError(f"{self!r}: x has shape (), expected (..., C).")
