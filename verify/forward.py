"""The judge of the forward pass: a wrong forward and its matching backward agree with each other.

Each spec's naive form, loops over NumPy scalars, says what the layer computes.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from manual_bp.layer import Combinator, Layer, Loss
from verify import specs
from verify.arithmetic.numpy import Float64
from verify.interpreter import trace
from verify.networks import Shape, draw_params


def naive(layer: Layer, params: Any, x: np.ndarray) -> np.ndarray:
    """The layer's output by the naive form of its spec, and of its children's."""
    spec = specs.of_layer(layer)
    if isinstance(layer, Combinator):
        return spec.naive(layer, params, x, lambda i, p, v: naive(layer.children[i], p, v))
    return spec.naive(layer, params, x)


def judge_layer(layer: Layer, shape: Shape, seed: int = 0) -> float:
    """Relative distance of a layer's output from its naive form's, on random numbers."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=shape)
    params = draw_params(rng, layer, x)
    ours = trace(lambda p, v: layer.forward(p, v)[0], params, x).run((params, x), Float64())
    return _relative(ours, naive(layer, params, x))


def judge_loss(loss: Loss, shape: Shape, seed: int = 0) -> float:
    """Relative distance of a loss's values from their naive form's, on random numbers."""
    rng = np.random.default_rng(seed)
    spec = specs.of_loss(loss)
    prediction, target = rng.normal(size=shape) * 3, spec.target(rng, loss, shape)
    ours = trace(loss.value, prediction, target).run((prediction, target), Float64())
    return _relative(ours, spec.naive(loss, prediction, target))


def _relative(ours: np.ndarray, theirs: np.ndarray) -> float:
    if ours.shape != theirs.shape:
        return np.inf
    apart = float(np.linalg.norm(ours - theirs) / max(float(np.linalg.norm(theirs)), 1e-300))
    return apart if np.isfinite(apart) else np.inf
