"""What is probably wrong with a wrong gradient: the mistakes that people make, tried one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from verify.arithmetic.rounding import Bounded
from verify.judges import BOUNDS
from verify.rules import Rule


def likely_cause(rule: Rule, args: tuple[Any, ...], name: str) -> str:
    """The first known mistake that turns the right result of this name into the wrong one.

    Args:
        rule: whose result is wrong.
        args: where.
        name: of the result.

    Returns:
        The cause in words, "" when none fits.
    """
    manual, autodiff = rule.programs(args)
    ours, theirs = manual.run(args, BOUNDS), autodiff.run(args, BOUNDS)
    if name not in ours or name not in theirs:
        return "it is missing on one side: are the gradients nested like the parameters?"
    sizes = {size for leaf in jax.tree.leaves(args) for size in np.shape(leaf)}
    others = {key: value for key, value in theirs.items() if key != name}
    return next(_causes(ours[name], theirs[name], sizes, others, args), "")


def _causes(
    ours: Bounded, theirs: Bounded, sizes: set[int], others: dict[str, Any], args: Any
) -> Iterator[str]:
    """Every cause that fits, the most telling first."""
    mine, right = ours.value, theirs.value
    slack = float(np.max(theirs.bound, initial=0) + np.max(ours.bound, initial=0))
    # This and the numbers in `_factors` and `_partial` are chosen, and judge nothing: the result
    # has been found wrong already, and here only the words are sought that describe how.
    slack = 64 * max(slack, 2.0**-50 * float(np.abs(right).max(initial=0)))

    def same(one: Any, other: Any) -> bool:
        return np.shape(one) == np.shape(other) and bool(np.all(np.abs(one - other) <= slack))

    if not np.isfinite(mine).all():
        yield "it is NaN or infinite"
        return
    if mine.shape != right.shape:
        for axis in range(mine.ndim):
            if same(mine.sum(axis), right) or same(mine.sum(axis, keepdims=True), right):
                yield f"a sum over axis {axis} is missing"
        if same(np.squeeze(mine), np.squeeze(right)):
            yield f"its shape is {mine.shape}, expected {right.shape}"
        if mine.ndim >= 2 and same(np.swapaxes(mine, -1, -2), right):
            yield "a transpose is missing"
        return
    if not mine.any():
        yield "it is zero: is the error dropped on the way?"
        return
    if right.any():
        yield from _factors(mine, right, sizes, same)
    if (
        mine.ndim >= 2
        and mine.shape[-1] == mine.shape[-2]
        and same(np.swapaxes(mine, -1, -2), right)
    ):
        yield "a transpose is missing: it is the transpose of the right one"
    for other, value in others.items():
        if isinstance(value, Bounded) and same(mine, value.value):
            yield f"it is {other}"
    yield from _partial(mine, right, same, args)
    yield from _products(mine, right, same, args)


def _factors(mine: np.ndarray, right: np.ndarray, sizes: set[int], same: Any) -> Iterator[str]:
    factor = float(np.sum(mine * right) / np.sum(right * right))
    if abs(factor) < 1e-12 or not same(mine / factor, right):
        return
    for size in sorted(sizes - {0, 1, 2}):
        # The factor is known to a few roundings of a sum.
        axis = f"{size} is the size of an axis"
        if abs(factor - size) < 1e-9 * size:
            yield f"it is {size} times the right one: {axis}, is 1/{size} missing?"
        if abs(factor * size - 1) < 1e-9:
            yield f"it is 1/{size} of the right one: {axis}, is 1/{size} there twice?"
    if abs(factor + 1) < 1e-9:
        yield "the sign is wrong"
    yield f"it is {factor:.6g} times the right one"


def _partial(mine: np.ndarray, right: np.ndarray, same: Any, args: Any) -> Iterator[str]:
    missing = right - mine
    rows = [
        index for index in range(len(mine)) if mine.ndim and not same(mine[index], right[index])
    ]
    if mine.ndim and 0 < len(rows) < len(mine):
        named = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        yield f"rows {named} of {len(mine)} are wrong, the others right"
    for axis in range(mine.ndim):
        if mine.shape[axis] > 1 and same(
            missing, np.broadcast_to(missing.mean(axis, keepdims=True), mine.shape)
        ):
            yield f"a term is missing that is constant along axis {axis}, such as a mean"
    for leaf in jax.tree.leaves(args):
        if np.shape(leaf) != mine.shape or np.asarray(leaf).dtype.kind != "f":
            continue
        share = np.sum(missing * leaf) / max(float(np.sum(leaf * leaf)), 1e-300)
        if abs(share) > 1e-12 and same(share * leaf, missing):
            yield f"{share:.6g} times an argument of that shape is missing: a dropped term"
        scale = np.divide(mine, right, out=np.ones_like(mine), where=right != 0)
        if same(scale * 1.0, leaf):
            yield "it is multiplied by an argument of that shape once too often"


def _products(mine: np.ndarray, right: np.ndarray, same: Any, args: Any) -> Iterator[str]:
    """Whether right = e M and mine = e Mᵀ, for a square matrix M among the arguments."""
    for leaf in jax.tree.leaves(args):
        matrix = np.asarray(leaf)
        size = mine.shape[-1] if mine.ndim else 0
        if matrix.shape != (size, size) or matrix.dtype.kind != "f" or size < 2:
            continue
        if np.linalg.matrix_rank(matrix) < size:
            continue
        rows = right.reshape(-1, size)
        for once, instead in ((matrix, matrix.T), (matrix.T, matrix)):
            error = np.linalg.solve(once.T, rows.T).T  # the e of right = e M
            if same(error @ instead, mine.reshape(-1, size)):
                yield "a transpose is missing in a product with a square matrix"
