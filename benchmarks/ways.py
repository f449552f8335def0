"""The usual ways to a gradient: by hand, and by jax.grad of the same forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.row import IDIOMATIC, OURS, SAME, Eager, Way
from manual_bp.layer import Layer, Loss

DEFAULT = mbp.SoftmaxCrossEntropy()


def of_layer(layer: Layer, x: Any, **others: Way | Eager) -> dict[str, Way | Eager]:
    """(dparams, dx) of half the squares of a layer's output: by hand, and by jax.grad of it.

    Half the squares, so that the error is the output and nothing about it is constant.
    """
    args = layer.init(jax.random.key(0), x), x
    return {OURS: Way(by_hand(layer), args), SAME: Way(by_autodiff(layer), args), **others}


def by_hand(layer: Layer) -> Callable[[Any, Any], Any]:
    """(dparams, dx) of half the squares of the output."""

    def run(params: Any, x: Any) -> Any:
        out, residuals = layer.forward(params, x)
        return layer.backward(params, residuals, out)

    return run


def by_autodiff(layer: Layer) -> Callable[[Any, Any], Any]:
    """The same by jax.grad of the layer's forward pass."""
    return half_squares(lambda params, x: layer.forward(params, x)[0])


def half_squares(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """jax.grad of half the squares of function(params, x), for both arguments."""
    return jax.grad(lambda params, x: 0.5 * (function(params, x) ** 2).sum(), (0, 1))


def of_network(
    network: Layer,
    x: Any,
    y: Any,
    logits: Callable[[Any, Any], Any] | None = None,
    loss: Loss = DEFAULT,
) -> dict[str, Way | Eager]:
    """The gradient of a mean loss: `manual_grads`, and jax.grad of the same forward pass.

    Args:
        network: what is trained.
        x, y: a batch.
        logits: logits(params, x) as people write it, for the idiomatic way.
        loss: of the network.
    """
    params = network.init(jax.random.key(0), x)

    def ours(params: Any, x: Any, y: Any) -> Any:
        return mbp.manual_grads(params, x, y, network=network, loss=loss)

    def mean(params: Any, x: Any, y: Any) -> Any:
        return loss.value(network.forward(params, x)[0], y).mean()

    args = params, x, y
    ways: dict[str, Way | Eager] = {OURS: Way(ours, args), SAME: Way(jax.grad(mean), args)}
    if logits is not None:
        ways[IDIOMATIC] = Way(jax.grad(mean_cross_entropy(logits)), args)
    return ways


def mean_cross_entropy(logits: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """The mean softmax cross-entropy of integer labels, written out."""

    def mean(params: Any, x: Any, y: Any) -> Any:
        log_p = jax.nn.log_softmax(logits(params, x))
        return -jnp.take_along_axis(log_p, y[..., None], -1).mean()

    return mean
