"""What the converters share: refusing what can't be carried over, and sizes in one form."""

from __future__ import annotations

from typing import Any, NamedTuple

from manual_bp.layer import Layer, Tree


class Converted(NamedTuple):
    """A module of another library as one of ours."""

    layer: Layer
    params: Tree
    statistics: Tree = ()
    """Running statistics for `layer.inference()`, () where there are none."""


class Settings(NamedTuple):
    """Who has the settings that are checked, and where they were to go."""

    owner: str
    goal: str

    def check(self, name: str, value: Any, *carried: Any, advice: str = "") -> None:
        """Raise unless the setting has one of the values that can be carried over."""
        if any(value is each for each in carried):
            return
        if isinstance(value, bool | int | float | str | tuple) and value in carried:
            return
        expected = " or ".join(map(repr, carried))
        raise ValueError(
            f"{self.owner}: {name}={value!r} can't be carried over to {self.goal}, expected "
            f"{name}={expected}.{' ' if advice else ''}{advice}"
        )


def as_sizes(value: Any, axes: int) -> tuple[int, ...]:
    """A size for each axis, of one number for all, of a sequence, or of None for 1."""
    if value is None:
        return (1,) * axes
    return (int(value),) * axes if isinstance(value, int) else tuple(int(each) for each in value)


def shortest(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all sizes are the same: as our layers are mostly written."""
    return sizes[0] if len(set(sizes)) == 1 else sizes
