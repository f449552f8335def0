"""Spec of GroupNorm: each group cut out and normalised by jnp.mean and jnp.var, or by loops."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from manual_bp.layers.group_norm import GroupNorm, Params
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(layer: GroupNorm, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """One group after the other."""
    axes, outs = tuple(range(1, x.ndim)), []
    for group in jnp.split(x, layer.groups, axis=-1):
        deviation = jnp.sqrt(jnp.var(group, axes, keepdims=True) + layer.eps)
        outs.append((group - jnp.mean(group, axes, keepdims=True)) / deviation)
    return jnp.concatenate(outs, axis=-1) * params.scale + params.shift


def naive(layer: GroupNorm, params: Any, x: np.ndarray) -> np.ndarray:
    """One number at a time."""
    scale, shift = params
    size = x.shape[-1] // layer.groups
    out = np.empty(x.shape, object)
    for at in np.ndindex(x.shape):
        first = at[-1] // size * size
        group = [
            x[(at[0], *each)]
            for each in np.ndindex(x.shape[1:])
            if first <= each[-1] < first + size
        ]
        mean = sum(group) / len(group)
        variance = sum((each - mean) ** 2 for each in group) / len(group)
        value = (x[at] - mean) / mp.sqrt(variance + mp.mpf(layer.eps))
        out[at] = scale[at[-1]] * value + shift[at[-1]]
    return out


def draw(rng: np.random.Generator, shape: Shape) -> GroupNorm | None:
    """Any number of groups that divides the channels."""
    if len(shape) < 2:
        return None
    fitting = [groups for groups in range(1, shape[-1] + 1) if shape[-1] % groups == 0]
    groups = int(rng.choice(fitting))
    return GroupNorm(groups, 1e-5 if rng.random() < 0.7 else float(rng.choice([0.125, 2.0])))


def shrink(layer: GroupNorm) -> Iterator[GroupNorm]:
    """One group."""
    if layer.groups > 1:
        yield GroupNorm(1, layer.eps)


WEIGHTS = jnp.array([1.0, -2.0, 0.5, 3.0])
"""The cotangent at the edges: not uniform, since for ones dx is 0."""


def by_hand(x: jax.Array) -> jax.Array:
    """dx of this layer, one group, with scale 1 and shift 0."""
    layer, params = GroupNorm(1), Params(jnp.ones(4, x.dtype), jnp.zeros(4, x.dtype))
    _, residuals = layer.forward(params, x[None])
    return layer.backward(params, residuals, WEIGHTS.astype(x.dtype)[None])[1][0]


def of_squares(x: jax.Array) -> jax.Array:
    """The variance as E[x²] - E[x]², one pass over x: flax's default."""
    variance = jnp.maximum(jnp.square(x).mean() - jnp.square(x.mean()), 0)
    return WEIGHTS.astype(x.dtype) @ ((x - x.mean()) * jax.lax.rsqrt(variance + 1e-5))


def _forward(layer: GroupNorm, channels: int, x: Any, dtype: Any = jnp.float32) -> Any:
    params = Params(jnp.ones(channels), jnp.zeros(channels))
    return lambda: layer.forward(params, jnp.zeros(x, dtype))


SPECS = (
    LayerSpec(
        layer=GroupNorm,
        samples=(
            (GroupNorm(2), (3, 2, 6)),
            (GroupNorm(3, 0.125), (2, 2, 3, 6)),  # images
            (GroupNorm(4), (2, 3, 4)),  # a group for each channel: instance normalisation
            (GroupNorm(1), (3, 4)),  # one group: layer normalisation
            (GroupNorm(2, 1e-3), (1, 4)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=shrink,
        edges=(
            Edge(
                function="group norm far from 0, by E[x²] - E[x]²",
                point=(4000.0, 4001.0, 4003.0, 4002.0),
                dtype="float32",
                stated=(0.804977, -2.19134, -0.581372, 1.96773),
                manual=by_hand,
                autodiff=jax.grad(of_squares),
                recorded=(1.03125, -2.40625, -0.78125, 2.15625),
            ),
        ),
        errors=(
            BadInput(
                "group norm: groups that don't divide the channels",
                _forward(GroupNorm(4), 6, (5, 6)),
                ValueError,
                ("GroupNorm(4)", "x has shape (5, 6)", "6 channels", "1, 2, 3, 6 would"),
            ),
            BadInput(
                "group norm: more groups than channels, at init",
                lambda: GroupNorm(32).init(jax.random.key(0), jnp.zeros((5, 16))),
                ValueError,
                ("GroupNorm(32)", "16 channels", "1, 2, 4, 8, 16 would"),
            ),
            BadInput(
                "group norm: a vector without a batch",
                _forward(GroupNorm(2), 4, (4,)),
                ValueError,
                ("x has shape (4,)", "expected (m, ..., C)"),
            ),
            BadInput(
                "group norm: integers",
                _forward(GroupNorm(2), 4, (5, 4), jnp.int32),
                TypeError,
                ("GroupNorm(2)", "floating-point", "int32 (5, 4)"),
            ),
            BadInput(
                "group norm: one scale for each group",
                _forward(GroupNorm(2), 2, (5, 4)),
                ValueError,
                ("scale has shape (2,)", "expected (4,)", "not broadcast"),
            ),
            BadInput(
                "group norm: params of another layer",
                lambda: GroupNorm(2).forward(
                    (jnp.ones(4), jnp.zeros(4)),  # pyright: ignore[reportArgumentType]
                    jnp.zeros((5, 4)),
                ),
                TypeError,
                ("GroupNorm(2)", "Params(scale, shift)", "network.init"),
            ),
            BadInput(
                "group norm: a mask that it doesn't take",
                lambda: GroupNorm(2).forward(
                    Params(jnp.ones(4), jnp.zeros(4)), jnp.zeros((5, 4)), mask=jnp.ones(5, bool)
                ),
                TypeError,
                ("GroupNorm(2) takes nothing", "leave out mask"),
            ),
            BadInput(
                "group norm: no groups", lambda: GroupNorm(0), TypeError, ("positive int", "0")
            ),
            BadInput(
                "group norm: half a group",
                lambda: GroupNorm(0.5),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("groups must be a positive int", "0.5"),
            ),
            BadInput(
                "group norm: eps of 0", lambda: GroupNorm(2, 0.0), ValueError, ("eps", "positive")
            ),
        ),
    ),
)
