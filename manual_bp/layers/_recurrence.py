"""What the recurrent layers share: their settings, the order of time, masks, states and checks.

A recurrent layer computes state_t from state_{t-1} and x_t, for t = 1 ... T. In all of them

    the time comes first inside, (T, m, ...): a scan runs along the first axis
    reverse=True runs from t = T to t = 1; what is at t stays at t
    where the mask is false, state_t = state_{t-1}, out repeats it, and x_t is never read
    the state before the first step is what is given as state=..., or zeros

so that the last out of a sequence padded at its end is that of its last real step; in reverse the
last one made is out[:, 0]. The error goes the other way: at a
masked step dstate_{t-1} = dstate_t, with the dout_t that arrives there in it, and no parameter and
no x_t gets any.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating
from manual_bp.layer import Layer, Tree, check_taken
from manual_bp.sharding import as_carry, axes_of, divided, sharded_like, undivided, zeros_like


class Recurrent(Layer):
    """A layer over time: with a mask or not, a state or not, forwards or backwards."""

    masked: bool
    stateful: bool
    reverse: bool

    def __post_init__(self) -> None:
        advice = {
            "masked": " The mask is an argument of the call: mask=...",
            "stateful": " The state is an argument of the call: state=...",
            "reverse": "",
        }
        for name, value in zip(advice, (self.masked, self.stateful, self.reverse), strict=True):
            if not isinstance(value, bool):
                raise TypeError(
                    f"{type(self).__name__}: {name} must be True or False, got {value!r}."
                    f"{advice[name]}"
                )

    @property
    def takes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The mask, if masked; the state, if stateful."""
        return ("mask",) * self.masked + ("state",) * self.stateful

    @property
    def differentiates(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The state, if stateful."""
        return ("state",) * self.stateful

    def stand_in(self, name: str, x: Any) -> Any:
        return jnp.ones(x.shape[:2], bool) if name == "mask" else super().stand_in(name, x)

    def backward(self, params: Tree, residuals: Tree, dout: jax.Array) -> tuple[Tree, jax.Array]:
        dparams, dx, _ = self.backward_taken(params, residuals, dout)
        return dparams, dx

    def observe(self, residuals: Tree) -> Tree:
        """The state after the last step, to be handed in as state=... for what follows."""
        return residuals.final

    def taken(self, dstate: Tree) -> dict[str, Tree]:
        """dtaken: the gradient of the state, if the layer takes one."""
        return {"state": dstate} if self.stateful else {}


def outputs(layer: Recurrent, before: jax.Array, final: jax.Array) -> jax.Array:
    """out (m, T, n): the state after each step, which is that before the next one, or the last."""
    last = final[None].astype(before.dtype)
    after = [last, before[:-1]] if layer.reverse else [before[1:], last]
    return jnp.swapaxes(jnp.concatenate(after), 0, 1)


def time_first(values: jax.Array, real: jax.Array | None = None) -> jax.Array:
    """(m, T, n) as (T, m, n), with 0 at the steps that aren't real."""
    values = jnp.swapaxes(undivided(values, 1), 0, 1)
    return values if real is None else jnp.where(real, values, 0)


def examples_first(values: jax.Array, like: jax.Array) -> jax.Array:
    """(T, m, n) as (m, T, n), in the dtype of x and placed as it is."""
    return sharded_like(jnp.swapaxes(values, 0, 1).astype(like.dtype), like)


def where_real(real: jax.Array | None, new: Tree, old: Tree) -> Tree:
    """The new state, but the old one where a step isn't real."""
    if real is None:
        return new
    return jax.tree.map(lambda *pair: jnp.where(real, *pair), new, old)


def sigmoid_slope(z: jax.Array) -> jax.Array:
    """σ'(z) = e/(1 + e)² with e = exp(-|z|), for gates: small where it is, never a difference.

    `activations.sigmoid` is closer to the last bit, at the price of three functions and a choice.
    In a step that is much: XLA on CPU vectorises a loop over few arrays only, some eight, and takes
    up to ten times as long for others. This one ends in a quotient, which is an array of its own.
    """
    e = jnp.exp(-jnp.abs(z))
    return e / jnp.square(1 + e)


def tanh_slope(z: jax.Array) -> jax.Array:
    """tanh'(z) = 4 σ'(2z), likewise."""
    return 4 * sigmoid_slope(2 * z)


def check_features(kind: str, features: Any) -> None:
    """Raise unless the number of units is one."""
    if not isinstance(features, int) or isinstance(features, bool) or features < 1:
        raise TypeError(f"{kind}: features must be a positive int, got {features!r}.")


def check_sequence(layer: Layer, x: Any) -> None:
    """Raise unless x is floating (m, T, F), with at least one step."""
    check_floating(layer, x)
    if x.ndim != 3 or 0 in x.shape[1:]:
        advice = ""
        if x.ndim == 2:
            advice = (
                f" One sequence is a batch of one: x[None] has shape {(1, *x.shape)}; one step of "
                f"a batch is x[:, None]."
            )
        raise ValueError(
            f"{layer!r}: x has shape {tuple(x.shape)}, expected (m, T, F): examples, time, "
            f"features, with at least one step.{advice}"
        )


def check_params(layer: Layer, kind: type[Any], params: Any, shapes: dict[str, Any]) -> None:
    """Raise unless params are of this kind, with floating arrays of these shapes.

    Args:
        layer: named in the message.
        kind: the layer's Params.
        params: should be a `kind`.
        shapes: the shape that each field must have.
    """
    if not isinstance(params, kind):
        raise TypeError(
            f"{layer!r} expected its Params({', '.join(kind._fields)}), got "
            f"{type(params).__module__}.{type(params).__name__}. Make them with "
            "network.init(key, x)."
        )
    for name, expected in shapes.items():
        value = params._asdict()[name]
        if not hasattr(value, "shape") or not jnp.issubdtype(value.dtype, jnp.floating):
            given = f"{value.dtype}" if hasattr(value, "dtype") else type(value).__name__
            raise TypeError(f"{layer!r}: {name} must be a floating-point array, got {given}.")
        if tuple(value.shape) != expected:
            fits = tuple(value.shape[::-1]) == expected
            advice = f" {name}.T would fit." if fits else " It is not broadcast."
            raise ValueError(
                f"{layer!r}: {name} has shape {tuple(value.shape)}, expected {expected}.{advice}"
            )


def real_steps(layer: Recurrent, x: Any, taken: dict[str, Any]) -> jax.Array | None:
    """The mask as (T, m, 1), None without one, after checks of what is taken."""
    check_taken(layer, taken)
    if not layer.masked:
        return None
    mask = taken["mask"]
    if not hasattr(mask, "dtype") or mask.dtype != bool:
        given = f"{mask.dtype}" if hasattr(mask, "dtype") else type(mask).__name__
        raise TypeError(
            f"{layer!r}: mask must be an array of booleans, true where a step is real, got {given}."
        )
    if tuple(mask.shape) != tuple(x.shape[:2]):
        advice = ""
        if tuple(mask.shape) == tuple(x.shape[:1]):
            advice = (
                " Lengths of sequences are jnp.arange(T) < lengths[:, None]; examples that count "
                "or not are mask[:, None] & jnp.ones((m, T), bool)."
            )
        raise ValueError(
            f"{layer!r}: mask has shape {tuple(mask.shape)}, expected {tuple(x.shape[:2])}, one "
            f"for each step of x {tuple(x.shape)}.{advice}"
        )
    return jnp.swapaxes(divided(mask, axes_of(x)[0], None), 0, 1)[..., None]


def first_state(
    layer: Recurrent, name: str, state: Any, like: jax.ShapeDtypeStruct, steps: jax.Array
) -> jax.Array:
    """The state before the first step: the one given, after checks, or zeros.

    Args:
        layer: named in messages.
        name: of the state, or of the part of it that this is.
        state: as given; None for zeros.
        like: the shape that it must have, and the dtype of zeros.
        steps: (T, m, n or more), what is computed of x: zeros lie on the devices where it lies, as
            a scan's carry must.
    """
    if state is None:
        return zeros_like(steps[0, :, : like.shape[1]], like.dtype)
    if not hasattr(state, "dtype") or not jnp.issubdtype(state.dtype, jnp.floating):
        given = f"{state.dtype}" if hasattr(state, "dtype") else type(state).__name__
        raise TypeError(
            f"{layer!r}: {name} must be a floating-point array, as what the layer observes is, or "
            f"None for zeros; got {given}."
        )
    if tuple(state.shape) != like.shape:
        raise ValueError(
            f"{layer!r}: {name} has shape {tuple(state.shape)}, expected {like.shape}, one row for "
            "each example; it is not broadcast."
        )
    return as_carry(state, steps, *axes_of(steps)[1:])


def orthogonal(key: jax.Array, gates: int, features: int, dtype: Any) -> jax.Array:
    """U for so many gates: one random orthogonal (n, n) for each, below one another."""
    draw = jax.nn.initializers.orthogonal()
    each = [draw(one, (features, features), jnp.float32) for one in jax.random.split(key, gates)]
    return jnp.concatenate(each).astype(dtype)
