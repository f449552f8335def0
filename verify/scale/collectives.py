"""What devices tell each other in a compiled program: its collectives, counted in its text.

    python -m verify.scale collectives      # of networks on meshes, beside jax.grad's

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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from verify.scale.meshes import auto_mesh, batch, fully_sharded, replicated, tensor_parallel

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


@dataclass(frozen=True)
class Case:
    """A network, its loss, and the shapes of a batch."""

    name: str
    network: Layer
    loss: Loss
    x: jax.ShapeDtypeStruct
    y: jax.ShapeDtypeStruct

    @property
    def params(self) -> Any:
        """Their shapes."""
        return jax.eval_shape(self.network.init, jax.random.key(0), self.x)

    def by_hand(self, params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        """The loss and its gradient, by manual_value_and_grads."""
        return mbp.manual_value_and_grads(params, x, y, network=self.network, loss=self.loss)

    def by_autodiff(self, params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        """The same by jax.grad of the network's forward and the mean of the loss's values."""

        def mean(params: Any) -> jax.Array:
            prediction, _ = self.network.forward(params, x)
            return self.loss.value(prediction, y).mean()

        return jax.value_and_grad(mean)(params)


@dataclass(frozen=True)
class Layout:
    """A mesh of 8 devices, and where parameters lie on it."""

    name: str
    axes: tuple[tuple[str, int], ...]
    place: Callable[[Any, Any], Any]

    def compiled(self, step: Callable[..., Any], case: Case) -> Any:
        """A step's program on the mesh, gradients where their parameters are."""
        mesh = auto_mesh(**dict(self.axes))
        places, examples, params = self.place(case.params, mesh), batch(mesh), case.params
        given, found = (places, examples, examples), (replicated(0, mesh), places)
        program = jax.jit(step, in_shardings=given, out_shardings=found)
        return program.lower(params, case.x, case.y).compile()


LAYOUTS = (
    Layout("data", (("data", 8),), replicated),
    Layout("tensor", (("model", 8),), tensor_parallel),
    Layout("data × tensor", (("data", 4), ("model", 2)), tensor_parallel),
    Layout("fully sharded", (("data", 8),), fully_sharded),
)


def cases() -> tuple[Case, ...]:
    """A network of each kind, small enough to compile in seconds."""
    numbers, tokens = jnp.float32, jnp.int32
    shape = jax.ShapeDtypeStruct
    images, texts = shape((32, 8, 8, 3), numbers), shape((32, 16), tokens)
    classes, loss = shape((32,), tokens), mbp.SoftmaxCrossEntropy()
    return (
        Case("MLP", mbp.mlp([64, 128, 128, 16]), loss, shape((32, 64), numbers), classes),
        Case("ResNet", mbp.resnet(classes=8, widths=(8, 16)), loss, images, classes),
        Case("GPT", mbp.gpt(128, context=16, width=64, heads=8), loss, texts, texts),
    )


class Comparison(NamedTuple):
    """The collectives of our program and of autodiff's."""

    case: Case
    layout: Layout
    ours: Traffic
    theirs: Traffic


def comparisons() -> Iterator[Comparison]:
    """Every network on every mesh."""
    for case in cases():
        for layout in LAYOUTS:
            texts = (
                layout.compiled(step, case).as_text() for step in (case.by_hand, case.by_autodiff)
            )
            yield Comparison(case, layout, *(total(collectives(text)) for text in texts))


def main() -> int:
    """Print a table of them; 0, or 1 if ours has more collectives than jax.grad's anywhere."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    table = Table(title="Collectives of one value and gradient, on 8 devices: number, KiB")
    for name in ("network", "mesh"):
        table.add_column(name)
    for name in ("by hand", "KiB", "jax.grad", "KiB"):
        table.add_column(name, justify="right")
    more = False
    for case, layout, ours, theirs in comparisons():
        figures = [f"{each:,}" for side in (ours, theirs) for each in (side.count, side.kib)]
        table.add_row(case.name, layout.name, *figures)
        more |= ours.count > theirs.count
    Console().print(table)
    return int(more)


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


if __name__ == "__main__":
    raise SystemExit(main())
