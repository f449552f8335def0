"""Mutants that compute the same function: the classes there are, each with its reason.

No judge can kill a program that computes the same function. That one does is found in exact
arithmetic, on many draws; but it must also be known why, so that nobody's blind spot passes for
mathematics: a threshold that no draw comes near survives every draw, and isn't equivalent.

So a class is no list of places where survivors were seen. It is a reason that is evaluated. The
changed value differs, no result does: the equations where the change vanishes
(`verify.vanishing`) are the evidence, and each must do so for one of the reasons below, which
looks at the values themselves. What is left out by a selection, say, is excused only if it is
selected elsewhere, where it would have shown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import jax
import numpy as np

from verify.vanishing import Place, Recording, Vanishing, differs

if TYPE_CHECKING:
    from verify.mutants import Mutant

COMPARISONS = ("gt", "ge", "lt", "le", "eq", "ne")
ARITHMETIC = ("add", "add_any", "sub", "mul", "div")
CHOICES = (
    *COMPARISONS,
    "select_n",
    "max",
    "min",
    "clamp",
    "and",
    "or",
    "not",
    "reduce_and",
    "reduce_or",
)
TURNED_BY_EQUALITY = {"gt": "made ge", "ge": "made gt", "lt": "made le", "le": "made lt"}
PASSED_ON = ("select_n", "broadcast_in_dim", "convert_element_type", "reshape")
LINEAR = ("mul", "dot_general", "reduce_sum")
EVEN = ("abs", "square", "cosh", "cos")
EVEN_TOGETHER = ("mul", "dot_general", "eq", "ne")
"""Of two operands: (-a)(-b) = a b, and -a = -b where a = b."""


class Evidence(Protocol):
    """What is known of a mutant that survived."""

    @property
    def mutant(self) -> Mutant:
        """The mutant."""
        ...

    @property
    def recordings(self) -> list[Recording]:
        """Runs of the program that it was made of, in exact arithmetic."""
        ...

    def is_free(self, place: Place) -> bool:
        """Whether the comparison or selection there may turn out either way, at every draw."""
        ...

    def is_same_turned(self, place: Place) -> bool:
        """Whether the selection there may turn out the other way with the mutant's values too."""
        ...

    def shows_beyond(self) -> bool:
        """Whether results differ at infinities, NaN, overflow, bad classes, but not before."""
        ...

    def bounds_a_guard(self) -> bool:
        """Whether it is the bound of maxima or minima without which results aren't finite."""
        ...


class Class(NamedTuple):
    """A class of mutants that compute the same function, and why they do."""

    reason: str
    holds: Callable[[Evidence, list[Vanishing]], bool]
    """holds(evidence, vanishings at one equation): whether this is why they vanish there."""


def classify(evidence: Evidence, vanishings: list[Vanishing]) -> tuple[str, str]:
    """(name of the class, why there is none): every place where a change vanishes needs a class."""
    vanishings = [each for each in vanishings if not _turns_nothing(each)] or vanishings
    own: list[Vanishing] = []
    places: dict[Any, list[Vanishing]] = {}
    for each in vanishings:
        if each.place == evidence.mutant.place:
            own.append(each)
        else:
            places.setdefault((each.place, tuple(_changed(each))), []).append(each)
    # At a draw where nothing changes nothing is learnt, unless that is so at all of them.
    names = []
    for events in places.values() if places else [own]:
        name = next((name for name, each in EQUIVALENT.items() if each.holds(evidence, events)), "")
        if not name:
            if not events:
                return "", "what it changes is lost in rounding"
            event = events[0]
            where = ".".join(map(str, event.place))
            return "", f"vanishes in {event.equation.primitive.name}, equation {where}"
        names.append(name)
    return next(name for name in EQUIVALENT if name in names), ""


# --- reasons that need no draws -------------------------------------------------------------


def _unchanged(evidence: Evidence, events: list[Vanishing]) -> bool:
    return bool(events) and all(event.place == evidence.mutant.place for event in events)


def _constant(evidence: Evidence, events: list[Vanishing]) -> bool:
    return _unchanged(evidence, events) and not evidence.mutant.depends


def _one_term(evidence: Evidence, events: list[Vanishing]) -> bool:
    if not _unchanged(evidence, events) or not evidence.mutant.primitive.startswith("reduce_"):
        return False
    equation = events[0].equation
    shape = equation.invars[0].aval.shape
    return math.prod(shape) == math.prod(equation.outvars[0].aval.shape)


def _neutral(evidence: Evidence, events: list[Vanishing]) -> bool:
    """A constant of the program is 1 or 0 there: nothing else is asked of other operands."""
    found = False
    for event in events:
        fixed = evidence.mutant.fixed.get(event.place, ())
        changed = _changed(event)
        if event.equation.primitive.name not in ARITHMETIC or len(fixed) != 2:
            return False
        for index in (0, 1):
            operand = np.asarray(event.before[index])
            one_or_zero = operand.dtype == object and (operand == operand.flat[0]).all()
            if fixed[index] and one_or_zero and not changed[index]:
                name, value = event.equation.primitive.name, operand.flat[0]
                mine = event.place == evidence.mutant.place
                found |= (value == 0 and (mine or name == "mul")) or (mine and value == 1)
    return found


def _random(evidence: Evidence, events: list[Vanishing]) -> bool:
    """Random bits, 32 or more, are compared with a constant, and only equality matters."""
    mutant = evidence.mutant
    if not _unchanged(evidence, events) or TURNED_BY_EQUALITY.get(mutant.primitive) != mutant.kind:
        return False
    bits = np.asarray(events[0].before[0])
    return bits.dtype.kind == "u" and bits.itemsize >= 4 and mutant.fixed[mutant.place][1]


# --- reasons that are seen in the values ----------------------------------------------------


def _changed(event: Vanishing) -> list[bool]:
    return [bool(differs(*pair, 0).any()) for pair in zip(event.before, event.after, strict=True)]


def _even(evidence: Evidence, events: list[Vanishing]) -> bool:
    """The inputs change their sign and nothing else."""
    found = [_takes_signs_away(event, evidence) for event in events]
    return None not in found and any(found)


def _takes_signs_away(event: Vanishing, evidence: Evidence) -> bool | None:
    """Whether an even function does, and by more than zeros; None where it isn't one.

    Of two operands it is even in both: each product has both signs changed, or neither.
    """
    equation, name = event.equation, event.equation.primitive.name
    if name in EVEN or (name == "integer_pow" and equation.params["y"] % 2 == 0):
        return True
    if name not in EVEN_TOGETHER:
        return None
    signs = [_signs(*pair) for pair in zip(event.before, event.after, strict=True)]
    if any(each is None for each in signs):
        return None
    if name in ("eq", "ne"):  # with 0, which is -0
        fixed = evidence.mutant.fixed.get(event.place, ())
        alone = any(each and not sign.any() for each, sign in zip(fixed, signs, strict=True))
        return True if alone or np.array_equal(*signs) else None

    def product(left: Any, right: Any) -> Any:
        if name == "mul":
            return left * right
        return jax.lax.dot_general(left, right, equation.params["dimension_numbers"])

    left, right = signs
    if (product(left, right) != product(abs(left), abs(right))).any():
        return None
    return bool(product(left == -1, right == -1).any())


def _signs(before: Any, after: Any) -> Any:
    """1 where a number stays, -1 where it changes its sign, 0 where it is 0; None else."""
    before, after = np.asarray(before), np.asarray(after)
    kept = ~np.asarray(differs(before, after, 0), bool)
    if kept.all():
        return np.where(before != 0, 1, 0)
    if before.dtype != object or not (kept | (after == -before)).all():
        return None
    return np.where(before == 0, 0, np.where(kept, 1, -1))


def _turns_nothing(event: Vanishing) -> bool:
    """One operand is turned to minus itself, and what is linear in it is 0: nothing is learnt."""
    if event.equation.primitive.name not in LINEAR or np.asarray(event.outputs[0] != 0).any():
        return False
    changed = _changed(event)
    return sum(changed) == 1 and all(
        not np.asarray(a != -b, bool).any()
        for here, a, b in zip(changed, event.before, event.after, strict=True)
        if here
    )


def _sign_test(evidence: Evidence, events: list[Vanishing]) -> bool:
    """a - b, whose sign decides, is multiplied by one positive number wherever it changes."""
    factors: list[Any] = []
    for event in events:
        name = event.equation.primitive.name
        if name not in (*COMPARISONS, "sign") or event.place == evidence.mutant.place:
            return False
        pairs = [
            np.ravel(a - b) if name != "sign" else np.ravel(a)
            for a, b in ((inputs[0], inputs[-1]) for inputs in (event.before, event.after))
            if np.asarray(a).dtype == object
        ]
        if len(pairs) != 2:
            return False
        for before, after in zip(*pairs, strict=True):
            if before == 0 or not _is_finite(before) or not _is_finite(after):
                if before != after:
                    return False
            elif differs(after, before, 1e-40):
                factors.append(after / before)
    return bool(factors) and all(
        factor > 0 and not differs(factor, factors[0], 1e-30) for factor in factors
    )


def _is_finite(number: Any) -> bool:
    return number - number == 0


def _two_forms(evidence: Evidence, events: list[Vanishing]) -> bool:
    """Turned the other way the choice makes no difference, at any draw."""
    mutant = evidence.mutant
    if mutant.primitive in (*COMPARISONS, "select_n") and evidence.is_free(mutant.place):
        return mutant.primitive in COMPARISONS or mutant.kind == "cases swapped"
    if mutant.users and all(
        name in COMPARISONS and evidence.is_free(place) for name, place in mutant.users
    ):
        return True
    return bool(events) and all(
        event.equation.primitive.name in COMPARISONS and evidence.is_free(event.place)
        for event in events
    )


def _kink(evidence: Evidence, events: list[Vanishing]) -> bool:
    """A selection gives the same although it selects the other case."""
    turned = 0
    for event in events:
        if event.equation.primitive.name != "select_n":
            return False
        turned += int(differs(event.before[0], event.after[0], 0).sum())
        if not _changed(event)[0] and event.place != evidence.mutant.place:
            return False
    return turned > 0


def _cancels(evidence: Evidence, events: list[Vanishing]) -> bool:
    """Both operands change, and what comes of them is the same, and not for being 0."""
    shown = False
    for event in events:
        name = event.equation.primitive.name
        if name not in ARITHMETIC or not all(_changed(event)):
            return False
        apart = [
            np.broadcast_to(differs(*pair, 0), np.shape(event.outputs[0]))
            for pair in zip(event.before, event.after, strict=True)
        ]
        both = np.asarray(apart[0] & apart[1])
        shown |= bool((both & np.asarray(event.outputs[0] != 0, bool)).any())
    return shown


def _summed_again(evidence: Evidence, events: list[Vanishing]) -> bool:
    """A sum over another axis, whose terms are summed over the rest too."""
    if not evidence.mutant.kind.startswith("over axis"):
        return False
    return bool(events) and all(
        event.equation.primitive.name == "reduce_sum"
        and event.place != evidence.mutant.place
        and len(event.equation.params["axes"]) == np.ndim(event.before[0])
        for event in events
    )


def _left_out(evidence: Evidence, events: list[Vanishing]) -> bool:
    """What changes isn't used where it does, but is elsewhere: there it would have shown."""
    if not events or events[0].place == evidence.mutant.place:
        return False
    left: dict[int, Any] = {}
    for event in events:
        name = event.equation.primitive.name
        for index, pair in enumerate(zip(event.before, event.after, strict=True)):
            apart = differs(*pair, 0)
            if not apart.any():
                continue
            used = _used(name, event.equation, event.before, event.outputs, index)
            if used is None:
                return False
            left[index] = left.get(index, False) | (apart & ~used)
    equation = events[0].equation
    for index, out in left.items():
        shown: Any = False
        for recording in evidence.recordings:
            for step in recording.at(events[0].place):
                used = _used(equation.primitive.name, equation, step.inputs, step.outputs, index)
                shown = shown | (out & used)
        if not np.any(shown) and not (
            equation.primitive.name == "select_n" and evidence.is_same_turned(events[0].place)
        ):
            return False
    return True


def _used(
    name: str, equation: Any, inputs: list[Any], outputs: list[Any], index: int
) -> np.ndarray | None:
    """The elements of an operand that the result depends on; None where that isn't known."""
    shape = np.shape(inputs[index])
    if name == "select_n" and index > 0:
        used = np.asarray(inputs[0]) == index - 1
    elif name == "mul":
        used = np.asarray(inputs[1 - index] != 0, bool)
    elif name == "div":
        other = np.asarray(inputs[1 - index])
        used = np.asarray(other != 0, bool) if index else np.isfinite(other.astype(float))
    elif name in ("and", "or"):
        used = np.asarray(inputs[1 - index], bool) == (name == "and")
    elif name in ("max", "min", "clamp"):
        used = np.asarray(outputs[0] == inputs[index], bool)
    elif name in ("reduce_max", "reduce_min"):
        kept = np.expand_dims(outputs[0], tuple(equation.params["axes"]))
        used = np.asarray(inputs[0] == kept, bool)
    else:
        return None
    used = np.broadcast_to(np.asarray(used), np.broadcast_shapes(np.shape(used), shape))
    wider = tuple(
        axis for axis, size in enumerate(used.shape) if axis >= len(shape) or size != shape[axis]
    )
    return np.asarray(used.any(axis=wider, keepdims=True)).reshape(
        shape
    )  # one element serves all along these


def _not_read(evidence: Evidence, events: list[Vanishing]) -> bool:
    """Slices alone, which copy what they take: what changes is in none of them, at any draw."""
    return bool(events) and all(
        event.equation.primitive.name == "slice" and event.place != evidence.mutant.place
        for event in events
    )


def _guard(evidence: Evidence, events: list[Vanishing]) -> bool:
    """It doesn't act at finite numbers, and it does beyond."""
    if not events:
        return False
    if all(map(_asks_for_infinity, events)):
        return True
    if not all(map(_chooses, events)):
        return False
    if not evidence.mutant.depends and evidence.bounds_a_guard():
        return True  # where the guard begins is a choice
    return evidence.shows_beyond()


def _infinity(evidence: Evidence, events: list[Vanishing]) -> bool:
    """All that changes is infinite, and stays so, on its way to divisions alone."""
    mutant = evidence.mutant
    if not events or mutant.depends:
        return False
    ahead, seen = set(mutant.users), set()
    while ahead:
        name, place = ahead.pop()
        if name in PASSED_ON and place not in seen:
            seen.add(place)
            ahead |= mutant.users_of[place]
        elif name not in (*PASSED_ON, "div"):
            return False
    for event in events:
        for before, after in zip(event.before, event.after, strict=True):
            apart = differs(before, after, 0)
            if np.asarray(before).dtype != object and apart.any():
                return False
            for a, b in zip(np.asarray(before)[apart], np.asarray(after)[apart], strict=True):
                if not (math.isinf(a) and math.isinf(b)):
                    return False
    return not evidence.shows_beyond()


def _chooses(event: Vanishing) -> bool:
    """Whether an equation chooses between values, or multiplies by a 1 that is so chosen."""
    name = event.equation.primitive.name
    if name in ("mul", "div"):
        one, other = (np.asarray(operand) for operand in event.before)
        return any(np.all((a == 1) | (b == 0)) for a, b in ((one, other), (other, one)))
    return name in CHOICES


def _asks_for_infinity(event: Vanishing) -> bool:
    name = event.equation.primitive.name
    if name == "is_finite":
        return True
    return name in COMPARISONS and any(
        np.asarray(operand).dtype == object and np.isinf(np.asarray(operand, float)).all()
        for operand in event.before
    )


EQUIVALENT: dict[str, Class] = {
    "constant": Class("a constant 0, ∞ or NaN of the program, which stays what it is", _constant),
    "one term": Class(
        "a sum over one element is its mean, its maximum and its sum over another such axis",
        _one_term,
    ),
    "neutral operand": Class(
        "a setting of the rule is 1 or 0: a weight, a power or a factor that is left out", _neutral
    ),
    "random bits": Class(
        "it turns where all bits of a random number are those of one number: of 2³² draws, one",
        _random,
    ),
    "two forms of one function": Class(
        "both outcomes of the choice give the same function, which was tried: the choice is for "
        "accuracy or range, which L5, the edge table and the accuracy of activations judge",
        _two_forms,
    ),
    "agreement at the kink": Class(
        "where the selection turns, both cases have the same value", _kink
    ),
    "even function": Class(
        "only signs change, and an even function takes them away: a square, a comparison with 0, "
        "a product of two that change together",
        _even,
    ),
    "sign test": Class(
        "only the sign of a difference is used, and it is multiplied by a positive number",
        _sign_test,
    ),
    "cancellation": Class(
        "both operands change, and the change cancels: numerator and denominator of a softmax, "
        "the shift of a logsumexp, the scale by which a vector is normalised",
        _cancels,
    ),
    "summed again": Class(
        "what is summed over the wrong axis is summed over the other one too: the total is used",
        _summed_again,
    ),
    "left out": Class(
        "a selection, a factor 0 or a maximum leaves out what changes; elsewhere it is used, and "
        "the same",
        _left_out,
    ),
    "not read": Class(
        "it is in a part of an array that no slice takes: the R-operator carries A and R{A} as "
        "one, also where one of them isn't used, and the compiler leaves it out",
        _not_read,
    ),
    "sign of infinity": Class(
        "it is infinite and used in divisions alone, where 1/∞ and 1/(-∞) are 0",
        _infinity,
    ),
    "guard": Class(
        "it acts on infinities, NaN, overflow, zero vectors or invalid classes only, where it was "
        "seen to act; the edge table, bad input and the tests of weights judge that",
        _guard,
    ),
}
