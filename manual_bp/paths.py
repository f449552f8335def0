"""Paths: where something is in a tree of tuples, such as params."""

from __future__ import annotations

from typing import Any

from manual_bp.layer import Tree

Path = tuple[int | str, ...]
"""Indices, and names of fields, from the outside in: (0, "W") is W of the first layer."""


def is_path(path: Any) -> bool:
    """Whether it is a tuple of indices and names."""
    return isinstance(path, tuple) and all(
        isinstance(step, int | str) and not isinstance(step, bool) for step in path
    )


def at(tree: Tree, path: Path, owner: Any, whose: str) -> Tree:
    """What is there.

    Args:
        tree: of tuples and NamedTuples.
        path: into it.
        owner, whose: who asks, and for whose params, "the body's": an error names both.

    Raises:
        ValueError: when there is nothing.
    """
    for depth in range(len(path)):
        tree = tree[index(tree, path, depth, owner, whose)]
    return tree


def indices(tree: Tree, path: Path, owner: Any, whose: str) -> Path:
    """The path with indices for names of fields."""
    return tuple(
        index(at(tree, path[:depth], owner, whose), path, depth, owner, whose)
        for depth in range(len(path))
    )


def replaced(tree: Tree, path: Path, value: Tree, owner: Any, whose: str, depth: int = 0) -> Tree:
    """The tree with this value at the path."""
    if depth == len(path):
        return value
    place, items = index(tree, path, depth, owner, whose), list(tree)
    items[place] = replaced(items[place], path, value, owner, whose, depth + 1)
    return type(tree)(*items) if hasattr(tree, "_fields") else tuple(items)


def index(tree: Tree, path: Path, depth: int, owner: Any, whose: str) -> int:
    """The index of a path's step in the tuple that the steps before it lead to."""
    step = path[depth]
    names = tree._fields if hasattr(tree, "_fields") else ()
    if isinstance(tree, tuple):
        if isinstance(step, str) and step in names:
            return names.index(step)
        if isinstance(step, int) and 0 <= step < len(tree):
            return step
    held = f"a tuple of {len(tree)}" if isinstance(tree, tuple) else type(tree).__name__
    held = f"{type(tree).__name__} with fields {', '.join(names)}" if names else held
    raise ValueError(
        f"{owner!r}: there is nothing at {path} of {whose} params: {path[:depth]} is {held}, which "
        f"has no {step!r}."
    )
