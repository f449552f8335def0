"""Dropout: leave each number out with some probability, and scale up what is kept.

Forward, with p the rate and u_i independent and uniform on {0, 1, ..., 2³² - 1}/2³²:

    mask_i = [u_i ≥ p]
    out_i = mask_i x_i/(1 - p)

Backward, given dout:

    dx_i = mask_i dout_i/(1 - p)

Derivation.  Given the mask, out is linear in x, element by element, with the diagonal Jacobian
∂out_i/∂x_j = δ_ij mask_i/(1 - p). Backward keeps the mask, one byte for each number, rather than
the key: drawing it again would cost more.

The mask is drawn as integers: 2³² u_i are 32 random bits, and u_i ≥ p means bits ≥ ⌈2³² p⌉. So the
probability of being dropped is q = ⌈2³² p⌉/2³²: p itself where that is a multiple of 2⁻³² (1/2,
1/4, 3/8, ...), and less than 2⁻³² above p elsewhere. Dividing by 1 - p keeps the mean:
E out_i = x_i (1 - q)/(1 - p).

Not training, dropout is the identity: `inference()`.

Shapes  x, out, dout, dx, mask: any, all the same
Source  Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov (2014), Dropout, JMLR 15
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating, check_number
from manual_bp.activations import identity
from manual_bp.layer import Layer, Tree, accumulation_dtype, check_taken
from manual_bp.sharding import as_divided

VALUES = 2**32
"""How many values u has."""


class Residuals(NamedTuple):
    """kept: the mask, as booleans of x's shape."""

    kept: jax.Array


@dataclass(frozen=True)
class Dropout(Layer):
    """out = mask ⊙ x/(1 - rate), each entry of the mask 0 with probability rate; takes a key.

    Args:
        rate: the probability of dropping, 0 ≤ rate < 1 (at most 1 - 2⁻³²).

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for a rate outside that range.

    Source: Srivastava et al. (2014), JMLR 15.

    Example:
        >>> out, residuals = Dropout(0.5).forward((), jnp.ones(6), key=jax.random.key(0))
        >>> print(out, residuals.kept.dtype)
        [2. 2. 0. 0. 2. 0.] bool
        >>> Dropout(0.5).inference()
        identity
    """

    rate: float

    takes: ClassVar[tuple[str, ...]] = ("key",)

    def __post_init__(self) -> None:
        wanted = "a number with 0 <= rate < 1, the probability of dropping"
        largest = 1 - 1 / VALUES
        check_number("Dropout: rate", self.rate, wanted, lambda rate: 0 <= rate <= largest)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        check_floating(self, x)
        _check_key(self, taken["key"])
        bits = jax.random.bits(taken["key"], x.shape, jnp.uint32, out_sharding=as_divided(x))
        mask = bits >= jnp.uint32(math.ceil(VALUES * self.rate))
        return self._scaled(mask, x), Residuals(mask)

    def backward(
        self, params: Tree, residuals: Residuals, dout: jax.Array
    ) -> tuple[Tree, jax.Array]:
        return (), self._scaled(residuals.kept, dout)

    def inference(self) -> Layer:
        return identity

    def _scaled(self, mask: jax.Array, values: jax.Array) -> jax.Array:
        """mask ⊙ values/(1 - rate)."""
        wide = values.astype(accumulation_dtype(values))  # in half precision 1/(1 - rate) is coarse
        return jnp.where(mask, wide * (1 / (1 - self.rate)), 0).astype(values.dtype)


def _check_key(layer: Layer, key: Any) -> None:
    """Raise unless key is one random key, typed as jax.random.key makes it, or an old raw one."""
    has_type = hasattr(key, "dtype")
    if has_type and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0:
        return
    if has_type and key.dtype == jnp.uint32 and key.ndim == 1:
        return
    given = f"{key.dtype} {tuple(key.shape)}" if has_type else repr(key)
    raise TypeError(
        f"{layer!r}: key must be one random key, as jax.random.key(0) makes it, got {given}."
    )
