"""Run a jaxpr in another arithmetic.

A jaxpr is the program that JAX traced, before any compiler has seen it: a list of equations, each a
primitive applied to values. Here each primitive is looked up in an arithmetic
(`verify.arithmetic`), so that the same program runs over float64, exact fractions, many digits, or
values with an error bound. Tracing takes a tenth of the time of compiling, and the compiler is not
among what is judged.

Control flow (jit, custom_jvp, custom_vjp, scan, while, cond) is the same in every arithmetic and is
done here. Where a program differs between platforms, that of `PLATFORM` is run. Integers and
booleans are NumPy arrays everywhere; what stands for a float is the arithmetic's business.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.extend.core import primitives

from verify.arithmetic import Arithmetic

Value = Any
Run = Callable[..., list[Value]]
Hook = Callable[[tuple[int, ...], core.JaxprEqn, list[Value], Run], list[Value]]
"""hook(place, equation, inputs, run) -> outputs, where run(*inputs) does what the equation says.

The place of an equation is its index, after those of the equations around it."""

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "eval_jaxpr": "call_jaxpr",  # in jax 0.12, what the calls around it were
    "core_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
}

FUNCTIONS = {"exp_neg_sq": ("square", "neg", "exp")}
"""Functions that newer versions of JAX compute by the bits of a float, as the primitives whose
composition they are: e^(-x²), inside erf's slope."""

PLATFORM = "cpu"
"""The platform whose branch of `jax.lax.platform_dependent` is the program."""

INNER = {**CALLS, "scan": "jaxpr"}
"""Equations whose inner program mutants change, at every step alike, instead of the equation."""


@dataclass(frozen=True)
class Program:
    """A traced function: its jaxpr, and the structure of what it returns."""

    jaxpr: core.ClosedJaxpr
    structure: Any

    def run(self, args: Any, arithmetic: Arithmetic, hook: Hook | None = None) -> Any:
        """What the function returns for a tuple of arguments, as values of the arithmetic."""
        leaves = [arithmetic.lift(np.asarray(leaf)) for leaf in jax.tree.leaves(args)]
        values = evaluate(self.jaxpr, leaves, arithmetic, hook)
        return jax.tree.unflatten(self.structure, values)

    def signature(self) -> dict[str, tuple[tuple[int, ...], str]]:
        """Shape and dtype of each result of a function that returns them by name."""
        shapes = jax.tree.unflatten(self.structure, self.jaxpr.out_avals)
        return {name: (each.shape, each.dtype.name) for name, each in shapes.items()}

    def products(self) -> int:
        """How many products of two numbers its matrix products and convolutions take."""
        return _products(self.jaxpr.jaxpr)


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        shapes: list[Any] = [getattr(atom.aval, "shape", ()) for atom in equation.invars]
        if name == "dot_general":
            summed = params["dimension_numbers"][0][0]
            terms = math.prod(shapes[0][axis] for axis in summed)
        elif name == "conv_general_dilated":
            terms = math.prod(shapes[1]) // shapes[1][params["dimension_numbers"].rhs_spec[0]]
        elif name in INNER:
            inner = params[INNER[name]]
            times = params["length"] if name == "scan" else 1
            total += times * _products(getattr(inner, "jaxpr", inner))
            continue
        else:
            continue
        total += terms * math.prod(equation.outvars[0].aval.shape)
    return total


def trace(function: Callable[..., Any], *args: Any) -> Program:
    """The program of a function at these arguments, with 64-bit types so that constants are exact.

    Example:
        >>> from verify.arithmetic.numpy import Float64
        >>> program = trace(lambda x: {"twice": 2 * x}, np.ones(2))
        >>> program.run((np.ones(2),), Float64())
        {'twice': array([2., 2.])}
    """
    with jax.enable_x64(True):
        jaxpr, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    return Program(_of_platform(jaxpr), jax.tree.structure(shapes))


def _of_platform(inner: Any) -> Any:
    """A program, and those within it, with the branch of `PLATFORM` in place of each choice."""
    if isinstance(inner, tuple | list):
        found = type(inner)(map(_of_platform, inner)) if not hasattr(inner, "_fields") else inner
        same = all(one is other for one, other in zip(found, inner, strict=True))
        return inner if same else found
    if isinstance(inner, core.ClosedJaxpr) and inner.jaxpr is not inner:  # one class in jax 0.12
        jaxpr = _of_platform(inner.jaxpr)
        return inner if jaxpr is inner.jaxpr else inner.replace(jaxpr=jaxpr)
    if not isinstance(inner, core.Jaxpr):
        return inner
    equations = []
    for equation in inner.eqns:
        params = {name: _of_platform(value) for name, value in equation.params.items()}
        platforms = params.get("branches_platforms")
        if platforms is not None:
            fits = (PLATFORM in (each or (PLATFORM,)) for each in platforms)  # None fits any
            branch = params["branches"][list(fits).index(True)]
            equation = equation.replace(
                primitive=primitives.closed_call_p,
                invars=equation.invars[1:],
                params={"call_jaxpr": branch},
            )
        elif any(params[name] is not value for name, value in equation.params.items()):
            equation = equation.replace(params=params)
        equations.append(equation)
    same = len(equations) == len(inner.eqns) and all(
        map(lambda a, b: a is b, equations, inner.eqns)
    )
    return inner if same else inner.replace(eqns=equations)


def evaluate(
    jaxpr: core.ClosedJaxpr,
    arguments: Sequence[Value],
    arithmetic: Arithmetic,
    hook: Hook | None = None,
) -> list[Value]:
    """The jaxpr's outputs for arguments that are values of the arithmetic.

    Args:
        jaxpr: as `trace` or `jax.make_jaxpr` returns it.
        arguments: one for each input, made with `arithmetic.lift` from NumPy arrays.
        arithmetic: what to compute in.
        hook: called around every equation, inner ones too.

    Returns:
        A list of values of the arithmetic; `arithmetic.lower` makes NumPy arrays of them.

    Raises:
        NotImplementedError: for a primitive the arithmetic doesn't know, naming both.

    Example:
        >>> from verify.arithmetic.numpy import Float64
        >>> jaxpr = jax.make_jaxpr(lambda x: jnp.tanh(x) * 2)(np.ones(2))
        >>> arithmetic = Float64()
        >>> evaluate(jaxpr, [arithmetic.lift(np.zeros(2))], arithmetic)
        [array([0., 0.])]
    """
    return _run(jaxpr, list(arguments), arithmetic, hook, ())


def _run(
    closed: Any, arguments: list[Value], arithmetic: Arithmetic, hook: Hook | None, place: Any
) -> list[Value]:
    jaxpr = getattr(closed, "jaxpr", closed)  # remat holds a jaxpr without constants
    constants = getattr(closed, "consts", ())
    known: dict[Any, Value] = {}
    for variable, constant in zip(jaxpr.constvars, constants, strict=True):
        known[variable] = arithmetic.constant(np.asarray(constant))
    for variable, argument in zip(jaxpr.invars, arguments, strict=True):
        known[variable] = argument

    def read(atom: Any) -> Value:
        if isinstance(atom, core.Literal):
            return arithmetic.constant(np.asarray(atom.val, atom.aval.dtype))  # pyright: ignore
        return known[atom]

    for index, equation in enumerate(jaxpr.eqns):
        here = (*place, index)
        inputs = [read(atom) for atom in equation.invars]

        def run(*values: Value, equation: Any = equation, here: Any = here) -> list[Value]:
            return _equation(equation, list(values), arithmetic, hook, here)

        outputs = run(*inputs) if hook is None else hook(here, equation, inputs, run)
        for variable, output in zip(equation.outvars, outputs, strict=True):
            known[variable] = output
    return [read(atom) for atom in jaxpr.outvars]


def _equation(
    equation: Any, values: list[Value], arithmetic: Arithmetic, hook: Hook | None, place: Any
) -> list[Value]:
    name, params = equation.primitive.name, equation.params
    if name in CALLS:
        steps = FUNCTIONS.get(_called(params[CALLS[name]]))
        if steps is not None:
            for step in steps:
                values = [arithmetic.primitives[step]({}, *values)]
            return values
        return _run(params[CALLS[name]], values, arithmetic, hook, place)
    if name == "cond":
        branch = int(arithmetic.decide(values[0]))
        return _run(params["branches"][branch], values[1:], arithmetic, hook, (*place, branch))
    if name == "while":
        return _while(params, values, arithmetic, hook, place)
    if name == "scan":
        return _scan(equation, values, arithmetic, hook, place)
    return arithmetic.apply(equation, values)


def _called(closed: Any) -> str:
    """The name of the function that an inner program was traced from."""
    information = getattr(closed, "jaxpr", closed).debug_info
    return information.func_name if information else ""


def _while(
    params: Any, values: list[Value], arithmetic: Arithmetic, hook: Hook | None, place: Any
) -> list[Value]:
    first = params["cond_nconsts"]
    second = first + params["body_nconsts"]
    for_condition, for_body, carry = values[:first], values[first:second], values[second:]
    while True:
        (go_on,) = _run(params["cond_jaxpr"], for_condition + carry, arithmetic, hook, (*place, 0))
        if not arithmetic.decide(go_on):
            return carry
        carry = _run(params["body_jaxpr"], for_body + carry, arithmetic, hook, (*place, 1))


def _has_one_axis_more(outside: Any, inside: Any) -> bool:
    return len(outside.aval.shape) == len(inside.aval.shape) + 1


def scan_parts(equation: Any) -> tuple[int, int]:
    """How many constants a scan has, and how many values it carries from step to step.

    Counted from the shapes, since parameters of scan differ between versions of JAX: what is
    scanned over or collected has one axis more outside than inside.
    """
    invars, outvars, inner = equation.invars, equation.outvars, equation.params["jaxpr"].jaxpr
    scanned = sum(_has_one_axis_more(*pair) for pair in zip(invars, inner.invars, strict=True))
    carried = sum(
        not _has_one_axis_more(*pair) for pair in zip(outvars, inner.outvars, strict=True)
    )
    return len(invars) - scanned - carried, carried


def _scan(
    equation: Any, values: list[Value], arithmetic: Arithmetic, hook: Hook | None, place: Any
) -> list[Value]:
    params = equation.params
    first, carried = scan_parts(equation)
    second = first + carried
    constants, carry, sequences = values[:first], values[first:second], values[second:]
    steps = range(params["length"])
    collected: list[list[Value]] = []
    for step in reversed(steps) if params["reverse"] else steps:
        slices = [arithmetic.move(lambda a, step=step: a[step], each) for each in sequences]
        outputs = _run(params["jaxpr"], constants + carry + slices, arithmetic, hook, place)
        carry = outputs[:carried]
        collected.append(outputs[carried:])
    if params["reverse"]:
        collected.reverse()
    stacked = [arithmetic.move(_stacked, *column) for column in zip(*collected, strict=True)]
    return carry + stacked


def _stacked(*each: Any) -> Any:
    if isinstance(each[0], jax.Array):  # keys, which are no NumPy arrays
        return jnp.stack(each)
    return np.stack([np.asarray(a) for a in each])
