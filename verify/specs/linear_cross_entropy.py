"""Spec of LinearCrossEntropy: a linear layer and optax's cross-entropy, with all logits at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax

import manual_bp as mbp
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy, Params
from verify.specification import BadInput, LossSpec, Shape


def reference(
    loss: LinearCrossEntropy, h: jax.Array, target: jax.Array, params: Params
) -> jax.Array:
    """The plain composition: logits, optax's cross-entropy, and ζ (log Z)², 0 where ignored."""
    z = h @ params.W.T
    if loss.bias:
        z = z + params.b
    if loss.soft_cap is not None:
        z = loss.soft_cap * jnp.tanh(z / loss.soft_cap)
    y = jax.nn.one_hot(target, loss.classes, dtype=z.dtype)
    if loss.label_smoothing:
        y = optax.smooth_labels(y, jnp.asarray(loss.label_smoothing, z.dtype))
    values = optax.softmax_cross_entropy(z, y)
    if loss.z_loss:
        values = values + loss.z_loss * jax.nn.logsumexp(z, axis=-1) ** 2
    mask = counts(loss, target)
    return values if mask is None else jnp.where(mask, values, 0)


def counts(loss: LinearCrossEntropy, target: Any) -> Any:
    """Which predictions count."""
    return None if loss.ignored_class is None else jnp.not_equal(target, loss.ignored_class)


def naive(
    loss: LinearCrossEntropy, h: np.ndarray, target: np.ndarray, params: Params
) -> np.ndarray:
    """log Σ e^z - Σ y z + ζ (log Σ e^z)², row by row."""
    values = []
    for row, goal in zip(h.reshape(-1, h.shape[-1]), target.reshape(-1), strict=True):
        if goal == loss.ignored_class:
            values.append(mp.mpf(0))
            continue
        z = [sum(w * each for w, each in zip(weights, row, strict=True)) for weights in params.W]
        if loss.bias:
            z = [logit + b for logit, b in zip(z, params.b, strict=True)]
        if loss.soft_cap is not None:
            z = [loss.soft_cap * mp.tanh(logit / loss.soft_cap) for logit in z]
        log_sum = mp.log(sum(mp.exp(logit) for logit in z))
        share = mp.mpf(loss.label_smoothing)
        chosen = (1 - share) * z[goal] + share * sum(z) / len(z)
        values.append(log_sum - chosen + loss.z_loss * log_sum**2)
    return np.array(values).reshape(target.shape)


def target(rng: np.random.Generator, loss: LinearCrossEntropy, shape: Shape) -> np.ndarray:
    """Classes, about a third of them ignored where one is."""
    classes = rng.integers(0, loss.classes, size=shape[:-1])
    if loss.ignored_class is None:
        return classes
    return np.where(rng.random(shape[:-1]) < 0.3, loss.ignored_class, classes)


def draw(rng: np.random.Generator) -> LinearCrossEntropy:
    """Any of its settings, and chunks of any size."""
    return LinearCrossEntropy(
        int(rng.integers(1, 8)),
        chunk=[None, 1, 2, 3, 5][rng.integers(5)],
        soft_cap=[None, None, 1.5][rng.integers(3)],
        label_smoothing=float(rng.choice([0.0, 0.0, 0.25])),
        ignored_class=[None, None, -1, 0][rng.integers(4)],
        z_loss=float(rng.choice([0.0, 0.0, 0.125])),
        bias=bool(rng.random() < 0.5),
    )


def borrow(loss: LinearCrossEntropy, params: Any) -> Any:
    """W at the end of its path."""
    if loss.shared is None:
        return ()
    for step in loss.shared:
        params = params[step] if isinstance(step, int) else params._asdict()[step]
    return Params(params, ())


def _run(
    loss: LinearCrossEntropy,
    params: Any = None,
    h: Any = None,
    y: Any = None,
    *,
    network: Any = None,
) -> Any:
    """A call of the engine on features (4, 3), with the loss's own params."""
    network = network or mbp.sequential(mbp.Dense(3))
    h = jnp.ones((4, 3)) if h is None else h
    y = np.zeros(4, int) if y is None else y
    own = network.init(jax.random.key(0), h)
    params = own if loss.shared is not None else (own, params)
    return lambda: mbp.manual_grads(params, h, y, network=network, loss=loss)


def _shared(network: Any, loss: LinearCrossEntropy, *halves: Any) -> Any:
    """A call of the engine on tokens or features, with `halves` beside the network's params."""
    tokens = network is not TWO
    x = np.zeros((2, 3), int) if tokens else jnp.ones((2, 4))
    own = network.init(jax.random.key(0), x)
    y = np.zeros((2, 3) if tokens else 2, int)
    params = (own, *halves) if halves else own
    return mbp.manual_grads(params, x, y, network=network, loss=loss)


BODY = mbp.sequential(mbp.Embedding(5, 3), mbp.tanh)
HEAD = mbp.sequential(mbp.Embedding(5, 3), mbp.Dense(5))
GPT = mbp.gpt(5, context=3, width=4, heads=1)
TWO = mbp.sequential(mbp.Dense(4), mbp.Dense(3))
FIVE = LinearCrossEntropy(5)
W = jnp.ones((5, 3))

SPECS = (
    LossSpec(
        loss=LinearCrossEntropy,
        samples=(
            # So many classes that blocks hold two. The last block overlaps the one
            # before, and the last chunk too.
            LinearCrossEntropy(
                19,
                chunk=3,
                soft_cap=2.0,
                label_smoothing=0.25,
                ignored_class=-1,
                z_loss=0.125,
                bias=True,
            ),
            LinearCrossEntropy(4, chunk=2),
            LinearCrossEntropy(3, chunk=2, z_loss=0.125, ignored_class=0),
        ),
        shapes=((5, 4), (2, 4, 2)),
        reference=reference,
        naive=naive,
        target=target,
        draw=draw,
        counts=counts,
        borrow=borrow,
        errors=(
            BadInput(
                "params that are no pair",
                lambda: mbp.manual_grads(
                    [Params(W, ())], jnp.ones((4, 3)), np.zeros(4, int), loss=FIVE
                ),
                TypeError,
                ("LinearCrossEntropy(5) has parameters", "the pair (network's, loss's)", "list"),
            ),
            BadInput(
                "params of a network of two layers, and no pair",
                lambda: mbp.manual_grads(
                    TWO.init(jax.random.key(0), jnp.ones((4, 3))),
                    jnp.ones((4, 3)),
                    np.zeros(4, int),
                    network=TWO,
                    loss=FIVE,
                ),
                TypeError,
                ("LinearCrossEntropy(5) has parameters", "the pair (network's, loss's)", "2"),
            ),
            BadInput(
                "an array in place of the loss's params",
                _run(FIVE, W),
                TypeError,
                ("LinearCrossEntropy(5)", "fields W and b", "loss.init"),
            ),
            BadInput(
                "W transposed",
                _run(FIVE, Params(W.T, ())),
                ValueError,
                ("LinearCrossEntropy(5)", "W has shape (3, 5)", "expected (5, 3)", "W.T would fit"),
            ),
            BadInput(
                "W of other features",
                _run(FIVE, Params(jnp.ones((5, 4)), ())),
                ValueError,
                ("W has shape (5, 4)", "expected (5, 3)", "a row for each class"),
            ),
            BadInput(
                "W of integers",
                _run(FIVE, Params(jnp.ones((5, 3), int), ())),
                TypeError,
                ("W must be a floating-point array", "int32"),
            ),
            BadInput(
                "a bias that isn't used",
                _run(FIVE, Params(W, jnp.ones(5))),
                ValueError,
                ("LinearCrossEntropy(5)", "b", "bias=True"),
            ),
            BadInput(
                "a bias of shape (1,)",
                _run(LinearCrossEntropy(5, bias=True), Params(W, jnp.ones(1))),
                ValueError,
                ("bias=True", "b has shape (1,)", "expected (5,)"),
            ),
            BadInput(
                "no bias where one is due",
                _run(LinearCrossEntropy(5, bias=True), Params(W, ())),
                ValueError,
                ("b has shape ()", "expected (5,)"),
            ),
            BadInput(
                "a class that is no row of W",
                _run(FIVE, Params(W, ()), y=np.array([0, 1, 5, 2])),
                ValueError,
                ("class 5 of target [2]", "5 classes 0 to 4", "ignored_class"),
            ),
            BadInput(
                "a class below 0",
                _run(
                    LinearCrossEntropy(5, ignored_class=-1),
                    Params(W, ()),
                    y=np.array([-1, -2, 0, 0]),
                ),
                ValueError,
                ("class -2 of target [1]", "5 classes 0 to 4"),
            ),
            BadInput(
                "one-hot labels",
                _run(FIVE, Params(W, ()), y=np.eye(5)[:4]),
                ValueError,
                (
                    "LinearCrossEntropy(5)",
                    "shape (4, 5)",
                    "integer classes of shape (4,)",
                    "y.argmax(-1)",
                ),
            ),
            BadInput(
                "floating-point classes",
                _run(FIVE, Params(W, ()), y=np.zeros(4)),
                TypeError,
                ("LinearCrossEntropy(5)", "must be integers", "y.astype(int)"),
            ),
            BadInput(
                "a shared W where there is none",
                _run(LinearCrossEntropy(5, shared=(1, "W"))),
                ValueError,
                ("shared=(1, 'W')", "nothing at (1, 'W') of the network's params", "no 1"),
            ),
            BadInput(
                "a shared W of another field",
                _run(LinearCrossEntropy(5, shared=(0, "V"))),
                ValueError,
                ("nothing at (0, 'V')", "Params with fields W, b", "no 'V'"),
            ),
            BadInput(
                "a shared W of another shape",
                _run(LinearCrossEntropy(5, shared=(0, "W"))),
                ValueError,
                ("W, the network's params at (0, 'W'),", "shape (3, 3)", "expected (5, 3)"),
            ),
            BadInput(
                "a shared layer in place of its W",
                _run(LinearCrossEntropy(3, shared=(0,))),
                TypeError,
                ("the network's params at (0,),", "floating-point array", "Params"),
            ),
            BadInput(
                "a pair where W is shared",
                lambda: _shared(TWO, LinearCrossEntropy(4, shared=(0, "W")), ()),
                TypeError,
                (
                    "LinearCrossEntropy(4, shared=(0, 'W')) has no parameters of its own",
                    "must be the network's alone",
                    "got a pair (network's, loss's)",
                    "params[0]",
                ),
            ),
            BadInput(
                "a pair where W is shared, as the loss would have it without",
                lambda: _shared(BODY, LinearCrossEntropy(5, shared=(0, "W")), Params(W, ())),
                TypeError,
                ("has no parameters of its own", "got a pair", "params[0]"),
            ),
            BadInput(
                "a shared W of a network with a tied head",
                lambda: _shared(GPT, LinearCrossEntropy(5, shared=(0, "W"))),
                ValueError,
                ("nothing at (0, 'W')", "one at (0, 0, 'W')", "gpt(..., head=False)"),
            ),
            BadInput(
                "a shared W below a tied head",
                lambda: _shared(GPT, LinearCrossEntropy(5, shared=(0, 0, "W"))),
                ValueError,
                ("expected (5, 5)", "one for each class, as logits have", "gpt(..., head=False)"),
            ),
            BadInput(
                "a shared W of a network with a head of its own",
                lambda: _shared(HEAD, LinearCrossEntropy(5, shared=(0, "W"))),
                ValueError,
                ("expected (5, 5)", "one for each class, as logits have", "head=False"),
            ),
            BadInput(
                "shared that is no path",
                lambda: LinearCrossEntropy(5, shared="W"),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("shared must be a path", '(0, "W")', "'W'"),
            ),
            BadInput(
                "shared with a bias",
                lambda: LinearCrossEntropy(5, shared=(0, "W"), bias=True),
                TypeError,
                ("with shared", "bias=True"),
            ),
            BadInput(
                "values without W",
                lambda: FIVE.value(jnp.ones((4, 3)), jnp.zeros(4, int)),
                TypeError,
                ("LinearCrossEntropy(5) needs its W", "sweep(params, prediction, target, weights)"),
            ),
            BadInput(
                "no classes",
                lambda: LinearCrossEntropy(0),
                TypeError,
                ("classes must be a positive int", "0"),
            ),
            BadInput(
                "an empty chunk",
                lambda: LinearCrossEntropy(5, chunk=0),
                TypeError,
                ("chunk must be a positive int", "0"),
            ),
            BadInput(
                "a soft cap of 0",
                lambda: LinearCrossEntropy(5, soft_cap=0.0),
                ValueError,
                ("soft_cap must be a positive number", "None", "0.0"),
            ),
            BadInput(
                "label smoothing above 1",
                lambda: LinearCrossEntropy(5, label_smoothing=1.5),
                ValueError,
                ("label_smoothing", "[0, 1]", "1.5"),
            ),
            BadInput(
                "a negative z-loss",
                lambda: LinearCrossEntropy(5, z_loss=-1e-4),
                ValueError,
                ("z_loss must be 0 or a positive number", "-0.0001"),
            ),
            BadInput(
                "a soft cap in words",
                lambda: LinearCrossEntropy(5, soft_cap="3"),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("soft_cap must be a positive number", "'3'", "str"),
            ),
            BadInput(
                "a soft cap that is an array",
                lambda: LinearCrossEntropy(5, soft_cap=jnp.float32(3)),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("soft_cap must be a positive number",),
            ),
            BadInput(
                "an infinite soft cap",
                lambda: LinearCrossEntropy(5, soft_cap=np.inf),  # pyright: ignore[reportArgumentType]
                ValueError,
                ("soft_cap must be a positive number", "inf"),
            ),
            BadInput(
                "an ignored class between two",
                lambda: LinearCrossEntropy(5, ignored_class=1.5),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("ignored_class must be an int or None", "1.5"),
            ),
            BadInput(
                "a bias in words",
                lambda: LinearCrossEntropy(5, bias="yes"),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("bias must be True or False", "'yes'"),
            ),
            BadInput(
                "label smoothing in words",
                lambda: LinearCrossEntropy(5, label_smoothing="0.1"),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("label_smoothing must be a number", "'0.1'"),
            ),
        ),
    ),
)
