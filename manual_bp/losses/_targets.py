"""Checks of targets that several losses share."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from manual_bp.layer import Loss


def check_same_shape(loss: Loss, prediction: Any, target: Any) -> None:
    """Raise unless target has the prediction's shape: nothing is broadcast."""
    expected, given = tuple(prediction.shape), tuple(target.shape)
    if given == expected:
        return
    if given == expected[:-1] and jnp.issubdtype(target.dtype, jnp.integer) and expected[-1] > 1:
        raise TypeError(
            f"{loss!r}: targets are integers of shape {given}, expected values of shape "
            f"{expected}. For classes use jax.nn.one_hot(y, {expected[-1]}), or "
            "SoftmaxCrossEntropy(), which takes them as they are."
        )
    advice = ""
    if given == expected[:-1] and expected[-1] == 1:
        advice = " Add the last axis: y[..., None]."
    elif given == expected[::-1]:
        advice = " y.T would fit: y holds examples first."
    raise ValueError(
        f"{loss!r}: targets have shape {given}, expected {expected} like the prediction; they are "
        f"not broadcast.{advice}"
    )
