"""Clipped sums of per-example gradients, as differentially private training needs them.

    s = Σ_i c_i g_i,   c_i = min(1, C/‖g_i‖) = C / max(‖g_i‖, C)
    with noise         s + σ C ξ,   ξ ~ N(0, I)

No example can move s by more than C, whatever it is: that is what the noise is measured against.

Backward, in one sweep: keep each layer's errors e_i and inputs a_i, find ‖g_i‖² from them, scale
the rows, and contract,

    Σ_i c_i g_i = Σ_i,s (c_i e_is) a_isᵀ

which is the contraction of the plain gradient with other errors: beside it only the norms are paid.
Where holding all errors costs more than it saves (a scan's or a checkpoint's, which are there to
hold none; the windows of a convolution) the sweep goes back a second time, from a first error whose
row i is c_i times as large.

Derivation.  Everything below the loss is linear in the error and keeps the rows of examples apart,
so that scaling row i of the first error by c_i scales row i of every error, and so g_i, by c_i. A
layer that mixes examples breaks this, and is refused (`manual_bp.signals.factored`).

Ill-conditioned nowhere where norms are finite: C / max(‖g‖, C) divides by no less than C, and is
exactly 1 for what isn't clipped. A norm that isn't finite (a squared length overflows beyond about
3e38 in float32) makes the sum NaN: it is neither dropped nor kept. weights=jnp.isfinite(norms),
with the norms of a first pass, leave such an example out.

Inside shard_map clip without noise, psum, and add the noise to that: on n devices that draw with
one key the sum would have n times the noise, with keys of their own √n times. Under jit, on a
divided batch too, the noise is drawn once, and is that of one device.

Source  Abadi et al. (2016), arXiv:1607.00133; Lee & Kifer (2021), arXiv:2009.03106 (the second
        sweep); Bu, Wang, Zha & Karypis (2023), arXiv:2210.00038 (one sweep)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.combinators.checkpoint import Checkpoint
from manual_bp.combinators.reversible import Reversible
from manual_bp.combinators.stack import Stack
from manual_bp.gradients import check_call, close_params, open_params
from manual_bp.inputs import at_hand
from manual_bp.layer import Combinator, Layer, Loss, Tree, accumulation_dtype, backward_visit
from manual_bp.layers.conv import Conv
from manual_bp.signals.factors import Uses, squared_norms, weighted_sum
from manual_bp.signals.per_example import over_factors, total_of_examples

Draw = Callable[..., jax.Array]
"""draw(key, shape, dtype) -> ξ: `jax.random.normal`, or another of unit scale."""


class ClippedPass(NamedTuple):
    """What one clipped sweep gives."""

    grads: Tree
    """Σ_i c_i g_i, with the noise if any, in the structure of params: a sum, not a mean."""
    norms: jax.Array
    """(m,), ‖g_i‖ before clipping."""
    loss: jax.Array
    """Σ_i loss_i, of all examples, unclipped."""
    prediction: jax.Array
    """What the network makes of x."""


def clipped_grads(
    params: Tree,
    x: Any,
    y: Any,
    *,
    clip: Any,
    noise_multiplier: Any = None,
    noise_key: Any = None,
    noise: Draw = jax.random.normal,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> Tree:
    """The sum of the examples' gradients, none longer than `clip`: Σ_i min(1, C/‖g_i‖) g_i.

        s = Σ_i C / max(‖g_i‖, C) g_i + σ C ξ,   ξ ~ N(0, I)

    Args:
        params, x, y, network, loss, weights, **taken: as for `per_example_grads`: without weights
            g_i is the gradient of example i alone; any other reweighting of examples is `weights`.
        clip: C > 0, in the unit of the gradient's length over all parameters.
        noise_multiplier: σ ≥ 0, the noise's standard deviation over C; none unless given.
        noise_key: for the noise, a new one for each step; `key=...` is the network's.
        noise: draws ξ, noise(key, shape, dtype), for each array of params.

    Returns:
        In structure, shapes and dtypes of params. It is a sum: divide by the expected batch size.

    Raises:
        TypeError: when one of noise_multiplier and noise_key is there without the other; for a
            layer that mixes examples; else as `manual_grads`.
        ValueError: when clip isn't positive, or noise_multiplier is negative.

    Source: Abadi et al. (2016), Deep learning with differential privacy, arXiv:1607.00133.

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> x, y = jnp.array([[0.0], [7.0]]), jnp.array([0, 1])
        >>> print(clipped_grads(params, x, y, clip=1.0)[0][0])
        [[ 0.7]
         [-0.7]]
    """
    return clipped_pass(
        params,
        x,
        y,
        clip=clip,
        noise_multiplier=noise_multiplier,
        noise_key=noise_key,
        noise=noise,
        network=network,
        loss=loss,
        weights=weights,
        **taken,
    ).grads


def clipped_pass(
    params: Tree,
    x: Any,
    y: Any,
    *,
    clip: Any,
    noise_multiplier: Any = None,
    noise_key: Any = None,
    noise: Draw = jax.random.normal,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> ClippedPass:
    """The clipped sum with what led to it: norms, loss and prediction of the same sweep.

        grads = Σ_i C / max(‖g_i‖, C) g_i + σ C ξ

    Args, Raises, Source: as for `clipped_grads`.

    Returns:
        ClippedPass(grads, norms, loss, prediction).

    Example:
        >>> params = ((jnp.zeros((2, 1)), jnp.zeros(2)),)
        >>> step = clipped_pass(params, jnp.array([[0.0], [7.0]]), jnp.array([0, 1]), clip=1.0)
        >>> print(step.norms, (step.norms > 1.0).mean())
        [0.70710677 5.        ] 0.5
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    _check_clip(clip)
    _check_noise(noise_multiplier, noise_key)
    step = _compiled(params, x, y, weights, taken, clip, network=network, loss=loss)
    if noise_multiplier is None:
        return step
    grads = _noisy(step.grads, noise_key, noise_multiplier, clip, noise=noise)
    return step._replace(grads=grads)


@functools.partial(jax.jit, static_argnames=("network", "loss"))
def _compiled(
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    clip: Any,
    *,
    network: Layer | None,
    loss: Loss,
) -> ClippedPass:
    opened, tree, loss_params = open_params(params, network, loss)
    call = (params, x, y, weights, taken, network, loss)
    if _holds_errors(opened):
        uses, step = over_factors(lambda uses: uses, *call, late=True)
        squared = jax.tree.map(_squared_norms, uses)
    else:
        uses, (squared, step) = None, over_factors(_squared_norms, *call)
    squared = jax.tree.map(lambda each: jnp.moveaxis(each, -1, 0), squared)  # (m, *steps)
    norms = jnp.sqrt(total_of_examples(squared, len(x)))
    # a clip that isn't positive raises where its value is at hand; here it makes NaN
    c = jnp.where((clip > 0) & (norms < jnp.inf), clip / jnp.maximum(norms, clip), jnp.nan)
    if uses is not None:
        grads = jax.tree.map(lambda each: each.take(weighted_sum, c), uses)
        return ClippedPass(grads, norms, step.loss, step.prediction)
    scaled = step.weights * c.reshape(-1, *[1] * (step.weights.ndim - 1))
    _, dloss_params, error = loss.sweep(loss_params, step.prediction, y, scaled)
    error = error.astype(step.prediction.dtype)
    seen, _ = opened.walk(backward_visit, error, tree, step.residuals)
    grads = close_params(opened.gather(seen), dloss_params, params, opened, loss)
    return ClippedPass(grads, norms, step.loss, step.prediction)


def _squared_norms(uses: Uses) -> jax.Array:
    """(*steps, m)."""
    return uses.take(squared_norms)


def _holds_errors(network: Layer) -> bool:
    """Whether all layers' errors and inputs are held at once, rather than swept a second time."""
    if isinstance(network, Combinator):
        scanned = isinstance(network, Checkpoint | Reversible | Stack)
        return not scanned and all(map(_holds_errors, network.children))
    return not isinstance(network, Conv)


@functools.partial(jax.jit, static_argnames=("noise",))
def _noisy(grads: Tree, key: jax.Array, multiplier: Any, clip: Any, *, noise: Draw) -> Tree:
    """grads + σ C ξ, each array with a key of its own; NaN where σ is negative."""
    std = jnp.where(multiplier >= 0, multiplier * clip, jnp.nan)
    leaves, structure = jax.tree.flatten(grads)
    noisy = []
    for number, leaf in enumerate(leaves):
        wide = accumulation_dtype(leaf)
        drawn = noise(jax.random.fold_in(key, number), leaf.shape, wide)
        noisy.append((leaf.astype(wide) + std * drawn).astype(leaf.dtype))
    return jax.tree.unflatten(structure, noisy)


def _check_clip(clip: Any) -> None:
    if isinstance(clip, bool | str) or jnp.ndim(clip) != 0:
        raise TypeError(f"clip must be a positive number, one for all examples; got {clip!r}.")
    if at_hand(clip) and not (math.isfinite(clip) and clip > 0):
        raise ValueError(f"clip must be a positive number, got {clip!r}.")


def _check_noise(multiplier: Any, key: Any) -> None:
    if multiplier is None and key is None:
        return
    if multiplier is None or key is None:
        given, missing = ("noise_key", "noise_multiplier=...")
        if key is None:
            given, missing = ("noise_multiplier", "noise_key=jax.random.key(...)")
        raise TypeError(f"{given} was given alone: pass {missing} too, or neither.")
    if isinstance(multiplier, bool | str) or jnp.ndim(multiplier) != 0:
        raise TypeError(
            f"noise_multiplier must be a number, 0 or more, one for all params; got {multiplier!r}."
        )
    if not (hasattr(key, "dtype") and hasattr(key, "shape")):
        raise TypeError(f"noise_key must be a key, as jax.random.key(0) is; got {key!r}.")
    if at_hand(multiplier) and not (math.isfinite(multiplier) and multiplier >= 0):
        raise ValueError(f"noise_multiplier must be 0 or more, got {multiplier!r}.")
