"""manual_grads runs with every way of differentiating in JAX patched to raise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import jax

from verify import engine
from verify.interpreter import trace
from verify.networks import draw_case
from verify.report import Report

WAYS = (
    "grad",
    "value_and_grad",
    "vjp",
    "jvp",
    "linearize",
    "linear_transpose",
    "jacfwd",
    "jacrev",
    "jacobian",
    "hessian",
)


@contextmanager
def forbidden() -> Iterator[None]:
    """Inside, jax.grad and its kin raise."""

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("autodiff was called")

    with ExitStack() as stack:
        for name in WAYS:
            stack.enter_context(mock.patch.object(jax, name, refuse))
        yield


def run(report: Report, *, seed: int, trials: int) -> None:
    """Trace the engine on random networks with autodiff forbidden."""
    what = "the engine with jax.grad, vjp, jvp, linearize, ... patched to raise"
    level = report.level("no autodiff", what)
    with report.working("no autodiff", trials) as advance:
        for number in range(trials):
            case = draw_case(seed, number, most_layers=4)
            problem = case.problem()
            jax.clear_caches()  # a cached trace would prove nothing
            try:
                with forbidden():
                    trace(
                        lambda *args, case=case: engine.intermediates(case.used, case.loss, *args),
                        *problem,
                    )
                ok = True
            except AssertionError:
                ok = False
            level.judged(ok, failure=f"{case} calls autodiff", family="networks")
            advance(str(case)[:60])
