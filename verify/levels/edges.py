"""L6: points where autodiff is NaN or inaccurate, and the values stated for them.

Ours must be the stated value. What jax.grad gives is compared with what it gave when the table was
written: a JAX that no longer does is reported, not failed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from verify import specs
from verify.report import Report
from verify.specification import Edge


def shown(values: Any) -> tuple[str, ...]:
    """Numbers to three significant digits, as the table states them."""
    numbers = np.ravel(np.asarray(values, np.float64))
    return tuple(f"{0.0 if each == 0 else each:.3g}" for each in numbers)


def judge(edge: Edge) -> tuple[bool, bool, str]:
    """(ours is the stated value, autodiff gives what was recorded, both in words)."""
    with jax.enable_x64(edge.dtype == "float64"):
        point = jnp.asarray(edge.point, edge.dtype)
        ours, theirs = shown(edge.manual(point)), shown(edge.autodiff(point))
    text = (
        f"{edge.function} at {edge.point} in {edge.dtype}: stated {', '.join(shown(edge.stated))}, "
        f"ours {', '.join(ours)}, jax.grad {', '.join(theirs)}"
    )
    return ours == shown(edge.stated), theirs == shown(edge.recorded), text


def table() -> list[tuple[str, Edge]]:
    """(family, edge) for every spec."""
    layers = [(spec.layer.__name__, edge) for spec in specs.layers() for edge in spec.edges]
    return layers + [(spec.loss.__name__, edge) for spec in specs.losses() for edge in spec.edges]


def run(report: Report) -> None:
    """Judge the table."""
    level = report.level("L6 edges", "points where autodiff errs: ours is the value stated")
    rows = table()
    with report.working("edges", len(rows)) as advance:
        for family, edge in rows:
            right, as_recorded, text = judge(edge)
            level.judged(right, failure=text, family=family)
            if not as_recorded:
                recorded = ", ".join(shown(edge.recorded))
                level.note(f"this JAX differs from the record ({recorded}): {text}")
            advance(edge.function[:60])
