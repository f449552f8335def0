"""Mistakes that people make in a head fused with its loss, put into `LinearCrossEntropy`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.losses.linear_cross_entropy import LinearCrossEntropy
from manual_bp.paths import replaced
from verify.networks import Case

EVERY_SETTING = LinearCrossEntropy(
    5, chunk=2, soft_cap=1.5, label_smoothing=0.25, ignored_class=0, z_loss=0.125, bias=True
)
CASES = (
    Case(mbp.sequential(mbp.Dense(3, mbp.tanh)), EVERY_SETTING, (5, 4), seed=(1,)),
    Case(
        mbp.sequential(mbp.Dense(3, mbp.tanh), mbp.Dense(3)),
        LinearCrossEntropy(3, chunk=2, shared=(0, "W")),
        (4, 3),
        "given",
        seed=(2,),
    ),
)


def _with(name: str, wrong: Callable[..., Any]) -> Any:
    return mock.patch.object(LinearCrossEntropy, name, wrong)


def _gradients(change: Callable[..., Any]) -> Any:
    """The right values with the gradients of another loss, or of other weights."""
    right = LinearCrossEntropy.sweep

    def sweep(loss: LinearCrossEntropy, params: Any, h: Any, target: Any, weights: Any) -> Any:
        values, *_ = right(loss, params, h, target, weights)
        other, weights = change(loss, weights)
        return values, *right(other, params, h, target, weights)[1:]

    return _with("sweep", sweep)


def _of_its_own_chunk() -> Any:
    right = LinearCrossEntropy._chunk

    def chunk(loss: LinearCrossEntropy, params: Any, dparams: Any, *rows: Any) -> Any:
        return right(loss, params, jax.tree.map(jnp.zeros_like, dparams), *rows)

    return _with("_chunk", chunk)


WRONG: dict[str, Callable[[], Any]] = {
    "fused head: dW of the last chunk only": _of_its_own_chunk,
    "fused head: derivative of the z-loss dropped": lambda: _gradients(
        lambda loss, w: (replace(loss, z_loss=0.0), w)
    ),
    "fused head: derivative of the soft cap dropped": lambda: _with(
        "_through_cap", lambda loss, dz, z: dz
    ),
    "fused head: label smoothing forgotten in the error": lambda: _gradients(
        lambda loss, w: (replace(loss, label_smoothing=0.0), w)
    ),
    "fused head: ignored tokens counted in the mean": lambda: _gradients(
        lambda loss, w: (loss, jnp.where(w == 0, 0, jnp.ones_like(w) / w.size))
    ),
    "fused head: weights applied twice": lambda: _gradients(lambda loss, w: (loss, w * w)),
    "tied head: its gradient not added": lambda: _with("repay", lambda loss, grads, dparams: grads),
    "tied head: its gradient in place of the network's": lambda: _with(
        "repay",
        lambda loss, grads, dparams: (
            replaced(grads, loss.shared, dparams.W, loss, "the network's") if loss.shared else grads
        ),
    ),
}
