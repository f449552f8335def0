"""Last step: of a sequence the last output alone, for networks that read much and say one thing.

Forward and backward, with T steps:

    out = x_T
    dx_T = dout,   dx_t = 0 for t < T

Derivation.  out depends on x_T alone, with derivative 1. What came before has its error through x_T
all the same: inside the recurrent layer below, which hands it back from step to step.

After a recurrent layer with a mask this is the last real step, whatever a sequence's length: its
out repeats the state where a step isn't real. Not after one in reverse, as in a bidirectional one:
at T it has read x_T at most, and nothing if that is padding; it has read all at out[:, 0]. What
such a layer observes, its final state, has read all too.

Shapes  x, dx: (m, T, ...); out, dout: (m, ...)
Source  Sutskever, Vinyals & Le (2014), Sequence to sequence learning, arXiv:1409.3215
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import check_floating
from manual_bp.layer import Layer, Static, Tree, check_taken
from manual_bp.sharding import undivided


@dataclass(frozen=True)
class LastStep(Layer):
    """out = x[:, -1]; backward keeps the number of steps.

    Raises:
        TypeError: for inputs that aren't floating.
        ValueError: for inputs without a time axis, or without a step.

    Source: Sutskever, Vinyals & Le (2014), arXiv:1409.3215.

    Example:
        >>> out, residuals = LastStep().forward((), jnp.array([[[1.0], [2.0], [3.0]]]))
        >>> _, dx = LastStep().backward((), residuals, jnp.array([[5.0]]))
        >>> print(out, dx.ravel())
        [[3.]] [0. 0. 5.]
    """

    def init(self, key: jax.Array, x: Any) -> Tree:
        self._check(x)
        return ()

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Static]:
        check_taken(self, taken)
        self._check(x)
        return undivided(jnp.asarray(x), 1)[:, -1], Static(x.shape[1])

    def backward(self, params: Tree, residuals: Static, dout: jax.Array) -> tuple[Tree, jax.Array]:
        earlier = residuals.value - 1
        return (), jnp.pad(dout[:, None], [(0, 0), (earlier, 0)] + [(0, 0)] * (dout.ndim - 1))

    def _check(self, x: Any) -> None:
        check_floating(self, x)
        if x.ndim < 2 or x.shape[1] == 0:
            raise ValueError(
                f"{self!r}: x has shape {tuple(x.shape)}, expected (m, T, ...) with at least one "
                "step."
            )
