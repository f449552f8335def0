"""Layers in a scan: `stack`, `checkpoint` and `reversible` of dense layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import manual_bp as mbp
from benchmarks.row import (
    COMPILE,
    IDIOMATIC,
    MEMORY,
    OURS,
    SAME,
    TIME,
    Eager,
    Group,
    Row,
    Target,
    Way,
)
from benchmarks.torch_ways import of_module, tensor, torch_way
from benchmarks.ways import by_hand, half_squares, of_layer
from manual_bp.layer import Layer

DEPTH = 64
SHALLOW = "by hand, depth 8"
PLAIN = "by hand, without checkpoint"

STACK = (
    "Backward keeps the output of each block and nothing else: 64 x 32 KiB = 2 MiB at n "
    "128 x 64 and "
    "64 x 512 KiB = 32 MiB at n 256 x 512. A mask for relu would be a byte for each entry "
    "beside it; "
    "the scan that is given to jax.grad keeps an output and a product or mask. So of the memory of "
    "jax.grad of our own forward pass, 4.1 MiB at n 128 x 64, no more than a half can be saved "
    "without computing again. Tried for time, at n 256 x 512: a mask kept 99.6 ms, relu's output "
    "handed from step to step 92.5 ms, read from the stack of outputs 91.2 ms, jax.grad 112 ms. "
    "Scans unrolled by 2, 4 and 8 are 0.97 to 1.05 of that, 1.01 to 1.23 at n 128 x 64. "
    "Half of the "
    "time is products; the rest are copies of weights out of their stack and of dW into its own."
)

Step = Callable[[Any, Any], Any]
"""step(params, x) -> out, one block as people write it."""


class Size(NamedTuple):
    """Of an input: (examples, features)."""

    features: int
    examples: int

    @property
    def x(self) -> jax.Array:
        """An input."""
        return jax.random.normal(jax.random.key(1), (self.examples, self.features))

    def __str__(self) -> str:
        return f"n {self.features} x {self.examples}"


SIZES = {Size(128, 64): 0.35, Size(256, 512): 0.6}
"""The sizes, and the memory of a stack of dense blocks that is aimed at."""


def scanned(step: Step) -> Step:
    """jax.grad of the steps in a scan: (dparams, dx) of half the squares of what comes out."""

    def forward(params: Any, x: Any) -> Any:
        return jax.lax.scan(lambda x, each: (step(each, x), None), x, params)[0]

    return half_squares(forward)


def dense(params: Any, x: Any) -> Any:
    """One block."""
    return jax.nn.relu(x @ params.W.T + params.b)


def residual(params: Any, x: Any) -> Any:
    """Two dense layers, relu between them, added to their input."""
    ((first, second),) = params
    return x + dense(first, x) @ second.W.T + second.b


def coupled(params: Any, x: Any) -> Any:
    """A reversible step."""
    (f, g), (x1, x2) = params, jnp.split(x, 2, -1)
    y1 = x1 + dense(f, x2)
    return jnp.concatenate((y1, x2 + dense(g, y1)), -1)


def stack_ways(size: Size, depth: int = DEPTH, torch: bool = True) -> dict[str, Way | Eager]:
    """A stack of dense blocks."""
    layer = mbp.Dense(size.features, mbp.relu)
    ways = of_layer(mbp.stack(layer, depth), size.x)
    (params,), x = ways[OURS].args  # pyright: ignore[reportAttributeAccessIssue]
    ways[IDIOMATIC] = Way(scanned(dense), (params, x))
    if depth > 8:
        ways[SHALLOW] = of_layer(mbp.stack(layer, 8), x)[OURS]

    def in_torch(torch: Any) -> Any:
        each = [torch.nn.Linear(size.features, size.features) for _ in range(depth)]
        module = torch.nn.Sequential(*(m for one in each for m in (one, torch.nn.ReLU())))
        return of_module(
            torch, module, tensor(torch, x), lambda out: 0.5 * (out**2).sum(), of_input=True
        )

    return {**ways, **torch_way(in_torch)} if torch else ways


def checkpoint_ways(size: Size, depth: int = DEPTH) -> dict[str, Way | Eager]:
    """A stack of checkpointed residual blocks, four times as wide inside."""
    inner = mbp.sequential(mbp.Dense(4 * size.features, mbp.relu), mbp.Dense(size.features))
    block: Layer = mbp.skip(inner)
    plain = of_layer(mbp.stack(block, depth), size.x)
    layer = mbp.stack(mbp.checkpoint(block), depth)
    (params,), x = plain[OURS].args  # pyright: ignore[reportAttributeAccessIssue]
    return {
        OURS: Way(by_hand(layer), (((params,),), x)),
        PLAIN: plain[OURS],
        SAME: Way(scanned(jax.checkpoint(residual)), (params, x)),
        "jax.grad, without checkpoint": plain[SAME],
    }


def reversible_ways(size: Size, depth: int = DEPTH, torch: bool = True) -> dict[str, Way | Eager]:
    """Reversible steps of two dense layers, each of half the features."""
    half = mbp.Dense(size.features // 2, mbp.relu)
    ways = of_layer(mbp.reversible(half, half, depth), size.x)
    args = ways[OURS].args  # pyright: ignore[reportAttributeAccessIssue]
    ways[IDIOMATIC] = Way(scanned(coupled), args)

    def in_torch(torch: Any) -> Any:
        return torch_steps(torch, size, depth, tensor(torch, args[1], requires_grad=True))

    return {**ways, **torch_way(in_torch)} if torch else ways


def torch_steps(torch: Any, size: Size, depth: int, x: Any) -> Callable[[], Any]:
    """Reversible steps as autograd has them, which keeps the activations of all steps."""
    each = [torch.nn.Linear(size.features // 2, size.features // 2) for _ in range(2 * depth)]
    wanted = [p for one in each for p in one.parameters()] + [x]

    def run() -> Any:
        x1, x2 = x.chunk(2, -1)
        for f, g in zip(each[::2], each[1::2], strict=True):
            x1 = x1 + torch.relu(f(x2))
            x2 = x2 + torch.relu(g(x1))
        return torch.autograd.grad(0.5 * (x1**2 + x2**2).sum(), wanted)

    return run


def group() -> Group:
    """The rows of `stack`."""
    rows = [
        Row(
            f"{DEPTH} dense blocks, {size}",
            lambda size=size: stack_ways(size),
            (
                Target(TIME, 0.8),
                Target(TIME, 0.8, IDIOMATIC),
                Target(MEMORY, most),
                Target(MEMORY, most, IDIOMATIC),
                Target(COMPILE, 1.3, SHALLOW),
            ),
            note=STACK,
            against_idiomatic="jax.lax.scan of jax.nn.relu(x @ W.T + b)",
        )
        for size, most in SIZES.items()
    ]
    rows += [
        Row(
            f"{DEPTH} residual blocks with checkpoint, {size}",
            lambda size=size: checkpoint_ways(size),
            (Target(MEMORY, 0.3, PLAIN), Target(MEMORY, 1.0)),
            timed=False,
        )
        for size in SIZES
    ]
    return Group("stack", "Layers in a scan", tuple(rows))


def reversible() -> Group:
    """The rows of `reversible`."""
    rows = [
        Row(
            f"{DEPTH} reversible steps, {size}",
            lambda size=size: reversible_ways(size),
            (Target(MEMORY, 0.1),),
            note="Backward keeps the output of the last step alone.",
            against_idiomatic="jax.lax.scan of the same steps in jax.nn",
        )
        for size in SIZES
    ]
    return Group("reversible", "Reversible layers", tuple(rows))
