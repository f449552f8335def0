"""A head of 32,768 classes fused with its loss: is the gradient leaner than jax.grad's, as fast?

Loss and both gradients of `LinearCrossEntropy` are held against jax.value_and_grad of `Dense` below
`SoftmaxCrossEntropy`, the same written with optax, and PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

import manual_bp as mbp
from benchmarks.row import IDIOMATIC, MEMORY, OURS, SAME, TIME, Eager, Group, Row, Target, Way
from benchmarks.torch_ways import tensor, torch_way
from manual_bp.layers import dense
from manual_bp.losses.linear_cross_entropy import Params

CLASSES = 32_768
PREDICTIONS = 1024


def by_hand(W: Any, h: Any, y: Any) -> Any:
    """(loss, dW, dh) of the mean, fused."""
    weights = jnp.full(y.shape, 1 / len(y))
    loss = mbp.LinearCrossEntropy(len(W))
    values, dparams, dh = loss.sweep(Params(W, ()), h, y, weights)
    return (weights * values).sum(), dparams.W, dh


def same(W: Any, h: Any, y: Any) -> Any:
    """The same by jax.value_and_grad of a dense layer and its loss."""
    head, loss = mbp.Dense(len(W), bias=False), mbp.SoftmaxCrossEntropy()

    def mean(W: Any, h: Any) -> Any:
        return loss.value(head.forward(dense.Params(W, ()), h)[0], y).mean()

    value, (dW, dh) = jax.value_and_grad(mean, (0, 1))(W, h)
    return value, dW, dh


def idiomatic(W: Any, h: Any, y: Any) -> Any:
    """The same as one writes it with optax."""

    def mean(W: Any, h: Any) -> Any:
        return optax.softmax_cross_entropy_with_integer_labels(h @ W.T, y).mean()

    value, (dW, dh) = jax.value_and_grad(mean, (0, 1))(W, h)
    return value, dW, dh


NOTE = (
    "Kept for backward: nothing; one chunk's logits are held, and dW, which is returned. Tried "
    "against optax's way, time and memory: chunks of 64, 80, 96, 104 and 128 predictions in "
    "blocks of 1024 and 2048 classes: 1.07 at 0.05, 1.07 at 0.064, 1.00 at 0.061, 0.98 at 0.065, "
    "0.92 at 0.084. Loops over classes, with the logits taken twice: 1.00 at 0.043, and with dh "
    "in the first of both loops 0.96 at 0.047, but 0.97 where there are 512 features. The first "
    "256 predictions' logits in the memory of dW: 0.97 at 0.060. dz transposed, so that both "
    "gradients are plain products: 1.11 and more, as XLA transposes slowly. The class's logit "
    "gathered, rather than summed with the labels: 1.16."
)


def ways(predictions: int, classes: int, features: int) -> dict[str, Way | Eager]:
    """By hand, by jax.grad of the same, of optax, and by PyTorch."""
    keys = jax.random.split(jax.random.key(0), 3)
    W = jax.random.normal(keys[0], (classes, features)) / features**0.5
    h = jax.random.normal(keys[1], (predictions, features))
    y = jax.random.randint(keys[2], (predictions,), 0, classes)

    def in_torch(torch: Any) -> Callable[[], Any]:
        wanted = [tensor(torch, each, requires_grad=True) for each in (W, h)]
        labels = tensor(torch, y).long()

        def run() -> Any:
            loss = torch.nn.functional.cross_entropy(wanted[1] @ wanted[0].T, labels)
            return loss, torch.autograd.grad(loss, wanted)

        return run

    functions = {OURS: by_hand, SAME: same, IDIOMATIC: idiomatic}
    found = {name: Way(each, (W, h, y)) for name, each in functions.items()}
    return {**found, **torch_way(in_torch)}


def group() -> Group:
    """The rows."""
    targets = tuple(
        Target(quantity, limit, against)
        for against in (SAME, IDIOMATIC)
        for quantity, limit in ((TIME, 0.95), (MEMORY, 0.06))
    )
    optax_loss = "optax's softmax_cross_entropy_with_integer_labels of h @ W.T"
    rows = tuple(
        Row(
            f"{PREDICTIONS} x {CLASSES}, {features} features",
            lambda features=features: ways(PREDICTIONS, CLASSES, features),
            aimed_at,
            note=note,
            against_idiomatic=optax_loss,
        )
        for features, aimed_at, note in ((256, targets, NOTE), (512, (), ""))
    )
    return Group("linear_cross_entropy", "A linear head and its cross-entropy", rows)
