"""Diagonal linear recurrence: an exponential moving average of each feature, in O(log T) steps.

Forward, for each feature by itself, for t = 1 ... T, with h_0 = 0 unless a state is given:

    a = σ(ν),  s = √(1 - a²)
    h_t = a h_{t-1} + s x_t,   out_t = h_t

Backward, given dout_t for every t, for t = T ... 1:

    e_t = a e_{t+1} + a dout_t                e_{T+1} = 0: the same recurrence, in reverse
    dh_t = dout_t + e_{t+1},    dh_0 = e_1
    dx_t = s dh_t
    dν = a (1 - a) Σ dh_t h_{t-1} - (a² s/(1 + a)) Σ dh_t x_t        over steps and examples

Derivation.  h_t is used in out_t and, times a, in h_{t+1}: dh_t = dout_t + a dh_{t+1}. The second
term is the error e_{t+1} that step t + 1 hands on, e_t = a dh_t. a is used T times, with h_{t-1},
so its gradient is Σ dh_t h_{t-1}; s likewise with x_t. ν enters through both:
da/dν = σ' = a (1 - a), and ds/da = -a/s, so ds/dν = -a² (1 - a)/s = -a² s/(1 + a), the last since
s² = (1 - a)(1 + a).

Why s.  If x is white noise of variance 1, then Var h = s² (1 + a² + a⁴ + ...) = s²/(1 - a²) = 1
for any a: without it, slow features would be larger than fast ones, 22 times at a = 0.999.

Why a scan isn't needed.  Each step is an affine map, h ↦ a h + u; two of them one after the other
are one again, (a, u) then (a', u') is (a' a, a' u + u'). This composition is associative, so all T
prefixes can be had in ⌈log₂ T⌉ rounds (Blelloch, 1990), each over the whole sequence at once: for
the forward pass, and reversed for the backward pass. The first entry of prefix t, a^t, is what of
h_0 is left at t.

Accuracy.  1 - a is σ(-ν) and 1 - a² is σ(-ν)(1 + a), neither of which is a difference of nearly
equal numbers, and nothing is divided by s. At ν = 20, in float32, σ(ν) is 1: there autodiff of
√(1 - a²) divides by 0. States are in at least float32.

Backward keeps x and h_t. With a mask the map of a step that isn't real is h ↦ h: a is 1 there and
u is 0, and so is dh in the sums. Reversed, with a state: `manual_bp.layers._recurrence`.

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
    at_step_before,
    check_params,
    check_sequence,
    first_state,
    real_steps,
    time_first,
)


class Params(NamedTuple):
    """rate: (F,), ν: how much stays is σ(ν)."""

    rate: Any


class Residuals(NamedTuple):
    """x: (m, T, F); real: the mask as (T, m, 1), or None; h: (T, m, F), the state after each step;
    first: (m, F), before the first; final: (m, F), after the last.
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
            others the state is carried over unchanged and out repeats it, so that out[:, -1] is the
            last real one whatever the length.
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
        a, _, s = _weights(params, x)
        like = jax.ShapeDtypeStruct((x.shape[0], x.shape[2]), s.dtype)
        first = first_state(self, "state", taken.get("state"), like)
        u = s * time_first(x, real)
        left, h = _prefixes(_of_steps(a, real, u), u, self.reverse)
        if self.stateful:
            h = h + left * first
        out = time_first(h).astype(jnp.result_type(x, params.rate))
        return out, Residuals(x, real, h, first, h[0] if self.reverse else h[-1])

    def backward_taken(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array, dict[str, Tree]]:
        x, real, h, first, final = residuals
        a, rest, s = _weights(params, x)
        dout, of_steps = time_first(dout), _of_steps(a, real, h)
        _, e = _prefixes(of_steps, of_steps * dout, not self.reverse)
        dh = dout + at_step_before(e, jnp.zeros_like(final), not self.reverse)
        du = dh if real is None else jnp.where(real, dh, 0)
        from_h = sum_over_examples(du * at_step_before(h, first, self.reverse))
        from_x = sum_over_examples(du * time_first(x, real))
        drate = a * rest * from_h - jnp.square(a) * s / (1 + a) * from_x
        dx = time_first(s * du).astype(x.dtype)
        dstate = e[-1] if self.reverse else e[0]
        dparams = Params(drate.astype(params.rate.dtype))
        return dparams, dx, self.taken(dstate.astype(first.dtype))


def _weights(params: Params, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """a, 1 - a and s, in at least float32."""
    rate = params.rate.astype(accumulation_dtype(x, params.rate))
    a, rest = sigmoid.value(rate), sigmoid.value(-rate)
    return a, rest, jnp.sqrt(rest * (1 + a))


def _of_steps(a: jax.Array, real: jax.Array | None, like: jax.Array) -> jax.Array:
    """a for each step of `like`, (T, m, F), 1 where it isn't real; without a mask (T, 1, F)."""
    if real is None:
        return jnp.broadcast_to(a, (len(like), 1, *a.shape))
    return jnp.where(real, a, 1)


def _prefixes(a: jax.Array, u: jax.Array, reverse: bool) -> tuple[jax.Array, jax.Array]:
    """The maps h ↦ a h + u of all steps up to each, as one map."""

    def then(first: Any, second: Any) -> Any:
        return second[0] * first[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(then, (a, u), reverse=reverse)
