"""Gated MLP: two dense layers wide, one multiplied by the activation of the other.

Forward, for each vector x ∈ ℝᶠ, with g an activation:

    Z = x W_gateᵀ
    U = x W_upᵀ
    H = g(Z) ⊙ U
    out = H W_downᵀ

Backward, given dout:

    dW_down = doutᵀ H,   dH = dout W_down
    dU = dH ⊙ g(Z)
    dZ = dH ⊙ U ⊙ g'(Z)
    dW_gate = dZᵀ x,   dW_up = dUᵀ x           summed over examples
    dx = dZ W_gate + dU W_up

Derivation.  A product of two paths from x: the error of each is dH times the other, and on the way
to Z it passes g, element-wise. x is used twice, so two errors add. All else is a dense layer's.

With silu it is SwiGLU, with gelu GEGLU, with relu ReGLU, with sigmoid the gated linear unit. There
are no biases, as in the source. Three matrices take the place of two: with the inside 2/3 as wide,
there are as many parameters as without a gate.

Backward keeps x, Z and U. g(Z) and H are computed again: an element-wise function and a product.

Shapes  x, out, dout, dx: (..., F); Z, U, H: (..., n); W_gate, W_up: (n, F); W_down: (F, n)
Source  Shazeer (2020), GLU variants improve Transformer, arXiv:2002.05202
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation, check_floating, glorot
from manual_bp.activations import silu
from manual_bp.layer import Layer, check_taken, outer_over_examples
from manual_bp.layers._channels import apart
from manual_bp.sharding import by_rows, matmul


class Params(NamedTuple):
    """W_gate, W_up: (n, F); W_down: (F, n)."""

    W_gate: Any
    W_up: Any
    W_down: Any


class Residuals(NamedTuple):
    """x: (..., F), the input; z, u: (..., n), Z and U."""

    x: jax.Array
    z: jax.Array
    u: jax.Array


@dataclass(frozen=True)
class GatedMLP(Layer):
    """out = (g(x W_gateᵀ) ⊙ x W_upᵀ) W_downᵀ, with as many features as x.

    Weights are drawn by Glorot's rule.

    Args:
        features_inside: n, the features between.
        activation: g, element-wise; silu, as in Llama, unless given.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Shazeer (2020), arXiv:2002.05202.

    Example:
        >>> layer, x = GatedMLP(8), jnp.ones((5, 3))  # SwiGLU
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> out.shape, dparams.W_down.shape, dx.shape
        ((5, 3), (3, 8), (5, 3))
    """

    features_inside: int
    activation: Activation = silu

    def __post_init__(self) -> None:
        n = self.features_inside
        if not isinstance(n, int) or isinstance(n, bool) or n < 1:
            raise TypeError(f"GatedMLP: features_inside must be a positive int, got {n!r}.")
        if not isinstance(self.activation, Activation):
            raise TypeError(
                f"GatedMLP({n}): activation must be an activation of manual_bp, such as "
                f"manual_bp.silu, got {self.activation!r}."
            )

    def init(self, key: jax.Array, x: Any) -> Params:
        self._check_input(x)
        shapes = self._shapes(x.shape[-1])
        return Params(
            *(
                glorot(jax.random.fold_in(key, number), shape, x.dtype)
                for number, shape in enumerate(shapes)
            )
        )

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check(params, x)
        z, u = by_rows(x, params.W_gate), by_rows(x, params.W_up)
        return by_rows(self.gated(z, u), params.W_down), Residuals(x, z, u)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        x, (dz, du, h) = residuals.x, self.errors(params, residuals, dout)
        dparams = Params(
            outer_over_examples(dz, x, like=params.W_gate),
            outer_over_examples(du, x, like=params.W_up),
            outer_over_examples(dout, h, like=params.W_down),
        )
        dx = matmul(dz, params.W_gate, x) + matmul(du, params.W_up, x)
        return dparams, dx.astype(x.dtype)

    def errors(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """dZ and dU, and H again, which dW_down needs; (..., n) each."""
        _, z, u = residuals
        return self.gate_errors(z, u, matmul(dout, params.W_down, u))

    def gated(self, z: jax.Array, u: jax.Array) -> jax.Array:
        """H = g(Z) ⊙ U."""
        a, _ = self.activation.forward((), z)
        return a * u

    def gate_errors(
        self, z: jax.Array, u: jax.Array, dh: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """dZ, dU and H, from Z, U and dH: the gate alone, where g(Z) is computed again."""
        z, u, dh = apart(z, u, dh)  # or XLA keeps parts of forward's g(Z) beside Z and U
        a, kept = self.activation.forward((), z)
        _, dz = self.activation.backward((), kept, dh * u)
        return dz, dh * a, a * u

    def _shapes(self, features: int) -> tuple[tuple[int, int], ...]:
        """Those of the params."""
        wide, back = (self.features_inside, features), (features, self.features_inside)
        return wide, wide, back

    def _check_input(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim < 1 or x.shape[-1] == 0:
            raise ValueError(f"{self!r}: x has shape {tuple(x.shape)}, expected (..., F).")

    def _check(self, params: Any, x: Any) -> None:
        self._check_input(x)
        if not isinstance(params, Params):
            raise TypeError(
                f"{self!r} expected its Params({', '.join(Params._fields)}), got "
                f"{type(params).__module__}.{type(params).__name__}. Make them with "
                "network.init(key, x)."
            )
        for (name, W), shape in zip(
            params._asdict().items(), self._shapes(x.shape[-1]), strict=True
        ):
            if not hasattr(W, "shape") or not jnp.issubdtype(W.dtype, jnp.floating):
                given = f"{W.dtype}" if hasattr(W, "dtype") else type(W).__name__
                raise TypeError(f"{self!r}: {name} must be a floating-point array, got {given}.")
            if tuple(W.shape) != shape:
                advice = f" {name}.T would fit." if tuple(W.shape) == shape[::-1] else ""
                raise ValueError(
                    f"{self!r}: {name} has shape {tuple(W.shape)}, expected {shape} for x "
                    f"{tuple(x.shape)}.{advice}"
                )
