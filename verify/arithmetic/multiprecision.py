"""As many digits as asked for: what smooth networks compute, by mpmath.

Two programs for the same function differ by rounding alone, and rounding shrinks with the digits:
1e-20, 1e-40, 1e-80. A wrong formula is as wrong with 80 digits as with 20.

Inputs are doubles, taken as they are. Constants in a program are doubles too, but some stand for an
irrational number, such as 0.3989... for 1/√(2π): these, and only these, are replaced by what they
stand for, since two programs may hold different ones for the same purpose.
"""

from __future__ import annotations

from typing import Any, ClassVar

import mpmath
import numpy as np

from verify.arithmetic import Arithmetic, Primitive
from verify.arithmetic.rational import EXACT, elements, over_windows

IRRATIONAL = {
    "√2": lambda m: m.sqrt(2),
    "√½": lambda m: m.sqrt(m.mpf(1) / 2),
    "√π": lambda m: m.sqrt(m.pi),
    "1/√π": lambda m: 1 / m.sqrt(m.pi),
    "2/√π": lambda m: 2 / m.sqrt(m.pi),
    "√π/2": lambda m: m.sqrt(m.pi) / 2,
    "√(2/π)": lambda m: m.sqrt(2 / m.pi),
    "√(2π)": lambda m: m.sqrt(2 * m.pi),
    "1/√(2π)": lambda m: 1 / m.sqrt(2 * m.pi),
    "2√(2/π)": lambda m: 2 * m.sqrt(2 / m.pi),
    "log 2": lambda m: m.log(2),
    "1/log 2": lambda m: 1 / m.log(2),
    "log 2π": lambda m: m.log(2 * m.pi),
    "log(2π)/2": lambda m: m.log(2 * m.pi) / 2,
    "π": lambda m: +m.pi,
    "2π": lambda m: 2 * m.pi,
    "π/2": lambda m: m.pi / 2,
    "e": lambda m: +m.e,
}
"""The irrational numbers whose nearest double stands for them in a program."""


class Multiprecision(Arithmetic):
    """mpmath numbers of a given number of digits, in object arrays.

    Args:
        digits: decimal digits of every operation.
    """

    name = "multiprecision"
    primitives: ClassVar[dict[str, Primitive]] = {}

    def __init__(self, digits: int) -> None:
        self.digits = digits
        m: Any = mpmath.MPContext()
        self.mp = m
        m.dps = digits
        self._number = np.frompyfunc(m.mpf, 1, 1)
        self._float = np.frompyfunc(float, 1, 1)
        self._named = {float(make(m)): make(m) for make in IRRATIONAL.values()}
        self._named |= {-double: -number for double, number in self._named.items()}

        def each(function: Any) -> Primitive:
            ufunc = np.frompyfunc(function, 1, 1)
            return lambda params, a: elements(ufunc(a))

        zero: Any = m.mpf(0)
        power = np.frompyfunc(m.power, 2, 1)
        atan2 = np.frompyfunc(m.atan2, 2, 1)
        self.primitives = {  # pyright: ignore[reportAttributeAccessIssue]
            **EXACT,
            "reduce_sum": lambda params, a: elements(
                np.sum(a, axis=tuple(params["axes"]), initial=zero)
            ),
            "sign": each(m.sign),
            "floor": each(m.floor),
            "round": each(m.nint),
            "atan2": lambda params, a, b: elements(atan2(a, b)),
            "is_finite": lambda params, a: np.asarray(np.frompyfunc(m.isfinite, 1, 1)(a), bool),
            "sqrt": each(m.sqrt),
            "rsqrt": each(lambda a: 1 / m.sqrt(a)),
            "cbrt": each(m.cbrt),
            "exp": each(m.exp),
            "exp2": each(lambda a: m.power(2, a)),
            "expm1": each(m.expm1),
            "log": each(m.log),
            "log1p": each(m.log1p),
            "tanh": each(m.tanh),
            "sinh": each(m.sinh),
            "cosh": each(m.cosh),
            "sin": each(m.sin),
            "cos": each(m.cos),
            "logistic": each(lambda a: 1 / (1 + m.exp(-a))),
            "erf": each(m.erf),
            "erfc": each(m.erfc),
            "lgamma": each(m.loggamma),
            "pow": lambda params, a, b: elements(power(a, b)),
        }
        self.primitives |= over_windows(self.primitives)  # pyright: ignore[reportAttributeAccessIssue]

    def lift_floats(self, array: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # NaN is a value like others
            return elements(self._number(array))

    def constant(self, array: np.ndarray) -> Any:
        array = np.asarray(array)
        if array.ndim == 0 and array.dtype.kind == "f" and float(array) in self._named:
            return elements(self._named[float(array)])
        return self.lift(array)

    def lower(self, value: Any) -> np.ndarray:
        return np.asarray(value, np.float64 if value.dtype == object else None)
