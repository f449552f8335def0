"""What devices tell each other in a compiled program: its collectives, counted in its text.

XLA divides a program among devices and inserts what they must exchange: all-reduce (a sum over
devices), all-gather, reduce-scatter, all-to-all, collective-permute. `collectives` counts them in
`compiled.as_text()` as often as they run: one in the body of a loop counts once for each turn,
whose number XLA writes beside the loop. Of a conditional all branches count. The bytes of one are
those of its result or of its operands on one device, whichever are more, so that to gather an array
and to scatter it are of one size.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import NamedTuple

KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "bf16": 16, "token": 0} | {
    f"{kind}{bits}": bits for kind in "sufc" for bits in (2, 4, 8, 16, 32, 64, 128)
}
COMPUTATION = re.compile(r"^(ENTRY )?%(\S+) \(.*\{$")
INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\(([^)]*)\)(.*)$")
ARRAY = re.compile(r"([a-z]+\d*)(?:e\w+)?\[([\d,]*)\]")
CALLED = re.compile(r"(?:body|condition|calls|to_apply|\w+_computations?)=(\{[^}]*\}|%[\w.-]+)")
NAME = re.compile(r"%([\w.-]+)")
TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True, order=True)
class Traffic:
    """How many collectives one run of a program has, and the bytes of their arrays on a device."""

    count: int
    bytes: int

    @property
    def kib(self) -> float:
        """The bytes in units of 1024."""
        return round(self.bytes / 1024, 1)


class Computation(NamedTuple):
    """A function of a program: the kinds and bytes of its collectives, and what it calls."""

    collectives: list[tuple[str, int]]
    calls: list[tuple[str, float]]
    """The name, and how often: infinitely, where XLA doesn't know."""


def collectives(compiled_text: str) -> dict[str, Traffic]:
    """The collectives of one run, by kind.

    Args:
        compiled_text: `jax.jit(f).lower(...).compile().as_text()`.

    Returns:
        {"all-reduce": Traffic(count, bytes), ...}, of those kinds that occur.

    Raises:
        ValueError: for text that isn't a compiled program's; for collectives in a loop whose number
            of turns XLA doesn't know.

    Example:
        >>> collectives(jax.jit(jnp.sin).lower(1.0).compile().as_text())
        {}
    """
    computations, entry = parsed(compiled_text)
    found: dict[str, list[int]] = defaultdict(list)

    def run(name: str, times: float) -> None:
        for kind, size in computations[name].collectives:
            if times == math.inf:
                raise ValueError(
                    f"{kind} in {name}: it is in a loop whose number of turns XLA doesn't know, so "
                    "how often it runs isn't known either."
                )
            found[kind] += [size] * int(times)
        for called, turns in computations[name].calls:
            run(called, times * turns)

    run(entry, 1)
    return {kind: Traffic(len(sizes), sum(sizes)) for kind, sizes in sorted(found.items())}


def total(found: dict[str, Traffic]) -> Traffic:
    """All kinds together."""
    return Traffic(
        sum(each.count for each in found.values()), sum(each.bytes for each in found.values())
    )


def parsed(text: str) -> tuple[dict[str, Computation], str]:
    """The program's computations by name, and the name of the one it begins with."""
    computations, entry = {}, ""
    here, sizes = Computation([], []), {}
    for line in text.splitlines():
        if start := COMPUTATION.match(line):
            here, sizes = Computation([], []), {}
            computations[start[2]] = here
            entry = start[2] if start[1] else entry
        elif found := INSTRUCTION.match(line):
            name, result, operation, operands, rest = found.groups()
            given = sum(sizes.get(each, 0) for each in NAME.findall(operands))
            # An asynchronous one is counted where it ends: there its result stands by itself.
            begins = operation.endswith("-start")
            sizes[name] = given if begins else size_of(result)
            kind = operation.removesuffix("-done")
            if kind in KINDS:
                here.collectives.append((kind, max(given, sizes[name])))
            known = TURNS.search(rest)
            turns = math.inf if operation == "while" else 1
            for called in CALLED.findall(rest):
                calls = NAME.findall(called)
                here.calls.extend((each, int(known[1]) if known else turns) for each in calls)
    if not entry:
        raise ValueError("there is no ENTRY in this text: give compiled.as_text().")
    return computations, entry


def size_of(result: str) -> int:
    """Bytes of an array's type, f32[2,3]{1,0}, or of a tuple's of arrays."""
    bits = sum(
        BITS[kind] * math.prod(map(int, shape.split(",") if shape else ()))
        for kind, shape in ARRAY.findall(result)
    )
    return -(-bits // 8)
