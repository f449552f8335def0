"""Long short-term memory: a recurrent network whose memory is a sum, so that errors last.

Forward, for t = 1 ... T, with h_0 = c_0 = 0 unless a state is given; i, f, o are gates in (0, 1):

    z_t = W x_t + U h_{t-1} + b        (4n), in parts z_i, z_f, z_g, z_o, in this order
    i = σ(z_i),  f = σ(z_f),  g = tanh(z_g),  o = σ(z_o)
    c_t = f ⊙ c_{t-1} + i ⊙ g
    h_t = o ⊙ tanh(c_t),   out_t = h_t

Backward, given dout_t for every t, for t = T ... 1 (dz, f and dc at T + 1 are 0):

    dh = dout_t + Uᵀ dz_{t+1}                              from above, and from the next step
    dc = f_{t+1} ⊙ dc_{t+1} + dh ⊙ o ⊙ tanh'(c_t)          from the next step's sum, and through h_t
    dz_i = dc ⊙ g ⊙ σ'(z_i)
    dz_f = dc ⊙ c_{t-1} ⊙ σ'(z_f)
    dz_g = dc ⊙ i ⊙ tanh'(z_g)
    dz_o = dh ⊙ tanh(c_t) ⊙ σ'(z_o)

and then, from all dz at once:

    dW = Σ dz_t x_tᵀ,  dU = Σ dz_t h_{t-1}ᵀ,  db = Σ dz_t       over steps and examples
    dx_t = Wᵀ dz_t,    dh_0 = Uᵀ dz_1,  dc_0 = f_1 ⊙ dc_1

Derivation.  Everything within a step is element-wise, so every Jacobian there is diagonal. h_t goes
to out_t and to the next z: dh adds both. c_t goes to h_t, with ∂h/∂c = o ⊙ tanh'(c), and to
c_{t+1}, with ∂c_{t+1}/∂c_t = f_{t+1}: dc adds both. c_t is a sum of two products, so a factor's
gradient is dc times the other: di = dc ⊙ g, df = dc ⊙ c_{t-1}, dg = dc ⊙ i; likewise do = dh ⊙
tanh(c). Each times its gate's slope is dz. From z on it is a dense layer with inputs x_t and
h_{t-1}, used T times: outer products that add.

Why it lasts.  Along c the error of k steps is multiplied by f ⊙ ... ⊙ f, no matrix and no slope of
tanh among them: where the forget gate is open it passes as it is, where a plain network's vanishes.
Hence b_f begins as 1: f = 0.73, not 0.5.

Only dz_t needs dz_{t+1}. So W x_t is one product for all t before the loop, the loop backward
makes dz and nothing else, and dW, dU and dx are one product each over all steps after it.

Backward keeps x, h_{t-1}, c_{t-1} and z_t: 6n numbers for each step, where autodiff keeps gates
and slopes, some 12n. Gates are taken from z anew, which costs little beside the products, and
makes their slopes right too: i(1 - i) and 1 - g² round to 0 where a gate is nearly open, σ'(z) and
tanh'(z) don't (`_recurrence.sigmoid_slope`, `tanh_slope`). c is in at least float32: in half
precision a sum of many small terms would stop growing.

With a mask, reversed, with a state: `manual_bp.layers._recurrence` says it once for all.

Shapes  x, dx: (m, T, F); out, dout: (m, T, n); W: (4n, F); U: (4n, n); b: (4n,);
        state: State(h, c), (m, n) each
Sources Hochreiter & Schmidhuber (1997); Gers, Schmidhuber & Cummins (2000) (the forget gate);
        Jozefowicz, Zaremba & Sutskever (2015), An empirical exploration of recurrent network
        architectures (b_f = 1); Saxe et al. (2014), arXiv:1312.6120 (U orthogonal)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activation import lecun
from manual_bp.activations import sigmoid, tanh
from manual_bp.layer import Tree, accumulation_dtype, outer_over_examples, sum_over_examples
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
    """W: (4n, F), of the input; U: (4n, n), of h; b: (4n,); gates in the order i, f, g, o."""

    W: Any
    U: Any
    b: Any


class State(NamedTuple):
    """h: (m, n), the output; c: (m, n), the memory, in at least float32."""

    h: Any
    c: Any


class Residuals(NamedTuple):
    """x: (m, T, F); real: the mask as (T, m, 1), or None; before: the State before each step,
    (T, m, n) each; z: its parts, likewise; first, final: the State before the first step, and after
    the last.
    """

    x: jax.Array
    real: jax.Array | None
    before: State
    z: list[jax.Array]
    first: State
    final: State


@dataclass(frozen=True)
class LSTM(Recurrent):
    """c_t = f ⊙ c_{t-1} + i ⊙ g, h_t = o ⊙ tanh(c_t), and out_t = h_t.

    Each gate's part of W is drawn after LeCun, since W x then has the variance of x for however
    many gates; of U it is orthogonal; b is 1 for the forget gate, 0 for the others. `observe` gives
    the final State(h, c).

    Args:
        features: n, the number of units.
        masked: whether forward takes mask=..., (m, T) booleans, true where a step is real. At the
            others the state is carried over unchanged and out repeats it, so that out[:, -1], or
            out[:, 0] in reverse, is that of the last real step read, whatever the length.
        stateful: whether forward takes state=..., a State(h, c), or None for zeros; its gradient is
            dtaken["state"].
        reverse: whether to run from the last step to the first.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Hochreiter & Schmidhuber (1997); Gers et al. (2000).

    Example:
        >>> layer, x = LSTM(3), jnp.ones((2, 5, 4))
        >>> params = layer.init(jax.random.key(0), x)
        >>> out, residuals = layer.forward(params, x)
        >>> dparams, dx = layer.backward(params, residuals, jnp.ones_like(out))
        >>> out.shape, dparams.U.shape, dx.shape
        ((2, 5, 3), (12, 3), (2, 5, 4))
        >>> layer.observe(residuals).c.shape
        (2, 3)
    """

    features: int
    masked: bool = field(default=False, kw_only=True)
    stateful: bool = field(default=False, kw_only=True)
    reverse: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        check_features("LSTM", self.features)
        super().__post_init__()

    def init(self, key: jax.Array, x: Any) -> Params:
        check_sequence(self, x)
        n, (of_input, of_state) = self.features, jax.random.split(key)
        W = lecun(of_input, (4 * n, x.shape[-1]), x.dtype)
        U = orthogonal(of_state, 4, n, x.dtype)
        b = jnp.repeat(jnp.array([0, 1, 0, 0], x.dtype), n)
        return Params(W, U, b)

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        real = self._check(params, x, taken)
        W, U, b = whole(params)
        Wx = by_rows(time_first(x, real), W)
        first = self._first(params, x, taken.get("state"), Wx)

        def step(state: State, at: Any) -> tuple[State, Any]:
            Wx, real = at
            h, c = state
            z = Wx + h @ U.T + b  # b here: to add it to Wx would be another pass over all steps
            h_next, c_next = through_gates(z, c)
            after = State(h_next.astype(h.dtype), c_next)
            return where_real(real, after, state), (state, jnp.split(z, 4, axis=-1))

        dtype = jnp.result_type(x, *params)
        begin = State(first.h.astype(dtype), first.c.astype(jnp.promote_types(dtype, jnp.float32)))
        final, (before, z) = jax.lax.scan(step, begin, (Wx, real), reverse=self.reverse)
        return outputs(self, before.h, final.h), Residuals(x, real, before, z, first, final)

    def backward_taken(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array, dict[str, Tree]]:
        x, real, before, _, first, _ = residuals
        W, U, b = params
        dz, dstate = self.errors(params, residuals, dout)
        dW = outer_over_examples(dz, time_first(x, real), like=W)
        dU = outer_over_examples(dz, before.h, like=U)
        db = sum_over_examples(dz, like=b)
        dx = examples_first(dz @ whole(W), like=x)
        dstate = State(dstate.h.astype(first.h.dtype), dstate.c.astype(first.c.dtype))
        return Params(dW, dU, db), dx, self.taken(dstate)

    def errors(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[jax.Array, State]:
        """dz_t of all steps, (T, m, 4n), and dh_0 and dc_0: backpropagation through time."""
        U = whole(params.U)

        def step(carry: Any, at: Any) -> tuple[Any, Any]:
            (dstate, c_next), (dout, c, z, real) = carry, at
            dh = dstate.h + dout
            dz, dc = errors_of_gates(z, c, c_next, dh, dstate.c)
            dz = jnp.concatenate(dz, axis=-1).astype(z[0].dtype)
            dz = where_real(real, dz, jnp.zeros_like(dz))
            return (where_real(real, State(dz @ U, dc), State(dh, dstate.c)), c), dz

        at_end = jax.tree.map(zeros_like, residuals.final), residuals.final.c
        dout = sharded_like(time_first(dout), residuals.before.h)
        each = (dout, residuals.before.c, residuals.z, residuals.real)
        (dstate, _), dz = jax.lax.scan(step, at_end, each, reverse=not self.reverse)
        return dz, dstate

    def _first(self, params: Params, x: jax.Array, state: Any, Wx: jax.Array) -> State:
        """h_0 and c_0: those given, or zeros."""
        if state is None:
            state = State(None, None)
        if not isinstance(state, State):
            raise TypeError(
                f"{self!r}: state must be its State(h, c), as what it observes is, or None for "
                f"zeros; got {type(state).__name__}."
            )
        dtype, shape = jnp.result_type(x, *params), (len(x), self.features)
        h = jax.ShapeDtypeStruct(shape, dtype)
        c = jax.ShapeDtypeStruct(shape, jnp.promote_types(dtype, jnp.float32))
        return State(
            first_state(self, "state.h", state.h, h, Wx),
            first_state(self, "state.c", state.c, c, Wx),
        )

    def _check(self, params: Params, x: Any, taken: dict[str, Any]) -> jax.Array | None:
        """Raise unless params, x and what is taken are right; returns the mask, time first."""
        check_sequence(self, x)
        n = self.features
        shapes = {"W": (4 * n, x.shape[-1]), "U": (4 * n, n), "b": (4 * n,)}
        check_params(self, Params, params, shapes)
        return real_steps(self, x, taken)


# XLA on CPU vectorises a loop over few arrays only, some eight, where each part of z is one. So σ
# is taken of z as a whole, g's part for nothing, and c_t handed in where z and c_{t-1} tell it.


def through_gates(z: jax.Array, c: jax.Array) -> tuple[jax.Array, jax.Array]:
    """h_t and c_t of z_t, (..., 4n), and c_{t-1}."""
    z = _wide(z)
    i, f, _, o = jnp.split(sigmoid.value(z), 4, axis=-1)
    g = tanh.value(jnp.split(z, 4, axis=-1)[2])
    c_next = f * c + i * g
    return o * tanh.value(c_next), c_next


def errors_of_gates(
    z: list[jax.Array], c: jax.Array, c_next: jax.Array, dh: jax.Array, dc_next: jax.Array
) -> tuple[list[jax.Array], jax.Array]:
    """dz_t in its four parts, and f ⊙ dc_t, from dh_t and the next step's f ⊙ dc.

    Args:
        z: z_t in its four parts.
        c, c_next: c_{t-1} and c_t.
        dh: dh_t, from above and from the next step.
        dc_next: f_{t+1} ⊙ dc_{t+1}.
    """
    z_i, z_f, z_g, z_o = map(_wide, z)
    i, f, g, o = sigmoid.value(z_i), sigmoid.value(z_f), tanh.value(z_g), sigmoid.value(z_o)
    dc = dc_next + dh * o * tanh_slope(c_next)
    dz_i = dc * g * sigmoid_slope(z_i)
    dz_f = dc * c * sigmoid_slope(z_f)
    dz_g = dc * i * tanh_slope(z_g)
    dz_o = dh * tanh.value(c_next) * sigmoid_slope(z_o)
    return [dz_i, dz_f, dz_g, dz_o], dc * f


def _wide(z: jax.Array) -> jax.Array:
    """z in at least float32."""
    return z.astype(accumulation_dtype(z))
