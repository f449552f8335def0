"""Checks of targets that several losses share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import Loss


def check_ignored_class(what: str, ignored: Any) -> None:
    """Raise unless the setting is an int or None."""
    if ignored is not None and (not isinstance(ignored, int) or isinstance(ignored, bool)):
        raise TypeError(f"{what}: ignored_class must be an int or None, got {ignored!r}.")


def check_same_shape(
    loss: Loss,
    prediction: Any,
    target: Any,
    for_classes: str = (
        "jax.nn.one_hot(y, {units}), or SoftmaxCrossEntropy(), which takes them as they are"
    ),
) -> None:
    """Raise unless target has the prediction's shape: nothing is broadcast.

    Args:
        loss: named in the message.
        prediction: (..., n).
        target: should be (..., n).
        for_classes: what to do with integer classes (...), with {units} for n.
    """
    expected, given = tuple(prediction.shape), tuple(target.shape)
    if given == expected:
        return
    if given == expected[:-1] and jnp.issubdtype(target.dtype, jnp.integer) and expected[-1] > 1:
        raise TypeError(
            f"{loss!r}: targets are integers of shape {given}, expected values of shape "
            f"{expected}. For classes use {for_classes.format(units=expected[-1])}."
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


def is_classes(prediction: Any, target: Any) -> bool:
    """Whether targets are integer classes, one axis less than the prediction."""
    return jnp.issubdtype(target.dtype, jnp.integer) and target.ndim == prediction.ndim - 1


def widened(target: jax.Array) -> jax.Array:
    """Integer targets in at least 32 bits, others as they are.

    Next to an array a Python int takes the array's dtype: in uint8 300 classes are 44.
    """
    narrow = jnp.issubdtype(target.dtype, jnp.integer) and target.dtype.itemsize < 4
    return target.astype(jnp.int32) if narrow else target


def counted_classes(target: jax.Array, ignored: int) -> jax.Array:
    """Which classes aren't the ignored one; all, where the targets' dtype has no such number."""
    target = widened(target)
    held = jnp.iinfo(target.dtype)
    if not held.min <= ignored <= held.max:
        return jnp.ones(target.shape, bool)
    return target != ignored


def check_classes(
    loss: Loss, prediction: Any, target: Any, also: str = "", units: int | None = None
) -> None:
    """Raise unless targets are integer classes, one for each prediction.

    Args:
        loss: named in the message.
        prediction: (..., C).
        target: should be integers (...).
        also: what else the loss takes, to be read before "integer classes".
        units: the number of classes, where it isn't that of the prediction's features.
    """
    expected, given = tuple(prediction.shape[:-1]), tuple(target.shape)
    if given == expected:
        if is_classes(prediction, target):
            return
        raise TypeError(
            f"{loss!r}: targets of shape {given} are classes and must be integers, got "
            f"{target.dtype}. Cast them: y.astype(int)."
        )
    advice = ""
    if given == (*expected, 1):
        advice = " Drop the last axis: y[..., 0]."
    elif given in (tuple(prediction.shape), (*expected, units)):
        advice = " For one-hot labels pass y.argmax(-1)."
    elif given == tuple(prediction.shape[::-1]):
        advice = " y.T would fit: y holds examples first."
    raise ValueError(
        f"{loss!r}: targets have shape {given}, expected {also}integer classes of shape "
        f"{expected}; they are not broadcast.{advice}"
    )


def check_classes_exist(
    loss: Loss,
    units: int,
    target: np.ndarray,
    counted: np.ndarray,
    ignored: int | None = None,
    advice: str = "",
) -> None:
    """Raise at the first class that counts and is not among 0 ... units - 1.

    Args:
        loss: named in the message.
        units: the number of classes.
        target: integers; nothing is checked unless they have the shape of counted.
        counted: booleans, which predictions have a weight other than 0.
        ignored: a class that is welcome though it may not exist.
        advice: what else to do about it.
    """
    if target.dtype.kind not in "iu" or target.shape != counted.shape:
        return
    wrong = counted & ((target < 0) | (target >= units))
    if ignored is not None:
        wrong &= target != ignored
    if wrong.any():
        first = tuple(int(each[0]) for each in wrong.nonzero())
        raise ValueError(
            f"{loss!r}: class {int(target[first])} of target {list(first)} is not among the "
            f"{units} classes 0 to {units - 1}. Mend the label, give it weight 0{advice}."
        )


def check_units(
    loss: Loss, target: np.ndarray, counted: np.ndarray, wrong: np.ndarray, expected: str
) -> None:
    """Raise at the first unit that counts and is wrong.

    Args:
        loss: named in the message.
        target: (..., n), a value for each unit.
        counted: booleans (...) or (..., n), which predictions have a weight other than 0; nothing
            is checked where it has another shape.
        wrong: booleans (..., n).
        expected: what targets must be.
    """
    if counted.shape != target.shape[: counted.ndim]:
        return
    wrong = wrong & counted.reshape(counted.shape + (1,) * (target.ndim - counted.ndim))
    if wrong.any():
        first = tuple(int(each[0]) for each in wrong.nonzero())
        raise ValueError(
            f"{loss!r}: target {list(first)} is {target[first]}, expected {expected}. Mend it, or "
            "give its prediction weight 0."
        )
