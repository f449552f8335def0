"""Dense networks: `manual_grads` of a whole batch."""

from __future__ import annotations

from typing import Any

import jax

import manual_bp as mbp
from benchmarks.row import COMPILE, RATE, TIME, TORCH, Eager, Group, Row, Target, Way
from benchmarks.torch_ways import dense_network, of_module, tensor, torch_way
from benchmarks.ways import of_network

SIZES = {
    "64-32-10 x 128": ((64, 32, 10), 128),
    "784-512-512-10 x 128": ((784, 512, 512, 10), 128),
    "784-1024-1024-1024-10 x 256": ((784, 1024, 1024, 1024, 10), 256),
    "16 layers of 256 x 64": ((256,) * 17, 64),
}
WIDEST = "784-1024-1024-1024-10 x 256"
NOTES = {
    "784-512-512-10 x 128": (
        "PyTorch's products, of MKL, are quicker than XLA's at this size. Tried: dW with an "
        "explicit transpose, 1.06 to 1.16 of the time; db as a product with ones, 0.94 as a "
        "prototype, which would need a precision of its own on other devices and isn't taken."
    ),
    "16 layers of 256 x 64": (
        "XLA on CPU computes a product of 64 x 256 by 256 x 256 on one core, in 70 us; PyTorch "
        "uses both. Each call touches 500 to 750 new pages of memory. Tried: the product for dW "
        "with an explicit transpose, 0.95 to 0.97 of the time here, 1.06 to 1.16 at "
        "784-512-512-10."
    ),
}


FIRST = (
    "By hand 847 equations are traced and 1106 lines lowered, by jax.grad 1279 and 2001, and "
    "tracing takes a third as long. But XLA is given as many kernels, 522 and 529, and has "
    "most of the time. Tried: products traced without einsum, which took a quarter of all. A "
    "`stack` is compiled once for all its layers."
)


def ways(widths: tuple[int, ...], examples: int, torch: bool = True) -> dict[str, Way | Eager]:
    """By hand, jax.grad of the same, jax.grad of jax.nn, PyTorch."""
    x = jax.random.normal(jax.random.key(1), (examples, widths[0]))
    y = jax.random.randint(jax.random.key(2), (examples,), 0, widths[-1])

    def logits(params: Any, x: Any) -> Any:
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer.W.T + layer.b)
        return x @ params[-1].W.T + params[-1].b

    def in_torch(torch: Any) -> Any:
        network, labels = dense_network(torch, widths), tensor(torch, y).long()

        def loss(out: Any) -> Any:
            return torch.nn.functional.cross_entropy(out, labels)

        return of_module(torch, network, tensor(torch, x), loss)

    found = of_network(mbp.mlp(widths), x, y, logits)
    return {**found, **torch_way(in_torch)} if torch else found


def group() -> Group:
    """The rows."""
    rows = []
    for name, (widths, examples) in SIZES.items():
        targets = [Target(TIME, 1.03), Target(TIME, 1.0, TORCH)]
        if name == WIDEST:
            targets.append(Target(RATE, 0.95))
        made = lambda widths=widths, examples=examples: ways(widths, examples)  # noqa: E731
        rows.append(Row(name, made, tuple(targets), note=NOTES.get(name, "")))
    return Group("mlp", "Dense networks", tuple(rows), (Target(TIME, 1.0),))


def first_gradient() -> Group:
    """The time until the first gradient of a deep network."""
    row = Row(
        "64 layers of 64 x 32",
        lambda: ways((64,) * 65, 32, torch=False),
        (Target(COMPILE, 0.5),),
        note=FIRST,
    )
    return Group("first_gradient", "Time to trace, lower and compile", (row,))
