"""Embedding: a vector for each token, a row of a table.

Forward, for a token v:

    out = W[v]

Backward, given dout:

    dW[v] = Σ over the places where the token is v of dout          0 where it is nowhere

Tokens are integers: they have no gradient.

Derivation.  With e_v the v-th unit vector, out = Wᵀ e_v: a Dense without bias of one-hot vectors,
whose dW is the notes' Σ over examples of the outer product of input and error, e_v doutᵀ. That is
dout in row v and 0 elsewhere; so rows add wherever a token occurs again. To write the row instead
of adding to it keeps the last place's error alone.

How it is summed.  By a loop over the places, in their order, on CPU and TPU: XLA's scatter-add. On
a GPU that would add in whatever order threads arrive, differently in each run. There the places are
sorted by token, each token's errors are added by a segmented scan (a tree, whose order depends on
the tokens alone), and one row is written for each token. Two runs agree to the last bit on every
platform. Why not one form for all: on a CPU of two cores the loop takes 0.1, 27 and 0.7 ms for
(places, vocabulary, features) = (4096, 65, 128), (4096, 50257, 256) and (65536, 256, 64), of which
the second is spent on the zeros of dW; the sort and scan takes 1.9, 23 and 54 ms, one-hot vectors
in a matrix product 0.7, too much memory and 81 ms.

A token that doesn't exist, negative or beyond the table, raises where its value is at hand. A mask
doesn't excuse it: padding needs a token that exists, or a weight of 0. Inside a program it makes
its vector NaN and all of dW: neither the last row, which -1 means to NumPy, nor one that a clamp
would give, nor a gradient without it.

Backward keeps the tokens.

Shapes  x: (...), integers; out, dout: (..., n_out); W: (vocabulary, n_out)
Source  Bengio, Ducharme, Vincent & Jauvin (2003), A neural probabilistic language model;
        Blelloch (1990), Prefix sums and their applications (the segmented scan)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.activation import check_number
from manual_bp.layer import Layer, accumulation_dtype, check_taken, no_gradient
from manual_bp.layers._tokens import check_integers, check_tokens, exist
from manual_bp.sharding import along, axes_of, over_parts, reshape, sharded_like


class Params(NamedTuple):
    """W: (vocabulary, features), a row for each token."""

    W: Any


class Residuals(NamedTuple):
    """tokens: (...), the input."""

    tokens: jax.Array


@dataclass(frozen=True)
class Embedding(Layer):
    """out = W[x], a vector for each token.

    Params are float32. To tie W with that of a Dense(vocabulary), which makes logits of vectors,
    see `manual_bp.tied`.

    Args:
        vocabulary: how many tokens there are: 0, ..., vocabulary - 1.
        features: size of the vectors.
        initial_std: standard deviation of W as drawn; 1/√features unless given, so that vectors
            have length 1 or so. GPT-2's is 0.02.

    Raises:
        TypeError: for a setting or an input of the wrong type.
        ValueError: for shapes that don't fit; for tokens that don't exist.

    Source: Bengio et al. (2003).

    Example:
        >>> layer, tokens = Embedding(3, 2), jnp.array([[2, 0, 2]])
        >>> params = Params(jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]))
        >>> out, residuals = layer.forward(params, tokens)
        >>> print(out)
        [[[5. 6.]
          [1. 2.]
          [5. 6.]]]
        >>> dparams, _ = layer.backward(params, residuals, jnp.ones_like(out))
        >>> print(dparams.W)
        [[1. 1.]
         [0. 0.]
         [2. 2.]]
    """

    vocabulary: int
    features: int
    initial_std: float | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, size in (("vocabulary", self.vocabulary), ("features", self.features)):
            if not isinstance(size, int) or isinstance(size, bool) or size < 1:
                raise TypeError(f"Embedding: {name} must be a positive int, got {size!r}.")
        if self.initial_std is not None:
            wanted = "a positive number or None"
            check_number("Embedding: initial_std", self.initial_std, wanted, lambda std: std > 0)

    def init(self, key: jax.Array, x: Any) -> Params:
        check_integers(self, x)
        std = self.features**-0.5 if self.initial_std is None else self.initial_std
        draw = jax.nn.initializers.normal(std)
        return Params(draw(key, (self.vocabulary, self.features), jnp.float32))

    def forward(self, params: Params, x: jax.Array, **taken: Any) -> tuple[jax.Array, Residuals]:
        check_taken(self, taken)
        check_integers(self, x)
        self._check_params(params)
        W = jnp.asarray(params.W)
        out = W.at[x].get(
            mode="fill",
            fill_value=jnp.nan,
            wrap_negative_indices=False,
            out_sharding=along((x, W), *axes_of(x), axes_of(W)[-1]),
        )
        return out, Residuals(x)

    def backward(
        self, params: Params, residuals: Residuals, dout: jax.Array
    ) -> tuple[Params, jax.Array]:
        tokens, wide = residuals.tokens, accumulation_dtype(dout)
        examples, features = axes_of(tokens)[:1], axes_of(dout)[-1]
        dW, _ = over_parts(
            self._sums,
            (),
            reshape(tokens, (tokens.size,), *examples),
            reshape(dout.astype(wide), (tokens.size, self.features), *(*examples, features)[-2:]),
        )
        # A sum, as dW is: on a mesh, what devices find of their tokens travels with dW.
        whole = exist(tokens, self.vocabulary).all(tuple(range(1, tokens.ndim))).sum(dtype=wide)
        dW = jnp.where(whole == math.prod(tokens.shape[:1]), dW, jnp.nan)  # m, or 1 of no axes
        return Params(sharded_like(dW.astype(params.W.dtype), params.W)), no_gradient(tokens)

    def _sums(self, params: tuple[()], tokens: jax.Array, errors: jax.Array) -> tuple[Any, Any]:
        """The sum of each token's errors, (vocabulary, n_out); and nothing for each place."""
        del params
        shape = (self.vocabulary, self.features)
        none = jnp.zeros(shape, errors.dtype, out_sharding=along(errors, None, axes_of(errors)[1]))
        return jax.lax.platform_dependent(
            none, tokens, errors, cpu=add_in_order, tpu=add_in_order, default=add_by_sorting
        ), ()

    def readable(self, x: Any) -> Any:
        return exist(x, self.vocabulary)

    def check_values(self, x: np.ndarray, counted: np.ndarray) -> None:
        check_tokens(self, x, counted, self.vocabulary)

    def _check_params(self, params: Params) -> None:
        if not hasattr(params, "W"):
            raise TypeError(
                f"{self!r} expected params with a field W, got {type(params).__name__}. Make them "
                "with network.init(key, x)."
            )
        W, expected = params.W, (self.vocabulary, self.features)
        if not hasattr(W, "shape") or not jnp.issubdtype(W.dtype, jnp.floating):
            given = f"{W.dtype}" if hasattr(W, "dtype") else type(W).__name__
            raise TypeError(f"{self!r}: W must be a floating-point array, got {given}.")
        if W.shape != expected:
            advice = " W.T would fit: a row for each token." if W.shape == expected[::-1] else ""
            raise ValueError(
                f"{self!r}: W has shape {tuple(W.shape)}, expected {expected}.{advice}"
            )


def add_in_order(zeros: jax.Array, tokens: jax.Array, each: jax.Array) -> jax.Array:
    """zeros, with each[n] added to row tokens[n], one after the other.

    Args:
        zeros: (vocabulary, features).
        tokens: (N,), of which those that don't exist are left out.
        each: (N, features).
    """
    return zeros.at[tokens].add(each, mode="drop", wrap_negative_indices=False)


def add_by_sorting(zeros: jax.Array, tokens: jax.Array, each: jax.Array) -> jax.Array:
    """The same, with one sum for each token, written to its row."""
    if tokens.dtype.itemsize < 4:
        tokens = tokens.astype(jnp.int32)  # len(zeros), the row of what isn't written, must fit
    order = jnp.argsort(tokens)  # stable: places of a token stay in order
    tokens, each = tokens[order], each[order]
    place = jnp.arange(tokens.size)
    is_first = (place == 0) | (tokens != jnp.roll(tokens, 1))
    is_last = (place == tokens.size - 1) | jnp.roll(is_first, -1)
    _, sums = jax.lax.associative_scan(_join, (is_first[:, None], each))
    rows = jnp.where(is_last, tokens, len(zeros))  # the sum up to a token's last place is whole
    return zeros.at[rows].set(sums, mode="drop", wrap_negative_indices=False)


def _join(
    left: tuple[jax.Array, jax.Array], right: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Sums of two stretches of places, as one: from the last first place of a token on."""
    (starts_left, sum_left), (starts_right, sum_right) = left, right
    total = jnp.where(starts_right, sum_right, sum_left + sum_right)
    return starts_left | starts_right, total
