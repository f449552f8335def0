"""Checks that models share."""

from __future__ import annotations

from typing import Any


def check_counts(model: str, **settings: Any) -> None:
    """Raise a TypeError unless all of these settings are positive ints."""
    for name, value in settings.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise TypeError(f"{model}: {name} must be a positive int, got {value!r}.")
