"""Recurrent neural network (Elman): a dense layer that also reads its own previous output.

Forward, for t = 1 ... T, with h_0 = 0 unless a state is given:

    z_t = W x_t + U h_{t-1} + b
    h_t = g(z_t),   out_t = h_t

Backward, given dout_t for every t (backpropagation through time), for t = T ... 1:

    dh_t = dout_t + Uᵀ dz_{t+1}        from above, and from the next step; dz_{T+1} = 0
    dz_t = dh_t ⊙ g'(z_t)

and then, from all dz at once:

    dW = Σ dz_t x_tᵀ,  dU = Σ dz_t h_{t-1}ᵀ,  db = Σ dz_t       over steps and examples
    dx_t = Wᵀ dz_t,    dh_0 = Uᵀ dz_1

Derivation.  Unrolled in time the network is T dense layers with the same W, U and b. h_t is used
twice, as out_t and in z_{t+1}, so its gradients add: dh_t = dout_t + ∂z_{t+1}/∂h_t ᵀ dz_{t+1}, the
first line. W is used T times, so dW is the sum of what a dense layer has at each step, dz_t x_tᵀ;
likewise dU with the input h_{t-1}, not h_t: the last step's own output is read by none.

Through k steps an error passes k matrices Uᵀ diag(g'(z)): with |g'| ≤ 1 and U's singular values
below 1 it vanishes like a power, with larger ones it may explode (Pascanu et al., 2013). U begins
orthogonal: all its singular values are 1, and what is lost at the beginning is lost to g' alone.

Only dz_t needs dz_{t+1}. So W x_t is one product for all t before the loop, the loop backward
makes dz and nothing else, and dW, dU and dx are one product each over all steps after it: large
products in place of T small ones.

Backward keeps x, h_{t-1}, and of z what g' needs, as `Dense` does. The final state, which is h_T
(h_1 when reversed), is what `observe` gives.

With a mask, reversed, with a state: `manual_bp.layers._recurrence` says it once for all.

Shapes  x, dx: (m, T, F); out, dout: (m, T, n); W: (n, F); U: (n, n); b: (n,); state: (m, n)
Sources Elman (1990), Finding structure in time; Werbos (1990), Backpropagation through time;
        Pascanu, Mikolov & Bengio (2013), arXiv:1211.5063; Saxe et al. (2014), arXiv:1312.6120 (U)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation, check_activation
from manual_bp.activations import tanh
from manual_bp.layer import Tree, outer_over_examples, sum_over_examples
from manual_bp.layers._recurrence import (
    Recurrent,
    check_features,
    check_params,
    check_sequence,
    examples_first,
    first_state,
    orthogonal,
    outputs,
    real_steps,
    time_first,
    where_real,
)
from manual_bp.sharding import by_rows, sharded_like, whole, zeros_like


class Params(NamedTuple):
    """W: (n, F), of the input; U: (n, n), of the state; b: (n,)."""

    W: Any
    U: Any
    b: Any


class Residuals(NamedTuple):
    """x: (m, T, F); real: the mask as (T, m, 1), or None; before: (T, m, n), h_{t-1}; kept: what g
    keeps of z; first, final: (m, n), the state before the first step and after the last.
    """

    x: jax.Array
    real: jax.Array | None
    before: jax.Array
    kept: Tree
    first: jax.Array
    final: jax.Array


@dataclass(frozen=True)
class RNN(Recurrent):
    """h_t = g(W x_t + U h_{t-1} + b), and out_t = h_t.

    W is drawn after the activation as `Dense`'s is, U is orthogonal, b is 0. `observe` gives the
    final state.

    Args:
        features: n, the number of units.
        activation: g, element-wise; tanh unless given.
        masked: whether forward takes mask=..., (m, T) booleans, true where a step is real. At the
            others the state is carried over unchanged and out repeats it, so that out[:, -1], or
            out[:, 0] in reverse, is that of the last real step read, whatever the length.
        stateful: whether forward takes state=..., h_0 (m, n), or None for zeros; its gradient is
            dtaken["state"].
        reverse: whether to run from the last step to the first.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Elman (1990); Werbos (1990).

    Example:
        >>> layer, x = RNN(3), jnp.ones((2, 5, 4))
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> out.shape, dparams.U.shape, dx.shape
        ((2, 5, 3), (3, 3), (2, 5, 4))
        >>> bool((layer.observe(residuals) == out[:, -1]).all())
        True
    """

    features: int
    activation: Activation = tanh
    masked: bool = field(default=False, kw_only=True)
    stateful: bool = field(default=False, kw_only=True)
    reverse: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_features("RNN", self.features)
        check_activation(f"RNN({self.features})", self.activation)
        super().__post_init__()

    def init(self, key: jax.Array, x: Any) -> Params:
        check_sequence(self, x)
        of_input, of_state = jax.random.split(key)
        W = self.activation.initializer(of_input, (self.features, x.shape[-1]), x.dtype)
        U = orthogonal(of_state, 1, self.features, x.dtype)
        return Params(W, U, jnp.zeros(self.features, x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        real = self._check(params, x, taken)
        W, U, b = whole(params)
        like = jax.ShapeDtypeStruct((len(x), self.features), jnp.result_type(x, *params))
        Wx = by_rows(time_first(x, real), W)
        first = first_state(self, "state", taken.get("state"), like, Wx)

        def step(h: jax.Array, at: Any) -> tuple[jax.Array, Any]:
            Wx, real = at
            z = Wx + h @ U.T + b  # b here: to add it to Wx would be another pass over all steps
            h_next, kept = self.activation.forward((), z)
            return where_real(real, h_next, h), (h, kept)

        final, (before, kept) = jax.lax.scan(
            step, first.astype(like.dtype), (Wx, real), reverse=self.reverse
        )
        residuals = Residuals(x, real, before, kept, first, final)
        return outputs(self, before, final), residuals

    def backward_taken(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array, dict[str, Tree]]:
        x, real, before, _, first, _ = residuals
        W, U, b = params
        dz, dh = self.errors(params, residuals, dout)
        dW = outer_over_examples(dz, time_first(x, real), like=W)
        dU = outer_over_examples(dz, before, like=U)
        db = sum_over_examples(dz, like=b)
        dx = examples_first(dz @ whole(W), like=x)
        return Params(dW, dU, db), dx, self.taken(dh.astype(first.dtype))

    def errors(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """dz_t of all steps, (T, m, n), and dh_0, (m, n): backpropagation through time."""
        U = whole(params.U)

        def step(dh: jax.Array, at: Any) -> tuple[jax.Array, Any]:
            dout, kept, real = at
            dh = dh + dout
            _, dz = self.activation.backward((), kept, dh)
            dz = where_real(real, dz, jnp.zeros_like(dz))
            return where_real(real, dz @ U, dh), dz

        at_end = zeros_like(residuals.final)
        dout = sharded_like(time_first(dout), residuals.before)
        each = (dout, residuals.kept, residuals.real)
        dh, dz = jax.lax.scan(step, at_end, each, reverse=not self.reverse)
        return dz, dh

    def _check(self, params: Params, x: Any, taken: dict[str, Any]) -> jax.Array | None:
        """Raise unless params, x and what is taken are right; returns the mask, time first."""
        check_sequence(self, x)
        n = self.features
        check_params(self, Params, params, {"W": (n, x.shape[-1]), "U": (n, n), "b": (n,)})
        return real_steps(self, x, taken)
