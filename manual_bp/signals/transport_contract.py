"""What a rule of error transport is, and which matrices of each layer it is about.

A rule is asked at each layer that has weight matrices, the MATRICES below, and says what that
layer's gradients are and which error goes on from it. All other layers pass the error truthfully,
each by its own backward. `manual_bp.signals.transport` has the pass, `transport_rules` and
`transport_direct` have the rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.activation import Activation
from manual_bp.layer import Layer, Setting, Tree
from manual_bp.layers.avg_pool import AvgPool
from manual_bp.layers.batch_norm import BatchNorm, FrozenBatchNorm
from manual_bp.layers.conv import Conv
from manual_bp.layers.conv_transpose import ConvTranspose
from manual_bp.layers.dense import Dense
from manual_bp.layers.dropout import Dropout
from manual_bp.layers.embedding import Embedding
from manual_bp.layers.flatten import Flatten
from manual_bp.layers.gated_mlp import GatedMLP
from manual_bp.layers.global_avg_pool import GlobalAvgPool
from manual_bp.layers.group_norm import GroupNorm
from manual_bp.layers.gru import GRU
from manual_bp.layers.last_step import LastStep
from manual_bp.layers.layer_norm import LayerNorm
from manual_bp.layers.linear_recurrence import LinearRecurrence
from manual_bp.layers.log_softmax import LogSoftmax
from manual_bp.layers.lstm import LSTM
from manual_bp.layers.max_pool import MaxPool
from manual_bp.layers.multi_head_attention import MultiHeadAttention
from manual_bp.layers.position_embedding import PositionEmbedding
from manual_bp.layers.prelu import PReLU
from manual_bp.layers.rms_norm import RMSNorm
from manual_bp.layers.rnn import RNN
from manual_bp.layers.rotary import Rotary
from manual_bp.layers.scale import Scale
from manual_bp.layers.softmax import Softmax

MATRICES: dict[type[Layer], tuple[str, ...]] = {
    Conv: ("W",),
    ConvTranspose: ("W",),
    Dense: ("W",),
    GatedMLP: ("W_gate", "W_up", "W_down"),
    GRU: ("W", "U"),
    LSTM: ("W", "U"),
    MultiHeadAttention: ("Wq", "Wk", "Wv", "Wo"),
    RNN: ("W", "U"),
    **dict.fromkeys(
        (
            *(AvgPool, BatchNorm, Dropout, Embedding, Flatten, FrozenBatchNorm, GlobalAvgPool),
            *(GroupNorm, LastStep, LayerNorm, LinearRecurrence, LogSoftmax, MaxPool),
            *(PositionEmbedding, PReLU, RMSNorm, Rotary, Scale, Softmax),
        ),
        (),
    ),
}
"""The fields of a layer's params whose transposes carry errors. A layer that has none, as all
activations, passes the error truthfully, and so does one whose parameters act feature by feature;
at an Embedding the error ends. A layer of your own is entered here."""


def matrices(layer: Layer) -> tuple[str, ...]:
    """The fields of a layer's params that carry errors; a TypeError for an unknown kind."""
    if isinstance(layer, Activation):
        return ()
    if type(layer) not in MATRICES:
        raise TypeError(
            f"{layer!r}: how an error is carried through a layer of this kind isn't defined. Say "
            "which fields of its params are matrices whose transposes its backward multiplies "
            "errors by, () for none: manual_bp.signals.transport_contract.MATRICES["
            f'{type(layer).__name__}] = ("W",)'
        )
    return MATRICES[type(layer)]


class Carried(NamedTuple):
    """What a rule is given at a layer, beside what the layer's own backward is.

    feedback: the layer's entry of what the rule's `init` made; key: a random key of this use of the
    layer alone; error: ∂J/∂prediction, the first error. What the rule doesn't take is None.
    """

    feedback: Tree
    key: jax.Array | None
    error: jax.Array


@dataclass(frozen=True)
class Transport(Setting):
    """How an error passes through a layer with weight matrices: here dx = dZ W, the truth.

    A rule of your own is a frozen dataclass that inherits from this and overrides `backward`.
    `takes` says what it wants of "feedback" and "transport_key".

    Example:
        >>> @dataclass(frozen=True)
        ... class Halved(Transport):
        ...     def backward(self, layer, params, residuals, dout, carried):
        ...         dparams, dx = layer.backward(params, residuals, dout)
        ...         return dparams, dx / 2
    """

    takes: ClassVar[tuple[str, ...]] = ()

    def init(self, key: jax.Array, params: Tree, x: Any, *, network: Layer | None = None) -> Tree:
        """Draw the feedback for a network with these params and inputs like x; None for none.

        Args:
            key: a random key; not the one that drew params, or the feedback is what was drawn.
            params: the network's, as `manual_grads` takes them.
            x: an input, or a jax.ShapeDtypeStruct like one.
            network: the one that is trained.

        Returns:
            A tree nested like params, to be kept and given to each `transported_pass`.
        """
        del key, params, x, network

    def backward(
        self, layer: Layer, params: Tree, residuals: Tree, dout: jax.Array, carried: Carried
    ) -> tuple[Tree, jax.Array]:
        """(dparams, dx) of a layer that has matrices, for the error that arrives there."""
        del carried
        return layer.backward(params, residuals, dout)


MAKE = "Make it once with {0!r}.init(key, params, x, network=network)."


def entry(rule: Transport, layer: Layer, feedback: Tree, name: str) -> jax.Array:
    """The feedback's matrix of this name; a ValueError where there is none."""
    found: Any = feedback._asdict().get(name, ()) if hasattr(feedback, "_asdict") else ()
    if not hasattr(found, "shape"):
        raise ValueError(f"{layer!r}: feedback has no {name} for it. {MAKE.format(rule)}")
    return found


def numbered(network: Layer, error: jax.Array, params: Tree, residuals: Tree) -> Tree:
    """A number for each parameter at each use of it: 0, 1, ... in the order of params.

    Nested like params, but with an entry at every place that tied parameters are used, and stacked
    where a layer is repeated. Nothing is computed.
    """

    def visit(layer: Layer, dout: jax.Array, params: Tree, residuals: Tree) -> tuple[Tree, Any]:
        marks = jax.tree.map(lambda leaf: jnp.zeros((), jnp.int32), params)
        return marks, layer.backward(params, residuals, dout)[1]

    marks = jax.eval_shape(lambda *trees: network.walk(visit, *trees)[0], error, params, residuals)
    leaves, structure = jax.tree.flatten(marks)
    numbers, count = [], 0
    for leaf in leaves:
        numbers.append(count + np.arange(leaf.size, dtype=np.int32).reshape(leaf.shape))
        count += leaf.size
    return jax.tree.unflatten(structure, numbers)
