"""L2, L3, L4 and the forward judge on every rule: each sample, at every kind of draw."""

from __future__ import annotations

from verify import forward, judges, specs
from verify.architectures import LEVELS
from verify.judges import Verdict
from verify.report import Report
from verify.rules import KINDS, Rule, generator


def verdicts(rule: Rule, seed: int) -> list[tuple[str, str, Verdict]]:
    """(level, kind of draw, verdict) for all that applies to the rule."""
    found = []
    for kind in KINDS:
        args = rule.draw(generator(seed), kind)
        if "L4 bounds" not in rule.omitted:
            found.append(("L4 bounds", kind, judges.bounds(rule, args)))
        if rule.exact and kind in ("lattice", "ties"):
            found.append(("L2 fractions", kind, judges.rational(rule, args)))
        if not rule.exact and kind in ("normal", "ties") and "L3 digits" not in rule.omitted:
            found.append(("L3 digits", kind, judges.digits(rule, args)))
    return found


def run(report: Report, rules: list[Rule], *, seed: int, stage: str = "agreement") -> None:
    """Judge every rule."""
    with report.working(stage, len(rules)) as advance:
        for rule in rules:
            for name, why in rule.omitted.items():
                report.omit(rule.family, name, why)
            for name, kind, verdict in verdicts(rule, seed):
                failure = f"{rule} at {kind} numbers: {verdict.first_wrong} {verdict.why}"
                level = report.level(name, *LEVELS[name])
                level.judged(verdict.ok, verdict.figure, failure, rule.family)
            advance(rule.name[:60])


def run_forward(report: Report) -> None:
    """The forward pass of every sample against its naive form."""
    level = report.level("forward", "forward passes against loops at 30 digits", "1")
    layers = [(s.layer.__name__, *sample) for s in specs.layers() for sample in s.samples]
    losses = [(s.loss.__name__, loss, (5, 4)) for s in specs.losses() for loss in s.samples]
    with report.working("forward", len(layers) + len(losses)) as advance:
        for family, layer, shape in layers:
            verdict = forward.judge_layer(layer, shape)
            level.judged(verdict.ok, verdict.figure, f"{layer!r} on {shape}", family)
            advance(repr(layer)[:60])
        for family, loss, shape in losses:
            verdict = forward.judge_loss(loss, shape)
            level.judged(verdict.ok, verdict.figure, f"{loss!r} on {shape}", family)
            advance(repr(loss)[:60])
