"""The judge of the forward pass: a wrong forward and its matching backward agree with each other.

Each spec's naive form, loops over numbers of 30 digits, says what the layer computes; its own
rounding is then nothing, and the engine's must lie within its error bound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from mpmath import mp

from manual_bp.layer import Combinator, Layer, Loss
from verify import specs
from verify.arithmetic.rounding import UNIT, Bounded
from verify.interpreter import trace
from verify.judges import BOUNDS, Verdict, within_bounds
from verify.networks import Shape, draw_params, draw_taken, draw_tokens, opened
from verify.reference import handed

DIGITS = 30


def naive(layer: Layer, params: Any, x: np.ndarray, taken: Mapping[str, Any]) -> np.ndarray:
    """The layer's output by the naive form of its spec, and of its children's."""
    spec = specs.of_layer(layer)
    if not isinstance(layer, Combinator):
        return spec.naive(layer, params, x, **taken)

    def run(index: int, params: Any, x: np.ndarray, step: int | None = None) -> np.ndarray:
        child = layer.children[index]
        return naive(child, params, x, handed(child, taken, index, step))

    return spec.naive(layer, params, x, run)


def judge_layer(layer: Layer, shape: Shape, seed: int = 0) -> Verdict:
    """Whether a layer's output is its naive form's, within its error bound, on random numbers."""
    rng = np.random.default_rng(seed)
    tokens = draw_tokens(rng, layer, shape)
    x = rng.normal(size=shape) if tokens is None else tokens
    params = draw_params(rng, layer, x)
    taken = draw_taken(rng, layer, layer, params, x)
    args = (params, x, taken)
    program = trace(lambda p, v, given: layer.forward(p, v, **opened(given))[0], *args)
    with mp.workdps(DIGITS):
        exact = naive(layer, _precise(params), _precise(x), opened(_precise(taken)))
    return _verdict(program.run(args, BOUNDS), exact)


def judge_loss(loss: Loss, shape: Shape, seed: int = 0) -> Verdict:
    """Whether a loss's values are its naive form's, within their error bound."""
    rng = np.random.default_rng(seed)
    spec = specs.of_loss(loss)
    prediction, target = rng.normal(size=shape) * 3, spec.target(rng, loss, shape)
    own = [draw_params(rng, loss, prediction)] if loss.parametric else []

    def values(prediction: Any, target: Any, *own: Any) -> Any:
        if not own:
            return loss.value(prediction, target)
        return loss.sweep(own[0], prediction, target, jnp.ones(shape[:-1]))[0]

    args = (prediction, target, *own)
    ours = trace(values, *args).run(args, BOUNDS)
    with mp.workdps(DIGITS):
        return _verdict(ours, spec.naive(loss, *_precise(args)))


def _precise(tree: Any) -> Any:
    """Floats as mpmath numbers, in object arrays."""
    number = np.frompyfunc(mp.mpf, 1, 1)
    return jax.tree.map(
        lambda leaf: np.asarray(number(leaf)) if leaf.dtype.kind == "f" else leaf, tree
    )


def _verdict(ours: Any, theirs: np.ndarray) -> Verdict:
    exact = np.asarray(theirs, np.float64)  # rounded once, which the bound must allow
    rounded = Bounded(exact, np.abs(exact) * UNIT)
    return within_bounds({"out": ours}, {"out": rounded})
