"""The judges that need no tolerance: exact fractions, growing precision, error bounds.

Each takes a rule and drawn arguments and returns a verdict: whether the two programs agree, by how
much they may differ, and the first result that doesn't agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from verify.arithmetic import Arithmetic
from verify.arithmetic.error_bound import Bounded, Doubtful, ErrorBound
from verify.arithmetic.multiprecision import Multiprecision
from verify.arithmetic.rational import Rational
from verify.engine import in_order_of_computation
from verify.rules import Rule, flat


class Verdict(NamedTuple):
    """What a judge says of one rule at one draw."""

    ok: bool
    figure: float
    """The judge's own measure: see each."""
    entries: int
    """How many entries of gradients were compared; forward values come on top."""
    first_wrong: str = ""
    """The first result, in the order of computation, that doesn't agree."""
    why: str = ""


UNBOUNDED = "is not finite, or its bound isn't"
"""Why L4 has nothing to say: a division by what may be 0 within its bound, for example."""
RATIONAL = Rational()
BOUNDS = ErrorBound()
MOST_DIGITS = 160


def rational(rule: Rule, args: tuple[Any, ...]) -> Verdict:
    """L2: both programs over exact fractions; they must be equal. The figure is 0 or infinite."""
    manual, autodiff = _run(rule, args, RATIONAL)

    def differ(ours: Any, theirs: Any) -> Any:
        return np.asarray(np.not_equal(ours, theirs), bool)

    wrong, entries = _first_difference(manual, autodiff, differ)
    why = "isn't equal as fractions" if wrong else ""
    return Verdict(not wrong, np.inf if wrong else 0, entries, wrong, why)


def digits(rule: Rule, args: tuple[Any, ...], precisions: tuple[int, ...] = (20, 40)) -> Verdict:
    """L3: both programs at growing precision; their difference must shrink with it.

    Of each result the largest difference is taken. From d to d' digits it must lose at least half
    of the d' - d decades: right formulas lose all of them, wrong ones none. The figure is the
    largest share of the decades that was not lost.

    A softmax that rounds to 1 leaves gradients of 1e-30, less than what rounding leaves at 20
    digits. So what doesn't shrink is looked at with twice the digits, up to MOST_DIGITS: a wrong
    formula is wrong there too.
    """
    found = [_differences(rule, args, Multiprecision(each)) for each in precisions]
    floats = [leaf for leaf in jax.tree.leaves(args) if np.asarray(leaf).dtype.kind == "f"]
    largest = max((float(np.abs(leaf).max(initial=0)) for leaf in floats), default=1.0)
    entries = sum(each.entries for each in found[0].values())
    wrong, worst = "", 0.0
    gained = precisions[-1] - precisions[0]
    for name in in_order_of_computation(list(found[0])):
        first, last = found[0][name], found[-1][name]
        if last.apart == 0:
            continue
        # A difference below the first precision's unit may be 0 there by luck: the unit of the
        # result, or of what it was computed from where the result is 0.
        before = max(first.apart, (first.size or largest) * 10.0 ** -precisions[0])
        kept = np.inf
        if before > 0 and np.isfinite(before) and np.isfinite(last.apart):
            kept = 1 - float(np.log10(before) - np.log10(last.apart)) / gained
        worst = max(worst, kept)
        if kept > 0.5 and not wrong:
            wrong = name
    if wrong and precisions[-1] < MOST_DIGITS:
        return digits(rule, args, tuple(2 * each for each in precisions))
    why = "differs by what doesn't shrink with precision" if wrong else ""
    return Verdict(not wrong, worst, entries, wrong, why)


def bounds(rule: Rule, args: tuple[Any, ...]) -> Verdict:
    """L4: both programs in float64 with error bounds; they must agree within the bounds' sum.

    The figure is the largest difference as a share of what is allowed.
    """
    manual, autodiff = _run(rule, args, BOUNDS)
    return within_bounds(manual, autodiff)


def same(
    ours: Callable[..., Any],
    theirs: Callable[..., Any],
    *args: Any,
    judge: Callable[[Rule, Any], Verdict] = bounds,
) -> Verdict:
    """Whether any two functions are one and the same, by the judge of rules that fits them.

    Args:
        ours: of args; it returns an array or a tree of arrays.
        theirs: of the same args, with a tree of the same names.
        *args: trees of arrays; their floats are widened, so that the judge gets float64.
        judge: `rational`, `digits` or `bounds`.

    Example:
        >>> same(lambda x: jnp.log(jnp.exp(x)), lambda x: x, np.ones(3)).ok
        True
        >>> same(lambda x: x * (1 + 1e-14), lambda x: x, np.ones(3)).ok
        False
    """
    named = [lambda *each, f=f: flat("out", f(*each)) for f in (ours, theirs)]
    wide = jax.tree.map(widened, args)
    return judge(Rule("the same", "two functions", *named, draw=lambda rng, kind: wide), wide)


def as_numbers(value: Any) -> np.ndarray:
    """A result as a NumPy array, zeros where it is JAX's gradient of integers, which is none."""
    array = np.asarray(value)
    return np.zeros(array.shape) if array.dtype == jax.dtypes.float0 else array


def widened(leaf: Any) -> np.ndarray:
    """An array with its floats as float64, exactly; integers and booleans stay."""
    floating = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    return np.asarray(leaf, np.float64) if floating else np.asarray(leaf)


def within_bounds(manual: Mapping[str, Any], autodiff: Mapping[str, Any]) -> Verdict:
    """The comparison of L4, for results already computed with bounds."""
    wrong, why, worst, entries = "", "", 0.0, 0
    for name in _in_order(manual, autodiff):
        if name not in manual or name not in autodiff:
            return Verdict(False, np.inf, entries, name, "is missing on one side")
        ours, theirs = as_bounded(manual[name]), as_bounded(autodiff[name])
        if ours.value.shape != theirs.value.shape:
            return Verdict(
                False, np.inf, entries, name, f"{ours.value.shape} against {theirs.value.shape}"
            )
        entries += ours.value.size if is_gradient(name) else 0
        apart, allowed = np.abs(ours.value - theirs.value), ours.bound + theirs.bound
        finite = np.isfinite(apart).all() and np.isfinite(allowed).all()
        with np.errstate(all="ignore"):  # infinite shares are shares like others
            share = np.where(allowed > 0, apart / np.where(allowed > 0, allowed, 1), 0)
        worst = max(worst, float(share.max(initial=0))) if finite else np.inf
        if not (finite and (apart <= allowed).all()) and not wrong:
            wrong = name
            why = "differs by more than rounding may" if finite else UNBOUNDED
    return Verdict(not wrong, worst, entries, wrong, why)


def is_gradient(name: str) -> bool:
    """Whether a result of this name is a gradient: "dW1", "grads db2", not "Z1" or "J"."""
    return name.startswith(("d", "grads "))


def tightness(results: Mapping[str, Any]) -> list[float]:
    """The bound of each result relative to its largest entry: how much L4 lets pass."""
    shares = []
    for value in results.values():
        bounded = as_bounded(value)
        size = np.abs(bounded.value).max(initial=0)
        if size > 0:
            shares.append(float(bounded.bound.max() / size))
    return shares


def as_bounded(value: Any) -> Bounded:
    """A result of L4's arithmetic with its bound, 0 where it is exact."""
    if isinstance(value, Bounded):
        return value
    if isinstance(value, Doubtful):
        return Bounded(value.value.astype(np.float64), value.doubt.astype(np.float64))
    return Bounded(np.asarray(value, np.float64), np.zeros(np.shape(value)))


def _run(rule: Rule, args: tuple[Any, ...], arithmetic: Arithmetic) -> tuple[Any, Any]:
    manual, autodiff = rule.programs(args)
    return manual.run(args, arithmetic), autodiff.run(args, arithmetic)


class _Difference(NamedTuple):
    """The largest difference of a result, its largest entry, and how many entries it has."""

    apart: float
    size: float
    entries: int


def _differences(
    rule: Rule, args: tuple[Any, ...], arithmetic: Multiprecision
) -> dict[str, _Difference]:
    manual, autodiff = _run(rule, args, arithmetic)
    found = {}
    for name in _in_order(manual, autodiff):
        ours, theirs = np.asarray(manual.get(name)), np.asarray(autodiff.get(name))
        if name not in manual or name not in autodiff or ours.shape != theirs.shape:
            found[name] = _Difference(np.inf, 0.0, 0)
            continue
        if ours.dtype == theirs.dtype == bool:  # gradients of integers, which are none
            ours, theirs = ours.astype(int), theirs.astype(int)
        apart = max((abs(each) for each in np.ravel(ours - theirs)), default=0)
        size = max((abs(each) for each in np.ravel(theirs)), default=0)
        entries = ours.size if is_gradient(name) else 0
        found[name] = _Difference(float(apart), float(size), entries)
    return found


def _first_difference(
    manual: Mapping[str, Any], autodiff: Mapping[str, Any], differ: Any
) -> tuple[str, int]:
    entries = 0
    for name in _in_order(manual, autodiff):
        if name not in manual or name not in autodiff:
            return name, entries
        ours, theirs = np.asarray(manual[name]), np.asarray(autodiff[name])
        if ours.shape != theirs.shape or differ(ours, theirs).any():
            return name, entries
        entries += ours.size if is_gradient(name) else 0
    return "", entries


def _in_order(manual: Mapping[str, Any], autodiff: Mapping[str, Any]) -> list[str]:
    return in_order_of_computation(sorted(set(manual) | set(autodiff)))
