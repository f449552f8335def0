"""Where arrays lie on a mesh of devices: all that many devices ask of a program.

`manual_grads` knows of no mesh. It is compiled for arrays that lie on one: XLA divides the work as
the arrays are divided, and inserts the sums between devices. Three ways to place parameters, each
a function of params and mesh that returns a tree of `NamedSharding` in the structure of params:

    replicated          every device holds all: data parallelism, when the batch is divided
    tensor_parallel     each device of "model" holds some of the units of every layer
    fully_sharded       each device of "data" holds a part of every parameter, and the layers'
                        weights are gathered when they are used

    mesh = auto_mesh(data=4, model=2)
    places = tensor_parallel(params, mesh)
    params = jax.device_put(params, places)
    x, y = jax.device_put((x, y), batch(mesh))
    step = jax.jit(manual_value_and_grads, ..., out_shardings=(replicated((), mesh), places))

A gradient lies where `out_shardings` asks for it; where nothing asks, XLA chooses.

Source  Dean et al. (2012), Large scale distributed deep networks (data parallel); Shoeybi et al.
        (2019), Megatron-LM, arXiv:1909.08053 (tensor parallel); Rajbhandari et al. (2020), ZeRO,
        arXiv:1910.02054 (fully sharded)
"""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from manual_bp.layers import conv, dense, embedding, multi_head_attention

Tree = Any

BY_HEADS = {"Wq": -2, "Wk": -2, "Wv": -2, "bq": -1, "bk": -1, "bv": -1, "Wo": -1}
"""Attention: each device has some heads; what they give is added in Wo."""
BY_TOKENS = {"W": -2}
DENSE_BY_OUTPUTS, DENSE_BY_INPUTS = {"W": -2, "b": -1}, {"W": -1}
CONV_BY_OUTPUTS, CONV_BY_INPUTS = {"W": -1, "b": -1}, {"W": -2}
"""Axes that are divided, by the field's name; from the end, since `stack` puts one in front."""


def auto_mesh(**axes: int) -> Mesh:
    """A mesh of these axes, whose shardings XLA propagates by itself (AxisType.Auto).

    Args:
        **axes: the number of devices along each, "data" and "model" as used here.

    Example:
        >>> auto_mesh(data=1, model=1).axis_names
        ('data', 'model')
    """
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def batch(mesh: Mesh) -> NamedSharding:
    """The examples' first axis over "data": for x, y and weights; whole on a mesh without it."""
    return NamedSharding(mesh, P("data") if "data" in mesh.axis_names else P())


def replicated(params: Tree, mesh: Mesh) -> Tree:
    """All of every parameter on every device."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, P()), params)


def fully_sharded(params: Tree, mesh: Mesh, axis: str = "data") -> Tree:
    """Every parameter divided along its largest axis that can be; whole where none can.

    Args:
        params: a tree of arrays, or of their shapes.
        mesh: with this axis.
        axis: over whose devices they are divided.

    Returns:
        A tree of NamedSharding.
    """

    def place(leaf: Any) -> NamedSharding:
        can = [dim for dim, size in enumerate(leaf.shape) if size % mesh.shape[axis] == 0]
        largest = max(can, key=lambda dim: leaf.shape[dim], default=None)
        return _along(leaf, largest, mesh, axis)

    return jax.tree.map(place, params)


def tensor_parallel(params: Tree, mesh: Mesh, axis: str = "model") -> Tree:
    """The units of every layer divided, in pairs of layers.

        A = g(X W₁ᵀ + b₁)       W₁ by its outputs: each device has some units of A
        out = A W₂ᵀ + b₂        W₂ by its inputs: each device adds what its units give

    so that a pair needs one sum over devices forward, of out, and one backward, of dX. Dense layers
    and convolutions of a `sequential` take turns as the first and the second of a pair; attention
    is a pair by itself, divided by heads; an embedding is divided by tokens, hence the logits of a
    head tied to it by classes. All else, and what can't be divided evenly, is whole everywhere.

    Args:
        params: of a network, as `init` makes them, or their shapes.
        mesh: with this axis.
        axis: over whose devices they are divided.

    Returns:
        A tree of NamedSharding.

    Example:
        >>> network = mbp.mlp([4, 6, 2])
        >>> params = network.init(jax.random.key(0), jnp.ones((1, 4)))
        >>> places = tensor_parallel(params, auto_mesh(data=1, model=1))
        >>> [place.spec for place in jax.tree.leaves(places)]
        [P('model', None), P('model',), P(None, 'model'), P()]
    """

    def place(params: Tree, axes: dict[str, int]) -> Tree:
        """The params of one layer, with these axes divided."""

        def field(name: str) -> Tree:
            along = functools.partial(_along, dim=axes.get(name), mesh=mesh, axis=axis)
            return jax.tree.map(along, getattr(params, name))  # () without a bias

        return type(params)(*map(field, params._fields))

    def walk(params: Tree) -> Tree:
        match params:
            case dense.Params():
                return place(params, DENSE_BY_OUTPUTS)
            case conv.Params():
                return place(params, CONV_BY_OUTPUTS)
            case multi_head_attention.Params():
                return place(params, BY_HEADS)
            case embedding.Params():
                return place(params, BY_TOKENS)
            case tuple() if not hasattr(params, "_fields"):
                return in_turns(params)
        return replicated(params, mesh)

    def in_turns(children: tuple[Tree, ...]) -> tuple[Tree, ...]:
        """A combinator's: every other Dense or Conv is the second of a pair."""
        second, placed = False, []
        for child in children:
            if isinstance(child, dense.Params | conv.Params) and second:
                by_inputs = DENSE_BY_INPUTS if isinstance(child, dense.Params) else CONV_BY_INPUTS
                placed.append(place(child, by_inputs))
            else:
                placed.append(walk(child))
            second ^= isinstance(child, dense.Params | conv.Params)
        return tuple(placed)

    return walk(params)


def _along(leaf: Any, dim: int | None, mesh: Mesh, axis: str) -> NamedSharding:
    """An array divided along this dimension; whole for None, and where it doesn't divide evenly."""
    if dim is None or leaf.shape[dim] % mesh.shape[axis]:
        return NamedSharding(mesh, P())
    spec: list[str | None] = [None] * len(leaf.shape)
    spec[dim] = axis
    return NamedSharding(mesh, P(*spec))
