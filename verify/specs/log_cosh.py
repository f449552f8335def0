"""Spec of LogCosh: optax's, summed over the units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import optax

from manual_bp.losses.log_cosh import LogCosh
from verify.specification import BadInput, Edge, LossSpec, Shape

loss = LogCosh()


def naive(loss: LogCosh, a: np.ndarray, y: np.ndarray) -> np.ndarray:
    """log cosh(a - y), one by one."""
    terms = [mp.log(mp.cosh(p - t)) for p, t in zip(a.ravel(), y.ravel(), strict=True)]
    return np.array(terms).reshape(a.shape).sum(-1)


def target(rng: np.random.Generator, loss: LogCosh, shape: Shape) -> np.ndarray:
    """Real values, near and far."""
    return rng.normal(size=shape) * rng.choice([1.0, 4.0])


SPECS = (
    LossSpec(
        loss=LogCosh,
        samples=(loss,),
        reference=lambda loss, a, y: optax.log_cosh(a, y).sum(-1),
        naive=naive,
        target=target,
        draw=lambda rng: loss,
        edges=(
            Edge(
                function="log cosh near 0 and far from it",
                point=(1e-8, 1e4, -1e4),
                dtype="float32",
                stated=(1e-8, 1.0, -1.0),
                manual=lambda a: loss.error(a, jnp.zeros(3)),
                autodiff=jax.grad(lambda a: optax.log_cosh(a, jnp.zeros(3)).sum()),
                recorded=(0.0, 1.0, -1.0),
            ),
            Edge(
                function="log(cosh(a)) where cosh overflows",
                point=(100.0, -100.0),
                dtype="float32",
                stated=(1.0, -1.0),
                manual=lambda a: loss.error(a, jnp.zeros(2)),
                autodiff=jax.grad(lambda a: jnp.log(jnp.cosh(a)).sum()),
                recorded=(np.nan, np.nan),
            ),
        ),
        errors=(
            BadInput(
                "log-cosh: targets (m,) against (m, 1)",
                lambda: loss.check(jnp.zeros((5, 1)), jnp.zeros(5)),
                ValueError,
                ("LogCosh()", "shape (5,)", "expected (5, 1)", "y[..., None]"),
            ),
        ),
    ),
)
