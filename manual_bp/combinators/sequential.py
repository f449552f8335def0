"""Sequential: layers one after the other.

    A[0] = x,   A[l] = layer_l(A[l-1]),   out = A[L]

Backward is the chain rule, read from the last layer to the first: the dx of a layer is the dout of
the one below it,

    dA[L] = dout,   (dparams_l, dA[l-1]) = backward_l(dA[l]),   dx = dA[0]

Derivation.  J depends on params_l and on A[l-1] through A[l] alone, so each layer needs from above
nothing but dA[l]. Going from the last layer down costs one product with each layer's Jacobian
transposed; going up would cost a product of matrices.

Shapes  what goes out of one layer must go into the next; the layers say so themselves.
Source  Linnainmaa (1970); Rumelhart, Hinton & Williams (1986)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from manual_bp.layer import Combinator, Layer, Tree, Visit, output_shape, within


@dataclass(frozen=True)
class Sequential(Combinator):
    """Layers one after the other; write `sequential(first, second, ...)`."""

    layers: tuple[Layer, ...]

    @property
    def children(self) -> tuple[Layer, ...]:
        return self.layers

    @property
    def readers(self) -> tuple[tuple[int, Layer], ...]:
        return ((0, self.layers[0]),)

    def rebuild(self, children: tuple[Layer, ...]) -> Sequential:
        return Sequential(children)

    def init(self, key: jax.Array, x: Any) -> Tree:
        params = []
        for index, layer in enumerate(self.layers):
            with within(index + 1, layer):
                params.append(layer.init(jax.random.fold_in(key, index), x))
                x = output_shape(layer, params[-1], x)
        return tuple(params)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
        self.check(params, taken)
        residuals = []
        for index, layer in enumerate(self.layers):
            with within(index + 1, layer):
                x, kept = layer.forward(params[index], x, **self.hand(taken, index))
            residuals.append(kept)
        return x, tuple(residuals)

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Tree, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        seen, trees = [], (params, residuals, *others)
        for index in reversed(range(len(self.layers))):
            layer = self.layers[index]
            with within(index + 1, layer):
                each, dout = layer.walk(visit, dout, *(tree[index] for tree in trees))
            seen.append(each)
        return tuple(reversed(seen)), dout

    def __repr__(self) -> str:
        return f"sequential({', '.join(map(repr, self.layers))})"


def sequential(*layers: Layer) -> Sequential:
    """Layers one after the other: out = layer_L(... layer_1(x)).

    Args:
        *layers: at least one layer; combinators and activations are layers too.

    Returns:
        A layer whose params are a tuple with an entry for each of them.

    Raises:
        TypeError: when something that isn't a layer is among them, or there are none.

    Source: Rumelhart, Hinton & Williams (1986).

    Example:
        >>> network = sequential(Dense(128, relu), Dense(10))
        >>> network.init(jax.random.key(0), jnp.ones((5, 64)))[1].W.shape
        (10, 128)
    """
    if not layers:
        raise TypeError("sequential() needs at least one layer, got none.")
    for index, layer in enumerate(layers):
        if not isinstance(layer, Layer):
            raise TypeError(
                f"sequential: argument {index + 1} must be a layer, got {layer!r}. "
                "Write sequential(Dense(128, relu), Dense(10)); a list needs its star: "
                "sequential(*layers)."
            )
    return Sequential(layers)
