"""Networks on meshes, and how much their devices tell each other: by hand, and by jax.grad.

    python -m verify.scale collectives

A step is the loss and its gradient, compiled for 8 devices. On each mesh the batch and the
parameters lie as `verify.scale.meshes` says, and each gradient lies where its parameter does.
Collectives are counted as they run (`verify.scale.collectives`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from rich.console import Console
from rich.table import Table

import manual_bp as mbp
from manual_bp.layer import Layer, Loss
from verify.scale.collectives import Traffic, collectives, total
from verify.scale.meshes import auto_mesh, batch, fully_sharded, replicated, tensor_parallel


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
            if isinstance(self.loss, mbp.LinearCrossEntropy):
                logits = self.loss.logits(self.loss.borrow(params), prediction)
                return mbp.SoftmaxCrossEntropy().value(logits, y).mean()
            return self.loss.value(prediction, y).mean()

        return jax.value_and_grad(mean)(params)


Step = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


@dataclass(frozen=True)
class Layout:
    """A mesh of 8 devices, where parameters lie on it, and who divides the work."""

    name: str
    axes: tuple[tuple[str, int], ...]
    place: Callable[[Any, Any], Any]
    divided: Callable[[Step, Any, Any], Any]
    """divided(step, mesh, places) -> the step under jit."""

    def compiled(self, step: Step, case: Case) -> Any:
        """A step's program on the mesh, gradients where their parameters are."""
        mesh = auto_mesh(**dict(self.axes))
        if self.divided is by_types:
            mesh = mesh.update(axis_types=(AxisType.Explicit,) * len(self.axes))
        places = self.place(case.params, mesh)
        params = jax.tree.map(_lying, case.params, places)
        x, y = (_lying(each, batch(mesh)) for each in (case.x, case.y))
        with jax.set_mesh(mesh):
            return self.divided(step, mesh, places).lower(params, x, y).compile()


def _lying(shape: jax.ShapeDtypeStruct, place: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def by_xla(step: Step, mesh: Any, places: Any) -> Any:
    """Auto axes: XLA propagates shardings and divides the work."""
    return jax.jit(step, out_shardings=(replicated(0, mesh), places))


def by_types(step: Step, mesh: Any, places: Any) -> Any:
    """Explicit axes: types say what is divided how."""
    del mesh, places
    return jax.jit(step)


def by_hand(step: Step, mesh: Any, places: Any) -> Any:
    """Manual axes: shard_map, in which each device finds the mean of its own examples."""
    del places

    def on_each(params: Any, x: jax.Array, y: jax.Array) -> Any:
        return jax.lax.pmean(step(params, x, y), "data")

    specs = {"in_specs": (P(), P("data"), P("data")), "out_specs": P()}
    return jax.jit(jax.shard_map(on_each, mesh=mesh, **specs))


DATA = Layout("data", (("data", 8),), replicated, by_xla)
LAYOUTS = (
    DATA,
    Layout("tensor", (("model", 8),), tensor_parallel, by_xla),
    Layout("data × tensor", (("data", 4), ("model", 2)), tensor_parallel, by_xla),
    Layout("fully sharded", (("data", 8),), fully_sharded, by_xla),
)
EXPLICIT = Layout("data, Explicit", (("data", 8),), replicated, by_types)
MAPPED = Layout("data, shard_map", (("data", 8),), replicated, by_hand)


def cases() -> tuple[Case, ...]:
    """A network of each kind, small enough to compile in seconds."""
    numbers, tokens = jnp.float32, jnp.int32
    shape = jax.ShapeDtypeStruct
    images, texts = shape((32, 8, 8, 3), numbers), shape((32, 16), tokens)
    classes, loss = shape((32,), tokens), mbp.SoftmaxCrossEntropy()
    resnet = mbp.resnet(classes=8, widths=(8, 16), blocks=1)
    return (
        Case("MLP", mbp.mlp([64, 128, 128, 16]), loss, shape((32, 64), numbers), classes),
        Case("ResNet", resnet, loss, images, classes),
        Case("GPT", mbp.gpt(128, context=16, width=64, heads=8), loss, texts, texts),
    )


def fused() -> Case:
    """The GPT with `LinearCrossEntropy` as its head, in chunks of half a device's predictions."""
    loss = mbp.LinearCrossEntropy(128, shared=(0, "W"), chunk=32)
    texts = jax.ShapeDtypeStruct((32, 16), jnp.int32)
    body = mbp.gpt(128, context=16, width=64, heads=8, head=False)
    return Case("GPT, fused head", body, loss, texts, texts)


class Comparison(NamedTuple):
    """Our program on a mesh, and autodiff's."""

    case: Case
    layout: Layout
    theirs_on: Layout

    def ours(self) -> Traffic:
        """The collectives of one step by hand."""
        program = self.layout.compiled(self.case.by_hand, self.case)
        return total(collectives(program.as_text()))

    def theirs(self) -> Traffic:
        """Those of the same by jax.grad."""
        return _by_autodiff(self.case, self.theirs_on)


@functools.cache
def _by_autodiff(case: Case, layout: Layout) -> Traffic:
    return total(collectives(layout.compiled(case.by_autodiff, case).as_text()))


def comparisons() -> Iterator[Comparison]:
    """Every network on every mesh with Auto axes; the GPT with others, beside jax.grad's on Auto.

    The fused head goes through predictions in chunks. XLA, dividing the work by itself, doesn't see
    that a device's own predictions may make its chunks; types and shard_map say so.
    """
    every = cases()
    for case in every:
        for layout in LAYOUTS:
            yield Comparison(case, layout, layout)
    for case in (every[-1], fused()):
        for layout in (EXPLICIT, MAPPED):
            yield Comparison(case, layout, DATA)


def virtual_devices() -> None:
    """8 of them, on the CPU; before JAX has looked for devices."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)


def main() -> int:
    """Print a table of them; 0, or 1 if ours has more collectives than jax.grad's anywhere."""
    virtual_devices()
    table = Table(title="Collectives of one value and gradient, on 8 devices: number, KiB")
    for name in ("network", "mesh"):
        table.add_column(name)
    for name in ("by hand", "KiB", "jax.grad", "KiB"):
        table.add_column(name, justify="right")
    more = False
    for each in comparisons():
        ours, theirs = each.ours(), each.theirs()
        figures = [f"{figure:,}" for side in (ours, theirs) for figure in (side.count, side.kib)]
        table.add_row(each.case.name, each.layout.name, *figures)
        more |= ours.count > theirs.count
    Console().print(table)
    return int(more)


if __name__ == "__main__":
    raise SystemExit(main())
