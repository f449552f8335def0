"""Specs of BatchNorm and FrozenBatchNorm: jnp.mean and jnp.var, or loops over each channel."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

import manual_bp as mbp
from manual_bp.layers.batch_norm import BatchNorm, FrozenBatchNorm, Params, Statistics
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def _columns(mask: Any, x: Any) -> Any:
    """The mask beside x, with an axis for each of x's."""
    return jnp.expand_dims(mask, tuple(range(mask.ndim, x.ndim)))


def _apply(layer: Any, params: Any, x: Any, mean: Any, variance: Any, mask: Any) -> Any:
    out = (x - mean) / jnp.sqrt(variance + layer.eps) * params.scale + params.shift
    return out if mask is None else _columns(mask, x) * out


def reference(layer: BatchNorm, params: Any, x: jax.Array, tap: Tap, mask: Any = None) -> jax.Array:
    """jnp's own mean and variance, of those where the mask is true."""
    axes = tuple(range(x.ndim - 1))
    where = None if mask is None else _columns(mask, x)
    mean, variance = jnp.mean(x, axes, where=where), jnp.var(x, axes, where=where)
    return _apply(layer, params, x, mean, variance, mask)


def reference_frozen(
    layer: FrozenBatchNorm,
    params: Any,
    x: jax.Array,
    tap: Tap,
    statistics: Any,
    mask: Any = None,
) -> jax.Array:
    """The affine map."""
    return _apply(layer, params, x, statistics.mean, statistics.variance, mask)


def _counts(x: np.ndarray, mask: Any) -> np.ndarray:
    """For each position whether it counts."""
    if mask is None:
        return np.ones(x.shape[:-1], bool)
    return np.array([mask[at[: mask.ndim]] for at in np.ndindex(x.shape[:-1])]).reshape(
        x.shape[:-1]
    )


def naive_frozen(
    layer: Any, params: Any, x: np.ndarray, statistics: Any, mask: Any = None
) -> np.ndarray:
    """One number at a time."""
    counts = _counts(x, mask)
    out = np.empty(x.shape, object)
    for at in np.ndindex(x.shape):
        channel = at[-1]
        std = mp.sqrt(statistics.variance[channel] + mp.mpf(layer.eps))
        value = (x[at] - statistics.mean[channel]) / std
        value = params.scale[channel] * value + params.shift[channel]
        out[at] = value if counts[at[:-1]] else mp.mpf(0)
    return out


def naive(layer: BatchNorm, params: Any, x: np.ndarray, mask: Any = None) -> np.ndarray:
    """One channel at a time."""
    counts, means, variances = _counts(x, mask), [], []
    for channel in range(x.shape[-1]):
        column = [x[(*at, channel)] for at in np.ndindex(x.shape[:-1]) if counts[at]]
        means.append(sum(column) / len(column))
        variances.append(sum((each - means[-1]) ** 2 for each in column) / len(column))
    return naive_frozen(layer, params, x, Statistics(means, variances), mask)


def draw(rng: np.random.Generator, shape: Shape) -> BatchNorm | None:
    """Masked or not, with an ε that matters or the usual one; none for one position in all."""
    if math.prod(shape[:-1]) < 2:
        return None
    eps = 1e-5 if rng.random() < 0.7 else float(rng.choice([1e-3, 0.125, 2.0]))
    return BatchNorm(eps, masked=bool(shape[0] > 1 and rng.random() < 0.2))


def draw_frozen(rng: np.random.Generator, shape: Shape) -> None:
    """Never by itself: it is what BatchNorm is when not training."""


def _shrink(layer: Any) -> Any:
    if layer.masked:
        yield type(layer)(layer.eps)


WEIGHTS = jnp.array([1.0, -2.0, 0.5, 3.0])
"""The cotangent at the edges: not uniform, since for ones dx is 0."""


def by_hand(x: jax.Array) -> jax.Array:
    """dx of this layer on one channel, with scale 1 and shift 0."""
    layer, params = BatchNorm(), Params(jnp.ones(1, x.dtype), jnp.zeros(1, x.dtype))
    _, residuals = layer.forward(params, x[:, None])
    return layer.backward(params, residuals, WEIGHTS.astype(x.dtype)[:, None])[1][:, 0]


def of_deviations(x: jax.Array) -> jax.Array:
    """The variance as the mean of squared deviations."""
    centred = x - x.mean()
    return WEIGHTS.astype(x.dtype) @ (centred / jnp.sqrt(jnp.square(centred).mean() + 1e-5))


def of_squares(x: jax.Array) -> jax.Array:
    """The variance as E[x²] - E[x]², one pass over x: flax's default."""
    variance = jnp.maximum(jnp.square(x).mean() - jnp.square(x.mean()), 0)
    return WEIGHTS.astype(x.dtype) @ ((x - x.mean()) * jax.lax.rsqrt(variance + 1e-5))


ONES = Params(jnp.ones(4), jnp.zeros(4))
MASKED = BatchNorm(masked=True)


def _given(layer: Any, x: Any = (5, 4), dtype: Any = jnp.float32, params: Any = ONES, **taken: Any):
    return lambda: layer.forward(params, jnp.zeros(x, dtype), **taken)


def _statistics(mean: Any, variance: Any) -> Statistics:
    return Statistics(jnp.zeros(mean), jnp.ones(variance))


def _in_a_network(**taken: Any) -> Any:
    def call() -> Any:
        network = mbp.sequential(mbp.Dense(4), BatchNorm())
        params = network.init(jax.random.key(0), jnp.zeros((5, 3)))
        return mbp.manual_grads(
            params, jnp.zeros((5, 3)), jnp.zeros(5, int), network=network, **taken
        )

    return call


def _predict(**taken: Any) -> Any:
    def call() -> Any:
        network = mbp.sequential(mbp.Dense(4), BatchNorm())
        params = network.init(jax.random.key(0), jnp.zeros((5, 3)))
        return mbp.predict(params, jnp.zeros((5, 3)), network=network, **taken)

    return call


ERRORS = (
    BadInput(
        "batch norm: a batch of one",
        _given(BatchNorm(), (1, 4)),
        ValueError,
        ("BatchNorm()", "x has shape (1, 4), one position", "larger batches", "inference()"),
    ),
    BadInput(
        "batch norm: a vector without a batch",
        _given(BatchNorm(), (4,)),
        ValueError,
        ("x has shape (4,)", "expected (m, ..., C)"),
    ),
    BadInput(
        "batch norm: no examples",
        _given(BatchNorm(), (0, 4)),
        ValueError,
        ("x has shape (0, 4)", "no position at all", "network.inference()"),
    ),
    BadInput(
        "batch norm: integers",
        _given(BatchNorm(), dtype=jnp.int32),
        TypeError,
        ("BatchNorm()", "floating-point", "int32 (5, 4)"),
    ),
    BadInput(
        "batch norm: scale that isn't one for each channel",
        _given(BatchNorm(), (5, 3)),
        ValueError,
        ("scale has shape (4,)", "expected (3,)", "not broadcast"),
    ),
    BadInput(
        "batch norm: params of another layer",
        _given(BatchNorm(), params=(jnp.ones(4), jnp.zeros(4))),
        TypeError,
        ("Params(scale, shift)", "builtins.tuple", "network.init"),
    ),
    BadInput(
        "batch norm: statistics given to the layer in training",
        _given(BatchNorm(), statistics=_statistics(4, 4)),
        TypeError,
        ("BatchNorm() takes nothing", "leave out statistics", "network.inference()"),
    ),
    BadInput(
        "batch norm: statistics given to the network in training",
        _in_a_network(statistics=((), _statistics(4, 4))),
        TypeError,
        ("takes nothing", "leave out statistics", "network.inference()"),
    ),
    BadInput(
        "batch norm: a mask given to a layer that isn't masked",
        _given(BatchNorm(), mask=jnp.ones(5, bool)),
        TypeError,
        ("BatchNorm() takes nothing", "leave out mask"),
    ),
    BadInput(
        "batch norm: masked, without a mask",
        _given(MASKED),
        TypeError,
        ("BatchNorm(masked=True) takes mask", "pass mask=..."),
    ),
    BadInput(
        "batch norm: a mask of another batch",
        _given(MASKED, (5, 2, 4), mask=jnp.ones(4, bool)),
        ValueError,
        ("mask has shape (4,)", "expected (5,) or (5, 2)", "x (5, 2, 4)"),
    ),
    BadInput(
        "batch norm: a mask of every value",
        _given(MASKED, mask=jnp.ones((5, 4), bool)),
        ValueError,
        ("mask has shape (5, 4)", "expected (5,)"),
    ),
    BadInput(
        "batch norm: one mask for all",
        _given(MASKED, mask=jnp.ones((), bool)),
        ValueError,
        ("mask has shape ()", "expected (5,)"),
    ),
    BadInput(
        "batch norm: weights for a mask",
        _given(MASKED, mask=jnp.ones(5)),
        TypeError,
        ("mask must be an array of booleans", "float32"),
    ),
    BadInput(
        "batch norm: an axis that isn't there",
        _given(BatchNorm(axis_name="devices")),
        ValueError,
        ("no axis 'devices'", "jax.shard_map", "axis_name=None"),
    ),
    BadInput(
        "batch norm: a number for axis_name",
        lambda: BatchNorm(axis_name=0),  # pyright: ignore[reportArgumentType]
        TypeError,
        ("axis_name must be the name of an axis", "0"),
    ),
    BadInput("batch norm: eps of 0", lambda: BatchNorm(0.0), ValueError, ("eps", "positive")),
    BadInput(
        "batch norm: a mask as a setting",
        lambda: BatchNorm(masked=np.ones(3, bool)),  # pyright: ignore[reportArgumentType]
        TypeError,
        ("masked must be True or False", "mask=..."),
    ),
)
ERRORS_FROZEN = (
    BadInput(
        "batch norm, not training: no statistics",
        _given(FrozenBatchNorm()),
        TypeError,
        ("FrozenBatchNorm() takes statistics", "given nothing", "pass statistics=..."),
    ),
    BadInput(
        "batch norm, not training: no statistics for a network",
        _predict(),
        TypeError,
        ("takes statistics", "given nothing", "pass statistics=..."),
    ),
    BadInput(
        "batch norm, not training: statistics that aren't nested like the network",
        _predict(statistics=_statistics(4, 4)._replace(variance=())),
        ValueError,
        ("statistics must be nested like the network: a tuple of 2", "got a Statistics of 2"),
    ),
    BadInput(
        "batch norm, not training: statistics of another kind",
        _predict(statistics=((), tuple(_statistics(4, 4)))),
        TypeError,
        ("in layer 2, FrozenBatchNorm()", "Statistics(mean, variance)", "observed", "got tuple"),
    ),
    BadInput(
        "batch norm, not training: statistics of other channels",
        _given(FrozenBatchNorm(), statistics=_statistics(3, 3)),
        ValueError,
        ("statistics.mean has shape (3,)", "expected (4,)", "not broadcast"),
    ),
    BadInput(
        "batch norm, not training: one variance for all",
        _given(FrozenBatchNorm(), statistics=_statistics(4, 1)),
        ValueError,
        ("statistics.variance has shape (1,)", "expected (4,)"),
    ),
    BadInput(
        "batch norm, not training: a pair for statistics",
        _given(FrozenBatchNorm(), statistics=(jnp.zeros(4), jnp.ones(4))),
        TypeError,
        ("FrozenBatchNorm()", "Statistics(mean, variance)", "observed", "got tuple"),
    ),
    BadInput(
        "batch norm, not training: masked, without a mask",
        _given(MASKED.inference(), statistics=_statistics(4, 4)),
        TypeError,
        ("FrozenBatchNorm(masked=True) takes mask, statistics", "pass mask=..."),
    ),
    BadInput(
        "batch norm, not training: negative eps",
        lambda: FrozenBatchNorm(-1.0),
        ValueError,
        ("FrozenBatchNorm: eps", "positive"),
    ),
)

SPECS = (
    LayerSpec(
        layer=BatchNorm,
        samples=(
            (BatchNorm(), (5, 3)),
            (BatchNorm(0.125, masked=True), (6, 2, 3)),
            (BatchNorm(), (4, 4)),
            (BatchNorm(1e-3), (2, 2, 3, 2)),  # images
            (BatchNorm(), (1, 5, 2)),  # one example of several positions
            (BatchNorm(), (2, 3)),  # x̂ is ±1, but for ε
            (BatchNorm(masked=True), (5, 1)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        shrink=_shrink,
        mixes=lambda layer: True,
        edges=(
            Edge(
                function="batch norm of a constant channel",
                point=(3.0, 3.0, 3.0, 3.0),
                dtype="float32",
                stated=(118.585, -830.098, -39.5285, 751.041),  # (g - <g>)/sqrt(eps)
                manual=by_hand,
                autodiff=jax.grad(of_deviations),
                recorded=(118.585, -830.098, -39.5285, 751.041),
            ),
            Edge(
                function="batch norm far from 0, by E[x²] - E[x]²",
                point=(4000.0, 4001.0, 4003.0, 4002.0),
                dtype="float32",
                stated=(0.804977, -2.19134, -0.581372, 1.96773),
                manual=by_hand,
                autodiff=jax.grad(of_squares),
                recorded=(1.03125, -2.40625, -0.78125, 2.15625),
            ),
        ),
        errors=ERRORS,
    ),
    LayerSpec(
        layer=FrozenBatchNorm,
        samples=(
            (FrozenBatchNorm(), (5, 3)),
            (FrozenBatchNorm(0.125, masked=True), (4, 2, 3)),
            (FrozenBatchNorm(), (3, 3)),
            (FrozenBatchNorm(), (1, 4)),
            (FrozenBatchNorm(1e-3), (2, 2, 3, 1)),
        ),
        reference=reference_frozen,
        naive=naive_frozen,
        draw=draw_frozen,
        shrink=_shrink,
        errors=ERRORS_FROZEN,
    ),
)
