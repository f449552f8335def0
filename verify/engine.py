"""What the engine makes of a case, in the names of the judge: one traced program."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from verify import reference
from verify.interpreter import Program, trace
from verify.networks import Case, Problem, opened


def intermediates(
    network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> dict[str, jax.Array]:
    """J, every intermediate, and the gradient that `manual_value_and_grads` returns.

    The gradient's leaves are there twice: "dW1" as the walk shows it and "grads dW1" as the caller
    gets it.
    """
    settings: Any = {"network": network, "loss": loss, "weights": weights, **opened(taken)}
    total, grads = mbp.manual_value_and_grads(params, x, y, **settings)
    named = {"J": total, **mbp.intermediates(params, x, y, **settings)}
    named |= {
        f"grads {name}": each for name, each in reference.named_gradients(network, loss, grads)
    }
    return named


def by_autodiff(
    network: Layer, loss: Loss, params: Any, x: Any, y: Any, weights: Any, taken: Any
) -> dict[str, jax.Array]:
    """The same by jax.grad of the judge's own network."""
    named = reference.intermediates(network, loss, params, x, y, weights, opened(taken))
    params_only = [name for name, _ in reference.named_gradients(network, loss, params)]
    return named | {f"grads {name}": named[name] for name in params_only}


def programs(case: Case, problem: Problem) -> tuple[Program, Program]:
    """The engine's program and autodiff's, traced for this problem."""
    return (
        trace(lambda *args: intermediates(case.used, case.loss, *args), *problem),
        trace(lambda *args: by_autodiff(case.used, case.loss, *args), *problem),
    )


def in_order_of_computation(names: list[str]) -> list[str]:
    """Forward quantities first, then the errors from the last layer down.

    Example:
        >>> in_order_of_computation(["J", "Z1", "Z2", "dZ1", "dW1", "dZ2", "grads dW1"])
        ['Z1', 'Z2', 'J', 'dZ2', 'dZ1', 'dW1', 'grads dW1']
    """
    kinds = ("dA", "dout", "dZ")  # an error arrives, passes g', and only then makes gradients

    def place(name: str) -> tuple[int, ...]:
        digits = re.search(r"\d+(\.\d+)*$", name)
        return tuple(int(each) for each in digits.group().split(".")) if digits else ()

    def key(name: str) -> Any:
        if name == "J":
            return (1,)
        if not name.startswith(("d", "grads ")):
            return (0, place(name), name.startswith("A"))
        if name.startswith("grads "):
            return (3,)
        if name.endswith(" of the loss"):
            return (2, ())
        kind = name.rstrip("0123456789.")
        downwards = tuple(-each for each in place(name)) + (1,)
        return (2, downwards, kinds.index(kind) if kind in kinds else len(kinds))

    return sorted(names, key=key)


def dtype_of(problem: Problem, dtype: Any) -> Problem:
    """The problem with its floats in another dtype, as JAX arrays."""

    def cast(leaf: Any) -> Any:
        return jnp.asarray(leaf, dtype) if leaf.dtype.kind == "f" else jnp.asarray(leaf)

    return jax.tree.map(cast, problem)
