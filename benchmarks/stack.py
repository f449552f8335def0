"""Layers in a scan: does the time to compile stay flat in depth, and how much memory is needed?

The gradient of `stack(block, depth)` is held against that of another depth, against jax.grad of the
same `jax.lax.scan`, written out in jax.nn, and against its own with `checkpoint`; the gradient of
`reversible` against that of another depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.measuring import Row, compiled, seconds_in_turn, temporary_bytes
from manual_bp.layer import Layer

MEBIBYTE = 2**20


class Block(NamedTuple):
    """A layer that keeps the shape, and the same written out."""

    name: str
    layer: Layer
    written_out: Callable[[Any, Any], Any]


class Size(NamedTuple):
    """The shape of the input: (examples, features), and of a block's inside."""

    features: int
    examples: int
    inside: int

    @property
    def x(self) -> jax.ShapeDtypeStruct:
        """Something shaped like the input."""
        return jax.ShapeDtypeStruct((self.examples, self.features), jnp.float32)


SIZES = (Size(128, 64, 512), Size(256, 512, 1024))
DEPTHS = (8, 64)


def dense(size: Size) -> Block:
    """One dense layer with relu."""

    def written_out(params: Any, x: Any) -> Any:
        return jax.nn.relu(x @ params.W.T + params.b)

    layer = mbp.Dense(size.features, mbp.relu)
    return Block(f"dense {size.features}, batch {size.examples}", layer, written_out)


def residual(size: Size, inside: int | None = None) -> Block:
    """Two dense layers, relu between them, added to their input."""
    inside = inside or size.features

    def written_out(params: Any, x: Any) -> Any:
        ((first, second),) = params
        hidden = jax.nn.relu(x @ first.W.T + first.b)
        return x + hidden @ second.W.T + second.b

    body = mbp.sequential(mbp.Dense(inside, mbp.relu), mbp.Dense(size.features))
    name = f"residual {size.features}-{inside}-{size.features}, batch {size.examples}"
    return Block(name, mbp.skip(body), written_out)


def gradient(network: Layer) -> Callable[[Any, Any], Any]:
    """The gradient by hand of half the squares of the network's output."""

    def run(params: Any, x: Any) -> Any:
        out, residuals = network.forward(params, x)
        return network.backward(params, residuals, out)[0]

    return run


def by_autodiff(block: Block) -> Callable[[Any, Any], Any]:
    """The same by jax.grad of a scan."""

    def objective(params: Any, x: Any) -> Any:
        out, _ = jax.lax.scan(lambda x, each: (block.written_out(each, x), None), x, params[0])
        return 0.5 * (out**2).sum()

    return jax.grad(objective)


def shapes(network: Layer, size: Size) -> tuple[Any, Any]:
    """Params and input of a network, as shapes."""
    return jax.eval_shape(network.init, jax.random.key(0), size.x), size.x


def numbers(network: Layer, size: Size) -> tuple[Any, Any]:
    """Params and input of a network, as arrays."""
    x = jax.random.normal(jax.random.key(1), size.x.shape)
    return network.init(jax.random.key(0), x), x


def memory(network: Layer, size: Size) -> float:
    """What the gradient by hand needs, in MiB."""
    return temporary_bytes(gradient(network), *shapes(network, size)) / MEBIBYTE


def compile_time(block: Block, size: Size, depths: tuple[int, int], rounds: int) -> Row:
    """The time to trace, lower and compile, deep over shallow."""
    networks = [mbp.stack(block.layer, depth) for depth in depths]
    args = [shapes(network, size) for network in networks]
    runs = [
        lambda network=network, each=each: compiled(gradient(network), *each) and ()
        for network, each in zip(networks, args, strict=True)
    ]
    shallow, deep = seconds_in_turn(rounds, *runs)
    what = f"time to compile, depth {depths[1]} over {depths[0]}"
    return Row(what, block.name, deep, shallow, "s", 1.3)


def run_time(block: Block, size: Size, depth: int, rounds: int) -> Row:
    """The time of a gradient, by hand over jax.grad."""
    network = mbp.stack(block.layer, depth)
    args = numbers(network, size)
    programs = [compiled(each, *args) for each in (gradient(network), by_autodiff(block))]
    runs = [lambda program=program: program(*args) for program in programs]
    ours, theirs = seconds_in_turn(rounds, *runs)
    return Row(f"time of a gradient over jax.grad, depth {depth}", block.name, ours, theirs, "s")


def memory_over_autodiff(block: Block, size: Size, depth: int) -> Row:
    """Memory by hand over jax.grad's."""
    network = mbp.stack(block.layer, depth)
    theirs = temporary_bytes(by_autodiff(block), *shapes(network, size)) / MEBIBYTE
    what = f"memory over jax.grad, depth {depth}"
    return Row(what, block.name, memory(network, size), theirs, "MiB", 0.75)


def memory_of_reversible(size: Size, depths: tuple[int, int]) -> Row:
    """Memory of reversible steps, deep over shallow."""
    half = mbp.Dense(size.features // 2, mbp.relu)
    shallow, deep = (memory(mbp.reversible(half, half, depth), size) for depth in depths)
    what = f"memory of reversible, depth {depths[1]} over {depths[0]}"
    name = f"dense {size.features // 2}, batch {size.examples}"
    return Row(what, name, deep, shallow, "MiB", 1.3)


def memory_of_checkpoint(size: Size, depth: int) -> Row:
    """Memory of a stack with checkpoint over that without."""
    block = residual(size, size.inside)
    plain = memory(mbp.stack(block.layer, depth), size)
    forgetful = memory(mbp.stack(mbp.checkpoint(block.layer), depth), size)
    what = f"memory with checkpoint over without, depth {depth}"
    return Row(what, block.name, forgetful, plain, "MiB", 0.3)


def measure_memory(sizes: tuple[Size, ...] = SIZES, depths: tuple[int, int] = DEPTHS) -> list[Row]:
    """The rows that are the same on every run."""
    rows = []
    for size in sizes:
        blocks = (dense(size), residual(size), residual(size, size.inside))
        rows += [memory_over_autodiff(block, size, depths[1]) for block in blocks]
    rows += [memory_of_reversible(size, depths) for size in sizes]
    rows += [memory_of_checkpoint(size, depths[1]) for size in sizes]
    return rows


def measure(
    sizes: tuple[Size, ...] = SIZES, depths: tuple[int, int] = DEPTHS, rounds: int = 7
) -> list[Row]:
    """All rows.

    Args:
        sizes: of inputs.
        depths: a shallow one and a deep one.
        rounds: how many times to measure each time.
    """
    rows = []
    for size in sizes:
        blocks = (dense(size), residual(size))
        rows += [compile_time(block, size, depths, rounds) for block in blocks]
        rows += [run_time(block, size, depths[1], rounds) for block in blocks]
    return rows + measure_memory(sizes, depths)
