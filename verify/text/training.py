"""Learning to predict the next character: batches, steps by hand and by jax.grad, sampling.

Everything that is random follows from the seed and the number of the step: a training that goes on
from a checkpoint sees the batches that it would have seen.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import manual_bp as mbp
from manual_bp.layer import Layer
from verify.curves import Curves, Step, follow, neighbour
from verify.text import plain
from verify.text.corpus import Corpus


@dataclass(frozen=True)
class Settings:
    """All that a training depends on beside the text."""

    model: str
    """gpt or char_lstm."""
    steps: int
    batch: int
    context: int
    """Characters in each row of a batch."""
    width: int
    depth: int
    heads: int = 0
    """Of attention; 0 where there is none."""
    rate: float = 1e-3
    """Of adamw, at its largest."""
    warmup: int = 100
    """Steps until then; from there it goes down to a tenth of it along a cosine."""
    weight_decay: float = 0.1
    """Of matrices."""
    clip: float = 1.0
    """The gradient's norm, at most."""
    seed: int = 0
    evaluate_every: int = 125
    save_every: int = 250

    def __post_init__(self) -> None:
        if self.model not in ("gpt", "char_lstm"):
            raise ValueError(f"model must be 'gpt' or 'char_lstm', got {self.model!r}.")
        positive = ("steps", "batch", "context", "width", "depth", "evaluate_every", "save_every")
        least = {**dict.fromkeys(positive, 1), "heads": int(self.model == "gpt")}
        for name, low in {**least, "warmup": 0, "seed": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ValueError(f"{name} must be an int from {low} on, got {value!r}.")
        for name, low in {
            "rate": "above 0",
            "clip": "above 0",
            "weight_decay": "from 0 on",
        }.items():
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not (0 <= value < float("inf")) or (low == "above 0" and value == 0):
                raise ValueError(f"{name} must be a finite number {low}, got {value!r}.")

    def network(self, vocabulary: int) -> Layer:
        """The model."""
        if self.model == "gpt":
            return mbp.gpt(
                vocabulary,
                context=self.context,
                width=self.width,
                heads=self.heads,
                depth=self.depth,
            )
        return mbp.char_lstm(vocabulary, width=self.width, depth=self.depth)

    def optimizer(self) -> optax.GradientTransformation:
        """Adamw below a bound on the gradient's norm, with warm-up and a cosine."""
        rate = optax.warmup_cosine_decay_schedule(
            0, self.rate, min(self.warmup, self.steps - 1), self.steps, self.rate / 10
        )

        def matrices(params: Any) -> Any:
            return jax.tree_util.tree_map_with_path(
                lambda path, _: jax.tree_util.keystr(path[-1:], simple=True)[0] in "WUP", params
            )

        return optax.chain(
            optax.clip_by_global_norm(self.clip),
            optax.adamw(rate, b2=0.99, weight_decay=self.weight_decay, mask=matrices),
        )


class Carry(NamedTuple):
    """What a step hands on to the next."""

    params: Any
    optimizer: Any
    state: Any
    """Of a recurrent network, where the text before ended; () otherwise."""


class Batch(NamedTuple):
    """Rows of text."""

    tokens: np.ndarray
    """(batch, context + 1): inputs and, one further, targets."""
    fresh: bool
    """Whether the rows don't go on where those of the batch before ended."""


def batch_at(settings: Settings, tokens: np.ndarray, number: int) -> Batch:
    """The batch of this number.

    For a GPT windows anywhere in the text. For a recurrent network rows that go on where those of
    the batch before ended: the text, from a random place on and round, is cut into as many pieces
    as there are rows, and each row reads its own.
    """
    rows, length = settings.batch, settings.context
    if settings.model == "gpt":
        rng = np.random.default_rng((settings.seed, number))
        starts = rng.integers(len(tokens) - length, size=rows)
        return Batch(tokens[starts[:, None] + np.arange(length + 1)], True)
    piece = len(tokens) // rows
    turn, place = divmod(number, (piece - 1) // length)
    first = np.random.default_rng((settings.seed, turn)).integers(len(tokens))
    starts = first + np.arange(rows) * piece + place * length
    return Batch(tokens[(starts[:, None] + np.arange(length + 1)) % len(tokens)], place == 0)


def zero_state(network: Layer, params: Any, rows: int) -> Any:
    """The state before the first character, () of a network that has none."""
    if "state" not in network.takes:
        return ()

    def final(params: Any, tokens: jax.Array) -> Any:
        return network.observe(network.forward(params, tokens, state=None)[1])

    shapes = jax.eval_shape(final, params, jax.ShapeDtypeStruct((rows, 1), jnp.int32))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def begin(settings: Settings, network: Layer, params: Any) -> Carry:
    """What the first step starts from; a copy, since steps donate."""

    @jax.jit  # one small program instead of one for each array
    def made(params: Any) -> Carry:
        state = zero_state(network, params, settings.batch)
        return Carry(params, settings.optimizer().init(params), state)

    return made(params)


def manual_step(settings: Settings, network: Layer) -> Step:
    """A step of the training with hand-derived gradients, compiled as a whole."""
    optimizer = settings.optimizer()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Carry, tokens: jax.Array, fresh: jax.Array) -> tuple[Carry, jax.Array]:
        params, memory, state = carry
        x, y = tokens[:, :-1], tokens[:, 1:]
        taken = {"state": _unless(fresh, state)} if "state" in network.takes else {}
        sweep = mbp.manual_pass(params, x, y, network=network, **taken)
        updates, memory = optimizer.update(sweep.grads, memory, params)
        params = optax.apply_updates(params, updates)
        return Carry(params, memory, sweep.observed if taken else ()), sweep.loss

    return step


def autodiff_step(settings: Settings, network: Layer) -> Step:
    """The same step by jax.grad of the same model in plain jnp."""
    optimizer = settings.optimizer()

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Carry, tokens: jax.Array, fresh: jax.Array) -> tuple[Carry, jax.Array]:
        params, memory, state = carry
        x, y = tokens[:, :-1], tokens[:, 1:]

        def objective(params: Any) -> tuple[jax.Array, Any]:
            if "state" in network.takes:
                logits, after = plain.char_lstm(params, x, _unless(fresh, state))
            else:
                logits, after = plain.gpt(params, x, heads=settings.heads), ()
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), after

        (loss, state), grads = jax.value_and_grad(objective, has_aux=True)(params)
        updates, memory = optimizer.update(grads, memory, params)
        return Carry(optax.apply_updates(params, updates), memory, state), loss

    return step


def _unless(fresh: jax.Array, state: Any) -> Any:
    return jax.tree.map(lambda leaf: jnp.where(fresh, 0, leaf), state)


def draw(settings: Settings, network: Layer) -> Any:
    """The parameters that training begins with."""
    like = jax.ShapeDtypeStruct((settings.batch, settings.context), jnp.int32)
    return jax.jit(lambda key: network.init(key, like))(jax.random.key(settings.seed))


def compare(
    settings: Settings,
    corpus: Corpus,
    steps: int,
    dtype: Any = np.float32,
    advance: Callable[[], None] = lambda: None,
) -> Curves:
    """The first losses by hand beside those by jax.grad, from the same parameters.

    Args:
        settings: of the training whose first steps these are.
        corpus: the text.
        steps: how many.
        dtype: of parameters; float64 needs jax.enable_x64.
        advance: called after each step.
    """
    network = settings.network(len(corpus.vocabulary))
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), draw(settings, network))
    curves, _, _ = follow(
        manual_step(settings, network),
        autodiff_step(settings, network),
        functools.partial(begin, settings, network),
        params,
        (batch_at(settings, corpus.training, number) for number in range(steps)),
        compared=steps,
        rng=np.random.default_rng(settings.seed),
        vary=_vary,
        advance=advance,
    )
    return curves


def _vary(number: int, rng: np.random.Generator, carry: Carry, batch: Any) -> tuple[Carry, Any]:
    """The parameters moved by a rounding; the rows in an order that is the neighbour's own.

    Always the same one, so that the rows of a recurrent network's state go with them.
    """
    tokens, fresh = batch
    order = np.random.default_rng(number).permutation(len(tokens))
    return carry._replace(params=neighbour(carry.params, rng)), (tokens[order], fresh)


@functools.partial(jax.jit, static_argnames="network")
def _losses(params: Any, tokens: jax.Array, state: Any, *, network: Layer) -> Any:
    """The sum of the losses of a batch, and the state after it."""
    x, y = tokens[:, :-1], tokens[:, 1:]
    logits, state = _read(network, params, x, state)
    return mbp.SoftmaxCrossEntropy().value(logits, y).sum(), state


def _read(network: Layer, params: Any, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    """Logits, and the state after these tokens."""
    taken = {"state": state} if "state" in network.takes else {}
    logits, residuals = network.forward(params, tokens, **taken)
    return logits, network.observe(residuals) if taken else ()


def validate(settings: Settings, network: Layer, params: Any, tokens: np.ndarray) -> float:
    """The mean loss of each character, in nats.

    A GPT sees the text in pieces as long as its context, so that the first characters of each are
    predicted from few; a recurrent network reads it as it trains, in as many rows at most.
    """
    network, length = network.inference(), settings.context
    rows = min(settings.batch, (len(tokens) - 1) // length)  # a short text has fewer
    state, total = zero_state(network, params, rows), jnp.zeros(())
    pieces = (len(tokens) - 1) // length // rows
    starts = np.arange(rows * pieces).reshape(rows, pieces) * length
    for first in starts.T:
        batch = tokens[first[:, None] + np.arange(length + 1)]
        loss, state = _losses(params, batch, state, network=network)
        total += loss
    return float(total) / (rows * pieces * length)


def sample(
    settings: Settings,
    network: Layer,
    params: Any,
    corpus: Corpus,
    key: jax.Array,
    *,
    prompt: str = "The ",
    length: int = 600,
    temperature: float = 0.8,
) -> str:
    """Text that goes on from a prompt, each character drawn from softmax(logits / temperature).

    A GPT reads the last `context` characters anew for each; a recurrent network hands on its state.
    """
    given = jnp.asarray(corpus.encode(prompt))[-settings.context :]
    write = _slide if settings.model == "gpt" else _hand_on
    drawn = write(
        params, given, key, temperature, settings.context, length, network=network.inference()
    )
    return prompt + corpus.decode(drawn)


@functools.partial(jax.jit, static_argnums=(4, 5), static_argnames="network")
def _slide(
    params: Any,
    given: jax.Array,
    key: jax.Array,
    temperature: Any,
    context: int,
    length: int,
    *,
    network: Layer,
) -> jax.Array:
    window = jnp.zeros(context, given.dtype).at[: len(given)].set(given)

    def step(carry: Any, key: jax.Array) -> Any:
        window, filled = carry  # what comes after `filled` is not read: attention is causal
        logits, _ = network.forward(params, window[None])
        token = jax.random.categorical(key, logits[0, filled - 1] / temperature)
        token = token.astype(window.dtype)
        longer = window.at[filled % context].set(token)
        moved = jnp.roll(window, -1).at[-1].set(token)
        full = filled == context
        return (jnp.where(full, moved, longer), jnp.minimum(filled + 1, context)), token

    return jax.lax.scan(step, (window, len(given)), jax.random.split(key, length))[1]


@functools.partial(jax.jit, static_argnums=(4, 5), static_argnames="network")
def _hand_on(
    params: Any,
    given: jax.Array,
    key: jax.Array,
    temperature: Any,
    context: int,
    length: int,
    *,
    network: Layer,
) -> jax.Array:
    del context
    logits, state = _read(network, params, given[None], None)

    def step(carry: Any, key: jax.Array) -> Any:
        logits, state = carry
        token = jax.random.categorical(key, logits / temperature).astype(given.dtype)
        logits, state = _read(network, params, token[None, None], state)
        return (logits[0, -1], state), token

    return jax.lax.scan(step, (logits[0, -1], state), jax.random.split(key, length))[1]


class History(NamedTuple):
    """What is known of a training, NaN for what is to come."""

    losses: np.ndarray
    """(steps,)."""
    validation: np.ndarray
    """(evaluations,)."""
    at_validation: np.ndarray
    """(evaluations,): the seconds that training had taken by then."""
    seconds: np.ndarray
    """That it has taken so far, a scalar."""


class Progress(NamedTuple):
    """Where a training stands: step is the number of the next one."""

    step: int
    carry: Carry
    history: History


def start(settings: Settings, network: Layer) -> Progress:
    """A training before its first step."""
    carry = begin(settings, network, draw(settings, network))
    evaluations = -(-settings.steps // settings.evaluate_every)
    losses, validation = (np.full(count, np.nan) for count in (settings.steps, evaluations))
    history = History(losses, validation, validation.copy(), np.zeros(()))
    return Progress(0, carry, history)


def train(
    settings: Settings, corpus: Corpus, network: Layer, progress: Progress
) -> Iterator[Progress]:
    """Go on from there: yields after each step.

    The validation loss is taken every `evaluate_every` steps and at the end.
    """
    step = manual_step(settings, network)
    first, carry, history = progress
    before = time.perf_counter() - float(history.seconds)
    for number in range(first, settings.steps):
        carry, loss = step(carry, *batch_at(settings, corpus.training, number))
        history.losses[number] = float(loss)
        done = number + 1
        if done % settings.evaluate_every == 0 or done == settings.steps:
            place = -(-done // settings.evaluate_every) - 1
            history.validation[place] = validate(settings, network, carry.params, corpus.validation)
            history.at_validation[place] = time.perf_counter() - before
        history.seconds[...] = time.perf_counter() - before
        yield Progress(done, carry, history)


def evaluated_at(settings: Settings) -> list[int]:
    """After how many steps the validation losses are taken."""
    every = settings.evaluate_every
    return [min(number, settings.steps) for number in range(every, settings.steps + every, every)]


TASKS = {
    "gpt": Settings(
        "gpt", steps=2500, batch=16, context=128, width=128, depth=2, heads=4, rate=2e-3
    ),
    "char_lstm": Settings(
        "char_lstm", steps=2000, batch=32, context=64, width=256, depth=1, rate=3e-3
    ),
}
"""The trainings whose results the notebook reads."""
TINY = {
    "gpt": replace(
        TASKS["gpt"], steps=30, rate=1e-2, batch=4, context=8, width=8, heads=2, warmup=2
    ),
    "char_lstm": replace(
        TASKS["char_lstm"], steps=30, rate=1e-2, batch=4, context=6, width=8, warmup=2
    ),
}
"""The same, small enough for seconds."""
