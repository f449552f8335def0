"""Norms of each example's gradient beside autodiff, which makes the gradients first.

Autodiff maps jax.grad over the examples and takes norms; optax's way is `micro_grad`, which does it
for a part of the batch at a time, one example or sixteen. Memory is held against one plain gradient
of the whole batch.

What can be won depends on the places of an example. With one place g_i costs autodiff m times the
parameters in memory traffic, and norms from e and a cost nothing. With S places g_i takes S
products for each of its numbers, all of which a plain gradient takes too: autodiff is then within
twice a plain gradient, and what goes through the network can't be much faster than that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from optax import microbatching

import manual_bp as mbp
from benchmarks.row import MEMORY, OURS, SAME, TIME, Eager, Group, Row, Target, Way
from benchmarks.torch_ways import dense_network, tensor, torch_way
from manual_bp.layer import Layer
from verify.text import plain

ONE_GRADIENT = "one gradient"
"""A plain gradient of the whole batch by hand: what any norms come on top of."""


class Model(NamedTuple):
    """A network, its batch, and the same written out of jax.nn."""

    network: Layer
    x: jax.Array
    y: jax.Array
    logits: Callable[[Any, jax.Array], jax.Array]
    """logits(params, x) of a batch."""
    in_torch: Callable[[Any], Callable[[], Any]] | None = None
    """PyTorch's way, as `torch_way` takes it."""


def dense(widths: tuple[int, ...] = (784, 1024, 1024, 10), examples: int = 256) -> Model:
    """Dense layers with relu."""

    def logits(params: Any, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer.W.T + layer.b)
        return x @ params[-1].W.T + params[-1].b

    x = jax.random.normal(jax.random.key(0), (examples, widths[0]))
    y = _classes(examples, widths[-1])

    def in_torch(torch: Any) -> Callable[[], Any]:
        network = dense_network(torch, widths)
        params = {name: each.detach() for name, each in network.named_parameters()}

        def of_one(params: Any, x: Any, y: Any) -> Any:
            out = torch.func.functional_call(network, params, (x[None],))
            return torch.nn.functional.cross_entropy(out, y[None])

        each = torch.func.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))
        data = tensor(torch, x), tensor(torch, y).long()

        def norms() -> Any:
            grads = each(params, *data).values()
            return torch.stack([g.flatten(1).square().sum(1) for g in grads]).sum(0).sqrt()

        return norms

    return Model(mbp.mlp(widths), x, y, logits, in_torch)


def convolutional(side: int, examples: int, channels: tuple[int, ...], colours: int = 1) -> Model:
    """3 x 3 convolutions of stride 2 with relu, and a dense layer."""

    def logits(params: Any, x: jax.Array) -> jax.Array:
        for layer in params[: 2 * len(channels) : 2]:
            x = jax.lax.conv_general_dilated(
                x, layer.W, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layer.b)
        return x.reshape(len(x), -1) @ params[-1].W.T + params[-1].b

    layers = [each for c in channels for each in (mbp.Conv(c, (3, 3), stride=2), mbp.relu)]
    network = mbp.sequential(*layers, mbp.Flatten(), mbp.Dense(10))
    x = jax.random.normal(jax.random.key(0), (examples, side, side, colours))
    return Model(network, x, _classes(examples, 10), logits)


def transformer(
    context: int, width: int, examples: int, vocabulary: int, depth: int = 2, heads: int = 4
) -> Model:
    """A GPT whose head is tied to the embedding."""
    network = mbp.gpt(vocabulary, context=context, width=width, heads=heads, depth=depth)
    tokens = jax.random.randint(jax.random.key(0), (examples, context + 1), 0, vocabulary)

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return plain.gpt(params, tokens, heads=heads)

    return Model(network, tokens[:, :-1], tokens[:, 1:], logits)


def _classes(examples: int, classes: int) -> jax.Array:
    return jnp.arange(examples) % classes


def by_autodiff(model: Model) -> Callable[..., jax.Array]:
    """Norms by jax.vmap of jax.grad, all examples at once."""

    def norms(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def of_one(x: jax.Array, y: jax.Array) -> jax.Array:
            return norm(jax.grad(mean_loss)(params, model, x[None], y[None]))

        return jax.vmap(of_one)(x, y)

    return norms


def by_optax(model: Model, part: int) -> Callable[..., jax.Array]:
    """Norms by optax's `micro_grad`, so many examples at a time; the sum of gradients isn't made.

    Args:
        model: the network.
        part: how many.
    """

    def norms(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        gradients = microbatching.micro_grad(
            lambda params, x, y: mean_loss(params, model, x, y),
            batch_argnums=(1, 2),
            microbatch_size=part,
            transform_fn=lambda grads: (),
            metrics_fn=norm,
        )
        return gradients(params, x, y)[1].metrics

    return norms


def mean_loss(params: Any, model: Model, x: jax.Array, y: jax.Array) -> jax.Array:
    """Softmax cross-entropy, written out."""
    log_p = jax.nn.log_softmax(model.logits(params, x))
    return -jnp.take_along_axis(log_p, y[..., None], -1).mean()


def norm(grads: Any) -> jax.Array:
    """The length of a gradient."""
    return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(grads)))


def ways(model: Model, parts: tuple[int, ...] = (1, 16)) -> dict[str, Way | Eager]:
    """By hand, by vmap of jax.grad, by optax for parts of the batch; and one plain gradient."""
    network, x, y = model.network, model.x, model.y
    args = network.init(jax.random.key(1), x), x, y

    def ours(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mbp.per_example_norms(params, x, y, network=network)

    def gradient(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return mbp.manual_grads(params, x, y, network=network)

    found: dict[str, Way | Eager] = {
        OURS: Way(ours, args),
        SAME: Way(by_autodiff(model), args),
        **{f"micro_grad, {part} at a time": Way(by_optax(model, part), args) for part in parts},
        ONE_GRADIENT: Way(gradient, args),
    }
    return {**found, **torch_way(model.in_torch)} if model.in_torch else found


def group() -> Group:
    """The rows."""
    in_memory = Target(MEMORY, 1.2, ONE_GRADIENT)
    made: tuple[tuple[str, Callable[[], Model], tuple[Target, ...], str], ...] = (
        (
            "MLP 784-1024-1024-10 x 256",
            dense,
            (Target(TIME, 1 / 60), in_memory),
            "By itself in a process, where autodiff's arrays are on new pages of memory, this row "
            "was at 0.013; after others, whose pages it finds, at 0.044.",
        ),
        (
            "conv 64-128-256-512, 32 x 32 x 3 x 64",
            lambda: convolutional(32, 64, (64, 128, 256, 512), 3),
            (Target(TIME, 1 / 10),),
            "A network for images of CIFAR-10: features double where the side halves. Norms come "
            "from Gram matrices of at most 64 places. XLA "
            "on CPU takes 116 ms for the last layer's dx as the convolution that it is, and so "
            "does the plain gradient; ours is a product, 3 ms.",
        ),
        (
            "conv 32-64, 28 x 28 x 64",
            lambda: convolutional(28, 64, (32, 64)),
            (Target(TIME, 1 / 10),),
            "So small that g_i of the convolutions are no burden: nothing to win.",
        ),
        (
            "GPT width 512, T 32, V 8192 x 16",
            lambda: transformer(32, 512, 16, 8192),
            (Target(TIME, 1 / 10),),
            "Sentences of 32 tokens. Forward and dx are two of the three products of a plain "
            "gradient, and take ours nearly all its time; autodiff's m gradients take about twice "
            "as long to write and read as to compute. By that, about 8 tokens would make it ten "
            "times. Tried: norms by Gram matrices and by g_i; the factors of all parameters held "
            "until the end, where tying asks for those of the table alone (45 ms instead of 28 in "
            "the next row).",
        ),
        (
            "GPT width 128, T 64, V 256 x 16",
            lambda: transformer(64, 128, 16, 256),
            (Target(TIME, 1 / 10),),
            "So narrow that g_i has hardly more numbers than the activations.",
        ),
    )
    rows = tuple(
        Row(name, lambda make=make: ways(make()), targets, note=note)
        for name, make, targets, note in made
    )
    return Group("per_example", "Norms of each example's gradient", rows)
