"""Every intermediate of a forward and backward pass, named as in the notes.

The backward pass of a layer keeps as little as it can; to show A and Z each leaf is wrapped in a
layer that also keeps its input and output. The walk then finds them beside the error.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from manual_bp.activations import identity
from manual_bp.combinators.sequential import Sequential
from manual_bp.gradients import check_call, open_params, sweep
from manual_bp.layer import Combinator, Layer, Loss, Static, Tree
from manual_bp.layers.dense import Dense


class Seen(NamedTuple):
    """What is shown of one layer, and its gradients."""

    names: Static
    values: tuple[jax.Array, ...]  # a dict would come out of a scan sorted
    dparams: Tree


@dataclass(frozen=True)
class Recorded(Layer):
    """A layer that keeps its input and output beside its residuals."""

    layer: Layer

    @property
    def takes(self) -> tuple[str, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.layer.takes

    def forward(self, params: Tree, x: jax.Array, **taken: Any) -> tuple[jax.Array, Tree]:
        out, residuals = self.layer.forward(params, x, **taken)
        return out, (x, out, residuals)

    def __repr__(self) -> str:
        return repr(self.layer)


def intermediates(
    params: Tree,
    x: Any,
    y: Any,
    *,
    network: Layer | None = None,
    loss: Loss | None = None,
    weights: Any = None,
    **taken: Any,
) -> dict[str, jax.Array]:
    """Every intermediate of one forward and backward pass, by its name in the notes.

        Z[l], A[l] forward,   dA[l], dZ[l], dW[l], db[l] backward

    Layers count from 1, children of a combinator after a dot: "Z1", "dW2", "dZ3.1". A dense layer
    has Z, A, dA, dZ, dW, db; any other has out, dout and the gradients of its parameters. When the
    last layer is dense with no activation, its A is the loss's own activation of Z (softmax, for
    softmax cross-entropy), and it has no dA: loss and activation are differentiated as one,
    dZ[L] = w (A[L] - Y). Every dv is ∂J/∂v, with `weights` in it. Of a layer that is repeated the
    steps are stacked, the first step first; the gradient of tied parameters is the sum over their
    places, and stands at the first of them. Parameters of the loss's own have "dW of the loss".

    Args:
        params, x, y, network, loss, weights, **taken: as for `manual_pass`.

    Returns:
        A dict from name to array: "A0" (which is x), each layer's in order, and "dA0" (dJ/dx),
        unless x holds tokens.

    Raises:
        TypeError, ValueError: as `manual_pass` does.

    Source: Rumelhart, Hinton & Williams (1986).

    Example:
        >>> steps = intermediates((jnp.eye(2), jnp.ones(2)), jnp.ones((1, 2)), jnp.array([0]))
        >>> list(steps)
        ['A0', 'Z1', 'A1', 'dZ1', 'dW1', 'db1', 'dA0']
        >>> print(steps["dZ1"])
        [[-0.5  0.5]]
    """
    loss = check_call(params, x, y, weights, taken, network, loss)
    names, values = _compiled(params, x, y, weights, taken, network=network, loss=loss)
    return dict(zip(names.value, values, strict=True))


@functools.partial(jax.jit, static_argnames=("network", "loss"))
def _compiled(
    params: Tree,
    x: jax.Array,
    y: jax.Array,
    weights: jax.Array | None,
    taken: dict[str, Any],
    *,
    network: Layer | None,
    loss: Loss,
) -> tuple[Static, list[jax.Array]]:
    network, tree, loss_params = open_params(params, network, loss)
    step = sweep(visit, _recorded(network), loss, tree, loss_params, x, y, weights, taken)
    grads = loss.repay(network.gather(_dparams(network, step.seen)), step.dloss_params)
    named = dict([("A0", x), *_named(network, step.seen, grads)])
    if step.dx.dtype != jax.dtypes.float0:  # tokens have no gradient
        named["dA0"] = step.dx
    if loss.parametric:
        named |= {f"{name} of the loss": each for name, each in _fields(step.dloss_params)}
    layers = network.layers if isinstance(network, Sequential) else (network,)
    last, number = layers[-1], len(layers)
    if isinstance(last, Dense) and last.activation == identity:
        named[f"A{number}"] = loss.activate(step.prediction)
        del named[f"dA{number}"]
    return Static(tuple(named)), list(named.values())  # a dict would come out of jit sorted


def visit(
    recorded: Recorded, dout: jax.Array, params: Tree, residuals: Tree
) -> tuple[Seen, jax.Array]:
    """What one layer shows: a dense one the notes' quantities, any other its out and dout."""
    x, out, kept = residuals
    dparams, dx = recorded.layer.backward(params, kept, dout)
    if isinstance(recorded.layer, Dense):
        z = recorded.layer.preactivation(params, x)
        dz = recorded.layer.error(kept, dout)
        return Seen(Static(("Z", "A", "dA", "dZ")), (z, out, dout, dz), dparams), dx
    return Seen(Static(("out", "dout")), (out, dout), dparams), dx


def _recorded(network: Layer) -> Layer:
    if isinstance(network, Combinator):
        return network.rebuild(tuple(map(_recorded, network.children)))
    return Recorded(network)


def _dparams(network: Layer, seen: Tree) -> Tree:
    """The gradients that each layer saw, nested like the network: what `gather` takes."""
    if isinstance(network, Combinator):
        return tuple(map(_dparams, network.children, seen))
    return seen.dparams


def _fields(grads: Tree) -> list[tuple[str, jax.Array]]:
    """Gradients by the names of their parameters, "dW", "db"."""
    fields = grads._asdict() if hasattr(grads, "_asdict") else {}
    return [(f"d{name}", each) for name, each in fields.items() if jax.tree.leaves(each)]


def _named(network: Layer, seen: Tree, grads: Tree, place: str = "") -> list[tuple[str, jax.Array]]:
    if not isinstance(network, Combinator):
        shown = [*zip(seen.names.value, seen.values, strict=True), *_fields(grads)]
        return [(f"{name}{place or '1'}", value) for name, value in shown]
    prefix = f"{place}." if place else ""
    grads = grads or ((),) * len(network.children)  # tied to another layer's
    return [
        pair
        for number, (child, each, grad) in enumerate(
            zip(network.children, seen, grads, strict=True), start=1
        )
        for pair in _named(child, each, grad, f"{prefix}{number}")
    ]
