"""Counting the multiplications and additions of matrix products and convolutions.

XLA's `cost_analysis` counts the body of a loop once. Here a scan's body counts as often as it runs,
so that rates of recurrent nets and stacks can be told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

CALLS = ("jit", "pjit")
"""Equations whose outputs are those of one program inside."""


def product_flops(function: Callable[..., Any], *args: Any) -> int:
    """2 x the multiplications of all products in this function's program.

    Loops without a known number of turns count once, and of `cond` the dearest branch.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((4, 3))
        >>> product_flops(lambda x: jax.lax.scan(lambda h, _: (h @ x.T @ x, None), x, length=5), x)
        960
    """
    jaxpr = jax.make_jaxpr(function)(*args).jaxpr
    return _of(jaxpr, [True] * len(jaxpr.outvars))


def _of(jaxpr: core.Jaxpr, wanted: list[bool]) -> int:
    """The flops of what these outputs need: XLA drops the rest, as a first layer's dx."""
    live = {var for var, is_wanted in zip(jaxpr.outvars, wanted, strict=True) if is_wanted}
    total = 0
    for equation in reversed(jaxpr.eqns):
        needed = [var in live for var in equation.outvars]
        if any(needed) or equation.effects:
            live.update(var for var in equation.invars if isinstance(var, core.Var))
            total += _of_equation(equation, needed)
    return total


def _of_equation(equation: Any, needed: list[bool]) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        summed = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
        return 2 * summed * math.prod(equation.outvars[0].aval.shape)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        outputs = kernel[params["dimension_numbers"].rhs_spec[0]]
        out = math.prod(equation.outvars[0].aval.shape)
        # a dilated operand is mostly zeros, which aren't multiplied
        zeros = math.prod(params["lhs_dilation"])
        return 2 * out * math.prod(kernel) // (outputs * zeros)
    inner = list(_jaxprs(params))
    if name in CALLS:
        return _of(inner[0], needed)
    counts = [_of(each, [True] * len(each.outvars)) for each in inner]
    if name == "cond":
        return max(counts, default=0)
    return params.get("length", 1) * sum(counts) if name == "scan" else sum(counts)


def _jaxprs(params: dict[str, Any]) -> Iterator[core.Jaxpr]:
    for leaf in jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr):
        if isinstance(leaf, core.ClosedJaxpr):
            yield leaf.jaxpr
        elif isinstance(leaf, core.Jaxpr):
            yield leaf


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
