"""All groups of rows, and how rows are chosen by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from benchmarks import (
    attention,
    clipping,
    diagnostics,
    elementwise,
    gpt,
    interop,
    linear_cross_entropy,
    mlp,
    per_example,
    recurrent,
    resnet,
    stack,
)
from benchmarks.row import Group

GROUPS: dict[str, Callable[[], Group]] = {
    "mlp": mlp.group,
    "first_gradient": mlp.first_gradient,
    "stack": stack.group,
    "reversible": stack.reversible,
    "recurrent": recurrent.group,
    "attention": attention.group,
    "linear_cross_entropy": linear_cross_entropy.group,
    "elementwise": elementwise.group,
    "resnet": resnet.group,
    "gpt": gpt.group,
    "per_example": per_example.group,
    "clipping": clipping.group,
    "diagnostics": diagnostics.group,
    "interop": interop.group,
}


def chosen(names: list[str]) -> list[Group]:
    """The groups, each with the rows that are meant; means are only over whole groups.

    Args:
        names: of groups, or parts of "group: row"; nothing for all.

    Raises:
        LookupError: for a name that means no row.

    Example:
        >>> [row.name for group in chosen(["mlp: 64"]) for row in group.rows]
        ['64-32-10 x 128']
    """
    groups = [make() for make in GROUPS.values()]
    if not names:
        return groups
    lost = [
        name
        for name in names
        if not any(means(name, group, row.name) for group in groups for row in group.rows)
    ]
    if lost:
        rows = "\n".join(f"  {group.name}: {row.name}" for group in groups for row in group.rows)
        raise LookupError(f"no row is meant by {', '.join(map(repr, lost))}; there are\n{rows}")
    kept = []
    for group in groups:
        rows = tuple(
            row for row in group.rows if any(means(name, group, row.name) for name in names)
        )
        if rows:
            whole = len(rows) == len(group.rows)
            kept.append(replace(group, rows=rows, means=group.means if whole else ()))
    return kept


def means(name: str, group: Group, row: str) -> bool:
    """Whether this name means this row."""
    return name == group.name or name in f"{group.name}: {row}"
