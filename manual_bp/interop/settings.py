"""What modules of other libraries and their converters share: settings that have no counterpart."""

from __future__ import annotations

from typing import Any, NamedTuple

from manual_bp.layer import Tree


class Converted(NamedTuple):
    """A module of another library as one of ours."""

    layer: Any
    params: Tree
    statistics: Tree = ()
    """Running statistics for `layer.inference()`, () where there are none."""


class Settings(NamedTuple):
    """Whose settings are checked, and what can't be done with those that don't fit."""

    owner: str
    cannot: str
    advice: str = ""

    def check(self, name: str, value: Any, *fitting: Any, advice: str = "") -> None:
        """Raise unless the setting has one of the values that fit.

        Args:
            name: of the setting.
            value: it has.
            *fitting: values with which it can be done.
            advice: what to do, beside `self.advice`.
        """
        if any(value is each for each in fitting):
            return
        if isinstance(value, bool | int | float | str | tuple) and value in fitting:
            return
        expected = " or ".join(map(_name_of, fitting))
        sentence = f"{self.owner}: {name}={_name_of(value)} {self.cannot}, expected {expected}."
        raise ValueError(" ".join(filter(None, (sentence, advice, self.advice))))


def _name_of(value: Any) -> str:
    """A function by its name, which its repr buries."""
    return value.__name__ if callable(value) and hasattr(value, "__name__") else repr(value)


def carried(owner: str, goal: str) -> Settings:
    """The settings of what is carried over to a module or layer of another library."""
    return Settings(owner, f"can't be carried over to {goal}")


def served(kind: type, original: str) -> Settings:
    """The settings of a module of ours with the constructor of another library's.

    Args:
        kind: of the module.
        original: the library's own, with its name.
    """
    return Settings(
        f"{kind.__module__.rpartition('.')[0]}.{kind.__name__}",
        "isn't served by the hand-derived backward",
        f"Or keep {original} here: the two mix.",
    )


def check_carried(refuse: Settings, layer: Any, at_the_call: str) -> None:
    """Raise where attention has a setting that no other library's module has.

    Args:
        refuse: whose settings they are.
        layer: our MultiHeadAttention.
        at_the_call: how the library takes masks.
    """
    for name, setting in (
        ("causal", layer.causal),
        ("masked", layer.masked),
        ("attention_masked", layer.attention_masked),
    ):
        advice = f"{at_the_call}: carry over dataclasses.replace(layer, {name}=False)."
        refuse.check(name, setting, False, advice=advice)
    for name, setting in (
        ("window", layer.window),
        ("soft_cap", layer.soft_cap),
        ("rotary", layer.rotary),
    ):
        refuse.check(name, setting, None)


def as_sizes(value: Any, axes: int) -> tuple[int, ...]:
    """A size for each axis, of one number for all, of a sequence, or of None for 1."""
    if value is None:
        return (1,) * axes
    return (int(value),) * axes if isinstance(value, int) else tuple(int(each) for each in value)


def shortest(sizes: tuple[int, ...]) -> int | tuple[int, ...]:
    """One number where all sizes are the same: as our layers are mostly written."""
    return sizes[0] if len(set(sizes)) == 1 else sizes
