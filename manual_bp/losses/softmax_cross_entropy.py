"""Softmax cross-entropy: the canonical loss of classes.

For logits z in R^C and a target y in R^C, not necessarily summing to one:

    p = softmax(z),   value = -Σ_c y_c log p_c = (Σ y) logsumexp(z) - Σ_c y_c z_c

    error = ∂value/∂z = p (Σ y) - y               the notes' dZ[L] = A[L] - Y when Σ y = 1

Derivation.  ∂logsumexp(z)/∂z_c = e^{z_c} / Σ_k e^{z_k} = p_c, so the first term gives p_c (Σ y) and
the second -y_c. No derivative of softmax is needed: its dense Jacobian, p_i (δ_ij - p_j), has
cancelled against 1/p of the logarithm. Both are stable: with ẑ = z - max z, every exponential is at
most 1, and log p = ẑ - log Σ e^ẑ never takes the logarithm of 0.

An integer class k stands for the one-hot y_c = [c = k]. Label smoothing α replaces y by
(1 - α) y + (α/C) Σ y. A prediction whose class is the ignored one has value and error 0 and does
not count; a class outside 0 ... C-1 has value and error NaN.

Where y_c = 0 the term y_c log p_c is 0, also at z_c = -inf (a class that is ruled out).

Shapes  prediction, error: (..., C); target: (..., C), or integers (...); value: (...)
Source  Bridle (1990), Probabilistic interpretation of feedforward classification network outputs;
        Szegedy et al. (2016), arXiv:1512.00567 (label smoothing)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from manual_bp.activation import check_number
from manual_bp.layer import Loss, accumulation_dtype
from manual_bp.losses._targets import (
    check_classes,
    check_classes_exist,
    check_ignored_class,
    counted_classes,
    is_classes,
    widened,
)


@dataclass(frozen=True)
class SoftmaxCrossEntropy(Loss):
    """-Σ y log softmax(z), with error softmax(z) Σy - y.

    Args:
        label_smoothing: α in [0, 1]: the share of the label that is spread evenly.
        ignored_class: integer targets of this class don't count; None when all do.

    Raises:
        TypeError, ValueError: for targets that are neither (..., C) nor integer classes (...).

    Source: Bridle (1990).

    Example:
        >>> loss = SoftmaxCrossEntropy()
        >>> z = jnp.array([[0.0, 0.0], [1.0, 1.0]])
        >>> loss.error(z, jnp.array([0, 1]))
        Array([[-0.5,  0.5],
               [ 0.5, -0.5]], dtype=float32)
    """

    label_smoothing: float = 0.0
    ignored_class: int | None = None

    def __post_init__(self) -> None:
        check_number(
            "SoftmaxCrossEntropy: label_smoothing",
            self.label_smoothing,
            "a number in [0, 1]",
            lambda share: 0 <= share <= 1,
        )
        check_ignored_class("SoftmaxCrossEntropy", self.ignored_class)

    def activate(self, prediction: jax.Array) -> jax.Array:
        return jax.nn.softmax(prediction, axis=-1)

    def value(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        y, counts, valid = self.distribution(prediction, target)
        z = prediction.astype(y.dtype)
        shifted = z - _finite_max(z)
        log_p = shifted - jnp.log(jnp.exp(shifted).sum(-1, keepdims=True))
        value = -jnp.where(y == 0, 0, y * log_p).sum(-1)
        return poison(value, counts, valid)

    def error(self, prediction: jax.Array, target: jax.Array) -> jax.Array:
        y, counts, valid = self.distribution(prediction, target)
        p = softmax(prediction.astype(y.dtype))
        total = 1 if is_classes(prediction, target) else y.sum(-1, keepdims=True)
        return poison(p * total - y, counts, valid)

    def counts(self, prediction: jax.Array, target: jax.Array) -> jax.Array | None:
        if self.ignored_class is None or not is_classes(prediction, target):
            return None
        return counted_classes(target, self.ignored_class)

    def check(self, prediction: Any, target: Any) -> None:
        if target.shape != prediction.shape:
            also = f"{tuple(prediction.shape)} like the prediction, or "
            check_classes(self, prediction, target, also)
        elif self.ignored_class is not None:
            raise TypeError(
                f"{self!r}: an ignored class needs integer classes as targets, got "
                f"{target.dtype} {tuple(target.shape)}; weight the predictions instead."
            )

    def check_target(self, units: int, target: Any, counted: Any) -> None:
        advice = "" if self.ignored_class is not None else " or name it as ignored_class"
        check_classes_exist(self, units, target, counted, self.ignored_class, advice)

    def distribution(
        self, prediction: jax.Array, target: jax.Array
    ) -> tuple[jax.Array, jax.Array | bool, jax.Array | bool]:
        """Targets as y (..., C) after smoothing, which predictions count, which are valid."""
        units = prediction.shape[-1]
        dtype = accumulation_dtype(prediction)
        counts: jax.Array | bool = True
        valid: jax.Array | bool = True
        if is_classes(prediction, target):
            target = widened(target)
            y = (target[..., None] == jnp.arange(units)).astype(dtype)
            valid = _exists(target, units)
            total: Any = 1
            if self.ignored_class is not None:
                counts = counted_classes(target, self.ignored_class)
        else:
            y = target.astype(dtype)
            total = y.sum(-1, keepdims=True) if self.label_smoothing else 1
        if self.label_smoothing:
            share = jnp.asarray(self.label_smoothing, dtype)
            y = (1 - share) * y + share * total / units
        return y, counts, valid


def _exists(target: jax.Array, units: int) -> jax.Array:
    """Which classes are among 0 ... units - 1: of 0 and units, the first alone isn't above them.

    A sum, and so a small kernel of its own, which needs nothing but the targets. XLA on CPU begins
    a program on a thread beside those of its pool: it takes one of the kernels that are ready, and
    hands on the others. Were the network's first product the only one, that thread would go on with
    the network, one thread more than there are cores (784-512-512-10 x 128 on two: 2.45 ms, not
    2.17).
    """
    target = jnp.asarray(target)
    bounds = jnp.array([0, units], target.dtype)
    return (target[..., None] >= bounds).sum(-1) == 1


def softmax(z: jax.Array) -> jax.Array:
    """p, the probability of each class."""
    exponentials = jnp.exp(z - _finite_max(z))
    return exponentials / exponentials.sum(-1, keepdims=True)


def _finite_max(z: jax.Array) -> jax.Array:
    """max z for the shift, 0 where all of z is -inf (z - max z would be NaN)."""
    top = z.max(-1, keepdims=True)
    return jnp.where(top == -jnp.inf, 0, top)


def poison(values: jax.Array, counts: jax.Array | bool, valid: jax.Array | bool) -> jax.Array:
    """Values, 0 where a prediction doesn't count, NaN where its class doesn't exist."""
    if valid is not True:
        values = jnp.where(_like(valid, values), values, jnp.nan)
    if counts is not True:
        values = jnp.where(_like(counts, values), values, 0)
    return values


def _like(flags: Any, values: jax.Array) -> jax.Array:
    return flags.reshape(flags.shape + (1,) * (values.ndim - flags.ndim))
