"""L7: every rule's mutants, and whole networks', killed or shown to compute the same function."""

from __future__ import annotations

import time
from collections import Counter

import manual_bp as mbp
from verify import rules, signals
from verify.bench import EQUIVALENT, Bench, Outcome
from verify.mutants import Mutant
from verify.networks import Case
from verify.other_checkers import compare, in_words
from verify.report import Report
from verify.rules import Rule
from verify.specs import activations

WHOLE = (
    Case(mbp.mlp([3, 4, 2]), mbp.SoftmaxCrossEntropy(), (4, 3), seed=(21,)),
    Case(mbp.mlp([3, 3, 3], hidden=mbp.tanh), mbp.SquaredError(), (3, 3), seed=(22,)),
    Case(
        mbp.sequential(mbp.skip(mbp.Dense(3, mbp.silu)), mbp.Dense(2)),
        mbp.SigmoidBinaryCrossEntropy(),
        (2, 2, 3),
        "given",
        seed=(23,),
    ),
    Case(mbp.mlp([4, 3, 2]), mbp.SquaredError(), (2048, 4), seed=(24,)),
    Case(mbp.mlp([3, 2], hidden=mbp.tanh), mbp.SoftmaxCrossEntropy(), (2048, 3), seed=(25,)),
    Case(  # a transformer with a tied head
        mbp.tied(
            mbp.sequential(
                mbp.Embedding(3, 2),
                mbp.PositionEmbedding(2),
                mbp.skip(
                    mbp.sequential(
                        mbp.RMSNorm(), mbp.MultiHeadAttention(1, causal=True, bias=False)
                    )
                ),
                mbp.Dense(3, bias=False),
            ),
            ((0, "W"), (3, "W")),
        ),
        mbp.SoftmaxCrossEntropy(),
        (2, 2),
        seed=(26,),
    ),
)
"""Networks whose programs are mutated whole: at a small batch, at m = 2048, and a transformer."""
SIGNALS_SHARE = 10
"""A signal is judged on many networks: of each a tenth as many mutants are taken."""
ACTIVATIONS = {kind.__name__ for kind in activations.JAX}


def chosen(
    per_rule: int, seed: int, *, every_rule: bool = False
) -> list[tuple[Rule, Bench, list[Mutant]]]:
    """The mutants of every family: all kinds of change, up to a number for each rule."""
    every = rules.of_specs()
    first = rules.one_of_each(every)
    rest = [rule for rule in every if not any(rule is each for each in first)]
    second = rules.one_of_each(rest)
    picked = [*first, *(rule for rule in second if rule.family not in ACTIVATIONS)]
    picked = [*every] if every_rule else picked
    picked += [rules.of_case(case, every_intermediate=False) for case in WHOLE]
    of_signals = signals.rules()
    found = []
    for rule in (*of_signals, *picked):  # the last ones may be left when the time is up
        bench = Bench(rule)
        signal = any(rule is each for each in of_signals)
        most = -(-per_rule // SIGNALS_SHARE) if signal else per_rule
        found.append((rule, bench, _sample(bench.mutants(), most, seed)))
    return found


def _sample(mutants: list[Mutant], most: int, seed: int) -> list[Mutant]:
    """At most so many, chosen at random but with each primitive among them."""
    if len(mutants) <= most:
        return mutants
    order = rules.generator(seed).permutation(len(mutants))
    first_of = {mutants[index].primitive: int(index) for index in reversed(order)}
    kept = list(dict.fromkeys([*first_of.values(), *map(int, order)]))[:most]
    return [mutants[index] for index in sorted(kept)]


def run(
    report: Report,
    *,
    seed: int,
    per_rule: int,
    seconds: float = 1e9,
    compare_every: int = 4,
    every_rule: bool = False,
) -> None:
    """Judge mutants of every rule, and let other people's checkers judge the same ones.

    Args:
        report: where to.
        seed: of the choice of mutants.
        per_rule: how many at most for each rule.
        seconds: to stop after.
        compare_every: how many killed mutants to each that others judge too; 0 for none.
        every_rule: whether to judge all samples of all specs, not two of each family.
    """
    level = report.level("L7 mutants", "rules broken on purpose: failed is what wasn't killed")
    started = time.perf_counter()
    classes: Counter[str] = Counter()
    others: Counter[str] = Counter()
    killed = alarms = checks = judged = 0
    work = chosen(per_rule, seed, every_rule=every_rule)
    with report.working("mutants", sum(len(mutants) for _, _, mutants in work)) as advance:
        for rule, bench, mutants in work:
            found = bench.false_alarms()
            alarms, checks = alarms + sum(found), checks + len(found)
            for mutant in mutants:
                if time.perf_counter() - started > seconds:
                    break
                outcome = bench.judge(mutant)
                judged += 1
                classes[outcome.equivalent] += 1
                held = outcome.killed or outcome.equivalent in EQUIVALENT
                level.judged(held, failure=_line(rule, outcome), family=rule.family)
                killed += outcome.killed
                if outcome.killed and compare_every and killed % compare_every == 0:
                    compare(others, rule, mutant.run, bench.args(mutant))
                advance(f"{rule.name[:30]}: {mutant.primitive} {mutant.kind}")
    level.judged(not alarms, failure=f"{alarms} false alarms in {checks} checks of right programs")
    level.note(f"{alarms} false alarms in {checks} checks of right programs")
    level.note(f"{killed} mutants killed of {killed + level.failures.total()} not equivalent")
    for name, count in sorted(classes.items()):
        if name in EQUIVALENT:
            level.note(f"{count} compute the same function, {name}: {EQUIVALENT[name].reason}")
    left = sum(len(mutants) for _, _, mutants in work) - judged
    if left:
        level.note(f"{left} mutants were left when the time was up")
    if others:
        level.note(f"the same mutants under other people's checkers: {in_words(others)}")


def _line(rule: Rule, outcome: Outcome) -> str:
    return f"{rule}: {outcome.mutant}: {outcome.why}"
