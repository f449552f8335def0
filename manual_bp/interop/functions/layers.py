"""Dense, convolution, normalisation, pooling and embedding layers as functions of arrays.

Examples come first, features last: images are (m, height, width, channels), sequences (m, T,
features). Dense weights are (n_out, n_in), kernels (height, width, channels, features).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import Activation
from manual_bp.activations import identity
from manual_bp.interop.function import as_function
from manual_bp.layer import Layer
from manual_bp.layers import batch_norm as of_batch_norm
from manual_bp.layers import conv as of_conv
from manual_bp.layers import dense as of_dense
from manual_bp.layers import embedding as of_embedding
from manual_bp.layers import group_norm as of_group_norm
from manual_bp.layers import layer_norm as of_layer_norm
from manual_bp.layers import rms_norm as of_rms_norm
from manual_bp.layers.avg_pool import AvgPool
from manual_bp.layers.log_softmax import LogSoftmax
from manual_bp.layers.max_pool import MaxPool
from manual_bp.layers.softmax import Softmax


def dense(x: Any, W: Any, b: Any = None, *, activation: Activation = identity) -> jax.Array:
    """g(x Wᵀ + b), the layer of the notes.

    Args:
        x: (..., n_in).
        W: (n_out, n_in).
        b: (n_out,), None for none.
        activation: g, one of manual_bp's.

    Returns:
        (..., n_out).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/dense.py has formula, derivation and source.

    Example:
        >>> print(jax.grad(lambda W: dense(jnp.ones((4, 2)), W).sum())(jnp.ones((1, 2))))
        [[4. 4.]]
    """
    layer = of_dense.Dense(W.shape[0], activation, bias=b is not None)
    return as_function(layer)(of_dense.Params(W, _or_nothing(b)), x)


def conv(
    x: Any,
    W: Any,
    b: Any = None,
    *,
    stride: Any = 1,
    padding: Any = "SAME",
    dilation: Any = 1,
    groups: int = 1,
) -> jax.Array:
    """The convolution of images, sequences or volumes: z = Σ W x over a window, + b.

    Args:
        x: (m, *space, channels), one to three axes in space.
        W: (*kernel, channels / groups, features).
        b: (features,), None for none.
        stride, padding, dilation, groups: as for Conv.

    Returns:
        (m, *space, features).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/conv.py has formula, derivation and source.

    Example:
        >>> conv(jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5)), stride=2).shape
        (2, 4, 4, 5)
    """
    layer = of_conv.Conv(
        W.shape[-1],
        tuple(W.shape[:-2]),
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        bias=b is not None,
    )
    return as_function(layer)(of_conv.Params(W, _or_nothing(b)), x)


def layer_norm(x: Any, scale: Any = None, shift: Any = None, *, eps: float = 1e-5) -> jax.Array:
    """γ (x - <x>) / √(<(x - <x>)²> + eps) + β, over the last axis.

    Args:
        x: (..., C).
        scale: γ, (C,); ones by default.
        shift: β, (C,); zeros by default.
        eps: added to the variance.

    Returns:
        (..., C).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/layer_norm.py has formula, derivation and source.

    Example:
        >>> x = jnp.array([[1.0, 3.0]])
        >>> print(jax.grad(lambda scale: layer_norm(x, scale).sum())(jnp.ones(2)))
        [-0.99999505  0.99999505]
    """
    scale, shift = _affine(x, scale, shift)
    return as_function(of_layer_norm.LayerNorm(eps))(of_layer_norm.Params(scale, shift), x)


def rms_norm(x: Any, scale: Any = None, *, eps: float = 1e-6) -> jax.Array:
    """γ x / √(<x²> + eps), over the last axis.

    Args:
        x: (..., C).
        scale: γ, (C,); ones by default.
        eps: added to the mean square.

    Returns:
        (..., C).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/rms_norm.py has formula, derivation and source.

    Example:
        >>> print(rms_norm(jnp.array([[3.0, 3.0]])))
        [[0.99999994 0.99999994]]
    """
    scale, _ = _affine(x, scale, None)
    return as_function(of_rms_norm.RMSNorm(eps))(of_rms_norm.Params(scale), x)


def group_norm(
    x: Any, groups: int, scale: Any = None, shift: Any = None, *, eps: float = 1e-5
) -> jax.Array:
    """γ (x - μ) / √(variance + eps) + β, over space and each group of channels.

    Args:
        x: (m, *space, C).
        groups: the parts into which channels are divided.
        scale: γ, (C,); ones by default.
        shift: β, (C,); zeros by default.
        eps: added to the variance.

    Returns:
        Of x's shape.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/group_norm.py has formula, derivation and source.

    Example:
        >>> group_norm(jnp.ones((2, 8, 8, 6)), 3).shape
        (2, 8, 8, 6)
    """
    layer = of_group_norm.GroupNorm(groups, eps)
    return as_function(layer)(of_group_norm.Params(*_affine(x, scale, shift)), x)


def batch_norm(
    x: Any,
    scale: Any = None,
    shift: Any = None,
    *,
    eps: float = 1e-5,
    mask: Any = None,
    axis_name: str | tuple[str, ...] | None = None,
) -> tuple[jax.Array, of_batch_norm.Statistics]:
    """γ (x - μ) / √(variance + eps) + β with the batch's own statistics, and these.

    Args:
        x: (m, ..., C).
        scale: γ, (C,); ones by default.
        shift: β, (C,); zeros by default.
        eps: added to the variance.
        mask: booleans of the shape of x's first axes, true where x counts.
        axis_name: axes of devices or of vmap that hold parts of the batch.

    Returns:
        (out, Statistics(mean, variance)), the latter for a running mean: no gradient flows through
        them.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/batch_norm.py has formula, derivation and source.

    Example:
        >>> out, statistics = batch_norm(jnp.arange(4.0).reshape(4, 1))
        >>> print(statistics.mean)
        [1.5]
    """
    layer = of_batch_norm.BatchNorm(eps, masked=mask is not None, axis_name=axis_name)
    taken = {} if mask is None else {"mask": mask}
    params = of_batch_norm.Params(*_affine(x, scale, shift))
    return as_function(layer, observes=True)(params, x, **taken)


def embedding(tokens: Any, W: Any) -> jax.Array:
    """The rows of W that tokens name; dW adds the error of each token to its row.

    Args:
        tokens: integers (...).
        W: (vocabulary, features).

    Returns:
        (..., features); NaN for a token that doesn't exist.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape; for tokens that don't exist
            where their values are at hand.

    Source: manual_bp/layers/embedding.py has formula, derivation and source.

    Example:
        >>> print(embedding(jnp.array([1, 0]), jnp.array([[1.0], [2.0]])))
        [[2.]
         [1.]]
    """
    return as_function(of_embedding.Embedding(*W.shape))(of_embedding.Params(W), tokens)


def max_pool(x: Any, window: Any, *, stride: Any = None, padding: Any = "VALID") -> jax.Array:
    """The largest value of each window; its error goes to the first place that has it.

    Args:
        x: (m, *space, channels).
        window, stride, padding: as for MaxPool.

    Returns:
        (m, *space, channels).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/max_pool.py has formula, derivation and source.

    Example:
        >>> print(jax.grad(lambda x: max_pool(x, (2,)).sum())(jnp.array([[[1.0], [3.0]]]))[0, :, 0])
        [0. 1.]
    """
    return as_function(MaxPool(window, stride=stride, padding=padding))((), x)


def avg_pool(
    x: Any, window: Any, *, stride: Any = None, padding: Any = "VALID", count_padding: bool = True
) -> jax.Array:
    """The mean of each window.

    Args:
        x: (m, *space, channels).
        window, stride, padding, count_padding: as for AvgPool.

    Returns:
        (m, *space, channels).

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/avg_pool.py has formula, derivation and source.

    Example:
        >>> print(avg_pool(jnp.array([[[1.0], [3.0]]]), (2,)))
        [[[2.]]]
    """
    layer = AvgPool(window, stride=stride, padding=padding, count_padding=count_padding)
    return as_function(layer)((), x)


def softmax(z: Any, *, axis: int = -1) -> jax.Array:
    """e^z / Σ e^z along an axis.

    Args:
        z: any shape.
        axis: counted from the end.

    Returns:
        Of z's shape.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/softmax.py has formula, derivation and source.

    Example:
        >>> print(softmax(jnp.zeros((1, 2))))
        [[0.5 0.5]]
    """
    return _of_examples(Softmax(axis), z)


def log_softmax(z: Any, *, axis: int = -1) -> jax.Array:
    """z - log Σ e^z along an axis.

    Args:
        z: any shape.
        axis: counted from the end.

    Returns:
        Of z's shape.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/layers/log_softmax.py has formula, derivation and source.

    Example:
        >>> print(log_softmax(jnp.zeros((1, 2))))
        [[-0.6931472 -0.6931472]]
    """
    return _of_examples(LogSoftmax(axis), z)


def _of_examples(layer: Layer, z: Any) -> jax.Array:
    """The layer's function of z; one vector alone is a batch of one."""
    z, f = jnp.asarray(z), as_function(layer)
    return f((), z[None])[0] if z.ndim == 1 else f((), z)


def _affine(x: Any, scale: Any, shift: Any) -> tuple[Any, Any]:
    """γ and β, ones and zeros where they aren't given."""
    channels, dtype = x.shape[-1:], jnp.result_type(x)
    return (
        jnp.ones(channels, dtype) if scale is None else scale,
        jnp.zeros(channels, dtype) if shift is None else shift,
    )


def _or_nothing(b: Any) -> Any:
    """() for no bias, as a layer without one has it."""
    return () if b is None else b
