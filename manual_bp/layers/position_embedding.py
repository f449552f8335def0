"""PositionEmbedding: a vector for each position, learned, added to what stands there.

    out_t = x_t + P_t                    t = 0, ..., T - 1: the first T rows of P

    dP_t = Σ over examples of dout_t     0 for the rows beyond T
    dx = dout

Derivation.  out_ntf = x_ntf + P_tf: J depends on P_tf through out_ntf for every example n, with
derivative 1. The sum is accumulated in at least float32. Backward needs nothing of x but its dtype
and shape.

Shapes  x, out, dout, dx: (m, T, F) with T ≤ length; P: (length, F)
Source  Gehring, Auli, Grangier, Yarats & Dauphin (2017), arXiv:1705.03122; Radford et al. (2019),
        Language models are unsupervised multitask learners (GPT-2)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating, check_number
from manual_bp.layer import Layer, Static, check_taken, sum_over_examples
from manual_bp.sharding import beside, sharded_like, whole


class Params(NamedTuple):
    """P: (length, F), a row for each position."""

    P: Any


class Residuals(NamedTuple):
    """dtype: the input's."""

    dtype: Static


@dataclass(frozen=True)
class PositionEmbedding(Layer):
    """x + P[:T], with a learned vector for each position.

    Args:
        length: the most positions that an input may have.
        initial_std: standard deviation of P as drawn; 0.02, as in GPT-2, unless given.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit; for an input that is too long.

    Source: Gehring et al. (2017).

    Example:
        >>> layer, x = PositionEmbedding(3), jnp.zeros((4, 2, 1))
        >>> out, residuals = layer.forward(Params(jnp.array([[1.0], [2.0], [3.0]])), x)
        >>> dparams, dx = layer.backward(Params(jnp.zeros((3, 1))), residuals, jnp.ones((4, 2, 1)))
        >>> print(out[0, :, 0], dparams.P[:, 0])
        [1. 2.] [4. 4. 0.]
    """

    length: int
    initial_std: float = field(default=0.02, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.length, int) or isinstance(self.length, bool) or self.length < 1:
            raise TypeError(
                f"PositionEmbedding: length must be a positive int, got {self.length!r}."
            )
        wanted = "a positive number"
        check_number(
            "PositionEmbedding: initial_std", self.initial_std, wanted, lambda std: std > 0
        )

    def init(self, key: jax.Array, x: Any) -> Params:
        self._check_input(x)
        draw = jax.nn.initializers.normal(self.initial_std)
        return Params(draw(key, (self.length, x.shape[-1]), x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        self._check_input(x)
        self._check_params(params, x)
        return x + beside(whole(params.P)[: x.shape[1]], x), Residuals(Static(x.dtype))

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        beyond = self.length - dout.shape[1]
        dP = jnp.pad(sum_over_examples(dout, axes=2), ((0, beyond), (0, 0)))
        dP = sharded_like(dP.astype(params.P.dtype), params.P)
        return Params(dP), dout.astype(residuals.dtype.value)

    def _check_input(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim != 3:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected (m, T, F), one vector for each "
                "example and position."
            )
        if x.shape[1] > self.length:
            raise ValueError(
                f"{self!r}: x {tuple(x.shape)} has {x.shape[1]} positions, but only "
                f"{self.length} have a vector. Cut x, or train with a larger length."
            )

    def _check_params(self, params: Params, x: Any) -> None:
        if not hasattr(params, "P"):
            raise TypeError(
                f"{self!r} expected params with a field P, got {type(params).__name__}. Make them "
                "with network.init(key, x)."
            )
        P, expected = params.P, (self.length, x.shape[-1])
        if not hasattr(P, "shape") or not jnp.issubdtype(P.dtype, jnp.floating):
            given = f"{P.dtype}" if hasattr(P, "dtype") else type(P).__name__
            raise TypeError(f"{self!r}: P must be a floating-point array, got {given}.")
        if P.shape != expected:
            advice = " P.T would fit: a row for each position." if P.shape == expected[::-1] else ""
            raise ValueError(
                f"{self!r}: P has shape {tuple(P.shape)}, expected {expected}; it is not "
                f"broadcast.{advice}"
            )
