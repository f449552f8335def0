"""Spec of AbsoluteError: |r| as the larger of r and -r, one after the other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.losses.absolute_error import AbsoluteError
from verify.specification import BadInput, Edge, LossSpec, Shape

loss = AbsoluteError()


def reference(loss: AbsoluteError, a: jax.Array, y: jax.Array) -> jax.Array:
    """max(r, 0) + max(-r, 0): at r = 0 autodiff takes ½ - ½ = 0, where that of abs is 1."""
    r = a - y
    return (jnp.maximum(r, 0) + jnp.maximum(-r, 0)).sum(-1)


def naive(loss: AbsoluteError, a: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|a - y|, one by one."""
    terms = [abs(p - t) for p, t in zip(a.ravel(), y.ravel(), strict=True)]
    return np.array(terms).reshape(a.shape).sum(-1)


def target(rng: np.random.Generator, loss: AbsoluteError, shape: Shape) -> np.ndarray:
    """Real values; sometimes whole ones."""
    y = rng.normal(size=shape)
    return np.round(y) if rng.random() < 0.2 else y


SPECS = (
    LossSpec(
        loss=AbsoluteError,
        samples=(loss,),
        reference=reference,
        naive=naive,
        target=target,
        draw=lambda rng: loss,
        exact=lambda loss: True,
        smooth=lambda loss: False,
        edges=(
            Edge(
                function="|a - y| at a = y",
                point=(0.0, 1.0),
                dtype="float32",
                stated=(0.0, 1.0),
                manual=lambda a: loss.error(a, jnp.zeros(2)),
                autodiff=jax.grad(lambda a: jnp.abs(a - jnp.zeros(2)).sum()),
                recorded=(1.0, 1.0),
            ),
        ),
        errors=(
            BadInput(
                "absolute error: targets (m,) against (m, 1)",
                lambda: loss.check(jnp.zeros((5, 1)), jnp.zeros(5)),
                ValueError,
                ("AbsoluteError()", "shape (5,)", "expected (5, 1)", "y[..., None]"),
            ),
        ),
    ),
)
