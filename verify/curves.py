"""The loss curves of two trainings, by hand and by jax.grad: how far apart, and how far is far.

Both round differently and so drift apart, at a rate that is the network's own. So the yardstick is
taken from the same training: jax.grad's run is repeated from parameters moved by one rounding each,
and the run by hand may be no farther from it than twice the farthest of those, as in L5.

A training that has hardly begun to drift has a curve made of each step's own roundings. There the
neighbours may be varied at each step: moved once more, or given a batch's rows in another order, so
that sums over examples round differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 3
"""Further runs of jax.grad, from parameters moved by one rounding: how far rounding leads."""
LIMIT = 2
"""Of the distance of the run by hand, in distances of the farthest neighbour."""

Step = Callable[..., tuple[Any, jax.Array]]
"""step(carry, *batch) -> (carry, loss): one step of a training."""


class Curves(NamedTuple):
    """Losses step by step."""

    manual: np.ndarray
    autodiff: np.ndarray
    neighbours: np.ndarray
    """The first losses of autodiff from parameters moved by a rounding, a row for each run."""
    compared: int
    """How many first steps are compared, loss by loss."""

    @property
    def apart(self) -> float:
        """The largest relative difference of the first losses by hand from autodiff's."""
        return float(np.max(np.abs(self._from_autodiff(self.manual))))

    @property
    def ratio(self) -> float:
        """How far the run by hand is from autodiff's, over how far its farthest neighbour is.

        Root mean squares over the steps: the largest differences alone are a rounding or two of a
        loss, the one twice as far as the other.
        """
        farthest = max(map(self._pooled, self.neighbours))
        return self._pooled(self.manual) / farthest

    def _pooled(self, losses: np.ndarray) -> float:
        return float(np.sqrt(np.mean(self._from_autodiff(losses) ** 2)))

    def _from_autodiff(self, losses: np.ndarray) -> np.ndarray:
        first = self.autodiff[: self.compared]
        return (losses[: self.compared] - first) / first


def neighbour(params: Any, rng: np.random.Generator) -> Any:
    """Parameters of which each is moved by one rounding, up or down at random."""

    def moved(leaf: Any) -> jax.Array:
        leaf = np.asarray(leaf)
        ends = rng.choice(np.array([-np.inf, np.inf], leaf.dtype), leaf.shape)
        return jnp.asarray(np.nextafter(leaf, ends))

    return jax.tree.map(moved, params)


def follow(
    manual: Step,
    autodiff: Step,
    start: Callable[[Any], Any],
    params: Any,
    batches: Iterable[tuple[Any, ...]],
    *,
    compared: int,
    rng: np.random.Generator,
    vary: Callable[[int, np.random.Generator, Any, Any], tuple[Any, Any]] = (
        lambda number, rng, carry, batch: (carry, batch)
    ),
    advance: Callable[[], None] = lambda: None,
) -> tuple[Curves, Any, Any]:
    """Train both ways from the same parameters on the same batches, and autodiff's neighbours.

    Args:
        manual, autodiff: a step of each.
        start: start(params) -> the carry of the first step.
        params: where both begin.
        batches: what each step takes beside the carry.
        compared: how many first steps are; the neighbours do no more.
        rng: for the neighbours.
        vary: vary(number, rng, carry, batch) -> the last two as the next step of the neighbour of
            this number gets them: the same but for rounding.
        advance: called after each step.

    Returns:
        The curves, and what the two trainings carry at their ends.
    """
    near = [neighbour(params, rng) for _ in range(NEIGHBOURS)]
    ways: list[list[Any]] = [
        [manual, start(params), []],
        *([autodiff, start(each), []] for each in (params, *near)),
    ]
    for number, batch in enumerate(batches):
        for place, way in enumerate(ways if number < compared else ways[:2]):
            step, carry, losses = way
            given = (carry, batch) if place < 2 else vary(place - 2, rng, carry, batch)
            way[1], loss = step(given[0], *given[1])
            losses.append(float(loss))
        advance()
    ours, theirs, *others = (np.array(way[2]) for way in ways)
    return Curves(ours, theirs, np.array(others), compared), ways[0][1], ways[1][1]
