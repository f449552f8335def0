"""Diagonal linear recurrence: an exponential moving average of each feature, in O(log T) steps.

Forward, for each feature by itself, for t = 1 ... T, with h_0 = 0 unless a state is given:

    a = σ(ν),  s = √(1 - a²)
    h_t = a h_{t-1} + s x_t,   out_t = h_t

Backward, given dout_t for every t, for t = T ... 1:

    dh_t = dout_t + a dh_{t+1}                dh_{T+1} = 0: the same recurrence, in reverse
    dx_t = s dh_t,    dh_0 = a dh_1
    dν = a (1 - a) Σ dh_t h_{t-1} - (a² s/(1 + a)) Σ dh_t x_t        over steps and examples

Derivation.  h_t is used in out_t and, times a, in h_{t+1}: dh adds both. a is used T times, with
h_{t-1}, so its gradient is Σ dh_t h_{t-1}; s likewise with x_t. ν enters through both:
da/dν = σ' = a (1 - a), and ds/da = -a/s, so ds/dν = -a² (1 - a)/s = -a² s/(1 + a), the last since
s² = (1 - a)(1 + a).

Why s.  If x is white noise of variance 1, then Var h = s² (1 + a² + a⁴ + ...) = s²/(1 - a²) = 1
for any a: without it, slow features would be larger than fast ones, 22 times at a = 0.999.

Why no step has to wait for the one before.  Two steps are one of the same kind,

    h_{t+1} = a h_t + u_{t+1} = a² h_{t-1} + (a u_t + u_{t+1}),

so every second h is a recurrence of half the length, with a² and a u_t + u_{t+1}; from those the
others follow at once. Halved again and again, T steps take 2 log₂ T rounds of products over whole
arrays, about 3T in all (Blelloch's prefix sums; jax.lax.associative_scan is the same for any
associative operation, and carries two arrays where a alone is shared here).

Accuracy.  1 - a is σ(-ν) and 1 - a² is σ(-ν)(1 + a), neither of which is a difference of nearly
equal numbers, and nothing is divided by s. At ν = 20, in float32, σ(ν) is 1: there autodiff of
√(1 - a²) divides by 0. States are in at least float32.

Backward keeps x and h_t. With a mask the map of a step that isn't real is h ↦ h: a is 1 there and
u is 0. Reversed, with a state: `manual_bp.layers._recurrence`.

Shapes  x, out, dout, dx: (m, T, F); ν = rate: (F,); state: (m, F)
Sources Orvieto et al. (2023), Resurrecting recurrent neural networks for long sequences,
        arXiv:2303.06349 (the normalisation; there a is complex, and made of two exponentials);
        Martin & Cundy (2018), arXiv:1709.04057 (in parallel); Blelloch (1990), Prefix sums
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.activations import sigmoid
from manual_bp.layer import Tree, accumulation_dtype, sum_over_examples
from manual_bp.layers._recurrence import (
    Recurrent,
    check_params,
    check_sequence,
    examples_first,
    first_state,
    real_steps,
    time_first,
    where_real,
)
from manual_bp.sharding import sharded_like, whole


class Params(NamedTuple):
    """rate: (F,), ν: how much stays is σ(ν)."""

    rate: Any


class Residuals(NamedTuple):
    """x: (m, T, F); real: the mask as (T, m, 1), or None; h: (T, m, F), the state after each step,
    in the order of the run; first: (m, F), before the first; final: (m, F), after the last.
    """

    x: jax.Array
    real: jax.Array | None
    h: jax.Array
    first: jax.Array
    final: jax.Array


@dataclass(frozen=True)
class LinearRecurrence(Recurrent):
    """h_t = a h_{t-1} + √(1 - a²) x_t with a = σ(ν), a parameter for each feature; out_t = h_t.

    It mixes nothing but steps: put a `Dense` before and after it. a is drawn uniformly from
    [0.9, 0.999], memories of 10 to 1000 steps. `observe` gives the final state.

    Args:
        masked: whether forward takes mask=..., (m, T) booleans, true where a step is real. At the
            others the state is carried over unchanged and out repeats it, so that out[:, -1], or
            out[:, 0] in reverse, is that of the last real step read, whatever the length.
        stateful: whether forward takes state=..., h_0 (m, F), or None for zeros; its gradient is
            dtaken["state"].
        reverse: whether to run from the last step to the first.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit.

    Source: Orvieto et al. (2023), arXiv:2303.06349.

    Example:
        >>> layer, x = LinearRecurrence(), jnp.array([[[1.0], [0.0], [0.0]]])
        >>> out, _ = layer.forward(Params(jnp.zeros(1)), x)  # a = 1/2, s = √3/2
        >>> print(out[0, :, 0])
        [0.8660254  0.4330127  0.21650635]
    """

    masked: bool = field(default=False, kw_only=True)
    stateful: bool = field(default=False, kw_only=True)
    reverse: bool = field(default=False, kw_only=True)

    def init(self, key: jax.Array, x: Any) -> Params:
        check_sequence(self, x)
        a = jax.random.uniform(key, x.shape[-1:], minval=0.9, maxval=0.999)
        return Params(jnp.log(a / (1 - a)).astype(x.dtype))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_sequence(self, x)
        check_params(self, Params, params, {"rate": x.shape[-1:]})
        real = real_steps(self, x, taken)
        a, _, s = _weights(whole(params), x)
        like = jax.ShapeDtypeStruct((x.shape[0], x.shape[2]), s.dtype)
        u, stays = s * self._in_order(time_first(x, real)), self._stays(a, real)
        first = first_state(self, "state", taken.get("state"), like, u)
        u_1 = u[:1] + _at(slice(0, 1), stays) * first
        h = _accumulated(_at(slice(1, None), stays), jnp.concatenate([u_1, u[1:]]))
        out = jnp.swapaxes(self._in_order(h), 0, 1).astype(jnp.result_type(x, params.rate))
        return out, Residuals(x, real, h, first, h[-1])

    def backward_taken(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array, dict[str, Tree]]:
        x, real, h, first, _ = residuals
        a, rest, s = _weights(whole(params), x)
        stays, dout = (
            self._stays(a, real),
            self._in_order(time_first(sharded_like(dout, x))).astype(h.dtype),
        )
        dh = _accumulated(_at(slice(None, 0, -1), stays), dout[::-1])[::-1]
        dstate = _at(0, stays) * dh[0]
        du = where_real(None if real is None else self._in_order(real), dh, jnp.zeros_like(dh))
        before = jnp.concatenate([first[None].astype(h.dtype), h[:-1]])
        of_h = sum_over_examples(du * before)
        of_x = sum_over_examples(du * self._in_order(time_first(x, real)))
        drate = a * rest * of_h - jnp.square(a) * s / (1 + a) * of_x
        dx = examples_first(self._in_order(s * du), like=x)
        dparams = Params(sharded_like(drate.astype(params.rate.dtype), params.rate))
        return dparams, dx, self.taken(dstate.astype(first.dtype))

    def _in_order(self, values: jax.Array) -> jax.Array:
        """Steps in the order of the run, or back in that of time."""
        return values[::-1] if self.reverse else values

    def _stays(self, a: jax.Array, real: jax.Array | None) -> jax.Array:
        """a for each step in the order of the run, 1 where it isn't real; or a alone, (F,)."""
        return a if real is None else jnp.where(self._in_order(real), a, 1)


def _weights(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """a, 1 - a and s, in at least float32."""
    rate = params.rate.astype(accumulation_dtype(x, params.rate))
    a, rest = sigmoid.value(rate), sigmoid.value(-rate)
    return a, rest, jnp.sqrt(rest * (1 + a))


def _accumulated(stays: jax.Array, u: jax.Array) -> jax.Array:
    """h_t = stays_{t-1} h_{t-1} + u_t along the first axis, from h_0 = u_0.

    Args:
        stays: (T - 1, m, F), or (F,) where it is the same at all steps.
        u: (T, m, F).
    """
    if len(u) == 1:
        return u
    into_odd, into_even = _at(slice(0, None, 2), stays), _at(slice(1, None, 2), stays)
    in_pairs = into_odd * u[:-1:2] + u[1::2]
    pairs, rest = len(in_pairs), len(u[2::2])
    of_pairs = _at(slice(0, pairs - 1), into_even) * _at(slice(1, None), into_odd)
    odd, even = _accumulated(of_pairs, in_pairs), u[:1]
    if rest:
        even = jnp.concatenate([even, into_even * odd[:rest] + u[2::2]])
    both = jnp.stack([even[:pairs], odd], axis=1).reshape(2 * pairs, *u.shape[1:])
    return both if len(even) == pairs else jnp.concatenate([both, even[pairs:]])


def _at(which: Any, stays: jax.Array) -> jax.Array:
    """Those of these steps; what is the same at all steps has no time."""
    return stays if stays.ndim == 1 else stays[which]
