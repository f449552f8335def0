"""What layers that are repeated in a scan share: what each step takes, and what it must keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from manual_bp.layer import NESTED, Layer, Static, Tree
from manual_bp.sharding import undivided


def over_steps(handed: Mapping[str, Any], depth: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """(what all steps share, what is scanned) of what a repeated layer is handed.

    Statistics and states are stacked and scanned; the number of the step is, where a key must be
    folded with it; a mask or a memory is the same for all.
    """
    shared, scanned = dict(handed), {}
    for name in NESTED:
        if name in shared:
            scanned[name] = shared.pop(name)
    if "key" in shared:
        scanned["step"] = jnp.arange(depth)
    return shared, scanned


def scannable(stacked: Tree) -> Tree:
    """What is stacked, with the steps on every device: a scan runs along them."""
    return jax.tree.map(lambda leaf: undivided(leaf, 0), stacked)


def at_step(shared: Mapping[str, Any], scanned: Mapping[str, Any]) -> dict[str, Any]:
    """What the layer takes at one step: a key of its own, its own statistics."""
    given = {**shared, **scanned}
    if "step" in given:
        given["key"] = jax.random.fold_in(given["key"], given.pop("step"))
    return given


IN, OUT = -1, -2
"""The places of a step's own input and output among what it keeps."""


class Kept(NamedTuple):
    """What one step keeps, or all of them, stacked: each array once.

    outs: the output, () if the layer doesn't keep it; where it does, its input is the output of the
    step below; leaves: other arrays; places: the structure of the layer's residuals, and for each
    of their leaves its place among these, `IN` or `OUT`.
    """

    outs: Any
    leaves: tuple[jax.Array, ...]
    places: Static

    @property
    def inputs(self) -> bool:
        """Whether the layer's input is to be read off the output of the step below."""
        return IN in self.places.value[1]

    def opened(self, x: Any) -> Tree:
        """The layer's residuals again, given the step's input."""
        structure, places = self.places.value
        special = {IN: x, OUT: self.outs}
        each = [special[place] if place < 0 else self.leaves[place] for place in places]
        return jax.tree.unflatten(structure, each)


def kept_once(residuals: Tree, x: jax.Array, out: jax.Array) -> Kept:
    """What a step keeps, without what is kept twice.

    A scan stacks all that its body returns, also what it returns twice, and the output of a step is
    the input of the next one. So relu's output, which says where its error passes, costs nothing in
    a layer that keeps its input. Outputs are stacked and not inputs: XLA on CPU would copy an input
    that is stacked while the carry is written over. A layer that keeps its input alone has that
    stacked: on a mesh XLA would move what is read from the step below.

    Args:
        residuals: of the layer.
        x, out: its input, and its output as the next step takes it.
    """
    leaves, structure = jax.tree.flatten(residuals)
    keeps_out = any(leaf is out for leaf in leaves)
    own: list[jax.Array] = []
    places = []
    for leaf in leaves:
        special = IN if keeps_out and leaf is x else OUT if leaf is out else None
        found = (place for place, each in enumerate(own) if each is leaf)
        place = next(found, len(own)) if special is None else special
        if place == len(own):
            own.append(leaf)
        places.append(place)
    outs = out if keeps_out else ()
    return Kept(outs, tuple(own), Static((structure, tuple(places))))


def input_of(step: jax.Array, x: jax.Array, outs: jax.Array) -> jax.Array:
    """A[step - 1]: the output of the step below, or x."""
    if len(outs) == 1:
        return x
    below = jax.lax.dynamic_index_in_dim(outs, jnp.maximum(step - 1, 0), keepdims=False)
    return jnp.where(step == 0, x, below)


def over_uses(dtaken: Mapping[str, Tree]) -> dict[str, Tree]:
    """Gradients of what is taken, stacked over the steps: what all of them share adds."""
    return {
        name: each if name in NESTED else jax.tree.map(lambda leaf: leaf.sum(0), each)
        for name, each in dtaken.items()
    }


def check_depth(name: str, depth: Any) -> None:
    """Raise unless depth is a positive int."""
    if not isinstance(depth, int) or isinstance(depth, bool) or depth < 1:
        raise TypeError(f"{name}: depth must be a positive int, got {depth!r}.")


def check_stacked(layer: Layer, depth: int, what: str, tree: Tree) -> None:
    """Raise unless every leaf has a first axis of this depth."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        shape = jnp.shape(leaf)
        if shape[:1] != (depth,):
            place = jax.tree_util.keystr(path)
            advice = "Make params with network.init(key, x)."
            if what in NESTED:
                advice = "Give what manual_pass(...).observed is, or averages: it is stacked alike."
            raise ValueError(
                f"{layer!r}: {what}{place} has shape {shape}, expected a first axis of {depth}, "
                f"an entry for each step. {advice}"
            )


def check_kept(combinator: str, layer: Layer, x: Any, out: Any) -> None:
    """Raise unless the output has the shape and dtype of the input."""
    if out.shape != x.shape:
        raise ValueError(
            f"{layer!r} makes {tuple(out.shape)} of {tuple(x.shape)}: inside {combinator} it must "
            "keep the shape, since it is repeated."
        )
    if out.dtype != x.dtype:
        raise TypeError(
            f"{layer!r} makes {out.dtype} of {x.dtype}: inside {combinator} it must keep the "
            "dtype, since it is repeated. Cast the params or x so that both have the same."
        )
