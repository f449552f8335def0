"""Arithmetics for `verify.interpreter`: what stands for a float, and what primitives do to it.

One module each: `numpy` (float64), `rational` (exact fractions), `multiprecision` (as many digits
as asked for), `error_bound` (float64 with a bound on its rounding error, by `rounding`).

A primitive is one function in one place per arithmetic: `primitives[name](params, *values)`, with
params the parameters of the jaxpr's equation. Primitives that only move elements about are shared
(`movement`), and so is all that touches integers and booleans alone (`integers`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np

from verify.arithmetic import indexing
from verify.arithmetic.integers import INTEGERS
from verify.arithmetic.movement import MOVEMENT

Primitive = Callable[..., Any]


def is_floating(aval: Any) -> bool:
    """Whether a value of this abstract type is a float, and so the arithmetic's business."""
    return jnp.issubdtype(aval.dtype, jnp.floating)  # bfloat16 is floating, a key is not


class Arithmetic:
    """What stands for a float, and what each primitive does to it."""

    name: ClassVar[str]
    primitives: ClassVar[dict[str, Primitive]]

    def lift(self, array: np.ndarray) -> Any:
        """The value that stands for a NumPy array; integers and booleans stand for themselves."""
        array = np.asarray(array)
        if array.dtype.kind in "biu":
            return array
        if (
            array.dtype.kind == "V" and array.dtype.name != "bfloat16"
        ):  # float0, JAX's gradient of an integer: nothing
            return np.zeros(array.shape, bool)
        return self.lift_floats(array.astype(np.float64))

    def constant(self, array: np.ndarray) -> Any:
        """The value that stands for a constant of the program."""
        return self.lift(array)

    def lift_floats(self, array: np.ndarray) -> Any:
        """The value that stands for an array of float64."""
        raise NotImplementedError

    def lower(self, value: Any) -> np.ndarray:
        """The nearest NumPy array to a value."""
        raise NotImplementedError

    def move(self, function: Callable[..., Any], *values: Any) -> Any:
        """Apply a function that moves elements about without computing with them."""
        return function(*values)

    def decide(self, value: Any) -> Any:
        """A boolean or an index that control flow depends on."""
        return np.asarray(value).item()

    def convert(self, value: Any, new_dtype: Any) -> Any:
        """Round a value towards zero to an integer type, or test it against 0 for bool."""
        kind = np.dtype(new_dtype).kind
        if kind in "biu":
            return self.lower(value).astype(new_dtype)
        return value

    def places(self, value: Any) -> np.ndarray:
        """Integers that say which elements are read or written."""
        return np.asarray(value)

    def apply(self, equation: Any, values: list[Any]) -> list[Any]:
        """The outputs of one equation that isn't control flow."""
        name, params = equation.primitive.name, equation.params
        inputs = [is_floating(atom.aval) for atom in equation.invars]
        outputs = [is_floating(atom.aval) for atom in equation.outvars]
        if name in ("optimization_barrier", "pvary"):
            return values  # floats, masks and keys at once, each as it is
        if name == "convert_element_type":
            if inputs[0]:
                return [self.convert(values[0], params["new_dtype"])]
            if outputs[0]:
                return [self.from_integers(values[0])]
        if name in MOVEMENT:
            return _as_list(self.move(lambda *arrays: MOVEMENT[name](params, *arrays), *values))
        if name == "gather":
            operand, indices = values[0], self.places(values[1])
            fill = self.lift(np.asarray(params["fill_value"] or 0, equation.outvars[0].aval.dtype))
            return [self.move(lambda a, b: indexing.gather(params, a, b, indices), operand, fill)]
        if name == "scatter":
            operand, indices, new = values[0], self.places(values[1]), values[2]
            return [self.move(lambda a, b: indexing.scatter(params, a, b, indices), operand, new)]
        if not any(inputs) and name in INTEGERS:
            found = INTEGERS[name](params, *values)
            return [self.lift(found)] if outputs[0] else _as_list(found)
        if name not in self.primitives:
            raise NotImplementedError(
                f"arithmetic {self.name!r} doesn't know the primitive {name!r}: add it to "
                f"{type(self).__module__}.PRIMITIVES, or to movement or integers if it is theirs"
            )
        return _as_list(self.primitives[name](params, *values))

    def from_integers(self, value: Any) -> Any:
        """Integers or booleans as floats."""
        return self.lift_floats(np.asarray(value).astype(np.float64))


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
