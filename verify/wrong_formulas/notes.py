"""Mistakes that people make with the notes' formulas, for `verify.wrong_formulas`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp import gradients
from manual_bp.activations import Relu
from manual_bp.combinators.sequential import Sequential
from manual_bp.layer import outer_over_examples, sum_over_examples
from manual_bp.layers.dense import Dense, Params, Residuals
from verify.networks import Case

SQUARE = mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.Dense(4, mbp.sigmoid), mbp.Dense(4))
CASES = (
    Case(SQUARE, mbp.SoftmaxCrossEntropy(), (4, 4), seed=(1,)),
    Case(mbp.mlp([5, 4, 3]), mbp.SquaredError(), (6, 5), seed=(2,)),
    Case(SQUARE, mbp.SoftmaxCrossEntropy(label_smoothing=0.2), (3, 2), "given", seed=(8,)),
    Case(mbp.mlp([3, 4, 2]), mbp.SoftmaxCrossEntropy(ignored_class=0), (7, 3), seed=(4,)),
    Case(mbp.mlp([3, 2]), mbp.SoftmaxCrossEntropy(ignored_class=1), (9, 3), "ones", seed=(6,)),
    Case(mbp.mlp([3, 3]), mbp.SigmoidBinaryCrossEntropy(), (3, 3), seed=(5,)),
)


def _dense_backward(
    dW: Callable[..., Any] = lambda dz, a, like: outer_over_examples(dz, a, like),
    db: Callable[..., Any] = sum_over_examples,
    dx: Callable[..., Any] = lambda dz, W: dz @ W,
) -> Any:
    def backward(layer: Dense, params: Params, residuals: Residuals, dout: jax.Array) -> Any:
        dz = layer.error(residuals, dout)
        return Params(dW(dz, residuals.a_prev, params.W), db(dz)), dx(dz, params.W)

    return mock.patch.object(Dense, "backward", backward)


def _fit(value: jax.Array, like: jax.Array) -> jax.Array:
    """The value in the shape that is due, so that a shape error doesn't give a mistake away."""
    return jnp.resize(value, like.shape)


def _forward_keeps(keep: Callable[..., Any]) -> Any:
    def forward(layer: Dense, params: Params, x: jax.Array) -> Any:
        z = layer.preactivation(params, x)
        a, _ = layer.activation.forward((), z)
        return a, keep(layer, x, z, a)

    return mock.patch.object(Dense, "forward", forward)


def _walk_with(params_at: Callable[[int, int], int]) -> Any:
    def walk(network: Sequential, visit: Any, dout: jax.Array, *trees: Any) -> Any:
        seen, layers = [], network.layers
        for index in reversed(range(len(layers))):
            params, *others = (tree[index] for tree in trees)
            wrong = trees[0][params_at(index, len(layers))]
            each, _ = layers[index].walk(visit, dout, params, *others)
            fits = [jnp.shape(leaf) for leaf in jax.tree.leaves(wrong)] == [
                jnp.shape(leaf) for leaf in jax.tree.leaves(params)
            ]
            _, dout = layers[index].walk(visit, dout, wrong if fits else params, *others)
            seen.append(each)
        return tuple(reversed(seen)), dout

    return mock.patch.object(Sequential, "walk", walk)


def _softmax_error(change: Callable[..., Any]) -> Any:
    right = mbp.SoftmaxCrossEntropy.error

    def error(loss: mbp.SoftmaxCrossEntropy, prediction: jax.Array, target: jax.Array) -> Any:
        return change(loss, prediction, target, right)

    return mock.patch.object(mbp.SoftmaxCrossEntropy, "error", error)


def _without_total(loss: Any, z: Any, y: Any, right: Any) -> Any:
    return jax.nn.softmax(z) - y if y.ndim == z.ndim else right(loss, z, y)


def _patch_weights(change: Callable[..., Any]) -> Any:
    right = gradients._mean_weights
    return mock.patch.object(gradients, "_mean_weights", lambda *args: change(right(*args), *args))


WRONG: dict[str, Callable[[], Any]] = {
    "1/m missing": lambda: _patch_weights(lambda w, *_: jnp.ones_like(w)),
    "1/m twice": lambda: _patch_weights(lambda w, *_: w * w),
    "1/m where the ignored class counts": lambda: _patch_weights(
        lambda w, shape, *_: jnp.where(w == 0, 0, jnp.ones_like(w) / w.size)
    ),
    "dW divided by m once more": lambda: _dense_backward(
        dW=lambda dz, a, like: outer_over_examples(dz, a, like) / len(a)
    ),
    "transpose missing in the hidden error": lambda: _dense_backward(
        dx=lambda dz, W: dz @ W.T if W.shape[0] == W.shape[1] else dz @ W
    ),
    "transpose missing in dW": lambda: _dense_backward(
        dW=lambda dz, a, like: _fit(outer_over_examples(dz, a, like).T, like)
    ),
    "A[l] in place of A[l-1] in dW": lambda: _forward_keeps(
        lambda layer, x, z, a: Residuals(_fit(a, x), layer.activation.keep(z))
    ),
    "g' at A instead of Z": lambda: _forward_keeps(
        lambda layer, x, z, a: Residuals(x, layer.activation.keep(a))
    ),
    "error not multiplied by g'": lambda: mock.patch.object(
        Dense, "error", lambda layer, residuals, dout: dout
    ),
    "error multiplied by g' twice": lambda: mock.patch.object(
        Dense,
        "error",
        lambda layer, residuals, dout: layer.activation.scale(
            layer.kept(residuals), layer.activation.scale(layer.kept(residuals), dout)
        ),
    ),
    "relu passes where z < 0": lambda: mock.patch.object(Relu, "keep", lambda layer, z: z < 0),
    "bias gradient not summed": lambda: _dense_backward(
        db=lambda dz: dz.reshape(-1, dz.shape[-1])[0]
    ),
    "bias gradient summed over the wrong axis": lambda: _dense_backward(
        db=lambda dz: jnp.resize(dz.sum(-1), dz.shape[-1:])
    ),
    "last example left out of dW": lambda: _dense_backward(
        dW=lambda dz, a, like: outer_over_examples(dz[:-1], a[:-1], like)
    ),
    "W of the layer below": lambda: _walk_with(lambda index, count: max(index - 1, 0)),
    "W of the layer above": lambda: _walk_with(lambda index, count: min(index + 1, count - 1)),
    "Y - A": lambda: _softmax_error(lambda loss, z, y, right: -right(loss, z, y)),
    "softmax over the examples": lambda: _softmax_error(
        lambda loss, z, y, right: right(loss, z, y) - jax.nn.softmax(z) + jax.nn.softmax(z, axis=0)
    ),
    "soft labels taken to sum to one": lambda: _softmax_error(_without_total),
    "label smoothing forgotten": lambda: _softmax_error(
        lambda loss, z, y, right: right(
            mbp.SoftmaxCrossEntropy(ignored_class=loss.ignored_class), z, y
        )
    ),
    "ignored class not ignored": lambda: _softmax_error(
        lambda loss, z, y, right: right(
            mbp.SoftmaxCrossEntropy(label_smoothing=loss.label_smoothing), z, y
        )
    ),
    "A in place of A - Y": lambda: _softmax_error(lambda loss, z, y, right: jax.nn.softmax(z)),
}
