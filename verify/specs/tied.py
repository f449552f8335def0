"""Spec of Tied: the body, with the first place's params put in at every other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import manual_bp as mbp
from manual_bp.combinators.tied import Tied
from manual_bp.layer import Layer
from verify import specs
from verify.specification import BadInput, LayerSpec, Shape
from verify.specs.activations import draw_activation


def reference(layer: Tied, params: Any, x: Any, run: Callable[..., Any]) -> Any:
    """The body with the params of each group's first place assigned to its others."""
    (tree,) = params
    for first, *others in layer.groups:
        shared = _read(tree, first)
        for path in others:
            tree = _assign(tree, path, shared)
    return run(0, tree, x)


def _read(tree: Any, path: Any) -> Any:
    for step in path:
        tree = tree._asdict()[step] if isinstance(step, str) else tree[step]
    return tree


def _assign(tree: Any, path: Any, value: Any) -> Any:
    if not path:
        return value
    step, *rest = path
    if isinstance(step, str):
        return tree._replace(**{step: _assign(_read(tree, [step]), rest, value)})
    if hasattr(tree, "_fields"):
        return _assign(tree, (tree._fields[step], *rest), value)
    return (*tree[:step], _assign(tree[step], rest, value), *tree[step + 1 :])


def draw(rng: np.random.Generator, shape: Shape) -> Tied:
    """Two equal dense layers as one, or two or three layers with one bias."""
    features = shape[-1]
    g = draw_activation(rng)
    if rng.random() < 0.5:
        inner = mbp.Dense(features, draw_activation(rng))
        body = mbp.sequential(mbp.Dense(features, g), mbp.skip(inner))
        return mbp.tied(body, ((0,), (1, 0)))
    width = int(rng.integers(1, 7))
    layers = [mbp.Dense(width, g) for _ in range(int(rng.integers(2, 4)))]
    return mbp.tied(mbp.sequential(*layers), tuple((index, "b") for index in range(len(layers))))


def shrink(layer: Tied) -> Iterator[Layer]:
    """The body alone, or a group less."""
    yield layer.body
    for index in range(len(layer.groups)):
        if len(layer.groups) > 1:
            yield Tied(layer.body, layer.groups[:index] + layer.groups[index + 1 :])


_key = jax.random.key(0)
_x = jnp.ones((2, 4))
_body = mbp.sequential(mbp.Dense(4, mbp.relu), mbp.tanh, mbp.Dense(4), mbp.Dense(3))

SPECS = (
    LayerSpec(
        layer=Tied,
        samples=(
            (
                mbp.tied(mbp.sequential(mbp.Dense(4, mbp.tanh), mbp.Dense(4)), ((0,), (1,))),
                (3, 4),
            ),
            (
                mbp.tied(
                    mbp.sequential(mbp.Dense(3, mbp.relu), mbp.Dense(2), mbp.Dense(3)),
                    ((0, "W"), (2, "W")),
                    ((0, "b"), (2, 1)),
                ),
                (2, 2),
            ),
            (
                mbp.tied(
                    mbp.parallel(mbp.Dense(2, mbp.relu), mbp.Dense(2), mbp.Dense(2), combine="sum"),
                    ((1, "W"), (0, "W"), (2, "W")),
                ),
                (2, 3),
            ),
            (
                mbp.tied(
                    mbp.sequential(
                        mbp.stack(mbp.Dense(2, mbp.relu), 2), mbp.stack(mbp.Dense(2), 2)
                    ),
                    ((0,), (1,)),
                ),
                (2, 2),
            ),
        ),
        reference=reference,
        naive=reference,
        draw=draw,
        shrink=shrink,
        exact=lambda layer: specs.of_layer(layer.body).exact(layer.body),
        smooth=lambda layer: specs.of_layer(layer.body).smooth(layer.body),
        errors=(
            BadInput(
                "a layer that isn't there",
                lambda: mbp.tied(_body, ((0,), (7,))).init(_key, _x),
                ValueError,
                ("nothing at (7,)", "() is a tuple of 4", "has no 7"),
            ),
            BadInput(
                "a field that isn't there",
                lambda: mbp.tied(_body, ((0, "W"), (2, "V"))).init(_key, _x),
                ValueError,
                ("nothing at (2, 'V')", "(2,) is Params with fields W, b", "has no 'V'"),
            ),
            BadInput(
                "a path that goes on inside an array",
                lambda: mbp.tied(_body, ((0, "W", 0), (2, "W", 0))).init(_key, _x),
                ValueError,
                ("nothing at (0, 'W', 0)", "has no 0"),
            ),
            BadInput(
                "a layer without parameters",
                lambda: mbp.tied(_body, ((0,), (1,))).init(_key, _x),
                ValueError,
                ("the layer at (1,) has no parameters to tie",),
            ),
            BadInput(
                "shapes that differ",
                lambda: mbp.tied(_body, ((0,), (3,))).init(_key, _x),
                ValueError,
                ("at (0,) are float32 (4, 4), float32 (4,)", "(3,) float32 (3, 4)", "the same"),
            ),
            BadInput(
                "a W and its transpose",
                lambda: mbp.tied(
                    mbp.sequential(mbp.Dense(3), mbp.Dense(4)), ((0, "W"), (1, "W"))
                ).init(_key, _x),
                ValueError,
                ("float32 (3, 4)", "float32 (4, 3)", "does not transpose", "W and Wᵀ"),
            ),
            BadInput(
                "no group",
                lambda: mbp.tied(_body),
                TypeError,
                ("tied: name at least one group", "tied(body, ((0,), (1,)))"),
            ),
            BadInput(
                "a group of one place",
                lambda: mbp.tied(_body, ((0,),)),
                ValueError,
                ("at least two places", "got ((0,),)"),
            ),
            BadInput(
                "paths without their group",
                lambda: mbp.tied(_body, (0,), (2,)),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("a group must be a tuple of paths", "got (0,)"),
            ),
            BadInput(
                "a place inside another",
                lambda: mbp.tied(_body, ((0,), (2,)), ((0, "W"), (3, "W"))),
                ValueError,
                ("(0, 'W') lies inside (0,)", "one group"),
            ),
            BadInput(
                "a place by two names",
                lambda: mbp.tied(_body, ((0, "W"), (0, 0))).init(_key, _x),
                ValueError,
                ("tied: (0, 0) is (0, 0)", "name a place once"),
            ),
            BadInput(
                "params in two places",
                lambda: mbp.tied(_body, ((0,), (2,))).forward((_body.init(_key, _x),), _x),
                ValueError,
                ("params at (2,) must be ()", "those at (0,)", "network.init"),
            ),
            BadInput(
                "a list for a body",
                lambda: mbp.tied([mbp.relu], ((0,), (1,))),  # pyright: ignore[reportArgumentType]
                TypeError,
                ("tied: body must be a layer",),
            ),
        ),
    ),
)
