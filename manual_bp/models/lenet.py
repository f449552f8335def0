"""LeNet: two convolutions, each followed by averaging, and three dense layers.

    A[1] = tanh(Conv 5×5, 6 channels),   A[2] = average of 2×2
    A[3] = tanh(Conv 5×5, 16 channels),  A[4] = average of 2×2
    A[5] = tanh(Dense 120),  A[6] = tanh(Dense 84),  Z[7] = Dense(classes)

Backward is that of its layers, from the last to the first: see `manual_bp.layers.conv` for the
error of a convolution, `manual_bp.layers.avg_pool` for that of an average.
"""

from __future__ import annotations

from manual_bp.activation import Activation
from manual_bp.activations import tanh
from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.layers.avg_pool import AvgPool
from manual_bp.layers.conv import Conv
from manual_bp.layers.dense import Dense
from manual_bp.layers.flatten import Flatten


def lenet(classes: int = 10, hidden: Activation = tanh) -> Sequential:
    """LeNet-5 for images of any size from 4x4 on: 8x8 digits as well as 32x32.

    The convolutions keep the size of the image (padding "SAME"), where the paper's shrink it by 4:
    so 8x8 digits have something left to pool. All of the second convolution's channels see all of
    the first's; the paper left some out, and scaled its averages by parameters.

    Args:
        classes: how many logits it ends with.
        hidden: the activation after each layer but the last.

    Returns:
        A network for x of shape (m, height, width, channels).

    Raises:
        TypeError, ValueError: as its layers do, naming the layer; for images under 4x4 a pooling
            layer, whose window is larger than what it is given.

    Source: LeCun, Bottou, Bengio & Haffner (1998), Gradient-based learning applied to document
    recognition.

    Example:
        >>> network = lenet()
        >>> x = jnp.ones((2, 8, 8, 1))
        >>> predict(network.init(jax.random.key(0), x), x, network=network).shape
        (2, 10)
    """
    return sequential(
        Conv(6, (5, 5)),
        hidden,
        AvgPool((2, 2)),
        Conv(16, (5, 5)),
        hidden,
        AvgPool((2, 2)),
        Flatten(),
        Dense(120, hidden),
        Dense(84, hidden),
        Dense(classes),
    )
