"""LSTMCell and GRUCell of equinox with hand-derived backward passes.

A cell is one step of one example: its affine maps, and then the gates by hand
(`manual_bp.interop.gates`), which keep 5n numbers for each step where autodiff keeps some 12n. A
whole sequence at once is functions.lstm and functions.gru; `from_module` has their parameters.

Formulas and derivations: manual_bp/layers/lstm.py and gru.py.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from manual_bp.interop.gates import gru_gates, lstm_gates


class LSTMCell(eqx.nn.LSTMCell):
    """equinox's LSTMCell; see `manual_bp.interop.equinox`.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> cell = by_hand.LSTMCell(3, 4, key=jax.random.key(0))
        >>> h, c = cell(jnp.ones(3), (jnp.zeros(4), jnp.zeros(4)))
        >>> h.shape, c.shape
        ((4,), (4,))
    """

    def __call__(self, input: Any, hidden: Any, *, key: Any = None) -> tuple[jax.Array, jax.Array]:
        """input (input_size,), hidden (h, c), (hidden_size,) each -> (h, c)."""
        h, c = hidden
        z = self.weight_ih @ input + self.weight_hh @ h
        return lstm_gates(z if self.bias is None else z + self.bias, c)


class GRUCell(eqx.nn.GRUCell):
    """equinox's GRUCell; see `manual_bp.interop.equinox`.

    Example:
        >>> import manual_bp.interop.equinox as by_hand
        >>> by_hand.GRUCell(3, 4, key=jax.random.key(0))(jnp.ones(3), jnp.zeros(4)).shape
        (4,)
    """

    def __call__(self, input: Any, hidden: Any, *, key: Any = None) -> jax.Array:
        """input (input_size,), hidden (hidden_size,) -> (hidden_size,)."""
        p, q = self.weight_ih @ input, self.weight_hh @ hidden
        if self.bias is not None and self.bias_n is not None:
            outside = jnp.zeros(2 * self.hidden_size, self.bias_n.dtype)
            p, q = p + self.bias, q + jnp.concatenate([outside, self.bias_n])
        return gru_gates(p, q, hidden)
