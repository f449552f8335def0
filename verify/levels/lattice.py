"""L1: compiled by XLA, in float32, on small integers: equal to jax.grad to the last bit.

Every product and sum of small integers is exact in float32, and so is the mean over a batch that is
a power of two, in any order of operations. So whatever XLA fuses or reorders, both must give the
same bits, kinks and ties included. Compiling is what costs: many draws for each program.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from manual_bp.layer import Layer
from verify import rules, specs
from verify.arithmetic import is_floating
from verify.arithmetic.numpy import Float64
from verify.interpreter import Program, trace
from verify.judges import as_numbers
from verify.networks import Case, draw_chain, draw_taken, opened
from verify.report import Report
from verify.rules import Rule, generator

FINEST, LARGEST = 2.0**-8, 2.0**12
"""Numbers on the way are multiples of the one and at most the other: float32 holds 24 bits, and
sums need room. In float64 such numbers are exact too, so that they can be told by it."""


def networks(count: int, seed: int) -> list[Rule]:
    """Small piecewise-polynomial networks whose numbers stay exact, each loss among them."""
    losses = [loss for spec in specs.losses() for loss in spec.samples if spec.exact(loss)]
    found: list[Rule] = []
    for number in range(100 * count):
        if len(found) == count:
            break
        rng = generator(seed, number)
        shape = (int(rng.choice([1, 2, 4, 8])), int(rng.integers(1, 5)))
        network = draw_chain(rng, shape, int(rng.integers(1, 4)), exact=True)
        if most_units(network) > 12 or not _forward_is_exact(network, shape):
            continue
        case = Case(network, losses[number % len(losses)], shape, seed=(seed, number))
        rule = rules.of_case(case, every_intermediate=len(found) % 5 == 0)
        if is_exact_in_float32(rule, rule.draw(generator(seed), "lattice")):
            found.append(rule)
    if len(found) < count:
        raise RuntimeError(f"{len(found)} of {count} networks found whose numbers stay exact")
    return found


def samples(every: list[Rule], seed: int) -> list[Rule]:
    """The rules whose numbers stay exact, as far as two draws tell."""
    return [
        rule
        for rule in every
        if rule.exact
        and all(
            is_exact_in_float32(rule, rule.draw(generator(seed, draw), "lattice"))
            for draw in range(2)
        )
    ]


def together(every: list[Rule]) -> Rule:
    """One rule of many: its arguments are theirs in a tuple, its results theirs by number."""

    def all_of(which: str) -> Any:
        def run(*args: Any) -> Any:
            return {
                f"{number} {name}": value
                for number, (rule, own) in enumerate(zip(every, args, strict=True))
                for name, value in getattr(rule, which)(*own).items()
            }

        return run

    return Rule(
        name="all samples",
        family="",
        manual=all_of("manual"),
        autodiff=all_of("autodiff"),
        draw=lambda rng, kind: tuple(rule.draw(rng, kind) for rule in every),
        exact=True,
    )


def most_units(layer: Any) -> int:
    """The widest layer in a network."""
    inner = [most_units(child) for child in getattr(layer, "children", ())]
    return max([getattr(layer, "features", 1), *inner])


def _forward_is_exact(network: Layer, shape: Any) -> bool:
    """Whether the forward pass alone stays exact: tells most of the others at little cost."""
    x = rules.inputs(generator(0), "lattice", network, shape)
    params = rules.params_of_kind(generator(0), "lattice", network, x)
    args = (params, x, draw_taken(generator(0), network, network, params, x))
    program = trace(lambda p, v, taken: network.forward(p, v, **opened(taken))[0], *args)
    return _stays_exact(program, args)


def is_exact_in_float32(rule: Rule, args: tuple[Any, ...]) -> bool:
    """Whether every number on the way, in both programs, is a small multiple of a power of two."""
    return all(_stays_exact(program, args) for program in rule.programs(args))


def _stays_exact(program: Program, args: Any) -> bool:
    exact = True

    def watch(place: Any, equation: Any, inputs: list[Any], run: Any) -> list[Any]:
        nonlocal exact
        outputs = run(*inputs)
        for variable, value in zip(equation.outvars, outputs, strict=True):
            if is_floating(variable.aval):
                exact = exact and bool(_fits(np.asarray(value)).all())
        return outputs

    program.run(args, Float64(), watch)
    return exact


def _fits(numbers: np.ndarray) -> np.ndarray:
    # NaN and infinities stand in programs as what a selection leaves out.
    whole = np.where(np.isfinite(numbers), numbers, 0) / FINEST
    return (np.abs(whole) <= LARGEST / FINEST) & (whole == np.round(whole))


def differing(rule: Rule, draws: int, seed: int) -> tuple[Counter[str], int]:
    """(in how many draws a bit of each result differs, entries compared), compiled."""
    manual, autodiff = jax.jit(rule.manual), jax.jit(rule.autodiff)
    wrong: Counter[str] = Counter()
    entries = 0
    for draw in range(draws):
        args = jax.tree.map(_as_float32, rule.draw(generator(seed, draw), "lattice"))
        ours, theirs = manual(*args), autodiff(*args)
        for name in theirs:
            one, other = as_numbers(ours[name]), as_numbers(theirs[name])
            entries += other.size
            # -0 and +0 are the same number; NaN on both sides would be no evidence.
            wrong[name] += not np.array_equal(one, other)
    return +wrong, entries


def run(report: Report, every: list[Rule], *, seed: int, programs: int, draws: int) -> None:
    """Compile all samples at once and this many networks, and judge each on this many draws."""
    level = report.level("L1 lattice", "compiled float32 on integers: bits that differ", "0")
    total = 0

    def judge(rule: Rule, wrong: Counter[str], family: str) -> None:
        worst = max(wrong.values(), default=0)
        for draw in range(draws):
            failure = f"{rule}, seed {seed}: {', '.join(wrong)}"
            level.judged(draw >= worst, float(worst), failure, family)

    with report.working("lattice", programs + 1) as advance:
        exact = samples(every, seed)
        wrong, entries = differing(together(exact), draws, seed)
        total += entries
        for number, rule in enumerate(exact):
            own = {name: n for name, n in wrong.items() if name.startswith(f"{number} ")}
            judge(rule, Counter(own), rule.family)
        advance("all samples")
        found = networks(programs, seed)
        for rule in found:
            wrong, entries = differing(rule, draws, seed)
            total += entries
            judge(rule, wrong, "networks")
            advance(rule.name[:60])
    level.note(
        f"{draws * (len(found) + 1)} draws over {2 * len(found) + 2} compilations: "
        f"{len(found)} networks, and {len(exact)} samples at once; {total} entries compared"
    )


def _as_float32(leaf: Any) -> Any:
    return jnp.asarray(leaf, jnp.float32) if leaf.dtype.kind == "f" else jnp.asarray(leaf)
