"""What a benchmark is: ways to the same gradient, and the ratios that are aimed at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

OURS = "by hand"
SAME = "jax.grad"
"""jax.grad of the same forward pass, in this package's own operations where no other is quicker."""
IDIOMATIC = "idiomatic"
"""jax.grad of it as people write it, with jax.nn, flax or optax."""
TORCH = "PyTorch"

TIME, MEMORY, FLOPS, COMPILE, RATE = "time", "memory", "flops", "compile", "rate"
QUANTITIES = (TIME, MEMORY, FLOPS, COMPILE, RATE)


class Way(NamedTuple):
    """One way to a gradient: a function that JAX compiles, and its arguments."""

    function: Callable[..., Any]
    args: tuple[Any, ...]


class Eager(NamedTuple):
    """A way that JAX doesn't compile: called as it is."""

    run: Callable[[], Any]


class Target(NamedTuple):
    """A ratio of the first way's amount to another's that is aimed at, at most.

    Of `RATE` it is the part of the matrix-multiply rate that is aimed at, at least.
    """

    quantity: str
    limit: float
    against: str = SAME

    def holds(self, ratio: float) -> bool:
        """Whether this ratio is as aimed at."""
        return ratio >= self.limit if self.quantity == RATE else ratio <= self.limit

    def __str__(self) -> str:
        return f"{'≥' if self.quantity == RATE else '≤'} {self.limit:.3g}"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    The ways are made when they are measured, since their arguments take memory. The first is the
    one that is judged.
    """

    name: str
    ways: Callable[[], dict[str, Way | Eager]]
    targets: tuple[Target, ...] = ()
    timed: bool = True
    """Whether it is run at all; where only memory counts it is just compiled."""
    note: str = ""
    """What a reader has to know: what is kept for backward, what was tried where it falls short."""
    against_idiomatic: str = ""
    """What the idiomatic way is."""


@dataclass(frozen=True)
class Group:
    """The rows of one subject, and targets for the geometric means of their ratios."""

    name: str
    title: str
    rows: tuple[Row, ...]
    means: tuple[Target, ...] = ()
    note: str = field(default="")
