"""Parameters as people write them, (W, b) pairs, read as the notes' MLP and given back alike.

Reading is done on a tree of any leaves. So the structure of a gradient is found by reading a tree
of numbers, 0 ... n-1 in the places of the arrays, with the same function that reads the arrays.
"""

from __future__ import annotations

from typing import Any

import jax

from manual_bp.activations import relu
from manual_bp.combinators.sequential import Sequential, sequential
from manual_bp.layer import Layer, Tree
from manual_bp.layers.dense import Dense, Params

ACCEPTED = (
    "(W, b) pairs as a tuple or list of pairs, or one bare pair; a pair is a tuple (W, b), a list "
    "[W, b], or a dict or NamedTuple with fields W and b"
)


def read(params: Tree) -> tuple[Params, ...]:
    """The (W, b) pairs in params, first layer first; a bare pair is a network of one layer.

    Raises:
        TypeError: when params can't be read so, naming the part that can't.
    """
    if is_pair(params):
        return (_read_pair(params, "params"),)
    if isinstance(params, dict):
        raise TypeError(
            f"params is a dict with keys {list(params)}, whose layers have no order. Expected "
            f"{ACCEPTED}; or pass network=..., the network whose params these are."
        )
    if not isinstance(params, tuple | list) or not params:
        given = "an empty " + type(params).__name__ if params == () or params == [] else None
        raise TypeError(
            f"params is {given or type(params).__name__}. Expected {ACCEPTED}; or pass "
            "network=..., the network whose params these are."
        )
    return tuple(_read_pair(pair, f"params[{index}]") for index, pair in enumerate(params))


def as_network(params: Tree) -> Sequential:
    """The notes' MLP that params describe: relu hidden layers, as wide as the weights say."""
    pairs = read(params)
    for index, pair in enumerate(pairs):
        if getattr(pair.W, "ndim", None) != 2:
            raise ValueError(
                f"in layer {index + 1}, W has shape {tuple(pair.W.shape)}, expected (n_out, n_in)."
            )
    *hidden, last = (pair.W.shape[0] for pair in pairs)
    return sequential(*(Dense(features, relu) for features in hidden), Dense(last))


def is_dense_chain(network: Layer) -> bool:
    """Whether the network's params are the notes' pairs."""
    return isinstance(network, Sequential) and all(
        isinstance(layer, Dense) and layer.bias for layer in network.layers
    )


def restore(grads: tuple[Params, ...], params: Tree) -> Tree:
    """Gradients of the pairs, in the structure of params."""
    leaves, structure = jax.tree.flatten(params)
    places = read(jax.tree.unflatten(structure, range(len(leaves))))
    for place, grad in zip(places, grads, strict=True):
        leaves[place.W], leaves[place.b] = grad
    return jax.tree.unflatten(structure, leaves)


def _is_leaf(part: Any) -> bool:
    return part is not None and not isinstance(part, tuple | list | dict)


def is_pair(part: Any) -> bool:
    """Whether it is meant as one pair (W, b)."""
    if isinstance(part, dict):
        return "W" in part or "b" in part
    if hasattr(part, "_fields"):
        return "W" in part._fields or "b" in part._fields
    return isinstance(part, tuple | list) and len(part) > 0 and _is_leaf(part[0])


def _read_pair(pair: Any, place: str) -> Params:
    if isinstance(pair, dict):
        names, fields = list(pair), pair
    elif hasattr(pair, "_fields"):
        names, fields = list(pair._fields), pair._asdict()
    elif isinstance(pair, tuple | list):
        if len(pair) != 2:
            raise TypeError(f"{place} has {len(pair)} entries, expected 2: {ACCEPTED}.")
        names, fields = ["W", "b"], dict(zip(("W", "b"), pair, strict=True))
    else:
        raise TypeError(f"{place} is {type(pair).__name__}, expected a pair: {ACCEPTED}.")
    if sorted(names) != ["W", "b"]:
        raise TypeError(f"{place} has fields {names}, expected W and b: {ACCEPTED}.")
    for name, value in fields.items():
        if not _is_leaf(value):
            raise TypeError(
                f"{place}: {name} is {type(value).__name__}, expected an array: {ACCEPTED}."
            )
    return Params(fields["W"], fields["b"])
