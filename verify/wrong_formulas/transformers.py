"""Mistakes that people make when they put a transformer together, for `verify.wrong_formulas`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.combinators.skip import Skip
from manual_bp.combinators.stack import Stack
from manual_bp.combinators.tied import Tied
from manual_bp.layer import within
from verify.networks import Case

CASES = (
    Case(
        mbp.gpt(4, context=3, width=4, heads=2, depth=2),
        mbp.SoftmaxCrossEntropy(),
        (2, 3),
        seed=(41,),
    ),
)


def _one_use_alone(kept: int) -> Any:
    """The gradient of tied parameters at one of its places in place of the sum."""

    def gather(layer: Tied, dparams: Any) -> Any:
        each = layer.body.gather(dparams[0])
        for group in layer.groups:
            used = layer._at(each, group[kept])
            for path in group[1:]:
                each = layer._with(each, path, ())
            each = layer._with(each, group[0], used)
        return (each,)

    return mock.patch.object(Tied, "gather", gather)


def _skip(join: Callable[[jax.Array, jax.Array], jax.Array]) -> Any:
    """join(dout, dbody) in place of their sum."""

    def walk(layer: Skip, visit: Any, dout: jax.Array, *trees: Any) -> Any:
        with within(1, layer.body):
            seen, dbody = layer.body.walk(visit, dout, *(tree[0] for tree in trees))
        return (seen,), join(dout, dbody)

    return mock.patch.object(Skip, "walk", walk)


def _steps_in_forward_order() -> Any:
    """Blocks' parameters in the order of the forward pass, going back."""
    right = Stack.walk

    def walk(layer: Any, visit: Any, dout: jax.Array, params: Any, *trees: Any) -> Any:
        params = jax.tree.map(lambda leaf: jnp.flip(leaf, 0), params)
        return right(layer, visit, dout, params, *trees)

    return mock.patch.object(Stack, "walk", walk)


WRONG: dict[str, Callable[[], Any]] = {
    "tied embedding without its use at the head": lambda: _one_use_alone(0),
    "tied embedding without its use below": lambda: _one_use_alone(1),
    "error of the skip dropped": lambda: _skip(lambda dout, dbody: dbody),
    "error of the body dropped": lambda: _skip(lambda dout, dbody: dout + 0 * dbody),
    "blocks' weights in the order of the forward pass": _steps_in_forward_order,
}
