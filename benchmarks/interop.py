"""flax and equinox models with one import changed: the memory and the time of their gradients.

Each row is the same model, with the same parameters, made of the library's own modules and of ours
(`manual_bp.interop.flax`, `manual_bp.interop.equinox`), both under jax.value_and_grad.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import manual_bp.interop.equinox as ours_for_equinox
import manual_bp.interop.flax as ours_for_flax
from benchmarks.row import IDIOMATIC, MEMORY, OURS, TIME, Eager, Group, Row, Target, Way
from manual_bp.interop.functions import linear_cross_entropy


class Pair(NamedTuple):
    """A scalar function of params and data: of stock modules, and of ours."""

    stock: Callable[..., jax.Array]
    ours: Callable[..., jax.Array]
    args: tuple[Any, ...]


class Block(nnx.Module):
    """A pre-norm GPT block as one writes it in flax, of any library with flax's names."""

    def __init__(self, of: Any, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1, self.norm2 = of.LayerNorm(width, rngs=rngs), of.LayerNorm(width, rngs=rngs)
        self.attention = of.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.up = of.Linear(width, 4 * width, rngs=rngs)
        self.down = of.Linear(4 * width, width, rngs=rngs)
        self.gelu = of.gelu

    def __call__(self, x: jax.Array) -> jax.Array:
        """x (m, T, width) -> the same shape."""
        x = x + self.attention(self.norm1(x), is_causal=True)
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class GPT(nnx.Module):
    """Tokens to features: the head is the loss's."""

    def __init__(self, of: Any, vocabulary: int, width: int, heads: int, rngs: nnx.Rngs):
        self.tokens = of.Embed(vocabulary, width, rngs=rngs)
        self.blocks = nnx.List([Block(of, width, heads, rngs) for _ in range(2)])
        self.norm = of.LayerNorm(width, rngs=rngs)
        self.head = of.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Tokens (m, T) -> features (m, T, width)."""
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def gpt_loss(of: Any, model: GPT, tokens: jax.Array) -> jax.Array:
    """The mean cross-entropy of each next token: of logits, or with our head without them."""
    h, labels = model(tokens[:, :-1]), tokens[:, 1:]
    if of is ours_for_flax:
        return linear_cross_entropy(h, model.head.kernel[...], labels, class_axis=1)
    return optax.softmax_cross_entropy_with_integer_labels(model.head(h), labels).mean()


def of_flax(of: Any, make: Callable[[Any], Any], loss: Callable[..., jax.Array]) -> Any:
    """(loss of (params, *data), params) of a flax model."""
    graph, params = nnx.split(make(of))
    return lambda params, *data: loss(of, nnx.merge(graph, params), *data), params


def flax_pair(make: Callable[[Any], Any], loss: Callable[..., Any], *data: Any) -> Pair:
    """A flax model, stock and ours; both have the same state, so that one serves both."""
    stock, params = of_flax(nnx, make, loss)
    ours, _ = of_flax(ours_for_flax, make, loss)
    return Pair(stock, ours, (params, *data))


def head(predictions: int = 1024, classes: int = 32_768, features: int = 256) -> Pair:
    """A linear head and its cross-entropy."""

    def make(of: Any) -> Any:
        return of.Linear(features, classes, use_bias=False, rngs=nnx.Rngs(0))

    def loss(of: Any, model: Any, h: jax.Array, labels: jax.Array) -> jax.Array:
        if of is ours_for_flax:
            return linear_cross_entropy(h, model.kernel[...], labels, class_axis=1)
        return optax.softmax_cross_entropy_with_integer_labels(model(h), labels).mean()

    rng = np.random.default_rng(0)
    h = jnp.asarray(rng.normal(size=(predictions, features)), jnp.float32)
    labels = jnp.asarray(rng.integers(classes, size=predictions))
    return flax_pair(make, loss, h, labels)


def block(steps: int = 2048, width: int = 256, heads: int = 4) -> Pair:
    """A GPT block over a long sequence."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, steps, width)), jnp.float32)
    return flax_pair(
        lambda of: Block(of, width, heads, nnx.Rngs(0)),
        lambda of, model, x: jnp.square(model(x)).mean(),
        x,
    )


def rnn(steps: int = 128, examples: int = 4, width: int = 512) -> Pair:
    """An LSTM cell run over a sequence."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(examples, steps, width)), jnp.float32)
    zeros = jnp.zeros((examples, width))

    def loss(of: Any, model: Any, x: jax.Array) -> jax.Array:
        return jnp.square(model(x, initial_carry=(zeros, zeros))).mean()

    return flax_pair(
        lambda of: of.RNN(of.OptimizedLSTMCell(width, width, rngs=nnx.Rngs(0)), rngs=False),
        loss,
        x,
    )


def equinox_block(steps: int = 2048, width: int = 256, heads: int = 4) -> Pair:
    """Attention between a norm and an MLP in equinox, mapped over positions and examples."""

    def make(of: Any) -> Any:
        key = jax.random.key(0)
        attention = of.MultiheadAttention(heads, width, key=key)
        return of.LayerNorm(width), attention, of.MLP(width, width, 4 * width, 1, key=key)

    def loss_of(of: Any) -> Callable[..., jax.Array]:
        _, static = eqx.partition(make(of), eqx.is_inexact_array)
        structure = jax.tree.structure(static, is_leaf=lambda leaf: leaf is None)

        def loss(leaves: Any, X: jax.Array, mask: jax.Array) -> jax.Array:
            norm, attention, mlp = eqx.combine(jax.tree.unflatten(structure, leaves), static)

            def one(x: jax.Array) -> jax.Array:
                h = jax.vmap(norm)(x)
                h = x + attention(h, h, h, mask)
                return h + jax.vmap(mlp)(h)

            return jnp.square(jax.vmap(one)(X)).mean()

        return loss

    arrays, _ = eqx.partition(make(eqx.nn), eqx.is_inexact_array)
    leaves = jax.tree.leaves(arrays, is_leaf=lambda leaf: leaf is None)
    X = jnp.asarray(np.random.default_rng(0).normal(size=(1, steps, width)), jnp.float32)
    mask = jnp.tril(jnp.ones((steps, steps), bool))
    return Pair(loss_of(eqx.nn), loss_of(ours_for_equinox), (leaves, X, mask))


def ways(pair: Pair) -> dict[str, Way | Eager]:
    """jax.value_and_grad of the model with our modules, and with the library's own."""
    return {
        OURS: Way(jax.value_and_grad(pair.ours), pair.args),
        IDIOMATIC: Way(jax.value_and_grad(pair.stock), pair.args),
    }


def group() -> Group:
    """The rows."""
    made: tuple[tuple[str, Callable[[], Pair], float | None], ...] = (
        ("flax head, 1024 x 32768, 256 features", head, 0.1),
        ("flax GPT block, T 2048", block, 0.5),
        ("equinox block, T 2048", equinox_block, 0.5),
        ("flax LSTM, T 128 x 4, 512 units", rnn, 0.8),
        ("flax LSTM, T 256 x 32, 256 units", lambda: rnn(256, 32, 256), None),
    )
    rows = []
    for name, make, memory in made:
        targets = (
            ()
            if memory is None
            else (
                Target(TIME, 1.05, IDIOMATIC),
                Target(MEMORY, memory, IDIOMATIC),
            )
        )
        against = f"the same model of {name.split()[0]}'s own modules"
        rows.append(Row(name, lambda make=make: ways(make()), targets, against_idiomatic=against))
    note = (
        "The head's time is that of `linear_cross_entropy` beside optax, where its row says what "
        "was tried."
    )
    title = "flax and equinox models with one import changed"
    return Group("interop", title, tuple(rows), note=note)
