"""Dense layer: the layer of the notes, an affine map followed by an activation.

Forward, for each example, as a row:

    Z = A_prev Wᵀ + b
    A = g(Z)

Backward, given dA, the error that arrives from the layer above:

    dZ = dA ⊙ g'(Z)
    dW = Σ over examples of dZ A_prevᵀ        in rows: dZᵀ A_prev
    db = Σ over examples of dZ
    dA_prev = dZ W                             in columns: Wᵀ dZ

With dA = dZ[l+1] W[l+1] from the layer above, the first line is the notes' hidden error,
dZ[l] = W[l+1]ᵀ dZ[l+1] ⊙ g'(Z[l]). The notes' 1/m is in dA already: the engine applies it once, at
the first error. A layer without a bias, such as the head of a language model, has Z = A_prev Wᵀ.

Derivation.  J depends on W_oi through Z_no = Σ_i W_oi A_ni + b_o alone, for every example n. So
∂J/∂W_oi = Σ_n dZ_no A_ni, ∂J/∂b_o = Σ_n dZ_no and ∂J/∂A_ni = Σ_o dZ_no W_oi: the index that is
summed forward (i) is free backward, and the other way round, which is what the transpose means.
g acts on each element alone, so its Jacobian is diagonal and the product with g' element-wise.

Backward keeps A_prev, and of Z just what g' needs, nothing for identity. For relu that is A, which
is above 0 just where Z is: a dense layer above keeps the same array as its A_prev.

Shapes  A_prev, dA_prev: (..., n_in); Z, A, dZ, dA: (..., n_out); W: (n_out, n_in); b: (n_out,)
Source  Rumelhart, Hinton & Williams (1986), Learning representations by back-propagating errors
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation, check_activation, check_floating, check_number
from manual_bp.activations import identity
from manual_bp.layer import Layer, Tree, check_taken, outer_over_examples, sum_over_examples
from manual_bp.sharding import beside, by_rows, matmul


class Params(NamedTuple):
    """W: (n_out, n_in), b: (n_out,), or () without a bias."""

    W: Any
    b: Any


class Residuals(NamedTuple):
    """a_prev: (..., n_in), the layer's input; kept: what the activation keeps of Z, or A."""

    a_prev: jax.Array
    kept: Tree


@dataclass(frozen=True)
class Dense(Layer):
    """A = g(A_prev Wᵀ + b), one layer of the notes.

    Weights are drawn after the activation (see `manual_bp.activations`) unless told otherwise,
    biases are 0.

    Args:
        features: n_out, the number of units.
        activation: g, element-wise; identity unless given.
        inputs: n_in, checked where given; otherwise as many as the input has.
        bias: whether b is added. The notes' pairs (W, b) need one: params of a network without are
            written as `init` makes them.
        initial_std: standard deviation of W as drawn, from a normal distribution; by the
            activation's rule unless given.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Rumelhart, Hinton & Williams (1986).

    Example:
        >>> layer = Dense(3, tanh)
        >>> params = layer.init(jax.random.key(0), jnp.ones((5, 2)))
        >>> out, residuals = layer.forward(params, jnp.ones((5, 2)))
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> dparams.W.shape, dparams.b.shape, dx.shape
        ((3, 2), (3,), (5, 2))
    """

    features: int
    activation: Activation = identity
    inputs: int | None = field(default=None, kw_only=True)
    bias: bool = field(default=True, kw_only=True)
    initial_std: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, size in (("features", self.features), ("inputs", self.inputs)):
            if name == "inputs" and size is None:
                continue
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise TypeError(f"Dense: {name} must be a positive int, got {size!r}.")
        check_activation(f"Dense({self.features})", self.activation)
        if not isinstance(self.bias, bool):
            raise TypeError(
                f"Dense({self.features}): bias must be True or False, got {self.bias!r}. The bias "
                "itself is among the params."
            )
        if self.initial_std is not None:
            name, wanted = f"Dense({self.features}): initial_std", "a positive number or None"
            check_number(name, self.initial_std, wanted, lambda std: std > 0)

    def init(self, key: jax.Array, x: Any) -> Params:
        self._check_input(x, x.shape[-1] if self.inputs is None else self.inputs)
        draw = self.activation.initializer
        if self.initial_std is not None:
            draw = jax.nn.initializers.normal(self.initial_std)
        W = draw(key, (self.features, x.shape[-1]), x.dtype)
        return Params(W, jnp.zeros(self.features, x.dtype) if self.bias else ())

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        a, kept = self.activation.forward((), self.preactivation(params, x))
        return a, Residuals(x, a if self.activation.told_by_output else kept)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        dz = self.error(residuals, dout)
        dW = outer_over_examples(dz, residuals.a_prev, like=params.W)
        db = sum_over_examples(dz, like=params.b) if self.bias else ()
        da_prev = matmul(dz, params.W, residuals.a_prev).astype(residuals.a_prev.dtype)
        return Params(dW, db), da_prev

    def preactivation(self, params: Params, a_prev: jax.Array) -> jax.Array:
        """Z = A_prev Wᵀ + b."""
        self._check(params, a_prev)
        z = by_rows(a_prev, params.W)
        return z + beside(params.b, z) if self.bias else z

    def error(self, residuals: Residuals, dout: jax.Array) -> jax.Array:
        """dZ = dA ⊙ g'(Z)."""
        _, dz = self.activation.backward((), self.kept(residuals), dout)
        return dz

    def kept(self, residuals: Residuals) -> Tree:
        """What the activation keeps of Z, read off A where that tells it."""
        if self.activation.told_by_output:
            return self.activation.keep(residuals.kept)
        return residuals.kept

    def _check(self, params: Params, x: Any) -> None:
        if not (hasattr(params, "W") and hasattr(params, "b")):
            raise TypeError(
                f"{self!r} expected params with fields W and b, got {type(params).__name__}. "
                "Make them with network.init(key, x)."
            )
        W, b = params.W, params.b
        if not self.bias and jax.tree.leaves(b):
            raise ValueError(
                f"{self!r}: params have a bias b, expected b=() since bias=False. Use the layer "
                "that they were made for."
            )
        for name, value, axes in (("W", W, 2), ("b", b, 1)):
            if name == "b" and not self.bias:
                continue
            if not hasattr(value, "shape") or not jnp.issubdtype(value.dtype, jnp.floating):
                given = f"{value.dtype}" if hasattr(value, "dtype") else type(value).__name__
                raise TypeError(f"{self!r}: {name} must be a floating-point array, got {given}.")
            if name == "b" and value.shape == (self.features, 1):
                raise ValueError(
                    f"{self!r}: b has shape {value.shape}, expected ({self.features},). A column "
                    "is the notes' layout, features x examples: manual_bp.formulas takes it as it "
                    "is; here use b[:, 0], and x with examples first."
                )
            if value.ndim != axes:
                expected = "(n_out, n_in)" if name == "W" else "(n_out,)"
                raise ValueError(
                    f"{self!r}: {name} has shape {tuple(value.shape)}, expected {expected}."
                )
        n_out, n_in = W.shape
        if n_out != self.features:
            advice = " W.T would fit: W is (n_out, n_in)." if n_in == self.features else ""
            raise ValueError(
                f"{self!r}: W has shape {(n_out, n_in)}, expected ({self.features}, n_in).{advice}"
            )
        if self.bias and b.shape != (n_out,):
            raise ValueError(
                f"{self!r}: b has shape {b.shape}, expected ({n_out},), one for each row of W; "
                "it is not broadcast."
            )
        self._check_input(x, n_in, W)

    def _check_input(self, x: Any, n_in: int, W: Any = None) -> None:
        check_floating(self, x)
        if x.ndim < 1 or x.shape[-1] != n_in:
            advice = ""
            if x.ndim == 2 and x.shape[0] == n_in:
                advice = (
                    f" x.T would fit: x holds examples first, {(x.shape[1], n_in)}. "
                    "For features x examples as in the notes see manual_bp.formulas."
                )
            elif W is not None and x.ndim >= 1 and x.shape[-1] == W.shape[0]:
                advice = " W.T would fit: W is (n_out, n_in)."
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected (..., {n_in}).{advice}"
            )
        if self.inputs is not None and n_in != self.inputs:
            raise ValueError(
                f"{self!r}: W takes {n_in} inputs, expected {self.inputs} (inputs={self.inputs})."
            )
