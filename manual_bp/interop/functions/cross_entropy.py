"""Cross-entropy of integer classes, from logits or straight from features."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from manual_bp.gradients import weights_of
from manual_bp.inputs import check_arrays
from manual_bp.interop.attaching import attached
from manual_bp.interop.function import as_loss
from manual_bp.layer import Static, Tree
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy, Params
from manual_bp.losses.softmax_cross_entropy import SoftmaxCrossEntropy


def softmax_cross_entropy(
    logits: Any, labels: Any, *, label_smoothing: float = 0.0, ignored_class: int | None = None
) -> jax.Array:
    """-Σ y log softmax(z) of each prediction, whose error is the notes' A - Y.

    Args:
        logits: (..., C).
        labels: integer classes (...), or probabilities (..., C).
        label_smoothing: the share of a class that is spread evenly; for integers.
        ignored_class: labels of this class have the value 0; None when all count.

    Returns:
        (...), one number for each prediction.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape; where a gradient for
            labels is asked for.

    Source: manual_bp/losses/softmax_cross_entropy.py has formula, derivation and source.

    Example:
        >>> loss = lambda z: softmax_cross_entropy(z, jnp.array([0])).mean()
        >>> print(jax.grad(loss)(jnp.zeros((1, 2))))
        [[-0.5  0.5]]
    """
    loss = SoftmaxCrossEntropy(label_smoothing=label_smoothing, ignored_class=ignored_class)
    return as_loss(loss)(logits, labels)


def linear_cross_entropy(
    h: Any,
    W: Any,
    labels: Any,
    b: Any = None,
    *,
    weights: Any = None,
    class_axis: int = 0,
    chunk: int | None = None,
    soft_cap: float | None = None,
    label_smoothing: float = 0.0,
    ignored_class: int | None = None,
    z_loss: float = 0.0,
) -> jax.Array:
    """J = Σ w · (log Σ_c e^{z_c} - z_label) of z = W h, without the logits of all predictions.

    Forward makes the loss and, in the same sweep over chunks, dh, dW and db for dJ = 1; these are
    what backward keeps, and scales by dJ. So each matrix product is taken once, and the memory is
    that of the gradients and of one chunk's logits.

    Args:
        h: (..., F), the features.
        W: (C, F), the head's weights, or an embedding's table; (F, C) with class_axis=1, as
            kernels of flax are: W.T would do too, at the price of a copy of dW.
        labels: integer classes (...).
        b: (C,), None for none.
        weights: (...), what each prediction counts; by default one over the number of those that
            do, the mean.
        class_axis: the axis of W along which the classes lie, 0 or 1.
        chunk: predictions in a chunk; see LinearCrossEntropy.
        soft_cap, label_smoothing, ignored_class, z_loss: as for LinearCrossEntropy.

    Returns:
        J, a scalar. A weight of exactly 0 leaves its prediction out, of the second derivative too.

    Raises:
        TypeError, ValueError: for arguments of the wrong type or shape.

    Source: manual_bp/losses/linear_cross_entropy.py has formula, derivation and source.

    Example:
        >>> h, W, labels = jnp.ones((4, 3)), jnp.zeros((1000, 3)), jnp.array([0, 999, 7, 7])
        >>> print(jax.grad(lambda W: linear_cross_entropy(h, W, labels))(W)[7, 0])
        -0.499
    """
    if class_axis not in (0, 1):
        raise ValueError(
            "linear_cross_entropy: class_axis is 0 for W (C, F), or 1 for W (F, C); got "
            f"{class_axis!r}."
        )
    loss = (LinearCrossEntropy if class_axis == 0 else _OfColumns)(
        W.shape[class_axis],
        chunk=chunk,
        soft_cap=soft_cap,
        label_smoothing=label_smoothing,
        ignored_class=ignored_class,
        z_loss=z_loss,
        bias=b is not None,
    )
    params = Params(W, () if b is None else b)
    check_arrays(params, h=h, labels=labels, weights=weights)
    h, labels = jnp.asarray(h), jnp.asarray(labels)
    if not labels.size:
        raise ValueError(
            f"linear_cross_entropy: labels have shape {labels.shape}, expected at least one: the "
            "mean over no predictions isn't defined."
        )
    weights = weights_of(loss, h, labels, None if weights is None else jnp.asarray(weights))
    return _weighted_sum(loss)(h, params, weights, labels)


class _OfColumns(LinearCrossEntropy):
    """With W (F, C)."""

    layout: ClassVar[str] = "fc"


@functools.cache
def _weighted_sum(loss: LinearCrossEntropy) -> Any:
    """(h, params, weights, labels) -> J, for one setting."""

    def forward(h: Any, params: Tree, weights: Any, labels: Any) -> tuple[jax.Array, Tree]:
        # Of float16, gradients for dJ = 1 and a mean's weights would be below its smallest number,
        # whatever dJ is to be. So they are made for weights of at most 1, and kept in float32.
        narrow = jnp.float16 in (h.dtype, params.W.dtype)
        largest = jnp.abs(weights).max() if narrow else jnp.ones((), weights.dtype)
        unit = jnp.where(largest > 0, largest, 1) if narrow else largest
        sweep = loss.wide_sweep if narrow else loss.sweep
        values, dparams, dh = sweep(params, h, labels, weights / unit if narrow else weights)
        total = jnp.where(weights == 0, 0, weights * values).sum()
        # a label that doesn't exist counts for nothing where its weight is 0
        dweights = jnp.where((weights == 0) & ~jnp.isfinite(values), 0, values)
        kinds = Static((h.dtype, *(leaf.dtype for leaf in jax.tree.leaves(params))))
        return total, (unit, dh, dparams, dweights, kinds)

    def backward(kept: Tree, dJ: jax.Array) -> tuple[Any, ...]:
        unit, dh, dparams, dweights, kinds = kept
        leaves, structure = jax.tree.flatten((dh, dparams))
        pairs = zip(leaves, kinds.value, strict=True)
        scaled = [(dJ * unit * each).astype(kind) for each, kind in pairs]
        return *jax.tree.unflatten(structure, scaled), (dJ * dweights).astype(dweights.dtype), None

    return attached(forward, backward)
