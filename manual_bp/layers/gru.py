"""Gated recurrent unit: the state moves part of the way to a candidate, how far a gate says.

Forward, for t = 1 ... T, with h_0 = 0 unless a state is given; r and z are gates in (0, 1):

    p_t = W x_t + b             (3n), in parts p_r, p_z, p_n, in this order
    q_t = U h_{t-1}             (3n), in parts likewise
    r = σ(p_r + q_r)            reset
    z = σ(p_z + q_z)            update: how much stays
    v = q_n + c
    n = tanh(p_n + r ⊙ v)       the candidate
    h_t = (1 - z) ⊙ n + z ⊙ h_{t-1},   out_t = h_t

Backward, given dout_t for every t, for t = T ... 1 (at T + 1 all errors are 0):

    dh = dout_t + z_{t+1} ⊙ dh_{t+1} + Uᵀ dq_{t+1}      from above; from the next step's sum, its z
    dp_z = dh ⊙ (h_{t-1} - n) ⊙ σ'(p_z + q_z),          dq_z = dp_z
    dp_n = dh ⊙ (1 - z) ⊙ tanh'(p_n + r ⊙ v),           dq_n = dp_n ⊙ r
    dp_r = dp_n ⊙ v ⊙ σ'(p_r + q_r),                    dq_r = dp_r

and then, from all of them at once:

    dW = Σ dp_t x_tᵀ,  db = Σ dp_t,  dU = Σ dq_t h_{t-1}ᵀ,  dc = Σ dq_n   (steps, examples)
    dx_t = Wᵀ dp_t,    dh_0 = z_1 ⊙ dh_1 + Uᵀ dq_1

Derivation.  h_t = n + z ⊙ (h_{t-1} - n) is linear in each of n, z and h_{t-1} with the others held:
∂h/∂n = 1 - z, ∂h/∂z = h_{t-1} - n, ∂h/∂h_{t-1} = z, all diagonal. In the candidate's argument r and
v are factors of one product: each gets dp_n times the other. h_{t-1} is used twice, in q and in the
last line, so its gradients add; x_t and h_{t-1} see the errors dp and dq, which differ by the
factor r in the candidate's part alone.

There are two such networks: here r multiplies after the product with U, as in cuDNN, PyTorch, Flax
and Equinox, so that q is one product; Cho et al. (2014) have U (r ⊙ h). And z is what stays; in
some papers it is what is replaced.

Only dp_t needs what is after it. So W x_t is one product for all t before the loop, the loop
backward makes errors and nothing else, and the gradients are one product each over all steps.

Backward keeps x, h_{t-1}, the arguments of r, z and n, and v: 5n numbers for each step. 1 - z is σ
of the negative argument, which doesn't round to 0 where z is nearly 1; slopes are taken from
arguments for the same reason (`_recurrence.sigmoid_slope`, `tanh_slope`). The state is carried in
at least float32: where z is nearly 1, what is added is small beside it.

With a mask, reversed, with a state: `manual_bp.layers._recurrence` says it once for all.

Shapes  x, dx: (m, T, F); out, dout: (m, T, n); W: (3n, F); U: (3n, n); b: (3n,); c: (n,);
        state: (m, n)
Sources Cho et al. (2014), arXiv:1406.1078; Chung et al. (2014), arXiv:1412.3555;
        Saxe et al. (2014), arXiv:1312.6120 (U orthogonal)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import lecun
from manual_bp.activations import sigmoid, tanh
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
    sigmoid_slope,
    tanh_slope,
    time_first,
    where_real,
)
from manual_bp.sharding import by_rows, sharded_like, whole, zeros_like


class Params(NamedTuple):
    """W: (3n, F), of the input; U: (3n, n), of the state; b: (3n,), beside W x; in the order r, z,
    n; c: (n,), beside U_n h.
    """

    W: Any
    U: Any
    b: Any
    c: Any


class Residuals(NamedTuple):
    """x: (m, T, F); real: the mask as (T, m, 1), or None; before: (T, m, n), h_{t-1}; arguments: of
    σ, σ and tanh, and v, (T, m, n) each; first, final: (m, n), the state before the first step and
    after the last.
    """

    x: jax.Array
    real: jax.Array | None
    before: jax.Array
    arguments: list[jax.Array]
    first: jax.Array
    final: jax.Array


@dataclass(frozen=True)
class GRU(Recurrent):
    """h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}, with gates r and z and a candidate n, and out_t = h_t.

    Each gate's part of W is drawn after LeCun, since W x then has the variance of x for however
    many gates; of U it is orthogonal; b and c are 0. `observe` gives the final state.

    Args:
        features: n, the number of units.
        masked: whether forward takes mask=..., (m, T) booleans, true where a step is real. At the
            others the state is carried over unchanged and out repeats it, so that out[:, -1], or
            out[:, 0] in reverse, is that of the last real step read, whatever the length.
        stateful: whether forward takes state=..., h_0 (m, n), or None for zeros; its gradient is
            dtaken["state"].
        reverse: whether to run from the last step to the first.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Cho et al. (2014), arXiv:1406.1078; Chung et al. (2014), arXiv:1412.3555.

    Example:
        >>> layer, x = GRU(3), jnp.ones((2, 5, 4))
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> out.shape, dparams.U.shape, dx.shape
        ((2, 5, 3), (9, 3), (2, 5, 4))
    """

    features: int
    masked: bool = field(default=False, kw_only=True)
    stateful: bool = field(default=False, kw_only=True)
    reverse: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_features("GRU", self.features)
        super().__post_init__()

    def init(self, key: jax.Array, x: Any) -> Params:
        check_sequence(self, x)
        n, (of_input, of_state) = self.features, jax.random.split(key)
        W = lecun(of_input, (3 * n, x.shape[-1]), x.dtype)
        U = orthogonal(of_state, 3, n, x.dtype)
        return Params(W, U, jnp.zeros(3 * n, x.dtype), jnp.zeros(n, x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        real = self._check(params, x, taken)
        W, U, b, c = whole(params)
        dtype = jnp.result_type(x, *params)
        like = jax.ShapeDtypeStruct((len(x), self.features), jnp.promote_types(dtype, jnp.float32))
        Wx = by_rows(time_first(x, real), W)
        first = first_state(self, "state", taken.get("state"), like, Wx)

        def step(h: jax.Array, at: Any) -> tuple[jax.Array, Any]:
            Wx, real = at
            before = h.astype(dtype)
            p, q = (Wx + b).astype(h.dtype), (before @ U.T).astype(h.dtype)
            h_next, arguments = through_gates(p, q, c, h)
            arguments = [each.astype(dtype) for each in arguments]
            return where_real(real, h_next, h), (before, arguments)

        begin = first.astype(like.dtype)
        final, (before, arguments) = jax.lax.scan(step, begin, (Wx, real), reverse=self.reverse)
        residuals = Residuals(x, real, before, arguments, first, final)
        return outputs(self, before, final), residuals

    def backward_taken(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array, dict[str, Tree]]:
        x, real, before, _, first, _ = residuals
        W, U, b, c = params
        gates = 2 * self.features  # of r and z: there dp and dq are the same
        dp, dq_n, dh = self.errors(params, residuals, dout)
        dW = outer_over_examples(dp, time_first(x, real), like=W)
        dU_gates = outer_over_examples(dp[..., :gates], before, like=whole(U)[:gates])
        dU_n = outer_over_examples(dq_n, before, like=whole(U)[gates:])
        db = sum_over_examples(dp, like=b)
        dc = sum_over_examples(dq_n, like=c)
        dx = examples_first(dp @ whole(W), like=x)
        dU = sharded_like(jnp.concatenate([dU_gates, dU_n]), U)
        dparams = Params(dW, dU, db, dc)
        return dparams, dx, self.taken(dh.astype(first.dtype))

    def errors(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """dp_t and dq_n of all steps, (T, m, 3n) and (T, m, n), and dh_0, (m, n).

        dq is dp for r and z, and dq_n for n.
        """
        _, real, before, arguments, _, final = residuals
        U = whole(params.U)

        def step(dh: jax.Array, at: Any) -> tuple[jax.Array, Any]:
            dout, before, arguments, real = at
            dh = dh + dout
            arguments = [each.astype(dh.dtype) for each in arguments]
            (dp_r, dp_z, dp_n), dq_n, passed_on = errors_of_gates(arguments, before, dh)
            dp = jnp.concatenate([dp_r, dp_z, dp_n], axis=-1).astype(before.dtype)
            dp = where_real(real, dp, jnp.zeros_like(dp))
            dq = jnp.concatenate([dp_r, dp_z, dq_n], axis=-1).astype(before.dtype)
            return where_real(real, passed_on + dq @ U, dh), dp

        dout = sharded_like(time_first(dout), before)
        each = (dout, before, arguments, real)
        dh, dp = jax.lax.scan(step, zeros_like(final), each, reverse=not self.reverse)
        r = sigmoid.value(arguments[0].astype(dh.dtype)).astype(dp.dtype)
        dq_n = dp[..., 2 * self.features :] * r  # again, which takes less memory than to keep it
        return dp, dq_n, dh

    def _check(self, params: Params, x: Any, taken: dict[str, Any]) -> jax.Array | None:
        """Raise unless params, x and what is taken are right; returns the mask, time first."""
        check_sequence(self, x)
        n = self.features
        shapes = {"W": (3 * n, x.shape[-1]), "U": (3 * n, n), "b": (3 * n,), "c": (n,)}
        check_params(self, Params, params, shapes)
        return real_steps(self, x, taken)


def through_gates(
    p: jax.Array, q: jax.Array, c: jax.Array | float, h: jax.Array
) -> tuple[jax.Array, list[jax.Array]]:
    """h_t, and the arguments of r, z and n, and v.

    Both gates in one: XLA on CPU vectorises a loop over few arrays only, where each part is one.

    Args:
        p: W x + b, (..., 3n).
        q: U h_{t-1}, (..., 3n).
        c: (n,), or 0 where q has it.
        h: h_{t-1}.
    """
    gates = 2 * h.shape[-1]
    of_gates, v = p[..., :gates] + q[..., :gates], q[..., gates:] + c
    r, z = jnp.split(sigmoid.value(of_gates), 2, axis=-1)
    of_n = p[..., gates:] + r * v
    n = tanh.value(of_n)
    return n + z * (h - n), [*jnp.split(of_gates, 2, axis=-1), of_n, v]


def errors_of_gates(
    arguments: list[jax.Array], before: jax.Array, dh: jax.Array
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """dp_t in its three parts, dq_n, and z ⊙ dh_t, what h_{t-1} gets beside Uᵀ dq_t.

    Args:
        arguments: as `through_gates` returned them.
        before: h_{t-1}.
        dh: dh_t.
    """
    of_r, of_z, of_n, v = arguments
    dp_z = dh * (before - tanh.value(of_n)) * sigmoid_slope(of_z)
    dp_n = dh * sigmoid.value(-of_z) * tanh_slope(of_n)  # 1 - z is σ(-of_z)
    dp_r = dp_n * v * sigmoid_slope(of_r)
    return [dp_r, dp_z, dp_n], dp_n * sigmoid.value(of_r), sigmoid.value(of_z) * dh
