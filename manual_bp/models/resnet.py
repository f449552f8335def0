"""A residual network with pre-activations: what each block adds, it adds to a path left free.

    block, same shape    out = x + f(x),            f = Conv ∘ a ∘ Conv ∘ a
    block, new shape     out = s(a(x)) + f'(a(x)),  f' = Conv ∘ a ∘ Conv of stride 2
                                                    s = Conv 1×1 of stride 2
    with                 a(v) = relu(BatchNorm(v))
    network              logits = Dense(average over space of a(blocks(Conv(x))))

Backward.  A block of the same shape passes the error on as it is and adds its body's:

    dx = dout + df,    so    ∂J/∂x_l = ∂J/∂x_L + Σ_{i≥l} (the errors of the bodies between)

so that within a stage the error of the last block reaches the first whatever the bodies do: no
product of Jacobians has to stay near 1. Between stages it passes a(x) and the 1×1 convolution: one
Jacobian for each change of shape, not one for each block. That the skip path is free of activation
and normalisation is what makes the sum exact; He et al. (2016b) compare the arrangements.
"""

from __future__ import annotations

from collections.abc import Sequence

from manual_bp.activations import relu
from manual_bp.combinators.parallel import parallel
from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.combinators.skip import skip
from manual_bp.layer import Layer
from manual_bp.layers.batch_norm import BatchNorm
from manual_bp.layers.conv import Conv
from manual_bp.layers.dense import Dense
from manual_bp.layers.global_avg_pool import GlobalAvgPool


def resnet(classes: int = 10, widths: Sequence[int] = (16, 32, 64), blocks: int = 2) -> Sequential:
    """A pre-activation ResNet; each stage but the first halves the image and has its own width.

    Convolutions before a BatchNorm have no bias: the normalisation would take it away again.

    Args:
        classes: how many logits it ends with.
        widths: channels of each stage. Three stages for 32x32 images, two for 8x8 digits.
        blocks: residual blocks in each stage, of two convolutions each.

    Returns:
        A network for x of shape (m, height, width, channels). Its BatchNorms are observed in
        training; `network.inference()` takes statistics.

    Raises:
        TypeError: when widths or blocks aren't positive integers.

    Source: He, Zhang, Ren & Sun (2016b), Identity mappings in deep residual networks,
    arXiv:1603.05027; the sizes for 32x32 after their (2016a), arXiv:1512.03385.

    Example:
        >>> network = resnet(widths=(4, 8), blocks=1)
        >>> x = jax.random.normal(jax.random.key(1), (3, 8, 8, 1))
        >>> params = network.init(jax.random.key(0), x)
        >>> step = manual_pass(params, x, jnp.array([0, 1, 2]), network=network)
        >>> predict(params, x, network=network, statistics=step.observed).shape
        (3, 10)
    """
    for name, given in (("widths", widths), ("blocks", blocks)):
        values = tuple(given) if isinstance(given, tuple | list) else (given,)
        fits = isinstance(given, tuple | list) == (name == "widths") and len(values) > 0
        if not fits or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in values):
            wanted = "a tuple of positive ints" if name == "widths" else "a positive int"
            raise TypeError(
                f"resnet: {name} must be {wanted}, as in resnet(widths=(16, 32), blocks=2); got "
                f"{given!r}."
            )
    layers: list[Layer] = [Conv(widths[0], (3, 3), bias=False)]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            new_shape = stage > 0 and block == 0
            layers.append(_widening(width) if new_shape else skip(_body(width)))
    return sequential(*layers, BatchNorm(), relu, GlobalAvgPool(), Dense(classes))


def _body(width: int) -> Layer:
    """Conv ∘ a ∘ Conv ∘ a, of the same shape."""
    return sequential(BatchNorm(), relu, *_convolutions(width, stride=1))


def _widening(width: int) -> Layer:
    """Half the image, `width` channels: the shortcut is a 1×1 convolution of what the body sees."""
    shortcut = Conv(width, (1, 1), stride=2, bias=False)
    body = sequential(*_convolutions(width, stride=2))
    return sequential(BatchNorm(), relu, parallel(shortcut, body, combine="sum"))


def _convolutions(width: int, stride: int) -> tuple[Layer, ...]:
    first = Conv(width, (3, 3), stride=stride, bias=False)
    return first, BatchNorm(), relu, Conv(width, (3, 3), bias=False)
