"""Mutants that compute the same function: the classes there are, each with its reason.

No judge can kill a program that computes the same function. That one does is found in exact
arithmetic, not here; but it must then belong to a class below, so that nobody's blind spot passes
for mathematics.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from verify.mutants import Mutant

_COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")


class Class(NamedTuple):
    """A class of mutants that compute the same function, and why they do."""

    reason: str
    holds: Callable[[Mutant], bool]


_POSITIVE = tuple(f"scaled by {f:g}" for f in (2, 0.5, 1.01, 1.001, 1.0001, 1.00001))
_CONSTANTS = ("broadcast_in_dim", "convert_element_type")
_LOSS = ("value", "error", "_distribution")
_SIGN_TESTS = frozenset({"gt", "ge", "lt", "le", "eq", "ne", "sign", "is_finite"})

_TWO_FORMS = ("_sigmoid_slope", "_sigmoid_parts", "_normal_parts", "_nearest", "_exp_below")
"""Functions that choose between two forms of the same function, for their accuracy."""

EQUIVALENT: dict[str, Class] = {
    "shift of softmax": Class(
        "softmax and logsumexp don't depend on the shift that keeps exp from overflowing",
        lambda m: m.function in ("_finite_max", "_shifted"),
    ),
    "common factor": Class(
        "it multiplies numerator and denominator alike: the exponentials of a softmax, the scale "
        "by which a vector is normalised",
        lambda m: (
            (m.function in _LOSS and m.primitive == "exp")
            or m.function in ("_unit", "_length", "_scale")
        ),
    ),
    "guard": Class(
        "it acts on infinities, NaN, overflow, invalid classes or weights of 0 only, which the "
        "edge table, bad input and the tests of weights cover",
        lambda m: (
            m.function in ("_poison", "_like", "_without_idle_infinities")
            or (
                m.function == "sweep"
                and m.primitive in (*_COMPARISONS, "select_n", "broadcast_in_dim")
            )
            or (
                m.function in _LOSS
                and m.primitive in (*_COMPARISONS, "select_n", "and", *_CONSTANTS)
            )
            or (m.primitive in ("max", "min") and m.kind == "only operand 1")
        ),
    ),
    "two forms of one function": Class(
        "both cases of the selection are the same function; the choice is for accuracy, which L5 "
        "and the accuracy of activations judge",
        lambda m: (
            m.function in (*_TWO_FORMS, "derivative")
            and (
                m.consumers <= _SIGN_TESTS
                or m.primitive in ("select_n", *_COMPARISONS, *_CONSTANTS)
                or (m.primitive == "abs" and m.kind == "scaled by -1")
            )
        ),
    ),
    "which is largest": Class(
        "only the place of the maximum is used, and a positive factor doesn't move it",
        lambda m: m.function == "_margins" and m.kind in _POSITIVE,
    ),
    "sign test": Class(
        "only comparisons with 0 use it, and a positive factor doesn't change a sign",
        lambda m: m.consumers <= _SIGN_TESTS and m.kind in (*_POSITIVE, "one element off by 1%"),
    ),
    "multiple of zero": Class(
        "it is the 0 of a selection, and stays 0",
        lambda m: m.is_zero and m.primitive in (*_CONSTANTS, "select_n"),
    ),
    "one term": Class(
        "a sum over one element is its mean, its maximum and its sum over another such axis",
        lambda m: m.primitive == "reduce_sum" and m.kind.startswith(("made a", "over axis")),
    ),
    "even function": Class(
        "only an even function uses it: a square, an absolute value, log cosh, σ'",
        lambda m: (
            m.kind == "scaled by -1"
            and (
                m.consumers <= {"square", "abs", "integer_pow"}
                or m.function in ("_sigmoid_slope", "derivative", "_inner")
                or (m.function == "value" and m.primitive in ("sub", "min", "max"))
            )
        ),
    ),
    "neutral operand": Class(
        "the other operand is 1 or 0 for these settings: a weight, a power or a factor left out",
        lambda m: m.function in _LOSS and m.kind.startswith(("only operand", "made ")),
    ),
    "agreement at the kink": Class(
        "where the comparison turns, both cases have the same value",
        lambda m: m.primitive in _COMPARISONS and m.kind.startswith("made "),
    ),
}
