"""Spec of Embedding: one-hot vectors in a matrix product, or one row after the other."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.layers.embedding import Embedding, Params
from verify.specification import BadInput, Edge, LayerSpec, Shape, Tap


def reference(layer: Embedding, params: Any, x: jax.Array, tap: Tap) -> jax.Array:
    """As a Dense of one-hot vectors."""
    del tap
    return jax.nn.one_hot(x, layer.vocabulary, dtype=params.W.dtype) @ params.W


def naive(layer: Embedding, params: Any, x: np.ndarray) -> np.ndarray:
    """Look up one token at a time."""
    rows = [list(params.W[int(token)]) for token in x.ravel()]
    return np.array(rows, object).reshape(*x.shape, layer.features)


def draw(rng: np.random.Generator, shape: Shape) -> Embedding:
    """Of few tokens, so that they occur again."""
    del shape
    return Embedding(int(rng.integers(1, 7)), int(rng.integers(1, 6)))


def tokens(rng: np.random.Generator, layer: Embedding, shape: Shape) -> np.ndarray:
    """Any tokens that exist."""
    return rng.integers(layer.vocabulary, size=shape).astype(np.int32)


def _by_hand(token: int) -> Any:
    """∂(Σ out)/∂W of this layer for the tokens 0 and another one, W being (3, 1)."""

    def dW(W: jax.Array) -> jax.Array:
        layer, params = Embedding(3, 1), Params(W[:, None])
        out, residuals = layer.forward(params, jnp.array([0, token]))
        return layer.backward(params, residuals, jnp.ones_like(out))[0].W[:, 0]

    return dW


def _by_indexing(token: int) -> Any:
    return jax.grad(lambda W: W[jnp.array([0, token])].sum())


def _forward(layer: Embedding, W: Any, x: Any = (5, 4), dtype: Any = jnp.int32) -> Any:
    return lambda: layer.forward(Params(jnp.zeros(W)), jnp.zeros(x, dtype))


def _grads(x: Any, **settings: Any) -> Any:
    network = mbp.sequential(Embedding(3, 2), mbp.Dense(2))
    tokens = jnp.asarray(x)
    params = network.init(jax.random.key(0), tokens)
    y = jnp.zeros(tokens.shape, jnp.int32)
    return lambda: mbp.manual_grads(params, tokens, y, network=network, **settings)


LAYER = Embedding(6, 3)

SPECS = (
    LayerSpec(
        layer=Embedding,
        samples=(
            (Embedding(5, 3), (2, 4)),
            (Embedding(3, 3), (3, 3)),
            (Embedding(4, 2), (6,)),
            (Embedding(1, 3), (2,)),
        ),
        reference=reference,
        naive=naive,
        draw=draw,
        inputs=tokens,
        shrink=lambda layer: (
            iter((Embedding(layer.vocabulary, 1),)) if layer.features > 1 else iter(())
        ),
        exact=lambda layer: True,
        edges=(
            Edge(
                function="row -1 of a table",
                point=(1.0, 2.0, 3.0),
                dtype="float32",
                stated=(np.nan,) * 3,  # there is no token -1
                manual=_by_hand(-1),
                autodiff=_by_indexing(-1),
                recorded=(1.0, 0.0, 1.0),
            ),
            Edge(
                function="row 3 of a table of three",
                point=(1.0, 2.0, 3.0),
                dtype="float32",
                stated=(np.nan,) * 3,
                manual=_by_hand(3),
                autodiff=_by_indexing(3),
                recorded=(1.0, 0.0, 0.0),  # forward, it is the last row
            ),
        ),
        errors=(
            BadInput(
                "embedding: a token beyond the vocabulary",
                _grads([[0, 1], [2, 3]]),
                ValueError,
                ("in layer 1, Embedding(3, 2)", "token 3 at x[1, 1]", "0 to 2", "vocabulary must"),
            ),
            BadInput(
                "embedding: a negative token, and no gradient that would take weights",
                lambda: mbp.predict(
                    mbp.Embedding(3, 2).init(jax.random.key(0), np.zeros((1, 2), int)),
                    np.array([[0, -1]]),
                    network=mbp.Embedding(3, 2),
                ),
                ValueError,
                ("token -1 at x[0, 1]", "Give padding a token of its own; a gradient also takes"),
            ),
            BadInput(
                "embedding: negative tokens",
                _grads([[0, -1], [-1, 2]]),
                ValueError,
                ("token -1 at x[0, 1] (and 1 more)", "expected 0 to 2", "padding", "weights of 0"),
            ),
            BadInput(
                "embedding: a token that counts among those that don't",
                _grads([[0, 1], [7, 5]], weights=jnp.array([[1.0, 1.0], [0.0, 0.5]])),
                ValueError,
                ("token 5 at x[1, 1] doesn't exist",),
            ),
            BadInput(
                "embedding: small tokens beyond a small vocabulary",
                _grads(np.array([[0, 255]], np.uint8)),
                ValueError,
                ("token 255 at x[0, 1]", "expected 0 to 2"),
            ),
            BadInput(
                "embedding: a token that doesn't exist, to predict",
                lambda: mbp.predict(
                    Params(jnp.zeros((6, 3))), jnp.array([[6]], jnp.int32), network=LAYER
                ),
                ValueError,
                ("Embedding(6, 3): token 6 at x[0, 0]",),
            ),
            BadInput(
                "embedding: floating-point tokens",
                _forward(LAYER, (6, 3), dtype=jnp.float32),
                TypeError,
                ("Embedding(6, 3) takes integer tokens", "float32 (5, 4)", "astype(jnp.int32)"),
            ),
            BadInput(
                "embedding: one-hot vectors",
                lambda: LAYER.init(jax.random.key(0), jnp.zeros((5, 6))),
                TypeError,
                ("takes integer tokens", "float32 (5, 6)", "one-hot", "Dense"),
            ),
            BadInput(
                "embedding: booleans",
                _forward(LAYER, (6, 3), dtype=bool),
                TypeError,
                ("takes integer tokens", "bool (5, 4)"),
            ),
            BadInput(
                "embedding: W with a column for each token",
                _forward(LAYER, (3, 6)),
                ValueError,
                ("Embedding(6, 3)", "W has shape (3, 6)", "expected (6, 3)", "W.T would fit"),
            ),
            BadInput(
                "embedding: a table of another vocabulary",
                _forward(LAYER, (7, 3)),
                ValueError,
                ("W has shape (7, 3)", "expected (6, 3)"),
            ),
            BadInput(
                "embedding: an integer table",
                lambda: LAYER.forward(
                    Params(jnp.zeros((6, 3), jnp.int32)), jnp.zeros((5, 4), jnp.int32)
                ),
                TypeError,
                ("Embedding(6, 3): W must be a floating-point array", "int32"),
            ),
            BadInput(
                "embedding: a bare table",
                lambda: LAYER.forward(jnp.zeros((6, 3)), jnp.zeros((5, 4), jnp.int32)),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("Embedding(6, 3)", "a field W", "network.init"),
            ),
            BadInput(
                "embedding: a mask that it doesn't take",
                lambda: LAYER.forward(
                    Params(jnp.zeros((6, 3))), jnp.zeros((5, 4), jnp.int32), mask=jnp.ones(5, bool)
                ),
                TypeError,
                ("Embedding(6, 3) takes nothing", "leave out mask"),
            ),
            BadInput(
                "embedding: no vocabulary",
                lambda: Embedding(0, 3),
                TypeError,
                ("Embedding: vocabulary must be a positive int, got 0",),
            ),
            BadInput(
                "embedding: features as a float",
                lambda: Embedding(6, 3.0),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("Embedding: features must be a positive int, got 3.0",),
            ),
            BadInput(
                "embedding: a standard deviation of 0",
                lambda: Embedding(6, 3, initial_std=0.0),
                ValueError,
                ("Embedding: initial_std must be a positive number or None, got 0.0",),
            ),
        ),
    ),
)
