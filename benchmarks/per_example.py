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
from benchmarks.measuring import Row, compiled, seconds_in_turn
from manual_bp.layer import Layer
from verify.text import plain

MEBIBYTE = 2**20


class Model(NamedTuple):
    """A network, its batch, and the same written out of jax.nn."""

    name: str
    network: Layer
    x: jax.Array
    y: jax.Array
    logits: Callable[[Any, jax.Array], jax.Array]
    """logits(params, x) of a batch."""
    target: float | None = None
    """The ratio of times that is aimed at, beside autodiff with all examples at once."""
    memory: float | None = None
    """That of memory, beside one plain gradient."""
    parts: tuple[int | None, ...] = (None, 1, 16)
    """Examples at a time in `micro_grad`; None for all at once, which is its default."""


def dense(widths: tuple[int, ...] = (784, 1024, 1024, 10), examples: int = 256) -> Model:
    """Dense layers with relu."""

    def logits(params: Any, x: jax.Array) -> jax.Array:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer.W.T + layer.b)
        return x @ params[-1].W.T + params[-1].b

    x = jax.random.normal(jax.random.key(0), (examples, widths[0]))
    name = f"MLP {'-'.join(map(str, widths))}, batch {examples}"
    return Model(name, mbp.mlp(widths), x, _classes(examples, widths[-1]), logits, 1 / 50, 1.2)


def convolutional(side: int = 28, examples: int = 64, wide: int = 32) -> Model:
    """Two convolutions with relu and a dense layer."""

    def logits(params: Any, x: jax.Array) -> jax.Array:
        for layer in (params[0], params[2]):
            x = jax.lax.conv_general_dilated(
                x, layer.W, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jax.nn.relu(x + layer.b)
        return x.reshape(len(x), -1) @ params[-1].W.T + params[-1].b

    network = mbp.sequential(
        mbp.Conv(wide, (3, 3), stride=2),
        mbp.relu,
        mbp.Conv(2 * wide, (3, 3), stride=2),
        mbp.relu,
        mbp.Flatten(),
        mbp.Dense(10),
    )
    x = jax.random.normal(jax.random.key(0), (examples, side, side, 1))
    name = f"conv {wide}-{2 * wide}, {side} x {side}, batch {examples}"
    return Model(name, network, x, _classes(examples, 10), logits)


def transformer(
    context: int = 64, width: int = 128, examples: int = 16, vocabulary: int = 256
) -> Model:
    """A GPT of two blocks, whose head is tied to the embedding."""
    heads = 4
    network = mbp.gpt(vocabulary, context=context, width=width, heads=heads, depth=2)
    tokens = jax.random.randint(jax.random.key(0), (examples, context + 1), 0, vocabulary)

    def logits(params: Any, tokens: jax.Array) -> jax.Array:
        return plain.gpt(params, tokens, heads=heads)

    name = f"GPT, width {width}, context {context}, batch {examples}"
    return Model(name, network, tokens[:, :-1], tokens[:, 1:], logits)


def _classes(examples: int, classes: int) -> jax.Array:
    return jnp.arange(examples) % classes


def by_autodiff(model: Model) -> Callable[..., jax.Array]:
    """Norms by jax.vmap of jax.grad."""

    def norms(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        def of_one(x: jax.Array, y: jax.Array) -> jax.Array:
            return norm(jax.grad(mean_loss)(params, model, x[None], y[None]))

        return jax.vmap(of_one)(x, y)

    return norms


def by_optax(model: Model, part: int | None) -> Callable[..., jax.Array]:
    """Norms by optax's `micro_grad`, so many examples at a time; the sum of gradients isn't made.

    Args:
        model: the network.
        part: how many; None for its default, all.
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


def rows_of(model: Model, rounds: int) -> list[Row]:
    """Times and memory of one network."""
    network, x, y = model.network, model.x, model.y
    params = network.init(jax.random.key(1), x)

    def ours(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        return mbp.per_example_norms(params, x, y, network=network)

    def gradient(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return mbp.manual_grads(params, x, y, network=network)

    others = {"vmap of jax.grad": (by_autodiff(model), True)}
    for part in model.parts:
        size = "all" if part is None else str(part)
        others[f"optax's micro_grad, {size} at a time"] = by_optax(model, part), part is None
    functions = [ours, gradient, *(each for each, _ in others.values())]
    programs = [compiled(function, params, x, y) for function in functions]
    runs = [lambda program=program: program(params, x, y) for program in programs]
    ours_takes, plain_takes, *theirs = seconds_in_turn(rounds, *runs)
    of_norms, of_gradient = (
        program.memory_analysis().temp_size_in_bytes / MEBIBYTE for program in programs[:2]
    )
    rows = [
        Row(
            f"time over {name}", model.name, ours_takes, takes, "s", model.target if every else None
        )
        for (name, (_, every)), takes in zip(others.items(), theirs, strict=True)
    ]
    return [
        *rows,
        Row("time over one plain gradient", model.name, ours_takes, plain_takes, "s"),
        Row(
            "temporary memory over one plain gradient",
            model.name,
            of_norms,
            of_gradient,
            "MiB",
            model.memory,
        ),
    ]


MODELS = (dense, convolutional, transformer)


def measure(models: tuple[Callable[[], Model], ...] = MODELS, rounds: int = 7) -> list[Row]:
    """All rows.

    Args:
        models: what to measure.
        rounds: how many times to measure each time.
    """
    return [row for model in models for row in rows_of(model(), rounds)]
