"""Per-example gradients, norms and inner products, by jax.grad of one example at a time.

With noise an example by itself would draw another mask: there the gradient of example i is that of
the whole batch's J, weights 0 but for its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.combinators.reversible import Reversible
from manual_bp.combinators.stack import Stack
from manual_bp.layer import Combinator, Layer, Loss
from verify import specs
from verify.networks import Shape
from verify.rules import Rule
from verify.signals.cases import objective, of_signal, one_by_one

ALL = ("grads", "squared", "gram")
SQUARES = mbp.SquaredError()


class Sample(NamedTuple):
    """A network, and which signals are judged on it."""

    network: Layer
    shape: Shape
    loss: Loss = SQUARES
    signals: tuple[str, ...] = ("grads",)
    weighted: bool = False


D = mbp.Dense
CHAIN = mbp.sequential(D(2), D(2))
SAMPLES = (
    # the forms and their products: which is cheaper is chosen by shape
    Sample(mbp.mlp([3, 2, 2]), (3, 3), SQUARES, ALL),
    Sample(mbp.mlp([2, 2, 1], hidden=mbp.tanh), (2, 2), SQUARES, ALL),  # gram: g_i is smaller
    Sample(D(8, mbp.tanh), (2, 2, 9), SQUARES, ("squared",)),  # places: Gram matrices are cheaper
    Sample(D(4, mbp.tanh), (2, 2, 5), SQUARES, ("gram",)),
    Sample(mbp.sequential(D(3, mbp.tanh), D(2)), (2, 3, 2), SQUARES, ALL),  # places: g_i is
    Sample(D(2, bias=False), (2, 3), mbp.SoftmaxCrossEntropy(), ("grads", "squared"), True),
    Sample(D(2), (2, 2, 1), mbp.SoftmaxCrossEntropy(ignored_class=1), ("grads", "squared")),
    Sample(D(2), (2, 3, 2), mbp.SoftmaxCrossEntropy(), ("grads",), True),
    Sample(mbp.sequential(mbp.Embedding(2, 2), D(1, mbp.tanh)), (2, 3), SQUARES, ALL),
    # parameters used in several places: the products of their uses
    Sample(mbp.tied(CHAIN, ((0,), (1,))), (2, 2), SQUARES, ALL),
    Sample(
        mbp.tied(mbp.sequential(D(5), D(5)), ((0, "W"), (1, "W"))),
        (2, 2, 5),
        SQUARES,
        ("squared",),
    ),
    Sample(
        mbp.tied(mbp.sequential(mbp.Embedding(3, 2), D(3, bias=False)), ((0, "W"), (1, "W"))),
        (2, 2),
        mbp.SoftmaxCrossEntropy(),
        ALL,
    ),
    Sample(
        mbp.tied(
            mbp.parallel(mbp.Embedding(2, 1), mbp.Embedding(2, 1), combine="product"),
            ((0,), (1,)),
        ),
        (2, 2),
        SQUARES,
        ("squared", "gram"),
    ),
    Sample(
        mbp.stack(mbp.tied(mbp.sequential(D(2, mbp.tanh), D(2)), ((0,), (1,))), 2),
        (2, 2),
        SQUARES,
        ("grads", "squared"),
    ),
    Sample(
        mbp.tied(mbp.sequential(mbp.stack(D(2), 2), mbp.stack(D(2), 2)), ((0,), (1,))),
        (2, 2),
        SQUARES,
        ALL,
    ),
    # every other kind of layer, once with a dense one below it, which its dx reaches
    Sample(mbp.Conv(2, (2, 2), stride=(2, 1), groups=2), (2, 3, 2, 2), SQUARES, ALL),
    Sample(mbp.Conv(1, 2, dilation=2, padding=((1, 2),)), (2, 3, 2)),
    Sample(mbp.Conv(2, (2, 1), padding="VALID", bias=False), (2, 2, 2, 1)),
    Sample(mbp.sequential(D(2), mbp.ConvTranspose(1, 2, stride=2)), (2, 2, 2)),
    Sample(mbp.RNN(2), (2, 2, 2), SQUARES, ALL),
    Sample(mbp.sequential(D(2), mbp.RNN(2, masked=True, stateful=True, reverse=True)), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.LSTM(1)), (2, 2, 2)),
    Sample(mbp.LSTM(1, masked=True, reverse=True), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.GRU(1)), (2, 2, 2)),
    Sample(mbp.GRU(1, masked=True, stateful=True), (2, 2, 2)),
    Sample(mbp.LinearRecurrence(stateful=True), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.LinearRecurrence(reverse=True)), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.MultiHeadAttention(1, causal=True, rotary=10.0)), (2, 2, 2)),
    Sample(
        mbp.sequential(D(2), mbp.MultiHeadAttention(2, kv_heads=1, memory=1, masked=True)),
        (2, 2, 2),
    ),
    Sample(mbp.MultiHeadAttention(1, masked=True, soft_cap=1.5, bias=False, block=2), (2, 3, 2)),
    Sample(mbp.MultiHeadAttention(1, attention_masked=True, bias=False), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.GatedMLP(2)), (2, 2)),
    Sample(mbp.GatedMLP(1, mbp.relu), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.PositionEmbedding(3), mbp.LayerNorm()), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.PReLU(), mbp.RMSNorm()), (2, 2)),
    Sample(mbp.sequential(D(2), mbp.Scale(), mbp.GroupNorm(1)), (2, 2, 2)),
    Sample(mbp.FrozenBatchNorm(), (2, 2)),
    Sample(mbp.FrozenBatchNorm(masked=True), (2, 2, 2)),
    Sample(mbp.sequential(D(2, mbp.tanh), mbp.Dropout(0.5), D(1)), (3, 2)),
    Sample(
        mbp.sequential(
            mbp.Conv(2, (1, 1)), mbp.MaxPool((2, 2)), mbp.AvgPool((1, 1)), mbp.Flatten(), D(1)
        ),
        (2, 2, 2, 1),
    ),
    Sample(mbp.sequential(D(2), mbp.Rotary(2), mbp.LastStep(), mbp.LogSoftmax()), (2, 2, 2)),
    Sample(mbp.sequential(D(2), mbp.Softmax(), mbp.GlobalAvgPool()), (2, 2, 2, 1)),
    # combinators
    Sample(mbp.sequential(mbp.skip(D(2, mbp.tanh)), D(1)), (2, 2)),
    Sample(mbp.parallel(D(2), D(2, mbp.sigmoid), combine="product"), (2, 2)),
    Sample(mbp.parallel(D(1), D(1)), (2, 2)),
    Sample(mbp.stack(mbp.skip(D(2, mbp.tanh)), 2), (2, 2), SQUARES, ALL),
    Sample(mbp.checkpoint(mbp.sequential(D(2, mbp.tanh), D(1))), (2, 2)),
    Sample(mbp.reversible(D(1, mbp.tanh), D(1), 2), (2, 2), SQUARES, ("grads", "squared")),
    # losses with parameters
    Sample(
        D(2, mbp.tanh),
        (2, 2, 2),
        mbp.LinearCrossEntropy(
            3, bias=True, soft_cap=2.0, label_smoothing=0.125, z_loss=0.25, ignored_class=1
        ),
        ("grads", "squared"),
    ),
    # gradients alone: to squares the sign of the one layer's error makes no difference
    Sample(D(2), (3, 2), mbp.LinearCrossEntropy(2, chunk=2), ("grads",), True),
    Sample(
        mbp.sequential(mbp.Embedding(3, 2), D(2, mbp.tanh)),
        (2, 2),
        mbp.LinearCrossEntropy(3, shared=(0, "W")),
        ALL,
    ),
)


def rules() -> list[Rule]:
    """Of every sample, one for each of its signals: so the programs that are mutated are small."""
    return [rule_of(sample, signal) for sample in SAMPLES for signal in sample.signals]


def rule_of(sample: Sample, signal: str) -> Rule:
    """The rule of one signal on one network."""
    network, loss = sample.network, sample.loss

    def manual(params: Any, x: Any, y: Any, weights: Any, **taken: Any) -> Any:
        settings = {"network": network, "loss": loss, "weights": weights, **taken}
        return OURS[signal](params, x, y, **settings)

    def definition(params: Any, x: Any, y: Any, weights: Any, **taken: Any) -> Any:
        grads = gradients(network, loss, params, x, y, weights, taken)
        return OF_GRADIENTS[signal](grads, network, loss)

    return of_signal(
        f"PerExample {signal}",
        network,
        loss,
        sample.shape,
        manual,
        definition,
        exact=specs.of_layer(network).exact(network) and specs.of_loss(loss).exact(loss),
        weighted=sample.weighted,
        omitted=specs.of_loss(loss).omitted,
    )


def gradients(
    network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> Any:
    """g_i, stacked, by jax.grad."""

    def gradient(params: Any, x: Any, y: Any, weights: Any, taken: Any) -> Any:
        return jax.grad(objective(network, loss, **taken))(params, x, y, weights)

    if "key" not in network.takes:
        return one_by_one(gradient, params, x, y, weights, taken)
    found = [gradient(params, x, y, jnp.eye(len(x))[i], taken) for i in range(len(x))]
    return jax.tree.map(lambda *each: jnp.stack(each), *found)


def squared_norms(grads: Any, network: Layer, loss: Loss) -> Any:
    """‖g_i‖² of each parameter; of what is repeated, at each step."""

    def of(steps: int, grads: Any) -> Any:
        def square(each: Any) -> Any:
            return (each.reshape(*each.shape[: 1 + steps], -1) ** 2).sum(-1)

        return jax.tree.map(square, grads)

    def within(layer: Layer, grads: Any, steps: int) -> Any:
        if not isinstance(layer, Combinator) or not grads:  # nothing: tied elsewhere
            return of(steps, grads)
        steps += isinstance(layer, Stack | Reversible)
        pairs = zip(layer.children, grads, strict=True)
        return tuple(within(child, each, steps) for child, each in pairs)

    if not loss.parametric:
        return within(network, grads, 0)
    return within(network, grads[0], 0), of(0, grads[1])


def inner_products(grads: Any, network: Layer, loss: Loss) -> Any:
    """<g_i, g_j>."""
    del network, loss
    leaves = jax.tree.leaves(grads)
    rows = jnp.concatenate([each.reshape(len(each), -1) for each in leaves], axis=1)
    return rows @ rows.T


OURS = {
    "grads": mbp.per_example_grads,
    "squared": mbp.per_example_squared_norms,
    "gram": mbp.gradient_gram,
}
OF_GRADIENTS = {
    "grads": lambda grads, network, loss: grads,
    "squared": squared_norms,
    "gram": inner_products,
}
