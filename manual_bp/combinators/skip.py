"""Skip: what a body adds to its input.

    out = x + body(x)

Backward: x is used twice, so its gradients add:

    (dparams, dbody) = backward_body(dout),   dx = dout + dbody

Derivation.  ∂out/∂x = I + ∂body/∂x; contract with dout. The error reaches x even where the body
lets none through, which is why deep stacks of these train.

Shapes  x, out, dout, dx: the same shape, which is that of body(x) too
Source  He, Zhang, Ren & Sun (2016), Identity mappings in deep residual networks, arXiv:1603.05027
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax

from manual_bp.layer import Combinator, Layer, Tree, Visit, output_shape, within
from manual_bp.sharding import sharded_like


@dataclass(frozen=True)
class Skip(Combinator):
    """x + body(x); write `skip(body)`."""

    body: Layer

    @property
    def children(self) -> tuple[Layer, ...]:
        return (self.body,)

    def rebuild(self, children: tuple[Layer, ...]) -> Skip:
        return Skip(*children)

    def init(self, key: jax.Array, x: Any) -> Tree:
        with within(1, self.body):
            params = self.body.init(key, x)
            self._check_shape(x, output_shape(self.body, params, x))
        return (params,)

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
        self.check(params, taken)
        with within(1, self.body):
            added, residuals = self.body.forward(params[0], x, **self.hand(taken, 0))
            self._check_shape(x, added)
        return x + sharded_like(added, x), (residuals,)

    def walk(
        self, visit: Visit, dout: jax.Array, params: Tree, residuals: Tree, *others: Tree
    ) -> tuple[Tree, jax.Array]:
        with within(1, self.body):
            seen, dbody = self.body.walk(
                visit, dout, params[0], residuals[0], *(tree[0] for tree in others)
            )
        return (seen,), dout.astype(dbody.dtype) + sharded_like(dbody, dout)

    def _check_shape(self, x: Any, added: Any) -> None:
        if added.shape != x.shape:
            raise ValueError(
                f"{self.body!r} makes {tuple(added.shape)} of {tuple(x.shape)}: inside skip it "
                "must keep the shape, since its output is added to its input."
            )

    def __repr__(self) -> str:
        return f"skip({self.body!r})"


def skip(body: Layer) -> Skip:
    """A layer that adds its body's output to its input: out = x + body(x), dx = dout + dbody.

    Args:
        body: a layer that keeps the shape of its input.

    Returns:
        A layer whose params are (body's params,).

    Raises:
        TypeError: when the body isn't a layer.
        ValueError: at init and forward, when the body changes the shape.

    Source: He, Zhang, Ren & Sun (2016), arXiv:1603.05027.

    Example:
        >>> layer = skip(sequential(tanh, Dense(3)))
        >>> x = jnp.ones((2, 3))
        >>> out, residuals = layer.forward(layer.init(jax.random.key(0), x), x)
        >>> out.shape
        (2, 3)
    """
    if not isinstance(body, Layer):
        raise TypeError(f"skip: body must be a layer, got {body!r}.")
    return Skip(body)
