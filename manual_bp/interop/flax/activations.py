"""The activations of flax.nnx with hand-derived g' and g'', by the names and arguments of flax.

What each is, its derivatives and which side it takes at a kink: manual_bp/activations.py.
"""

from __future__ import annotations

from typing import Any

import jax

from manual_bp.interop import functions
from manual_bp.interop.functions import celu as celu
from manual_bp.interop.functions import elu as elu
from manual_bp.interop.functions import hard_sigmoid as hard_sigmoid
from manual_bp.interop.functions import hard_silu as hard_silu
from manual_bp.interop.functions import hard_tanh as hard_tanh
from manual_bp.interop.functions import log_sigmoid as log_sigmoid
from manual_bp.interop.functions import log_softmax as log_softmax
from manual_bp.interop.functions import relu as relu
from manual_bp.interop.functions import relu6 as relu6
from manual_bp.interop.functions import selu as selu
from manual_bp.interop.functions import sigmoid as sigmoid
from manual_bp.interop.functions import silu as silu
from manual_bp.interop.functions import softmax as softmax
from manual_bp.interop.functions import softplus as softplus
from manual_bp.interop.functions import tanh as tanh

swish = silu
hard_swish = hard_silu
soft_sign = functions.softsign


def gelu(x: Any, approximate: bool = True) -> jax.Array:
    """z Φ(z), or its approximation by tanh, which is flax's default."""
    return functions.gelu_tanh(x) if approximate else functions.gelu(x)


def leaky_relu(x: Any, negative_slope: float = 1e-2) -> jax.Array:
    """x where x ≥ 0, negative_slope x elsewhere; negative_slope is a Python number."""
    return functions.leaky_relu(x, negative_slope)
