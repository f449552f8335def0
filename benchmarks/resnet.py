"""A residual network on 32x32 images: `manual_grads` of a whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import manual_bp as mbp
from benchmarks.row import TIME, Eager, Group, Row, Target, Way
from benchmarks.torch_ways import of_module, tensor, torch_way
from benchmarks.ways import of_network

WIDTHS, BLOCKS = (16, 32, 64), 2
"""Those of `manual_bp.resnet` unless told otherwise: 13 convolutions of 3x3, two of 1x1."""
BATCH, CLASSES = 64, 10


def ways(
    widths: tuple[int, ...] = WIDTHS, blocks: int = BLOCKS, batch: int = BATCH, side: int = 32
) -> dict[str, Way | Eager]:
    """By hand, jax.grad of the same, jax.grad with jax.nn and jax.lax, PyTorch."""
    x = jax.random.normal(jax.random.key(1), (batch, side, side, 3))
    y = jax.random.randint(jax.random.key(2), (batch,), 0, CLASSES)
    network = mbp.resnet(CLASSES, widths, blocks)

    def in_torch(torch: Any) -> Any:
        images, labels = tensor(torch, x.transpose(0, 3, 1, 2)), tensor(torch, y).long()

        def loss(out: Any) -> Any:
            return torch.nn.functional.cross_entropy(out, labels)

        return of_module(torch, torch_network(torch, widths, blocks), images, loss)

    return {**of_network(network, x, y, idiomatic(widths, blocks)), **torch_way(in_torch)}


def idiomatic(widths: tuple[int, ...], blocks: int) -> Callable[[Any, Any], Any]:
    """logits(params, x) with jax.lax.conv_general_dilated, jax.nn.relu and jnp.var."""

    def conv(params: Any, x: Any, stride: int = 1) -> Any:
        names = ("NHWC", "HWIO", "NHWC")
        strides = (stride, stride)
        return jax.lax.conv_general_dilated(x, params.W, strides, "SAME", dimension_numbers=names)

    def activated(params: Any, x: Any) -> Any:
        mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
        return jax.nn.relu(
            (x - mean) * jax.lax.rsqrt(variance + 1e-5) * params.scale + params.shift
        )

    def body(params: Any, x: Any, stride: int) -> Any:
        first, norm, _, second = params
        return conv(second, activated(norm, conv(first, x, stride)))

    def logits(params: Any, x: Any) -> Any:
        x, rest = conv(params[0], x), iter(params[1:])
        for stage in range(len(widths)):
            for block in range(blocks):
                if stage and not block:
                    norm, _, (shortcut, inner) = next(rest)
                    a = activated(norm, x)
                    x = conv(shortcut, a, 2) + body(inner, a, 2)
                else:
                    norm, _, *inner = next(rest)[0]
                    x = x + body(inner, activated(norm, x), 1)
        norm, _, _, head = rest
        return activated(norm, x).mean((1, 2)) @ head.W.T + head.b

    return logits


def torch_network(torch: Any, widths: tuple[int, ...], blocks: int) -> Any:
    """The same architecture as an `nn.Module`."""
    nn = torch.nn

    def conv(before: int, width: int, stride: int = 1, kernel: int = 3) -> Any:
        return nn.Conv2d(before, width, kernel, stride, kernel // 2, bias=False)

    def norm(width: int) -> Any:
        return nn.BatchNorm2d(width, track_running_stats=False)

    class Block(nn.Module):
        def __init__(self, before: int, width: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Sequential(norm(before), nn.ReLU())
            body = conv(before, width, stride), norm(width), nn.ReLU(), conv(width, width)
            self.body = nn.Sequential(*body)
            self.shortcut = conv(before, width, stride, 1) if before != width else None

        def forward(self, x: Any) -> Any:
            a = self.first(x)
            return (x if self.shortcut is None else self.shortcut(a)) + self.body(a)

    layers, before = [conv(3, widths[0])], widths[0]
    for stage, width in enumerate(widths):
        for block in range(blocks):
            layers.append(Block(before, width, 2 if stage and not block else 1))
            before = width
    head = norm(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    return nn.Sequential(*layers, *head, nn.Linear(before, CLASSES))


def group() -> Group:
    """The row."""
    row = Row(
        f"widths {'-'.join(map(str, WIDTHS))}, {BLOCKS} blocks each, 32x32 x {BATCH}",
        ways,
        (Target(TIME, 1.0),),
        note="manual_bp.resnet as it is by default.",
        against_idiomatic="jax.lax.conv_general_dilated, jax.nn.relu, jnp.var",
    )
    return Group("resnet", "Residual network on images", (row,))
