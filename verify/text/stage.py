"""The stage of python -m verify: a tiny GPT and LSTM learn some steps by hand and by jax.grad."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from verify.curves import LIMIT
from verify.report import Report
from verify.text import training
from verify.text.corpus import corpus


def run(report: Report, *, quick: bool = False) -> None:
    """Train on Python's help topics both ways; the loss curves must be one.

    In float64 a wrong factor shows that adamw hides, as for the digits; float32 is what one trains
    in.
    """
    for model in training.TINY:
        _compare(report, model, np.float64)
    if not quick:
        _compare(report, "gpt", np.float32)


def _compare(report: Report, model: str, dtype: Any) -> None:
    settings = training.TINY[model]
    name = f"text {model} {np.dtype(dtype).name}"
    what = f"loss curves of {settings.steps} steps: how far apart over a rounding's reach"
    level = report.level(name, what, str(LIMIT))
    with report.working(name, settings.steps) as advance, jax.enable_x64(dtype == np.float64):
        curves = training.compare(settings, corpus(), settings.steps, dtype, advance)
    failure = f"loss curves differ by {curves.apart:.2g}"
    level.judged(curves.ratio <= LIMIT, curves.ratio, failure)
    level.note(
        f"largest relative difference of the two loss curves: {curves.apart:.1e}; loss "
        f"{curves.manual[0]:.3f} at first, {curves.manual[-1]:.3f} at last"
    )
